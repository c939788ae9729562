"""Who can be evaluated: a server that misbehaves, a file of answers, any image-text model of transformers."""

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_ial.conversation import user_question
from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.evaluation.generation import Failure, PredictionFile, StopAskingError
from llava_ial.evaluation.questions import load_questions
from llava_ial.inference import Answer
from llava_ial.manifest import MANIFEST
from serve.completions import KEY_VARIABLE, CompletionsClient, ServerSettings
from serve.evaluate import EvaluateConfig, evaluate
from tests.stage2_runs import merge_here
from tests.tiny_models import TinyFolders

Reply = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


def _send(handler: BaseHTTPRequestHandler, content: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def says(text: str | None, end: str = "stop", **message: Any) -> Reply:
    reply = {
        "choices": [{"message": {"role": "assistant", "content": text, **message}, "finish_reason": end}],
        "usage": {"prompt_tokens": 600, "completion_tokens": 7},
    }
    return lambda handler, body: _send(handler, json.dumps(reply).encode())


def fails(status: int, **headers: str) -> Reply:
    return lambda handler, body: _send(handler, b'{"error": "busy"}', status, **headers)


def garbles(content: bytes) -> Reply:
    return lambda handler, body: _send(handler, content)


def cuts(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    """Promises more than it sends, then hangs up."""
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')


@contextmanager
def server(*replies: Reply) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives these replies one after another, the last one for ever, and what it was asked."""
    asked: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                reply = replies[min(len(asked), len(replies) - 1)]
                asked.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
            reply(self, body)

        def log_message(self, *args: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1", asked
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def ask(url: str, num: int = 1, **settings: Any) -> tuple[list[Answer | Failure], list[float]]:
    waits: list[float] = []
    client = CompletionsClient(ServerSettings(url, "some-model", concurrency=1, **settings), sleep=waits.append)
    photo = Image.new("RGB", (64, 48), (200, 10, 10))
    dialogues = [[user_question(f"Where is number {i}?")] for i in range(num)]
    return list(client.answer_batch(dialogues, [photo] * num, batch_size=4, max_new_tokens=11)), waits


def test_a_question_goes_out_as_the_protocol_has_it(monkeypatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret-key")
    with server(says("Grant Street.")) as (url, asked):
        (answer,), _ = ask(url)
    assert answer == Answer("Grant Street.", "stop", prompt_tokens=600, completion_tokens=7)
    ((body),) = asked
    assert (body["path"], body["key"]) == ("/v1/chat/completions", "Bearer secret-key")
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("some-model", 0, 11)
    image, text = body["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")
    assert text == {"type": "text", "text": "Where is number 0?"}


@pytest.mark.parametrize(
    "trouble",
    [
        fails(429), fails(500), fails(503), cuts, garbles(b"<html>busy</html>"), garbles(b"[1]"), garbles(b"{}"),
        garbles(b'{"choices": []}'), garbles(b'{"choices": [{"message": null}]}'), says(None), says("  "),
    ],
)  # fmt: skip
def test_trouble_that_passes_is_waited_out(trouble) -> None:
    with server(trouble, trouble, says("Grant Street.")) as (url, asked):
        (answer,), waits = ask(url)
    assert isinstance(answer, Answer)
    assert answer.text == "Grant Street."
    assert len(asked) == 3
    assert 0.5 <= waits[0] <= 1.5
    assert 1 <= waits[1] <= 3


def test_it_waits_as_long_as_it_is_told() -> None:
    with server(fails(429, Retry_After="7"), fails(429, Retry_After="soon"), says("Yes")) as (url, _):
        _, waits = ask(url)
    assert waits[0] == 7
    assert waits[1] <= 3


def test_trouble_that_stays_is_recorded_with_its_question() -> None:
    with server(says("Grant Street."), fails(500)) as (url, asked):
        answers, waits = ask(url, 2, retries=2)
    assert [type(answer) for answer in answers] == [Answer, Failure]
    assert answers[1] == Failure('HTTP 500: {"error": "busy"} (3 attempts)')
    assert (len(asked), len(waits)) == (4, 2)


def test_a_question_that_is_refused_for_good_is_not_asked_again() -> None:
    with server(fails(400)) as (url, asked):
        (answer,), _ = ask(url)
    assert isinstance(answer, Failure)
    assert "HTTP 400" in answer.error
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (says(None, refusal="I can't help with locating people."), "I can't help with locating people."),
        (says(None, end="content_filter"), "Sorry, I cannot answer that (content filter)."),
    ],
)
def test_a_refusal_is_an_answer(reply, text) -> None:
    with server(reply) as (url, asked):
        (answer,), _ = ask(url)
    assert isinstance(answer, Answer)
    assert answer.text == text
    assert len(asked) == 1


def test_an_answer_that_was_cut_says_so() -> None:
    with server(says("Grant Str", end="length")) as (url, _):
        (answer,), _ = ask(url)
    assert isinstance(answer, Answer)
    assert answer.finish_reason == "length"


@pytest.mark.parametrize(("status", "why"), [(401, "refuses the key"), (403, "refuses the key"), (404, "not found")])
def test_what_is_wrong_with_all_questions_ends_it(status, why) -> None:
    with server(fails(status)) as (url, _), pytest.raises(StopAskingError, match=why):
        ask(url)


def test_a_server_that_is_not_there_ends_it() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(StopAskingError, match=r"answered none of the first 2 questions: .*refused"):
        ask(url, 2, retries=1)


def breaks_off(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    """An error whose explanation never comes: the connection is reset."""
    handler.send_response(500)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.shutdown(socket.SHUT_RDWR)


def drips(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    """Sends a byte now and then, each in time."""
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(60):
            handler.wfile.write(b" ")
            time.sleep(0.05)


@pytest.mark.parametrize("trouble", [breaks_off, drips, garbles(b"[" * 100_000)])
def test_trouble_in_the_middle_of_a_reply_is_waited_out_too(trouble) -> None:
    with server(trouble, says("Grant Street.")) as (url, asked):
        (answer,), _ = ask(url, timeout_s=0.4)
    assert isinstance(answer, Answer)
    assert len(asked) == 2


@pytest.mark.parametrize("usage", [None, [], "much", {"prompt_tokens": "600"}])
def test_counts_that_are_none_are_left_out(usage) -> None:
    reply = {"choices": [{"message": {"content": "Grant \ud800 Street."}, "finish_reason": "stop"}], "usage": usage}
    with server(garbles(json.dumps(reply).encode())) as (url, _):
        (answer,), _ = ask(url)
    assert answer == Answer("Grant ? Street.", "stop")  # half a pair of surrogates could not be written down


def test_the_key_goes_nowhere_else(monkeypatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret-key")
    with server(says("Grant Street.")) as (other, asked):
        for status in (302, 307):
            with server(fails(status, Location=other)) as (url, _), pytest.raises(StopAskingError, match="sends on to"):
                ask(url)
    assert not asked


def test_many_requests_at_a_time_keep_their_questions(monkeypatch) -> None:
    def late_first(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        number = int(body["messages"][0]["content"][1]["text"].split()[-1].rstrip("?"))
        time.sleep(0.02 * (8 - number))
        says(f"Answer {number}")(handler, body)

    with server(late_first) as (url, _):
        client = CompletionsClient(ServerSettings(url, "some-model", concurrency=4))
        photo = Image.new("RGB", (8, 8))
        dialogues = [[user_question(f"Where is number {i}?")] for i in range(8)]
        answers = client.answer_batch(dialogues, [photo] * 8, batch_size=1, max_new_tokens=9)
    assert [answer.text for answer in answers if isinstance(answer, Answer)] == [f"Answer {i}" for i in range(8)]


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc/passwd", "http://"])
def test_an_address_that_is_none_is_refused(url) -> None:
    with pytest.raises(UserError, match="expected an address"):
        ServerSettings(url, "m")


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
