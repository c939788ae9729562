"""The first steps of a build: photos are listed, each part is checked, and all are gathered into one table.

Listing opens no photo and holds none in memory but those of one part. Checking is the costly step and is done part by
part. Gathering compares what only all photos together tell: names and bytes that come twice, places near each other.
"""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from data_gen.parts import Context, Facts
from data_gen.photo_batches import has_plain_columns, list_photo_batches
from data_gen.photo_check import STEP, format_reasons, read_files
from data_gen.photo_folders import list_named_photos, read_mapillary, read_pitts250k
from data_gen.photos import (
    DUPLICATE_ID,
    EXIF,
    list_photo_folder,
    list_photo_table,
    name_panoramas,
    photo_of_metadata,
)
from data_gen.positions import frame_of, misplaced, num_parts, read_column, read_columns
from data_gen.settings import BuildSettings
from llava_ial.errors import UserError
from llava_ial.records import (
    DroppedRecord,
    PhotoRecord,
    from_table,
    read_part,
    read_records,
    to_table,
    write_part,
    write_records,
)

_UTM = "utm_table"


def list_photos(context: Context) -> Facts:
    """Writes what the source names, in parts, and what it names in vain."""
    settings, dropped = context.settings, list[DroppedRecord]()
    parts = 0
    with tqdm(desc="listing photos", unit="photo", disable=None) as bar:

        def photos() -> Iterator[pa.Table]:
            for table, gone in _list_tables(settings):
                dropped.extend(gone)
                bar.update(len(table) + len(gone))
                yield table

        for table in _cut(photos(), settings.rows_a_part):
            write_part(context.work / "listed", table, parts)
            parts += 1
    write_records(context.work / "listed_dropped", dropped, DroppedRecord)
    return {"parts": parts}


def check_part(context: Context, part: int) -> Facts:
    """Opens the photos of a part; keeps why one cannot be used and the hashes by which doubles are found."""
    settings, table = context.settings, read_part(context.work / "listed", PhotoRecord, part)
    reasons, digests = [""] * len(table), [0] * len(table)
    if settings.require_images or settings.photo_source == EXIF:
        photos = from_table(table, PhotoRecord)
        reports = read_files([settings.image_root / p.image_path for p in photos], "checking photos", context.workers)
        for i, report in enumerate(reports):
            reasons[i], digests[i] = report.reason, int.from_bytes(report.digest[:8], "big")
            if settings.photo_source == EXIF and not report.reason:
                found = photo_of_metadata(photos[i], report.metadata)
                if isinstance(found, DroppedRecord):
                    reasons[i] = found.reason
                else:
                    photos[i] = found
        table = to_table(photos, PhotoRecord)
    table = table.append_column("reason", pa.array(reasons, pa.string()))
    table = table.append_column("digest", pa.array(digests, pa.uint64()))
    names = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in table["image_id"].to_pylist()]
    table = table.append_column("name_key", pa.array([int.from_bytes(n, "big") for n in names], pa.uint64()))
    write_part(context.work / "checked", table, part)
    return {}


def gather_photos(context: Context) -> Facts:
    """Writes ``photos/`` and the first part of ``dropped/``: every photo that can be used, with its panorama."""
    settings, checked = context.settings, context.work / "checked"
    street_map = context.compiled.street_map if context.compiled else None
    is_repeated, is_double = _doubles(checked)
    late: list[DroppedRecord] = []
    dropped = read_records(context.work / "listed_dropped", DroppedRecord)
    rows: list[int] = []
    open_ones: list[tuple[list[str], npt.NDArray[np.float64]]] = []  # names and degrees of each part
    start = 0
    for part in range(num_parts(checked)):
        table = read_columns(checked, part)
        here = slice(start, start + len(table))
        start = here.stop
        reasons = np.array(table["reason"].to_pylist(), dtype=object)
        reasons[is_double[here] & (reasons == "")] = "duplicate_content"
        reasons[is_repeated[here]] = DUPLICATE_ID
        dropped += _dropped(table, reasons)
        table = table.filter(pa.array(reasons == ""))
        if street_map is not None:
            is_utm = pc.is_in(table["source"], value_set=pa.array(["file_name", "pitts250k", _UTM])).to_numpy()
            wrong = misplaced(table["lat"].to_numpy(), table["lon"].to_numpy(), is_utm, street_map)
            late += _dropped(table, wrong)
            table = table.filter(pa.array(wrong == ""))
        photos = table.select([field for field in table.column_names if field not in _CHECKED])
        write_part(context.folder / "photos", photos, part)
        rows.append(len(photos))
        lonely = photos.filter(photos["panorama_id"].is_null())
        degrees = np.stack([lonely["lat"].to_numpy(), lonely["lon"].to_numpy()], axis=1)
        open_ones.append((lonely["image_id"].to_pylist(), degrees))
    write_part(context.folder / "dropped", to_table(dropped + late, DroppedRecord), 0)
    if not sum(rows):
        source = settings.photos_csv or settings.image_root
        raise UserError(f"no usable photo in {source}: {format_reasons(dropped + late)}")
    _name_panoramas(context, open_ones)
    return {"rows": rows}


