"""The tables of the project: one dataclass each, from which the Arrow schema is derived.

``image_id`` is the only join key. A table is a folder of Parquet parts (``part-00000.parquet`` ...), zstd, with paths
instead of bytes; ``datasets.load_dataset("parquet", ...)`` reads it without this code.
"""

import dataclasses
import functools
import hashlib
import os
import secrets
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llava_ial.address import Address
from llava_ial.conversation import Message
from llava_ial.errors import UserError

RecordT = TypeVar("RecordT")


@dataclass(frozen=True)
class PhotoRecord:
    """A photo with a usable position.

    Attributes:
        image_path: Relative to the image root that the data set's manifest names.
        heading_deg: Viewing direction, clockwise from north, if known.
        panorama_id: Photos of one panorama (or one capture sequence) never straddle a split.
        captured_at: ISO 8601, if known.
        source: Which reader found it.
        given_split: Split stated by the source, used with ``split: given``.
        position_error_m: The camera's own estimate of its horizontal error, if it gave one.
    """

    image_id: str
    image_path: str
    lat: float
    lon: float
    heading_deg: float | None
    panorama_id: str | None
    captured_at: str | None
    source: str
    given_split: str | None = None
    position_error_m: float | None = None

    @property
    def panorama(self) -> str:
        """Name of what shares its place and moment: the photo's own where it is of no panorama."""
        return self.panorama_id or self.image_id


@dataclass(frozen=True)
class DroppedRecord:
    """A row that did not make it: which one, at which step of the build, and why."""

    image_id: str
    step: str
    reason: str


@dataclass(frozen=True)
class AddressRecord:
    """The address of a photo.

    Attributes:
        sub_street_id: Class in ``gallery``.
        split: ``train``, ``val`` or ``test``.
        distance_m: From the position to its street.
        street_margin_m: How much farther the second street is; None if no second street is in range.
        is_ambiguous: The margin is under the configured threshold: usable in training, never in the test split.
        method: How the street was chosen.
    """

    image_id: str
    sub_street_id: str
    address: Address
    split: str
    distance_m: float
    street_margin_m: float | None
    is_ambiguous: bool
    method: str


@dataclass(frozen=True)
class HouseNumberRecord:
    """The nearest numbered house of a photo's street, for photos that stand close to one."""

    image_id: str
    house_number: str
    distance_m: float


@dataclass(frozen=True)
class CaptionRecord:
    """A scene description; ``num_masked`` counts names of the map taken out of it because they give the label away."""

    image_id: str
    caption: str
    captioner: str
    num_masked: int


@dataclass(frozen=True)
class GalleryRecord:
    """A candidate address: one piece of one street.

    Attributes:
        lines: The piece's geometry, parts of ``[lon, lat]`` points in degrees.
        num_positions: Distinct positions (panoramas) of the data set on it.
        adjacent_ids: Pieces that touch it.
    """

    sub_street_id: str
    address: Address
    verbose: str
    canonical: str
    spoken: str
    street_text: str
    neighbourhood_text: str
    lines: list[list[list[float]]]
    num_positions: int
    adjacent_ids: list[str]


@dataclass(frozen=True)
class ConversationRecord:
    """A dialogue about one photo.

    ``question_ids``, ``tasks`` and ``is_given_away`` have one entry per question; the last one is True where an earlier
    turn of the dialogue already holds the answer.
    """

    conversation_id: str
    image_id: str
    image_path: str
    sub_street_id: str
    split: str
    messages: list[Message]
    question_ids: list[str]
    tasks: list[str]
    is_given_away: list[bool]


@dataclass(frozen=True)
class PredictionRecord:
    """One answered question, a line of ``predictions.jsonl``.

    ``finish_reason`` is ``stop``, ``length`` or ``error``; an error is retried and never scored as a wrong answer.
    ``shown_image_id`` is the photo that was shown instead of the question's own, in the control with shuffled photos.
    ``prompt_tokens`` and ``completion_tokens`` are what a server bills. ``candidates`` and their ``probabilities`` come
    with an answer that was chosen from a list, best first.
    """

    question_id: str
    image_id: str
    task: str
    question: str
    expected: str
    answer: str
    finish_reason: str
    error: str | None = None
    shown_image_id: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    candidates: list[str] | None = None
    probabilities: list[float] | None = None


