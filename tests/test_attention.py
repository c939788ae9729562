"""Which attention kernel stage 2 takes, that it says so, and what it says where FlashAttention-2 cannot run."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from llava_ial.errors import UserError
from llava_ial.models import attention
from llava_ial.models.attention import choose_attention, describe_attention
from llava_ial.models.llava import load_base
from llava_ial.training.llava_run import describe
from llava_ial.training.llava_trainer import LlavaTrainer
from tests.stage2_runs import assert_same_weights, train_here
from tests.test_llava_preview import run_of
from tests.tiny_models import TinyFolders

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("device", "dtype", "is_installed", "expected"),
    [
        ("cuda", BF16, True, "flash_attention_2"),
        ("cuda", FP16, True, "flash_attention_2"),
        ("cuda", FP32, True, "sdpa"),
        ("cuda", BF16, False, "sdpa"),
        ("cpu", BF16, True, "sdpa"),
    ],
)
def test_auto_takes_flash_attention_where_it_can_run(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype, is_installed: bool, expected: str
) -> None:
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: is_installed)
    assert choose_attention("auto", device=device, dtype=dtype) == expected
    for name in ("sdpa", "eager"):
        assert choose_attention(name, device=device, dtype=dtype) == name
    if expected == "flash_attention_2":
        assert choose_attention("flash_attention_2", device=device, dtype=dtype) == expected
    else:
        with pytest.raises(UserError, match=r"--attn_implementation flash_attention_2: .*; or take sdpa"):
            choose_attention("flash_attention_2", device=device, dtype=dtype)


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        ("cpu", BF16, "it runs on CUDA GPUs alone, and this run is on the cpu"),
        ("cuda", FP32, "it computes in 16 bits alone: add --bf16 true"),
        ("cuda", BF16, "the package is not installed: pip install flash-attn"),
    ],
)
def test_the_reason_is_said(monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype, reason: str) -> None:
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: False)
    with pytest.raises(UserError, match=reason):
        choose_attention("flash_attention_2", device=device, dtype=dtype)


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [("flash_attention_2", "this run is on the cpu"), ("flash", "--attn_implementation flash: allowed: auto, sdpa")],
)
def test_it_is_refused_before_anything_is_loaded(
    tiny_folders: TinyFolders, tmp_path: Path, asked: str, complaint: str
) -> None:
    with patch("llava_ial.training.llava_run.load_base") as loads, pytest.raises(UserError, match=complaint):
        train_here(tiny_folders, tmp_path / "out", attn_implementation=asked)
    assert not loads.called
    assert not (tmp_path / "out").exists()


def test_what_is_chosen_reaches_the_model_and_is_said(
    tiny_folders: TinyFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default, eager = (run_of(tiny_folders, tmp_path / "out", attn_implementation=name) for name in ("auto", "eager"))
    for run, name in ((default, "sdpa"), (eager, "eager")):
        config = run.model.config
        assert config.text_config._attn_implementation == config.vision_config._attn_implementation == name
        assert f"process(es); attention: {name}" in describe(run)
    asked: list[str | None] = []

    def record(*_: object, attn_implementation: str | None, **__: object) -> None:
        asked.append(attn_implementation)
        raise OSError("enough")

    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", record)
    with pytest.raises(UserError, match="enough"):
        load_base(str(tiny_folders.llava.parent / "base_llava"), attention="flash_attention_2")
    assert asked == ["flash_attention_2"]


def test_kernels_compute_the_same(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    losses = []
    for name in ("sdpa", "eager"):
        run = run_of(tiny_folders, tmp_path / "out", attn_implementation=name, lora_dropout=0.0)
        trainer = LlavaTrainer(run, None)  # type: ignore[arg-type]
        batch = trainer.data_collator([run.train_set[i] for i in range(4)])
        losses.append(run.model.eval()(**batch).loss)
    torch.testing.assert_close(*losses)


def test_another_kernel_may_go_on_with_a_run(
    tiny_folders: TinyFolders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = train_here(tiny_folders, tmp_path / "out", max_steps=1)
    capsys.readouterr()
    train_here(tiny_folders, out, max_steps=1, attn_implementation="sdpa")
    assert "already complete" in capsys.readouterr().out


def test_measuring_leaves_the_kernel_as_it_was(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    """Generation has a kernel of its own; training goes on with the one that was asked for."""
    measured = {"eval_strategy": "steps", "eval_steps": 1, "eval_photos": 2, "max_steps": 2}
    run = run_of(tiny_folders, tmp_path / "run", attn_implementation="eager", **measured)
    run.output.mkdir()
    trainer = LlavaTrainer(run, None)  # type: ignore[arg-type]
    assert "loss" in trainer._measure()
    assert describe_attention(run.model) == "attention: eager"
    plain = train_here(tiny_folders, tmp_path / "plain", max_steps=2, attn_implementation="eager")
    assert_same_weights(plain, train_here(tiny_folders, tmp_path / "out", attn_implementation="eager", **measured))
