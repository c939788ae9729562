"""A photo table read as columns says what it says row by row."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_gen.photo_batches import has_plain_columns, list_photo_batches
from data_gen.photos import PhotoColumns, list_photo_table
from llava_ial.records import DroppedRecord, PhotoRecord, from_table

ORDINARY = {"image_path": "a/000829_pitch1_yaw2.jpg", "lat": 40.4, "lon": -80.0, "heading_deg": -30.25}
BAD = [
    {"image_path": "", "lat": 40.4, "lon": -80.0},
    {"image_path": None, "lat": 40.4, "lon": -80.0},
    {"image_path": "/etc/a.jpg", "lat": 40.4, "lon": -80.0},
    {"image_path": "../a.jpg", "lat": 40.4, "lon": -80.0},
    {"image_path": "n.jpg", "lat": float("nan"), "lon": -80.0},
    {"image_path": "m.jpg", "lat": None, "lon": -80.0},
    {"image_path": "o.jpg", "lat": 0.0, "lon": 0.0},
    {"image_path": "far.jpg", "lat": 91.0, "lon": 0.0},
    {"image_path": "inf.jpg", "lat": 40.0, "lon": float("inf")},
]
GOOD = [
    ORDINARY,
    {"image_path": " b.jpg\u2003", "lat": 40.41, "lon": -80.1, "panorama_id": " p1\x1c", "split": "test"},
    {"image_path": "c.jpg", "lat": 40.42, "lon": -80.2, "image_id": "own", "heading_deg": 725.5, "split": " "},
]
ODD = [
    {"image_path": "a..b.jpg", "lat": 40.4, "lon": -80.0},  # dots, but no way up
    {"image_path": "h.jpg", "lat": 40.4, "lon": -80.0, "heading_deg": float("nan")},
]


def _write(path: Path, rows: list[dict[str, object]]) -> Path:
    names = ("image_path", "lat", "lon", "image_id", "heading_deg", "panorama_id", "split")
    columns = {name: [row.get(name) for row in rows] for name in names}
    types = {name: pa.float64() if name in ("lat", "lon", "heading_deg") else pa.string() for name in names}
    pq.write_table(pa.table({name: pa.array(values, types[name]) for name, values in columns.items()}), path)
    return path


@pytest.mark.parametrize("require_images", [True, False])
@pytest.mark.parametrize("rows", [GOOD, GOOD + BAD, GOOD + BAD + ODD, BAD, []], ids=lambda rows: str(len(rows)))
def test_columns_say_what_rows_say(tmp_path: Path, rows: list[dict[str, object]], require_images: bool) -> None:
    table, columns = _write(tmp_path / "photos.parquet", rows), PhotoColumns()
    assert has_plain_columns(table, columns)
    photos: list[PhotoRecord] = []
    dropped: list[DroppedRecord] = []
    for batch, gone in list_photo_batches(table, columns, require_images=require_images):
        batch.validate(full=True)
        photos += from_table(batch, PhotoRecord)
        dropped += gone
    by_row = list(list_photo_table(table, columns, require_images=require_images))
    assert photos == [row for row in by_row if isinstance(row, PhotoRecord)]
    assert dropped == [row for row in by_row if isinstance(row, DroppedRecord)]


@pytest.mark.parametrize(
    "column",
    [
        {"lat": pa.array(["40.4"])},
        {"image_id": pa.array([7])},
        {"captured_at": pa.array(["2020-01-01"])},
    ],
    ids=lambda column: next(iter(column)),
)
def test_other_kinds_of_columns_are_read_by_row(tmp_path: Path, column: dict[str, pa.Array]) -> None:
    table = pq.read_table(_write(tmp_path / "photos.parquet", [ORDINARY]))
    for name, values in column.items():
        kept = table.drop_columns([name]) if name in table.column_names else table
        pq.write_table(kept.append_column(name, values), tmp_path / "other.parquet")
    assert not has_plain_columns(tmp_path / "other.parquet", PhotoColumns())
    assert not has_plain_columns(tmp_path / "photos.parquet", PhotoColumns(lat="latitude"))
    assert not has_plain_columns(tmp_path / "photos.csv", PhotoColumns())
