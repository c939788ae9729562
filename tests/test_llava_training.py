"""Stage 2 through its real main(): whole or absent, resumed bit by bit, one loss however the batch is cut."""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from llava_ial.config import load_yaml
from llava_ial.data.dataset import IALDataset
from llava_ial.data.llava import IGNORE_INDEX
from llava_ial.data.llava_dataset import LlavaCollator, LlavaDataset
from llava_ial.errors import UserError
from llava_ial.manifest import hold_folder
from llava_ial.models.llava import PROJECTOR, LoraSettings, add_adapter, load_base
from llava_ial.models.llava_folder import load_llava_ial
from llava_ial.training.llava_arguments import LlavaArguments
from llava_ial.training.llava_groups import optimizer_groups
from llava_ial.training.llava_settings import LlavaSettings
from llava_ial.training.llava_trainer import LlavaTrainer
from tests.stage2_runs import ROOT, adapter, assert_same_weights, crash_at, interrupt, train_here
from tests.test_llava_preview import run_of
from tests.tiny_models import TinyFolders
from train import stage2_llava

Train = Callable[..., Path]


@pytest.fixture
def train(tiny_folders: TinyFolders, tmp_path: Path) -> Train:
    """Runs the command in this process and returns its output folder."""
    return lambda name="out", **options: train_here(tiny_folders, tmp_path / name, **options)


