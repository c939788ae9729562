"""What DeepSpeed needs before it starts, and dies far from the reason without."""

import os
import shutil
import socket

import torch
from torch import nn
from transformers import TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from llava_ial.errors import UserError

_COMPILERS = ("c++", "g++", "clang++")


def be_one_process_without_launcher() -> None:
    """Says to DeepSpeed what its launcher would; started by plain ``python`` it looks for MPI and dies without it."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def refuse_missing_compiler(*, needs_cpu: bool) -> None:
    """DeepSpeed compiles a part at its first start on the CPU and, without a compiler, dies far from the reason.

    Raises:
        UserError: No C++ compiler or no ninja, with the package to install.
    """
    if not needs_cpu:
        return
    for names, package in ((_COMPILERS, "g++"), (("ninja",), "ninja-build")):
        if not any(shutil.which(name) for name in names):
            raise UserError(
                f"--deepspeed needs {package} on the CPU: apt-get install {package} (Debian, Ubuntu), "
                "or leave --deepspeed out"
            )


def spread_weights(model: nn.Module, arguments: TrainingArguments) -> None:
    """Under ZeRO-3 leaves each process its part of a model that every process holds whole in main memory.

    Parameter by parameter: DeepSpeed itself would move all of the model to each GPU before it spreads it, and what is
    spread because it does not fit there would not fit.
    """
    if not is_deepspeed_zero3_enabled():
        return
    import deepspeed  # takes seconds, and runs without it need none of it

    if arguments.bf16:  # to which DeepSpeed casts whole models, too
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    deepspeed.zero.Init(module=model, config_dict_or_path=arguments.hf_deepspeed_config.config)
