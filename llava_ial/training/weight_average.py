"""An exponential moving average of the weights, which is what is measured and published where it is asked for."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

ModelT = TypeVar("ModelT", bound=nn.Module)


class WeightAverage(Generic[ModelT]):
    """Follows a model's weights.

    Args:
        model: Copied; its present weights are the first average.
        decay: Share of the old average that a step keeps, once enough steps were made: the first steps keep
            ``(1 + step) / (10 + step)``, so that the start is soon forgotten.
    """

    def __init__(self, model: ModelT, decay: float) -> None:
        self.model = copy.deepcopy(model)
        self.model.requires_grad_(False).eval()
        self._decay = decay

    @torch.no_grad()
    def update(self, model: ModelT, step: int) -> None:
        """Takes in the weights after step ``step``, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        new = dict(model.named_parameters())
        for name, average in self.model.named_parameters():
            average.lerp_(new[name].detach().to(average.dtype), 1 - decay)
