"""Dialogues of one split as batches of ``LlavaForConditionalGeneration``."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from llava_ial.conversation import IMAGE_TOKEN
from llava_ial.data.apart import BRANCHES, NO_TOKEN, branch_positions, encode_apart
from llava_ial.data.augmentation import Augmentation
from llava_ial.data.dataset import IALDataset
from llava_ial.data.dialogue_photos import DialoguePhotos
from llava_ial.data.llava import IGNORE_INDEX, encode_dialogue, pad_batch
from llava_ial.errors import UserError
from llava_ial.records import ConversationRecord


class LlavaDataset(Dataset[dict[str, Any]]):
    """Dialogues of one split, encoded; photos are decoded and resized in the loader's workers."""

    def __init__(
        self,
        dataset: IALDataset,
        conversations: Sequence[ConversationRecord],
        tokenizer: PreTrainedTokenizerBase,
        image_processor: BaseImageProcessor,
        *,
        num_image_tokens: int,
        max_length: int,
        photos_in_memory: int = 0,
        hints: Sequence[str] = (),
        apart: Sequence[bool] = (),
        augmentation: Augmentation | None = None,
        num_changed: int = 0,
        seed: int = 0,
    ) -> None:
        """Encodes every dialogue at once, so that a bad one stops the run before it starts.

        ``photos_in_memory`` photos are kept. ``hints`` belong to the first conversations, in order; those after them
        have none. So does ``apart``, which says whose questions do not see each other.

        Each epoch ``augmentation`` changes the photos of the first ``num_changed`` dialogues in another way, drawn by
        ``seed``, epoch and row: a run is the same however many processes, workers and interruptions it has.
        """
        self._dataset = dataset
        self._photos = DialoguePhotos(image_processor, keep=photos_in_memory, augmentation=augmentation, seed=seed)
        self._num_changed, self._epoch = num_changed, 0
        image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self._filler_ids = [tokenizer.bos_token_id, *[image_id] * num_image_tokens]
        self.conversations = list(conversations)
        self.encoded = [
            (encode_apart if is_apart else encode_dialogue)(
                tokenizer,
                record.messages,
                num_image_tokens,
                name=record.conversation_id,
                max_length=max_length,
                hint=hint,
            )
            for record, hint, is_apart in zip(
                self.conversations, chain(hints, repeat("")), chain(apart, repeat(False)), strict=False
            )
        ]
        for record in self.conversations:
            self._refuse_missing_photo(record)

    def _refuse_missing_photo(self, record: ConversationRecord) -> None:
        has_mark = any(IMAGE_TOKEN in message.content for message in record.messages)
        if has_mark != bool(record.image_path):
            found, lacks = ("a photo", f"{IMAGE_TOKEN} in no turn") if record.image_path else (IMAGE_TOKEN, "no photo")
            raise UserError(f"conversation {record.conversation_id}: {found} but {lacks}")
        if has_mark and not self._dataset.image_file(record.image_path).is_file():
            file = self._dataset.image_file(record.image_path)
            raise UserError(f"photo {file} of {record.conversation_id} is missing")

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> dict[str, Any]:
        encoded, record = self.encoded[index], self.conversations[index]
        has_image = any(IMAGE_TOKEN in message.content for message in record.messages)
        pixels = self._photo_pixels(record.image_path, index) if has_image else None
        return {
            "input_ids": encoded.input_ids,
            "labels": encoded.labels,
            "branches": encoded.branches,
            "pixel_values": pixels,
        }

    @property
    def filler(self) -> dict[str, Any]:
        """A sample of a black photo with nothing to learn, see ``LlavaCollator``; the dialogues may have no photo."""
        pixels = self._photos.prepare(Image.new("RGB", (64, 64)))
        labels = [IGNORE_INDEX] * len(self._filler_ids)
        return {
            "input_ids": self._filler_ids,
            "labels": labels,
            "pixel_values": torch.zeros_like(pixels),
        }

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch begins."""
        self._epoch = epoch

    def _photo_pixels(self, image_path: str, row: int) -> torch.Tensor:
        """``(3, S, S)``."""
        file = self._dataset.image_file(image_path)
        if row < self._num_changed:
            return self._photos.changed(file, self._epoch * len(self) + row)
        return self._photos.plain(file)


@dataclass(frozen=True)
class LlavaCollator:
    """Samples to a batch with the names of ``LlavaForConditionalGeneration.forward``.

    Attributes:
        pad_token_id: Fills shorter rows.
        filler: Put into a batch without photos. Processes that run different modules wait for each other for ever, and
            with it every batch runs tower and projector; its labels are all ignored, so it changes no gradient.
    """

    pad_token_id: int
    filler: dict[str, Any] | None = None

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """``input_ids``, ``attention_mask``, ``labels`` ``(B, T)`` and ``pixel_values (photos, 3, S, S)`` if any.

        Where questions do not see each other there are ``branches`` and ``position_ids`` ``(B, T)``: the mask that
        follows from them is T times as large, and ``as_seen`` makes it where it is needed.
        """
        if self.filler is not None and all(sample["pixel_values"] is None for sample in samples):
            samples = [*samples, self.filler]
        ids = [sample["input_ids"] for sample in samples]
        batch = {
            "input_ids": pad_batch(ids, self.pad_token_id, side="right"),
            "attention_mask": pad_batch([[1] * len(sequence) for sequence in ids], 0, side="right"),
            "labels": pad_batch([sample["labels"] for sample in samples], IGNORE_INDEX, side="right"),
        }
        if any(sample.get("branches") for sample in samples):
            branches = [sample.get("branches") or [0] * len(sample["input_ids"]) for sample in samples]
            batch[BRANCHES] = pad_batch(branches, NO_TOKEN, side="right")
            batch["position_ids"] = pad_batch([branch_positions(row) for row in branches], 0, side="right")
        photos = [sample["pixel_values"] for sample in samples if sample["pixel_values"] is not None]
        if photos:
            batch["pixel_values"] = torch.stack(photos)
        return batch
