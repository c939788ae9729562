"""Stage 1 with another dual encoder: a tiny SigLIP, from its folder to addresses."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceTrainer
from transformers import AutoTokenizer, SiglipConfig, SiglipImageProcessorPil, SiglipModel, SiglipTokenizer

from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.inference import AddressPredictor
from llava_ial.models.address_clip import AddressCLIP, load_clip, load_dual_encoder, load_tokenizer, save_tokenizer
from llava_ial.models.llava import load_address_clip
from tests.tiny_world import build_tiny_base_clip, build_tiny_dataset
from train import stage1_clip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data`` and a SigLIP of random weights as ``base``."""
    folder = tmp_path_factory.mktemp("siglip")
    build_tiny_dataset(folder / "data")
    tokenizer = AutoTokenizer.from_pretrained(build_tiny_base_clip(folder / "clip", folder / "data"))
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = SiglipModel(
        SiglipConfig(
            text_config={**small, "vocab_size": len(tokenizer), "max_position_embeddings": 77},
            vision_config={**small, "image_size": 32, "patch_size": 8},
        )
    )
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    processor.save_pretrained(folder / "base")
    return folder


def test_siglips_own_tokenizer_is_taken_and_saved(world: Path, tmp_path: Path):
    tokenizer = sentencepiece_tokenizer(tmp_path / "own", world)
    texts = ["amber street", "a photo of amber street between two others"]
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=8)["input_ids"]
    save_tokenizer(tokenizer, tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"))
    assert again(texts, padding="max_length", truncation=True, max_length=8)["input_ids"] == tokens
    assert len(again(texts)["input_ids"][1]) > 8  # neither padding nor truncation became its habit


def test_what_a_tokenizer_needs_is_said_in_one_line(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise ImportError("SiglipTokenizer requires the SentencePiece library but it was not found")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(UserError, match=r"base: its tokenizer needs a package: pip install 'llava-ial\[siglip\]'"):
        load_tokenizer(str(world / "base"))
    monkeypatch.undo()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no tokenizer there"):
        load_tokenizer(str(tmp_path / "empty"))


def sentencepiece_tokenizer(folder: Path, world: Path) -> SiglipTokenizer:
    """Of the kind that google/siglip-base-patch16-224 has."""
    folder.mkdir()
    text = folder / "text.txt"
    text.write_text("\n".join(record.verbose for record in IALDataset(world / "data").gallery))
    SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spiece"), vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    return SiglipTokenizer(str(folder / "spiece.model"), model_max_length=64)


def test_stage_1_tunes_a_siglip_that_finds_its_photos(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    output = tmp_path / "out"
    given = [f"--data={world / 'data'}", f"--base={world / 'base'}", f"--output={output}", "--cpu=true"]
    given += ["--num_workers=0", "--batch_size=8", "--num_epochs=60", "--learning_rate=3e-3", "--eval_splits=train"]
    monkeypatch.setattr("sys.argv", ["stage1_clip.py", *given])
    stage1_clip.main()
    plain, info = SiglipModel.from_pretrained(output, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = (load_file(folder / "model.safetensors") for folder in (world / "base", output))
    assert {name for name in before if torch.equal(before[name], after[name])} == {"logit_bias"}
    dataset, predictor = IALDataset(world / "data"), AddressPredictor.from_pretrained(output)
    samples = dataset.samples("train")
    found = [predictor.locate(dataset.image_file(s.photo.image_path), 1)[0].sub_street_id for s in samples]
    assert found == [s.address.sub_street_id for s in samples]
    texts = [record.verbose for record in dataset.gallery]
    tokens = AutoTokenizer.from_pretrained(output)(texts, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        expected = plain.get_text_features(input_ids=tokens["input_ids"]).pooler_output
    expected = torch.nn.functional.normalize(expected, dim=-1)
    torch.testing.assert_close(load_file(output / "gallery_embeddings.safetensors")["verbose"], expected)
    with pytest.raises(UserError, match="LLaVA takes the tower of a CLIP"):
        load_address_clip(output)


def test_a_text_is_the_same_alone_and_beside_a_longer_one(world: Path):
    model = AddressCLIP(load_dual_encoder(str(world / "base"))).eval()
    tokenizer = AutoTokenizer.from_pretrained(world / "base")
    short, long = "elm way", "elm way near amber street and birch avenue"
    alone = model.embed_texts([short], tokenizer)
    torch.testing.assert_close(model.embed_texts([short, long], tokenizer)[:1], alone)


def test_where_a_clip_is_needed_another_encoder_is_refused(world: Path):
    with pytest.raises(UserError, match="a SiglipModel, but a CLIP is needed"):
        load_clip(str(world / "base"))
