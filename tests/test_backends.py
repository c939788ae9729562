"""Who can be evaluated: a server, a file of answers, any image-text model of transformers."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.evaluation.generation import PredictionFile
from llava_ial.evaluation.questions import load_questions
from llava_ial.manifest import MANIFEST
from serve import backends
from serve.evaluate import EvaluateConfig, evaluate
from tests.fake_server import fails, says, server
from tests.stage2_runs import merge_here
from tests.tiny_models import TinyFolders


def test_an_evaluation_over_a_server_counts_tokens_and_asks_failed_ones_again(tiny_folders, tmp_path) -> None:
    def answers(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        says("The address of this photo might be Amber Street, Old Town, Tinytown, TT, Toyland.")(handler, body)

    config = EvaluateConfig(
        tiny_folders.data, tmp_path / "out", "hosted", split="train", shuffle_photos=False, dialogues=False, retries=0,
        concurrency=1,
        price_in=2.0, price_out=10.0,
    )  # fmt: skip
    with server(answers, fails(500), answers) as (config.server, asked):
        with pytest.raises(UserError, match="1 questions have no answer"):
            evaluate(config)
        assert not (config.output / MANIFEST).exists()
        metrics = evaluate(config)
    assert len(asked) == 9
    assert "ranking" not in metrics
    assert metrics["answers"]["rates"]["street_accuracy"]["value"] == 2 / 8
    run = json.loads((config.output / "run.json").read_text())
    assert (run["prompt_tokens"], run["completion_tokens"]) == (4800, 56)
    assert run["cost"] == pytest.approx((4800 * 2 + 56 * 10) / 1e6)
    assert "secret" not in (config.output / MANIFEST).read_text()


def _file(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_answers_of_somebody_else_are_scored(tiny_folders, tmp_path) -> None:
    questions = load_questions(IALDataset(tiny_folders.data), "train").asked
    rows = [
        {("id", "question_id", "image_id")[i % 3]: q.image_id if i % 3 == 2 else q.question_id,
         ("text", "answer", "response")[i % 3]: q.expected if i else "Nowhere Lane"}
        for i, q in enumerate(questions)
    ]  # fmt: skip
    path = _file(tmp_path / "answers.jsonl", *rows, {"question_id": "another", "answer": "x"})
    config = EvaluateConfig(tiny_folders.data, tmp_path / "out", split="train", predictions=path)
    metrics = evaluate(config)
    assert metrics["answers"]["rates"]["street_accuracy"]["value"] == 7 / 8
    assert "shuffled_photos" not in metrics
    again = EvaluateConfig(
        tiny_folders.data, tmp_path / "again", split="train", predictions=config.output / "predictions.jsonl"
    )
    assert evaluate(again)["answers"] == metrics["answers"]


def test_letters_that_end_lines_elsewhere_end_none_here(tiny_folders, tmp_path) -> None:
    """U+2028 and U+0085 stand unescaped in JSON, and a file may begin with a byte order mark."""
    questions = load_questions(IALDataset(tiny_folders.data), "train").asked
    rows = [{"question_id": q.question_id, "answer": f"One\u2028two\u0085three: {q.expected}"} for q in questions]
    path = tmp_path / "a.jsonl"
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    config = EvaluateConfig(tiny_folders.data, tmp_path / "out", split="train", predictions=path)
    metrics = evaluate(config)
    assert metrics["answers"]["rates"]["street_accuracy"]["value"] == 1.0
    written = PredictionFile(config.output / "predictions.jsonl")
    assert {record.answer for record in written.by_question.values()} == {row["answer"] for row in rows}


def test_a_question_without_an_answer_is_failed_and_not_wrong(tiny_folders, tmp_path) -> None:
    questions = load_questions(IALDataset(tiny_folders.data), "train").asked
    path = _file(tmp_path / "a.jsonl", *({"question_id": q.question_id, "answer": q.expected} for q in questions[:5]))
    config = EvaluateConfig(tiny_folders.data, tmp_path / "out", split="train", predictions=path)
    with pytest.raises(UserError, match="3 questions have no answer"):
        evaluate(config)
    metrics = json.loads((config.output / "metrics.json").read_text())
    assert metrics["answers"]["num_failed"] == 3
    assert metrics["answers"]["rates"]["street_accuracy"]["value"] == 1.0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": "none", "answer": "x"}], "none of its 1 lines"),
        ([{"answer": "x"}], "line 1: expected an object"),
        ([{"image_id": "tiny-000", "answer": "x"}, {"image_id": "tiny-000", "answer": "y"}], "line 2: a second answer"),
    ],
)
def test_files_that_cannot_be_scored(tiny_folders, tmp_path, rows, message) -> None:
    path = _file(tmp_path / "a.jsonl", *rows)
    config = EvaluateConfig(tiny_folders.data, tmp_path / "out", split="train", predictions=path)
    with pytest.raises(UserError, match=message):
        evaluate(config)
    assert not config.output.exists()


def test_settings_that_contradict_each_other(tiny_folders, tmp_path) -> None:
    for change, message in (
        ({}, "--model: name a folder"),
        ({"predictions": Path("a"), "model": "m"}, "asks nobody"),
        ({"model": "m", "server": "nonsense"}, "expected an address"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(EvaluateConfig(tiny_folders.data, tmp_path / "out", **change))
        assert not (tmp_path / "out").exists()


def test_a_plain_model_of_transformers_answers_like_the_folder_that_it_is_the_base_of(tiny_folders, tmp_path) -> None:
    """The tiny adapter changes nothing, so its base answers alike: same prompt, same photo, same words."""
    base = tiny_folders.data.parent / "base_llava"
    config = EvaluateConfig(
        tiny_folders.data, tmp_path / "out", str(base), split="train", max_new_tokens=90, shuffle_photos=False,
        batch_size=3,
    )  # fmt: skip
    metrics = evaluate(config)
    assert metrics["answers"]["rates"]["sub_street_accuracy"]["value"] == 1.0
    assert metrics["answers"]["num_truncated"] == 0


def test_a_model_that_is_none_is_named(tiny_folders, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    config = EvaluateConfig(tiny_folders.data, tmp_path / "out", str(tmp_path / "empty"), split="train")
    with pytest.raises(UserError, match="is no image-text model"):
        evaluate(config)


@pytest.mark.slow
@pytest.mark.parametrize("is_merged", [False, True])
def test_transformers_serve_is_a_server(tiny_folders: TinyFolders, tmp_path, is_merged: bool) -> None:
    """Over HTTP with photos, for a plain LLaVA and for what ``train.merge`` writes."""
    command = shutil.which("transformers", path=str(Path(sys.executable).parent))
    assert command is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = tiny_folders.data.parent / "base_llava"
    if is_merged:
        model = merge_here(tiny_folders.llava, tmp_path / "merged", device="cpu")
    log = (tmp_path / "log").open("w")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    arguments = ["serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    process = subprocess.Popen([command, *arguments], stdout=log, stderr=log, env=environment)
    try:
        deadline = time.time() + 90
        while process.poll() is None and time.time() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        config = EvaluateConfig(
            tiny_folders.data, tmp_path / "out", str(model), server=f"http://127.0.0.1:{port}/v1", split="train",
            max_new_tokens=90, shuffle_photos=False, concurrency=1, retries=1,
        )  # fmt: skip
        metrics = evaluate(config)
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()
    # The server sees a JPEG of the photo, so a pixel may differ and a street with it; the words must be address words.
    assert metrics["answers"]["num_failed"] == 0, (tmp_path / "log").read_text()[-2000:]
    assert metrics["answers"]["rates"]["unparsed_rate"]["value"] == 0.0
    assert metrics["answers"]["rates"]["street_accuracy"]["value"] >= 0.75


@pytest.mark.parametrize(("rank", "gpus", "device"), [(0, 2, "cuda:0"), (1, 2, "cuda:1"), (1, 1, "cuda:0")])
def test_processes_take_a_gpu_each_or_share_the_one(rank: int, gpus: int, device: str, monkeypatch) -> None:
    monkeypatch.setattr(backends, "world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr(backends, "choose_device", lambda name: "cuda" if name == "auto" else name)
    assert backends.own_device("auto") == device
    assert backends.own_device("cpu") == "cpu"
