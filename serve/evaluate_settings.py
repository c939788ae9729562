"""What an evaluation is told, checked before anything expensive, and what of it decides the results."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.inference import MAX_NEW_TOKENS, choose_device, choose_dtype
from llava_ial.manifest import MANIFEST, file_hash
from llava_ial.prompts import TASKS

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class EvaluateConfig:
    """Settings of an evaluation."""

    model: Path = field(metadata={"help": "folder of stage 2, or of stage 1 (ranking alone)"})
    data: Path = field(metadata={"help": "data set folder (output of python -m data_gen.build)"})
    output: Path = field(metadata={"help": "folder to write"})
    split: str = field(default="test", metadata={"help": "train (a memorisation check), val or test"})
    tasks: list[str] = field(
        default_factory=lambda: list(TASKS), metadata={"help": f"kinds of questions to ask: {', '.join(TASKS)}"}
    )
    shuffle_photos: bool = field(default=True, metadata={"help": "also ask with the photos shuffled, as a control"})
    baselines: str | None = field(
        default=None,
        metadata={
            "help": "also measure baselines with this untuned CLIP (folder or name), for example "
            "the one that stage 1 started from"
        },
    )
    photos_in_report: bool = field(
        default=True, metadata={"help": "show photos in report.html; without, it can be handed on with no picture"}
    )
    batch_size: int = field(default=32, metadata={"help": "questions at a time; does not change the answers"})
    max_new_tokens: int = field(default=MAX_NEW_TOKENS, metadata={"help": "most tokens of an answer"})
    seed: int = field(default=0, metadata={"help": "of the shuffled photos and of the intervals"})
    image_root: Path | None = field(default=None, metadata={"help": "where the photos are now, if they were moved"})
    base: str | None = field(default=None, metadata={"help": "where the model's base is now, if it was moved"})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, cuda:1 ...; auto takes a GPU where there is one"})
    dtype: str = field(default="auto", metadata={"help": f"of the weights: {', '.join(DTYPES)}"})


def refuse_impossible(config: EvaluateConfig) -> None:
    """Checks what can be checked without reading anything.

    Raises:
        UserError: Names the setting.
    """
    for name in ("batch_size", "max_new_tokens"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: at least 1")
    if config.dtype not in DTYPES:
        raise UserError(f"--dtype '{config.dtype}' is unknown; allowed: {', '.join(DTYPES)}")


def identity_of(config: EvaluateConfig, dataset: IALDataset) -> tuple[dict[str, Any], dict[str, str]]:
    """What decides the answers, and the folders that they are made from."""
    parents = {"data": dataset.identity, "model": file_hash(config.model / MANIFEST)}
    names = ("split", "tasks", "shuffle_photos", "max_new_tokens", "seed", "baselines", "photos_in_report")
    # What "auto" comes to: half of the answers in one type and half in another would be no evaluation.
    dtype = DTYPES[config.dtype] or choose_dtype(choose_device(config.device))
    return {name: getattr(config, name) for name in names} | {"dtype": str(dtype)} | parents, parents
