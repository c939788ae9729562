"""Dialogues for any image-text model of ``transformers``: rendered by the model's own template and processor.

Processors repeat the image mark in ways of their own, by the photo's size, and most templates carry no generation
marks. But the photo stands in the first question, so what follows it has the same tokens with one image mark or with
thousands: which tokens the assistant speaks is worked out on the short text and counted from the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from llava_ial.conversation import IMAGE_TOKEN, Message, validate_messages
from llava_ial.data.dataset import IALDataset
from llava_ial.data.images import load_photo
from llava_ial.data.llava import IGNORE_INDEX
from llava_ial.errors import UserError
from llava_ial.records import ConversationRecord


@dataclass(frozen=True)
class RenderedDialogue:
    """A dialogue as text.

    Attributes:
        text: By the model's template, with its image mark.
        learned: Tokens that the assistant speaks, counted from the end: 1 is the last one.
    """

    text: str
    learned: tuple[int, ...]


def render_dialogue(processor: Any, messages: Sequence[Message], name: str = "") -> RenderedDialogue:
    """Renders a dialogue about one photo and marks what is learned of it.

    Args:
        processor: With a chat template and a fast tokenizer.
        messages: Alternating user and assistant, the image mark in the first.
        name: For error messages.

    Raises:
        UserError: No dialogue about one photo, or a template that does not go on where its prompt ends.
    """
    validate_messages(messages, name)
    turns = [as_parts(message) for message in messages]
    text: str = processor.apply_chat_template(turns, tokenize=False)
    spans = []
    for position in range(1, len(turns), 2):
        prompt = processor.apply_chat_template(turns[:position], tokenize=False, add_generation_prompt=True)
        answered = processor.apply_chat_template(turns[: position + 1], tokenize=False)
        if not (answered.startswith(prompt) and text.startswith(answered)):
            raise UserError(f"conversation {name}: the base's chat template does not go on where its prompt ends")
        spans.append((len(prompt), len(answered)))
    encoding = processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoding["offset_mapping"]
    learned = tuple(
        len(offsets) - i
        for i, (start, end) in enumerate(offsets)
        # A token may begin with the space before the answer.
        if any(first < end <= last and not text[start:first].strip() and start < end for first, last in spans)
    )
    if not learned:
        raise UserError(f"conversation {name}: no token to learn")
    return RenderedDialogue(text, learned)


class ImageTextDataset(Dataset[dict[str, Any]]):
    """Dialogues of one split, rendered; photos are decoded when they are asked for."""

    def __init__(self, dataset: IALDataset, conversations: Sequence[ConversationRecord], processor: Any) -> None:
        self._dataset = dataset
        self.conversations = list(conversations)
        self.rendered = [render_dialogue(processor, r.messages, r.conversation_id) for r in self.conversations]
        for record in self.conversations:
            file = dataset.image_file(record.image_path)
            if not file.is_file():
                raise UserError(f"photo {file} of {record.conversation_id} is missing")

    def set_epoch(self, epoch: int) -> None:
        """Nothing depends on the epoch: photos are not changed for other bases."""

    def __len__(self) -> int:
        return len(self.rendered)

    def __getitem__(self, index: int) -> dict[str, Any]:
        photo = load_photo(self._dataset.image_file(self.conversations[index].image_path))
        return {"rendered": self.rendered[index], "photo": photo}


@dataclass(frozen=True)
class ImageTextCollator:
    """Samples to a batch by the model's processor, with labels."""

    processor: Any

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Whatever the processor gives, and ``labels`` ``(B, T)``."""
        batch: dict[str, torch.Tensor] = dict(
            self.processor(
                text=[sample["rendered"].text for sample in samples],
                images=[[sample["photo"]] for sample in samples],
                add_special_tokens=False,  # the template has written them
                padding=True,
                padding_side="right",
                return_tensors="pt",
            )
        )
        labels = torch.full_like(batch["input_ids"], IGNORE_INDEX)
        for row, sample in enumerate(samples):
            end = int(batch["attention_mask"][row].sum())
            places = end - torch.tensor(sample["rendered"].learned)
            labels[row, places] = batch["input_ids"][row, places]
        return batch | {"labels": labels}


def as_parts(message: Message) -> dict[str, Any]:
    """A message in the form that chat templates take: the photo first, then the words."""
    text = message.content.replace(IMAGE_TOKEN, "").strip()
    image = [{"type": "image"}] if IMAGE_TOKEN in message.content else []
    return {"role": message.role, "content": [*image, {"type": "text", "text": text}]}
