"""The names that models have on the hub: transformers 4 reads these and no others, transformers 5 writes others.

With the names that transformers 5 writes, transformers 4 finds no vision tower and goes on with a random one, and vLLM
stops. Nothing but names changes, so transformers 5 opens the same model.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from llava_ial.manifest import write_text

_TOWER, _INNER = "vision_tower.", "vision_model."
_INDEX = "model.safetensors.index.json"
# What the language model of a LLaVA is called where a server builds it by itself.
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}


def write_hub_layout(folder: Path) -> None:
    """Renames what a folder of a LLaVA's ``save_pretrained`` holds; a second call changes nothing."""
    _rename_tensors(folder, hub_name)
    config = _read(folder / "config.json")
    text = config["text_config"]
    if not text.get("architectures") and text.get("model_type") in _ARCHITECTURES:
        text["architectures"] = [_ARCHITECTURES[text["model_type"]]]
    _write(folder / "config.json", config)
    write_hub_tokenizer(folder)
    processor = _read(folder / "processor_config.json")
    if "image_processor" in processor:
        image_processor = processor.pop("image_processor") | {"processor_class": processor["processor_class"]}
        _write(folder / "preprocessor_config.json", image_processor)
        _write(folder / "processor_config.json", processor)


def write_hub_tower(folder: Path) -> None:
    """Renames what ``CLIPVisionModel.save_pretrained`` wrote; a second call changes nothing."""
    _rename_tensors(folder, lambda name: name if name.startswith(_INNER) else _INNER + name)


def write_hub_tokenizer(folder: Path) -> None:
    """Changes what transformers 4 does not know of a tokenizer's settings."""
    tokenizer = _read(folder / "tokenizer_config.json")
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        # Left to itself transformers 4 adds token types, which a LLaMA refuses.
        tokenizer.setdefault("model_input_names", ["input_ids", "attention_mask"])
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    _write(folder / "tokenizer_config.json", tokenizer)


def hub_name(name: str) -> str:
    """Of a LLaVA's tensor: ``vision_tower.embeddings...`` is ``vision_tower.vision_model.embeddings...`` on the hub."""
    if not name.startswith(_TOWER) or name.startswith(_TOWER + _INNER):
        return name
    return _TOWER + _INNER + name.removeprefix(_TOWER)


def _rename_tensors(folder: Path, renamed: Callable[[str], str]) -> None:
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            names = list(file.keys())
            if all(renamed(name) == name for name in names):
                continue
            tensors, metadata = {renamed(name): file.get_tensor(name) for name in names}, file.metadata()
        temporary = shard.with_name(f".{shard.name}.tmp")
        save_file(tensors, temporary, metadata=metadata)
        os.replace(temporary, shard)
    if (folder / _INDEX).is_file():
        index = _read(folder / _INDEX)
        index["weight_map"] = {renamed(name): shard for name, shard in index["weight_map"].items()}
        _write(folder / _INDEX, index)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
