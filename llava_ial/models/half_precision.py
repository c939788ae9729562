"""In how many bits a model computes: 16 where this saves time, with weights at 32 all the same."""

import torch
from transformers import PreTrainedModel

AUTO, FLOAT32, BFLOAT16 = "auto", "no", "bf16"
PRECISIONS = (AUTO, FLOAT32, BFLOAT16)
# What multiplies bfloat16 in hardware; without it PyTorch does so too, slower than float32.
_CPU_FEATURES = ("avx512_bf16", "amx_bf16")


def choose_precision(asked: str, *, cpu: bool) -> str:
    """``bf16`` or ``no``, in ``accelerate``'s words.

    Args:
        asked: One of ``PRECISIONS``; ``auto`` is ``bf16`` where the processor multiplies it in hardware.
        cpu: Whether it stays on the CPU though there may be a GPU.
    """
    if asked != AUTO:
        return asked
    on_gpu = torch.cuda.is_available() and not cpu
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else cpu_has_bf16()
    return BFLOAT16 if has_bf16 else FLOAT32


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware, as far as PyTorch (2.9 or later) can tell."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    return ask is not None and any(ask().get(name) for name in _CPU_FEATURES)


def suit_attention(model: PreTrainedModel, precision: str, device: str) -> None:
    """Takes plain matrix products for attention where PyTorch's fused kernel is the slower one.

    On a CPU its backward pass is slower in bfloat16 than in float32 and eats most of what the rest gains;
    ``benchmarks/precision.py`` measures how much.
    """
    if device == "cpu" and precision == BFLOAT16:
        model.set_attn_implementation("eager")
