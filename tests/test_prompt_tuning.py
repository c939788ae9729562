"""Prompt tuning as a command: measured, finished once, and two processes are one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_ial.errors import UserError
from llava_ial.manifest import file_hash, read_manifest
from tests.tiny_world import build_tiny_base_clip, build_tiny_dataset
from train import prompt_tuning

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompt_tuning")
    build_tiny_dataset(folder / "data")
    build_tiny_base_clip(folder / "base", folder / "data")
    return folder


def arguments(world: Path, output: Path, *more: str) -> list[str]:
    places = [f"--data={world / 'data'}", f"--base={world / 'base'}", f"--output={output}"]
    return [*places, "--cpu=true", "--num_workers=0", "--eval_split=train", "--batch_size=7", "--num_epochs=4", *more]


def run(monkeypatch: pytest.MonkeyPatch, *given: str) -> None:
    monkeypatch.setattr("sys.argv", ["prompt_tuning.py", *given])
    prompt_tuning.main()


@pytest.mark.parametrize("method", ["coop", "cocoop", "maple"])
def test_each_method_is_measured_and_not_trained_twice(world: Path, tmp_path: Path, monkeypatch, capsys, method: str):
    given = arguments(world, tmp_path / "out", f"--method={method}")
    run(monkeypatch, *given)
    manifest = read_manifest(tmp_path / "out", "clip_prompts")
    ranks = json.loads((tmp_path / "out" / "ranks.json").read_text())
    assert len(ranks) == manifest["metrics"]["train"]["num_photos"] == 8
    assert manifest["metrics"]["train"]["SSA@1"] == sum(piece == 1 for piece, _ in ranks.values()) / 8
    learnt = load_file(tmp_path / "out" / "prompts.safetensors")
    assert manifest["num_trained_weights"] == sum(tensor.numel() for tensor in learnt.values())
    written = file_hash(tmp_path / "out" / "prompts.safetensors")
    run(monkeypatch, *given)
    assert "already complete" in capsys.readouterr().out
    assert file_hash(tmp_path / "out" / "prompts.safetensors") == written
    with pytest.raises(UserError, match="holds another run"):
        run(monkeypatch, *given, "--seed=1")


def test_mistakes_are_named(world: Path, tmp_path: Path, monkeypatch):
    for option, why in (("--method=some", "coop, cocoop, maple"), ("--depth=0", "at least 1")):
        with pytest.raises(UserError, match=why):
            run(monkeypatch, *arguments(world, tmp_path / "out", option))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(world: Path, tmp_path: Path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "DS_"))}
    launcher = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
        "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0",
    ]  # fmt: skip
    for command, name, more in (([sys.executable], "one", []), (launcher, "two", ["--num_processes=2"])):
        done = subprocess.run(
            [*command, str(ROOT / "train" / "prompt_tuning.py"),
             *arguments(world, tmp_path / name, "--method=maple", "--class_chunk=3", *more)],
            cwd=ROOT, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=180,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_file(tmp_path / name / "prompts.safetensors") for name in ("one", "two"))
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-3, atol=1e-5, msg=name)
    ranks = [json.loads((tmp_path / name / "ranks.json").read_text()) for name in ("one", "two")]
    assert list(ranks[0]) == list(ranks[1])
