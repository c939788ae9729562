"""A LLaVA-IAL folder: adapter, processor, encoder and manifest, written whole and verified when opened."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from llava_ial.conversation import IMAGE_TOKEN, chat_template_hash, load_chat_template
from llava_ial.errors import UserError
from llava_ial.hints import HintSettings
from llava_ial.manifest import (
    BUILDING,
    MANIFEST,
    config_hash,
    file_hash,
    publish_manifest,
    read_manifest,
    relative_path,
    write_json,
    write_text,
)
from llava_ial.models.feature_layers import set_features
from llava_ial.models.identity import hash_tensors
from llava_ial.models.llava import PROJECTOR, TOWER, load_base, saved_module
from llava_ial.models.quantized import quantization_config
from llava_ial.models.tuned_tower import named_as_plain

KIND = "llava_ial"
ADDRESS_CLIP = "address_clip"
# Of the encoder's manifest; they stand in that of every model with it, too. Without a memory its hash is None.
ENCODER_PARTS = ("tower_hash", "gallery_hash", "memory_hash")
_ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True)
class LoadedLlava:
    """What a LLaVA-IAL folder holds, ready to answer."""

    model: LlavaForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    image_processor: BaseImageProcessor
    num_image_tokens: int
    manifest: dict[str, Any]


def base_hash(base: str) -> str:
    """Identity of a base model: the hash of its weight files and configuration.

    Raises:
        UserError: No such folder, and no such model in the local cache or on the hub.
    """
    folder = Path(base)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(base, allow_patterns=["*.safetensors", "*.json"]))
        except (OSError, ValueError) as error:
            raise UserError(f"base '{base}': neither a folder nor a model that can be had: {error}") from error
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    missing = [file.name for file in files if not file.is_file()]
    if missing or len(files) == 1:
        raise UserError(f"base '{base}': no {', '.join(missing) or '*.safetensors'} in {folder}")
    return config_hash({file.name: file_hash(file) for file in files})


def save_processor(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: BaseImageProcessor,
    config: LlavaConfig,
) -> None:
    """Tokenizer, image processor and chat template as ``AutoProcessor`` reads them."""
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        image_token=IMAGE_TOKEN,
        # The processor counts the class token itself and takes it off again for "default".
        num_additional_image_tokens=1,
        chat_template=load_chat_template(),
    )
    processor.save_pretrained(folder)


def save_llava_ial(
    folder: Path,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: BaseImageProcessor,
    *,
    base: str,
    clip_folder: Path,
    config: dict[str, Any],
    state_dict: dict[str, torch.Tensor] | None = None,
    parents: dict[str, str] | None = None,
    is_tower_tuned: bool = False,
    attached_tower: str | None = None,
    hints: HintSettings | None = None,
    card: str = "",
) -> None:
    """Writes everything the folder needs to stand alone beside its base; the manifest last.

    What was written is read again before the manifest says that it is whole.

    Args:
        folder: Exists; other files in it are left alone.
        model: LoRA, projector and tower are saved.
        tokenizer: Of the base.
        image_processor: Of the tower.
        base: Name, or folder, which is stored relative to ``folder``.
        clip_folder: Finished stage 1 folder, copied in.
        config: What the manifest names as the configuration.
        state_dict: Weights to save, where the model's own are not those (partitioned by ZeRO-3, LoRA in the tower).
        parents: Hashes of the data set, of stage 1 and of the base; that of the base is computed if it is not there.
        is_tower_tuned: The tower is no longer that of stage 1, so it gets a hash of its own.
        attached_tower: Hash of ``attach_tower``; another than stage 1's if positions were interpolated, and then the
            manifest has both.
        hints: How the model's hints are made, None for a model without.
        card: ``README.md``.

    Raises:
        UserError: The tower is not that of stage 1, or weights are not numbers.
    """
    llava_config, state_dict = model.get_base_model().config, state_dict or model.state_dict()
    with named_as_plain(model):
        model.save_pretrained(folder, state_dict=state_dict)
    write_text(folder / "README.md", card)  # PEFT has written the empty form of one
    save_processor(folder, tokenizer, image_processor, llava_config)
    stage1 = _take_encoder(clip_folder, folder)
    towers = _tower_hashes(stage1["tower_hash"], attached_tower, state_dict if is_tower_tuned else None)
    projector_hash = _check_adapter(folder, _expected_tower(towers))
    publish_manifest(
        folder, KIND, config, parents=parents,
        **_reference(base, folder, (parents or {}).get("base")),
        **{name: stage1.get(name) for name in ENCODER_PARTS} | towers,
        adapter_hash=file_hash(folder / _ADAPTER),
        chat_template_hash=chat_template_hash(),
        vision_feature_layer=llava_config.vision_feature_layer,
        vision_feature_select_strategy=llava_config.vision_feature_select_strategy,
        projector_hash=projector_hash,
        hints=asdict(hints) if hints else None,
    )  # fmt: skip


def _take_encoder(clip_folder: Path, folder: Path) -> dict[str, Any]:
    """Copies a stage 1 folder into that of a model; returns its manifest."""
    _copy_once(clip_folder, folder / ADDRESS_CLIP)
    return read_manifest(folder / ADDRESS_CLIP, ADDRESS_CLIP)


def _reference(base: str, folder: Path, known_hash: str | None) -> dict[str, Any]:
    """A base as a manifest in ``folder`` names it."""
    local = Path(base).is_dir()
    named = relative_path(Path(base), folder) if local else base
    return {"base": named, "base_is_local": local, "base_hash": known_hash or base_hash(base)}


def copy_llava_ial(source: Path, target: Path) -> None:
    """Makes ``target``, a claimed folder, the finished twin of ``source``; its manifest comes last."""
    manifest = read_manifest(source, KIND)
    for path in sorted(source.iterdir()):
        if path.is_dir():
            _copy_once(path, target / path.name)
        elif path.name != MANIFEST:
            temporary = target / f".{path.name}.tmp"
            shutil.copyfile(path, temporary)
            temporary.rename(target / path.name)
    if manifest["base_is_local"]:
        manifest["base"] = relative_path(source / manifest["base"], target)
    write_json(target / MANIFEST, manifest)
    (target / BUILDING).unlink(missing_ok=True)


def load_llava_ial(
    folder: Path,
    *,
    base: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    merge: bool = True,
    quantize: str = "none",
) -> LoadedLlava:
    """Opens a LLaVA-IAL folder and verifies every part against the manifest.

    Args:
        folder: Output or checkpoint of stage 2.
        base: Where the base model is now, if it was moved since.
        device: For the model.
        dtype: Of the weights.
        merge: Add LoRA to the weights in memory, which answers faster; else it stays beside them.
        quantize: ``nf4`` or ``int8`` hold the language model at four or eight bits, with LoRA beside it.

    Raises:
        UserError: A part is missing or is not the one that was trained.
    """
    manifest = read_manifest(folder, KIND)
    where = find_base(folder, manifest, base)
    verify_part(folder, "prompt template", chat_template_hash(), manifest["chat_template_hash"])
    verify_part(folder, "adapter", file_hash(folder / _ADAPTER), manifest["adapter_hash"])
    quantization = quantization_config(quantize, dtype)
    llava = load_base(where, dtype=dtype, quantization=quantization, device=device if quantization else None)
    count = set_features(llava, manifest["vision_feature_layer"], manifest["vision_feature_select_strategy"])
    adapted = PeftModel.from_pretrained(llava, folder)
    for name, part, expected in (
        (TOWER, "vision tower", _expected_tower(manifest)),
        (PROJECTOR, "projector", manifest["projector_hash"]),
    ):
        stored = _stored_module(folder, name)
        verify_part(folder, part, hash_tensors(stored), expected)
        # What was loaded is that, as far as --dtype can hold it: float16 rounds otherwise than a hash does.
        rounded = {weight: tensor.to(dtype) for weight, tensor in stored.items()}
        verify_part(folder, part, hash_tensors(saved_module(adapted, name).state_dict()), hash_tensors(rounded))
    model = adapted.merge_and_unload() if merge and not quantization else adapted.get_base_model()
    model = (model if quantization else model.to(device)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return LoadedLlava(model, tokenizer, image_processor, count, manifest)


def find_base(folder: Path, manifest: Mapping[str, Any], base: str | None) -> str:
    """Where the base of a folder of stage 2 is: its name, or its folder; verified.

    Args:
        folder: The adapter's.
        manifest: Of the folder.
        base: Where it is now, if it was moved since.

    Raises:
        UserError: It is not there, or is another one.
    """
    where = base or (str((folder / manifest["base"]).resolve()) if manifest["base_is_local"] else manifest["base"])
    if manifest["base_is_local"] and not Path(where).is_dir():
        raise UserError(f"{folder}: its base model is not at {where}; name its folder with --base")
    verify_part(folder, "base model", base_hash(where), manifest["base_hash"])
    return where


def verify_part(folder: Path, part: str, found: str, expected: str) -> None:
    """Refuses a part whose hash is not the one that the manifest names."""
    if found != expected:
        raise UserError(
            f"{folder}: its {part} is not the one it was trained with ({found[:12]} instead of {expected[:12]}); "
            "restore it or train again"
        )


def _copy_once(source: Path, target: Path) -> None:
    """Copies a finished folder under a temporary name and renames it, so that a torn copy is never taken for whole."""
    if target.is_dir():
        return
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed here
    shutil.copytree(source, temporary, ignore=shutil.ignore_patterns("checkpoints"))
    temporary.rename(target)


def _tower_hashes(stage1: str, attached: str | None, tuned: Mapping[str, torch.Tensor] | None) -> dict[str, str]:
    """Stage 1's, and if interpolation (``attached``) or tuning (weights ``tuned``) changed it, what they made of it."""
    hashes = {"tower_hash": stage1}
    if attached and attached != stage1:
        hashes["interpolated_tower_hash"] = attached
    if tuned is not None:
        hashes["tuned_tower_hash"] = _tower_hash_of(tuned)
    return hashes


