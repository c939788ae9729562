"""Running stage 1 in tests: its real ``main()`` on eight drawn photos and a tiny CLIP, stopped at a step or whole."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_ial.manifest import file_hash
from tests.tiny_world import build_tiny_base_clip, build_tiny_dataset
from train import stage1_clip

RESULT_FILES = (
    "model.safetensors",
    "gallery_embeddings.safetensors",
    "metrics.json",
    "train_log.jsonl",
    "manifest.json",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data`` and ``base``; only read by the tests."""
    folder = tmp_path_factory.mktemp("stage1")
    build_tiny_dataset(folder / "data")
    build_tiny_base_clip(folder / "base", folder / "data")
    return folder


@pytest.fixture
def train(world: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs the command with a few settings; what is given wins."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")

    def run(output: Path, **options: Any) -> Path:
        settings = {
            "data": world / "data", "base": world / "base", "output": output, "cpu": True, "num_workers": 0,
            "num_epochs": 8, "batch_size": 4, "learning_rate": 1e-3, "log_every": 1, "eval_splits": "train",
            "checkpoint_every": 0, "min_crop_area": 0.7, **options,
        }  # fmt: skip
        arguments = [f"--{name}={value}" for name, value in settings.items() if value is not None]
        monkeypatch.setattr("sys.argv", ["stage1_clip.py", *arguments])
        stage1_clip.main()
        return output

    return run


def same_results(a: Path, b: Path) -> None:
    for name in RESULT_FILES:
        assert file_hash(a / name) == file_hash(b / name), name


class Interrupter:
    """Stands in for a function, the progress line for one, and does something at one of its calls.

    Args:
        step: Which call.
        action: What is done then, before what it stands for.
        stands_for: Called each time.
    """

    def __init__(self, step: int, action: Callable[[], None], stands_for: Callable[..., Any] | None = None) -> None:
        self.step, self.action, self.stands_for, self.num_calls = step, action, stands_for, 0

    def __call__(self, *arguments: Any, **options: Any) -> None:
        self.num_calls += 1
        if self.num_calls == self.step:
            self.action()
        if self.stands_for:
            self.stands_for(*arguments, **options)


def interrupt() -> None:
    raise KeyboardInterrupt


def lines(output: Path, key: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (output / "train_log.jsonl").read_text().splitlines()]
    return [entry for entry in found if key in entry]


def broken_photo(folder: Path) -> None:
    photo = sorted((folder / "data_photos" / "train").iterdir())[1]
    photo.write_bytes(photo.read_bytes()[:100])
