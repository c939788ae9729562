"""The client of a server of chat completions: what goes out, and what a server that misbehaves comes to."""

import json
import socket
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from PIL import Image

from llava_ial.conversation import user_question
from llava_ial.errors import UserError
from llava_ial.evaluation.generation import Failure, StopAskingError
from llava_ial.inference import Answer
from serve.completions import KEY_VARIABLE, CompletionsClient, ServerSettings
from tests.fake_server import breaks_off, cuts, drips, fails, garbles, says, server


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
