"""Photos with positions: a table beside an image folder, or a folder whose photos carry EXIF positions.

Each reader gives ``PhotoRecord``s and names every row it leaves out with a reason; a bad photo is counted, never fatal.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from data_gen.nearby import group_within
from data_gen.photo_check import (
    PHOTO_SUFFIXES,
    STEP,
    PhotoTable,
    check_photos,
    list_files,
    read_files,
    reasons_with_duplicates,
)
from data_gen.photo_names import UtmZone, pitts_panorama
from data_gen.tables import parse_number, read_rows
from llava_ial.exif import PhotoMetadata
from llava_ial.geo import GeoPoint
from llava_ial.records import DroppedRecord, PhotoRecord

DUPLICATE_ID, EXIF = "duplicate_id", "exif"
_COMPACT = 2.0  # a chain of photos longer than this many radii is a walk, not one place


@dataclass(frozen=True)
class PhotoColumns:
    """Column names of a photo table. The path and a position are needed: degrees, or metres of a UTM zone."""

    image_path: str = "image_path"
    lat: str = "lat"
    lon: str = "lon"
    image_id: str = "image_id"
    heading: str = "heading_deg"
    panorama: str = "panorama_id"
    captured_at: str = "captured_at"
    split: str = "split"
    utm_east: str = "utm_east"
    utm_north: str = "utm_north"


def read_photo_table(
    path: Path,
    image_root: Path,
    columns: PhotoColumns,
    *,
    zone: UtmZone | None = None,
    require_images: bool = True,
    workers: int = 1,
) -> PhotoTable:
    """Photos named in a CSV, JSON Lines or Parquet file.

    A row without a file name is a position without a photo: ``no_image``.

    Args:
        path: The table.
        image_root: Folder that the paths in the table are relative to.
        columns: Names of the columns.
        zone: Positions are metres of this UTM zone; None: degrees.
        require_images: False accepts positions whose pixels are elsewhere.
        workers: Processes that check whether the photos decode.

    Raises:
        UserError: A needed column is missing, or the file is not a table.
    """
    photos: list[PhotoRecord] = []
    dropped: list[DroppedRecord] = []
    seen: set[str] = set()
    for found in list_photo_table(path, columns, zone=zone, require_images=require_images):
        if isinstance(found, PhotoRecord) and found.image_id in seen:
            found = DroppedRecord(found.image_id, STEP, DUPLICATE_ID)
        if isinstance(found, DroppedRecord):
            dropped.append(found)
            continue
        seen.add(found.image_id)
        photos.append(found)
    if not require_images:
        return PhotoTable(photos, dropped)
    checked = check_photos(photos, image_root, workers)
    return PhotoTable(checked.photos, dropped + checked.dropped)


def list_photo_table(
    path: Path, columns: PhotoColumns, *, zone: UtmZone | None = None, require_images: bool = True
) -> Iterator[PhotoRecord | DroppedRecord]:
    """Rows of a table one by one, no photo opened; arguments as above. A name may come twice."""
    for row in read_rows(path, needed_columns(columns, zone)):
        yield photo_of_row(row, columns, require_images, zone)


def read_photo_folder(image_root: Path, *, workers: int = 1) -> PhotoTable:
    """All photos under a folder, with the positions in their EXIF; ``image_id`` is the path below the folder."""
    files = list(list_files(image_root))
    others = [file for file in files if file.suffix.lower() not in PHOTO_SUFFIXES]
    files = [file for file in files if file.suffix.lower() in PHOTO_SUFFIXES]
    reports = read_files(files, "reading photos", workers)
    photos: list[PhotoRecord] = []
    dropped = [DroppedRecord(file.relative_to(image_root).as_posix(), STEP, "not_a_photo") for file in others]
    for file, reason, report in zip(files, reasons_with_duplicates(reports), reports, strict=True):
        name = file.relative_to(image_root).as_posix()
        found = photo_of_metadata(unread_photo(name), report.metadata)
        if reason or isinstance(found, DroppedRecord):
            why = reason or (found.reason if isinstance(found, DroppedRecord) else "")
            dropped.append(DroppedRecord(name, STEP, why))
        else:
            photos.append(found)
    return PhotoTable(photos, dropped)


def list_photo_folder(image_root: Path) -> Iterator[PhotoRecord | DroppedRecord]:
    """The files of a folder one by one, none opened: a photo's position is still NaN."""
    for file in list_files(image_root):
        name = file.relative_to(image_root).as_posix()
        is_photo = file.suffix.lower() in PHOTO_SUFFIXES
        yield unread_photo(name) if is_photo else DroppedRecord(name, STEP, "not_a_photo")


def unread_photo(name: str) -> PhotoRecord:
    """A photo of a folder before its EXIF was read."""
    return PhotoRecord(name, name, math.nan, math.nan, None, None, None, EXIF)


def photo_of_metadata(photo: PhotoRecord, metadata: PhotoMetadata) -> PhotoRecord | DroppedRecord:
    """A photo with the position, direction, time and error that its EXIF states."""
    if metadata.point is None:
        return DroppedRecord(photo.image_id, STEP, "bad_position" if metadata.has_bad_position else "no_position")
    return replace(
        photo,
        lat=metadata.point.lat,
        lon=metadata.point.lon,
        heading_deg=metadata.heading_deg,
        captured_at=metadata.captured_at,
        position_error_m=metadata.error_m,
    )


