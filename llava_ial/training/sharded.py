"""Weights that FSDP2 spreads over processes: made ready for it, and gathered to be measured, written and continued.

A process then holds a share of every weight, its gradient and its moments. What looks at the model as a whole, to
measure or to write it, is given a copy in one piece instead; for that, all processes gather together.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

_WHOLE = StateDictOptions(full_state_dict=True)


def make_shardable(model: nn.Module) -> None:
    """Makes single numbers, such as CLIP's temperature, vectors of one: FSDP2 cannot spread a number."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 0:
                vector = nn.Parameter(parameter.detach().reshape(1), requires_grad=parameter.requires_grad)
                setattr(module, name, vector)


def load_weights(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Loads all weights, strictly; numbers into vectors of one and the other way round, too."""
    own = model.state_dict()
    model.load_state_dict({name: t.reshape(own[name].shape) if name in own else t for name, t in state.items()})


def gather_weights(sharded: nn.Module, whole: nn.Module) -> None:
    """Copies the weights into the same model in one piece; all processes call it."""
    state: dict[str, Any] = get_model_state_dict(sharded, options=_WHOLE)
    load_weights(whole, state)


def gather_optimizer(sharded: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """State of the optimiser by the weights' names; all processes call it."""
    state: dict[str, Any] = get_optimizer_state_dict(sharded, optimizer, options=_WHOLE)
    return state


def spread_optimizer(sharded: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Gives each process its share of what ``gather_optimizer`` found."""
    set_optimizer_state_dict(sharded, optimizer, dict(state), options=_WHOLE)
