"""Stage 2 through its launchers: DeepSpeed on two processes, kill -9, and photos learned by heart."""

import json
import re
import shlex
import shutil
import sys
import time
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest
import torch

from llava_ial.data.dataset import IALDataset
from llava_ial.inference import AddressPredictor
from llava_ial.models.llava_folder import load_llava_ial
from tests.stage2_runs import adapter, arguments_of, assert_same_weights, start, train_here
from tests.tiny_models import TinyFolders
from train.toy_base import llava as base_llava

pytestmark = pytest.mark.slow
TIMEOUT_S = 300


def launch(folders: TinyFolders, output: Path, *, port: int, **options: object) -> str:
    """Runs two processes under DeepSpeed's launcher; returns what they said."""
    process = start([
        str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", str(port),
        "train/stage2_llava.py", *arguments_of(folders, output, num_processes=2, **options),
    ])  # fmt: skip
    text, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, text
    return text


@pytest.mark.timeout(2 * TIMEOUT_S)
@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_of_deepspeed_equal_one_and_resume(tiny_folders: TinyFolders, tmp_path: Path, stage: int) -> None:
    plain = {"lora_dropout": 0.0, "deepspeed": f"train/configs/zero{stage}.json"}
    one = train_here(tiny_folders, tmp_path / "one", per_device_train_batch_size=4, lora_dropout=0.0)
    two, port = tmp_path / "two", 29700 + 10 * stage
    said = launch(tiny_folders, two, port=port, **plain)
    assert "is deprecated" not in said, "once a step, between the progress bar's lines"
    ours, theirs = adapter(one), adapter(two)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)

    resumed = shutil.copytree(two, tmp_path / "resumed")
    for path in ("checkpoints/step-000004", "address_clip"):
        shutil.rmtree(resumed / path)
    assert json.loads((resumed / "manifest.json").read_text(encoding="utf-8"))["config"]["world_size"] == 2
    (resumed / "manifest.json").rename(resumed / "building.json")
    assert "continues from" in launch(tiny_folders, resumed, port=port + 1, **plain)
    assert_same_weights(two, resumed)


@pytest.mark.timeout(2 * TIMEOUT_S)
@pytest.mark.parametrize("bf16", [False, True])
def test_four_bits_under_zero_2_are_those_of_one_process(tiny_folders: TinyFolders, tmp_path: Path, bf16: bool) -> None:
    """At 16 bits sums differ in their last digits, so only a step is compared there, and more roughly."""
    plain = {"lora_dropout": 0.0, "quantize": "nf4", "bf16": bf16, "max_steps": 1 if bf16 else 4, "save_steps": 1}
    one = train_here(tiny_folders, tmp_path / "one", per_device_train_batch_size=4, **plain)
    two = tmp_path / "two"
    launch(tiny_folders, two, port=29740 + bf16, deepspeed="train/configs/zero2.json", **plain)
    close = {"rtol": 1e-3, "atol": 1e-5} if not bf16 else {"rtol": 0.02, "atol": 2e-3}
    ours, theirs = adapter(one), adapter(two)
    for name, weights in ours.items():
        torch.testing.assert_close(theirs[name].float(), weights.float(), **close)
    if not bf16:
        whole = adapter(train_here(tiny_folders, tmp_path / "whole", **plain | {"quantize": "none"},
                                   per_device_train_batch_size=4))  # fmt: skip
        assert any(not torch.allclose(whole[name], weights, **close) for name, weights in ours.items())


