"""The names that vLLM and transformers 4 look for, and that the model stays the same one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llava_ial.models.hub_layout import hub_name, write_hub_layout
from tests.tiny_models import TinyFolders


@pytest.fixture(params=["1GB", "100KB"], ids=["one file", "several"])
def saved(request: pytest.FixtureRequest, tiny_folders: TinyFolders, tmp_path: Path) -> Path:
    """A LLaVA as this transformers writes it."""
    base, folder = tiny_folders.llava.parent / "base_llava", tmp_path / "saved"
    LlavaForConditionalGeneration.from_pretrained(base).save_pretrained(folder, max_shard_size=request.param)
    AutoProcessor.from_pretrained(base, backend="pil").save_pretrained(folder)
    return folder


def test_everything_has_the_names_of_the_hub_and_opens_as_before(saved: Path) -> None:
    before = LlavaForConditionalGeneration.from_pretrained(saved).state_dict()
    old_processor = AutoProcessor.from_pretrained(saved, backend="pil")
    write_hub_layout(saved)
    files = sorted(saved.glob("*.safetensors"))
    names = {name: file.name for file in files for name in load_file(file)}
    assert {name.split(".")[0] for name in names} == {"vision_tower", "language_model", "multi_modal_projector"}
    assert all(name.startswith("vision_tower.vision_model.") for name in names if name.startswith("vision_tower"))
    assert "language_model.model.embed_tokens.weight" in names
    index = saved / "model.safetensors.index.json"
    assert index.is_file() == (len(files) > 1)
    if index.is_file():
        assert json.loads(index.read_text())["weight_map"] == names
    assert json.loads((saved / "config.json").read_text())["text_config"]["architectures"] == ["LlamaForCausalLM"]
    tokenizer = json.loads((saved / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "<image>" in tokenizer["additional_special_tokens"]
    assert "extra_special_tokens" not in tokenizer
    assert tokenizer["model_input_names"] == ["input_ids", "attention_mask"]
    image_processor = json.loads((saved / "preprocessor_config.json").read_text())
    assert image_processor["image_processor_type"] == "CLIPImageProcessor"

    after, info = LlavaForConditionalGeneration.from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert before.keys() == after.state_dict().keys()
    assert all(torch.equal(before[name], weight) for name, weight in after.state_dict().items())
    new_processor = AutoProcessor.from_pretrained(saved, backend="pil")
    assert new_processor.image_processor.to_dict() == old_processor.image_processor.to_dict()
    assert new_processor.num_additional_image_tokens == old_processor.num_additional_image_tokens
    text = "<image> Where is this? <pad> Grant Street</s>"
    assert new_processor.tokenizer(text).input_ids == old_processor.tokenizer(text).input_ids


def test_a_call_that_was_killed_half_way_is_made_good_by_the_next(saved: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(saved, whole)
    write_hub_layout(whole)
    half = sorted(saved.glob("*.safetensors"))[0]
    shutil.copy(whole / half.name, half)  # this one was renamed already, the rest was not
    for _ in range(2):
        write_hub_layout(saved)
        assert {path.name: path.read_bytes() for path in saved.iterdir()} == {
            path.name: path.read_bytes() for path in whole.iterdir()
        }


def test_a_name_is_changed_once_and_only_of_the_tower() -> None:
    assert hub_name("vision_tower.embeddings.x") == "vision_tower.vision_model.embeddings.x"
    assert hub_name(hub_name("vision_tower.embeddings.x")) == hub_name("vision_tower.embeddings.x")
    assert hub_name("language_model.model.norm.weight") == "language_model.model.norm.weight"
