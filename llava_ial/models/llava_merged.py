"""LLaVA-IAL without its adapter: one plain ``transformers`` folder, proven equal before it is called done."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoTokenizer, LlavaForConditionalGeneration

from llava_ial.conversation import chat_template_hash
from llava_ial.errors import UserError
from llava_ial.manifest import MANIFEST, file_hash, publish_manifest, read_manifest, write_text
from llava_ial.models.greedy import encode_prefixes, greedy_tokens, image_features, split_prompt
from llava_ial.models.hub_layout import write_hub_layout
from llava_ial.models.identity import tower_hash
from llava_ial.models.llava import TOWER, load_base
from llava_ial.models.llava_folder import (
    ADDRESS_CLIP,
    ENCODER_PARTS,
    LoadedLlava,
    base_hash,
    save_processor,
    verify_part,
)
from llava_ial.models.llava_folder import KIND as LLAVA_IAL_KIND
from llava_ial.models.quantized import quantization_config

KIND = "llava_ial_merged"
# Largest difference of the logits, as a share of the largest logit: rounding of weights to 24, 11 and 8 bits.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

# What the card of an adapter says of opening it, and what a merged model's says.
_PEFT_ALONE = re.compile(r"With `peft` alone .*?which knows them\.", re.DOTALL)
_TRANSFORMERS_ALONE = """With `transformers` alone:

