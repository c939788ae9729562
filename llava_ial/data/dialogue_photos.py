"""Photos as a vision tower takes them, as they are or changed, and some of them kept in memory."""

from pathlib import Path

import torch
from PIL import Image
from transformers import BaseImageProcessor

from llava_ial.data.augmentation import Augmentation, draws_at
from llava_ial.data.images import load_photo
from llava_ial.data.pixels import PhotoPixels, draft_side


class DialoguePhotos:
    """Pixels of photos, ``(3, S, S)`` each.

    Args:
        image_processor: Of the tower.
        keep: So many photos stay in memory, which pays where a few are seen again and again: the pixels of those that
            are not changed, the photos of those that are.
        augmentation: What ``changed`` does; None for nothing.
        seed: Of its draws.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        *,
        keep: int = 0,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.prepare = PhotoPixels(image_processor)
        self._keep, self._augmentation, self._seed = keep, augmentation, seed
        self._min_side = draft_side(image_processor, augmentation.min_crop_area) if augmentation else None
        self._pixels: dict[Path, torch.Tensor] = {}
        self._photos: dict[Path, Image.Image] = {}

    def plain(self, file: Path) -> torch.Tensor:
        """Of a photo as it is.

        Raises:
            UserError: It cannot be read.
        """
        if (kept := self._pixels.get(file)) is not None:
            return kept
        pixels = self.prepare(load_photo(file))
        if self._has_room:
            self._pixels[file] = pixels
        return pixels

    def changed(self, file: Path, position: int) -> torch.Tensor:
        """Of a photo as the augmentation leaves it at a position in the stream of epochs.

        Raises:
            UserError: It cannot be read.
        """
        if self._augmentation is None:
            return self.plain(file)
        photo = self._photos.get(file)
        if photo is None:
            photo = load_photo(file, min_side=self._min_side)
            if self._has_room:
                self._photos[file] = photo
        return self.prepare(self._augmentation(photo, draws_at(self._seed, position)))

    @property
    def _has_room(self) -> bool:
        return len(self._pixels) + len(self._photos) < self._keep
