"""An IAL data set on disk: the folder that ``python -m data_gen.build`` writes.

    photos/  addresses/  captions/  gallery/  dropped/  conversations/{train,val,test}/    tables of llava_ial.records
    llava/{train,val,test}.json                                                   the same dialogues as LLaVA JSON
    README.md  preview.html  leakage.json                                         for people, and for load_dataset
    manifest.json  run.json

The image paths are relative to ``image_root``, which the manifest names relative to the folder.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llava_ial.errors import UserError
from llava_ial.manifest import MANIFEST, file_hash, read_manifest
from llava_ial.records import (
    AddressRecord,
    CaptionRecord,
    ConversationRecord,
    GalleryRecord,
    PhotoRecord,
    read_records,
)
from llava_ial.splits import SPLIT_NAMES as SPLITS

KIND = "ial_dataset"


@dataclass(frozen=True)
class Sample:
    """A photo with all that is known of it."""

    photo: PhotoRecord
    address: AddressRecord
    caption: str


class IALDataset:
    """Read access to a finished data set folder."""

    def __init__(self, folder: Path, image_root: Path | None = None) -> None:
        """Opens the folder.

        Args:
            folder: Output of ``python -m data_gen.build``.
            image_root: Where the photos are now, if they were moved since.

        Raises:
            UserError: Unfinished or foreign folder, or the photos are not where the manifest says.
        """
        self.folder = folder
        self.manifest: dict[str, Any] = read_manifest(folder, KIND)
        self.image_root = image_root or (folder / str(self.manifest["image_root"])).resolve()
        if not self.image_root.is_dir():
            raise UserError(f"{folder}: its photos are not at {self.image_root}; name their folder with --image_root")

    @property
    def identity(self) -> str:
        """Hash of the manifest, for the ``parents`` of what is made from this data set."""
        return file_hash(self.folder / MANIFEST)

    @cached_property
    def gallery(self) -> list[GalleryRecord]:
        """Every candidate address, in the order of its class index."""
        return read_records(self.folder / "gallery", GalleryRecord)

    @cached_property
    def gallery_hash(self) -> str:
        """Hash of the candidate list's file."""
        return file_hash(self.folder / "gallery" / "part-00000.parquet")

    def samples(self, split: str) -> list[Sample]:
        """Photos of a split with their addresses and captions, in table order.

        Raises:
            UserError: Unknown or empty split.
        """
        self._check_split(split)
        photos = {photo.image_id: photo for photo in read_records(self.folder / "photos", PhotoRecord)}
        captions = {c.image_id: c.caption for c in read_records(self.folder / "captions", CaptionRecord)}
        addresses = read_records(self.folder / "addresses", AddressRecord)
        found = [Sample(photos[a.image_id], a, captions.get(a.image_id, "")) for a in addresses if a.split == split]
        if not found:
            raise UserError(f"{self.folder}: split '{split}' has no photos; choose one of {self._filled_splits()}")
        return found

    def conversations(self, split: str) -> list[ConversationRecord]:
        """Dialogues of a split, in table order."""
        self._check_split(split)
        folder = self.folder / "conversations" / split
        if not folder.is_dir():
            raise UserError(
                f"{self.folder}: split '{split}' has no conversations; choose one of {self._filled_splits()}"
            )
        return read_records(folder, ConversationRecord)

    def image_file(self, image_path: str) -> Path:
        """Where a photo lies; the file is not opened here."""
        return self.image_root / image_path

    def _filled_splits(self) -> list[str]:
        return [split for split in SPLITS if (self.folder / "conversations" / split).is_dir()]

    @staticmethod
    def _check_split(split: str) -> None:
        if split not in SPLITS:
            raise UserError(f"split '{split}' is unknown; allowed: {', '.join(SPLITS)}")
