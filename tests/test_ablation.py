"""The comparison of methods as a command, and its tables."""

import json
from pathlib import Path

import pytest

from llava_ial.config import parse_config
from llava_ial.errors import UserError
from llava_ial.manifest import read_manifest
from tests.tiny_world import build_tiny_base_clip, build_tiny_dataset
from train import ablation
from train.ablation_settings import LOSSES, AblationSettings
from train.ablation_tables import MethodResult, format_tables
from train.training_runs import TrainingRuns

ROOT = Path(__file__).resolve().parents[1]


def result(name: str, hits_of_seed: dict[int, list[bool]], **costs: float) -> MethodResult:
    found = MethodResult(name)
    for seed, hits in hits_of_seed.items():
        share = sum(hits) / len(hits)
        metrics = {"num_photos": len(hits), "SSA@1": share, "SSA@5": 1.0, "SA@1": share, "SA@5": 1.0}
        found.add(seed, metrics, {f"p{i}": [1 if hit else 3, 1] for i, hit in enumerate(hits)}, **costs)
    return found


def test_the_tables_show_means_spread_published_figures_and_the_paired_test():
    faithful = result("AddressCLIP", {1: [True] * 10 + [False] * 10, 2: [True] * 12 + [False] * 8}, seconds=10.0)
    other = result("CLIP + address", {1: [True] * 6 + [False] * 14}, seconds=8.0, peak_bytes=2e6)
    searched = result("retrieval of training photos", {1: [True] * 20}, gallery_bytes=5e5, query_milliseconds=0.25)
    remarks = ["CLIP + CoCoOp learnt from 2 of the 20 training photos."]
    text = format_tables([faithful, other, searched], {f"p{i}": str(i) for i in range(20)}, remarks)
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    methods = text.split("## Losses")[0]
    assert "| AddressCLIP | 2 | 55.00 ± 7.07 | 100.00 ± 0.00 |" in methods
    assert "| CLIP + address | 1 | 30.00 |" in methods
    assert "-25.00 [" in methods
    assert "77.66 / 93.28 / 80.86 / 94.17" in methods
    assert "83.66 / 96.32 / 85.76 / 96.85" in methods
    assert "81.84 / 95.38 / 84.56 / 95.79" in methods
    assert f"\n\n{remarks[0]}\n\n" in methods
    assert lines["retrieval of training photos"].endswith("| 0.500 | 0.250 |")
    assert "| CLIP + address | 8.0 | 2 |" in text


def arguments(*given: str) -> list[str]:
    return ["--data=a", "--base=b", "--output=c", *given]


def test_the_config_of_the_toy_city_is_read_and_possible():
    path = ROOT / "train" / "configs" / "ablation_toy.yaml"
    (settings,) = parse_config(AblationSettings, description="", argv=[f"--config={path}", *arguments()])
    settings.refuse_impossible()
    assert set(LOSSES) < set(settings.methods)
    assert settings.remarks(2952) == ["CLIP + CoCoOp learnt from 200 of the 2952 training photos."]
    assert settings.remarks(200) == []
    assert "--num_epochs" in settings.stage1_options


@pytest.mark.parametrize(("name", "value", "why"), [
    ("stage1_options", "--batch_size=0", "CLIP . address: --batch_size 0"),
    ("prompt_options", "--depth=0", "--prompt_options: --depth 0: allowed: at least 1"),
    ("parallel", 0, "--parallel 0: allowed: at least 1"),
])  # fmt: skip
def test_options_of_trainings_are_checked_before_the_first_one(name: str, value: object, why: str):
    settings = AblationSettings(Path(), "", Path())
    setattr(settings, name, value)
    with pytest.raises(UserError, match=why):
        settings.refuse_impossible()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["--methods", "CLAP"], "--methods CLAP: allowed: zero-shot CLIP"),
        (["--methods", "retrieval of training photos"], "add that too"),
        (["--variants", "--positives=multi"], "NAME: --option"),
        (["--variants", "AddressCLIP: --positives=multi"], "'addressclip' twice"),
        (["--variants", "multi: --positives=all"], "multi: --positives all: allowed: paper, multi, geo"),
        (["--variants", "fast: --speed=2"], "fast: unknown option --speed=2"),
    ],
)
def test_mistakes_are_named(given: list[str], why: str):
    settings = AblationSettings(Path(), "", Path())
    setattr(settings, given[0].removeprefix("--"), given[1:])
    with pytest.raises(UserError, match=why):
        settings.refuse_impossible()


