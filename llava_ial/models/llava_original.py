"""LLaVA-1.5 in the layout of its first code (``LlavaLlamaForCausalLM``), in and out.

That code builds its vision tower from the path in ``mm_vision_tower`` and only then reads the checkpoint: a checkpoint
without a tower, or a path to another one, silently gives other answers. So the tower lies in a folder of its own, which
the path names, and in the checkpoint too.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from llava_ial.conversation import IMAGE_TOKEN
from llava_ial.errors import UserError

TOWER_FOLDER = "vision_tower"
WEIGHTS = "model.safetensors"
# From the first code's names to those of transformers' classes.
_RENAMED = (
    (r"^model\.vision_tower\.vision_tower\.(vision_model\.)?", "model.vision_tower."),
    (r"^model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
    (r"^model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
)
_BACK = (
    (r"^model\.vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
    (r"^model\.multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
    (r"^model\.multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
    (r"^model\.language_model\.", "model."),
)
_STRATEGIES = {"patch": "default", "cls_patch": "full"}
_PAD = "<pad>"


def is_original(folder: Path) -> bool:
    """True for a folder in the first code's layout."""
    try:
        return "mm_vision_tower" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def refuse_adapter(folder: Path) -> None:
    """LLaVA's first code writes LoRA without the model that it belongs to.

    Raises:
        UserError: The folder holds LoRA alone.
    """
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder}: LoRA alone, not a whole model; put it into its base by scripts/merge_lora_weights.py of "
            "LLaVA's first code and convert what that writes"
        )


def from_original_name(name: str) -> str:
    """A weight's name in the first code, as ``transformers`` calls it.

    Example:
        >>> from_original_name("model.mm_projector.2.bias")
        'model.multi_modal_projector.linear_2.bias'
        >>> from_original_name("model.layers.0.self_attn.q_proj.weight")
        'model.language_model.layers.0.self_attn.q_proj.weight'
    """
    return _rename(name, _RENAMED)


def to_original_name(name: str) -> str:
    """Inverse of ``from_original_name``."""
    return _rename(name, _BACK)


def original_config(llava: LlavaForConditionalGeneration, tower: str, num_tokens: int) -> dict[str, Any]:
    """``config.json`` as the first code reads it.

    Args:
        llava: Whose.
        tower: Path of the tower's folder, from where that code is started.
        num_tokens: Rows of the embeddings that are kept.
    """
    config = llava.config
    text = {name: value for name, value in config.text_config.to_dict().items() if name != "model_type"}
    rope = text.pop("rope_parameters", {})
    strategy = {ours: theirs for theirs, ours in _STRATEGIES.items()}[config.vision_feature_select_strategy]
    return text | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "vocab_size": num_tokens,
        "rope_theta": rope.get("rope_theta", 10000.0),
        "mm_vision_tower": tower,
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": strategy,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        # Photos are resized and cropped as the image processor beside the tower says, as in training.
        "image_aspect_ratio": "square",
    }


def num_original_tokens(llava: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows of the embeddings without the image mark and what follows it, if only added tokens do.

    The first code marks images by a number of its own and knows no such token.
    """
    image = int(llava.config.image_token_id)
    added = set(tokenizer.get_added_vocab().values())
    rows = int(llava.config.text_config.vocab_size)
    return image if all(token in added or token >= len(tokenizer) for token in range(image, rows)) else rows


def to_original_state(llava: LlavaForConditionalGeneration, num_tokens: int) -> dict[str, torch.Tensor]:
    """The weights under the first code's names."""
    state = {}
    for name, tensor in llava.state_dict().items():
        is_vocabulary = name.endswith(("embed_tokens.weight", "lm_head.weight"))
        state[to_original_name(name)] = (tensor[:num_tokens] if is_vocabulary else tensor).contiguous().clone()
    return state


def load_original(folder: Path, *, dtype: torch.dtype) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerBase]:
    """A model of the first layout as a ``transformers`` one, with a tokenizer that knows the image mark.

    Raises:
        UserError: Something of it is missing, or its projector is of another kind.
    """
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if (kind := settings.get("mm_projector_type", "linear")) != "mlp2x_gelu":
        raise UserError(f"{folder}: mm_projector_type '{kind}'; only LLaVA-1.5's mlp2x_gelu can be read")
    state = {from_original_name(name): tensor.to(dtype) for name, tensor in _read_weights(folder).items()}
    tower = _load_tower(folder)
    for name, tensor in tower.state_dict().items():
        state.setdefault(f"model.vision_tower.{name.removeprefix('vision_model.')}", tensor.to(dtype))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.unk_token:
        tokenizer.add_special_tokens({"pad_token": _PAD})
    llava = LlavaForConditionalGeneration(_as_config(settings, tower.config, tokenizer)).to(dtype)
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        if name not in state:
            raise UserError(f"{folder}: no {to_original_name(name)} among its weights; it holds a part of a model")
        state[name] = _with_rows(state[name], int(llava.config.text_config.vocab_size))
    try:
        llava.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{folder}: its weights do not fit its config.json: {' '.join(str(error).split())[:300]}"
        ) from error
    return llava, tokenizer


def _as_config(settings: dict[str, Any], vision: CLIPVisionConfig, tokenizer: PreTrainedTokenizerBase) -> LlavaConfig:
    text = LlamaConfig(**{k: v for k, v in settings.items() if not k.startswith("mm_") and k in _LLAMA_FIELDS})
    text.vocab_size = max(int(settings["vocab_size"]), len(tokenizer))
    text.pad_token_id = tokenizer.pad_token_id
    strategy = settings.get("mm_vision_select_feature", "patch")
    count = (vision.image_size // vision.patch_size) ** 2
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=settings.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=_STRATEGIES[strategy],
        image_seq_length=count + (strategy == "cls_patch"),
        tie_word_embeddings=bool(settings.get("tie_word_embeddings", False)),
    )


_LLAMA_FIELDS = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta", "bos_token_id", "eos_token_id",
    "attention_bias", "mlp_bias", "head_dim", "initializer_range",
}  # fmt: skip


def tower_path(folder: Path) -> str:
    """The tower that ``mm_vision_tower`` names; one that moved with its checkpoint is found beside it."""
    named = str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["mm_vision_tower"])
    if (folder / named).is_dir():  # as it stands, too, if it is absolute
        return str(folder / named)
    beside = folder / TOWER_FOLDER
    return str(beside) if beside.is_dir() and not Path(named).is_dir() else named


def _load_tower(folder: Path) -> CLIPVisionModel:
    where = tower_path(folder)
    try:
        return CLIPVisionModel.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: its mm_vision_tower {where} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    files = sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise UserError(f"{folder}: neither *.safetensors nor pytorch_model*.bin in it")
    # Tensors alone: nothing in the file is run.
    parts = [torch.load(file, map_location="cpu", weights_only=True) for file in files]
    return {name: tensor for part in parts for name, tensor in part.items()}


def _with_rows(table: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Rows for tokens that the model did not know: the mean of the others, which is never the likeliest."""
    missing = num_rows - len(table)
    return torch.cat([table, table.mean(dim=0, keepdim=True).expand(missing, -1)]) if missing > 0 else table


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name
