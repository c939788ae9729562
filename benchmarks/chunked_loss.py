"""What a fused cross-entropy could still save, now that logits are computed where the next token is learned alone.

    python -m benchmarks.chunked_loss --batch_size 16

The head and the loss of one step at LLaVA-1.5-7B's width and vocabulary, forward and back to the hidden states (the
head itself is frozen), in two ways: all learned rows at once, as stage 2 does, and a chunk of rows after the other with
each chunk's logits forgotten, which is what fused kernels such as Liger's save memory by. Each way is a fresh process;
they take turns, and medians of the processor's own seconds are compared. `share_of_step` is what head and loss are of a
step's arithmetic, by the count of `benchmarks/gpu_stage2.py`. Prints JSON, and writes it to `--output`.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)))))  # read when torch is imported

import json
import resource
import statistics
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks._fresh_process import run_fresh
from benchmarks.gpu_stage2 import ANSWER_TOKENS, MODELS, TURNS, Case, training_flops
from llava_ial.config import parse_config
from llava_ial.errors import UserError, run_command
from llava_ial.manifest import write_json

WHOLE, CHUNKED = "whole", "chunked"


@dataclass
class ChunkedConfig:
    """What is measured."""

    model: str = field(default="7b", metadata={"help": f"shapes: {', '.join(MODELS)}"})
    batch_size: int = field(
        default=16, metadata={"help": f"dialogues of a step, {TURNS * ANSWER_TOKENS} learned tokens each"}
    )
    chunk: int = field(default=128, metadata={"help": "rows whose logits exist at a time"})
    steps: int = field(default=3, metadata={"help": "steps that are counted, after one that is not"})
    repeats: int = field(default=3, metadata={"help": "turns of each way"})
    output: Path | None = field(default=None, metadata={"help": "JSON to write"})
    way: str = field(default="", metadata={"help": "measure this way alone; set by the parent process"})


def main() -> None:
    """Measures both ways, or one where the parent process says so."""
    (config,) = parse_config(ChunkedConfig, description=__doc__ or "")
    if config.model not in MODELS:
        raise UserError(f"--model {config.model}: allowed: {', '.join(MODELS)}")
    for name in ("batch_size", "chunk", "steps", "repeats"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: allowed: at least 1")
    if config.way:
        print(json.dumps(measure(config)))
        return
    runs: dict[str, list[dict[str, float]]] = {WHOLE: [], CHUNKED: []}
    for _ in range(config.repeats):
        for way, found in runs.items():
            found.append(run_way(config, way))
    results = summary(config, runs)
    if config.output:
        write_json(config.output, results)
    print(json.dumps(results, indent=2))


def summary(config: ChunkedConfig, runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of both ways, their ratio, and what of a step they are."""
    found = {way: {name: statistics.median(run[name] for run in of) for name in of[0]} for way, of in runs.items()}
    width, vocabulary = MODELS[config.model][5], MODELS[config.model][9]
    rows = config.batch_size * TURNS * ANSWER_TOKENS
    step = training_flops(Case(config.model, config.batch_size, False, False, False))
    return {
        "machine": f"{len(os.sched_getaffinity(0))} CPU cores", "threads": torch.get_num_threads(),
        "measured_on": datetime.now(UTC).date().isoformat(), "torch": torch.__version__,
        "learned_rows": rows, "width": width, "vocabulary": vocabulary, "chunk": config.chunk, "ways": found,
        "seconds_whole_to_chunked": found[WHOLE]["cpu_seconds"] / found[CHUNKED]["cpu_seconds"],
        "share_of_step": 2 * 2 * rows * width * vocabulary / step,
    }  # fmt: skip


def run_way(config: ChunkedConfig, way: str) -> dict[str, float]:
    """One turn in a process of its own."""
    given = {name: getattr(config, name) for name in ("model", "batch_size", "chunk", "steps")}
    options = [f"--{name}={value}" for name, value in given.items()]
    command = [sys.executable, "-m", "benchmarks.chunked_loss", *options, f"--way={way}"]
    found = run_fresh(way, command)
    print(way, found, file=sys.stderr)
    return found


def measure(config: ChunkedConfig) -> dict[str, float]:
    """Seconds of a step, and the memory that it takes above that of its inputs."""
    width, vocabulary = MODELS[config.model][5], MODELS[config.model][9]
    rows = config.batch_size * TURNS * ANSWER_TOKENS
    head = nn.Linear(width, vocabulary, bias=False).requires_grad_(False)
    hidden = torch.randn(rows, width, requires_grad=True)
    targets = torch.randint(vocabulary, (rows,))
    compute = whole_loss if config.way == WHOLE else chunked_loss
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for step in range(config.steps + 1):
        if step == 1:
            started = time.process_time()
        hidden.grad = None
        compute(head, hidden, targets, config.chunk)
    return {
        "cpu_seconds": (time.process_time() - started) / config.steps,
        "memory_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def whole_loss(head: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor, chunk: int) -> torch.Tensor:
    """Mean loss of all rows at once, and the gradient of ``hidden`` ``(N, D)``; ``chunk`` says nothing here."""
    loss = functional.cross_entropy(head(hidden), targets)
    loss.backward()
    return loss.detach()


def chunked_loss(head: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor, chunk: int) -> torch.Tensor:
    """The same, with the logits of ``chunk`` rows at a time: nothing is computed twice, as the head has no gradient."""
    total = torch.zeros(())
    gradients = []
    for rows, wanted in zip(hidden.detach().split(chunk), targets.split(chunk), strict=True):
        part = rows.requires_grad_()
        loss = functional.cross_entropy(head(part), wanted, reduction="sum") / len(targets)
        (gradient,) = torch.autograd.grad(loss, part)
        gradients.append(gradient)
        total += loss.detach()
    hidden.grad = torch.cat(gradients)
    return total


if __name__ == "__main__":
    run_command(main)
