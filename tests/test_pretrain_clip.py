"""Pretraining of toy-clip: its cities, its augmentation, and a few steps through the real command."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPProcessor

from llava_ial.errors import UserError
from train.toy_base.augment import augment
from train.toy_base.cities import generate_cities
from train.toy_base.clip import build_clip_config, train_clip_tokenizer
from train.toy_base.mimetic import initialise_mimetic
from train.toy_base.names import NameSource
from train.toy_base.snapshot import Snapshot


def test_a_demo_seed_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seed 7: base models are trained on seeds from 1000 on"):
        generate_cities(tmp_path, [1000, 7], photos=4, pixels=112, size="small")
    assert not list(tmp_path.iterdir())


def test_augmentation_repeats_with_its_generator_and_never_mirrors() -> None:
    pixels = torch.zeros(64, 3, 32, 32)
    pixels[..., 16:] = 1.0  # the right half is bright
    first = augment(pixels, torch.Generator().manual_seed(1), min_scale=0.9)
    assert torch.equal(first, augment(pixels, torch.Generator().manual_seed(1), min_scale=0.9))
    assert not torch.equal(first, augment(pixels, torch.Generator().manual_seed(2), min_scale=0.9))
    assert (first[..., 24:].mean(dim=(1, 2, 3)) > first[..., :8].mean(dim=(1, 2, 3))).all()
    assert 0 <= first.min() <= first.max() <= 1


def test_mimetic_attention_starts_near_its_target_and_leaves_the_rest() -> None:
    config = build_clip_config(
        train_clip_tokenizer(["a house"], vocab_size=600),
        image_size=32, patch_size=8, vision_width=64, vision_layers=1, text_width=32, text_layers=1, embed_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    tower = CLIPModel(config).vision_model
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    initialise_mimetic(tower, torch.Generator().manual_seed(1))
    changed = {name for name, tensor in tower.state_dict().items() if not torch.equal(tensor, before[name])}
    weights = {f"encoder.layers.0.self_attn.{part}.weight" for part in ("q_proj", "k_proj", "v_proj", "out_proj")}
    assert changed == weights | {"embeddings.position_embedding.weight"}
    attention = tower.encoder.layers[0].self_attn
    mean_of_diagonal = (attention.out_proj.weight @ attention.v_proj.weight).diagonal().mean().item()
    assert mean_of_diagonal == pytest.approx(-0.4, abs=0.1)
    # Rank 32 of 64 for each head: the strongest half of the spectrum is kept.
    assert (attention.q_proj.weight[:32].T @ attention.k_proj.weight[:32]).diagonal().mean() > 0.3
    positions = tower.embeddings.position_embedding.weight[1:]
    near, far = positions[0] @ positions[1], positions[0] @ positions[-1]
    assert near > far


def test_a_snapshot_brings_everything_back(tmp_path: Path) -> None:
    def parts() -> tuple[torch.nn.Linear, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        model = torch.nn.Linear(3, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        return model, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer)

    def steps(snapshot_parts: tuple[Any, ...], generator: torch.Generator, count: int) -> None:
        model, optimizer, schedule = snapshot_parts
        for _ in range(count):
            model(torch.randn(4, 3, generator=generator)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()

    whole, generator = parts(), torch.Generator().manual_seed(5)
    steps(whole, generator, 3)
    snapshot = Snapshot(tmp_path / "snapshot.pt", *whole, generator)
    snapshot.save(3, torch.tensor([4, 2]), [{"step": 3.0}])
    steps(whole, generator, 4)
    again, fresh = parts(), torch.Generator()
    step, order, log = Snapshot(tmp_path / "snapshot.pt", *again, fresh).load()
    assert (step, order.tolist(), log) == (3, [4, 2], [{"step": 3.0}])
    steps(again, fresh, 4)
    assert torch.equal(whole[0].weight, again[0].weight)
    assert [path.name for path in tmp_path.iterdir()] == ["snapshot.pt"]


@pytest.mark.slow
def test_a_few_steps_of_both_halves_write_a_plain_clip_folder_and_repeat_bit_for_bit(tmp_path: Path) -> None:
    cities = ["--cities", str(tmp_path / "cities")]
    small = ["--num_cities", "3", "--photos_per_city", "300", "--city_size", "small", "--vision_layers", "2"]
    short = ["--steps", "3", "--batch_size", "16", "--warmup_steps", "1"]
    weights = []
    for name in ("a", "b"):
        scenes, output = tmp_path / f"scenes-{name}", tmp_path / name
        _run("pretrain_clip", "--output", str(scenes), *cities, *small, *short)
        _run("pretrain_names", "--scenes", str(scenes), "--output", str(output), *cities, *short)
        assert _run("pretrain_names", "--scenes", str(scenes), "--output", str(output), *cities, *short).endswith(
            "already complete\n"
        )
        weights.append(CLIPModel.from_pretrained(output).state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    CLIPProcessor.from_pretrained(tmp_path / "a")
    first = json.loads((tmp_path / "scenes-a" / "manifest.json").read_text())
    assert first["city_seeds"] == [1000, 1001, 1002]
    assert set(first["held_out"]) == {"recall@1", "recall@5"}
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert set(manifest["held_out"]) == {"recall@1", "recall@5", "mean_cosine_of_addresses", "other_wording_is_nearest"}
    changed = {
        name
        for name, weight in CLIPModel.from_pretrained(tmp_path / "scenes-a").state_dict().items()
        if not torch.equal(weight, weights[0][name])
    }
    assert changed
    assert all(name.startswith("text_") for name in changed)
    assert "seeds 1000 to 1002" in (tmp_path / "a" / "README.md").read_text()
    assert not (tmp_path / "a" / "snapshot.pt").exists()


def _run(module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", f"train.toy_base.{module}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=200).stdout


def test_addresses_are_different_share_names_and_some_are_made_up() -> None:
    source = NameSource([f"Amber{i} Street" for i in range(20)], ["Northside", "Southside", "Eastside", "Westside"])
    draw = np.random.default_rng(0)
    made_up = 0
    for _ in range(20):
        addresses = source.addresses(100, draw)
        assert len(set(addresses)) == 100
        streets = {address.street for address in addresses}
        assert len(streets) <= 10
        made_up += not streets & set(source.streets)
    assert 0 < made_up < 20
