"""Visitors at once: the chat, and the same model behind `transformers serve`.

    python benchmarks/serve.py                                     a tiny model, made on the spot
    python benchmarks/serve.py --model runs/x/stage2 --data runs/x/data --plain runs/x/merged

The chat is measured as it is, with the questions of several visitors in one batch, and with one question after the
other. Every visitor brings a photo and asks about it; every answer is compared with the one that the model gives to
that photo alone, so an answer that belongs to another visitor is counted. Writes benchmarks/results/serve.json and
prints it.
"""

import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx
import numpy as np
import psutil
from openai import OpenAI

from llava_ial.config import parse_config
from llava_ial.conversation import user_question
from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError, run_command
from llava_ial.inference import AddressPredictor
from llava_ial.manifest import write_json
from llava_ial.prompts import PUBLISHED_QUESTION

MAX_TOKENS = 128
RESULTS = Path("benchmarks/results/serve.json")
Ask = Callable[[Path, str], str]


@dataclass
class BenchmarkConfig:
    """What is measured."""

    model: Path | None = field(default=None, metadata={"help": "folder of stage 2; a tiny one is made by default"})
    data: Path | None = field(default=None, metadata={"help": "data set whose training photos the visitors bring"})
    plain: Path | None = field(
        default=None, metadata={"help": "the same model as one plain folder; without it the chat alone is measured"}
    )
    visitors: int = field(default=32, metadata={"help": "at once"})
    questions: int = field(default=5, metadata={"help": "of each visitor, one after the other"})
    output: Path = field(default=RESULTS, metadata={"help": "JSON to write"})


@dataclass(frozen=True)
class Load:
    """What came of it; times in seconds, memory of the server's process in MB after each round of questions.

    ``*_cpu_s`` are the processors' seconds per answer: they tell the work, whatever else the machine does.
    """

    answers: int
    errors: int
    mixed_up: int
    p50_s: float
    p95_s: float
    answers_per_s: float
    server_cpu_s: float
    visitors_cpu_s: float
    memory_mb: list[int]


def main() -> None:
    """Measures the chat, then plain transformers."""
    (config,) = parse_config(BenchmarkConfig, description=__doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        model, data, plain = config.model, config.data, config.plain
        if model is None:
            from tests.tiny_models import build_tiny_models

            made = build_tiny_models(Path(folder))
            model, data, plain = made.llava, made.data, made.llava.parent / "base_llava"
        if data is None:
            raise UserError("--model needs --data: the photos that the visitors bring")
        expected = answer_alone(model, data, config.visitors)
        result: dict[str, Any] = {"visitors": config.visitors, "questions": config.questions, "cpus": os.cpu_count()}
        for name, options in (("chat", []), ("chat_one_by_one", ["--batch_size", "1"])):
            with serving(chat_command(model, *options), "/health") as (url, process):
                result[name] = asdict(measure(lambda: ask_chat(url), expected, config, process))
        if plain is not None:
            with serving(plain_command(plain), "/health") as (url, process):
                result["transformers_serve"] = asdict(measure(lambda: ask_plain(url, plain), expected, config, process))
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.output, result)
    print(json.dumps(result, indent=2))


def answer_alone(model: Path, data: Path, visitors: int) -> dict[Path, str]:
    """Each visitor's photo and what the model says of it when nobody else asks."""
    dataset = IALDataset(data)
    photos = list(dict.fromkeys(dataset.image_file(r.image_path) for r in dataset.conversations("train")))[:visitors]
    predictor = AddressPredictor.from_pretrained(model)
    return {photo: predictor.answer([user_question(PUBLISHED_QUESTION)], photo).text for photo in photos}


