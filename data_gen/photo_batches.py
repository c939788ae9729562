"""Rows of a Parquet photo table, many at once: what ``list_photo_table`` says of them one by one.

Most rows of a large table are ordinary: a path, two numbers. They are taken as columns; a batch that holds anything
else but rows to drop is read row by row.
"""

import string
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_gen.photo_names import pitts_panorama
from data_gen.photos import PhotoColumns, needed_columns, photo_of_row
from data_gen.tables import text_of
from llava_ial.errors import UserError
from llava_ial.records import DroppedRecord, PhotoRecord, arrow_schema, to_table

# What ``str.strip`` takes away.
_BLANKS = (
    string.whitespace
    + "\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
    + "".join(map(chr, range(0x2000, 0x200B)))
)


def has_plain_columns(path: Path, columns: PhotoColumns) -> bool:
    """Whether a table is Parquet and its columns are texts and numbers where such are expected."""
    if path.suffix.lower() != ".parquet":
        return False
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException):
        return False  # whoever reads it says what is wrong

    def fits(name: str, *kinds: object) -> bool:
        return name not in schema.names or any(kind(schema.field(name).type) for kind in kinds)  # type: ignore[operator]

    numbers = (pa.types.is_float32, pa.types.is_float64, pa.types.is_integer)
    needed = all(name in schema.names for name in needed_columns(columns, None))
    texts = (columns.image_path, columns.image_id, columns.panorama, columns.split)
    return (
        needed
        and all(fits(name, pa.types.is_string, pa.types.is_large_string) for name in texts)
        and all(fits(name, *numbers) for name in (columns.lat, columns.lon, columns.heading))
        and columns.captured_at not in schema.names
    )


def list_photo_batches(
    path: Path, columns: PhotoColumns, *, require_images: bool
) -> Iterator[tuple[pa.Table, list[DroppedRecord]]]:
    """Photos and rows to drop of each batch of a table with plain columns, in order.

    Raises:
        UserError: The table is damaged.
    """
    names = list(vars(columns).values())
    try:
        with pq.ParquetFile(path) as file:
            wanted = [name for name in dict.fromkeys(names) if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=wanted):
                yield _read_batch(batch, columns, require_images)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet table: {error}") from error


def _read_batch(
    batch: pa.RecordBatch, columns: PhotoColumns, require_images: bool
) -> tuple[pa.Table, list[DroppedRecord]]:
    table, is_ordinary = _as_columns(batch, columns)
    odd = np.flatnonzero(~is_ordinary)
    if not len(odd):
        return table, []
    if any(isinstance(found, PhotoRecord) for found in _by_rows(batch.take(pa.array(odd)), columns, require_images)):
        odd = np.arange(len(batch))
        table = table.slice(0, 0)
    else:
        table = table.filter(pa.array(is_ordinary))
    found = _by_rows(batch.take(pa.array(odd)), columns, require_images)
    photos = [row for row in found if isinstance(row, PhotoRecord)]
    if photos:
        table = to_table(photos, PhotoRecord)
    return table, [row for row in found if isinstance(row, DroppedRecord)]


def _by_rows(batch: pa.RecordBatch, columns: PhotoColumns, require_images: bool) -> list[PhotoRecord | DroppedRecord]:
    rows = ({key: text_of(value) for key, value in row.items()} for row in batch.to_pylist())
    return [photo_of_row(row, columns, require_images, None) for row in rows]


def _as_columns(batch: pa.RecordBatch, columns: PhotoColumns) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    """A batch as photos, and which of its rows are ordinary: a path below the root, a position on the earth."""
    paths, ids = _text(batch, columns.image_path), _text(batch, columns.image_id)
    lat, lon = _number(batch, columns.lat), _number(batch, columns.lon)
    with np.errstate(invalid="ignore"):
        on_earth = (np.abs(lat) <= 90) & (np.abs(lon) <= 180) & ~((lat == 0) & (lon == 0))
    is_odd_path = pc.or_(
        pc.equal(paths, ""), pc.or_(pc.starts_with(paths, "/"), pc.match_substring(paths, ".."))
    ).to_numpy(zero_copy_only=False)
    headings = pa.nulls(len(batch), pa.float64())
    is_odd_heading = np.zeros(len(batch), dtype=bool)
    if columns.heading in batch.schema.names:
        raw = batch.column(columns.heading)
        degrees = _number(batch, columns.heading)
        is_known = raw.is_valid().to_numpy(zero_copy_only=False)
        is_odd_heading = is_known & ~np.isfinite(degrees)
        headings = pa.array(np.where(is_odd_heading | ~is_known, 0.0, degrees) % 360.0, mask=~is_known)
    panoramas = _text(batch, columns.panorama)
    is_open = pc.equal(panoramas, "").to_numpy(zero_copy_only=False)
    if is_open.any():
        named = [pitts_panorama(path) for path in paths.filter(pa.array(is_open)).to_pylist()]
        panoramas = pc.replace_with_mask(panoramas, pa.array(is_open), pa.array(named, pa.string()))
    splits = _text(batch, columns.split)
    nothing = pa.nulls(len(batch), pa.string())
    found = {
        "image_id": pc.if_else(pc.equal(ids, ""), paths, ids),
        "image_path": paths,
        "lat": pa.array(lat),
        "lon": pa.array(lon),
        "heading_deg": headings,
        "panorama_id": panoramas,
        "captured_at": nothing,
        "source": pa.array(["csv"], pa.string()).take(pa.array(np.zeros(len(batch), dtype=np.int64))),
        "given_split": pc.if_else(pc.equal(splits, ""), pa.scalar(None, pa.string()), splits),
        "position_error_m": pa.nulls(len(batch), pa.float64()),
    }
    schema = arrow_schema(PhotoRecord)
    table = pa.Table.from_arrays([found[name] for name in schema.names], schema=schema)
    return table, on_earth & ~is_odd_path & ~is_odd_heading


def _text(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column of texts without surrounding blanks, "" where there is none."""
    if name not in batch.schema.names:
        return pa.array([""], pa.string()).take(pa.array(np.zeros(len(batch), dtype=np.int64)))
    return pc.utf8_trim(pc.fill_null(batch.column(name).cast(pa.string()), ""), characters=_BLANKS)


def _number(batch: pa.RecordBatch, name: str) -> npt.NDArray[np.float64]:
    """A column of numbers, NaN where there is none."""
    return np.asarray(pc.fill_null(batch.column(name).cast(pa.float64(), safe=False), np.nan).to_numpy())
