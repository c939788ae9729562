"""The chat as its visitors and as programs meet it: a real server on the loopback interface with a tiny model."""

import asyncio
import base64
import contextlib
import io
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from prometheus_client.parser import text_string_to_metric_families

from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.inference import AddressPredictor
from llava_ial.prompts import PUBLISHED_QUESTION
from serve import logins
from serve.chat import ChatConfig, choose_examples, load_predictor, refuse_bad_settings, refuse_busy_port
from tests.tiny_models import TinyFolders


@pytest.fixture(scope="session")
def predictor(tiny_folders: TinyFolders) -> AddressPredictor:
    return AddressPredictor.from_pretrained(tiny_folders.llava)


@pytest.fixture(scope="session")
def photos(tiny_folders: TinyFolders) -> list[tuple[Path, str]]:
    """Each training photo and the answer to the published question about it."""
    dataset = IALDataset(tiny_folders.data)
    return [(dataset.image_file(r.image_path), r.messages[1].content) for r in dataset.conversations("train")]


def free_port() -> int:
    with socket.socket() as test:
        test.bind(("127.0.0.1", 0))
        return test.getsockname()[1]


@pytest.fixture(scope="session")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="session")
def server(tiny_folders: TinyFolders, temporary: Path) -> Iterator[str]:
    """The real command in a process of its own, which may not connect to anything beyond this computer."""
    port = free_port()
    with chat_process(tiny_folders, port, temporary, "--mcp", "true", pause_s=0.02):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def uploads(server: str, temporary: Path) -> Path:
    """Where the server keeps what was sent to it."""
    (folder,) = temporary.glob("llava-ial-uploads-*")
    return folder


# Ends the process at the first connection beyond this computer, and can slow the tiny model to a pace that can be seen.
GUARDED = """
import os, runpy, socket, sys, time
connect = socket.socket.connect
def guarded(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost", "0.0.0.0"):
        print("refused", address, file=sys.stderr, flush=True)
        os._exit(3)
    return connect(self, address)
socket.socket.connect = guarded
from llava_ial.models.running_batch import RunningBatch
step = RunningBatch.step
def at_leisure(self):
    time.sleep(float(os.environ.get("PAUSE_S", "0")))
    return step(self)
RunningBatch.step = at_leisure
sys.argv = ["chat", *sys.argv[1:]]
runpy.run_module("serve.chat", run_name="__main__")
"""


@contextlib.contextmanager
def chat_process(
    folders: TinyFolders, port: int, temporary: Path, *options: str, pause_s: float = 0.0
) -> Iterator[subprocess.Popen]:
    """``python -m serve.chat``, open when the body begins; uploads go below ``temporary``."""
    env = os.environ | {"TMPDIR": str(temporary), "PAUSE_S": str(pause_s)}
    process = subprocess.Popen(
        [sys.executable, "-c", GUARDED, "--model", str(folders.llava), "--port", str(port), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        line = next((line for line in process.stdout if "http" in line), "")
        assert f"http://127.0.0.1:{port}" in line, process.communicate()[1]
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="session")
def client(server: str) -> Client:
    return Client(server, verbose=False, analytics_enabled=False)


def test_programs_ask_and_get_a_growing_answer(client, photos) -> None:
    path, expected = photos[0]
    job = client.submit(handle_file(path), PUBLISHED_QUESTION, api_name="/ask")
    assert job.result(timeout=60) == expected
    pieces = job.outputs()
    assert len(pieces) > 2
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(pieces))


def test_programs_get_candidates(client, photos, predictor) -> None:
    path, _ = photos[1]
    found = client.predict(handle_file(path), api_name="/locate")
    assert [(row["address"], pytest.approx(row["probability"], abs=1e-6)) for row in found] == [
        (candidate.address_text, candidate.probability) for candidate in predictor.locate(path)
    ]


def test_only_the_two_end_points_are_open_to_programs(client) -> None:
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/ask", "/locate"}


def test_visitors_do_not_get_each_others_answers(server, photos) -> None:
    answers: dict[int, str] = {}

    def visit(number: int) -> None:
        path, _ = photos[number]
        visitor = Client(server, verbose=False, analytics_enabled=False)
        answers[number] = visitor.predict(handle_file(path), PUBLISHED_QUESTION, api_name="/ask")

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(4)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(timeout=90)
    assert answers == {number: photos[number][1] for number in range(4)}


def test_settings_that_cannot_work_are_refused(tiny_folders, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="make demo"):
        load_predictor(ChatConfig())
    with pytest.raises(UserError, match="folder of stage 1"):
        load_predictor(ChatConfig(model=tiny_folders.clip))
    with pytest.raises(UserError, match="does not exist"):
        load_predictor(ChatConfig(model=tmp_path / "nowhere"))
    with pytest.raises(UserError, match="from 1 to 65535"):
        refuse_busy_port("127.0.0.1", 70000)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="choose another --port"):
            refuse_busy_port("127.0.0.1", taken.getsockname()[1])


def test_other_settings_that_cannot_work_are_refused(tmp_path) -> None:
    for settings, words in (
        ({"dtype": "int3"}, "--dtype int3: one of auto"),
        ({"time_limit_s": 0.0}, "above 0"),
        ({"tiles": "http://tiles/{z}/{x}/{y}"}, "an https address"),
        ({"root_path": "chat"}, "begins with /"),
    ):
        with pytest.raises(UserError, match=words):
            refuse_bad_settings(ChatConfig(**settings))
    with pytest.raises(UserError, match="no photos here"):
        choose_examples(ChatConfig(examples=tmp_path))


