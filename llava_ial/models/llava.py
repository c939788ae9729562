"""LLaVA with the tower of stage 1: built for training, and what of it trains."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, CLIPModel, LlavaForConditionalGeneration

from llava_ial.errors import UserError
from llava_ial.manifest import read_manifest
from llava_ial.models.address_clip import DualEncoder, load_dual_encoder
from llava_ial.models.identity import tower_hash
from llava_ial.models.llava_original import is_original
from llava_ial.models.tower_positions import state_for_size

ADDRESS_CLIP_KIND = "address_clip"
# Attention and MLP of the language model alone: by suffix ("q_proj") LoRA would land in the vision tower too.
LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
PROJECTOR, TOWER = "multi_modal_projector", "vision_tower"
PROJECTORS = (PROJECTOR, "connector")  # with the names that other families have for it
TOWERS = (TOWER, "vision_model")
_TOWER_SHAPE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "image_size",
    "patch_size",
    "num_channels",
    "hidden_act",  # a tower trained with quick_gelu and read with gelu sees something else, without an error
    "layer_norm_eps",
)


@dataclass(frozen=True)
class LoraSettings:
    """LoRA of the language model; LLaVA's own recipe for a task is rank 128, alpha 256. Rank 0: none."""

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05
    use_rslora: bool = False
    use_dora: bool = False


def load_base(
    base: str,
    *,
    dtype: torch.dtype = torch.float32,
    quantization: Any = None,
    device: str | None = None,
    attention: str | None = None,
) -> LlavaForConditionalGeneration:
    """A LLaVA by name or folder.

    Args:
        base: Name or folder.
        dtype: Of the weights.
        quantization: Of ``quantized.quantization_config``.
        device: Where quantised weights go at once: not all of them can be moved later.
        attention: Kernel of language model and tower, by ``attention.choose_attention``; else ``transformers`` chooses.

    Raises:
        UserError: Nothing there, another kind of model, or weights missing (they would be random without a word).
    """
    if is_original(Path(base)):
        raise UserError(
            f"base '{base}' is in the layout of LLaVA's first code; convert it: python -m train.export --format hf "
            f"--model {base} --output FOLDER"
        )
    try:
        kind = AutoConfig.from_pretrained(base).model_type
        if kind != "llava":
            raise UserError(f"base '{base}' is a {kind}; expected a llava, such as llava-hf/llava-1.5-7b-hf")
        model, info = LlavaForConditionalGeneration.from_pretrained(
            base,
            dtype=dtype,
            quantization_config=quantization,
            device_map={"": device} if device else None,
            attn_implementation=attention,
            output_loading_info=True,
        )
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"base '{base}' is no LLaVA that can be loaded: {str(error).splitlines()[0]}") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"base '{base}': {len(missing)} weights are missing, for example {missing[0]}")
    return model


def load_address_clip(folder: Path) -> CLIPModel:
    """The encoder of stage 1 for LLaVA, verified against its manifest.

    Raises:
        UserError: As of ``load_address_encoder``, or it is no CLIP.
    """
    model = load_address_encoder(folder)
    if not isinstance(model, CLIPModel):
        raise UserError(f"{folder}: a {type(model).__name__}; LLaVA takes the tower of a CLIP, tune one in stage 1")
    return model


def load_address_encoder(folder: Path) -> DualEncoder:
    """The encoder of stage 1, verified against its manifest.

    Raises:
        UserError: Not a finished stage 1 folder, or its weights are not those the manifest names.
    """
    manifest = read_manifest(folder, ADDRESS_CLIP_KIND)
    model = load_dual_encoder(str(folder.resolve()))
    found = tower_hash(model.vision_model)
    if found != manifest.get("tower_hash"):
        raise UserError(
            f"{folder}: the vision tower is not the one its manifest names "
            f"({found[:12]} instead of {str(manifest.get('tower_hash'))[:12]}); train stage 1 again or restore the file"
        )
    return model


def attach_tower(llava: LlavaForConditionalGeneration, clip: CLIPModel, *, interpolate_positions: bool = False) -> str:
    """Hands the tower of stage 1 to LLaVA, module to module and strictly; returns its hash.

    Args:
        llava: Keeps its own image size.
        clip: Of stage 1.
        interpolate_positions: Fit a tower for photos of another size; else it is refused.

    Raises:
        UserError: The two towers differ in shape.
    """
    ours, theirs = clip.vision_model.config, llava.model.vision_tower.config
    for name in _TOWER_SHAPE:
        can_fit = name == "image_size"
        if getattr(ours, name) != getattr(theirs, name) and not (can_fit and interpolate_positions):
            raise UserError(
                f"the tower of stage 1 has {name} {getattr(ours, name)}, the base expects {getattr(theirs, name)}; "
                "train stage 1 from the CLIP that the base was built on"
                + (", or fit its positions with --interpolate_positions true" if can_fit else "")
            )
    llava.model.vision_tower.load_state_dict(state_for_size(clip.vision_model, theirs.image_size), strict=True)
    return tower_hash(llava.model.vision_tower)


def add_adapter(llava: LlavaForConditionalGeneration, lora: LoraSettings) -> PeftModel:
    """LoRA on the language model, the whole projector beside it; all else frozen.

    The tower is in ``modules_to_save`` so that a checkpoint, opened with PEFT alone, brings the tower of stage 1 back
    and not the base's; it does not train.

    Raises:
        UserError: LoRA found no module, or one in the vision tower.
    """
    model = get_peft_model(llava, peft_config(lora, LORA_TARGETS, [PROJECTOR, TOWER]))
    named = [name for name, _ in model.named_parameters() if ".lora_" in name]
    if bool(named) != bool(lora.rank) or any(TOWER in name for name in named):
        raise UserError("LoRA must be on the language model alone, and it is not; is the base a LLaVA-1.5?")
    freeze_tower(model)
    return model


def peft_config(lora: LoraSettings, targets: str, whole: list[str]) -> LoraConfig:
    """What PEFT makes of a language model.

    Args:
        lora: Rank 0 leaves the language model alone: only what is trained whole is saved, in the same kind of folder.
        targets: Pattern of the modules that get LoRA.
        whole: Names of the modules that are saved whole.
    """
    return LoraConfig(
        r=max(1, lora.rank),  # PEFT has no 0
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        target_modules=targets if lora.rank else DUMMY_TARGET_MODULES,
        modules_to_save=whole,
        task_type="CAUSAL_LM",
    )


def freeze_tower(model: nn.Module) -> None:
    """Takes the tower out of training; PEFT puts in whatever stands in ``modules_to_save``, also when it resumes."""
    for name, parameter in model.named_parameters():
        if TOWER in name:
            parameter.requires_grad_(False)


def saved_module(model: PeftModel, name: str) -> Any:
    """The copy of a ``modules_to_save`` module that is in use."""
    wrapper = getattr(model.get_base_model().model, name)
    return wrapper.modules_to_save["default"]
