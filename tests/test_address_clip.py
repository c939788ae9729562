"""A text that several photos of a batch share is encoded once: the same features and gradients as a row for each."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from llava_ial.data.clip import ClipCollator, ClipExample
from llava_ial.models.address_clip import AddressCLIP, load_clip
from llava_ial.models.losses import LossWeights, address_clip_losses
from tests.tiny_world import build_tiny_base_clip, build_tiny_dataset

ADDRESSES = ("located on Elm Way", "located on Amber Street", "located on Dune Road, near Birch Avenue")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("address_clip")
    build_tiny_dataset(folder / "data")
    return build_tiny_base_clip(folder / "base", folder / "data")


def batch_of(base: Path, address_id: list[int]) -> dict[str, torch.Tensor]:
    side = load_clip(str(base)).config.vision_config.image_size
    torch.manual_seed(3)
    items = [
        {
            "example": ClipExample(f"photo-{i}", Path(), ADDRESSES[a], f"wall {a}", (10.0 * i, 3.0 * a), a),
            "pixel_values": torch.randn(3, side, side),
        }
        for i, a in enumerate(address_id)
    ]
    model_length = 77
    return ClipCollator(AutoTokenizer.from_pretrained(base), model_length)(items)


def gradients(base: Path, batch: dict[str, torch.Tensor], *, once: bool) -> dict[str, torch.Tensor]:
    """Loss and gradients of all weights, texts encoded once each or, the plain way, once a photo."""
    model = AddressCLIP(load_clip(str(base))).double()
    if not once:
        for name in ("address", "caption"):
            for part in ("input_ids", "attention_mask"):
                batch = {**batch, f"{name}_{part}": batch[f"{name}_{part}"][batch[f"{name}_row"]]}
            batch[f"{name}_row"] = torch.arange(len(batch["image_id"]))
    inputs = {name: value for name, value in batch.items() if name not in ("image_id", "xy_m", "address_id")}
    inputs["pixel_values"] = inputs["pixel_values"].double()
    features = model(**inputs)
    loss = address_clip_losses(features, batch["address_id"], batch["xy_m"], weights=LossWeights())["loss"]
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}


@pytest.mark.parametrize("address_id", [[0, 1, 2], [2, 0, 2, 2, 1, 0], [1, 1, 1]], ids=["no repeats", "some", "one"])
def test_a_text_encoded_once_has_the_gradient_of_all_its_rows(base: Path, address_id: list[int]):
    batch = batch_of(base, address_id)
    assert len(batch["address_input_ids"]) == len(set(address_id))
    once, each = gradients(base, batch, once=True), gradients(base, batch, once=False)
    for name, expected in each.items():
        torch.testing.assert_close(once[name], expected, rtol=1e-9, atol=1e-12, msg=name)
