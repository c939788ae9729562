"""The table over several demos."""

import json
from pathlib import Path

import pytest

from llava_ial.errors import UserError
from train.demo_seeds import figures, format_table, over_towns


def write_run(folder: Path, *, ssa: float, street: float) -> Path:
    rate = {"value": street}
    said = ("street_accuracy", "sub_street_accuracy", "nonexistent_address_rate")
    metrics = {
        "ranking": {"SSA@1": ssa, "SSA@5": 0.9, "SA@1": 0.6, "SA@5": 0.95},
        "baselines": {"1-NN": {"SSA@1": 0.1}, "zero-shot": {"SSA@1": 0.2}},
        "answers": {"rates": dict.fromkeys(said, rate)},
        "shuffled_photos": {"rates": {"street_accuracy": {"value": 0.04}}},
        "against_encoder": {"street": {"num_differ": 7, "num_right": 1, "num_encoder_right": 3}},
    }  # fmt: skip
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    (folder / "times.tsv").write_text("a town\t38\nstage 1: AddressCLIP\t400\na town\t2\n")
    return folder


def test_differences_means_and_deviations_over_towns(tmp_path: Path) -> None:
    towns = {
        "one": figures(write_run(tmp_path / "one", ssa=0.5, street=0.55)),
        "two": figures(write_run(tmp_path / "two", ssa=0.6, street=0.65)),
    }
    assert towns["one"]["SSA@1 above the best baseline"] == 30.0
    assert towns["one"]["street in words, above SA@1"] == -5.0
    assert towns["one"]["seconds: all"] == 440
    ways = {"ways": [{"metrics": {"SSA@1": 0.3456}}]}
    (tmp_path / "one" / "untuned.json").write_text(json.dumps(ways))
    assert figures(tmp_path / "one")["SSA@1, untuned, located alike"] == 34.6
    average = over_towns(towns, lambda values: sum(values) / len(values))
    assert average["SSA@1"] == 55.0
    assert average["street in words, above SA@1"] == 0.0
    table = format_table({"towns": towns, "mean": average}).splitlines()
    assert table[0] == "| | one | two | mean |"
    assert "| SSA@1 | 50 | 60 | 55 |" in table


def test_an_unfinished_demo_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluation/metrics\.json.*make demo"):
        figures(tmp_path)
    whole = write_run(tmp_path / "run", ssa=0.5, street=0.5) / "evaluation" / "metrics.json"
    metrics = json.loads(whole.read_text())
    del metrics["baselines"]
    whole.write_text(json.dumps(metrics))
    with pytest.raises(UserError, match="run: its evaluation has no baselines"):
        figures(tmp_path / "run")
