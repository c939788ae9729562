"""Several processes that train as one: gathering with gradient, agreement between ranks, and traps of the launchers.

Every function works without a process group too, where it is the identity: a script needs no second path.
"""

import datetime
import gc
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from llava_ial.errors import UserError

ResultT = TypeVar("ResultT")
_LOCK_FREE_S = 0.1
_LONGEST_WORK = datetime.timedelta(days=7)


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if _is_distributed() else 1


def rank() -> int:
    """Index of this process, 0 on the main one."""
    return dist.get_rank() if _is_distributed() else 0


def is_main_process() -> bool:
    """True on the one process that writes files and prints."""
    return rank() == 0


def join_processes() -> None:
    """Joins the processes of a launcher that work side by side and train nothing together; alone it does nothing.

    They exchange results through the CPU and may wait for each other for long: one may have much more to do.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not _is_distributed():
        dist.init_process_group("gloo", timeout=_LONGEST_WORK)


def refuse_wrong_world_size(expected: int, joined: int | None = None) -> None:
    """Stops unless as many processes train together as the configuration says.

    Launchers start fewer than asked without a word: ``accelerate launch --cpu --num_processes 2`` starts one. And
    without a GPU, ``Accelerator(cpu=False)`` opens a process group of both and yet averages no gradient.

    Args:
        expected: What the configuration says.
        joined: What the training framework works with, as ``Accelerator.num_processes``; None: the process group.

    Raises:
        UserError: With the launch line that works.
    """
    if expected == world_size() and joined in (expected, None):
        return
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started == expected:
        why = (
            f"{started} processes were started but train apart; on a machine without a GPU add --cpu true "
            "(stage 2: --use_cpu true)"
        )
    else:
        why = (
            f"{started} process(es) were started; launch with 'accelerate launch --multi_gpu --num_processes {expected}"
            " --num_machines 1 ...', also on the CPU: 'accelerate launch --cpu' starts one process only; "
            f"or set --num_processes {started}"
        )
    raise UserError(f"--num_processes {expected}: {why}")


def to_number(tensor: torch.Tensor) -> float:
    """The value of a tensor of one element; where FSDP spreads it, all processes call this together."""
    tensor = tensor.detach()
    return float(tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor)


def run_on_main_process(function: Callable[[], ResultT]) -> ResultT:
    """Runs ``function`` on the main process and hands its result to all; errors as in ``run_on_every_process``."""
    result = run_on_every_process(lambda: function() if is_main_process() else None)
    everyone: list[ResultT] = gather_objects(result)
    return everyone[0]


def run_on_every_process(function: Callable[[], ResultT]) -> ResultT:
    """Runs ``function`` on each process.

    A ``UserError`` on any ends every process with exit code 2, and only the main one prints it: none is left waiting.
    """
    result: ResultT | None = None
    error: UserError | None = None
    try:
        result = function()
    except UserError as raised:
        error = raised
    messages = [message for message in gather_objects(str(error) if error else None) if message is not None]
    if messages:
        is_main = is_main_process()
        shut_down()
        if is_main:
            raise UserError(messages[0]) from error
        sys.exit(2)
    return cast(ResultT, result)


def wait_for_everyone() -> None:
    """Returns when every process has come here."""
    if _is_distributed():
        dist.barrier()


def shut_down() -> None:
    """Leaves the process group; the last distributed call of a program, made after its DDP wrappers were dropped.

    A gloo thread needs the interpreter's lock to let go of the tensors of its last call. If a DDP wrapper is the last
    to hold the group, ending it joins these threads with the lock in hand: a hang now and then. At the interpreter's
    end, the same thread aborts the process. So wrappers in reference cycles are collected first, and the threads get
    the lock while this one sleeps, for callers that end on an error and still hold a wrapper.
    """
    if _is_distributed():
        dist.barrier()
        gc.collect()
        time.sleep(_LOCK_FREE_S)
        dist.destroy_process_group()


def any_rank(*flags: bool, device: torch.device | None = None) -> list[bool]:
    """For each flag: True if it is set on any process, so that all take the same branch (one message for all flags)."""
    if not _is_distributed():
        return list(flags)
    shared = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in shared.tolist()]


def gather_objects(value: Any) -> list[Any]:
    """A small Python object of every rank, in rank order."""
    if not _is_distributed():
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """Rows of all ranks in rank order, differentiable.

    A plain ``all_gather`` cuts the graph: the loss is right and the gradient too small. Here each rank receives, for
    its own rows, the sum of the gradients of all ranks. So when every rank computes the loss of the whole batch and
    the wrapper averages parameter gradients over ranks (DDP), the result is the gradient of one process on the whole
    batch: the factor ``world_size`` of the sum and the one of the mean cancel. Ranks may hold different numbers of
    rows.

    Args:
        tensor: ``(N_rank, ...)``; the same shape behind the first dimension everywhere.

    Returns:
        ``(sum of N_rank, ...)``.
    """
    if not _is_distributed():
        return tensor
    gathered: torch.Tensor = _Gather.apply(tensor)  # type: ignore[no-untyped-call]
    return gathered


def own_rows(tensor: torch.Tensor) -> slice:
    """Where the rows of this process stand among the gathered ones."""
    counts = gather_with_gradient(torch.tensor([len(tensor)], device=tensor.device)).tolist()
    start = sum(counts[: rank()])
    return slice(start, start + len(tensor))


def sum_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over all processes, without gradient."""
    if not _is_distributed():
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        own = torch.tensor([len(tensor)], device=tensor.device)
        sizes = [torch.zeros_like(own) for _ in range(world_size())]
        dist.all_gather(sizes, own)
        ctx.sizes = [int(size) for size in sizes]
        # Collectives want one shape on all ranks: short ones are padded, and the padding never leaves this function.
        padded = tensor.new_zeros((max(ctx.sizes), *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in ctx.sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, ctx.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        start = sum(ctx.sizes[: rank()])
        return total[start : start + ctx.sizes[rank()]]


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
