"""Randomness that a resumed run repeats: every draw is a function of seed, step and process."""

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, rank: int, chunk: int = 0) -> None:
    """Seeds what a chunk of a training step draws (dropout), so that resuming needs no generator's state."""
    torch.manual_seed(((seed * 1_000_003 + step) * 4_099 + rank) * 65_537 + chunk)
