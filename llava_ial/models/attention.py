"""Which attention kernel a model trains with: FlashAttention-2 where it can run, else PyTorch's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from llava_ial.errors import UserError

AUTO, SDPA, FLASH = "auto", "sdpa", "flash_attention_2"
ATTENTIONS = (AUTO, SDPA, FLASH, "eager")


def choose_attention(asked: str, *, device: str, dtype: torch.dtype) -> str:
    """The kernel's name, as ``from_pretrained(attn_implementation=...)`` takes it.

    Args:
        asked: One of ``ATTENTIONS``; ``auto`` is FlashAttention-2 where it can run and ``sdpa`` elsewhere.
        device: Type of the device that computes.
        dtype: That it computes in, autocast counted.

    Raises:
        UserError: FlashAttention-2 was asked for and cannot run here.
    """
    obstacle = _obstacle_to_flash(device, dtype)
    if asked == FLASH and obstacle:
        raise UserError(f"--attn_implementation {asked}: {obstacle}; or take {SDPA}")
    if asked == AUTO:
        return SDPA if obstacle else FLASH
    return asked


def _obstacle_to_flash(device: str, dtype: torch.dtype) -> str:
    if device != "cuda":
        return f"it runs on CUDA GPUs alone, and this run is on the {device}"
    if dtype not in (torch.bfloat16, torch.float16):
        return "it computes in 16 bits alone: add --bf16 true"
    if not is_flash_attn_2_available():
        return "the package is not installed: pip install flash-attn (2.3.3 or later)"
    return ""


def describe_attention(model: Any) -> str:
    """A line about the kernels that a model has, its language model's first."""
    config = model.config
    parts = (config.get_text_config(), getattr(config, "vision_config", None))
    kernels = dict.fromkeys(part._attn_implementation for part in parts if part is not None)
    return f"attention: {', '.join(str(kernel) for kernel in kernels)}"


@contextmanager
def attention_kept(model: PreTrainedModel) -> Iterator[None]:
    """What changes the language model's kernel meanwhile, such as generation, leaves it as it was."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    try:
        yield
    finally:
        config._attn_implementation = before