def measure(
    connect: Callable[[], Ask], expected: Mapping[Path, str], config: BenchmarkConfig, process: psutil.Process
) -> Load:
    """Lets all visitors ask at once, in rounds; a visitor of a later round does not wait for the others."""
    photos = list(expected)
    seconds: list[float] = []
    errors, mixed_up = [], []
    memory: dict[int, int] = {}

    def visit(number: int) -> None:
        photo = photos[number % len(photos)]
        ask = connect()
        for turn in range(config.questions):
            started = time.monotonic()
            try:
                answer = ask(photo, PUBLISHED_QUESTION)
            except Exception as error:  # whatever a client raises is a failed answer here
                errors.append(f"{type(error).__name__}: {error}")
                continue
            seconds.append(time.monotonic() - started)
            if answer != expected[photo]:
                mixed_up.append(answer)
            memory[turn] = process.memory_info().rss // 2**20

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(config.visitors)]
    this = psutil.Process()
    started, *before = time.monotonic(), _cpu_s(process), _cpu_s(this)
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    duration = time.monotonic() - started
    work = [_cpu_s(p) - spent for p, spent in zip((process, this), before, strict=True)]
    for error in errors[:3]:
        print(error, file=sys.stderr)
    p50, p95 = np.percentile(seconds, [50, 95]).round(3).tolist() if seconds else (0.0, 0.0)
    return Load(
        answers=len(seconds),
        errors=len(errors),
        mixed_up=len(mixed_up),
        p50_s=p50,
        p95_s=p95,
        answers_per_s=round(len(seconds) / duration, 3),
        server_cpu_s=round(work[0] / max(1, len(seconds)), 4),
        visitors_cpu_s=round(work[1] / max(1, len(seconds)), 4),
        memory_mb=[memory[turn] for turn in sorted(memory)],
    )


def _cpu_s(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return spent.user + spent.system


def ask_chat(url: str) -> Ask:
    """A visitor of the chat, by the requests that a browser sends; ``gradio_client`` would be the slower half of it."""
    client = httpx.Client(base_url=f"{url}/gradio_api", timeout=600)
    session = uuid.uuid4().hex

    def ask(photo: Path, question: str) -> str:
        stored = client.post("/upload", files={"files": (photo.name, photo.read_bytes())}).json()[0]
        data = [{"path": stored, "meta": {"_type": "gradio.FileData"}}, question]
        call = client.post("/call/ask", json={"data": data, "session_hash": session}).json()["event_id"]
        lines = client.get(f"/call/ask/{call}").text.splitlines()
        event, said = lines[-3:-1] if lines[-1] == "" else lines[-2:]
        if event != "event: complete":
            raise RuntimeError(f"{event}: {said}")
        return str(json.loads(said.removeprefix("data: "))[0])

    return ask


def ask_plain(url: str, model: Path) -> Ask:
    """A visitor of an OpenAI-compatible server."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0)

    def ask(photo: Path, question: str) -> str:
        image = "data:image/jpeg;base64," + base64.b64encode(photo.read_bytes()).decode()
        content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": question}]
        pieces = client.chat.completions.create(
            model=str(model), messages=[{"role": "user", "content": content}], max_tokens=MAX_TOKENS, stream=True
        )
        return "".join(p.choices[0].delta.content or "" for p in pieces if p.choices).strip()

    return ask


def chat_command(model: Path, *options: str) -> list[str]:
    """The chat, without a port."""
    return [sys.executable, "-m", "serve.chat", "--model", str(model), "--max_waiting", "256", *options, "--port"]


def plain_command(model: Path) -> list[str]:
    """An OpenAI-compatible server of plain transformers, without a port; the one command that docs/serving.md names."""
    transformers = str(Path(sys.executable).with_name("transformers"))
    return [transformers, "serve", str(model), "--port"]


@contextmanager
def serving(command: list[str], probe: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server that answers, in a process of its own on a free port.

    Raises:
        UserError: It ended before it answered.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen([*command, str(port)], stdout=log, stderr=log, env=env) as p,
    ):
        try:
            while not _answers(url + probe):
                if p.poll() is not None:
                    log.seek(0)
                    raise UserError(f"{command[0]} ended with {p.returncode}: {log.read().decode()[-2000:]}")
                time.sleep(0.2)
            yield url, psutil.Process(p.pid)
        finally:
            p.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1).status_code == 200
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    run_command(main)
