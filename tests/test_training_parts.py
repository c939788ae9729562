"""What both stages share: groups, schedule, log, checkpoint folders, stopping, and the options of stage 1."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from llava_ial.errors import UserError
from llava_ial.manifest import MANIFEST
from llava_ial.training.checkpoints import (
    checkpoint_folder,
    checkpoint_step,
    complete_checkpoints,
    new_folder,
    remove_old_checkpoints,
)
from llava_ial.training.clip_folder import base_reference
from llava_ial.training.clip_settings import ClipSettings
from llava_ial.training.interruption import StopRequest
from llava_ial.training.optim import RateFactors, build_optimizer, learning_rate_at, rate_factor, set_learning_rate
from llava_ial.training.seeds import seed_everything, seed_step
from llava_ial.training.train_log import TrainLog
from llava_ial.training.weight_average import WeightAverage


def test_matrices_decay_and_vectors_do_not():
    model = nn.ModuleDict({"linear": nn.Linear(3, 2), "norm": nn.LayerNorm(2)})
    model["linear"].weight.requires_grad_(True)
    frozen = nn.Linear(2, 2).requires_grad_(False)
    model["frozen"] = frozen
    decayed, plain = build_optimizer(model, learning_rate=1.0, weight_decay=0.1).param_groups
    assert [p.shape for p in decayed["params"]] == [(2, 3)]
    assert [p.ndim for p in plain["params"]] == [1, 1, 1]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


def test_the_learning_rate_rises_and_falls_to_its_last_value():
    rates = [learning_rate_at(s, num_steps=101, warmup_steps=10, peak=1.0, final=0.1) for s in range(101)]
    assert rates[:2] == [0.1, 0.2]
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.55)  # halfway down the cosine
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate_at(0, num_steps=1, warmup_steps=0, peak=2.0, final=0.0) == 2.0


def test_a_step_draws_the_same_whatever_came_before():
    seed_everything(1)
    seed_step(1, 17, 0)
    first = torch.rand(3)
    torch.rand(100)
    seed_step(1, 17, 0)
    assert torch.equal(first, torch.rand(3))
    seed_step(1, 17, 1)
    assert not torch.equal(first, torch.rand(3))


def test_the_log_of_a_resumed_run_goes_on_behind_its_checkpoint(tmp_path: Path):
    path = tmp_path / "train_log.jsonl"
    log = TrainLog(path)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1.0 / step})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # cut off by a crash
    resumed = TrainLog(path, last_step=2)
    resumed.write(3, {"loss": 9.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert json.loads(path.read_text().splitlines()[-1])["loss"] == 9.0
    TrainLog(tmp_path / "other.jsonl", is_active=False).write(1, {})
    assert not (tmp_path / "other.jsonl").exists()
    TrainLog(path)  # a new run starts anew
    assert path.read_text() == ""


def test_a_folder_is_whole_or_absent(tmp_path: Path):
    def fill_and_fail(folder: Path) -> None:
        with new_folder(folder) as temporary:
            (temporary / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_and_fail(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with new_folder(tmp_path / "a") as temporary:
        (temporary / "whole").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["whole"]


def test_only_complete_checkpoints_count_and_the_newest_stay(tmp_path: Path):
    for step in (5, 10, 1_000_000, 20):
        folder = checkpoint_folder(tmp_path, step)
        folder.mkdir(parents=True)
        if step != 20:
            (folder / MANIFEST).write_text("{}")
    assert [checkpoint_step(path) for path in complete_checkpoints(tmp_path)] == [5, 10, 1_000_000]
    remove_old_checkpoints(tmp_path, 2)
    assert [checkpoint_step(path) for path in complete_checkpoints(tmp_path)] == [10, 1_000_000]


def test_sigterm_is_a_request_inside_the_block_alone():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop_request:
        assert not stop_request
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_request
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_base_folder_is_named_relative_to_its_child(tmp_path: Path):
    (tmp_path / "base").mkdir()
    assert base_reference(str(tmp_path / "base"), tmp_path / "runs" / "a") == "../../base"
    assert base_reference("openai/clip-vit-base-patch16", tmp_path) == "openai/clip-vit-base-patch16"
    (tmp_path / "disk" / "of" / "somebody").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "of" / "somebody")
    behind_a_link = tmp_path / "link" / "a"
    behind_a_link.mkdir()
    assert (behind_a_link / base_reference(str(tmp_path / "base"), behind_a_link)).samefile(tmp_path / "base")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_epochs", 0),
        ("batch_size", 0),
        ("learning_rate", -1.0),
        ("learning_rate", math.nan),
        ("caption_weight", -0.1),
        ("min_crop_area", 0.0),
        ("colour_jitter", 1.0),
        ("white_balance_jitter", -0.1),
        ("positives", "all"),
        ("mixed_precision", "fp16"),
        ("eval_splits", ["testing"]),
        ("num_processes", 300),
    ],
)
def test_an_impossible_value_is_refused_by_name(option: str, value: object):
    settings = ClipSettings(data=Path("a"), base="b", output=Path("c"))
    settings.refuse_impossible()
    setattr(settings, option, value)
    with pytest.raises(UserError, match="--(batch_size|" + option + ")"):
        settings.refuse_impossible()


def test_where_things_lie_does_not_decide_what_a_run_is():
    one = ClipSettings(data=Path("a"), base="b", output=Path("c"), num_workers=3)
    other = ClipSettings(data=Path("x"), base="y", output=Path("z"), num_workers=0, cpu=True)
    assert one.identity() == other.identity()
    other.seed = 1
    assert one.identity() != other.identity()


def test_rates_fall_from_layer_to_layer_and_differ_by_tower():
    factors, layers = RateFactors(image=0.5, text=2.0, layer_decay=0.1), {"vision_model": 3, "text_model": 2}
    expected = {
        "clip.vision_model.embeddings.patch_embedding.weight": 0.5 * 0.1**3,
        "clip.vision_model.pre_layrnorm.weight": 0.5 * 0.1**3,
        "clip.vision_model.encoder.layers.0.mlp.fc1.weight": 0.5 * 0.1**2,
        "clip.vision_model.encoder.layers.2.mlp.fc1.weight": 0.5,
        "clip.vision_model.post_layernorm.weight": 0.5,
        "clip.text_model.embeddings.token_embedding.weight": 2 * 0.1**2,
        "clip.text_model.encoder.layers.1.mlp.fc1.weight": 2.0,
        "clip.visual_projection.weight": 1.0,
        "clip.logit_scale": 1.0,
    }
    for name, factor in expected.items():
        assert rate_factor(name, layers, factors) == pytest.approx(factor), name


def test_each_group_has_its_own_factor_on_the_common_rate():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = build_optimizer(
        model, learning_rate=1.0, weight_decay=0.1, factor_of=lambda name: 0.5 if name.startswith("0.") else 1.0
    )
    set_learning_rate(optimizer, 0.2)
    found = {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert found == {(0.1, 0.1), (0.1, 0.0), (0.2, 0.1), (0.2, 0.0)}


def test_the_average_follows_the_weights_by_the_formula():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average, expected = WeightAverage(model, 0.3), 1.0
    for step in range(5):
        nn.init.constant_(model.weight, 2.0 + step)
        average.update(model, step)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (2.0 + step)
    assert average.model.weight.item() == pytest.approx(expected)
    assert not average.model.weight.requires_grad
