"""Records, their Arrow schemas and their files."""

import dataclasses
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_ial import records
from llava_ial.address import Address, CrossStreet
from llava_ial.conversation import Message
from llava_ial.errors import UserError

GALLERY = records.GalleryRecord(
    "s0",
    Address("A", "N", (CrossStreet("B", "N"),), "C"),
    "v",
    "c",
    "s",
    "A",
    "N",
    [[[9.1, 48.7], [9.2, 48.8]]],
    3,
    ["s1"],
)
CONVERSATION = records.ConversationRecord(
    "c", "i", "i.jpg", "s0", "train", [Message("user", "q"), Message("assistant", "a")], ["q0"], ["where"], [False]
)
PHOTO = records.PhotoRecord("i", "i.jpg", 48.0, 9.0, None, "p", None, "csv")
ADDRESS = records.AddressRecord("i", "s0", GALLERY.address, "train", 1.5, None, False, "nearest")
EXAMPLES = [GALLERY, CONVERSATION, PHOTO, ADDRESS, records.CaptionRecord("i", "a street", "csv", 0)]


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda r: type(r).__name__)
def test_a_record_survives_its_file(tmp_path: Path, record: object) -> None:
    records.write_records(tmp_path, [record, record], type(record))
    assert records.read_records(tmp_path, type(record)) == [record, record]
    assert (
        datasets.load_dataset("parquet", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))["train"].num_rows
        == 2
    )


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda r: type(r).__name__)
def test_the_schema_has_exactly_the_fields_of_the_dataclass(record: object) -> None:
    schema = records.arrow_schema(type(record))
    assert schema.names == [field.name for field in dataclasses.fields(record)]
    optional = {n for n, t in type(record).__annotations__.items() if "None" in str(t)}
    assert {field.name for field in schema if field.nullable} == optional


def test_missing_table_unreadable_part_and_missing_column_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no table here"):
        records.read_table(tmp_path, records.PhotoRecord)
    (tmp_path / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"part-00000\.parquet: unreadable"):
        records.read_table(tmp_path, records.PhotoRecord)
    pq.write_table(pa.table({"image_id": ["a"]}), tmp_path / "part-00000.parquet")
    with pytest.raises(UserError, match=r"column\(s\) missing: .*image_path"):
        records.read_table(tmp_path, records.PhotoRecord)
