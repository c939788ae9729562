"""Many visitors at once, and the same model behind a server that this project did not write."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.serve import ask_plain, plain_command, serving
from llava_ial.data.dataset import IALDataset
from llava_ial.prompts import PUBLISHED_QUESTION
from tests.tiny_models import TinyFolders

pytestmark = pytest.mark.slow


def test_32_visitors_get_their_own_answers_and_memory_stays_flat(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/serve.py", "--output", str(tmp_path / "load.json")]
    command += ["--model", str(tiny_folders.llava), "--data", str(tiny_folders.data)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    load = json.loads((tmp_path / "load.json").read_text())["chat"]
    assert (load["answers"], load["errors"], load["mixed_up"]) == (160, 0, 0)
    # Allocators and caches fill in the first rounds; a leak of one photo or cache per answer would be far more.
    assert load["memory_mb"][-1] <= load["memory_mb"][1] + 30, load["memory_mb"]


def test_the_openai_package_asks_a_plain_server_about_a_photo(tiny_folders: TinyFolders) -> None:
    """A folder of stage 2 merged into one, as the tiny base is, needs nothing of this project to be served."""
    plain = tiny_folders.llava.parent / "base_llava"
    dataset = IALDataset(tiny_folders.data)
    with serving(plain_command(plain), "/health") as (url, _):
        ask = ask_plain(url, plain)
        for record in dataset.conversations("train")[:2]:
            assert ask(dataset.image_file(record.image_path), PUBLISHED_QUESTION) == record.messages[1].content
