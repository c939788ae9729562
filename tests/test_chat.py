"""The chat as its visitors and as programs meet it: a real server on the loopback interface with a tiny model."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.inference import AddressPredictor
from llava_ial.prompts import PUBLISHED_QUESTION
from serve import texts
from serve.chat import ChatConfig, load_predictor, refuse_busy_port
from tests.tiny_models import TinyFolders


@pytest.fixture(scope="module")
def predictor(tiny_folders: TinyFolders) -> AddressPredictor:
    return AddressPredictor.from_pretrained(tiny_folders.llava)


@pytest.fixture(scope="module")
def photos(tiny_folders: TinyFolders) -> list[tuple[Path, str]]:
    """Each training photo and the answer to the published question about it."""
    dataset = IALDataset(tiny_folders.data)
    return [(dataset.image_file(r.image_path), r.messages[1].content) for r in dataset.conversations("train")]


def free_port() -> int:
    with socket.socket() as test:
        test.bind(("127.0.0.1", 0))
        return test.getsockname()[1]


@pytest.fixture(scope="module")
def server(tiny_folders: TinyFolders, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real command in a process of its own."""
    port = free_port()
    with chat_process(tiny_folders, port, tmp_path_factory.mktemp("temporary")):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def chat_process(folders: TinyFolders, port: int, temporary: Path) -> Iterator[subprocess.Popen]:
    """``python -m serve.chat``, open when the body begins; uploads go below ``temporary``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "serve.chat", "--model", str(folders.llava), "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(temporary)},
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        line = next((line for line in process.stdout if "http" in line), "")
        assert f"http://127.0.0.1:{port}" in line, process.communicate()[1]
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
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


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("note.jpg", b"no image at all", "is no image that can be read. Please choose a photo"),
        ("empty.png", b"", "is no image that can be read. Please choose a photo"),
    ],
)
def test_a_file_that_is_no_photo_is_said_to_be_none(client, tmp_path, name, content, sentence) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AppError) as caught:
        client.predict(handle_file(tmp_path / name), PUBLISHED_QUESTION, api_name="/ask")
    assert f"This photo {sentence}" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert "uploads" not in str(caught.value)


def test_a_question_is_needed(client, photos) -> None:
    with pytest.raises(AppError, match=texts.NO_QUESTION):
        client.predict(handle_file(photos[0][0]), "  ", api_name="/ask")


def test_files_of_this_computer_cannot_be_read(client) -> None:
    """A path that was never uploaded is refused by Gradio, and nothing of the file comes back."""
    stranger = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError) as caught:
        client.predict(stranger, PUBLISHED_QUESTION, api_name="/ask")
    assert "root:" not in str(caught.value)


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


@pytest.mark.slow
def test_the_command_opens_the_page_and_ends_at_ctrl_c(tiny_folders, photos, tmp_path) -> None:
    port = free_port()
    with chat_process(tiny_folders, port, tmp_path) as process:
        visitor = Client(f"http://127.0.0.1:{port}", verbose=False, analytics_enabled=False)
        path, expected = photos[0]
        assert visitor.predict(handle_file(path), PUBLISHED_QUESTION, api_name="/ask") == expected
        assert list(tmp_path.glob("llava-ial-uploads-*/**/*.jpg")), "the upload lies in the chat's own folder"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "uploads are deleted" in out
    assert not list(tmp_path.glob("llava-ial-uploads-*"))
    for secret in (path.name, expected, "Amber", PUBLISHED_QUESTION):
        assert secret not in out + err, "nothing that locates anybody is logged"
