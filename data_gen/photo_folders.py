"""Photo folders of known layouts: place recognition file names, Pitts250k with its UTM table, Mapillary downloads."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from data_gen.photo_check import PHOTO_SUFFIXES, STEP, PhotoTable, check_photos, list_files, list_photo_files
from data_gen.photo_names import UtmZone, parse_photo_name, pitts_panorama
from data_gen.tables import load_json, parse_number
from data_gen.utm_tables import read_utm_table
from llava_ial.errors import UserError
from llava_ial.geo import GeoPoint
from llava_ial.records import DroppedRecord, PhotoRecord
from llava_ial.splits import SPLIT_NAMES


def read_named_photos(
    image_root: Path, zone: UtmZone | None, *, require_images: bool = True, workers: int = 1
) -> PhotoTable:
    """A folder whose file names carry the position; a first folder called train, val or test states the split."""
    photos: list[PhotoRecord] = []
    dropped: list[DroppedRecord] = []
    for found in list_named_photos(image_root, zone):
        if isinstance(found, DroppedRecord):
            dropped.append(found)
        else:
            photos.append(found)
    return _checked(photos, dropped, image_root, require_images, workers)


def list_named_photos(image_root: Path, zone: UtmZone | None) -> Iterator[PhotoRecord | DroppedRecord]:
    """The same one by one, no photo opened."""
    for file in list_files(image_root):
        if file.suffix.lower() not in PHOTO_SUFFIXES:
            continue
        path = file.relative_to(image_root).as_posix()
        named = parse_photo_name(file.name, zone)
        if named.point is None:
            yield DroppedRecord(path, STEP, named.reason)
            continue
        folder = PurePosixPath(path).parts[0]
        yield PhotoRecord(
            image_id=path,
            image_path=path,
            lat=named.point.lat,
            lon=named.point.lon,
            heading_deg=named.heading_deg,
            panorama_id=named.panorama_id,
            captured_at=named.captured_at,
            source="file_name",
            given_split=folder if folder in SPLIT_NAMES else None,
        )


def read_pitts250k(
    image_root: Path,
    utm_table: Path,
    zone: UtmZone,
    east: str,
    north: str,
    *,
    require_images: bool = True,
    workers: int = 1,
) -> PhotoTable:
    """Pitts250k as published: ``000/000829_pitch1_yaw1.jpg``, and positions in a table.

    Args:
        image_root: Holds the folders ``000`` to ``010``, and perhaps ``queries_real``.
        utm_table: CSV or MATLAB file; row p is panorama p, or row i is image i, of panorama ``i // 24``. A structure of
            image names and positions, as place recognition publishes it, places queries too.
        zone: Of the table's metres: 17 north.
        east, north: Columns of a CSV table.
        require_images: False leaves the photos unopened.
        workers: Processes that check whether the photos decode.

    Raises:
        UserError: The table has neither a row for each panorama nor for each crop.
    """
    table = read_utm_table(utm_table, east, north)
    files = list_photo_files(image_root)
    numbers = [pitts_panorama(file.name) for file in files]
    is_query = [any(part.startswith("queries") for part in f.relative_to(image_root).parts) for f in files]
    own = [int(number) for number, other in zip(numbers, is_query, strict=True) if number and not other]
    last = max(own, default=-1)
    per_panorama = _CROPS if len(table.rows) >= _CROPS * (last + 1) else 1
    if last >= len(table.rows) and not table.by_name:
        raise UserError(f"photos_csv: {utm_table} has {len(table.rows)} rows, but the photos go up to panorama {last}")
    photos: list[PhotoRecord] = []
    dropped: list[DroppedRecord] = []
    for file, number, other in zip(files, numbers, is_query, strict=True):
        path = file.relative_to(image_root).as_posix()
        if number is None:
            dropped.append(DroppedRecord(path, STEP, "not_a_pitts250k_name"))
            continue
        if table.by_name:
            metres = table.by_name.get((_below(path), other))
        else:  # queries were captured apart and are numbered from zero again: rows do not speak of them
            metres = None if other else table.rows[int(number) * per_panorama]
        if metres is None:
            dropped.append(DroppedRecord(path, STEP, "no_position"))
            continue
        point = zone.to_point(*metres) if all(map(math.isfinite, metres)) else None
        if point is None or not point.is_valid():
            dropped.append(DroppedRecord(path, STEP, "bad_position"))
            continue
        panorama = pitts_panorama(path) if other else number
        photos.append(PhotoRecord(path, path, point.lat, point.lon, None, panorama, None, "pitts250k"))
    return _checked(photos, dropped, image_root, require_images, workers)


def _below(path: str) -> str:
    """The last folder and the name: what is above differs from copy to copy."""
    return "/".join(PurePosixPath(path).parts[-2:])


def read_mapillary(image_root: Path, *, require_images: bool = True, workers: int = 1) -> PhotoTable:
    """Photos beside the JSON of Mapillary's API, version 4: one object per photo, or answers with a list ``data``.

    The position computed from the pictures is preferred to the camera's. Photos of one ``sequence`` share a split.
    """
    files = list(list_files(image_root))
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        if file.suffix.lower() in PHOTO_SUFFIXES:
            by_stem.setdefault(file.stem, []).append(file)
    photos: list[PhotoRecord] = []
    dropped: list[DroppedRecord] = []
    named: set[str] = set()
    for file in files:
        if file.suffix.lower() != ".json":
            continue
        for entry in _entries(load_json(file, "image_root")):
            image_id = str(entry.get("id") or file.stem)
            found = _mapillary_photo(image_id, entry, by_stem.get(image_id, []), image_root)
            if image_id in named:
                found = DroppedRecord(image_id, STEP, "duplicate_id")
            named.add(image_id)
            if isinstance(found, DroppedRecord):
                dropped.append(found)
            else:
                photos.append(found)
    for stem, same in by_stem.items():
        if stem not in named:
            dropped += [DroppedRecord(f.relative_to(image_root).as_posix(), STEP, "no_metadata") for f in same]
    return _checked(photos, dropped, image_root, require_images, workers)


_CROPS = 24


def _checked(
    photos: list[PhotoRecord], dropped: list[DroppedRecord], image_root: Path, require_images: bool, workers: int
) -> PhotoTable:
    if not require_images:
        return PhotoTable(photos, dropped)
    checked = check_photos(photos, image_root, workers)
    return PhotoTable(checked.photos, dropped + checked.dropped)


def _entries(loaded: Any) -> Iterable[dict[str, Any]]:
    if isinstance(loaded, dict):
        loaded = loaded["data"] if isinstance(loaded.get("data"), list) else [loaded]
    return [entry for entry in loaded if isinstance(entry, dict)] if isinstance(loaded, list) else []


def _mapillary_photo(
    image_id: str, entry: dict[str, Any], files: list[Path], image_root: Path
) -> PhotoRecord | DroppedRecord:
    if not files:
        return DroppedRecord(image_id, STEP, "missing_file")
    points = [_point(entry.get(name)) for name in ("computed_geometry", "geometry")]
    point = next((p for p in points if p is not None and p.is_valid()), None)
    if point is None:
        return DroppedRecord(image_id, STEP, "bad_position" if any(points) else "no_position")
    angles = [parse_number(str(entry.get(name))) for name in ("computed_compass_angle", "compass_angle")]
    heading = next((angle for angle in angles if angle is not None), None)
    photo = PhotoRecord(
        image_id=image_id,
        image_path=files[0].relative_to(image_root).as_posix(),
        lat=point.lat,
        lon=point.lon,
        heading_deg=None if heading is None else heading % 360.0,
        panorama_id=None,
        captured_at=_milliseconds(entry.get("captured_at")),
        source="mapillary",
    )
    sequence = entry.get("sequence")
    return replace(photo, panorama_id=f"sequence-{sequence}") if sequence else photo


def _point(geometry: Any) -> GeoPoint | None:
    """A GeoJSON point, which has its longitude first."""
    place = geometry.get("coordinates") if isinstance(geometry, dict) else None
    if not isinstance(place, list) or len(place) < 2:
        return None
    lon, lat = (parse_number(str(value)) for value in place[:2])
    return GeoPoint(lat, lon) if lat is not None and lon is not None else None


def _milliseconds(value: Any) -> str | None:
    number = parse_number(str(value))
    try:
        return datetime.fromtimestamp(number / 1000, UTC).isoformat() if number is not None else None
    except (OverflowError, OSError, ValueError):
        return None
