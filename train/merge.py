"""Makes one plain model of a folder of stage 2: base, LoRA, projector and tower in one ``transformers`` folder.

    python -m train.merge --model runs/demo/stage2 --data runs/demo/data --output runs/demo/merged

The result needs neither PEFT nor this project (`AutoModelForImageTextToText.from_pretrained`, `transformers serve`,
vLLM); of a LLaVA-1.5 the chat and the evaluation open it, too. Before it is called done, the adapted and the merged
model answer the same questions about the same photos: other answers, or logits that differ by more than rounding, are
refused.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))  # read once, when torch is imported

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging as transformers_logging

from llava_ial.config import parse_config
from llava_ial.conversation import Message, user_question
from llava_ial.data.dataset import IALDataset
from llava_ial.data.image_text import as_parts
from llava_ial.data.images import load_photo
from llava_ial.data.llava import encode_prompt
from llava_ial.errors import UserError, run_command
from llava_ial.inference import choose_device
from llava_ial.manifest import MANIFEST, FolderState, claim_folder, file_hash, read_manifest
from llava_ial.models.hub import push_folder
from llava_ial.models.image_text import KIND as IMAGE_TEXT_KIND
from llava_ial.models.image_text import LoadedImageText, load_adapted
from llava_ial.models.image_text_merged import KIND as IMAGE_TEXT_MERGED_KIND
from llava_ial.models.image_text_merged import (
    AskedPhoto,
    compare_image_text,
    open_image_text_merged,
    publish_image_text_merged,
    save_image_text_merged,
)
from llava_ial.models.llava_folder import KIND as LLAVA_IAL_KIND
from llava_ial.models.llava_folder import LoadedLlava, load_llava_ial
from llava_ial.models.llava_merged import (
    KIND,
    Agreement,
    compare,
    open_merged,
    publish_merged,
    refuse_disagreement,
    save_merged,
)
from llava_ial.prompts import PUBLISHED_QUESTION
from llava_ial.training.checkpoints import refuse_full_disk

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class MergeConfig:
    """What is merged, and how it is checked."""

    model: Path = field(metadata={"help": "folder or checkpoint of stage 2"})
    output: Path = field(metadata={"help": "folder to write"})
    data: Path | None = field(
        default=None, metadata={"help": "data set whose photos and questions both are asked; none: drawn noise"}
    )
    image_root: Path | None = field(
        default=None, metadata={"help": "where the photos of --data are now, if they were moved"}
    )
    num_checks: int = field(default=8, metadata={"help": "photos that both are asked about"})
    max_new_tokens: int = field(default=64, metadata={"help": "most tokens of a compared answer"})
    dtype: str = field(default="bfloat16", metadata={"help": f"of the weights on disk: {', '.join(DTYPES)}"})
    base: str | None = field(default=None, metadata={"help": "where the model's base is now, if it was moved"})
    push_to_hub: str | None = field(
        default=None, metadata={"help": "owner/name of a private repository to upload the result to; else nothing is"}
    )
    device: str = field(default="auto", metadata={"help": "cpu, cuda, cuda:1 ...; auto takes a GPU where there is one"})


def main() -> None:
    """Merges, compares, publishes."""
    (config,) = parse_config(MergeConfig, description=__doc__ or "")
    transformers_logging.disable_progress_bar()
    if config.dtype not in DTYPES:
        raise UserError(f"--dtype {config.dtype}: allowed: {', '.join(DTYPES)}")
    for name in ("num_checks", "max_new_tokens"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: allowed: at least 1")
    is_other = read_manifest(config.model, LLAVA_IAL_KIND, IMAGE_TEXT_KIND)["kind"] == IMAGE_TEXT_KIND
    checks = _checks(config)
    identity: dict[str, object] = {"dtype": config.dtype, "model": file_hash(config.model / MANIFEST)}
    kind = IMAGE_TEXT_MERGED_KIND if is_other else KIND
    with refuse_full_disk(config.output, "it begins anew"):
        if claim_folder(config.output, kind, identity) is FolderState.COMPLETE:
            print(f"{config.output}: already complete")
        else:
            agreement = (_merge_image_text if is_other else _merge)(config, identity, checks)
            print(
                f"{config.output}: merged in {config.dtype}; {agreement.num_same_answers} of {agreement.num_answers} "
                f"answers are the same, logits differ by at most {agreement.logit_difference:.3%}"
            )
    if config.push_to_hub:
        print(f"uploaded to {push_folder(config.output, config.push_to_hub)}")


def _merge(
    config: MergeConfig, identity: dict[str, object], checks: list[tuple[Image.Image, list[Message]]]
) -> Agreement:
    dtype, device = DTYPES[config.dtype], choose_device(config.device)
    # One after the other: of a large model two copies are more than enough.
    save_merged(config.output, config.model, load_llava_ial(config.model, base=config.base), dtype)
    adapted = load_llava_ial(config.model, base=config.base, device=device, merge=False)
    prompts, pixels = _inputs(adapted, checks)
    merged = open_merged(config.output, dtype).to(device).eval()
    agreement = compare(adapted.model, merged, prompts, pixels, max_new_tokens=config.max_new_tokens)
    refuse_disagreement(agreement, dtype)
    publish_merged(config.output, config.model, identity, agreement, merged)
    return agreement


def _merge_image_text(
    config: MergeConfig, identity: dict[str, object], checks: list[tuple[Image.Image, list[Message]]]
) -> Agreement:
    """The same for a base but LLaVA-1.5, which keeps its own processor and answers by ``transformers``' own way."""
    dtype, device = DTYPES[config.dtype], choose_device(config.device)
    save_image_text_merged(config.output, config.model, load_adapted(config.model, base=config.base), dtype)
    adapted = _on(load_adapted(config.model, base=config.base, merge=False), device)
    merged = _on(open_image_text_merged(config.output, dtype), device)
    asked = [AskedPhoto(photo, [as_parts(message) for message in messages]) for photo, messages in checks]
    agreement = compare_image_text(adapted, merged, asked, max_new_tokens=config.max_new_tokens)
    refuse_disagreement(agreement, dtype)
    publish_image_text_merged(config.output, config.model, identity, agreement)
    return agreement


