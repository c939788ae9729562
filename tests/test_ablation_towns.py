"""The comparison over towns: what is chosen, what is compared, and what is trained for it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from llava_ial.config import parse_config
from llava_ial.errors import UserError
from llava_ial.evaluation.statistics import paired_difference
from llava_ial.locating import Way
from llava_ial.manifest import read_manifest
from llava_ial.training.clip_settings import ClipSettings
from tests.tiny_world import TinyWorld, build_tiny_base_clip, build_tiny_dataset
from train import ablation_towns
from train.towns_settings import TownsSettings
from train.towns_tables import Choice, TownResult, choose, format_towns, verdict
from train.training_runs import TrainingRuns

ROOT = Path(__file__).resolve().parents[1]


def town_result(method: str, rate: float, town: int, hits: list[bool]) -> TownResult:
    share = sum(hits) / len(hits)
    ranks = {f"p{i}": [1 if hit else 9, 1 if hit else 2] for i, hit in enumerate(hits)}
    metrics = {"SSA@1": share, "SSA@5": share, "SA@1": share, "SA@5": 1.0}
    return TownResult(
        method, rate, town, metrics, ranks, {f"p{i}": str(i // 2) for i in range(len(hits))}, {"seconds": 3.0}
    )


def hits(right: int, of: int = 20) -> list[bool]:
    return [i < right for i in range(of)]


def test_the_best_rate_is_that_of_the_mean_over_towns_and_the_best_method_is_another_one() -> None:
    names = ["faithful", "a", "b"]
    right = {("faithful", 1.0): (5, 17), ("faithful", 2.0): (12, 12), ("a", 1.0): (9, 9), ("a", 2.0): (9, 9),
             ("b", 1.0): (3, 3), ("b", 2.0): (8, 9)}  # fmt: skip
    sweep = [town_result(*run, 11 + i, hits(found[i])) for run, found in right.items() for i in (0, 1)]
    assert choose(names, sweep) == Choice("faithful", "a", {"faithful": 2.0, "a": 1.0, "b": 2.0})


def test_the_verdict_is_of_the_photos_of_all_towns_by_panorama() -> None:
    choice = Choice("faithful", "a", {"faithful": 2.0, "a": 1.0})
    report = [town_result("faithful", 2.0, town, hits(n)) for town, n in ((21, 10), (22, 12))]
    report += [town_result("a", 1.0, town, hits(n)) for town, n in ((21, 15), (22, 18))]
    found = verdict(choice, report)
    assert (found["first_wrong"], found["wrong"]) == (pytest.approx(18 / 40), pytest.approx(7 / 40))
    assert found["fewer_wrong"] == pytest.approx(1 - 7 / 18)
    assert found["fewer_wrong_by_town"] == {"21": pytest.approx(0.5), "22": pytest.approx(0.75)}
    # Panoramas of two towns are not one panorama, whatever they are called.
    assert (found["num_photos"], found["num_panoramas"]) == (40, 20)
    pairs = [(float(a), float(b), (t, i // 2)) for t, x, y in ((21, 15, 10), (22, 18, 12))
             for i, (a, b) in enumerate(zip(hits(x), hits(y), strict=True))]  # fmt: skip
    expected = paired_difference(*map(list, zip(*pairs, strict=True)))
    assert (found["difference"], found["p_value"]) == (expected.value, expected.p_value)
    assert found["aim_is_reached"] is (expected.p_value < 0.05)


def test_the_tables_name_choice_edges_and_verdict() -> None:
    right = {
        ("faithful", 1.0): 5,
        ("faithful", 2.0): 6,
        ("faithful", 4.0): 4,
        ("a", 1.0): 6,
        ("a", 2.0): 7,
        ("a", 4.0): 9,
    }
    sweep = [town_result(method, rate, 11, hits(n)) for (method, rate), n in right.items()]
    choice = choose(["faithful", "a"], sweep)
    report = [town_result("faithful", 2.0, t, hits(8)) for t in (21, 22)]
    report += [town_result("a", 4.0, t, hits(16)) for t in (21, 22)]
    text = format_towns([1.0, 2.0, 4.0], sweep, choice, report, verdict(choice, report))
    assert "| faithful | 25.0 | **30.0** | 20.0 |" in text
    assert "| a | 30.0 | 35.0 | **45.0** |" in text
    assert "At an end of the sweep, so perhaps not yet the best: a." in text
    assert "| faithful | 2 | 40.0 ± 0.0 | 40.0 ± 0.0 | 40.0 ± 0.0 | 100.0 ± 0.0 |  |  |  |  |" in text
    assert "| a | 4 | 80.0 ± 0.0 |" in text
    assert "**a** has 66.7 % fewer wrong answers than faithful" in text
    assert "the aim, 25% with p below 0.05, is reached" in text


def settings_of(*given: str) -> TownsSettings:
    (settings,) = parse_config(TownsSettings, description="", argv=["--base=b", "--output=o", *given])
    return settings


def test_the_config_is_read_and_compares_equals() -> None:
    settings = settings_of(f"--config={ROOT / 'train' / 'configs' / 'ablation_towns.yaml'}")
    settings.refuse_impossible()
    trained = settings.trained()
    faithful, way = trained[settings.names[0]]
    assert way == Way()
    plain = ClipSettings(Path(), "", Path())
    for name in (
        "positives", "address_weight", "caption_weight", "geography_weight", "text_rate_factor", "weight_decay",
        "spread_addresses", "max_per_address", "layer_decay", "geography_reading",
    ):  # fmt: skip
        assert getattr(faithful, name) == getattr(plain, name)
    assert trained["recommended"][1] == Way("parts", 30.0, 4.0)
    assert (settings.dev_towns, settings.report_towns) == ([11, 12, 13], [21, 22, 23, 24, 25])


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["--methods", "only:"], "at least two"),
        (["--methods", "a:", "A:"], "a name of its own"),
        (["--methods", "a:", "no options"], "'NAME: --option value ...', or 'NAME:'"),
        (["--methods", "a:", "b: --positives=none"], "method 'b': --positives none"),
        (["--methods", "a:", "b: --speed=9"], "method 'b': unknown option --speed=9"),
        (["--methods", "a:", "b: --num_epochs=50"], "method 'b': --num_epochs is the same for all"),
        (["--methods", "a:", "b: --colour_jitter=0.2"], "method 'b': --colour_jitter is the same for all"),
        (["--methods", "a:", "b: --learning_rate=1"], "method 'b': --learning_rate is set by --rates"),
        (["--rates", "1e-3", "0.001"], "different ones above 0"),
        (["--dev_towns", "11", "21"], "different towns"),
        (["--eval_split", "some"], "--eval_split some"),
        (["--parallel", "0"], "--parallel 0"),
    ],
)
def test_mistakes_are_named_before_anything_is_made(given: list[str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        settings_of(*given).refuse_impossible()


class FakeRuns(TrainingRuns):
    """Writes down what would be trained."""

    asked: list[ClipSettings]

    def _train(self, settings: Any) -> dict[str, float]:
        self.asked.append(settings)
        return {"seconds": 1.0, "peak_bytes": 1.0}


class FakeCity:
    """Places photos by the name of the folder that it is given: the more of them right, the better the method."""

    def __init__(self, model: str, dataset: Any, **_: object) -> None:
        self.right = {"faithful-0.001": 4, "faithful-0.002": 6, "other-0.001": 7, "other-0.002": 5}[Path(model).name]

    def ranks(self, split: str, way: Way) -> tuple[torch.Tensor, torch.Tensor]:
        right = self.right + (way.views == "3")
        ranks = torch.tensor([1] * right + [9] * (10 - right))
        return ranks, ranks


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The command with towns of twelve test photos and trainings that take no time; its output folder."""
    build_tiny_dataset(tmp_path / "any")
    build_tiny_base_clip(tmp_path / "base", tmp_path / "any")
    FakeRuns.asked = []

    def town(folder: Path, seed: int, size: str) -> None:
        if not (folder / "data").exists():
            build_tiny_dataset(folder / "data", TinyWorld(num_test=10, seed=seed))

    monkeypatch.setattr(ablation_towns, "make_town", town)
    monkeypatch.setattr(ablation_towns, "TrainingRuns", FakeRuns)
    monkeypatch.setattr(ablation_towns, "EncodedCity", FakeCity)
    given = ["--dev_towns", "11", "12", "--report_towns", "21", "22", "--rates", "1e-3", "2e-3", "--parallel=2"]
    methods = ["--methods", "faithful:", "faithful, three: --views=3", "other: --positives=multi",
               "other, three: --positives=multi --views=3"]  # fmt: skip
    places = [f"--base={tmp_path / 'base'}", f"--output={tmp_path / 'out'}"]
    monkeypatch.setattr("sys.argv", ["ablation_towns.py", *places, *given, *methods])
    return tmp_path / "out"


