"""Trainings that a comparison starts: commands with a configuration file, run to their end once, ended with it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from llava_ial.config import parse_config
from llava_ial.errors import UserError
from llava_ial.locating import Way
from llava_ial.manifest import read_manifest
from llava_ial.training.clip_settings import ClipSettings
from tests.tiny_world import build_tiny_base_clip, build_tiny_dataset
from train.training_runs import Command, TrainingRuns, read_stage1_options

ROOT = Path(__file__).resolve().parents[1]


def test_views_and_memory_are_no_part_of_a_training() -> None:
    plain, _ = read_stage1_options(["--positives=multi"], "a")
    training, way = read_stage1_options(["--positives=multi", "--views=3", "--memory_weight=2"], "b")
    assert training == plain
    assert way == Way("3", 2.0)


def training(folder: Path, **options: Any) -> ClipSettings:
    build_tiny_dataset(folder / "data")
    build_tiny_base_clip(folder / "base", folder / "data")
    return ClipSettings(
        folder / "data", str(folder / "base"), folder / "out" / "run", cpu=True, num_workers=0, batch_size=4,
        learning_rate=1e-3, checkpoint_every=0, **options,
    )  # fmt: skip


@pytest.mark.slow
def test_a_training_is_a_command_with_a_config_and_a_cost(tmp_path: Path) -> None:
    settings = training(tmp_path, num_epochs=1)
    with TrainingRuns(parallel=2) as runs:
        cost = runs.train(settings)
    assert cost["seconds"] > 0 < cost["peak_bytes"]
    read_manifest(settings.output, "address_clip")
    (again,) = parse_config(ClipSettings, description="", argv=[f"--config={tmp_path / 'out' / 'run.yaml'}"])
    assert again == settings
    with TrainingRuns() as runs:
        assert runs.train(settings) == cost  # finished, and not started again
        broken = training(tmp_path / "b", num_epochs=1)
        (tmp_path / "b" / "base" / "config.json").unlink()
        with pytest.raises(UserError, match=r"run: train/stage1_clip.py ended with 2: error: base model.*run\.log"):
            runs.train(broken)


@pytest.mark.slow
def test_a_comparison_that_is_ended_ends_its_training(tmp_path: Path) -> None:
    settings = training(tmp_path, num_epochs=2000, log_every=1)
    log = settings.output / "train_log.jsonl"
    with TrainingRuns() as runs:
        future = runs.start(settings)
        while not (log.exists() and log.read_text()):
            assert not future.done()
            time.sleep(0.1)
        (process,) = runs._running
    assert process.returncode == 0  # it saved and ended
    assert list((settings.output / "checkpoints").iterdir())
    with pytest.raises(UserError, match="was stopped; the same command continues it"):
        future.result()
    assert json.loads((tmp_path / "out" / "run.cost.json").read_text())["seconds"] > 0


def test_nothing_is_started_once_it_is_over(tmp_path: Path) -> None:
    """A chain between two commands when another one fails, and a process that is started at that very moment."""
    marks, release = [tmp_path / name for name in "ab"], threading.Event()
    with TrainingRuns() as runs:

        def first(*_: object) -> tuple[int, float, float]:
            (tmp_path / "a" / "manifest.json").parent.mkdir()
            (tmp_path / "a" / "manifest.json").write_text("{}")
            release.wait(10)
            return 0, 1.0, 1.0

        runs._run = first  # type: ignore[method-assign]
        future = runs.start_chain([Command(("-m", "x"), mark) for mark in marks])
        while not marks[0].exists():
            time.sleep(0.01)
        runs._is_over = True
        release.set()
        with pytest.raises(UserError, match=r"b: -m x was not started; the same command continues"):
            future.result()
    del runs._run  # type: ignore[method-assign]
    code, seconds, _ = runs._run(["-c", "import time; time.sleep(60)"], tmp_path / "log")
    assert code == -signal.SIGTERM
    assert seconds < 30


@pytest.mark.slow
def test_sigterm_ends_the_command(tmp_path: Path) -> None:
    code = "from train.training_runs import end_on_sigterm; import time; end_on_sigterm(); print(1, flush=True)"
    code += "; time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in error
