"""Asks a model behind an OpenAI-compatible server: a hosted one, vLLM, ``transformers serve``.

What a server does wrong is retried where waiting may help (429, 5xx, a cut or garbled reply, no reply in time) and
recorded with the question where it does not. A photo is sent as its decoded pixels: no EXIF position goes with it.
"""

import base64
import http.client
import io
import json
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from llava_ial.conversation import IMAGE_TOKEN, Message
from llava_ial.errors import UserError
from llava_ial.evaluation.generation import Failure, StopAskingError
from llava_ial.inference import LENGTH, STOP, Answer

# Read from the environment: a key on the command line would stand in every list of processes.
KEY_VARIABLE = "OPENAI_API_KEY"
_MAX_SIDE_PX = 1024
_JPEG_QUALITY = 92
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_KEY_REFUSED = (401, 403)
_MAX_REPLY_BYTES = 16 * 2**20


@dataclass(frozen=True)
class ServerSettings:
    """How a server is asked.

    Attributes:
        url: Up to and including ``/v1``.
        model: Its name on the server.
        concurrency: Requests at a time.
        retries: How often a request is tried again.
        timeout_s: Longest wait for one reply.
    """

    url: str
    model: str
    concurrency: int = 8
    retries: int = 5
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(f"--server '{self.url}': expected an address such as http://localhost:8000/v1")


class _RetryError(Exception):
    """Waiting may help; ``wait_s`` is what the server asked for, None if it said nothing."""

    def __init__(self, why: str, wait_s: float | None = None) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nobody: the key is for the server that was named, and would go along."""

    def redirect_request(self, *args: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


class CompletionsClient:
    """A model behind a server, asked like any other.

    Args:
        settings: How to reach it; the key is read from the environment variable ``OPENAI_API_KEY``.
        sleep: Waits so many seconds.
    """

    def __init__(self, settings: ServerSettings, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._settings = settings
        self._sleep = sleep
        self._endpoint = f"{settings.url.rstrip('/')}/chat/completions"
        self._has_answered = False
        self._jitter = random.Random(0)  # noqa: S311 (spreads retries, no secret)

    def answer_batch(
        self,
        dialogues: Sequence[Sequence[Message]],
        photos: Sequence[Image.Image],
        *,
        batch_size: int,
        max_new_tokens: int,
    ) -> list[Answer | Failure]:
        """One answer, or why there is none, for each dialogue.

        Raises:
            StopAskingError: The server refuses the key, does not know the model, or has never answered at all.
        """
        urls = {id(photo): _data_url(photo) for photo in photos}
        bodies = [
            self._body(messages, urls[id(photo)], max_new_tokens)
            for messages, photo in zip(dialogues, photos, strict=True)
        ]
        with ThreadPoolExecutor(max_workers=self._settings.concurrency) as pool:
            answers = list(pool.map(self._answer, bodies))
        self._has_answered |= any(isinstance(answer, Answer) for answer in answers)
        if not self._has_answered and len(answers) > 1:
            first = next(answer.error for answer in answers if isinstance(answer, Failure))
            raise StopAskingError(f"{self._endpoint} answered none of the first {len(answers)} questions: {first}")
        return answers

    def _body(self, messages: Sequence[Message], photo_url: str, max_new_tokens: int) -> dict[str, Any]:
        turns: list[dict[str, Any]] = []
        for message in messages:
            text = message.content.replace(IMAGE_TOKEN, "").strip()
            content: Any = text
            if IMAGE_TOKEN in message.content:
                content = [{"type": "image_url", "image_url": {"url": photo_url}}, {"type": "text", "text": text}]
            turns.append({"role": message.role, "content": content})
        return {"model": self._settings.model, "messages": turns, "max_tokens": max_new_tokens, "temperature": 0}

    def _answer(self, body: dict[str, Any]) -> Answer | Failure:
        why = ""
        for attempt in range(self._settings.retries + 1):
            try:
                return _read_reply(self._post(body))
            except _RetryError as error:
                why = str(error)
                if attempt < self._settings.retries:
                    self._sleep(self._wait_s(attempt, error.wait_s))
        return Failure(f"{why} ({self._settings.retries + 1} attempts)")

    def _wait_s(self, attempt: int, asked_s: float | None) -> float:
        """What the server asked for, else twice as long each time, spread so that not all come back at once."""
        if asked_s is not None:
            return min(asked_s, _LONGEST_WAIT_S)
        return min(_FIRST_WAIT_S * 2**attempt, _LONGEST_WAIT_S) * self._jitter.uniform(0.5, 1.5)

    def _post(self, body: dict[str, Any]) -> dict[str, Any] | Failure:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._endpoint, json.dumps(body).encode(), headers)  # noqa: S310 (checked)
        try:
            with _OPENER.open(request, timeout=self._settings.timeout_s) as reply:
                content = _read_within(reply, self._settings.timeout_s)
        except urllib.error.HTTPError as error:
            return _refused(error, _body_of(error), self._endpoint)
        except (OSError, http.client.HTTPException) as error:  # no connection, time-out, a reply that was cut
            raise _RetryError(f"{type(error).__name__}: {error}") from error
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _RetryError(f"the reply is no JSON: {content[:80]!r}") from error
        if not isinstance(found, dict):
            raise _RetryError(f"the reply is no JSON object: {content[:80]!r}")
        return found


def _read_within(reply: http.client.HTTPResponse, limit_s: float) -> bytes:
    """A reply that may come in pieces; the socket's own time-out is for each piece, so they could go on for ever."""
    ends, content = time.monotonic() + limit_s, b""
    while (part := reply.read1(_MAX_REPLY_BYTES)) and len(content) < _MAX_REPLY_BYTES:
        content += part
        if time.monotonic() > ends:
            raise TimeoutError(f"no whole reply within {limit_s:g} s")
    return content