def test_an_encoder_to_search_with_is_looked_at_before_anything_is_trained(tmp_path: Path, monkeypatch):
    build_tiny_dataset(tmp_path / "data")
    base = build_tiny_base_clip(tmp_path / "base", tmp_path / "data")
    given = [f"--data={tmp_path / 'data'}", f"--base={base}", f"--output={tmp_path / 'out'}"]
    monkeypatch.setattr("sys.argv", ["ablation.py", *given, "--retrieval_features", str(tmp_path / "no_such_encoder")])
    with pytest.raises(UserError, match="no_such_encoder: no such folder"):
        ablation.main()
    assert not (tmp_path / "out").exists()


def test_the_memory_of_a_training_is_its_own_and_not_that_of_who_started_it(tmp_path: Path):
    ballast = bytearray(400_000_000)
    code, _, peak = TrainingRuns()._run(
        ["-c", "import time; b = bytearray(80_000_000); time.sleep(0.5)"], tmp_path / "log"
    )
    assert code == 0
    assert 80e6 < peak < 200e6 < len(ballast)


@pytest.mark.slow
def test_methods_are_run_once_each_and_measured_alike(tmp_path: Path, monkeypatch, capsys):
    build_tiny_dataset(tmp_path / "data")
    base = build_tiny_base_clip(tmp_path / "base", tmp_path / "data")
    config = tmp_path / "ablation.yaml"
    config.write_text(
        "seeds: [3]\neval_split: train\n"
        "methods: [zero-shot CLIP, AddressCLIP, CLIP + CoOp, retrieval of training photos]\n"
        "variants: ['multi: --positives=multi', 'three views and memory: --views=3 --memory_weight=3']\n"
        f"retrieval_features: ['{base}']\nparallel: 2\n"
        "stage1_options: --cpu=true --num_workers=0 --num_epochs=20 --batch_size=8 --learning_rate=3e-3\n"
        "prompt_options: --cpu=true --num_workers=0 --num_epochs=1\n"
    )
    output = tmp_path / "out"
    given = [f"--config={config}", f"--data={tmp_path / 'data'}", f"--base={base}", f"--output={output}"]
    monkeypatch.setattr("sys.argv", ["ablation.py", *given])
    ablation.main()
    read_manifest(output, "ablation")
    names = {path.stem for path in (output / "results").iterdir()}
    assert names == {"zero_shot_clip", "addressclip", "clip_coop", "retrieval_of_training_photos", "multi",
                     "retrieval_of_training_photos_base", "three_views_and_memory"}  # fmt: skip
    runs = {path.name for path in (output / "runs").iterdir() if path.is_dir()}
    assert runs == {"addressclip-3", "multi-3", "clip_coop-3"}  # views and memory need no training of their own
    tuned = json.loads((output / "results" / "addressclip.json").read_text())
    stored = json.loads((output / "runs" / "addressclip-3" / "manifest.json").read_text())
    places = json.loads((output / "ranks" / "addressclip.json").read_text())["3"]
    assert sum(piece == 1 for piece, _ in places.values()) == tuned["metrics"]["3"]["SSA@1"] * len(places)
    assert set(tuned["metrics"]["3"]) <= set(stored["config"]) | {"num_photos", "SSA@1", "SSA@5", "SA@1", "SA@5"}
    assert tuned["costs"]["3"]["seconds"] > 0 < tuned["costs"]["3"]["peak_bytes"]
    viewed = json.loads((output / "results" / "three_views_and_memory.json").read_text())
    assert viewed["costs"]["3"]["seconds"] == tuned["costs"]["3"]["seconds"]
    assert tuned["costs"]["3"]["gallery_bytes"] == 8 * 32 * 4 < viewed["costs"]["3"]["gallery_bytes"]
    found = json.loads((output / "results" / "retrieval_of_training_photos.json").read_text())
    assert found["metrics"]["3"]["SSA@1"] == 1  # the training photos find themselves
    assert found["costs"]["3"]["gallery_bytes"] == 8 * (32 * 4 + 8)
    assert "## Losses" in capsys.readouterr().out
    (output / "manifest.json").rename(output / "building.json")
    (output / "results" / "multi.json").unlink()
    monkeypatch.setattr(ablation.Ablation, "_locate", lambda *_: pytest.fail("a finished method ran again"))
    with pytest.raises(pytest.fail.Exception, match="ran again"):  # of "multi" alone: it reaches its ranking
        ablation.main()
    assert (output / "results" / "addressclip.json").exists()