def group_panoramas(photos: Sequence[PhotoRecord], xy_m: npt.NDArray[np.float64], radius_m: float) -> list[PhotoRecord]:
    """Gives photos without a panorama id one: photos within ``radius_m`` of each other belong together.

    Chains count (A near B, B near C: one group) as long as the group stays a place: whatever the split, no such test
    photo has a training photo so near. A chain longer than two radii is a walk; it is cut into groups of at most two
    radii, whose neighbours may be nearer than one (``split: blocked`` keeps a distance there too). A group is named
    after its first ``image_id``. Ids that the source gave stay as they are.

    Args:
        photos: Any.
        xy_m: ``(N, 2)`` their positions in metres; NaN where a photo is off the map, which is a group of its own.
        radius_m: 0 groups only photos of one and the same position.
    """
    open_ones = [i for i, photo in enumerate(photos) if photo.panorama_id is None]
    grouped = list(photos)
    names = name_panoramas([photos[i].image_id for i in open_ones], xy_m[open_ones], radius_m)
    for i, name in zip(open_ones, names, strict=True):
        grouped[i] = replace(photos[i], panorama_id=name)
    return grouped


def name_panoramas(image_ids: Sequence[str], xy_m: npt.NDArray[np.float64], radius_m: float) -> list[str]:
    """The same for photos that all lack an id, by their names and positions alone."""
    order = np.argsort(np.array(image_ids), kind="stable")
    groups = _cut_walks(xy_m, group_within(xy_m, radius_m), order, radius_m).tolist()
    names: dict[int, str] = {}
    for image_id, group in zip(image_ids, groups, strict=True):
        names[group] = min(names.get(group, image_id), image_id)
    return [f"near-{names[group]}" for group in groups]


def _cut_walks(
    xy_m: npt.NDArray[np.float64], groups: npt.NDArray[np.int64], order: npt.NDArray[np.int64], radius_m: float
) -> npt.NDArray[np.int64]:
    """Groups that reach farther than two radii, cut: in order, a photo joins the nearest earlier leader in range."""
    cut = groups.copy()
    members: dict[int, list[int]] = {}
    for i in order.tolist():
        members.setdefault(int(groups[i]), []).append(i)
    for photos in members.values():
        extent = xy_m[photos].max(axis=0) - xy_m[photos].min(axis=0)
        if not np.hypot(*extent) > _COMPACT * radius_m:  # also false for NaN: a photo off the map is alone
            continue
        leaders: list[int] = []
        for i in photos:
            away_m = np.hypot(*(xy_m[leaders] - xy_m[i]).T) if leaders else np.zeros(0)
            if not len(away_m) or away_m.min() > radius_m:
                leaders.append(i)
                cut[i] = i
            else:
                cut[i] = leaders[int(away_m.argmin())]
    return cut


def needed_columns(columns: PhotoColumns, zone: UtmZone | None) -> list[str]:
    """Columns that a table must have: path and position, and whatever the user named otherwise than we do."""
    position = (columns.lat, columns.lon) if zone is None else (columns.utm_east, columns.utm_north)
    named = [getattr(columns, field.name) for field in fields(columns) if getattr(columns, field.name) != field.default]
    return list(dict.fromkeys([columns.image_path, *position, *named]))


def photo_of_row(
    row: dict[str, str], columns: PhotoColumns, require_images: bool, zone: UtmZone | None
) -> PhotoRecord | DroppedRecord:
    """A row of a table as a photo, or why it is none."""
    image_path = row.get(columns.image_path, "")
    image_id = row.get(columns.image_id, "") or image_path or "(row without a name)"
    if require_images and not image_path:
        return DroppedRecord(image_id, STEP, "no_image")
    parts = PurePosixPath(image_path)
    if parts.is_absolute() or ".." in parts.parts:
        return DroppedRecord(image_id, STEP, "path_outside_image_root")
    first, second = (columns.lat, columns.lon) if zone is None else (columns.utm_east, columns.utm_north)
    if not row.get(first) or not row.get(second):
        return DroppedRecord(image_id, STEP, "no_position")
    a, b = parse_number(row[first]), parse_number(row[second])
    point = None
    if a is not None and b is not None:
        point = GeoPoint(a, b) if zone is None else zone.to_point(a, b)
    if point is None or not point.is_valid():
        return DroppedRecord(image_id, STEP, "bad_position")
    heading = parse_number(row.get(columns.heading, ""))
    return PhotoRecord(
        image_id=image_id,
        image_path=image_path,
        lat=point.lat,
        lon=point.lon,
        heading_deg=heading % 360.0 if heading is not None else None,
        panorama_id=row.get(columns.panorama) or pitts_panorama(image_path),
        captured_at=_iso_time(row.get(columns.captured_at, "")),
        source="csv",
        given_split=row.get(columns.split) or None,
    )


def _iso_time(text: str) -> str | None:
    try:
        return datetime.fromisoformat(text).isoformat()
    except ValueError:
        return None