def test_examples_are_photos_that_training_never_saw(tiny_folders, tmp_path) -> None:
    dataset = IALDataset(tiny_folders.data)
    unseen = {dataset.image_file(s.photo.image_path).resolve() for s in dataset.samples("test")}
    assert set(choose_examples(ChatConfig(examples=tiny_folders.data))) == unseen
    for number in range(20):
        (tmp_path / f"{number:02d}.jpg").touch()
    assert [p.name for p in choose_examples(ChatConfig(examples=tmp_path))] == [
        f"{n:02d}.jpg" for n in (0, 3, 6, 10, 13, 16)
    ]


def test_logins_are_salted_hashes(tmp_path, monkeypatch, capsys) -> None:
    for name, password in (("anna", "grüße"), ("ben", "grüße")):
        monkeypatch.setattr(sys, "argv", ["logins", "--name", name])
        monkeypatch.setattr(sys, "stdin", io.StringIO(password + "\n"))
        logins.main()
    text = capsys.readouterr().out
    assert "grüße" not in text
    assert len({line.split(":")[2] for line in text.splitlines()}) == 2
    (tmp_path / "logins.txt").write_text(text)
    may_enter = logins.load_logins(tmp_path / "logins.txt")
    assert may_enter("anna", "grüße")
    assert may_enter("ben", "grüße")
    assert not any(may_enter(*pair) for pair in (("anna", "gruesse"), ("carl", "grüße"), ("anna", ""), ("", "")))
    for content, words in (("anna:plain", "line 1: not of the form"), ("\n", "no login in it")):
        (tmp_path / "logins.txt").write_text(content)
        with pytest.raises(UserError, match=words):
            logins.load_logins(tmp_path / "logins.txt")


def test_health_and_counters_tell_nothing_of_anybody(server, client, photos) -> None:
    path, _ = photos[0]
    client.predict(handle_file(path), PUBLISHED_QUESTION, api_name="/ask")
    client.predict(handle_file(path), api_name="/locate")
    assert httpx.get(f"{server}/health").json() == {"status": "ok"}
    page = httpx.get(f"{server}/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    found = {family.name: family for family in text_string_to_metric_families(page.text)}
    count = {(s.labels["kind"], s.labels["outcome"]): s.value for s in found["llava_ial_requests"].samples
             if s.name.endswith("_total")}  # fmt: skip
    assert count["ask", "ok"] >= 1
    assert count["locate", "ok"] >= 1
    assert not any(word in page.text for word in (path.name, "Street", "Tinytown"))


def test_an_mcp_client_locates_a_photo(server, photos, predictor) -> None:
    """The tool as a language model's programme calls it: over streamable HTTP, the photo as a data address."""
    path, _ = photos[1]

    async def call() -> Any:
        async with (
            streamable_http_client(f"{server}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            names = [tool.name for tool in (await session.list_tools()).tools]
            photo = "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()
            fetched = await session.call_tool("locate", {"photo": "http://192.0.2.7/a.jpg"})
            assert fetched.isError, "the server may not fetch anything"
            return names, await session.call_tool("locate", {"photo": photo})

    names, result = asyncio.run(call())
    assert "locate" in names
    assert "ask" in names
    assert not result.isError
    assert predictor.locate(path)[0].address_text in str(result.content)


@pytest.mark.slow
def test_a_page_with_logins_behind_a_proxy(tiny_folders, photos, tmp_path) -> None:
    (tmp_path / "logins.txt").write_text(logins.format_login("anna", "secret"))
    port = free_port()
    options = ("--auth", str(tmp_path / "logins.txt"), "--root_path", "/chat")
    with chat_process(tiny_folders, port, tmp_path, *options):
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        assert httpx.post(f"{url}/gradio_api/call/locate", json={"data": [None]}).status_code == 401
        with pytest.raises(Exception, match=r"(?i)credentials|login|auth"):
            Client(url, auth=("anna", "wrong"), verbose=False, analytics_enabled=False)
        assert "/chat" in httpx.get(f"{url}/config", cookies=_login(url)).text
        visitor = Client(url, auth=("anna", "secret"), verbose=False, analytics_enabled=False)
        assert len(visitor.predict(handle_file(photos[0][0]), api_name="/locate")) == 5


def _login(url: str) -> httpx.Cookies:
    return httpx.post(f"{url}/login", data={"username": "anna", "password": "secret"}).cookies


@pytest.mark.slow
def test_the_command_opens_the_page_and_ends_at_ctrl_c(tiny_folders, photos, tmp_path) -> None:
    port = free_port()
    with chat_process(tiny_folders, port, tmp_path) as process:
        visitor = Client(f"http://127.0.0.1:{port}", verbose=False, analytics_enabled=False)
        path, expected = photos[0]
        assert visitor.predict(handle_file(path), PUBLISHED_QUESTION, api_name="/ask") == expected
        assert list(tmp_path.glob("llava-ial-uploads-*")), "uploads lie in the chat's own folder"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "uploads are deleted" in out
    assert not list(tmp_path.glob("llava-ial-uploads-*"))
    for secret in (path.name, expected, "Amber", PUBLISHED_QUESTION):
        assert secret not in out + err, "nothing that locates anybody is logged"
