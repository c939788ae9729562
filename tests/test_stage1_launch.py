"""Stage 1 as a user starts it: the launchers, their traps, and how a mistake ends."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from llava_ial.config import parse_config
from llava_ial.errors import UserError
from llava_ial.training.clip_settings import ClipSettings
from tests.tiny_world import TinyWorld, build_tiny_base_clip, build_tiny_dataset

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "train" / "stage1_clip.py"
TWO_PROCESSES = (
    "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
    "--main_process_port", "0",
)  # fmt: skip
FSDP = (
    "--config_file",
    str(ROOT / "train" / "configs" / "fsdp2.yaml"),
    "--num_processes",
    "2",
    "--main_process_port",
    "0",
)
SETTINGS = (
    "--cpu=True", "--num_workers=0", "--num_epochs=6", "--batch_size=7", "--learning_rate=1e-3", "--log_every=1",
    "--eval_splits=train", "--checkpoint_every=4",
)  # fmt: skip


def start(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "ACCELERATE_", "DS_"))}
    return subprocess.run(
        command, cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True, timeout=180, check=False
    )


def python(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return start([sys.executable, str(SCRIPT), *map(str, arguments)], **environment)


def accelerate(launch: tuple[str, ...], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *launch]
    return start([*launcher, str(SCRIPT), *map(str, arguments)], OMP_NUM_THREADS="1")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    build_tiny_dataset(folder / "data", TinyWorld(num_train=9))
    build_tiny_base_clip(folder / "base", folder / "data")
    return folder


def places(world: Path, output: Path) -> list[str]:
    return [f"--data={world / 'data'}", f"--base={world / 'base'}", f"--output={output}"]


@pytest.mark.parametrize(
    "config",
    [
        "stage1_chain.yaml",
        "stage1_demo.yaml",
        "pitts_ial.yaml",
        "pitts_ial_l14_336.yaml",
        "own_city_clip.yaml",
        "recommended.yaml",
        "sf_ial_base.yaml",
        "sf_ial_large.yaml",
    ],
)
def test_every_config_is_read_and_possible(config: str):
    arguments = ["--config", str(ROOT / "train" / "configs" / config), "--data", "a", "--base", "b", "--output", "c"]
    (settings,) = parse_config(ClipSettings, description="", argv=arguments)
    settings.refuse_impossible()


def test_the_published_setting_is_the_papers():
    arguments = ["--config", str(ROOT / "train" / "configs" / "pitts_ial.yaml"), "--data", "a", "--output", "c"]
    (settings,) = parse_config(ClipSettings, description="", argv=arguments)
    assert (settings.base, settings.batch_size, settings.num_processes) == ("openai/clip-vit-base-patch16", 256, 8)
    assert (settings.learning_rate, settings.final_learning_rate, settings.num_epochs) == (2.4e-5, 2.4e-8, 100)
    weights = {"address": 1.0, "caption": 0.2, "geography": 0.8, "street": 0.0, "neighbourhood": 0.0, "photo": 0.0}
    assert vars(settings.loss_weights) == weights
    assert (settings.geography_reading, settings.chunk_size) == ("stated", 0)
    assert (settings.positives, settings.weight_decay, settings.augmentation) == ("paper", 0.0, None)


def test_the_paper_can_be_had_over_any_config():
    given = [
        "--data=a",
        "--base=b",
        "--output=c",
        "--positives=multi",
        "--ema_decay=0.9",
        "--learning_rate=1",
        "--seed=4",
    ]
    (settings,) = parse_config(ClipSettings, description="", argv=[*given, "--preset=paper"])
    (plain,) = parse_config(ClipSettings, description="", argv=["--data=a", "--base=b", "--output=c", "--seed=4"])
    assert settings.with_preset().identity() == plain.identity()
    assert plain.with_preset() is plain
    with pytest.raises(UserError, match="--preset some: allowed: none, paper"):
        replace(plain, preset="some").with_preset()


def test_the_recommended_config_is_what_won_over_towns():
    places = ["--data=a", "--base=b", "--output=c"]
    config = ["--config", str(ROOT / "train" / "configs" / "recommended.yaml"), "--num_processes=1", *places]
    (settings,) = parse_config(ClipSettings, description="", argv=config)
    towns = yaml.safe_load((ROOT / "train" / "configs" / "ablation_towns.yaml").read_text())
    winner = next(method for method in towns["methods"] if method.startswith("recommended:"))
    (won,) = parse_config(ClipSettings, description="", argv=[*places, *winner.partition(":")[2].split()])
    (plain,) = parse_config(ClipSettings, description="", argv=places)
    chosen = {name for name, value in won.identity().items() if value != plain.identity()[name]}
    assert len(chosen) == 9
    assert {name: settings.identity()[name] for name in chosen} == {name: won.identity()[name] for name in chosen}


def test_over_the_demos_config_the_paper_leaves_what_it_does_not_state():
    places = ["--data=a", "--base=b", "--output=c"]
    config = ["--config", str(ROOT / "train" / "configs" / "stage1_demo.yaml"), "--preset=paper"]
    (settings,) = parse_config(ClipSettings, description="", argv=[*config, *places])
    (plain,) = parse_config(ClipSettings, description="", argv=places)
    paper, default = settings.with_preset().identity(), plain.identity()
    unstated = {"min_crop_area", "colour_jitter", "white_balance_jitter", "mixed_precision", "photo_queue",
                "memory_sharpness", "log_every", "num_processes"}  # fmt: skip
    assert {name for name in paper if paper[name] != default[name]} <= unstated


@pytest.mark.parametrize(
    "num_processes", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.slow)]
)
def test_threads_are_limited_before_torch_is_imported(num_processes: int):
    code = (
        "import runpy, os, sys; runpy.run_path(sys.argv[1]); import torch; "
        "print(os.environ['OMP_NUM_THREADS'], torch.get_num_threads(), os.environ['OMP_WAIT_POLICY'])"
    )
    done = start([sys.executable, "-c", code, str(SCRIPT)], LOCAL_WORLD_SIZE=str(num_processes))
    threads = max(1, len(os.sched_getaffinity(0)) // num_processes)
    assert done.stdout.split() == [str(threads), str(threads), "passive"], done.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        pytest.param(["--learning_rat=1"], r"unknown option|unrecognized", marks=pytest.mark.slow),
        pytest.param(["--config=nowhere.yaml"], r"nowhere\.yaml", marks=pytest.mark.slow),
        (["--data=/nowhere"], r"/nowhere: no manifest\.json"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(world: Path, tmp_path: Path, arguments: list[str], why: str):
    done = python(*places(world, tmp_path / "out"), *SETTINGS, *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert re.search(why, line)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_help_explains_the_command():
    done = python("--help")
    assert done.returncode == 0
    for expected in ("accelerate launch", "--positives", "share of image_geography_loss", "--config FILE.yaml"):
        assert expected in done.stdout


def assert_same_training(first: Path, second: Path, base: Path, *, num_lines: int) -> None:
    """Two finished runs logged the same and moved the base's weights to the same place, but for rounding."""
    logs = [(folder / "train_log.jsonl").read_text().splitlines() for folder in (first, second)]
    assert len(logs[0]) == len(logs[1]) == num_lines
    for line_of_one, line_of_two in zip(*logs, strict=True):
        one, two = json.loads(line_of_one), json.loads(line_of_two)
        assert one.pop("split", None) == two.pop("split", None)
        assert one == pytest.approx(two, rel=2e-3, abs=1e-5)
    # Adam divides a gradient by its own size, so where it is all rounding the weights may part by the learning rate.
    one, two, before = (load_file(folder / "model.safetensors") for folder in (first, second, base))
    assert {name: tensor.shape for name, tensor in one.items()} == {name: tensor.shape for name, tensor in two.items()}
    moved = sum((one[name] - before[name]).norm() ** 2 for name in one) ** 0.5
    parted = sum((one[name] - two[name]).norm() ** 2 for name in one) ** 0.5
    assert parted < 0.05 * moved


