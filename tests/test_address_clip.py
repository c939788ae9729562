"""A text that several photos of a batch share is encoded once: the same features and gradients as a row for each."""

from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from llava_ial.data.clip import ClipCollator, ClipExample
from llava_ial.models.address_clip import AddressCLIP, load_clip
from llava_ial.training.clip_settings import ClipSettings
from llava_ial.training.clip_step import batch_losses, model_inputs, to_device
from llava_ial.training.feature_cache import cached_backward, split_inputs
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


def gradients(
    base: Path, batch: dict[str, torch.Tensor], *, once: bool, num_chunks: int = 1
) -> dict[str, torch.Tensor]:
    """Loss and gradients of all weights, texts encoded once each or, the plain way, once a photo."""
    model = AddressCLIP(load_clip(str(base))).double()
    if not once:
        for name in ("address", "caption"):
            for part in ("input_ids", "attention_mask"):
                batch = {**batch, f"{name}_{part}": batch[f"{name}_{part}"][batch[f"{name}_row"]]}
            batch[f"{name}_row"] = torch.arange(len(batch["image_id"]))
    tensors = to_device({**batch, "pixel_values": batch["pixel_values"].double()}, torch.device("cpu"))
    settings = ClipSettings(Path(), "", Path())
    if num_chunks == 1:
        losses = batch_losses(model(**model_inputs(tensors)), tensors, settings)
        losses["loss"].backward()
    else:
        losses = cached_backward(
            model, split_inputs(model_inputs(tensors), num_chunks), lambda f: batch_losses(f, tensors, settings),
            backward=torch.Tensor.backward, no_sync=nullcontext, seed=torch.manual_seed,
        )  # fmt: skip
    return {**{n: loss.detach() for n, loss in losses.items()}, **{n: p.grad for n, p in model.named_parameters()}}


@pytest.mark.parametrize("address_id", [[0, 1, 2], [2, 0, 2, 2, 1, 0], [1, 1, 1]], ids=["no repeats", "some", "one"])
def test_a_text_encoded_once_has_the_gradient_of_all_its_rows(base: Path, address_id: list[int]):
    batch = batch_of(base, address_id)
    assert len(batch["address_input_ids"]) == len(set(address_id))
    once, each = gradients(base, batch, once=True), gradients(base, batch, once=False)
    for name, expected in each.items():
        torch.testing.assert_close(once[name], expected, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("num_chunks", [2, 3, 6])
def test_features_cached_in_chunks_have_the_gradient_of_the_whole_batch(base: Path, num_chunks: int):
    batch = batch_of(base, [2, 0, 2, 2, 1, 0])  # three texts: in six chunks, three have none of their own
    whole, cached = gradients(base, batch, once=True), gradients(base, batch, once=True, num_chunks=num_chunks)
    for name, expected in whole.items():
        torch.testing.assert_close(cached[name], expected, rtol=1e-9, atol=1e-12, msg=name)


class NoisyEncoder(torch.nn.Module):
    """An encoder with dropout and a temperature, small enough to see every weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"image_features": torch.dropout(pixel_values * self.weight, 0.5, True), "logit_scale": self.scale**2}


def test_the_two_passes_of_a_chunk_draw_alike_and_gradients_are_exchanged_once():
    model, held_back, drawn = NoisyEncoder(), [], []
    pixels = torch.arange(15, dtype=torch.float64).reshape(5, 3)

    def losses_of(features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        drawn.append(features["image_features"].detach().clone())
        return {"loss": (features["image_features"].sum(dim=1) ** 2).sum() * features["logit_scale"]}

    @contextmanager
    def no_sync():
        held_back.append(True)
        yield

    cached_backward(
        model, split_inputs({"pixel_values": pixels}, 3), losses_of, backward=torch.Tensor.backward,
        no_sync=no_sync, seed=torch.manual_seed, scale=2.0,
    )  # fmt: skip
    assert held_back == [True, True]
    kept = drawn[0] / pixels.clamp(min=1e-9)  # 0 or 2: what dropout made of each value
    expected = 2 * 4 * 2 * (drawn[0].sum(dim=1, keepdim=True) * kept * pixels).sum(dim=0)
    torch.testing.assert_close(model.weight.grad, expected)
    torch.testing.assert_close(model.scale.grad, 2 * 4 * (drawn[0].sum(dim=1) ** 2).sum())
