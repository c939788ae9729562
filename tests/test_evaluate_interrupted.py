"""Batch evaluation with trouble: every question once, nothing lost by a kill, failures counted and asked again."""

import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.evaluation.generation import PredictionFile
from llava_ial.inference import Answer
from llava_ial.manifest import MANIFEST
from serve.backends import as_backend
from serve.evaluate import evaluate
from tests.evaluation_runs import Flaky, config, lines, predictor, published
from tests.tiny_world import build_tiny_dataset

__all__ = ["config", "predictor"]


def test_stopped_at_any_write_and_continued(config, predictor, tmp_path) -> None:
    evaluate(config, as_backend(predictor, config))
    expected = published(config.output)
    config.batch_size = 1  # four questions between two writes
    for break_at in (1, 2, 3, 5, 6):
        config.output = tmp_path / f"broken-{break_at}"
        broken = Flaky(predictor, break_at, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            evaluate(config, as_backend(broken, config))
        again = Flaky(predictor, 0, KeyboardInterrupt())
        evaluate(config, as_backend(again, config))
        assert len(broken.asked) + len(again.asked) == 24, "asked twice, or not at all"
        assert published(config.output) == expected


def test_a_second_run_in_a_folder_waits_for_the_first(config, predictor) -> None:
    """Both would ask everything, and of a hosted model that costs twice."""
    refused = []

    class Meanwhile(Flaky):
        def answer_batch(self, dialogues, photos, **settings) -> list[Answer]:
            with pytest.raises(UserError, match="another process works on it"):
                evaluate(config, as_backend(predictor, config))
            refused.append(True)
            return super().answer_batch(dialogues, photos, **settings)

    evaluate(config, as_backend(Meanwhile(predictor, 0, KeyboardInterrupt()), config))
    assert refused


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_torn_last_line_is_asked_again(config, predictor, tmp_path, cut) -> None:
    evaluate(config, as_backend(predictor, config))
    expected = published(config.output)
    path = config.output / "predictions.jsonl"
    (config.output / MANIFEST).rename(config.output / "building.json")
    path.write_bytes(path.read_bytes()[:-cut])
    again = Flaky(predictor, 0, KeyboardInterrupt())
    evaluate(config, as_backend(again, config))
    assert len(again.asked) == 1
    assert published(config.output) == expected


def test_a_broken_line_in_the_middle_is_named(tmp_path) -> None:
    (tmp_path / "p.jsonl").write_text('{"question_id": 1}\n')
    with pytest.raises(UserError, match="line 1: no prediction"):
        PredictionFile(tmp_path / "p.jsonl")


def test_failed_answers_are_counted_and_retried(config, predictor, tmp_path) -> None:
    evaluate(config, as_backend(predictor, config))
    expected = published(config.output)
    config.output, config.batch_size = tmp_path / "failing", 1
    with pytest.raises(UserError, match="8 questions have no answer"):
        evaluate(config, as_backend(Flaky(predictor, 2, RuntimeError("out of memory"), num_breaks=5), config))
    metrics = json.loads((config.output / "metrics.json").read_text())
    assert (metrics["answers"]["num_failed"], metrics["answers"]["num_answers"]) == (4, 4)
    assert metrics["answers"]["rates"]["street_accuracy"]["value"] == 1.0
    failed = [row for row in lines(config.output / "predictions.jsonl") if row["finish_reason"] == "error"]
    assert [row["error"] for row in failed] == ["RuntimeError: out of memory"] * 4
    again = Flaky(predictor, 0, KeyboardInterrupt())
    evaluate(config, as_backend(again, config))
    assert len(again.asked) == 4 + 4, "the failed ones, and what follows them in their dialogues"
    assert published(config.output) == expected


def test_an_unreadable_photo_fails_alone(config, predictor, tmp_path) -> None:
    config.data = build_tiny_dataset(tmp_path / "data")
    dataset = IALDataset(config.data)
    sample = dataset.samples("train")[3]
    dataset.image_file(sample.photo.image_path).write_bytes(b"no image")
    with pytest.raises(UserError, match="3 questions have no answer"):
        evaluate(config, as_backend(predictor, config))
    failed = [row for row in lines(config.output / "predictions.jsonl") if row["finish_reason"] == "error"]
    assert [row["image_id"] for row in failed] == [sample.photo.image_id]
    assert "is no image" in failed[0]["error"]
    assert json.loads((config.output / "metrics.json").read_text())["ranking"]["num_failed"] == 1
    assert not (config.output / MANIFEST).exists()


def test_another_evaluation_in_the_folder_is_refused(config, predictor) -> None:
    evaluate(config, as_backend(predictor, config))
    config.seed = 1
    with pytest.raises(UserError, match="holds another run"):
        evaluate(config, as_backend(predictor, config))


@pytest.mark.slow
def test_the_command_survives_kill_9(config, predictor, tiny_folders, tmp_path) -> None:
    evaluate(config, as_backend(predictor, config))
    expected = published(config.output)
    output = tmp_path / "killed"
    command = [
        sys.executable, "-m", "serve.evaluate", "--model", str(tiny_folders.llava), "--data", str(tiny_folders.data),
        "--split", "train", "--output", str(output), "--batch_size", "1", "--max_new_tokens", "90",
    ]  # fmt: skip
    draw = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.time() + 60
        while process.poll() is None and time.time() < deadline and not list(output.glob("predictions*")):
            time.sleep(0.01)
        time.sleep(draw.random())
        process.kill()
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert published(output) == expected


@pytest.mark.slow
def test_two_processes_come_to_the_same_results(config, predictor, tiny_folders, tmp_path) -> None:
    evaluate(config, as_backend(predictor, config))
    expected = published(config.output)
    output = tmp_path / "two"
    launcher = [str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [
        *launcher, "-m", "serve.evaluate", "--model", str(tiny_folders.llava), "--data", str(tiny_folders.data),
        "--split", "train", "--output", str(output), "--batch_size", "3", "--max_new_tokens", "90", "--device", "cpu",
    ]  # fmt: skip
    # A process of a run that was killed has left its share behind.
    with pytest.raises(KeyboardInterrupt):
        evaluate(replace(config, output=output), as_backend(Flaky(predictor, 1, KeyboardInterrupt()), config))
    rows = (config.output / "predictions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (output / "predictions.7.part").write_text("".join(rows[:3]), encoding="utf-8")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("# Evaluation on split") == 1
    assert published(output) == expected
