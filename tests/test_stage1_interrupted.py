"""Stage 1 stopped and resumed or troubled: the same bits, whole checkpoints, broken photos named and counted."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, CLIPModel, CLIPVisionModel

from llava_ial.errors import UserError
from llava_ial.manifest import file_hash, hold_folder, read_manifest
from llava_ial.models.identity import tower_hash
from llava_ial.training import clip_progress
from llava_ial.training.checkpoints import complete_checkpoints
from tests.stage1_runs import Interrupter, broken_photo, interrupt, lines, same_results, train, world
from tests.tiny_world import build_tiny_dataset
from train import stage1_clip

__all__ = ["train", "world"]


def test_two_runs_of_one_seed_are_the_same_bits_and_another_seed_is_not(tmp_path: Path, train):
    first, again = train(tmp_path / "a"), train(tmp_path / "b")
    same_results(first, again)
    other = train(tmp_path / "c", seed=1)
    assert file_hash(first / "model.safetensors") != file_hash(other / "model.safetensors")


def test_a_resumed_run_equals_one_without_interruption_bitwise(tmp_path: Path, train, monkeypatch):
    whole = train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(stage1_clip, "show", Interrupter(8, interrupt))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", checkpoint_every=3)
    (checkpoint,) = complete_checkpoints(tmp_path / "parts")[-1:]
    assert checkpoint.name == "step-000006"
    with monkeypatch.context() as patch:
        patch.setattr(stage1_clip, "show", Interrupter(1, interrupt))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", checkpoint_every=0)
    same_results(whole, train(tmp_path / "parts", checkpoint_every=5))


def test_a_running_training_keeps_others_out_of_its_folder(tmp_path: Path, train, monkeypatch):
    """One whose launcher was killed goes on: started again, two of them would write the same checkpoints."""
    refused = []

    def second() -> None:
        with pytest.raises(UserError, match="another process works on it"), hold_folder(tmp_path / "a"):
            pass
        refused.append(True)

    monkeypatch.setattr(stage1_clip, "show", Interrupter(2, second))
    train(tmp_path / "a")
    assert refused


def test_a_checkpoint_is_a_whole_folder_of_its_own(tmp_path: Path, train):
    output = train(tmp_path / "a", num_epochs=3, checkpoint_every=2, keep_checkpoints=1, eval_every=2)
    (checkpoint,) = complete_checkpoints(output)
    assert checkpoint.name == "step-000004"
    manifest = read_manifest(checkpoint, "address_clip")
    assert manifest["step"] == 4
    assert (checkpoint / manifest["base"]).resolve().name == "base"
    assert manifest["metrics"]["train"]["num_photos"] == 8
    assert tower_hash(CLIPVisionModel.from_pretrained(checkpoint)) == manifest["tower_hash"]
    assert AutoImageProcessor.from_pretrained(checkpoint, backend="pil").crop_size["height"] == 32
    assert load_file(checkpoint / "gallery_embeddings.safetensors")["verbose"].shape == (8, 32)
    measured = [json.loads(line) for line in (output / "train_log.jsonl").read_text().splitlines() if "split" in line]
    assert [entry["step"] for entry in measured] == [2, 4, 6]


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path: Path, train, monkeypatch, capsys):
    whole = train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(stage1_clip, "show", Interrupter(4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        train(tmp_path / "parts")  # ends without an error
    assert "stopped at step 5 of 16 as asked" in capsys.readouterr().out
    assert [path.name for path in complete_checkpoints(tmp_path / "parts")] == ["step-000005"]
    same_results(whole, train(tmp_path / "parts"))
    assert "continues from" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options", [{}, {"memory_weight": 3, "eval_every": 5, "publish": "best"}], ids=["plain", "best"]
)
def test_a_run_killed_while_it_finishes_needs_no_further_step(tmp_path: Path, train, monkeypatch, options):
    whole = train(tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        last = Interrupter(1, interrupt, clip_progress.write_json)  # of run.json, when all else is computed
        patch.setattr(clip_progress, "write_json", last)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", **options)
    assert [path.name for path in complete_checkpoints(tmp_path / "parts")] == ["step-000016"]
    with monkeypatch.context() as patch:
        patch.setattr(stage1_clip, "train_step", None)  # not one more
        train(tmp_path / "parts", **options)
    same_results(whole, tmp_path / "parts")
    assert complete_checkpoints(tmp_path / "parts") == []


def test_sigterm_while_it_finishes_ends_it_with_exit_code_0():
    code = (
        "import os, signal\n"
        "from llava_ial.training.interruption import LeaveOnRequest\n"
        "with LeaveOnRequest('continue with the same command'):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    raise SystemExit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "continue with the same command\n")


def test_a_checkpoint_says_which_state_its_figures_are_of(tmp_path: Path, train, monkeypatch):
    options = {"num_epochs": 4, "eval_every": 3, "checkpoint_every": 5, "keep_checkpoints": 9}
    output = train(tmp_path / "whole", **options)
    measured = {entry["step"]: entry["alignment"] for entry in lines(output, "split")}
    (checkpoint,) = complete_checkpoints(output)
    manifest = read_manifest(checkpoint, "address_clip")
    assert (manifest["step"], manifest["measured_step"]) == (5, 3)
    assert manifest["metrics"]["train"]["alignment"] == measured[3]
    assert "## Measured after step 3\n" in (checkpoint / "README.md").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(stage1_clip, "show", Interrupter(4, interrupt))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", **{**options, "checkpoint_every": 4})
    again = train(tmp_path / "parts", **options)
    for name in ("manifest.json", "README.md", "model.safetensors"):
        assert (again / "checkpoints" / checkpoint.name / name).read_bytes() == (checkpoint / name).read_bytes()


@pytest.mark.parametrize("size", [60_000, 400], ids=["the weights", "the log"])
def test_a_full_disk_is_told_in_one_line_and_the_same_command_goes_on(tmp_path: Path, train, monkeypatch, size):
    """Files may not grow beyond a size, which the system answers like a full disk."""
    out, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    with monkeypatch.context() as patch:
        patch.setattr(stage1_clip, "show", Interrupter(4, fill))
        try:
            with pytest.raises(UserError, match=r"out: there is no room to write .*; make room"):
                train(out, checkpoint_every=3)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in complete_checkpoints(out)] == ["step-000003"]
    assert not (out / "manifest.json").exists()
    train(out, checkpoint_every=3)
    same_results(train(tmp_path / "whole", checkpoint_every=3), out)


def test_resume_alone_starts_nothing_new(tmp_path: Path, train, monkeypatch):
    with pytest.raises(UserError, match=r"--resume true: nothing to continue in .*parts"):
        train(tmp_path / "parts", resume=True)
    assert not (tmp_path / "parts").exists()
    with monkeypatch.context() as patch:
        patch.setattr(stage1_clip, "show", Interrupter(8, interrupt))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", checkpoint_every=3)
    train(tmp_path / "parts", resume=True)
    train(tmp_path / "parts", resume=True)  # finished: nothing to do


def test_a_finished_run_is_not_trained_again_and_another_is_refused(tmp_path: Path, train, capsys):
    output = train(tmp_path / "a", num_epochs=1)
    written = (output / "model.safetensors").stat().st_mtime_ns
    train(output, num_epochs=1, num_workers=1)
    assert "already complete" in capsys.readouterr().out
    assert (output / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(UserError, match="holds another run"):
        train(output, num_epochs=2)


def test_a_loss_without_a_value_stops_and_names_the_photos(tmp_path: Path, train):
    with pytest.raises(UserError, match=r"step \d+: loss nan.*tiny-00\d.*lower --learning_rate"):
        train(tmp_path / "a", learning_rate=1e30, checkpoint_every=1)
    assert all(
        torch.isfinite(t).all()
        for c in complete_checkpoints(tmp_path / "a")
        for t in load_file(c / "model.safetensors").values()
    )


@pytest.mark.parametrize(
    "options",
    [{"ema_decay": 0.9}, {"image_tower": "lora", "lora_rank": 2}, {"image_tower": "lora", "ema_decay": 0.9}],
    ids=["average", "low rank", "both"],
)
def test_averages_and_low_rank_updates_resume_bitwise_and_are_published_plain(
    tmp_path: Path, train, world, monkeypatch, options
):
    whole = train(tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr(stage1_clip, "show", Interrupter(8, interrupt))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", checkpoint_every=5, **options)
    parts = train(tmp_path / "parts", **options)
    same_results(whole, parts)
    clip, info = CLIPModel.from_pretrained(parts, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert tower_hash(clip.vision_model) == read_manifest(parts, "address_clip")["tower_hash"]
    assert tower_hash(clip.vision_model) != tower_hash(CLIPModel.from_pretrained(world / "base").vision_model)


def test_a_few_broken_photos_are_skipped_named_and_counted(tmp_path: Path, train, monkeypatch, capsys):
    build_tiny_dataset(tmp_path / "data")
    broken_photo(tmp_path)
    with pytest.raises(UserError, match=r"1 of 8 training photos could not be read, more than 1%.*tiny-001"):
        train(tmp_path / "refused", data=tmp_path / "data")
    monkeypatch.setattr(clip_progress, "MAX_SKIPPED_SHARE", 0.2)
    next((tmp_path / "data_photos" / "val").iterdir()).write_bytes(b"no photo")
    options = {"data": tmp_path / "data", "eval_splits": "val"}
    whole = train(tmp_path / "whole", **options)
    assert read_manifest(whole, "address_clip")["photos_skipped"] == ["tiny-001"]
    assert [entry["skipped"] for entry in lines(whole, "skipped")] == ["tiny-001"]
    assert read_manifest(whole, "address_clip")["metrics"]["val"]["num_unreadable"] == 1
    assert read_manifest(whole, "address_clip")["metrics"]["val"]["num_photos"] == 1
    shown = capsys.readouterr().out
    assert "not measured: photo" in shown
    assert "1 of 8 photos could not be read" in shown
    assert "1 training photos could not be read" in (whole / "README.md").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(stage1_clip, "show", Interrupter(8, interrupt))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", checkpoint_every=5, **options)
    same_results(whole, train(tmp_path / "parts", **options))
