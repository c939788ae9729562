"""The language model at four or eight bits while LoRA trains beside it (QLoRA, arXiv 2305.14314)."""

from typing import Any

import torch
from torch import nn

from llava_ial.errors import UserError
from llava_ial.models.llava import PROJECTOR, TOWER

QUANTIZATIONS = ("none", "nf4", "int8")
# Names as transformers' LLaVA has them, with "model." in front: without it the list matches nothing, and tower and
# projector are quantised too, though the projector trains whole.
SKIPPED = [f"model.{TOWER}", f"model.{PROJECTOR}", "lm_head"]
_QUANTIZED = ("Linear4bit", "Linear8bitLt")


def quantization_config(how: str, compute_dtype: torch.dtype) -> Any:
    """What ``from_pretrained`` takes to quantise the language model alone; None for ``none``.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if how == "none":
        return None
    try:
        import bitsandbytes  # noqa: F401 (an optional library of transformers)
        from transformers import BitsAndBytesConfig
    except ImportError as error:
        raise UserError(f"--quantize {how} needs bitsandbytes: pip install bitsandbytes") from error
    if how == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=SKIPPED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=SKIPPED,
    )


def refuse_quantized_elsewhere(model: nn.Module) -> None:
    """Raises unless the language model, and nothing else, is quantised.

    Raises:
        UserError: Names a module.
    """
    names = [name for name, module in model.named_modules() if type(module).__name__ in _QUANTIZED]
    wrong = [name for name in names if "language_model" not in name]
    if wrong or not names:
        raise UserError(f"--quantize: quantised is {wrong[0] if wrong else 'nothing'}; is the base a LLaVA-1.5?")


def num_weights(parameter: nn.Parameter) -> int:
    """How many weights a parameter holds: one byte of a quantised one holds two, and ZeRO-3 keeps the number aside."""
    quantized = getattr(parameter, "quant_state", None)
    if quantized is not None:
        return int(torch.Size(quantized.shape).numel())
    return int(getattr(parameter, "ds_numel", parameter.numel()))
