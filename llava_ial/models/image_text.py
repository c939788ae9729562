"""Image-text models of ``transformers`` beside LLaVA-1.5, tuned with the tower that they came with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from llava_ial.errors import UserError
from llava_ial.manifest import file_hash, publish_manifest, read_manifest, relative_path, write_text
from llava_ial.models.llava import PROJECTORS, LoraSettings, peft_config
from llava_ial.models.llava_folder import find_base, verify_part
from llava_ial.models.llava_original import is_original

KIND = "image_text_adapter"
LORA_TARGETS = r".*\b(language_model|text_model)\b.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
_ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True)
class LoadedImageText:
    """A model ready to answer, and the processor that makes its inputs."""

    model: Any
    processor: Any


def model_type(base: str) -> str:
    """Kind of a base, as its configuration names it; ``llava`` for LLaVA's first layout, too.

    Raises:
        UserError: No configuration that can be read.
    """
    if is_original(Path(base)):
        return "llava"
    try:
        return str(AutoConfig.from_pretrained(base).model_type)
    except (OSError, ValueError) as error:
        raise UserError(f"base '{base}': no model there: {str(error).splitlines()[0]}") from error


def load_image_text(base: str, *, dtype: torch.dtype, attention: str | None = None) -> tuple[Any, Any]:
    """Model and processor.

    Args:
        base: Name or folder.
        dtype: Of the weights.
        attention: As of ``llava.load_base``.

    Raises:
        UserError: Another kind of model, weights missing, no chat template, or a processor that needs torchvision.
    """
    if (kind := model_type(base)) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise UserError(f"base '{base}' is a {kind}; expected a model that takes photos and text and answers in text")
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            base, dtype=dtype, attn_implementation=attention, output_loading_info=True
        )
        processor = AutoProcessor.from_pretrained(base, backend="pil")
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(f"base '{base}': it cannot be loaded: {str(error).splitlines()[0]}") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"base '{base}': {len(missing)} weights are missing, for example {missing[0]}")
    if not getattr(processor, "chat_template", None):
        raise UserError(f"base '{base}' has no chat template; write one into its folder as chat_template.jinja")
    return model, processor


def adapt(model: Any, lora: LoraSettings) -> PeftModel:
    """LoRA on the language model, what joins it to the tower whole beside it; all else frozen.

    Raises:
        UserError: The model has no language model or no projector of a known name.
    """
    projectors = {mark for mark in PROJECTORS for name, _ in model.named_modules() if name.endswith(f".{mark}")}
    if not projectors:
        raise UserError(f"the base has no module {' or '.join(PROJECTORS)}; it cannot be tuned here")
    try:
        return get_peft_model(model, peft_config(lora, LORA_TARGETS, sorted(projectors)))
    except ValueError as error:
        raise UserError(f"the base's language model has no layers to tune: {str(error).splitlines()[0]}") from error


def save_image_text(
    folder: Path,
    model: PeftModel,
    processor: Any,
    state: dict[str, torch.Tensor],
    *,
    base: str,
    config: dict[str, Any],
    parents: dict[str, str],
    card: str,
) -> None:
    """Writes adapter and processor, reads the adapter back, and the manifest last.

    Args:
        folder: Exists.
        model: Whose names are saved.
        processor: Of the base.
        state: Whole weights of what trains.
        base: Name, or folder, which is stored relative to ``folder``.
        config: What the manifest names as the configuration.
        parents: Hashes of data set and base.
        card: ``README.md``.

    Raises:
        UserError: Weights are empty or no numbers.
    """
    model.save_pretrained(folder, state_dict=state)
    write_text(folder / "README.md", card)
    processor.save_pretrained(folder)
    written = load_file(folder / _ADAPTER)
    broken = [name for name, t in written.items() if t.numel() == 0 or not bool(torch.isfinite(t).all())]
    if broken:
        raise UserError(f"{folder}: {len(broken)} weights are empty or no numbers, for example {broken[0]}")
    is_local = Path(base).is_dir()
    publish_manifest(
        folder, KIND, config, parents=parents, base=relative_path(Path(base), folder) if is_local else base,
        base_is_local=is_local, base_hash=parents["base"], adapter_hash=file_hash(folder / _ADAPTER),
    )  # fmt: skip


def load_adapted(folder: Path, *, base: str | None = None, merge: bool = True) -> LoadedImageText:
    """Opens a folder of ``save_image_text`` and verifies base and adapter against its manifest.

    Args:
        folder: Output or checkpoint of stage 2.
        base: Where the base is now, if it was moved since.
        merge: Add LoRA to the weights in memory; else it stays beside them.

    Raises:
        UserError: A part is missing or is not the one that was trained.
    """
    manifest = read_manifest(folder, KIND)
    where = find_base(folder, manifest, base)
    verify_part(folder, "adapter", file_hash(folder / _ADAPTER), manifest["adapter_hash"])
    adapted = PeftModel.from_pretrained(load_image_text(where, dtype=torch.float32)[0], folder)
    model = adapted.merge_and_unload() if merge else adapted.get_base_model()
    return LoadedImageText(model.eval(), AutoProcessor.from_pretrained(folder, backend="pil"))
