"""Converts between the layout of ``transformers`` and that of LLaVA's first code.

    python -m train.export --model runs/demo/stage2 --format llava --output runs/demo/llava
    python -m train.export --model llava-v1.5-7b --format hf --output bases/llava-1.5-7b-hf

``llava`` takes a folder of stage 2 or of ``train.merge``; ``hf`` takes a folder in the first code's layout and makes a
base for stage 2 of it. LLaVA's first code finds the tower by a path relative to where it is started, so start it in the
written folder. What was written is read back and compared, tensor by tensor, before it is called done.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))  # read once, when torch is imported

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoImageProcessor, CLIPVisionModel
from transformers.utils import logging as transformers_logging

from llava_ial.config import parse_config
from llava_ial.errors import UserError, run_command
from llava_ial.manifest import FolderState, claim_folder, file_hash, publish_manifest, read_manifest, write_json
from llava_ial.models.hub import push_folder
from llava_ial.models.hub_layout import write_hub_layout, write_hub_tokenizer, write_hub_tower
from llava_ial.models.llava import load_base
from llava_ial.models.llava_folder import KIND as LLAVA_IAL_KIND
from llava_ial.models.llava_folder import base_hash, load_llava_ial, save_processor
from llava_ial.models.llava_merged import KIND as MERGED_KIND
from llava_ial.models.llava_merged import load_merged
from llava_ial.models.llava_original import (
    TOWER_FOLDER,
    WEIGHTS,
    is_original,
    load_original,
    num_original_tokens,
    original_config,
    refuse_adapter,
    to_original_state,
    tower_path,
)
from llava_ial.training.checkpoints import refuse_full_disk

KIND = "llava_export"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class ExportConfig:
    """What becomes what."""

    model: Path = field(metadata={"help": "folder to convert"})
    output: Path = field(metadata={"help": "folder to write"})
    format: str = field(metadata={"help": "layout to write: 'llava' (LLaVA's first code) or 'hf' (transformers)"})
    dtype: str = field(default="bfloat16", metadata={"help": f"of the weights on disk: {', '.join(DTYPES)}"})
    base: str | None = field(default=None, metadata={"help": "where the base of --model is now, if it was moved"})
    push_to_hub: str | None = field(
        default=None, metadata={"help": "owner/name of a private repository to upload the result to; else nothing is"}
    )


def main() -> None:
    """Converts, compares, publishes."""
    (config,) = parse_config(ExportConfig, description=__doc__ or "")
    transformers_logging.disable_progress_bar()
    for name, allowed in (("format", ("llava", "hf")), ("dtype", tuple(DTYPES))):
        if getattr(config, name) not in allowed:
            raise UserError(f"--{name} {getattr(config, name)}: allowed: {', '.join(allowed)}")
    if config.format == "hf" and not is_original(config.model):
        raise UserError(
            f"--model {config.model}: not in the layout of LLaVA's first code; a folder of stage 2 becomes a plain "
            "model by python -m train.merge"
        )
    if config.format == "hf":
        refuse_adapter(config.model)
    identity = {"format": config.format, "dtype": config.dtype, "model": _identity(config)}
    with refuse_full_disk(config.output, "it begins anew"):
        if claim_folder(config.output, KIND, identity) is FolderState.COMPLETE:
            print(f"{config.output}: already complete")
        else:
            (_write_original if config.format == "llava" else _write_plain)(config)
            publish_manifest(config.output, KIND, identity)
            print(f"{config.output}: written in the layout '{config.format}', read back and found equal")
    if config.push_to_hub:
        print(f"uploaded to {push_folder(config.output, config.push_to_hub)}")


def _identity(config: ExportConfig) -> str:
    if config.format == "llava":
        manifest = read_manifest(config.model, LLAVA_IAL_KIND, MERGED_KIND)
        is_merged = manifest["kind"] == MERGED_KIND
        settings = json.loads((config.model / "config.json").read_text(encoding="utf-8")) if is_merged else manifest
        if isinstance(layers := settings.get("vision_feature_layer"), list):
            raise UserError(
                f"--model {config.model}: it reads layers {layers} of its tower side by side, and LLaVA's first code "
                "reads one; python -m train.merge makes a folder that transformers opens"
            )
        return file_hash(config.model / "manifest.json")
    return file_hash(config.model / "config.json")


def _write_original(config: ExportConfig) -> None:
    is_merged = read_manifest(config.model, LLAVA_IAL_KIND, MERGED_KIND)["kind"] == MERGED_KIND
    loaded = load_merged(config.model) if is_merged else load_llava_ial(config.model, base=config.base)
    llava = loaded.model.to(DTYPES[config.dtype])
    num_tokens, tower = num_original_tokens(llava, loaded.tokenizer), config.output / TOWER_FOLDER
    clip = CLIPVisionModel(llava.config.vision_config).to(llava.dtype)
    clip.load_state_dict(llava.model.vision_tower.state_dict(), strict=True)
    clip.save_pretrained(tower)
    write_hub_tower(tower)
    loaded.image_processor.save_pretrained(tower)
    loaded.tokenizer.save_pretrained(config.output)
    write_hub_tokenizer(config.output)
    save_file(to_original_state(llava, num_tokens), config.output / WEIGHTS, metadata={"format": "pt"})
    write_json(config.output / "config.json", original_config(llava, TOWER_FOLDER, num_tokens))
    read_back, _ = load_original(config.output, dtype=llava.dtype)
    _refuse_difference(config.output, to_original_state(llava, num_tokens), to_original_state(read_back, num_tokens))


def _write_plain(config: ExportConfig) -> None:
    llava, tokenizer = load_original(config.model, dtype=DTYPES[config.dtype])
    image_processor = AutoImageProcessor.from_pretrained(tower_path(config.model), backend="pil")
    llava.save_pretrained(config.output)
    save_processor(config.output, tokenizer, image_processor, llava.config)
    write_hub_layout(config.output)
    read_back = load_base(str(config.output.resolve()), dtype=llava.dtype)
    _refuse_difference(config.output, llava.state_dict(), read_back.state_dict())
    base_hash(str(config.output))


def _refuse_difference(folder: Path, written: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    different = [name for name in written if name not in found or not torch.equal(written[name], found[name])]
    if different or written.keys() != found.keys():
        raise UserError(f"{folder}: read back, {len(different)} of {len(written)} weights differ: {different[:3]}")


if __name__ == "__main__":
    run_command(main)