def test_each_training_is_run_once_and_the_report_needs_only_the_chosen(faked: Path, capsys) -> None:
    ablation_towns.main()
    folders = sorted(f"{settings.output.parent.name}/{settings.output.name}" for settings in FakeRuns.asked)
    chosen, others = ("faithful-0.002", "other-0.001"), ("faithful-0.001", "other-0.002")
    expected = {11: chosen + others, 12: chosen + others, 21: chosen, 22: chosen}
    assert folders == sorted(f"town-{town}/{name}" for town, names in expected.items() for name in names)
    for settings in FakeRuns.asked:
        assert settings.final_learning_rate == pytest.approx(settings.learning_rate * 1e-3)
        assert (settings.views, settings.memory_weight, settings.checkpoint_every) == ("1", 0.0, 0)
        assert settings.seed == int(settings.output.parent.name.removeprefix("town-"))
        assert settings.data.parent.name == str(settings.seed)
    found = json.loads((faked / "verdict.json").read_text())
    assert (found["first"], found["best"]) == ("faithful", "other, three")
    assert found["rates"] == {"faithful": 0.002, "faithful, three": 0.002, "other": 0.001, "other, three": 0.001}
    assert found["fewer_wrong"] == pytest.approx(0.5)
    reported = {path.name for path in (faked / "results" / "town-21").iterdir()}
    assert reported == {
        "faithful-0.002.json",
        "faithful_three-0.002.json",
        "other-0.001.json",
        "other_three-0.001.json",
    }
    assert read_manifest(faked, "ablation_towns")["verdict"]["best"] == "other, three"
    assert found["sweep"]["other, three"]["0.001"] == {"11": 0.8, "12": 0.8}
    picture = ElementTree.fromstring((faked / "towns.svg").read_text())
    dots = [title.text for title in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert len(dots) == 4 * 2 * 2  # methods, rates, towns
    assert dots.count("other, three, 0.001: 80.0 %") == 2
    assert (faked / "towns.md").read_text() in capsys.readouterr().out


def test_what_is_finished_is_not_run_again(faked: Path, monkeypatch, capsys) -> None:
    broken = FakeCity.ranks

    def fail(self: FakeCity, split: str, way: Way) -> tuple[torch.Tensor, torch.Tensor]:
        if len(list((faked / "results").glob("*/*"))) == 5:
            raise KeyboardInterrupt
        return broken(self, split, way)

    with monkeypatch.context() as patch:
        patch.setattr(FakeCity, "ranks", fail)
        with pytest.raises(KeyboardInterrupt):
            ablation_towns.main()
    first = {str(settings.output) for settings in FakeRuns.asked}
    kept = {path: path.stat().st_mtime_ns for path in (faked / "results").glob("*/*")}
    assert len(kept) == 5
    assert len(first) <= 8
    ablation_towns.main()
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    FakeRuns.asked.clear()
    ablation_towns.main()
    assert not FakeRuns.asked
    assert "already complete" in capsys.readouterr().out


@pytest.mark.slow
def test_towns_are_made_trained_on_and_compared_by_the_real_commands(tmp_path: Path) -> None:
    build_tiny_dataset(tmp_path / "any")
    base = build_tiny_base_clip(tmp_path / "base", tmp_path / "any")
    given = ["--dev_towns", "11", "--report_towns", "21", "--rates", "1e-3", "3e-3", "--size=tiny", "--parallel=2",
             "--stage1_options=--cpu=true --num_workers=0 --num_epochs=2 --batch_size=16",
             "--methods", "faithful:", "three: --views=3"]  # fmt: skip
    command = [sys.executable, "-m", "train.ablation_towns", f"--base={base}", f"--output={tmp_path / 'out'}", *given]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=220, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "# Against the faithful AddressCLIP" in done.stdout
    assert len(list((tmp_path / "out" / "runs").glob("*/*/manifest.json"))) in (3, 4)