```python
model = LlavaForConditionalGeneration.from_pretrained(FOLDER)
processor = AutoProcessor.from_pretrained(FOLDER)
```"""


@dataclass(frozen=True)
class Agreement:
    """How a merged model compares with the adapted one.

    Attributes:
        logit_difference: Largest difference of a first token's logits, as a share of the largest logit.
        num_same_answers: Answers that are equal, token for token.
        num_answers: Answers compared.
    """

    logit_difference: float
    num_same_answers: int
    num_answers: int


def save_merged(folder: Path, source: Path, loaded: LoadedLlava, dtype: torch.dtype) -> None:
    """Writes the weights of an opened LLaVA-IAL folder as one model; everything but the manifest.

    Args:
        folder: Claimed already.
        source: The LLaVA-IAL folder that ``loaded`` is from; its encoder is copied.
        loaded: LoRA merged; its model is changed to ``dtype``.
        dtype: Of the weights on disk.
    """
    loaded.model.to(dtype).save_pretrained(folder)
    save_processor(folder, loaded.tokenizer, loaded.image_processor, loaded.model.config)
    write_hub_layout(folder)
    card = (source / "README.md").read_text(encoding="utf-8")
    card = card.replace("library_name: peft", "library_name: transformers")
    card = card.replace("is `config.yaml`;", "is `config.yaml` of the adapter's folder;")
    write_text(folder / "README.md", _PEFT_ALONE.sub(_TRANSFORMERS_ALONE, card))
    if not (folder / ADDRESS_CLIP).is_dir():
        temporary = folder / f".{ADDRESS_CLIP}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed here
        shutil.copytree(source / ADDRESS_CLIP, temporary)
        temporary.rename(folder / ADDRESS_CLIP)


def publish_merged(
    folder: Path, source: Path, config: dict[str, object], agreement: Agreement, merged: LlavaForConditionalGeneration
) -> None:
    """Writes the manifest: the folder is whole; ``merged``, opened from it, was compared with what it was made from."""
    adapted = read_manifest(source, LLAVA_IAL_KIND)
    publish_compared(
        folder,
        KIND,
        {LLAVA_IAL_KIND: file_hash(source / MANIFEST)},
        config,
        agreement,
        # Of the weights as they are on disk: rounding to 16 bits makes another tower of stage 1's.
        merged_tower_hash=tower_hash(getattr(merged.model, TOWER)),
        **{name: adapted.get(name) for name in (*ENCODER_PARTS, "chat_template_hash", "hints")},
    )


def publish_compared(
    folder: Path,
    kind: str,
    parents: dict[str, str],
    config: dict[str, object],
    agreement: Agreement,
    **more: object,
) -> None:
    """Writes the manifest of a merged model of any kind.

    Args:
        folder: Whole but for it.
        kind: Of the folder.
        parents: Kind of the folder that it was made from, with its manifest's hash.
        config: What the manifest names as the configuration.
        agreement: How it compares with its source.
        more: What else stands in it.
    """
    publish_manifest(
        folder,
        kind,
        config,
        parents=parents,
        weights_hash=base_hash(str(folder)),
        **more,
        logit_difference=round(agreement.logit_difference, 6),
        num_same_answers=agreement.num_same_answers,
        num_answers=agreement.num_answers,
    )


def open_merged(
    folder: Path, dtype: torch.dtype, *, device: str = "cpu", quantize: str = "none"
) -> LlavaForConditionalGeneration:
    """The model in a folder that may not be published yet."""
    quantization = quantization_config(quantize, dtype)
    where = str(folder.resolve())
    if quantization:
        return load_base(where, dtype=dtype, quantization=quantization, device=device)
    return load_base(where, dtype=dtype).to(device)


def load_merged(
    folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32, quantize: str = "none"
) -> LoadedLlava:
    """Opens a merged folder and verifies it against its manifest.

    Raises:
        UserError: Not a finished merged folder, or a part is not the one it was made with.
    """
    manifest = read_manifest(folder, KIND)
    verify_part(folder, "model", base_hash(str(folder)), manifest["weights_hash"])
    verify_part(folder, "prompt template", chat_template_hash(), manifest["chat_template_hash"])
    model = open_merged(folder, dtype, device=device, quantize=quantize).eval()
    return LoadedLlava(
        model,
        AutoTokenizer.from_pretrained(folder),
        AutoImageProcessor.from_pretrained(folder, backend="pil"),
        model.config.image_seq_length,
        manifest,
    )


@torch.no_grad()
def compare(
    adapted: LlavaForConditionalGeneration,
    merged: LlavaForConditionalGeneration,
    prompts: Sequence[Sequence[int]],
    pixel_values: torch.Tensor,
    *,
    max_new_tokens: int,
) -> Agreement:
    """Asks both models the same.

    Args:
        adapted: With LoRA beside its weights.
        merged: With LoRA in its weights.
        prompts: Token ids, one prompt per photo.
        pixel_values: ``(N, 3, S, S)``.
        max_new_tokens: Most tokens of an answer.
    """
    difference, largest, same = 0.0, 0.0, 0
    for prompt, pixels in zip(prompts, pixel_values, strict=True):
        logits = [_first_logits(model, prompt, pixels) for model in (adapted, merged)]
        difference = max(difference, float((logits[0] - logits[1]).abs().max()))
        largest = max(largest, float(logits[0].abs().max()))
        answers = [_answer(model, prompt, pixels, max_new_tokens) for model in (adapted, merged)]
        same += answers[0] == answers[1]
    return Agreement(difference / largest, same, len(prompts))


def refuse_disagreement(agreement: Agreement, dtype: torch.dtype) -> None:
    """Raises unless the two models are the same but for rounding.

    Raises:
        UserError: Logits differ by more than rounding, or an answer is another one.
    """
    is_same = agreement.num_same_answers == agreement.num_answers
    # A comparison that fails for NaN, too.
    if not (agreement.logit_difference <= TOLERANCE[dtype] and is_same):
        raise UserError(
            f"the merged model is another one: {agreement.num_same_answers} of {agreement.num_answers} answers are the "
            f"same, logits differ by {agreement.logit_difference:.2%} (allowed: {TOLERANCE[dtype]:.2%}); "
            "merge with --dtype float32"
        )


def _first_logits(model: LlavaForConditionalGeneration, prompt: Sequence[int], pixels: torch.Tensor) -> torch.Tensor:
    ids = torch.tensor([list(prompt)], device=model.device)
    photo = pixels[None].to(model.device, model.dtype)
    logits: torch.Tensor = model(input_ids=ids, pixel_values=photo, logits_to_keep=1).logits[0, -1]
    return logits.float().cpu()


def _answer(model: LlavaForConditionalGeneration, prompt: Sequence[int], pixels: torch.Tensor, limit: int) -> list[int]:
    prefix, question = split_prompt(model, prompt)
    prefixes = encode_prefixes(model, prefix, image_features(model, pixels[None]))
    return [int(token) for token in greedy_tokens(model, prefixes, [0], [question], max_new_tokens=limit)]
