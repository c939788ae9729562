"""Pretraining of toy-llava: a few steps of both halves through the real commands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

CLIP = Path(__file__).resolve().parents[1] / "train" / "toy_base" / "models" / "toy-clip"


def _run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"train.toy_base.{module}", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_few_steps_of_both_halves_write_a_plain_llava_folder(tmp_path: Path) -> None:
    cities = ["--cities", str(tmp_path / "cities")]
    first, last = tmp_path / "talk", tmp_path / "toy-llava"
    small = ["--num_cities", "2", "--talking_cities", "2", "--photos_per_city", "240", "--city_size", "small"]
    short = ["--scenes_per_city", "20", "--steps", "50", "--warmup_steps", "1"]
    made = _run(
        "pretrain_llava", "--clip", str(CLIP), "--output", str(first), *cities, *small, *short, "--batch_size=6"
    )
    assert made.returncode == 0, made.stderr
    second = ["--talk", str(first), "--output", str(last), *cities, *short, "--drills_per_city=20"]
    second += ["--scenes_per_step=2", "--talks_per_step=2", "--drills_per_step=4"]
    made = _run("pretrain_copying", *second)
    assert made.returncode == 0, made.stderr
    assert _run("pretrain_copying", *second).stdout.endswith("already complete\n")
    before, after = (LlavaForConditionalGeneration.from_pretrained(each).state_dict() for each in (first, last))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any("vision_tower" in name for name in changed)
    AutoProcessor.from_pretrained(last, backend="pil")
    manifest = json.loads((last / "manifest.json").read_text())
    assert set(manifest["held_out"]) == {"scene_loss", "scene_loss_of_another_photo", "answers_copied"}
    assert 0 <= manifest["held_out"]["answers_copied"] <= 1
    log = [json.loads(line) for line in (last / "train_log.jsonl").read_text().splitlines()]
    assert [set(entry) for entry in log if "step" in entry] == [
        {"step", "scene_loss", "talk_loss"}, {"step", "scene_loss", "talk_loss", "drill_loss"},
    ]  # fmt: skip
    assert "seeds 1000 to 1001" in (last / "README.md").read_text()
    refused = _run("pretrain_copying", "--talk", str(last), "--output", str(tmp_path / "x"), *cities)
    assert refused.returncode == 2
    assert "toy_llava" in refused.stderr.splitlines()[-1]
