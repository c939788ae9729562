"""The comparison of stage 2's methods over towns: what is run, what is chosen, what the tables say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava_ial.config import parse_config
from llava_ial.errors import UserError
from tests.tiny_models import TinyFolders
from train.stage2_towns import commands, read_result
from train.stage2_towns_settings import Stage2TownsSettings
from train.stage2_towns_tables import MethodResult, against_encoder, best_method, format_methods, summary

ROOT = Path(__file__).resolve().parents[1]
METHODS = ["none: --hints=0", "three: --hints=3", "aligned: --hints=3 --lora_rank=4"]
AGAIN = "three, asked with those of other photos"


def town_folders(folder: Path, *names: str) -> list[Path]:
    """Folders that look like finished demos."""
    for part in (folder / name / part for name in names for part in ("data", "stage1")):
        part.mkdir(parents=True)
        (part / "manifest.json").write_text("{}")
    return [folder / name for name in names]


def settings_of(folder: Path, *given: str) -> Stage2TownsSettings:
    a, b, c = [folder / name for name in "abc"]
    argv = ["--base=BASE", f"--output={folder / 'out'}", "--dev_towns", str(a), str(b), "--report_towns", str(c)]
    (settings,) = parse_config(Stage2TownsSettings, description="", argv=[*argv, "--methods", *METHODS, *given])
    return settings


def result(method: str, town: str, right: int, encoder_right: int, of: int = 20) -> MethodResult:
    photos = [f"p{i}" for i in range(of)]
    return MethodResult(
        method, town, 60.0,
        {p: [float(i < right + 2), float(i < right)] for i, p in enumerate(photos)},
        {p: [float(i < encoder_right + 2), float(i < encoder_right)] for i, p in enumerate(photos)},
        {p: str(i // 2) for i, p in enumerate(photos)},
        {"street_question_accuracy": right / of},
        {"num_differ": 3, "num_right": 1, "num_encoder_right": 2},
    )  # fmt: skip


def test_the_best_has_the_highest_mean_of_street_and_cross_streets() -> None:
    right = {"none": (9, 9), "three": (4, 16), "one": (12, 8)}
    results = [result(name, str(town), n, 10) for name, by_town in right.items() for town, n in enumerate(by_town)]
    assert best_method(["none", "three", "one"], results) == "three"  # of two that are equal the first


def test_answers_are_paired_with_the_candidates_of_their_own_town() -> None:
    pair = [result("one", "a", 12, 10), result("one", "b", 9, 10)]
    assert against_encoder(pair, 1).value == pytest.approx((2 - 1) / 40)
    # Panoramas of two towns are not one panorama, whatever they are called.
    assert against_encoder(pair, 1).num_clusters == 20
    found = summary(pair)["one"]
    assert (found["num_differ"], found["num_right"], found["num_encoder_right"]) == (6, 2, 4)
    assert found["sub_street_accuracy"] == pytest.approx(21 / 40)
    assert found["SA@1"] == pytest.approx(12 / 20)
    assert found["by_town"]["b"] == {"street_accuracy": pytest.approx(11 / 20), "sub_street_accuracy": 9 / 20}


def test_the_tables_name_options_deviation_and_the_encoder() -> None:
    dev = [result(name, town, n, 10) for name, n in (("none", 3), ("three", 9)) for town in "ab"]
    dev[-1] = result("three", "b", 11, 10)
    report = [result("three", "c", 10, 10)]
    text = format_methods({"none": "--hints=0", "three": "--hints=3"}, dev, report, "three")
    assert "Development: a, b, 40 photos." in text
    assert "Report: c, 20 photos." in text
    assert "| AddressCLIP alone (SA@1, SSA@1) | | 60.0 | 50.0 |" in text
    assert "| none | `--hints=0` | 25.0 ± 0.0 | 15.0 ± 0.0 | 15.0 | 6: 2, 4 | -35.0" in text
    assert "| **three** | `--hints=3` | 60.0 ± 7.1 | 50.0 ± 7.1 | 50.0 | 6: 2, 4 | +0.0" in text


def test_a_method_is_trained_once_and_asked_as_often_as_it_is_listed(tmp_path: Path) -> None:
    town_folders(tmp_path, *"abc")
    settings = settings_of(
        tmp_path, "--asked", "three: shuffled", "--projector_first", "aligned", "--stage2_options=--lora_dropout=0.5",
        "--evaluate_options=--tasks where",
    )  # fmt: skip
    settings.refuse_impossible()
    assert settings.names == ["none", "three", "aligned", AGAIN]
    alone = "--lora_rank=0 --dialogues=captions"
    assert settings.shown_options() == {
        "none": "--hints=0", "three": "--hints=3", "aligned": f"{alone}, then --hints=3 --lora_rank=4",
    }  # fmt: skip
    runs = tmp_path / "out" / "runs" / "a"
    tuned, own, again = commands(settings, "three", ["three", AGAIN], tmp_path / "a")
    assert tuned.output == runs / "three" / "model"
    assert {"--hints=3", "--lora_dropout=0.5", "--base=BASE", f"--clip={tmp_path / 'a' / 'stage1'}"} < {
        *tuned.arguments
    }
    assert own.arguments[-2:] == ("--tasks", "where")
    assert "--hints=shuffled" in again.arguments
    assert f"--model={tuned.output}" in again.arguments
    assert again.output != own.output
    aligned, merged, trained, _ = commands(settings, "aligned", ["aligned"], tmp_path / "a")
    assert {"--lora_rank=0", "--dialogues=captions"} < {*aligned.arguments}
    assert f"--model={aligned.output}" in merged.arguments
    assert f"--base={merged.output}" in trained.arguments
    assert "--lora_rank=4" in trained.arguments


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["--methods", "only: --hints=1"], "at least two methods"),
        (["--methods", "a: --hints=1", "a: --hints=2"], "a name of its own"),
        (["--methods", "a: --hints=1", "b: --hnts=2"], "method 'b': unknown option --hnts"),
        (["--stage2_options=--lora_rank=big"], "method 'none': .*lora_rank"),
        (["--asked", "two: none"], "--asked 'two: none': allowed"),
        (["--asked", "three: own"], "--asked 'three: own': allowed"),
        (["--projector_first", "two"], "--projector_first two: allowed: names of --methods"),
        (["--parallel", "0"], "--parallel 0"),
        (["--report_towns", "d"], "d/data: not finished"),
        (["--dev_towns"], "dev_towns"),
    ],
)
def test_mistakes_are_named_before_anything_is_made(tmp_path: Path, given: list[str], why: str) -> None:
    town_folders(tmp_path, *"abc")
    with pytest.raises(UserError, match=why):
        settings_of(tmp_path, *given).refuse_impossible()
    assert not (tmp_path / "out").exists()


def test_one_town_is_not_taken_for_development_and_report(tmp_path: Path) -> None:
    town_folders(tmp_path, *"abc")
    with pytest.raises(UserError, match="different folders"):
        settings_of(tmp_path, "--report_towns", str(tmp_path / "a")).refuse_impossible()


def test_the_config_of_the_repository_is_read(tmp_path: Path) -> None:
    given = ["--config=train/configs/stage2_towns.yaml", "--base=b", "--output=o"]
    towns = town_folders(tmp_path, *"abc")
    names = ["--dev_towns", *map(str, towns[:2]), "--report_towns", str(towns[2])]
    (settings,) = parse_config(Stage2TownsSettings, description="", argv=[*given, *names])
    settings.refuse_impossible()
    assert settings.names[0] == "no hints"


def test_an_evaluation_that_lost_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match=r"photos\.csv.*the same command evaluates again"):
        read_result("three", "a", tmp_path, 1.0)


@pytest.mark.slow
def test_methods_are_tuned_asked_and_compared_by_the_real_commands(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    for town in (tmp_path / name for name in "abc"):
        town.mkdir()
        (town / "data").symlink_to(tiny_folders.data)
        (town / "stage1").symlink_to(tiny_folders.clip)
    output, base = tmp_path / "out", tiny_folders.llava.parent / "base_llava"
    given = ["--dev_towns", str(tmp_path / "a"), str(tmp_path / "b"), "--report_towns", str(tmp_path / "c"),
             "--methods", "none: --hints=0", "one: --hints=1", "--asked", "one: none", "--projector_first", "one",
             "--stage2_options=--use_cpu=true --lora_rank=2 --max_steps=2 --disable_tqdm=true --learning_rate=1e-2",
             "--projector_options=--lora_rank=0 --dialogues=captions --hints=0",
             "--evaluate_options=--no_shuffle_photos --no_photos_in_report --max_new_tokens=8",
             "--parallel=2"]  # fmt: skip
    command = [sys.executable, "-m", "train.stage2_towns", f"--base={base}", f"--output={output}", *given]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((output / "methods.json").read_text())
    assert set(found["development"]) == {"none", "one", "one, asked with none"}
    assert set(found["report"]) == {"none", found["best"]}
    assert "| AddressCLIP alone (SA@1, SSA@1) |" in done.stdout
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "already complete, nothing to do" in again.stdout
