"""Batch evaluation: what is asked, measured, compared and said, and which settings are refused."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.evaluation.questions import derange_by_street, load_questions
from llava_ial.inference import Answer
from serve.backends import as_backend
from serve.evaluate import evaluate
from tests.evaluation_runs import Flaky, config, lines, predictor, published
from tests.tiny_world import TinyWorld, build_tiny_dataset

__all__ = ["config", "predictor"]


def test_a_model_that_knows_its_photos_by_heart(config, predictor, capsys) -> None:
    metrics = evaluate(config, as_backend(predictor, config))
    assert metrics["answers"]["rates"]["street_accuracy"]["value"] == 1.0
    assert metrics["answers"]["rates"]["sub_street_accuracy"]["value"] == 1.0
    assert metrics["shuffled_photos"]["rates"]["street_accuracy"]["value"] == 0.0
    assert metrics["shuffled_photos"]["num_same_street"] == 0
    assert metrics["questions"] == {"asked": 8, "num_given_away": 8, "num_other_tasks": 0}
    assert set(metrics["ranking"]) == {"SA@1", "SA@5", "SSA@1", "SSA@5", "num_photos", "num_failed", "rates"}
    printed = capsys.readouterr().out
    assert "Memorisation check" in printed
    assert "8 of 8 answers name the right street: 100.0 %" in printed
    assert "With the photos shuffled: 0.0 %; the answers come from the pixels." in printed
    assert json.loads((config.output / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert (config.output / "metrics.md").read_text() in printed
    assert [row["shown_image_id"] is None for row in lines(config.output / "predictions.jsonl")] == [True] * 8
    shown = [row["shown_image_id"] for row in lines(config.output / "predictions_shuffled.jsonl")]
    assert len(set(shown)) == 8

    dialogues = metrics["dialogues"]
    assert (dialogues["num_answers"], dialogues["rates"]["neighbourhood_question_accuracy"]["value"]) == (8, 1.0)
    assert dialogues["consistency"]["kinds_consistency"]["value"] == 1.0

    evaluate(config, None)  # complete: no model is needed
    assert "already complete" in capsys.readouterr().out


def test_a_question_that_is_given_away_is_asked_after_the_models_own_answers(config, predictor) -> None:
    """A model that says nonsense first is asked on with its nonsense, not with the true address."""
    seen = []

    class Nonsense(Flaky):
        def answer_batch(self, dialogues, photos, **settings):
            seen.extend(dialogues)
            return [Answer("" if len(dialogue) == 1 else "Riverside", "stop") for dialogue in dialogues]

    config.shuffle_photos = False
    metrics = evaluate(config, as_backend(Nonsense(predictor, 0, KeyboardInterrupt()), config))
    follow_ups = [dialogue for dialogue in seen if len(dialogue) > 1]
    assert len(follow_ups) == 8
    assert {dialogue[1].content for dialogue in follow_ups} == {"..."}
    assert follow_ups[0][0].content.startswith("<image>\n")
    assert follow_ups[0][2].content == "Which neighbourhood is that?"
    assert metrics["dialogues"]["rates"]["neighbourhood_question_accuracy"]["value"] == 0.5
    assert "neighbourhood_question_accuracy" not in metrics["answers"]["rates"]
    config.output, config.dialogues = config.output.with_name("without"), False
    assert "dialogues" not in evaluate(config, as_backend(predictor, config))


@pytest.mark.parametrize("batch_size", [1, 5])
def test_results_do_not_depend_on_the_batch(config, predictor, batch_size, tmp_path) -> None:
    evaluate(config, as_backend(predictor, config))
    expected = published(config.output)
    config.output, config.batch_size = tmp_path / "other", batch_size
    evaluate(config, as_backend(predictor, config))
    assert published(config.output) == expected
    run = json.loads((config.output / "run.json").read_text())
    assert (run["batch_size"], run["dtype"], run["num_processes"]) == (batch_size, "torch.float32", 1)


def test_the_record_of_a_run_names_the_device_that_was_taken(config, predictor, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config.device = "auto"
    evaluate(config, as_backend(predictor, config))
    assert json.loads((config.output / "run.json").read_text())["device"] == "cpu"


def test_a_stage_1_folder_is_ranked_alone(config, tiny_folders, capsys) -> None:
    config.model = str(tiny_folders.clip)
    metrics = evaluate(config)
    assert "answers" not in metrics
    assert not (config.output / "predictions.jsonl").exists()
    assert "SSA@1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["colour"]}, "unknown kind of question 'colour'"),
        ({"tasks": ["city"]}, "has no question of the kinds city"),
        ({"split": "exam"}, "split 'exam' is unknown"),
        ({"batch_size": 0}, "--batch_size 0: at least 1"),
        ({"dtype": "int3"}, "--dtype 'int3' is unknown"),
        ({"model": "nowhere"}, "nowhere: no manifest.json"),
        ({"data": Path("nowhere")}, "nowhere: no manifest.json"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(config, change, message) -> None:
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(UserError, match=message):
        evaluate(config)
    assert not config.output.exists()


def test_another_list_of_addresses_is_refused(config, tmp_path) -> None:
    config.data = build_tiny_dataset(tmp_path / "other", TinyWorld(num_addresses=6))
    with pytest.raises(UserError, match="another list of addresses"):
        evaluate(config)


def test_questions_are_asked_alone_and_without_what_is_given_away(tiny_folders) -> None:
    questions = load_questions(IALDataset(tiny_folders.data), "train")
    assert {question.task for question in questions.asked} == {"where"}
    assert all(len(q.messages) == 1 and q.messages[0].content == f"<image>\n{q.text}" for q in questions.asked)
    assert "<image>" not in questions.asked[0].text


@given(st.lists(st.integers(0, 4), min_size=2, max_size=30), st.integers(0, 3))
def test_shuffling_is_a_permutation_that_changes_streets_where_it_can(streets, seed) -> None:
    street_of = {f"photo-{i}": (str(street), "") for i, street in enumerate(streets)}
    shown = derange_by_street(sorted(street_of), street_of, seed)
    assert sorted(shown) == sorted(shown.values()) == sorted(street_of)
    assert all(image != other for image, other in shown.items())
    if 2 * max(Counter(streets).values()) <= len(streets):
        assert all(street_of[image] != street_of[other] for image, other in shown.items())
    assert shown == derange_by_street(sorted(street_of), street_of, seed)


def test_two_evaluations_are_compared_question_by_question(config, predictor, tmp_path, capsys) -> None:
    evaluate(config, as_backend(predictor, config))
    answers = [json.loads(line) for line in (config.output / "predictions.jsonl").read_text().splitlines()]
    wrong = [row | {"answer": "Nowhere Lane"} if i < 3 else row for i, row in enumerate(answers)]
    (tmp_path / "worse.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wrong))
    other = replace(
        config, model=None, predictions=tmp_path / "worse.jsonl", output=tmp_path / "other", compare=config.output
    )
    evaluate(other)
    compared = json.loads((other.output / "compared.json").read_text())
    street = compared["street_accuracy"]
    assert street["value"] == pytest.approx(-3 / 8)
    assert (street["num_only_first"], street["num_only_second"], street["num_answers"]) == (0, 3, 8)
    assert street["low"] <= street["value"] <= street["high"]
    assert "street named right" in capsys.readouterr().out

    evaluate(replace(config, compare=other.output))  # both are complete: nobody is asked
    mirrored = json.loads((config.output / "compared.json").read_text())
    assert mirrored["street_accuracy"]["value"] == pytest.approx(3 / 8)
    assert "SSA@1" not in mirrored, "the other one ranks nothing"
    with pytest.raises(UserError, match="an evaluation of other questions"):
        evaluate(replace(config, split="test", output=tmp_path / "third", compare=config.output))


@pytest.mark.slow
def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "serve.evaluate", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    wrong = run("--model", str(tmp_path / "none"), "--data", str(tmp_path), "--output", str(tmp_path / "out"))
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert wrong.stderr.startswith("error: ")
    text = run("--help").stdout
    assert "memorisation check" in text
    assert "--no_shuffle_photos" in text
