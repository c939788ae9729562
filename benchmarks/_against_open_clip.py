"""Stage 1's training step against open_clip's, the same ViT-B/16, photos, texts, batch and threads; for stage1.py.

open_clip needs torchvision, of which there is none beside a CPU build of torch. So it gets an environment of its own
with the index's torch, made for CUDA, which runs on the CPU too. Every measurement is a fresh process; the two sides
take turns, and medians are compared.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks._fresh_process import run_fresh
from benchmarks.gpu_stage1 import MODELS, build_model
from llava_ial.errors import UserError
from llava_ial.models.losses import Truths
from llava_ial.training.clip_settings import ClipSettings
from llava_ial.training.clip_step import batch_losses, model_inputs
from llava_ial.training.optim import build_optimizer

PEER = Path(__file__).with_name("_open_clip_step.py")
PACKAGES = ("torch", "torchvision", "open_clip_torch")
# An address of the paper's data in CLIP's tokens; open_clip pads each text to the context.
ADDRESS_TOKENS, CONTEXT, END_MARK = 32, 77, 49_407
WARM_STEPS = 1
# The work of one of open_clip's losses: photos against one text each.
SETTINGS = ClipSettings(Path(), "", Path(), caption_weight=0.0, geography_weight=0.0)
OPEN_CLIP, SAME_TOKENS, OWN_TOKENS = "open_clip", "ours, texts padded to 77", "ours, texts as stage 1 pads them"


def make_environment(folder: Path) -> Path:
    """The python of an environment with open_clip, made where it is missing: some gigabytes are fetched.

    Raises:
        UserError: It could not be made.
    """
    python = folder / "bin" / "python"
    made = folder / "open_clip_is_installed"
    if made.exists():
        return python
    print(f"{folder}: installing {', '.join(PACKAGES)}; this fetches some gigabytes", file=sys.stderr)
    commands = [[sys.executable, "-m", "venv", str(folder)], [str(python), "-m", "pip", "install", *PACKAGES]]
    for command in commands:
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"--open_clip {folder}: '{' '.join(command)}' failed; mend that, or leave the option out")
    made.touch()
    return python


def measure_against(python: Path, model: str, *, batch_size: int, steps: int, turns: int) -> dict[str, Any]:
    """Images a second of both, and how many times open_clip's.

    Args:
        python: Of ``make_environment``.
        model: Name in ``benchmarks.gpu_stage1.MODELS``.
        batch_size: Photos of a step.
        steps: Counted in each turn.
        turns: Of each side.
    """
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        batch = Path(name) / "batch.npz"
        np.savez(batch, **draw_batch(model, batch_size))
        common = [f"--batch={batch}", f"--steps={steps}"]
        ours = [sys.executable, __file__, *common, f"--model={model}"]
        parts = {
            SAME_TOKENS: [*ours, f"--tokens={CONTEXT}"],
            OPEN_CLIP: [str(python), str(PEER), *common],
            OWN_TOKENS: [*ours, f"--tokens={ADDRESS_TOKENS}"],
        }
        for _ in range(turns):
            for part, command in parts.items():
                runs.setdefault(part, []).append(_run(command))
    times = {part: [run["seconds_a_step"] for run in found] for part, found in runs.items()}
    seconds = {part: statistics.median(found) for part, found in times.items()}
    return {
        "batch_size": batch_size, "steps": steps,
        "images_per_second": {part: batch_size / value for part, value in seconds.items()},
        # Where the turns of one side differ by more than the sides, the machine was busy and the ratios say nothing.
        "turns": {part: [round(batch_size / value, 3) for value in found] for part, found in times.items()},
        "times_open_clip": {part: seconds[OPEN_CLIP] / value for part, value in seconds.items() if part != OPEN_CLIP},
        "peak_memory_mb": {part: max(run["peak_memory_mb"] for run in found) for part, found in runs.items()},
        "threads": {part: found[0]["threads"] for part, found in runs.items()},
        "torch": {part: found[0]["torch"] for part, found in runs.items()},
        "open_clip": runs[OPEN_CLIP][0].get("open_clip"),
    }  # fmt: skip


def draw_batch(model: str, batch_size: int) -> dict[str, Any]:
    """``pixels (B, 3, H, W)`` and ``tokens (B, 77)``, zeros behind each text's end mark."""
    draw, side = np.random.default_rng(0), MODELS[model][4]
    tokens = np.zeros((batch_size, CONTEXT), dtype=np.int64)
    tokens[:, :ADDRESS_TOKENS] = draw.integers(5, 40_000, (batch_size, ADDRESS_TOKENS))
    tokens[:, ADDRESS_TOKENS - 1] = END_MARK
    return {"pixels": draw.standard_normal((batch_size, 3, side, side), dtype=np.float32), "tokens": tokens}


def main(argv: Sequence[str] | None = None) -> None:
    """Our side: some steps of stage 1, printed as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=Path, required=True, help="of draw_batch")
    parser.add_argument("--steps", type=int, required=True, help="steps that are counted, after one that is not")
    parser.add_argument("--model", required=True, help="name of a size")
    parser.add_argument("--tokens", type=int, required=True, help="that texts are padded to")
    given = parser.parse_args(argv)
    with np.load(given.batch) as stored:
        pixels, tokens = torch.from_numpy(stored["pixels"]), torch.from_numpy(stored["tokens"][:, : given.tokens])
    torch.manual_seed(0)
    model, each = build_model(given.model), torch.arange(len(pixels))
    optimizer = build_optimizer(model, learning_rate=1e-6, weight_decay=0.0)
    mask = (torch.arange(given.tokens) < ADDRESS_TOKENS).long().expand(len(pixels), -1)
    batch = {
        "pixel_values": pixels, "address_input_ids": tokens, "address_attention_mask": mask, "address_row": each,
        **vars(Truths(each, each, each, torch.rand(len(pixels), 2), each)),
    }  # fmt: skip
    ends = []
    for _ in range(WARM_STEPS + given.steps):
        batch_losses(model(**model_inputs(batch)), batch, SETTINGS)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        model.clamp_logit_scale()
        ends.append(time.perf_counter())
    print(json.dumps({
        "seconds_a_step": (ends[-1] - ends[WARM_STEPS - 1]) / given.steps,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "torch": torch.__version__, "threads": torch.get_num_threads(),
    }))  # fmt: skip


def _run(command: Sequence[str]) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return run_fresh(" ".join(command[:2]), command, environment)


if __name__ == "__main__":
    main()
