"""What of a training step's positions is padding, and of how many the answer is learned: what packing could win.

    python -m benchmarks.padding --data runs/demo/data --tokenizer train/toy_base/models/toy-llava --image_tokens 65
    python -m benchmarks.padding --data runs/demo/data --tokenizer llava-hf/llava-1.5-7b-hf --image_tokens 576

Counts tokens, runs no model. Packing dialogues one after the other into rows without padding cannot make a step faster
than the reciprocal of what is not padding; `largest_speedup_of_packing` is that bound, for dialogues in random order
and with similar lengths together (`--train_sampling_strategy group_by_length`). `learned` is the share of the
positions whose next token is learned: the only ones whose logits are computed. Prints JSON, and writes it to
`--output`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from llava_ial.config import parse_config
from llava_ial.conversation import IMAGE_TOKEN
from llava_ial.data.dataset import IALDataset
from llava_ial.data.llava import IGNORE_INDEX, EncodedDialogue, encode_dialogue
from llava_ial.errors import UserError, run_command
from llava_ial.manifest import write_json
from llava_ial.training.by_length import ByLength


@dataclass
class PaddingConfig:
    """Which dialogues are counted, and how."""

    data: Path = field(metadata={"help": "data set folder"})
    tokenizer: str = field(metadata={"help": "name or folder; <image> is added where it is no token yet"})
    image_tokens: int = field(default=576, metadata={"help": "tokens of a photo; LLaVA-1.5: 576"})
    split: str = field(default="train", metadata={"help": "split that is counted"})
    batch_size: int = field(default=16, metadata={"help": "dialogues of a batch"})
    output: Path | None = field(default=None, metadata={"help": "JSON to write"})


def main() -> None:
    """Counts and prints."""
    (config,) = parse_config(PaddingConfig, description=__doc__ or "")
    for name in ("image_tokens", "batch_size"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: allowed: at least 1")
    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    dialogues = [
        encode_dialogue(tokenizer, record.messages, config.image_tokens, name=record.conversation_id)
        for record in IALDataset(config.data).conversations(config.split)
    ]
    found = {"image_tokens": config.image_tokens, **shares(dialogues, config.batch_size)}
    if config.output:
        write_json(config.output, found)
    print(json.dumps(found, indent=2))


@dataclass(frozen=True)
class Shares:
    """What an epoch's positions are, padded as the collator does.

    Attributes:
        padding: Share that stands for nothing.
        learned: Share whose next token is learned.
        largest_speedup_of_packing: Positions with padding to positions without.
    """

    padding: float
    learned: float
    largest_speedup_of_packing: float


def shares(dialogues: Sequence[EncodedDialogue], batch_size: int) -> dict[str, Any]:
    """Shares of an epoch in random order and with similar lengths together."""
    lengths = [len(dialogue.input_ids) for dialogue in dialogues]
    drawn = torch.randperm(len(dialogues), generator=torch.Generator().manual_seed(0)).tolist()
    orders = {"random": drawn, "by_length": list(ByLength(batch_size, lengths, seed=0))}
    return {
        "num_dialogues": len(dialogues),
        "batch_size": batch_size,
        "tokens": {"least": min(lengths), "mean": sum(lengths) / len(lengths), "most": max(lengths)},
        **{name: asdict(_of_order(dialogues, order, batch_size)) for name, order in orders.items()},
    }


def _of_order(dialogues: Sequence[EncodedDialogue], order: Sequence[int], batch_size: int) -> Shares:
    num_positions = num_tokens = num_learned = 0
    for start in range(0, len(order), batch_size):
        batch = [dialogues[row] for row in order[start : start + batch_size]]
        num_positions += len(batch) * max(len(dialogue.input_ids) for dialogue in batch)
        num_tokens += sum(len(dialogue.input_ids) for dialogue in batch)
        num_learned += sum(label != IGNORE_INDEX for dialogue in batch for label in dialogue.labels[1:])
    return Shares(
        padding=1 - num_tokens / num_positions,
        learned=num_learned / num_positions,
        largest_speedup_of_packing=num_positions / num_tokens,
    )


if __name__ == "__main__":
    run_command(main)
