"""Batches for stage 1: a photo, its address, its caption followed by its address, and where it was taken.

A batch is a dict of tensors, first dimension ``B``: ``pixel_values (3, H, W)``, ``xy_m (2)``, ``address_id ()``,
``street_id ()``, ``neighbourhood_id ()``, ``panorama ()``; and ``image_id``, a list, so that an error can name photos,
and ``broken``, what could not be read and why. A city has fewer addresses than a batch has photos, so each text stands
in a batch once: ``address_input_ids`` and ``address_attention_mask (U, T)``, and ``address_row (B)``, the row of each
photo's text; ``caption_*``, ``street_*`` and ``neighbourhood_*`` likewise.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from llava_ial.data.augmentation import draws_at
from llava_ial.data.dataset import IALDataset
from llava_ial.data.images import load_photo
from llava_ial.data.pixels import PhotoPixels, draft_side
from llava_ial.data.views import ONE, views_of
from llava_ial.errors import UserError
from llava_ial.geo import GeoPoint, LocalFrame
from llava_ial.records import name_key

# A photo and a generator to draw from, to another photo.
PhotoChange: TypeAlias = Callable[[Image.Image, torch.Generator], Image.Image]
# So many broken photos in a row are no accident.
_MAX_REPLACEMENTS = 20


@dataclass(frozen=True)
class ClipExample:
    """What one row of a batch is made from."""

    image_id: str
    path: Path
    address_text: str
    caption: str
    xy_m: tuple[float, float]
    address_id: int
    street_text: str = ""
    street_id: int = 0
    neighbourhood_text: str = ""
    neighbourhood_id: int = 0
    panorama: int = 0


def clip_examples(dataset: IALDataset, split: str) -> list[ClipExample]:
    """Rows of a split, in table order.

    Positions are metres from the first photo of the split: small enough for float32 to keep millimetres.

    Raises:
        UserError: Unknown or empty split, or an address that is not in the gallery.
    """
    samples = dataset.samples(split)
    classes = {record.sub_street_id: i for i, record in enumerate(dataset.gallery)}
    if unknown := {s.address.sub_street_id for s in samples} - set(classes):
        raise UserError(f"{dataset.folder}: addresses not in the gallery: {', '.join(sorted(unknown)[:3])}; rebuild it")
    frame = LocalFrame(GeoPoint(samples[0].photo.lat, samples[0].photo.lon))
    positions = frame.to_xy_m([s.photo.lat for s in samples], [s.photo.lon for s in samples])
    streets, neighbourhoods = (
        {text: i for i, text in enumerate(dict.fromkeys(getattr(record, level) for record in dataset.gallery))}
        for level in ("street_text", "neighbourhood_text")
    )
    examples = []
    for sample, xy in zip(samples, positions, strict=True):
        address_id = classes[sample.address.sub_street_id]
        place = dataset.gallery[address_id]
        examples.append(
            ClipExample(
                image_id=sample.photo.image_id,
                path=dataset.image_file(sample.photo.image_path),
                address_text=place.verbose,
                caption=sample.caption,
                xy_m=(float(xy[0]), float(xy[1])),
                address_id=address_id,
                street_text=place.street_text,
                street_id=streets[place.street_text],
                neighbourhood_text=place.neighbourhood_text,
                neighbourhood_id=neighbourhoods[place.neighbourhood_text],
                panorama=name_key(sample.photo.panorama),
            )
        )
    return examples


class ClipPhotos(Dataset[dict[str, Any]]):
    """Decoded photos with their texts, by position in the endless stream of epochs.

    Item ``epoch * len + row`` is row ``row`` as epoch ``epoch`` sees it: the augmentation is a function of seed and
    position alone, whichever worker or process draws it, and a resumed run draws the same.

    Args:
        examples: Rows.
        image_processor: A Pillow-backed processor of ``transformers``.
        augmentation: What a photo goes through, with the draws that belong to its position; None for validation.
        seed: Of the augmentation.
        fast_decoding: Let JPEGs be decoded at a fraction of their size where the model sees no more of it.
        replace_broken: Put another photo, drawn by seed and position, where one cannot be read, and name it; otherwise
            the item has an ``error``.
        views: See ``llava_ial.data.views``; with more than one ``pixel_values`` are ``(V, 3, H, W)``.
    """

    def __init__(
        self,
        examples: Sequence[ClipExample],
        image_processor: BaseImageProcessor,
        *,
        augmentation: PhotoChange | None = None,
        seed: int = 0,
        fast_decoding: bool = False,
        replace_broken: bool = False,
        views: str = ONE,
    ) -> None:
        self.examples = examples
        self._pixels = PhotoPixels(image_processor)
        self._augmentation = augmentation
        self._seed = seed
        self._min_side = draft_side(image_processor) if fast_decoding else None
        self._replace_broken = replace_broken
        self._views = views
        self._decoded: dict[Path, Image.Image] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, position: int) -> dict[str, Any]:
        generator = draws_at(self._seed, position)
        row, broken, error = position % len(self), {}, ""
        for _ in range(_MAX_REPLACEMENTS if self._replace_broken else 1):
            example = self.examples[row]
            try:
                photo = self._load(example.path)
            except UserError as raised:
                # A worker would bury the message in a traceback; the loop says it where it is one line.
                error = str(raised)
                broken[example.image_id] = error
                row = int(torch.randint(len(self), (), generator=generator))
                continue
            if self._augmentation is not None:
                photo = self._augmentation(photo, generator)
            views = [self._pixels(view) for view in views_of(photo, self._views)]
            pixels = views[0] if len(views) == 1 else torch.stack(views)
            return {"example": example, "broken": broken, "pixel_values": pixels}
        return {"example": self.examples[position % len(self)], "broken": broken, "error": error}

    def keep_decoded(self, num_photos: int, *, progress: bool = False) -> None:
        """Decodes the first photos now and keeps them in memory, 3 bytes a pixel.

        Called before the workers start, which then share them. A photo that cannot be read is left to its turn.
        """
        paths = [example.path for example in self.examples[:num_photos]]
        for path in tqdm(paths, desc="decode", unit="photo", disable=not progress or not paths, leave=False):
            with suppress(UserError):
                self._decoded[path] = self._load(path)

    def _load(self, path: Path) -> Image.Image:
        kept = self._decoded.get(path)
        return kept if kept is not None else load_photo(path, min_side=self._min_side)


class ClipCollator:
    """Items to a batch: tokenises its texts, each different one once, padded to the longest of the batch.

    Args:
        tokenizer: Of the base model.
        max_length: Longest text in tokens, marks of beginning and end included (CLIP: 77).
        padding: As of ``AddressCLIP.text_padding``.
        text_kinds: Of ``address``, ``caption`` (with the address behind it), ``street``, ``neighbourhood``.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        text_kinds: Sequence[str] = ("address", "caption"),
        padding: bool | str = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._text_kinds = text_kinds
        self._padding = padding

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One batch.

        Raises:
            UserError: A photo could not be read, or an address does not fit into the text encoder.
        """
        broken = {name: why for item in items for name, why in item.get("broken", {}).items()}
        if errors := [item["error"] for item in items if "error" in item]:
            return {"error": errors[0], "broken": broken}
        examples: list[ClipExample] = [item["example"] for item in items]
        return {
            "image_id": [example.image_id for example in examples],
            "broken": broken,
            "pixel_values": torch.stack([item["pixel_values"] for item in items]),
            "xy_m": torch.tensor([example.xy_m for example in examples], dtype=torch.float32),
            "address_id": torch.tensor([example.address_id for example in examples]),
            "street_id": torch.tensor([example.street_id for example in examples]),
            "neighbourhood_id": torch.tensor([example.neighbourhood_id for example in examples]),
            "panorama": torch.tensor([example.panorama for example in examples]),
            **{
                name: tensor
                for kind in self._text_kinds
                for name, tensor in self._tokenize(kind, [self._text(kind, example) for example in examples]).items()
            },
        }

    def _text(self, kind: str, example: ClipExample) -> str:
        if kind == "caption":
            return self.caption_text(example.caption, example.address_text)
        text: str = getattr(example, f"{kind}_text")
        return text

    def caption_text(self, caption: str, address_text: str) -> str:
        """``caption + " " + address``, without the caption's last words where the text encoder's length demands it.

        The address stands last and is what the text is for: cutting at the end, as tokenizers do, would lose just that.
        """
        words = caption.split()
        text = " ".join([*words, address_text])
        while words and self._num_tokens(text) > self._max_length:
            words.pop()
            text = " ".join([*words, address_text])
        return text

    def refuse_long_addresses(self, addresses: Sequence[str]) -> None:
        """Checks the gallery once, before anything expensive.

        Raises:
            UserError: An address alone is longer than the text encoder reads.
        """
        for address in addresses:
            if (length := self._num_tokens(address)) > self._max_length:
                raise UserError(
                    f"address '{address}' has {length} tokens, the text encoder reads {self._max_length}: "
                    "what is cut off may be all that tells it from another; shorten its names in the map"
                )

    def _num_tokens(self, text: str) -> int:
        return len(self._tokenizer(text)["input_ids"])

    def _tokenize(self, name: str, texts: list[str]) -> dict[str, torch.Tensor]:
        row_of_text = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        tokens = self._tokenizer(
            list(row_of_text), padding=self._padding, truncation=True, max_length=self._max_length,
            return_tensors="pt", return_attention_mask=True,
        )  # fmt: skip
        return {
            f"{name}_input_ids": tokens["input_ids"],
            f"{name}_attention_mask": tokens["attention_mask"],
            f"{name}_row": torch.tensor([row_of_text[text] for text in texts]),
        }