def _body_of(error: urllib.error.HTTPError) -> str:
    """The beginning of what came with a status code; "" where the connection broke before it came."""
    try:
        with error:
            return error.read(500).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException):
        return ""


def _refused(error: urllib.error.HTTPError, said: str, endpoint: str) -> Failure:
    """What a status code means: wait and try again, stop, or an answer that this question will never get."""
    if error.code in _KEY_REFUSED:
        raise StopAskingError(f"{endpoint} refuses the key ({error.code}); set {KEY_VARIABLE} in the environment")
    if 300 <= error.code < 400:
        raise StopAskingError(
            f"{endpoint} sends on to {error.headers.get('Location')} ({error.code}); name that in --server, if trusted"
        )
    if error.code == http.HTTPStatus.NOT_FOUND:
        raise StopAskingError(f"{endpoint}: not found ({said or error.reason}); are --server and --model right?")
    if error.code in (408, 409, 429) or error.code >= 500:
        raise _RetryError(
            f"HTTP {error.code}: {said or error.reason}", _retry_after_s(error.headers.get("Retry-After"))
        )
    return Failure(f"HTTP {error.code}: {said or error.reason}")


def _retry_after_s(header: str | None) -> float | None:
    """Seconds that the server asks to wait; a date, which few servers send, is not read."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None


def _read_reply(reply: dict[str, Any] | Failure) -> Answer | Failure:
    if isinstance(reply, Failure):
        return reply
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise _RetryError(f"the reply has no answer in it: {json.dumps(reply)[:200]}") from error
    usage = reply.get("usage")
    # A model that refuses has answered: it is counted as a refusal and not asked again.
    said = text if isinstance(text, str) and text.strip() else refusal
    if choice.get("finish_reason") == "content_filter" and not said:
        said = "Sorry, I cannot answer that (content filter)."
    if not isinstance(said, str):
        raise _RetryError(f"the reply has no text: {json.dumps(reply)[:200]}")
    return Answer(
        # Half of a surrogate pair, which JSON can hold, could not be written down.
        said.strip().encode("utf-8", "replace").decode("utf-8"),
        LENGTH if choice.get("finish_reason") == "length" else STOP,
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
    )


def _count(usage: object, name: str) -> int | None:
    """Tokens that a server counted; None where it counted none, or something else."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else None


def _data_url(photo: Image.Image) -> str:
    small = photo.copy()
    small.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
