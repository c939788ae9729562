"""The order of an epoch in which dialogues of similar length make a batch: less padding to compute."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class ByLength(Sampler[int]):
    """Rows in random groups of similar length; the order is a function of seed and epoch, so a resumed run repeats it.

    Args:
        batch_size: Rows of a batch, micro-batches together.
        lengths: Tokens of each row.
        seed: Of the draw.
    """

    def __init__(self, batch_size: int, lengths: Sequence[int], *, seed: int) -> None:
        self._batch_size, self._lengths, self._seed, self._epoch = batch_size, list(lengths), seed, 0

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 100_003 + self._epoch)
        indices: list[int] = get_length_grouped_indices(self._lengths, self._batch_size, generator=generator)
        return iter(indices)

    def set_epoch(self, epoch: int) -> None:
        """Called by the loader before each epoch."""
        self._epoch = epoch
