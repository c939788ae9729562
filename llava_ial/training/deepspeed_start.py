"""What DeepSpeed needs before it starts, and dies far from the reason without."""

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn
from torch.utils.cpp_extension import get_default_build_root
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


def load_cpu_communication() -> None:
    """Compiles, or finds compiled, what DeepSpeed needs for processes on CPUs; its own loading then finds it loaded.

    torch lets one process at a time compile or load, by a file which a killed process leaves behind and for which all
    later ones wait without an end or a word. Here a lock that ends with its process lets one at a time in, to a folder
    in which nobody else compiles; what torch's file says there is of the dead.

    Raises:
        UserError: No C++ compiler or no ninja, with the package to install.
    """
    _refuse_missing_compiler()
    # Its import takes seconds, and runs without it need none of it.
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    builder = ShareMemCommBuilder()
    if not builder.is_compatible(verbose=False):  # DeepSpeed does without it then
        return
    folder = _compiled_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{builder.name}.lock"), _extensions_in(folder):
        (folder / builder.name / "lock").unlink(missing_ok=True)
        if not (folder / builder.name / f"{builder.name}.so").exists():
            print("compiling what DeepSpeed needs on CPUs, about a minute", file=sys.stderr, flush=True)
        builder.load(verbose=False)


def _compiled_folder() -> Path:
    """In the virtual environment, whose torch it is compiled against; where that is read-only, in torch's folder."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    if root is None:
        is_ours = os.access(sys.prefix, os.W_OK)
        root = os.path.join(sys.prefix, "torch_extensions") if is_ours else get_default_build_root()
    return Path(root) / "llava_ial"


@contextmanager
def _extensions_in(folder: Path) -> Iterator[None]:
    """Meanwhile torch compiles into, and loads from, that folder."""
    name = "TORCH_EXTENSIONS_DIR"
    before = os.environ.get(name)
    os.environ[name] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _refuse_missing_compiler() -> None:
    """Without a compiler DeepSpeed dies far from the reason."""
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
