"""How far a pretraining has come, on disk, so that a stopped one goes on as if it had not stopped."""

import os
from pathlib import Path

import torch
from torch import nn


class Snapshot:
    """Model, optimiser, schedule and source of randomness of a run, in one file of its own.

    Args:
        path: The file; written under another name and then renamed.
        model, optimizer, schedule, generator: What is saved, and changed in place by ``load``.
    """

    def __init__(
        self,
        path: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        generator: torch.Generator,
    ) -> None:
        self._path = path
        self._parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
        self._generator = generator

    def save(self, step: int, order: torch.Tensor, log: list[dict[str, float]]) -> None:
        """Writes the state before step ``step``; ``order`` is what is left of the epoch."""
        state = {name: part.state_dict() for name, part in self._parts.items()}
        state |= {"generator": self._generator.get_state(), "step": step, "order": order, "log": log}
        temporary = self._path.with_name(self._path.name + ".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self._path)

    def load(self) -> tuple[int, torch.Tensor, list[dict[str, float]]]:
        """The step to go on with, the rest of its epoch and the log so far; a new run starts at 0."""
        if not self._path.is_file():
            return 0, torch.empty(0, dtype=torch.long), []
        state = torch.load(self._path, weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self._generator.set_state(state["generator"])
        return state["step"], state["order"], state["log"]