def _expected_tower(manifest: Mapping[str, Any]) -> str:
    """Hash of the tower that LLaVA has: stage 1's, or what interpolation or tuning have made of it."""
    names = ("tuned_tower_hash", "interpolated_tower_hash", "tower_hash")
    return str(next(manifest[name] for name in names if name in manifest))


def _tower_hash_of(state: Mapping[str, torch.Tensor]) -> str:
    """Hash of the tower among the weights of a model that is being trained."""
    mark = f".{TOWER}.modules_to_save.default."
    return hash_tensors({name.split(mark)[1]: tensor for name, tensor in state.items() if mark in name})


def _stored_module(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Weights of a module that the adapter file holds whole, in the precision that they were stored with."""
    mark = f".{name}."
    with safe_open(folder / _ADAPTER, framework="pt") as file:
        return {key.split(mark)[1]: file.get_tensor(key) for key in file.keys() if mark in key}  # noqa: SIM118


def _check_adapter(folder: Path, expected_tower: str) -> str:
    """Reads the adapter file back; returns the hash of the projector in it."""
    state = load_file(folder / _ADAPTER)
    broken = [name for name, tensor in state.items() if tensor.numel() == 0 or not bool(torch.isfinite(tensor).all())]
    if broken:
        raise UserError(
            f"{folder}: {len(broken)} of {len(state)} weights are empty or no numbers, for example {broken[0]}; "
            "nothing is published: lower --learning_rate or use bf16, the last checkpoint is untouched"
        )
    verify_part(folder, "vision tower", hash_tensors(_stored_module(folder, TOWER)), expected_tower)
    return hash_tensors(_stored_module(folder, PROJECTOR))
