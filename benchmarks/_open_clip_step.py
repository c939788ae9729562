"""open_clip's part of benchmarks/stage1.py, run by the python of an environment that has it; imports nothing of ours.

    python benchmarks/_open_clip_step.py --batch=BATCH.npz --steps=2

Its own training loop, ``open_clip_train.train.train_one_epoch``, over the same batch again and again.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import torch
from open_clip_train.train import train_one_epoch

MODEL = "ViT-B-16-quickgelu"  # OpenAI's activation, which the other side has too
WARM_STEPS = 1


class Batches:
    """The same batch for each step; notes when each was asked for."""

    def __init__(self, batch: tuple[torch.Tensor, torch.Tensor], steps: int) -> None:
        self.batch, self.num_batches, self.num_samples = batch, WARM_STEPS + steps, (WARM_STEPS + steps) * len(batch[0])
        self.asked: list[float] = []

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(self.num_batches):
            self.asked.append(time.perf_counter())
            yield self.batch
        self.asked.append(time.perf_counter())


def main() -> None:
    """Trains some steps and prints what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=Path, required=True, help="pixels and tokens, made by benchmarks/stage1.py")
    parser.add_argument("--steps", type=int, required=True, help="steps that are counted, after one that is not")
    given = parser.parse_args()
    with np.load(given.batch) as stored:
        batch = torch.from_numpy(stored["pixels"]), torch.from_numpy(stored["tokens"])
    torch.manual_seed(0)
    model = open_clip.create_model(MODEL, precision="fp32", output_dict=True)
    batches = Batches(batch, given.steps)
    data = {"train": SimpleNamespace(dataloader=batches, set_epoch=lambda epoch: None)}
    settings = SimpleNamespace(
        device="cpu", precision="fp32", distill=False, accum_freq=1, skip_scheduler=True, grad_clip_norm=1.0,
        horovod=False, rank=0, world_size=1, batch_size=len(batch[0]), log_every_n_steps=10**9, wandb=False,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.98), weight_decay=0.0)
    train_one_epoch(model, data, open_clip.ClipLoss(), 0, optimizer, None, None, None, settings)
    print(json.dumps({
        "seconds_a_step": (batches.asked[-1] - batches.asked[WARM_STEPS]) / given.steps,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "torch": torch.__version__, "open_clip": open_clip.__version__, "threads": torch.get_num_threads(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
