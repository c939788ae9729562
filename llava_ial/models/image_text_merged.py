"""Another image-text model without its adapter: one plain ``transformers`` folder, compared with its source."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from llava_ial.manifest import MANIFEST, file_hash, write_text
from llava_ial.models.image_text import KIND as IMAGE_TEXT_KIND
from llava_ial.models.image_text import LoadedImageText, load_image_text
from llava_ial.models.llava_merged import Agreement, publish_compared

KIND = "image_text_merged"
# What the card of an adapter says of opening it.
_PEFT_IMPORT = "from peft import PeftModel\n"
_PEFT_LOAD = re.compile(r"PeftModel\.from_pretrained\((AutoModelForImageTextToText\.from_pretrained)\(.*\), FOLDER\)")


@dataclass(frozen=True)
class AskedPhoto:
    """A photo and what is asked about it.

    Attributes:
        photo: In RGB.
        turns: In the form that chat templates take, the photo's mark first.
    """

    photo: Image.Image
    turns: list[dict[str, Any]]


def save_image_text_merged(folder: Path, source: Path, loaded: LoadedImageText, dtype: torch.dtype) -> None:
    """Writes weights, processor and card; everything but the manifest.

    Args:
        folder: Claimed already.
        source: The adapter's folder.
        loaded: LoRA merged; its model is changed to ``dtype``.
        dtype: Of the weights on disk.
    """
    loaded.model.to(dtype).save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    card = (source / "README.md").read_text(encoding="utf-8").replace(_PEFT_IMPORT, "")
    card = card.replace("library_name: peft", "library_name: transformers")
    write_text(folder / "README.md", _PEFT_LOAD.sub(r"\1(FOLDER)", card))


def open_image_text_merged(folder: Path, dtype: torch.dtype) -> LoadedImageText:
    """What a folder holds that may not be published yet, as anybody's ``transformers`` opens it."""
    model, processor = load_image_text(str(folder.resolve()), dtype=dtype)
    return LoadedImageText(model, processor)


def publish_image_text_merged(folder: Path, source: Path, config: dict[str, object], agreement: Agreement) -> None:
    """Writes the manifest: the folder is whole and was compared with what it was made from."""
    publish_compared(folder, KIND, {IMAGE_TEXT_KIND: file_hash(source / MANIFEST)}, config, agreement)


@torch.no_grad()
def compare_image_text(
    adapted: LoadedImageText, merged: LoadedImageText, asked: Sequence[AskedPhoto], *, max_new_tokens: int
) -> Agreement:
    """Asks both models the same, each through the processor of its own folder.

    Args:
        adapted: With LoRA beside its weights.
        merged: With LoRA in its weights.
        asked: Photos and questions.
        max_new_tokens: Most tokens of an answer.
    """
    difference, largest, same = 0.0, 0.0, 0
    for one in asked:
        inputs = [_inputs(loaded, one) for loaded in (adapted, merged)]
        logits = [
            loaded.model(**batch).logits[0, -1].float().cpu()
            for loaded, batch in zip((adapted, merged), inputs, strict=True)
        ]
        difference = max(difference, float((logits[0] - logits[1]).abs().max()))
        largest = max(largest, float(logits[0].abs().max()))
        answers = [
            loaded.model.generate(**batch, do_sample=False, max_new_tokens=max_new_tokens)[0].tolist()
            for loaded, batch in zip((adapted, merged), inputs, strict=True)
        ]
        same += answers[0] == answers[1]
    return Agreement(difference / largest, same, len(asked))


def _inputs(loaded: LoadedImageText, asked: AskedPhoto) -> Any:
    text = loaded.processor.apply_chat_template(asked.turns, tokenize=False, add_generation_prompt=True)
    # The template has written the marks at the start, as in training.
    batch = loaded.processor(text=[text], images=[[asked.photo]], add_special_tokens=False, return_tensors="pt")
    return batch.to(loaded.model.device, loaded.model.dtype)
