"""Starting stage 2 in tests: its options for the tiny world, in this process or through a launcher."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from llava_ial.training import llava_trainer
from tests.tiny_models import TinyFolders
from train import merge, stage2_llava

ROOT = Path(__file__).resolve().parents[1]


def arguments_of(folders: TinyFolders, output: Path, **options: object) -> list[str]:
    settings: dict[str, object] = {
        "data": folders.data, "base": folders.llava.parent / "base_llava", "clip": folders.clip, "output_dir": output,
        "use_cpu": True, "lora_rank": 2, "lora_alpha": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
        "projector_learning_rate": 1e-3, "max_steps": 4, "save_steps": 2, "logging_steps": 1, "disable_tqdm": True,
        "seed": 0, "dataloader_num_workers": 0,
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in (settings | options).items() if value is not None]


def train_here(folders: TinyFolders, output: Path, **options: object) -> Path:
    """Runs the command in this process and returns its output folder."""
    with patch.object(sys, "argv", ["stage2_llava.py", *arguments_of(folders, output, **options)]):
        stage2_llava.main()
    return output


def merge_here(model: Path, output: Path, **options: object) -> Path:
    """Runs ``train.merge`` in this process and returns its output folder."""
    arguments = [f"--{name}={value}" for name, value in ({"model": model, "output": output} | options).items()]
    with patch.object(sys, "argv", ["merge.py", *arguments]):
        merge.main()
    return output


def start(command: list[str]) -> subprocess.Popen[str]:
    """Starts a command in the root of the repository, on the CPU, as if no launcher had started us."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    environment = {**kept, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a run has saved."""
    return load_file(folder / "adapter_model.safetensors")


def assert_same_weights(ours: Path, theirs: Path) -> None:
    """Equal bit by bit."""
    a, b = adapter(ours), adapter(theirs)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int, train: Callable[[], object]) -> None:
    """Trains until the power fails right after a step."""

    def crash() -> None:
        raise RuntimeError("power failure")

    with monkeypatch.context() as patch:
        interrupt(patch, step, crash)
        with pytest.raises(RuntimeError, match="power failure"):
            train()


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Does something right after a step of the next training."""

    class _Interruption(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs) -> None:
            if state.global_step == step:
                action()

    build = llava_trainer.LlavaTrainer.__init__

    def patched(self, run, stop_request) -> None:
        build(self, run, stop_request)
        self.add_callback(_Interruption())

    monkeypatch.setattr(llava_trainer.LlavaTrainer, "__init__", patched)