def name_key(name: str) -> int:
    """A number for a photo or panorama: batches hold tensors, and the folder of a model shall name no photo."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def arrow_type(annotation: Any) -> pa.DataType:
    """The Arrow type of a Python annotation used in a record."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is types.UnionType:
        return arrow_type(next(a for a in arguments if a is not types.NoneType))
    if origin in (list, tuple):
        return pa.list_(arrow_type(arguments[0]))
    if dataclasses.is_dataclass(annotation):
        return pa.struct(list(arrow_schema(typing.cast(type, annotation))))
    return {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}[annotation]


@functools.cache
def arrow_schema(record_type: type) -> pa.Schema:
    """The Arrow schema of a record type; a field is nullable exactly where its annotation allows None."""
    hints = typing.get_type_hints(record_type)
    return pa.schema(
        pa.field(f.name, arrow_type(hints[f.name]), nullable=types.NoneType in typing.get_args(hints[f.name]))
        for f in dataclasses.fields(record_type)
    )


def to_table(records: Iterable[Any], record_type: type) -> pa.Table:
    """Records as an Arrow table of ``arrow_schema(record_type)``."""
    rows, schema = list(records), arrow_schema(record_type)
    columns = [_column([getattr(row, field.name) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _column(values: list[Any], arrow: pa.DataType) -> pa.Array:
    """Values as an Arrow array, field by field of what is nested: a dictionary for each row costs far more."""
    has_none = any(value is None for value in values)
    if pa.types.is_struct(arrow):
        names = [field.name for field in arrow]
        if has_none:
            rows = [None if v is None else {name: getattr(v, name) for name in names} for v in values]
            return pa.array(rows, arrow)
        children = [_column([getattr(value, field.name) for value in values], field.type) for field in arrow]
        return pa.StructArray.from_arrays(children, fields=list(arrow))
    if pa.types.is_list(arrow) and not has_none:
        offsets = np.cumsum([0, *map(len, values)])
        inner = _column([item for value in values for item in value], arrow.value_type)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), inner, type=arrow)
    return pa.array(values, arrow)


def from_table(table: pa.Table, record_type: type[RecordT]) -> list[RecordT]:
    """Inverse of ``to_table``."""
    return [_build(record_type, row) for row in table.to_pylist()]


@functools.cache
def _type_hints(record_type: type) -> dict[str, Any]:
    return typing.get_type_hints(record_type)


def _build(annotation: Any, value: Any) -> Any:
    if value is None:
        return None
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is types.UnionType:
        return _build(next(a for a in arguments if a is not types.NoneType), value)
    if origin in (list, tuple):
        return origin(_build(arguments[0], item) for item in value)
    if dataclasses.is_dataclass(annotation):
        record_type = typing.cast(type, annotation)
        hints = _type_hints(record_type)
        return record_type(**{name: _build(hints[name], item) for name, item in value.items()})
    return value


def write_part(folder: Path, table: pa.Table, index: int = 0) -> Path:
    """Writes one part of a table folder under a temporary name, then renames it into place."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / part_name(index)
    temporary = folder / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, path)
    return path


def read_table(folder: Path, record_type: type) -> pa.Table:
    """All parts of a table folder, in order.

    Raises:
        UserError: No part, or columns that are not those of ``record_type``.
    """
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise UserError(f"{folder}: no table here (no part-*.parquet); run the step that writes it")
    return pa.concat_tables([_read_part(part, record_type) for part in parts])


def read_part(folder: Path, record_type: type, index: int) -> pa.Table:
    """One part of a table folder; errors as for ``read_table``."""
    return _read_part(folder / part_name(index), record_type)


def part_name(index: int) -> str:
    """File name of a part."""
    return f"part-{index:05d}.parquet"


def _read_part(part: Path, record_type: type) -> pa.Table:
    schema = arrow_schema(record_type)
    try:
        table = pq.read_table(part)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{part}: unreadable: {error}") from error
    for field in schema:  # a folder of an earlier version lacks what was added since
        if field.nullable and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    if missing := set(schema.names) - set(table.column_names):
        raise UserError(f"{part}: column(s) missing: {', '.join(sorted(missing))}; expected a {record_type.__name__}")
    return table.select(schema.names).cast(schema)


def read_records(folder: Path, record_type: type[RecordT]) -> list[RecordT]:
    """All records of a table folder, in order."""
    return from_table(read_table(folder, record_type), record_type)


def write_records(folder: Path, records: Sequence[Any], record_type: type) -> Path:
    """Writes records as the single part of a table folder."""
    return write_part(folder, to_table(records, record_type))
