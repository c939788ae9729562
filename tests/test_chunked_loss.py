"""The two ways that are compared compute the same, and the command compares them."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import chunked_loss
from llava_ial.errors import UserError


def test_chunks_give_the_loss_and_the_gradient_of_the_whole() -> None:
    torch.manual_seed(0)
    head = nn.Linear(6, 11, bias=False).requires_grad_(False)
    targets = torch.randint(11, (7,))
    whole = torch.randn(7, 6, requires_grad=True)
    chunked = whole.detach().clone().requires_grad_()
    losses = [
        chunked_loss.whole_loss(head, whole, targets, 3),
        chunked_loss.chunked_loss(head, chunked, targets, 3),  # 3, 3 and 1 rows
    ]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(whole.grad, chunked.grad)
    assert head.weight.grad is None


def test_the_command_compares_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "found.json"
    given = ["--model=tiny", "--batch_size=2", "--chunk=16", "--steps=1", "--repeats=1", f"--output={output}"]
    monkeypatch.setattr("sys.argv", ["chunked_loss.py", *given])
    chunked_loss.main()
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["learned_rows"] == 2 * 3 * 13
    assert 0 < found["share_of_step"] < 1
    assert all(way["cpu_seconds"] > 0 for way in found["ways"].values())
    monkeypatch.setattr("sys.argv", ["chunked_loss.py", "--model=8b"])
    with pytest.raises(UserError, match="--model 8b: allowed: 7b, tiny"):
        chunked_loss.main()