def test_the_folder_and_every_checkpoint_are_whole(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    out = train()
    for folder in (out, out / "checkpoints" / "step-000002", out / "checkpoints" / "step-000004"):
        assert load_llava_ial(folder).num_image_tokens == 16
    assert_same_weights(out, out / "checkpoints" / "step-000004")
    assert not (out / "building.json").exists()
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    log = [json.loads(line) for line in (out / "train_log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    table = capsys.readouterr().out
    assert re.search(r"vision tower +[\d,]+ +0\n", table)


def test_a_running_training_keeps_others_out_of_its_folder(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = []

    def second() -> None:
        with pytest.raises(UserError, match="another process works on it"), hold_folder(tmp_path / "out"):
            pass
        refused.append(True)

    interrupt(monkeypatch, 1, second)
    train()
    assert refused


def test_a_killed_run_is_continued_only_when_nobody_else_works_on_it(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 1, _stop)
        with pytest.raises(KeyboardInterrupt):
            train()
    being_written = tmp_path / "out" / "checkpoints" / "checkpoint-2"
    being_written.mkdir(parents=True)
    with hold_folder(tmp_path / "out"), pytest.raises(UserError, match="another process works on it"):
        train()
    assert being_written.exists()
    train()
    assert not being_written.exists()


def _stop() -> None:
    raise KeyboardInterrupt


def test_what_moves_in_a_run(train: Train, tiny_folders: TinyFolders) -> None:
    early, late = (adapter(train(f"out{n}", max_steps=n, lr_scheduler_type="constant")) for n in (1, 3))
    moved = {name for name in early if not torch.equal(early[name], late[name])}
    assert moved == {name for name in early if "lora_" in name or PROJECTOR in name}


def test_the_same_command_finds_it_done_and_another_is_refused(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = train(max_steps=1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    train(max_steps=1)
    monkeypatch.setattr(sys, "argv", ["stage2_llava.py", "--config", str(out / "config.yaml")])
    stage2_llava.main()  # what a run writes as its settings repeats it
    assert capsys.readouterr().out.count("already complete") == 2
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    train(max_steps=1, logging_steps=5, photos_in_memory=3)  # not what decides the result
    for other in ({"learning_rate": 1e-3}, {"lr_scheduler_type": "linear"}, {"optim": "adafactor"}, {"lora_rank": 4}):
        with pytest.raises(UserError, match="holds another run"):
            train(**{"max_steps": 1, **other})


def test_a_crash_is_resumed_bit_by_bit(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = train("straight")

    crash_at(monkeypatch, 3, lambda: train("resumed"))
    output = straight.with_name("resumed")
    assert (output / "building.json").exists()
    assert not (output / "manifest.json").exists()
    half = output / "checkpoints" / "checkpoint-3"  # what a kill during a save leaves behind
    shutil.copytree(output / "checkpoints" / "step-000002", half)
    train("resumed")
    assert not half.exists()
    assert_same_weights(straight, output)
    assert_same_weights(straight / "checkpoints" / "step-000004", output / "checkpoints" / "step-000004")
    assert (straight / "train_log.jsonl").read_bytes() == (output / "train_log.jsonl").read_bytes()


@pytest.mark.parametrize("stops_early", [False, True])
def test_a_run_that_was_killed_after_its_last_checkpoint_takes_no_further_step(
    train: Train, monkeypatch: pytest.MonkeyPatch, stops_early: bool
) -> None:
    """It ends within an epoch, where ``Trainer`` would go on with the rest of it."""
    options: dict[str, object] = {"max_steps": 3, "save_steps": 3, "publish": "last"}
    if stops_early:
        options |= {"max_steps": 9, "save_steps": 1, "learning_rate": 0.3, "warmup_steps": 0, "eval_strategy": "steps",
                    "eval_steps": 1, "eval_split": "train", "eval_photos": 2, "early_stopping": 2}  # fmt: skip
    straight = train("straight", **options)

    def crash(_: LlavaTrainer) -> None:
        raise RuntimeError("power failure")

    with monkeypatch.context() as patch:
        patch.setattr(LlavaTrainer, "finish", crash)
        with pytest.raises(RuntimeError, match="power failure"):
            train("resumed", **options)
    resumed = train("resumed", **options)
    assert_same_weights(straight, resumed)
    assert (straight / "train_log.jsonl").read_bytes() == (resumed / "train_log.jsonl").read_bytes()
    assert len(list((resumed / "checkpoints").glob("step-*"))) == len(list((straight / "checkpoints").glob("step-*")))


def test_sigterm_saves_and_the_same_command_goes_on(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = train("straight", save_steps=100)
    with monkeypatch.context() as patch:
        interrupt(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        stopped = train("stopped", save_steps=100)
    assert "stopped at step 3 of 4 as asked" in capsys.readouterr().out
    assert not (stopped / "manifest.json").exists()
    load_llava_ial(stopped / "checkpoints" / "step-000003")
    train("stopped", save_steps=100)
    assert_same_weights(straight, stopped)


def test_one_loss_however_the_batch_is_cut(train: Train) -> None:
    """Dialogues differ in length, so a mean of means would differ from the mean over all supervised tokens."""
    plain = {"lora_dropout": 0.0, "optim": "sgd", "max_grad_norm": 0.0}
    whole = train("whole", per_device_train_batch_size=4, **plain)
    parts = train("parts", per_device_train_batch_size=1, gradient_accumulation_steps=4, **plain)
    for ours, theirs in zip(*(adapter(folder).values() for folder in (whole, parts)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    losses = [
        [json.loads(line)["loss"] for line in (folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines()]
        for folder in (whole, parts)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_logits_are_computed_where_something_is_learned_and_nowhere_else(
    tiny_folders: TinyFolders, tmp_path: Path
) -> None:
    """Rows of unlike length, one without a photo: loss and gradients are those of all logits."""
    run = run_of(tiny_folders, tmp_path / "out", lora_dropout=0.0)
    text = {"input_ids": [1, 10, 11, 12, 2], "labels": [IGNORE_INDEX, IGNORE_INDEX, 11, 12, 2], "pixel_values": None}
    batch = LlavaCollator(run.tokenizer.pad_token_id)([run.train_set[0], text, run.train_set[5]])
    trainer, num_rows = LlavaTrainer(run, stop_request=None), []  # type: ignore[arg-type]
    run.model.get_base_model().lm_head.register_forward_hook(
        lambda _, args, __: num_rows.append(args[0].flatten(end_dim=-2).shape[0])
    )

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        loss.backward()
        found = {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}
        run.model.zero_grad()
        return {**found, "loss": loss.detach()}

    whole = gradients(run.model(**batch).loss)
    chosen = gradients(trainer.compute_loss(run.model, batch))
    assert whole.keys() == chosen.keys() > {"loss"}
    for name, gradient in whole.items():
        torch.testing.assert_close(chosen[name], gradient, rtol=1e-4, atol=1e-6)
    assert num_rows == [batch["labels"].numel(), int((batch["labels"] != IGNORE_INDEX).sum())]


def test_a_loss_that_is_no_number_ends_the_run_and_publishes_nothing(train: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss of step 2 is no number; lower --learning_rate"):
        train(learning_rate=1e30, warmup_steps=0, max_grad_norm=0, save_steps=2, max_steps=6)
    assert not list(tmp_path.glob("out/**/manifest.json"))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"output_dir": None}, "--output_dir None: allowed: the folder to write"),
        ({"fp16": True, "deepspeed": "train/configs/zero2.json"}, "--fp16 True: allowed: false with --deepspeed"),
        ({"push_to_hub": True}, "--push_to_hub True: allowed: false; python -m train.merge"),
        ({"deepspeed": "nowhere.json"}, "--deepspeed nowhere.json: No such file"),
        ({"deepspeed": "README.md"}, "--deepspeed README.md: not JSON"),
        ({"num_processes": 2}, "1 process.* were started"),
        ({"lora_rank": -1}, "--lora_rank -1: allowed: at least 0"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor 0.1: allowed: 0; transformers would smooth"),
        ({"lora_dropout": 1}, "--lora_dropout 1.0: allowed: at least 0 and below 1"),
        ({"learning_rate": "nan"}, "--learning_rate nan: allowed: at least 0"),
        ({"lr_scheduler_type": "cosin"}, "cosin"),
        ({"logging_nan_inf_filter": True}, "--logging_nan_inf_filter True: allowed: false"),
        ({"vision_feature_layer": 9}, "vision_feature_layer 9: the tower has 2 layers"),
        ({"max_length": 30}, "conversation tiny-000-0: no token to learn within max_length 30"),
        ({"clip": "nowhere"}, "nowhere: no manifest.json; the folder does not exist"),
        ({"data": "nowhere"}, "nowhere: no manifest.json; the folder does not exist"),
        ({"base": "./nowhere"}, "base './nowhere': neither a folder nor a model"),
        ({"lora_rnak": 3}, "unknown option --lora_rnak"),
    ],
)
def test_bad_options_are_told_in_one_line_and_leave_nothing(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], complaint: str
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=complaint):
        train(**options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["stage2_chain.yaml", "stage2_demo.yaml", "pitts_ial_llava.yaml", "own_city_llava.yaml"]
)
def test_configs_name_options_that_exist(name: str) -> None:
    known = {item.name for kind in (LlavaSettings, LlavaArguments) for item in fields(kind)}
    settings = load_yaml(ROOT / "train/configs" / name)
    assert set(settings) <= known
    if "deepspeed" in settings:
        json.loads((ROOT / settings["deepspeed"]).read_text(encoding="utf-8"))


def test_deepspeed_without_a_compiler_is_told_before_it_starts(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"--deepspeed needs g\+\+ on the CPU: apt-get install g\+\+"):
        train(deepspeed=ROOT / "train/configs/zero2.json")


def test_groups_have_their_learning_rates_and_every_trained_parameter_once(tiny_folders: TinyFolders) -> None:
    model = add_adapter(load_base(str(tiny_folders.llava.parent / "base_llava")), LoraSettings(2, 4, 0.0))
    groups = optimizer_groups(model, 2e-4, 2e-5, 2e-6, weight_decay=0.1)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(2e-4, 0.1), (2e-5, 0.0), (2e-5, 0.1)]
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_a_batch_without_photos_runs_the_projector_and_changes_no_gradient(tiny_folders: TinyFolders) -> None:
    model = add_adapter(load_base(str(tiny_folders.llava.parent / "base_llava")), LoraSettings(2, 4, 0.0))
    parts = load_llava_ial(tiny_folders.llava)
    data = IALDataset(tiny_folders.data)
    photos = LlavaDataset(
        data, data.conversations("train"), parts.tokenizer, parts.image_processor, num_image_tokens=16, max_length=512
    )
    text = {"input_ids": [1, 10, 11, 12, 2], "labels": [IGNORE_INDEX, IGNORE_INDEX, 11, 12, 2], "pixel_values": None}

    def gradients(filler: dict | None) -> dict[str, torch.Tensor | None]:
        model.zero_grad()
        batch = LlavaCollator(parts.tokenizer.pad_token_id, filler)([text])
        model(**batch, num_items_in_batch=torch.tensor(3)).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    plain, filled = gradients(None), gradients(photos.filler)
    for name, gradient in filled.items():
        assert gradient is not None, name
        expected = torch.zeros_like(gradient) if plain[name] is None else plain[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
    mixed = LlavaCollator(parts.tokenizer.pad_token_id, photos.filler)([text, photos[0]])
    assert len(mixed["input_ids"]) == 2, "a batch that has a photo needs no filler"
    assert torch.isfinite(model(**mixed).loss)
