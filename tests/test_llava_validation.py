"""Measuring during stage 2: the loss of all tokens, the accuracy of serve.evaluate, and the best state is kept."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from llava_ial.data.llava_dataset import LlavaCollator
from llava_ial.errors import UserError
from llava_ial.inference import AddressPredictor
from llava_ial.models.llava import load_base
from llava_ial.models.llava_folder import load_llava_ial
from llava_ial.training.llava_trainer import LlavaTrainer
from llava_ial.training.llava_validation import answer_scores, best_so_far, dialogue_loss
from serve.evaluate import evaluate
from serve.evaluate_settings import EvaluateConfig
from tests.stage2_runs import ROOT, adapter, assert_same_weights, crash_at, merge_here, train_here
from tests.test_llava_preview import run_of
from tests.tiny_models import TinyFolders

MEASURED = {"eval_strategy": "steps", "eval_steps": 1, "eval_split": "train", "eval_photos": 5}


def measurements(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "street_accuracy" in line]


def test_loss_and_accuracy_are_those_of_the_long_way(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    run = run_of(tiny_folders, tmp_path / "out", **MEASURED)
    assert run.validation is not None
    assert len(run.validation.questions) == 4, "every second of eight photos, at most five"
    parts = load_llava_ial(tiny_folders.llava)
    collator, dialogues = LlavaCollator(parts.tokenizer.pad_token_id), run.validation.dialogues
    losses, num_tokens = 0.0, 0
    for i in range(len(dialogues)):
        batch = collator([dialogues[i]])
        count = int((batch["labels"][:, 1:] != -100).sum())
        with torch.no_grad():
            losses += float(parts.model(**batch).loss) * count
        num_tokens += count
    loss, share = dialogue_loss(parts.model, dialogues, collator, 3, everyone=False)
    assert loss == pytest.approx(losses / num_tokens, rel=1e-4)
    assert share == 1.0, "this model knows its photos by heart"
    scores = answer_scores(parts.model, run.validation, parts.tokenizer, 16, 3, everyone=False)
    metrics = evaluate(EvaluateConfig(tiny_folders.data, tmp_path / "eval", str(tiny_folders.llava), split="train",
                                      tasks=["where"], shuffle_photos=False))  # fmt: skip
    rates = metrics["answers"]["rates"]
    assert scores["street_accuracy"] == rates["street_accuracy"]["value"] == 1.0
    assert scores["unparsed_rate"] == 0.0


def test_measuring_changes_no_weight_and_a_resumed_run_measures_the_same(
    tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train_here(tiny_folders, tmp_path / "plain")
    straight = train_here(tiny_folders, tmp_path / "straight", **MEASURED)
    assert_same_weights(plain, straight)
    assert [line["step"] for line in measurements(straight)] == [1, 2, 3, 4]

    crash_at(monkeypatch, 3, lambda: train_here(tiny_folders, tmp_path / "resumed", **MEASURED))
    resumed = train_here(tiny_folders, tmp_path / "resumed", **MEASURED)
    assert measurements(resumed) == measurements(straight)
    assert_same_weights(resumed / "checkpoints/best", straight / "checkpoints/best")


def test_a_probe_in_the_midst_of_training_changes_nothing_of_it(
    tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT marks all of a switched module as trained when it is switched on again, the frozen tower with it."""
    turns = [{"from": "human", "value": "What is two and two?"}, {"from": "gpt", "value": "Four."}]
    (tmp_path / "probe.json").write_text(json.dumps([{"id": 1, "conversations": turns}]))
    marked: list[set[str]] = []

    def look(self: LlavaTrainer) -> None:
        names = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        measure(self)
        marked.extend([names, {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}])

    measure = LlavaTrainer._measure_forgetting
    monkeypatch.setattr(LlavaTrainer, "_measure_forgetting", look)
    options = {**MEASURED, "publish": "best", "max_grad_norm": 1e-3}
    plain = train_here(tiny_folders, tmp_path / "plain", **options)
    marked.clear()
    probed = train_here(tiny_folders, tmp_path / "probed", **options, forgetting_probe=tmp_path / "probe.json")
    assert marked
    assert all(names == marked[0] for names in marked)
    last = "checkpoints/step-000004"
    assert_same_weights(plain / last, probed / last)


