"""Forward and backward of a CLIP in bfloat16, with each attention kernel, as ratios to float32 in one run.

    python benchmarks/precision.py                            the toy city's CLIP, one thread, on the CPU
    python benchmarks/precision.py --model openai/clip-vit-base-patch16 --threads 2 --batch_size 16

Writes benchmarks/results/precision.json and prints it. The ways take turns; the fastest turn of each counts, which
other work on the machine disturbs least. On a processor without bfloat16 in hardware the ratios lie below 1:
``--mixed_precision auto`` of stage 1 then stays with float32.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import datetime
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from llava_ial.config import parse_config
from llava_ial.errors import run_command
from llava_ial.manifest import write_json
from llava_ial.models.address_clip import AddressCLIP, load_dual_encoder
from llava_ial.models.half_precision import cpu_has_bf16

WAYS = {
    "float32, sdpa": (False, "sdpa"),
    "float32, eager": (False, "eager"),
    "bfloat16, sdpa": (True, "sdpa"),
    "bfloat16, eager": (True, "eager"),
}


@dataclass
class PrecisionBenchmark:
    """What is measured."""

    model: str = field(default="train/toy_base/models/toy-clip", metadata={"help": "CLIP: hub name or folder"})
    batch_size: int = field(default=64, metadata={"help": "photos of a step, and texts"})
    text_length: int = field(default=30, metadata={"help": "tokens of each text"})
    threads: int = field(default=1, metadata={"help": "threads that compute"})
    repeats: int = field(default=5, metadata={"help": "turns"})
    output: Path = field(default=Path("benchmarks/results/precision.json"), metadata={"help": "JSON to write"})


def main() -> None:
    """Measures the ways in turns."""
    (config,) = parse_config(PrecisionBenchmark, description=__doc__ or "")
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    model = AddressCLIP(load_dual_encoder(config.model)).train()
    side = model.clip.config.vision_config.image_size
    inputs = {
        "pixel_values": torch.randn(config.batch_size, 3, side, side),
        "address_input_ids": torch.randint(5, 200, (config.batch_size, config.text_length)),
        "address_attention_mask": torch.ones(config.batch_size, config.text_length, dtype=torch.long),
    }
    seconds: dict[str, float] = {}
    for turn in range(config.repeats + 1):  # the first is not counted
        for name, way in WAYS.items():
            taken = step_seconds(model, inputs, *way)
            if turn:
                seconds[name] = min(taken, seconds.get(name, taken))
    results: dict[str, Any] = {
        "machine": f"{len(os.sched_getaffinity(0))} CPU cores",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "bfloat16_in_hardware": cpu_has_bf16(),
        "model": config.model, "batch_size": config.batch_size, "threads": config.threads,
        "images_per_second": {name: config.batch_size / taken for name, taken in seconds.items()},
        "speedup_over_float32": {name: seconds["float32, sdpa"] / taken for name, taken in seconds.items()},
    }  # fmt: skip
    write_json(config.output, results)
    print(json.dumps(results, indent=2))


def step_seconds(model: AddressCLIP, inputs: dict[str, torch.Tensor], half: bool, attention: str) -> float:
    """Of one forward and backward over photos and texts."""
    model.clip.set_attn_implementation(attention)
    started = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        features = model(**inputs)
    sum(feature.float().sum() for feature in features.values()).backward()
    model.zero_grad()
    return time.perf_counter() - started


if __name__ == "__main__":
    run_command(main)
