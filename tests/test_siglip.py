"""Stage 1 with another dual encoder: a tiny SigLIP, from its folder to addresses."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, SiglipConfig, SiglipImageProcessorPil, SiglipModel

from llava_ial.data.dataset import IALDataset
from llava_ial.errors import UserError
from llava_ial.inference import AddressPredictor
from llava_ial.models.address_clip import AddressCLIP, load_clip, load_dual_encoder
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
