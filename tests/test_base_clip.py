from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPProcessor

from llava_ial.errors import UserError
from llava_ial.manifest import FolderState, file_hash
from tests.tiny_world import build_tiny_base_clip, build_tiny_dataset
from train.toy_base.clip import BaseClipConfig, build_base_clip, train_clip_tokenizer

TEXTS = ["located on a section of Elm Way that near Dune Road", "a street view of a wall", "Straße"] * 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return build_tiny_base_clip(folder / "base", build_tiny_dataset(folder / "data"))


def test_the_folder_loads_as_plain_transformers(base: Path):
    model, info = CLIPModel.from_pretrained(base, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.vision_config.hidden_act == model.config.text_config.hidden_act == "quick_gelu"
    processor = CLIPProcessor.from_pretrained(base)
    assert processor.tokenizer.model_max_length == 77
    assert type(AutoImageProcessor.from_pretrained(base, backend="pil")).__name__ == "CLIPImageProcessorPil"


def test_the_text_feature_is_read_at_the_end_mark_whatever_the_padding(base: Path):
    model, tokenizer = CLIPModel.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    text = "located in the Old Town, specifically on a section of Elm Way"
    short = tokenizer([text], return_tensors="pt")["input_ids"]
    padded = tokenizer([text], padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(short[0])[-1] == "<|endoftext|>"
    with torch.no_grad():
        alone, among = (model.text_model(input_ids=ids) for ids in (short, padded))
        other = model.text_model(input_ids=tokenizer([f"{text} tonight"], return_tensors="pt")["input_ids"])
    torch.testing.assert_close(alone.pooler_output, alone.last_hidden_state[:, -1])
    torch.testing.assert_close(alone.pooler_output, among.pooler_output)
    assert not torch.allclose(alone.pooler_output, other.pooler_output)  # the last word counts


def test_a_tokenizer_of_the_spot_survives_saving_and_knows_every_byte(tmp_path: Path):
    tokenizer = train_clip_tokenizer(TEXTS, 600)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Elm Way, between Dune Road", "Königstraße 5", "東京 €", ""):
        ids = loaded(text)["input_ids"]
        assert ids == tokenizer(text)["input_ids"]
        assert (ids[0], ids[-1]) == (loaded.bos_token_id, loaded.eos_token_id)
        assert loaded.unk_token_id not in ids[1:-1]
    assert loaded.eos_token_id == len(loaded) - 1 == loaded.pad_token_id
    assert len(loaded("elm way")["input_ids"]) == 4  # words of the texts are whole


def test_the_weights_are_a_function_of_the_seed(tmp_path: Path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")

    def build(name: str, seed: int) -> Path:
        sizes = {"image_size": 32, "vision_width": 32, "vision_layers": 1, "text_width": 32, "text_layers": 1}
        folder = tmp_path / name
        build_base_clip(BaseClipConfig(output=folder, texts=[tmp_path / "texts.txt"], seed=seed, **sizes))
        return folder

    first, again, other = build("a", 1), build("b", 1), build("c", 2)
    for file in ("model.safetensors", "tokenizer.json", "manifest.json"):
        assert file_hash(first / file) == file_hash(again / file)
    assert file_hash(first / "model.safetensors") != file_hash(other / "model.safetensors")


def test_the_same_command_again_changes_nothing(tmp_path: Path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    config = BaseClipConfig(output=tmp_path / "a", texts=[tmp_path / "texts.txt"], image_size=32, vision_layers=1)
    assert build_base_clip(config) is FolderState.NEW
    assert build_base_clip(config) is FolderState.COMPLETE


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"patch_size": 15}, "patch_size 15 does not divide"),
        ({"vision_width": 200}, "vision_width 200"),
        ({"text_layers": 0}, "text_layers 0"),
        ({"texts": []}, "no text to train a tokenizer on"),
        ({"texts": [Path("/nowhere.txt")]}, "nowhere"),
        ({"tokenizer": Path("/nowhere")}, r"no tokenizer\.json"),
    ],
)
def test_what_fits_no_model_is_refused_before_anything_is_written(tmp_path: Path, options: dict, why: str):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    config = BaseClipConfig(**{"output": tmp_path / "out", "texts": [tmp_path / "texts.txt"], **options})
    with pytest.raises(UserError, match=why):
        build_base_clip(config)
    assert not (tmp_path / "out").exists()
