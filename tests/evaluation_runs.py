"""Evaluating the tiny model in tests: its settings, a predictor that breaks down, and what a run has written."""

import json
from pathlib import Path

import pytest

from llava_ial.inference import AddressPredictor, Answer
from serve.evaluate import EvaluateConfig
from tests.tiny_models import TinyFolders


@pytest.fixture(scope="module")
def predictor(tiny_folders: TinyFolders) -> AddressPredictor:
    return AddressPredictor.from_pretrained(tiny_folders.llava)


@pytest.fixture
def config(tiny_folders: TinyFolders, tmp_path: Path) -> EvaluateConfig:
    return EvaluateConfig(
        tiny_folders.data, tmp_path / "out", str(tiny_folders.llava), split="train", batch_size=2, max_new_tokens=90
    )


class Flaky:
    """A predictor that breaks down at a given call; ``error`` says how."""

    can_answer, takes_hints = True, False

    def __init__(
        self, predictor: AddressPredictor, break_at: int, error: BaseException, *, num_breaks: int = 1
    ) -> None:
        self._predictor, self._error = predictor, error
        self._breaks = range(break_at, break_at + num_breaks)
        self.num_calls = 0
        self.asked: list[str] = []

    def probabilities(self, photos):
        return self._predictor.probabilities(photos)

    def answer_batch(self, dialogues, photos, **settings) -> list[Answer]:
        self.num_calls += 1
        if self.num_calls in self._breaks:
            raise self._error
        self.asked += [dialogue[-1].content for dialogue in dialogues]
        return self._predictor.answer_batch(dialogues, photos, **settings)


def published(folder: Path) -> dict[str, bytes]:
    """Every file that must be a function of inputs and settings alone."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name not in ("run.json", "config.yaml")
    }


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