def _on(loaded: LoadedImageText, device: str) -> LoadedImageText:
    return LoadedImageText(loaded.model.to(device).eval(), loaded.processor)


def _checks(config: MergeConfig) -> list[tuple[Image.Image, list[Message]]]:
    """Photos with a question each: the first questions of a data set's dialogues, spread over a split, or noise."""
    if config.data is None:
        draw = np.random.default_rng(0)
        noise = (draw.integers(0, 256, size=(64, 64, 3), dtype=np.uint8) for _ in range(config.num_checks))
        return [(Image.fromarray(picture), [user_question(PUBLISHED_QUESTION)]) for picture in noise]
    dataset = IALDataset(config.data, config.image_root)
    split = next(name for name in ("test", "val", "train") if (dataset.folder / "conversations" / name).is_dir())
    records = dataset.conversations(split)
    chosen = records[:: max(1, len(records) // config.num_checks)][: config.num_checks]
    return [(load_photo(dataset.image_file(record.image_path)), record.messages[:1]) for record in chosen]


def _inputs(
    loaded: LoadedLlava, checks: list[tuple[Image.Image, list[Message]]]
) -> tuple[list[list[int]], torch.Tensor]:
    prompts = [encode_prompt(loaded.tokenizer, messages, loaded.num_image_tokens) for _, messages in checks]
    pixels = loaded.image_processor([photo for photo, _ in checks], return_tensors="pt")["pixel_values"]
    return prompts, pixels


if __name__ == "__main__":
    run_command(main)