def test_the_best_state_is_kept_published_and_opens_in_every_way(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    """A rate that destroys what the model knew makes the first measurement the best one."""
    options = {**MEASURED, "publish": "best", "learning_rate": 0.3, "warmup_steps": 0, "lr_scheduler_type": "constant"}
    turns = [{"from": "human", "value": "What is two and two?"}, {"from": "gpt", "value": "Four."}]
    (tmp_path / "probe.json").write_text(json.dumps([{"id": 1, "conversations": turns}]))
    options["forgetting_probe"] = tmp_path / "probe.json"
    out = train_here(tiny_folders, tmp_path / "out", **options)
    found = measurements(out)
    best, num_since = best_so_far(out / "train_log.jsonl")
    assert best == max(found, key=lambda line: (line["street_accuracy"], -line["loss"]))
    assert num_since == len(found) - found.index(best) - 1
    assert best["step"] < 4, "this rate was meant to destroy"
    assert_same_weights(out, out / "checkpoints/best")
    for folder in (out, out / "checkpoints/best"):
        card = (folder / "README.md").read_text(encoding="utf-8").splitlines()
        assert f"## Measured after step {best['step']}" in card
        assert {f"- {name}: {value:.4f}" for name, value in best.items() if name != "step"} <= set(card)
    early = train_here(tiny_folders, tmp_path / "early", **{**options, "publish": "last"}, max_steps=best["step"])
    assert_same_weights(out, early)
    forgotten, early_forgotten = (json.loads((f / "forgetting.json").read_text()) for f in (out, early))
    assert forgotten["loss_after"] == pytest.approx(early_forgotten["loss_after"], rel=1e-4), "of what is published"
    assert forgotten["step"] == best["step"]
    assert f"{forgotten['loss_after']:.3f} after" in (out / "README.md").read_text(encoding="utf-8")
    last = out / "checkpoints/step-000004"
    assert "general dialogues" not in (last / "README.md").read_text(encoding="utf-8"), "they have other weights"
    assert any(not torch.equal(adapter(out)[name], adapter(last)[name]) for name in adapter(out))
    for folder in (out, out / "checkpoints/best", last):
        assert AddressPredictor.from_pretrained(folder).can_answer
        PeftModel.from_pretrained(load_base(str(tiny_folders.llava.parent / "base_llava")), folder)
        merged = merge_here(folder, tmp_path / f"merged-{folder.name}", dtype="float32", num_checks=1, max_new_tokens=4)
        assert load_base(str(merged)).config.image_seq_length == 16


@pytest.mark.parametrize("publish", ["last", "best"])
def test_a_folder_behind_a_link_opens(tiny_folders: TinyFolders, tmp_path: Path, publish: str) -> None:
    """As where ``runs`` is a link to another disk: the base lies by the link, not by what it points to."""
    (tmp_path / "disk/of/somebody").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "disk/of/somebody")
    shutil.copytree(tiny_folders.llava.parent / "base_llava", tmp_path / "base")
    out = train_here(
        tiny_folders, tmp_path / "runs/out", base=tmp_path / "base", publish=publish, max_steps=1, **MEASURED
    )
    for folder in (out, out / "checkpoints/best", out.resolve()):
        assert load_llava_ial(folder).num_image_tokens == 16


def test_a_run_without_progress_ends_early_and_is_complete(
    tiny_folders: TinyFolders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**MEASURED, "learning_rate": 0.3, "warmup_steps": 0, "max_steps": 40, "early_stopping": 2}
    out = train_here(tiny_folders, tmp_path / "out", **options)
    steps = [line["step"] for line in measurements(out)]
    best, num_since = best_so_far(out / "train_log.jsonl")
    assert num_since == 2
    assert steps[-1] == best["step"] + 2 < 40
    assert "complete" in capsys.readouterr().out
    assert (out / "manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"publish": "best"}, "--publish best: allowed: nothing else without --eval_strategy"),
        ({"early_stopping": 1}, "--early_stopping 1: allowed: nothing else without --eval_strategy"),
        ({"publish": "first"}, "--publish first: allowed: last, best"),
        ({**MEASURED, "eval_photos": 0}, "--eval_photos 0: allowed: at least 1"),
        ({**MEASURED, "eval_split": "dev"}, "split 'dev' is unknown"),
        ({**MEASURED, "load_best_model_at_end": True}, "--load_best_model_at_end True: allowed: false; take --publish"),
    ],
)
def test_bad_settings_are_told(
    tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict, complaint: str
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=complaint):
        train_here(tiny_folders, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
