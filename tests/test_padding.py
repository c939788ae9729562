"""How much of a batch is padding, counted by hand and through the command."""

import json
from pathlib import Path

import pytest

from benchmarks import padding
from llava_ial.data.llava import IGNORE_INDEX, EncodedDialogue
from tests.tiny_models import TinyFolders


def dialogue(length: int, num_learned: int) -> EncodedDialogue:
    return EncodedDialogue([7] * length, [IGNORE_INDEX] * (length - num_learned) + [7] * num_learned)


def test_shares_counted_by_hand() -> None:
    found = padding.shares([dialogue(length, 2) for length in (10, 4) * 20], batch_size=2)
    assert found["tokens"] == {"least": 4, "mean": 7.0, "most": 10}
    assert found["by_length"]["padding"] < 0.1 < found["random"]["padding"] < 0.3
    mixed = padding.shares([dialogue(10, 2), dialogue(4, 2)], batch_size=2)
    by_hand = {"padding": 0.3, "learned": 4 / 20, "largest_speedup_of_packing": 20 / 14}
    assert mixed["random"] == pytest.approx(by_hand)
    assert mixed["by_length"] == pytest.approx(by_hand)


def test_the_command_counts_a_data_set(
    tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "padding.json"
    base = tiny_folders.llava.parent / "base_llava"
    given = [f"--data={tiny_folders.data}", f"--tokenizer={base}", "--image_tokens=16", "--batch_size=3"]
    monkeypatch.setattr("sys.argv", ["padding.py", *given, f"--output={output}"])
    padding.main()
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["num_dialogues"] == 8
    assert 0 <= found["by_length"]["padding"] <= found["random"]["padding"] < 1
    assert found["tokens"]["least"] > 16
