"""Whether photos decode, what their EXIF says, which are the same file twice; a bad photo is counted, never fatal."""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from data_gen.workers import worker_pool
from llava_ial.data.images import can_read_heif
from llava_ial.exif import PhotoMetadata, read_metadata
from llava_ial.records import DroppedRecord, PhotoRecord

STEP = "photos"
HEIF_SUFFIXES = {".heic", ".heif"}
PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".avif", *HEIF_SUFFIXES}
_POOL_FROM = 256  # below this, starting processes costs more than they save
_CHUNK = 64


@dataclass(frozen=True)
class PhotoTable:
    """What a reader found: the usable photos in order, and the rest by name and reason."""

    photos: list[PhotoRecord]
    dropped: list[DroppedRecord]


@dataclass(frozen=True)
class FileReport:
    """What one photo file is: why it cannot be used ("" if it can), its EXIF, and the hash of its bytes."""

    reason: str
    metadata: PhotoMetadata = field(default_factory=PhotoMetadata)
    digest: bytes = b""


def list_photo_files(image_root: Path) -> list[Path]:
    """Photo files under a folder by suffix, sorted by path, hidden ones left out."""
    return [path for path in list_files(image_root) if path.suffix.lower() in PHOTO_SUFFIXES]


def list_files(image_root: Path) -> Iterator[Path]:
    """All files under a folder, one by one in the order of their paths, hidden ones left out; walked once."""
    with os.scandir(image_root) as entries:
        # A folder sorts by its name and a slash, as in a full path: "a.jpg" stands before what is in "a".
        visible = [
            (entry.name + "/" * entry.is_dir(follow_symlinks=False), entry)
            for entry in entries
            if not entry.name.startswith(".")
        ]
    for name, entry in sorted(visible, key=lambda item: item[0]):
        if name.endswith("/"):
            yield from list_files(image_root / entry.name)
        elif entry.is_file():
            yield image_root / entry.name


def format_reasons(dropped: Sequence[DroppedRecord]) -> str:
    """Reasons with their counts, the most frequent first."""
    counted = Counter(record.reason for record in dropped).most_common()
    return ", ".join(f"{count} {reason}" for reason, count in counted) or "there is none"


def check_photos(photos: Sequence[PhotoRecord], image_root: Path, workers: int) -> PhotoTable:
    """The photos whose files decode; of files with equal bytes only the first one."""
    reports = read_files([image_root / p.image_path for p in photos], "checking photos", workers)
    kept: list[PhotoRecord] = []
    dropped: list[DroppedRecord] = []
    for photo, reason in zip(photos, reasons_with_duplicates(reports), strict=True):
        if reason:
            dropped.append(DroppedRecord(photo.image_id, STEP, reason))
        else:
            kept.append(photo)
    return PhotoTable(kept, dropped)


def reasons_with_duplicates(reports: Sequence[FileReport]) -> list[str]:
    """The reason of each file, ``duplicate_content`` for a usable one whose bytes came before."""
    seen: set[bytes] = set()
    reasons = []
    for report in reports:
        is_repeated = not report.reason and report.digest in seen
        reasons.append("duplicate_content" if is_repeated else report.reason)
        if not report.reason:
            seen.add(report.digest)
    return reasons


def read_file(path: Path) -> FileReport:
    """Decodes one photo to its end."""
    if not path.is_file():
        return FileReport("missing_file")
    if path.suffix.lower() in HEIF_SUFFIXES and not can_read_heif():
        return FileReport("needs_extra_heif")  # pip install 'llava-ial[heif]'
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                metadata = read_metadata(image)
                # JPEG decodes at an eighth of its size: all of its bytes are read, little is computed.
                image.draft("RGB", (64, 64))
                image.load()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return FileReport("too_large")
    except MemoryError:
        raise  # the machine's fault, not the photo's: dropping it would make the data set depend on the machine
    except Exception:  # decoders raise OSError, SyntaxError, ValueError, struct.error ... on broken bytes
        return FileReport("unreadable")
    return FileReport("", metadata, digest)


def read_files(files: Sequence[Path], label: str, workers: int) -> list[FileReport]:
    """``read_file`` of every file, in order, in a pool of processes where there are many."""
    with tqdm(total=len(files), desc=label, unit="photo", disable=None) as bar:
        reports: list[FileReport] = []
        if workers <= 1 or len(files) < _POOL_FROM:
            for file in files:
                reports.append(read_file(file))
                bar.update()
            return reports
        with worker_pool(workers) as pool:
            for report in pool.map(read_file, files, chunksize=_CHUNK):
                reports.append(report)
                bar.update()
        return reports
