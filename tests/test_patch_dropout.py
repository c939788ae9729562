"""Training on some patches of each photo: which stay, and that nothing else of the encoder changes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from llava_ial.errors import UserError
from llava_ial.models.patch_dropout import PatchDropout, drop_patches
from llava_ial.training.clip_settings import ClipSettings

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PHOTOS = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build_tower(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "clip":
        return CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=8, **SIZES))
    return SiglipVisionModel(SiglipVisionConfig(image_size=32, patch_size=8, **SIZES))


@pytest.mark.parametrize(("share", "kept"), [(0.25, 12), (0.5, 8), (0.99, 1)])
def test_the_class_token_and_that_many_patches_stay_in_order(share: float, kept: int) -> None:
    tokens = torch.arange(17.0)[None, :, None].expand(5, 17, 4)
    some = PatchDropout(share, has_class_token=True)(nn.Identity().train(), (), tokens)
    assert some.shape == (5, 1 + kept, 4)
    places = some[:, :, 0]
    assert (places[:, 0] == 0).all()
    assert (places.diff(dim=1) > 0).all()


def test_each_photo_loses_other_patches_and_each_patch_as_often() -> None:
    torch.manual_seed(0)
    tokens = torch.arange(16.0)[None, :, None].expand(4000, 16, 1)
    some = PatchDropout(0.5, has_class_token=False)(nn.Identity().train(), (), tokens)[:, :, 0].long()
    assert len({tuple(row) for row in some.tolist()}) > 1000
    share = torch.bincount(some.flatten(), minlength=16) / 4000
    assert (share - 0.5).abs().max() < 0.04


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_what_is_measured_and_saved_is_the_plain_tower(kind: str) -> None:
    plain, dropping = build_tower(kind).eval(), build_tower(kind)
    drop_patches(getattr(dropping, "vision_model", dropping), 0.5)
    assert list(dropping.state_dict()) == list(plain.state_dict())
    dropping.train()
    torch.manual_seed(1)
    trained = dropping(pixel_values=PHOTOS)
    assert trained.last_hidden_state.shape[1] == 8 + (kind == "clip")
    trained.pooler_output.sum().backward()
    dropping.eval()
    with torch.no_grad():
        assert torch.equal(dropping(pixel_values=PHOTOS).pooler_output, plain(pixel_values=PHOTOS).pooler_output)


def test_a_tower_without_patches_is_refused() -> None:
    with pytest.raises(UserError, match=r"--patch_dropout 0\.5: Linear has no patch embeddings"):
        drop_patches(nn.Linear(2, 2), 0.5)


def test_all_patches_cannot_be_left_out(tmp_path: Path) -> None:
    settings = ClipSettings(output=tmp_path, data=tmp_path, base="clip")
    replace(settings, patch_dropout=0.9).refuse_impossible()
    with pytest.raises(UserError, match=r"--patch_dropout 1\.0"):
        replace(settings, patch_dropout=1.0).refuse_impossible()
