"""In how many bits stage 1 computes: what is chosen where, and that 16 bits change no more than rounding does."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from llava_ial.errors import UserError
from llava_ial.models import half_precision
from llava_ial.models.address_clip import AddressCLIP, load_clip
from llava_ial.models.half_precision import choose_precision, cpu_has_bf16, suit_attention
from llava_ial.training import clip_run
from tests.stage1_runs import lines, train, world

__all__ = ["train", "world"]


def forget_precision() -> None:
    """accelerate keeps what the first run of a process was started with."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def precision_of_each_run() -> Iterator[None]:
    """Neither from the test before nor to the test behind."""
    forget_precision()
    yield
    forget_precision()


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": False, "avx2": True}, "no"),
        ({}, "no"),
    ],
)
def test_auto_is_bf16_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch, features, expected) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert choose_precision("auto", cpu=True) == expected
    assert (choose_precision("no", cpu=True), choose_precision("bf16", cpu=True)) == ("no", "bf16")


def test_a_torch_that_cannot_tell_stays_with_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not cpu_has_bf16()


@pytest.mark.parametrize(("on_gpu", "expected"), [(True, "bf16"), (False, "no")])
def test_on_a_gpu_it_is_the_gpu_that_counts(monkeypatch: pytest.MonkeyPatch, on_gpu: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: on_gpu)
    monkeypatch.setattr(half_precision, "cpu_has_bf16", lambda: not on_gpu)
    assert choose_precision("auto", cpu=False) == expected
    assert choose_precision("auto", cpu=True) == ("no" if on_gpu else "bf16")


@pytest.mark.parametrize(
    ("chosen", "device", "kernel"), [("bf16", "cpu", "eager"), ("no", "cpu", "sdpa"), ("bf16", "cuda", "sdpa")]
)
def test_attention_is_plain_where_the_fused_kernel_is_slower(world: Path, chosen, device, kernel) -> None:
    clip = load_clip(str(world / "base"))
    suit_attention(clip, chosen, device)
    for part in (clip.config.vision_config, clip.config.text_config):
        assert part._attn_implementation == kernel


def test_features_and_gradients_in_16_bits_are_those_in_32_but_for_rounding(world: Path) -> None:
    model = AddressCLIP(load_clip(str(world / "base")))
    torch.manual_seed(0)
    pixels = torch.randn(4, 3, model.clip.config.vision_config.image_size, model.clip.config.vision_config.image_size)
    target = torch.randn(4, model.feature_width)

    def run(half: bool) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            features = model.encode_images(pixels)
        (features.float() * target).sum().backward()
        gradients = [p.grad.flatten() for p in model.clip.vision_model.parameters() if p.grad is not None]
        return features.float().detach(), torch.cat(gradients)

    features, gradient = run(half=False)
    suit_attention(model.clip, "bf16", "cpu")
    half_features, half_gradient = run(half=True)
    assert not torch.equal(features, half_features)
    torch.testing.assert_close(half_features, features, atol=0.02, rtol=0)
    assert torch.cosine_similarity(half_gradient, gradient, dim=0) > 0.99


def test_a_run_in_16_bits_publishes_the_same_kind_of_folder(train, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    plain = train(tmp_path / "plain")
    forget_precision()
    half = train(tmp_path / "half", mixed_precision="auto")
    assert (plain / "config.json").read_text() == (half / "config.json").read_text()
    weights, half_weights = (load_file(folder / "model.safetensors") for folder in (plain, half))
    assert {tensor.dtype for tensor in half_weights.values()} == {torch.float32}
    assert any(not torch.equal(weights[name], half_weights[name]) for name in weights)
    losses, half_losses = ([line["loss"] for line in lines(f, "loss")] for f in (plain, half))
    assert half_losses == pytest.approx(losses, rel=0.05)
    chosen = [json.loads((folder / "run.json").read_text())["mixed_precision"] for folder in (plain, half)]
    assert chosen == ["no", "bf16"], "what 'auto' was on this machine is written down"


def test_the_kernel_is_chosen_by_the_precision_that_was_started(train, tmp_path: Path, monkeypatch) -> None:
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(clip_run, "suit_attention", lambda _clip, *given: asked.append(given))
    train(tmp_path / "a", num_epochs=1)
    forget_precision()
    train(tmp_path / "b", num_epochs=1, mixed_precision="bf16")
    assert asked == [("no", "cpu"), ("bf16", "cpu")]


def test_an_unknown_precision_is_refused(train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--mixed_precision fp16: allowed: auto, no, bf16"):
        train(tmp_path / "out", mixed_precision="fp16")
    assert not list(tmp_path.iterdir())