@pytest.mark.slow
def test_two_launched_processes_equal_one(world: Path, tmp_path: Path):
    alone = python(*places(world, tmp_path / "one"), *SETTINGS)
    assert alone.returncode == 0, alone.stderr[-2000:]
    # Seven photos a batch: the shares of the two processes are unequal.
    # They encode their photos in chunks, the one process at once.
    both = accelerate(TWO_PROCESSES, *places(world, tmp_path / "two"), *SETTINGS, "--num_processes=2", "--chunk_size=2")
    assert both.returncode == 0, both.stderr[-2000:]
    assert_same_training(tmp_path / "one", tmp_path / "two", world / "base", num_lines=7)
    one, base = (load_file(folder / "model.safetensors") for folder in (tmp_path / "one", world / "base"))
    assert not torch.equal(one["visual_projection.weight"], base["visual_projection.weight"])


@pytest.mark.slow
def test_bfloat16_trains_float32_weights(world: Path, tmp_path: Path):
    done = python(*places(world, tmp_path / "out"), *SETTINGS, "--mixed_precision=bf16", "--num_epochs=30")
    assert done.returncode == 0, done.stderr[-2000:]
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}
    log = [json.loads(line) for line in (tmp_path / "out" / "train_log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "arguments", "why"),
    [
        (("--cpu", "--num_processes", "2"), ["--num_processes=2"], "1 process"),
        (TWO_PROCESSES, ["--num_processes=1"], "2 process"),
        (TWO_PROCESSES, ["--num_processes=2", "--cpu=False"], "--cpu true"),
        (TWO_PROCESSES, ["--num_processes=2", "--data=/nowhere"], "/nowhere: no manifest"),
        (FSDP, ["--num_processes=2"], "FSDP shards nothing on the CPU"),
    ],
    ids=["one instead of two", "two instead of one", "two that do not meet", "data", "nothing would be sharded"],
)
def test_traps_of_the_launcher_are_refused(world: Path, tmp_path: Path, launch, arguments, why):
    done = accelerate(launch, *places(world, tmp_path / "out"), *SETTINGS, *arguments)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors
    assert all(why in line for line in errors)
    assert not (tmp_path / "out").exists()