@pytest.mark.timeout(2 * TIMEOUT_S)
@pytest.mark.parametrize("stage", [2, 3])
def test_offloading_starts_and_mixed_batches_never_hang(tiny_folders: TinyFolders, tmp_path: Path, stage: int) -> None:
    """Batches with photos on one process and without on the other; ZeRO-3 waits for ever where modules differ."""
    entries = [
        {
            "id": i,
            "conversations": [{"from": "human", "value": f"What is {i} and {i}?"}, {"from": "gpt", "value": "Even."}],
        }
        for i in range(8)
    ]
    general, out = tmp_path / "general.json", tmp_path / "out"
    general.write_text(json.dumps(entries), encoding="utf-8")
    launch(
        tiny_folders, out, port=29750 + stage, deepspeed=f"train/configs/zero{stage}_offload.json", mix=f"{general}:1",
        per_device_train_batch_size=1, max_steps=8, save_steps=8, tune_vision_tower="lora", eval_strategy="steps",
        eval_steps=8, eval_split="train", eval_photos=3, publish="best", vision_tower_learning_rate=1e-2,
        questions_apart=0.5, colour_jitter=0.1, join_last_layer=stage == 3, vision_feature_select_strategy="full",
    )  # fmt: skip
    loaded = load_llava_ial(out)
    assert loaded.manifest["vision_feature_layer"] == ([-2, -1] if stage == 3 else -2)
    assert loaded.manifest["tuned_tower_hash"] != loaded.manifest["tower_hash"], "LoRA was gathered and added"
    lines = [json.loads(line) for line in (out / "train_log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 9
    assert lines[-1]["street_accuracy"] >= 0


def test_kill_9_loses_nothing_that_was_saved(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    options = {"max_steps": 40, "save_steps": 5}
    straight, killed = train_here(tiny_folders, tmp_path / "straight", **options), tmp_path / "killed"
    process = start([sys.executable, "train/stage2_llava.py", *arguments_of(tiny_folders, killed, **options)])
    while not list(killed.glob("checkpoints/step-*/manifest.json")) and process.poll() is None:
        pass
    process.kill()
    process.communicate()
    assert not (killed / "manifest.json").exists()
    train_here(tiny_folders, killed, **options)
    assert_same_weights(straight, killed)
    assert (straight / "train_log.jsonl").read_bytes() == (killed / "train_log.jsonl").read_bytes()


def test_a_rank_that_dies_ends_the_run_and_leaves_its_checkpoints(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = {"max_steps": 400, "save_steps": 2, "deepspeed": "train/configs/zero2.json", "num_processes": 2}
    process = start([
        str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", "29740",
        "train/stage2_llava.py", *arguments_of(tiny_folders, out, **options),
    ])  # fmt: skip
    while len(list(out.glob("checkpoints/step-*"))) < 2 and process.poll() is None:
        time.sleep(0.05)
    (victim,) = (p for p in psutil.Process(process.pid).children(recursive=True) if p.environ().get("RANK") == "1")
    victim.kill()
    text, _ = process.communicate(timeout=60)
    assert process.returncode != 0, text
    assert not (out / "manifest.json").exists()
    for folder in (out / "checkpoints").glob("step-*"):
        load_llava_ial(folder)


def test_accelerate_trains_two_processes_of_one_step_and_sigterm_saves(
    tiny_folders: TinyFolders, tmp_path: Path
) -> None:
    """Data parallel with a whole tower, whose unread layers would be waited for, equals one process."""
    plain = {"lora_dropout": 0.0, "tune_vision_tower": "full", "vision_tower_learning_rate": 1e-3, "max_steps": 2000,
             "lr_scheduler_type": "constant", "warmup_steps": 0}  # fmt: skip
    out = tmp_path / "out"
    process = start([
        str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "29760",
        "train/stage2_llava.py", *arguments_of(tiny_folders, out, num_processes=2, save_total_limit=1000, **plain),
    ])  # fmt: skip
    while len(list(out.glob("checkpoints/step-*"))) < 2 and process.poll() is None:
        time.sleep(0.05)
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == "0":
            child.terminate()
    text, _ = process.communicate(timeout=60)
    assert "as asked; the same command continues it" in text
    assert process.returncode == 0, text
    stopped = int(text.split("stopped at step ")[1].split()[0])
    load_llava_ial(out / "checkpoints" / f"step-{stopped:06d}")
    one = train_here(tiny_folders, tmp_path / "one", per_device_train_batch_size=4, **plain | {"max_steps": 2})
    ours, theirs = adapter(one), adapter(out / "checkpoints" / "step-000002")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_both_processes_end_where_the_log_finds_no_room(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    """Files may have 16 KiB, which the log reaches; only one process writes it, and the other would wait for ever."""
    command = shlex.join([
        str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "29765",
        "train/stage2_llava.py",
        *arguments_of(tiny_folders, tmp_path / "out", num_processes=2, save_strategy="no", max_steps=20_000),
    ])  # fmt: skip
    text, _ = start(["bash", "-c", f"ulimit -f 16; exec {command}"]).communicate(timeout=TIMEOUT_S)
    assert "out: there is no room to write" in text
    assert text.count("error: ") == 1, text
    assert "Traceback" not in text.split("error: ")[0], text


def test_plain_python_runs_a_deepspeed_config_as_one_process(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    options = {"deepspeed": "train/configs/zero2.json", "max_steps": 1}
    process = start([sys.executable, "train/stage2_llava.py", *arguments_of(tiny_folders, tmp_path / "out", **options)])
    text, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, text
    load_llava_ial(tmp_path / "out")


def test_zero_3_is_given_weights_that_are_spread_already(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    """Of weights that are not, DeepSpeed would put all on every GPU first."""
    script = """
import sys
from deepspeed.runtime.engine import DeepSpeedEngine
from train import stage2_llava
configure = DeepSpeedEngine._configure_distributed_model
def check(self, model):
    whole = [name for name, p in model.named_parameters() if not hasattr(p, "ds_id") or p.numel() > 0]
    print(f"{len(whole)} whole of {len(list(model.parameters()))}, {model.dtype}", flush=True)
    configure(self, model)
DeepSpeedEngine._configure_distributed_model = check
stage2_llava.main()
"""
    options = {"deepspeed": "train/configs/zero3.json", "max_steps": 1, "bf16": True}
    process = start([sys.executable, "-c", script, *arguments_of(tiny_folders, tmp_path / "out", **options)])
    said, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said[-2000:]
    assert re.search(r"^0 whole of [1-9]\d+, torch.bfloat16$", said, re.MULTILINE), said[-2000:]
    load_llava_ial(tmp_path / "out")


def test_lora_learns_eight_photos_by_heart_and_from_their_pixels(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    base = tmp_path / "base"
    options = {"clip": tiny_folders.clip, "data": tiny_folders.data, "output": base, "width": 96, "layers": 2,
               "steps": 250, "learning_rate": 3e-3, "vocab_size": 400}  # fmt: skip
    with patch.object(sys, "argv", ["llava.py", *(f"--{name}={value}" for name, value in options.items())]):
        base_llava.main()
    out = train_here(
        tiny_folders, tmp_path / "out", base=base, lora_rank=16, lora_alpha=32, lora_dropout=0.0, max_steps=100,
        per_device_train_batch_size=8, learning_rate=5e-3, projector_learning_rate=5e-3, photos_in_memory=8,
        vision_feature_layer=-1, vision_feature_select_strategy="full", save_strategy="no",
    )  # fmt: skip
    data = IALDataset(tiny_folders.data)
    records = data.conversations("train")
    photos = [data.image_file(record.image_path) for record in records]
    predictor = AddressPredictor.from_pretrained(out)

    def num_right(shown: list[Path]) -> int:
        answers = predictor.answer_batch([record.messages[:1] for record in records], shown)
        return sum(a.text == record.messages[1].content for a, record in zip(answers, records, strict=True))

    assert num_right(photos) == len(photos) == 8
    assert num_right(photos[1:] + photos[:1]) == 0, "the answers come from the photos, not from the questions"
