"""Spreading the addresses of a city over the feature space before tuning."""

import pytest
import torch
from transformers import AutoTokenizer

from llava_ial.errors import UserError
from llava_ial.models.address_clip import AddressCLIP, load_clip
from llava_ial.models.text_spread import spread_texts
from tests.tiny_models import TinyFolders


def _cosines(model: AddressCLIP, texts: list[str], tokenizer) -> torch.Tensor:
    features = model.embed_texts(texts, tokenizer)
    return features @ features.T


def test_few_texts_become_orthogonal_and_the_rest_of_the_model_stays(tiny_folders: TinyFolders) -> None:
    model = AddressCLIP(load_clip(str(tiny_folders.clip))).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_folders.clip)
    texts = [f"located on a section of {name} Street that near Oak Street" for name in ("Amber", "Birch", "Cedar")]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    apart = 1 - torch.eye(3)
    assert (_cosines(model, texts, tokenizer) * apart).abs().max() > 0.2
    spread_texts(model, texts, tokenizer)
    assert (_cosines(model, texts, tokenizer) * apart).abs().max() < 0.01
    changed = [name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])]
    assert changed == ["clip.text_projection.weight"]
    assert not model.training


def test_an_encoder_without_a_text_projection_is_refused(tiny_folders: TinyFolders) -> None:
    clip = load_clip(str(tiny_folders.clip))
    del clip.text_projection
    with pytest.raises(UserError, match="no text projection to refit"):
        spread_texts(AddressCLIP(clip), ["located on Oak Street"], AutoTokenizer.from_pretrained(tiny_folders.clip))


def test_more_texts_than_dimensions_get_equal_variance_in_all(tiny_folders: TinyFolders) -> None:
    model = AddressCLIP(load_clip(str(tiny_folders.clip))).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_folders.clip)
    width = model.feature_width
    texts = [f"located on {chr(97 + i % 26)}{chr(97 + i // 26)}{i * 37 % 101} Street" for i in range(6 * width)]

    def spectrum() -> torch.Tensor:
        return torch.linalg.svdvals(model.embed_texts(texts, tokenizer)).square()

    crooked = spectrum()
    spread_texts(model, texts, tokenizer)
    assert spectrum().max() / spectrum().sum() < 0.7 * crooked.max() / crooked.sum()
