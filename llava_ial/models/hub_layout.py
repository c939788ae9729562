"""The layout that LLaVA-1.5 has on the hub: vLLM and transformers 4 read it, transformers 5 writes another one.

With the names that transformers 5 writes, transformers 4 finds no vision tower and goes on with a random one, and vLLM
stops. Nothing but names changes, so transformers 5 opens the same model.
"""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from llava_ial.manifest import write_text

_NOW, _HUB = "vision_tower.", "vision_tower.vision_model."
_INDEX = "model.safetensors.index.json"
# What the language model of a LLaVA is called where a server builds it by itself.
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}


def write_hub_layout(folder: Path) -> None:
    """Renames what a folder of a LLaVA's ``save_pretrained`` holds; a second call changes nothing."""
    for shard in sorted(folder.glob("*.safetensors")):
        _rename_tensors(shard)
    if (folder / _INDEX).is_file():
        index = _read(folder / _INDEX)
        index["weight_map"] = {hub_name(name): shard for name, shard in index["weight_map"].items()}
        _write(folder / _INDEX, index)
    config = _read(folder / "config.json")
    text = config["text_config"]
    if not text.get("architectures") and text.get("model_type") in _ARCHITECTURES:
        text["architectures"] = [_ARCHITECTURES[text["model_type"]]]
    _write(folder / "config.json", config)
    tokenizer = _read(folder / "tokenizer_config.json")
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        # Left to itself transformers 4 adds token types, which a LLaMA refuses.
        tokenizer.setdefault("model_input_names", ["input_ids", "attention_mask"])
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    _write(folder / "tokenizer_config.json", tokenizer)
    processor = _read(folder / "processor_config.json")
    if "image_processor" in processor:
        image_processor = processor.pop("image_processor") | {"processor_class": processor["processor_class"]}
        _write(folder / "preprocessor_config.json", image_processor)
        _write(folder / "processor_config.json", processor)


def hub_name(name: str) -> str:
    """Of a tensor: ``vision_tower.embeddings...`` is ``vision_tower.vision_model.embeddings...`` on the hub."""
    return name if name.startswith(_HUB) or not name.startswith(_NOW) else _HUB + name.removeprefix(_NOW)


def _rename_tensors(shard: Path) -> None:
    with safe_open(shard, framework="pt") as file:
        names = list(file.keys())
        if all(hub_name(name) == name for name in names):
            return
        tensors, metadata = {hub_name(name): file.get_tensor(name) for name in names}, file.metadata()
    temporary = shard.with_name(f".{shard.name}.tmp")
    save_file(tensors, temporary, metadata=metadata)
    os.replace(temporary, shard)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
