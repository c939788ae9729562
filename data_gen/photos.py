"""Photos with positions: a CSV table beside an image folder, or a folder whose photos carry EXIF positions.

Each reader gives ``PhotoRecord``s and names every row it leaves out with a reason; a bad photo is counted, never fatal.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from data_gen.nearby import group_within
from data_gen.tables import read_csv_rows
from llava_ial.exif import PhotoMetadata, read_metadata
from llava_ial.geo import GeoPoint
from llava_ial.records import DroppedRecord, PhotoRecord

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".avif"}
STEP = "photos"
_POOL_FROM = 256  # below this, starting processes costs more than they save
_CHUNK = 64
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class PhotoColumns:
    """Column names of a photo table. All but the first three may be absent from it."""

    image_path: str = "image_path"
    lat: str = "lat"
    lon: str = "lon"
    image_id: str = "image_id"
    heading: str = "heading_deg"
    panorama: str = "panorama_id"
    captured_at: str = "captured_at"
    split: str = "split"


@dataclass(frozen=True)
class PhotoTable:
    """What a reader found: the usable photos in order, and the rest by name and reason."""

    photos: list[PhotoRecord]
    dropped: list[DroppedRecord]


def read_photo_csv(
    path: Path, image_root: Path, columns: PhotoColumns, *, require_images: bool = True, workers: int = 1
) -> PhotoTable:
    """Photos named in a CSV file.

    A row without a file name is a position without a photo: ``no_image``.

    Args:
        path: UTF-8 CSV with a header line.
        image_root: Folder that the paths in the table are relative to.
        columns: Names of the columns.
        require_images: False accepts positions whose pixels are elsewhere.
        workers: Processes that check whether the photos decode.

    Raises:
        UserError: A needed column is missing, or the file is not a CSV table.
    """
    photos: list[PhotoRecord] = []
    dropped: list[DroppedRecord] = []
    seen: set[str] = set()
    for row in read_csv_rows(path, _needed(columns)):
        found = _photo_of_row(row, columns, require_images)
        if isinstance(found, PhotoRecord) and found.image_id in seen:
            found = DroppedRecord(found.image_id, STEP, "duplicate_id")
        if isinstance(found, DroppedRecord):
            dropped.append(found)
            continue
        seen.add(found.image_id)
        photos.append(found)
    if not require_images:
        return PhotoTable(photos, dropped)
    reasons = _map_photos(_check_photo, [image_root / p.image_path for p in photos], "checking photos", workers)
    kept = [photo for photo, reason in zip(photos, reasons, strict=True) if reason is None]
    bad = [DroppedRecord(p.image_id, STEP, r) for p, r in zip(photos, reasons, strict=True) if r is not None]
    return PhotoTable(kept, dropped + bad)


def read_photo_folder(image_root: Path, *, workers: int = 1) -> PhotoTable:
    """All photos under a folder, with the positions in their EXIF; ``image_id`` is the path below the folder."""
    files = list_photo_files(image_root)
    read = _map_photos(_read_photo, files, "reading photos", workers)
    photos: list[PhotoRecord] = []
    dropped: list[DroppedRecord] = []
    for file, (reason, metadata) in zip(files, read, strict=True):
        name = file.relative_to(image_root).as_posix()
        if reason is None and metadata.point is None:
            reason = "bad_position" if metadata.has_bad_position else "no_position"
        if reason is not None or metadata.point is None:
            dropped.append(DroppedRecord(name, STEP, str(reason)))
            continue
        photos.append(
            PhotoRecord(
                image_id=name,
                image_path=name,
                lat=metadata.point.lat,
                lon=metadata.point.lon,
                heading_deg=metadata.heading_deg,
                panorama_id=None,
                captured_at=metadata.captured_at,
                source="exif",
            )
        )
    return PhotoTable(photos, dropped)


def list_photo_files(image_root: Path) -> list[Path]:
    """Photo files under a folder by suffix, sorted by path, hidden ones left out."""
    files = (path for path in image_root.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file())
    visible = (p for p in files if not any(part.startswith(".") for part in p.relative_to(image_root).parts))
    return sorted(visible, key=lambda p: p.relative_to(image_root).as_posix())


def group_panoramas(photos: Sequence[PhotoRecord], xy_m: npt.NDArray[np.float64], radius_m: float) -> list[PhotoRecord]:
    """Gives photos without a panorama id one: photos within ``radius_m`` of each other belong together.

    Chains count (A near B, B near C: one group), so that no photo of another group is within the radius: whatever the
    split, no such test photo has a training photo so near. A dense walk becomes one long group; a smaller radius cuts
    it. The group is named after its first ``image_id``. Ids that the source gave stay as they are.

    Args:
        photos: Any.
        xy_m: ``(N, 2)`` their positions in metres; NaN where a photo is off the map, which is a group of its own.
        radius_m: 0 groups only photos of one and the same position.
    """
    open_ones = [i for i, photo in enumerate(photos) if photo.panorama_id is None]
    grouped = list(photos)
    names: dict[int, str] = {}
    groups = group_within(xy_m[open_ones], radius_m).tolist()
    for i, group in zip(open_ones, groups, strict=True):
        names[group] = min(names.get(group, photos[i].image_id), photos[i].image_id)
    for i, group in zip(open_ones, groups, strict=True):
        grouped[i] = replace(photos[i], panorama_id=f"near-{names[group]}")
    return grouped


def _needed(columns: PhotoColumns) -> list[str]:
    """Columns that a table must have: path and position, and whatever the user named otherwise than we do."""
    always = (columns.image_path, columns.lat, columns.lon)
    named = [getattr(columns, field.name) for field in fields(columns) if getattr(columns, field.name) != field.default]
    return list(dict.fromkeys([*always, *named]))


def _photo_of_row(row: dict[str, str], columns: PhotoColumns, require_images: bool) -> PhotoRecord | DroppedRecord:
    image_path = row.get(columns.image_path, "")
    image_id = row.get(columns.image_id, "") or image_path or "(row without a name)"
    if require_images and not image_path:
        return DroppedRecord(image_id, STEP, "no_image")
    parts = PurePosixPath(image_path)
    if parts.is_absolute() or ".." in parts.parts:
        return DroppedRecord(image_id, STEP, "path_outside_image_root")
    if not row.get(columns.lat) or not row.get(columns.lon):
        return DroppedRecord(image_id, STEP, "no_position")
    lat, lon = parse_number(row[columns.lat]), parse_number(row[columns.lon])
    if lat is None or lon is None or not GeoPoint(lat, lon).is_valid():
        return DroppedRecord(image_id, STEP, "bad_position")
    heading = parse_number(row.get(columns.heading, ""))
    return PhotoRecord(
        image_id=image_id,
        image_path=image_path,
        lat=lat,
        lon=lon,
        heading_deg=heading % 360.0 if heading is not None else None,
        panorama_id=row.get(columns.panorama) or None,
        captured_at=_iso_time(row.get(columns.captured_at, "")),
        source="csv",
        given_split=row.get(columns.split) or None,
    )


def parse_number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _iso_time(text: str) -> str | None:
    try:
        return datetime.fromisoformat(text).isoformat()
    except ValueError:
        return None


def _check_photo(path: Path) -> str | None:
    """None if the photo decodes to its end, else the reason why not."""
    return _read_photo(path)[0]


def _read_photo(path: Path) -> tuple[str | None, PhotoMetadata]:
    """Why a photo cannot be used (None if it can), and its EXIF."""
    if not path.is_file():
        return "missing_file", PhotoMetadata()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                metadata = read_metadata(image)
                # JPEG decodes at an eighth of its size: all of its bytes are read, little is computed.
                image.draft("RGB", (64, 64))
                image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return "too_large", PhotoMetadata()
    except MemoryError:
        raise  # the machine's fault, not the photo's: dropping it would make the data set depend on the machine
    except Exception:  # decoders raise OSError, SyntaxError, ValueError, struct.error ... on broken bytes
        return "unreadable", PhotoMetadata()
    return None, metadata


def _map_photos(function: Callable[[Path], ResultT], files: Sequence[Path], label: str, workers: int) -> list[ResultT]:
    """``function`` of every file, in order, in a pool of processes where there are many."""
    with tqdm(total=len(files), desc=label, unit="photo", disable=None) as bar:
        results: list[ResultT] = []
        if workers <= 1 or len(files) < _POOL_FROM:
            for file in files:
                results.append(function(file))
                bar.update()
            return results
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for result in pool.map(function, files, chunksize=_CHUNK):
                results.append(result)
                bar.update()
        return results
