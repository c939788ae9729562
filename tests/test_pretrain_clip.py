"""Pretraining of toy-clip: its cities, its augmentation, and a few steps through the real command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel, CLIPProcessor

from llava_ial.errors import UserError
from train.toy_base.augment import augment
from train.toy_base.cities import generate_cities


def test_a_demo_seed_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seed 7: base models are trained on seeds from 1000 on"):
        generate_cities(tmp_path, [1000, 7], photos=4, pixels=112)
    assert not list(tmp_path.iterdir())


def test_augmentation_repeats_with_its_generator_and_never_mirrors() -> None:
    pixels = torch.zeros(64, 3, 32, 32)
    pixels[..., 16:] = 1.0  # the right half is bright
    first = augment(pixels, torch.Generator().manual_seed(1), min_scale=0.9)
    assert torch.equal(first, augment(pixels, torch.Generator().manual_seed(1), min_scale=0.9))
    assert not torch.equal(first, augment(pixels, torch.Generator().manual_seed(2), min_scale=0.9))
    assert (first[..., 24:].mean(dim=(1, 2, 3)) > first[..., :8].mean(dim=(1, 2, 3))).all()
    assert 0 <= first.min() <= first.max() <= 1


@pytest.mark.slow
def test_a_few_steps_write_a_plain_clip_folder_and_repeat_bit_for_bit(tmp_path: Path) -> None:
    weights = []
    for name in ("a", "b"):
        command = [sys.executable, "-m", "train.toy_base.pretrain_clip", "--output", str(tmp_path / name)]
        command += ["--cities", str(tmp_path / "cities"), "--num_cities", "2", "--photos_per_city", "300"]
        command += ["--steps", "3", "--batch_size", "16", "--warmup_steps", "1", "--vision_layers", "2"]
        subprocess.run(command, check=True, capture_output=True, timeout=200)
        weights.append(CLIPModel.from_pretrained(tmp_path / name).state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    CLIPProcessor.from_pretrained(tmp_path / "a")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["city_seeds"] == [1000, 1001]
    assert set(manifest["held_out"]) == {"recall@1", "recall@5"}
