"""``--tune_vision_tower``: gradient flows where it should, what was tuned is what comes back, resume is bit by bit."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from llava_ial.errors import UserError
from llava_ial.inference import AddressPredictor
from llava_ial.models.feature_layers import set_features
from llava_ial.models.llava import TOWER, LoraSettings, add_adapter, load_base, saved_module
from llava_ial.models.llava_folder import load_llava_ial
from llava_ial.models.tuned_tower import add_tower_lora, plain_state, set_tower_training
from llava_ial.training.llava_groups import optimizer_groups
from llava_ial.training.llava_trainer import LlavaTrainer, gathered
from tests.stage2_runs import adapter, assert_same_weights, crash_at, merge_here, train_here
from tests.test_llava_preview import run_of
from tests.tiny_models import TinyFolders

TUNED = {"vision_tower_learning_rate": 1e-2, "lr_scheduler_type": "constant"}


def tower_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name.split(f".{TOWER}.")[1]: t for name, t in adapter(folder).items() if f".{TOWER}." in name}


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("how", ["lora", "full"])
def test_gradient_flows_into_all_that_trains_and_into_nothing_else(
    tiny_folders: TinyFolders, tmp_path: Path, how: str, is_checkpointed: bool
) -> None:
    options = {"tune_vision_tower": how, "activation_checkpointing": is_checkpointed}
    run = run_of(tiny_folders, tmp_path / "out", **options)
    trainer = LlavaTrainer(run, stop_request=None)  # type: ignore[arg-type]
    model = run.model.train()
    if is_checkpointed:
        model.get_base_model().activation_checkpointing_enable()
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)  # zero at the start, which stops LoRA A's gradient
    model(**trainer.data_collator([run.train_set[0], run.train_set[1]])).loss.backward()
    for name, parameter in model.named_parameters():
        has_gradient = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        # A key's bias moves all of a query's scores alike, so softmax forgets it: no gradient but rounding.
        assert has_gradient == parameter.requires_grad or name.endswith("k_proj.bias"), name
    trained = [n for n, p in saved_module(model, TOWER).named_parameters() if p.requires_grad]
    assert trained
    assert not any("layers.1." in name or "post_layernorm" in name for name in trained), "layer -2 of two is read"
    assert all((".lora_" in name) == (how == "lora") for name in trained)


def test_the_tower_has_groups_of_its_own(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    model = run_of(tiny_folders, tmp_path / "out", tune_vision_tower="full").model
    groups = optimizer_groups(model, 2e-4, 2e-5, 2e-6, weight_decay=0.1)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (2e-4, 0.1), (2e-5, 0.0), (2e-5, 0.1), (2e-6, 0.0), (2e-6, 0.1),
    ]  # fmt: skip
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("how", ["lora", "full"])
def test_a_tuned_tower_is_saved_reloaded_and_resumed(
    tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    options = {"tune_vision_tower": how, **TUNED}
    straight = train_here(tiny_folders, tmp_path / "straight", **options)
    before = load_llava_ial(tiny_folders.llava).model.model.vision_tower.state_dict()
    after = tower_of(straight)
    assert after.keys() == before.keys(), "a plain tower, whatever tuned it"
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("layers.0." in name or "layers." not in name for name in moved)
    loaded = load_llava_ial(straight)
    assert loaded.manifest["tuned_tower_hash"] != loaded.manifest["tower_hash"]
    for name, tensor in loaded.model.model.vision_tower.state_dict().items():
        assert torch.equal(tensor, after[name])

    crash_at(monkeypatch, 3, lambda: train_here(tiny_folders, tmp_path / "resumed", **options))
    assert_same_weights(straight, train_here(tiny_folders, tmp_path / "resumed", **options))


def test_saved_with_lora_added_it_computes_what_was_trained(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    run = run_of(tiny_folders, tmp_path / "out", tune_vision_tower="lora", lora_dropout=0.0)
    for name, parameter in run.model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    pixels = run.train_set[0]["pixel_values"][None]
    tower = saved_module(run.model, TOWER).eval()
    plain = load_base(str(tiny_folders.llava.parent / "base_llava")).model.vision_tower
    with torch.no_grad():
        ours = tower(pixels).last_hidden_state
        assert not torch.allclose(ours, plain(pixels).last_hidden_state, atol=1e-3)
        state = plain_state(run.model, gathered)
        mark = f".{TOWER}.modules_to_save.default."
        plain.load_state_dict({n.split(mark)[1]: t for n, t in state.items() if mark in n}, strict=True)
        torch.testing.assert_close(plain(pixels).last_hidden_state, ours, rtol=1e-4, atol=1e-5)


def test_a_small_change_of_a_tower_at_16_bits_is_not_rounded_away(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    options = {"tune_vision_tower": "lora", "lora_dropout": 0.0, "bf16": True, "base_dtype": "bfloat16"}
    run = run_of(tiny_folders, tmp_path / "out", **options)
    for name, parameter in run.model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=1e-4)
    layers = {
        name: layer for name, layer in saved_module(run.model, TOWER).named_modules() if isinstance(layer, LoraLayer)
    }
    state = plain_state(run.model, gathered)
    assert layers
    for name, layer in layers.items():
        before, change = layer.base_layer.weight, layer.get_delta_weight(next(iter(layer.lora_A)))
        assert before.dtype == torch.bfloat16
        saved = next(t for n, t in state.items() if n.endswith(f"modules_to_save.default.{name}.weight"))
        torch.testing.assert_close(saved - before.float(), change.float(), rtol=0.02, atol=5e-8)


def test_every_way_to_open_a_folder_brings_the_tuned_tower(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    out = train_here(tiny_folders, tmp_path / "out", tune_vision_tower="lora", **TUNED)
    tuned = tower_of(out)
    by_peft = PeftModel.from_pretrained(load_base(str(tiny_folders.llava.parent / "base_llava")), out)
    merged = load_base(str(merge_here(out, tmp_path / "merged", dtype="float32", num_checks=1, max_new_tokens=4)))
    for tower in (saved_module(by_peft, TOWER), merged.model.vision_tower):
        assert all(torch.equal(tensor, tuned[name]) for name, tensor in tower.state_dict().items())
    assert AddressPredictor.from_pretrained(out).can_answer


def test_a_swapped_tuned_tower_is_refused(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    out = train_here(tiny_folders, tmp_path / "out", tune_vision_tower="full", max_steps=1, **TUNED)
    manifest = (out / "manifest.json").read_text(encoding="utf-8")
    found = load_llava_ial(out).manifest["tuned_tower_hash"]
    (out / "manifest.json").write_text(manifest.replace(found, "0" * 64), encoding="utf-8")
    with pytest.raises(UserError, match="its vision tower is not the one it was trained with"):
        load_llava_ial(out)


def test_without_tuning_there_is_no_lora_in_the_tower(tiny_folders: TinyFolders) -> None:
    llava = load_base(str(tiny_folders.llava.parent / "base_llava"))
    set_features(llava, -1, "full")
    model = add_adapter(llava, LoraSettings(2, 4, 0.0))
    assert not [name for name, p in model.named_parameters() if TOWER in name and (".lora_" in name or p.requires_grad)]
    add_tower_lora(model, LoraSettings(2, 4, 0.0))
    set_tower_training(model, "lora")
    layers = {n.split("layers.")[1][0] for n, p in model.named_parameters() if f".{TOWER}." in n and p.requires_grad}
    assert layers == {"0", "1"}, "layer -1 reads both"


def test_an_unknown_way_is_told(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--tune_vision_tower some: allowed: none, lora, full"):
        train_here(tiny_folders, tmp_path / "out", tune_vision_tower="some")