_CHECKED = ("reason", "digest", "name_key")


def _list_tables(settings: BuildSettings) -> Iterator[tuple[pa.Table, list[DroppedRecord]]]:
    """Photos and what is dropped, in batches that are held one at a time."""
    table = settings.photos_csv
    if settings.photo_source == "table" and table and not settings.zone and has_plain_columns(table, settings.columns):
        yield from list_photo_batches(table, settings.columns, require_images=settings.require_images)
        return
    found = _list(settings)
    while batch := list(islice(found, settings.rows_a_part)):
        photos = [row for row in batch if isinstance(row, PhotoRecord)]
        yield to_table(photos, PhotoRecord), [row for row in batch if isinstance(row, DroppedRecord)]


def _cut(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of ``rows`` each; the last one may be shorter, and is the only one that may be empty."""
    waiting = to_table([], PhotoRecord)
    is_first = True
    for table in tables:
        waiting = pa.concat_tables([waiting, table])
        while len(waiting) >= rows:
            yield waiting.slice(0, rows).combine_chunks()
            waiting, is_first = waiting.slice(rows), False
    if len(waiting) or is_first:
        yield waiting.combine_chunks()


def _list(settings: BuildSettings) -> Iterator[PhotoRecord | DroppedRecord]:
    zone, source, columns = settings.zone, settings.photo_source, settings.columns
    if source == "vpr":
        yield from list_named_photos(settings.image_root, zone)
    elif source == EXIF or (settings.photos_csv is None and source != "mapillary"):
        yield from list_photo_folder(settings.image_root)
    elif source == "table" and settings.photos_csv is not None:
        rows = list_photo_table(settings.photos_csv, columns, zone=zone, require_images=settings.require_images)
        for found in rows:
            if zone is not None and isinstance(found, PhotoRecord):
                found = PhotoRecord(**{**vars(found), "source": _UTM})
            yield found
    else:
        if source == "mapillary" or settings.photos_csv is None or zone is None:
            found_all = read_mapillary(settings.image_root, require_images=False)
        else:
            east, north = columns.utm_east, columns.utm_north
            table: Path = settings.photos_csv
            found_all = read_pitts250k(settings.image_root, table, zone, east, north, require_images=False)
        yield from found_all.dropped
        yield from found_all.photos


def _doubles(checked: Path) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Photos whose name came before, and usable ones whose bytes did; keys of 64 bits, not the names, are held."""
    names = read_column(checked, "name_key")
    is_repeated = np.ones(len(names), dtype=bool)
    is_repeated[np.unique(names, return_index=True)[1]] = False
    del names  # hundreds of megabytes
    reasons = [read_columns(checked, part, ["reason"])["reason"] for part in range(num_parts(checked))]
    usable = np.concatenate([pc.equal(column, "").to_numpy() for column in reasons])
    digests = read_column(checked, "digest")
    candidates = np.flatnonzero(usable & ~is_repeated & (digests != 0))
    is_double = np.zeros(len(usable), dtype=bool)
    is_double[candidates] = True
    is_double[candidates[np.unique(digests[candidates], return_index=True)[1]]] = False
    return is_repeated, is_double


def _dropped(table: pa.Table, reasons: npt.NDArray[np.object_]) -> list[DroppedRecord]:
    gone = np.flatnonzero(reasons != "")
    names = table["image_id"].take(pa.array(gone)).to_pylist()
    return [DroppedRecord(name, STEP, str(reasons[i])) for name, i in zip(names, gone.tolist(), strict=True)]


def _name_panoramas(context: Context, open_ones: list[tuple[list[str], npt.NDArray[np.float64]]]) -> None:
    """Gives the photos without a panorama one, and writes their parts again."""
    names = [name for part_names, _ in open_ones for name in part_names]
    if not names:
        return
    degrees = np.concatenate([part_degrees for _, part_degrees in open_ones])
    if context.compiled:
        xy_m = context.compiled.street_map.to_xy_m(degrees[:, 0], degrees[:, 1])
    else:
        xy_m = frame_of(context.folder / "photos").to_xy_m(degrees[:, 0], degrees[:, 1])
    given = iter(name_panoramas(names, xy_m, context.settings.panorama_radius_m))
    for part, (part_names, _) in enumerate(open_ones):
        if part_names:
            photos = read_part(context.folder / "photos", PhotoRecord, part)
            filled = [name if name is not None else next(given) for name in photos["panorama_id"].to_pylist()]
            index = photos.column_names.index("panorama_id")
            field = photos.schema.field(index)
            write_part(context.folder / "photos", photos.set_column(index, field, pa.array(filled, field.type)), part)
