import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_ial.models.losses import (
    GEOGRAPHY_READINGS,
    POSITIVES,
    LossWeights,
    Truths,
    address_clip_losses,
    contrastive_loss,
    image_geography_loss,
    positive_targets,
)


def world(batch: int = 7, width: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def unit() -> torch.Tensor:
        rows = torch.randn(batch, width, generator=generator, dtype=dtype)
        return torch.nn.functional.normalize(rows, dim=-1).requires_grad_()

    features = {"image_features": unit(), "address_features": unit(), "caption_features": unit()}
    features["logit_scale"] = torch.tensor(8.0, dtype=dtype, requires_grad=True)
    address_id = torch.randint(0, 3, (batch,), generator=generator)
    xy_m = 300 * torch.rand(batch, 2, generator=generator)
    return features, address_id, xy_m


def truths(address_id: torch.Tensor, xy_m: torch.Tensor) -> Truths:
    """Two addresses a street, all in one neighbourhood; two photos a panorama."""
    return Truths(address_id, address_id // 2, torch.zeros_like(address_id), xy_m, torch.arange(len(address_id)) // 2)


# The obvious reference: the paper's formulas as loops over rows and pairs.


def naive_weight(positives: str, i: int, j: int, address_id: torch.Tensor, xy_m: torch.Tensor, sigma_m: float) -> float:
    if positives == "paper":
        return float(i == j)
    if positives == "multi":
        return float(address_id[i] == address_id[j])
    distance = math.hypot(*(xy_m[i].double() - xy_m[j].double()).tolist())
    return math.exp(-(distance**2) / (2 * sigma_m**2)) if distance < 3 * sigma_m else 0.0


def naive_contrastive(image, text, scale, positives, address_id, xy_m, sigma_m):
    batch, total = len(image), torch.zeros((), dtype=torch.float64)
    for i in range(batch):
        weights = [naive_weight(positives, i, j, address_id, xy_m, sigma_m) for j in range(batch)]
        to_text = [scale * (image[i] @ text[j]) for j in range(batch)]
        to_image = [scale * (text[i] @ image[j]) for j in range(batch)]
        for logits in (to_text, to_image):
            denominator = sum(torch.exp(logit) for logit in logits)
            for weight, logit in zip(weights, logits, strict=True):
                total = total - weight / sum(weights) * torch.log(torch.exp(logit) / denominator)
    return total / (2 * batch)


def naive_geography(image, xy_m, reading="stated"):
    batch, total = len(image), torch.zeros((), dtype=torch.float64)
    for i in range(batch):
        for j in range(batch):
            ground = 0.0
            for axis in range(2):
                values = [float(v) for v in xy_m[:, axis]]
                extent = max(values) - min(values)
                ground += abs(values[i] - values[j]) / extent / 2 if extent else 0.0
            cosine = image[i] @ image[j]
            total = total + ((cosine if reading == "printed" else 1 - cosine) - ground) ** 2
    return total / batch**2


def gradients(loss: torch.Tensor, features: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss, list(features.values()), allow_unused=True)
    return [torch.zeros_like(f) if g is None else g for f, g in zip(features.values(), found, strict=True)]


@pytest.mark.parametrize("positives", POSITIVES)
def test_contrastive_loss_equals_the_double_loop_in_value_and_gradient(positives: str):
    features, address_id, xy_m = world()
    image, text, scale = features["image_features"], features["address_features"], features["logit_scale"]
    fast = contrastive_loss(image, text, scale, positive_targets(positives, address_id, xy_m, 60.0))
    slow = naive_contrastive(image, text, scale, positives, address_id, xy_m, 60.0)
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-6)
    for a, b in zip(gradients(fast, features), gradients(slow, features), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reading", GEOGRAPHY_READINGS)
def test_geography_loss_equals_the_double_loop_in_value_and_gradient(reading: str):
    features, _, xy_m = world()
    fast = image_geography_loss(features["image_features"], xy_m, reading)
    slow = naive_geography(features["image_features"], xy_m, reading)
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-7)
    for a, b in zip(gradients(fast, features), gradients(slow, features), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("positives", POSITIVES)
def test_the_whole_is_the_weighted_sum_and_each_part_is_named(positives: str):
    features, address_id, xy_m = world()
    losses = address_clip_losses(features, truths(address_id, xy_m), weights=LossWeights(), positives=positives)
    parts = ("image_address_loss", "image_caption_loss", "image_geography_loss")
    expected = sum(w * losses[part] for w, part in zip((1.0, 0.2, 0.8), parts, strict=True))
    torch.testing.assert_close(losses["loss"], expected)
    assert set(losses) == {*parts, "loss"}


def test_streets_and_neighbourhoods_are_further_positives_that_every_row_of_the_name_shares():
    features, address_id, xy_m = world()
    for kind in ("street", "neighbourhood"):
        features[f"{kind}_features"] = world(seed=5)[0]["caption_features"]
    known, weights = truths(address_id, xy_m), LossWeights(caption=0, geography=0, street=0.5, neighbourhood=0.25)
    losses = address_clip_losses(features, known, weights=weights)
    assert weights.text_kinds == ("address", "street", "neighbourhood")
    assert set(losses) == {"image_address_loss", "image_street_loss", "image_neighbourhood_loss", "loss"}
    for kind, class_id in (("street", known.street_id), ("neighbourhood", known.neighbourhood_id)):
        image, text = features["image_features"], features[f"{kind}_features"]
        slow = naive_contrastive(image, text, features["logit_scale"], "multi", class_id, xy_m, 1.0)
        torch.testing.assert_close(losses[f"image_{kind}_loss"], slow, rtol=1e-6, atol=1e-6)
    expected = sum(
        w * losses[f"image_{kind}_loss"] for w, kind in ((1, "address"), (0.5, "street"), (0.25, "neighbourhood"))
    )
    torch.testing.assert_close(losses["loss"], expected)


@pytest.mark.parametrize("positives", POSITIVES)
def test_the_parts_of_processes_add_up_to_the_loss_of_the_batch(positives: str):
    features, address_id, xy_m = world()
    known = truths(address_id, xy_m)
    whole = address_clip_losses(features, known, weights=LossWeights(), positives=positives)
    parts = [
        address_clip_losses(features, known, weights=LossWeights(), positives=positives, rows=rows)
        for rows in (slice(0, 4), slice(4, 4), slice(4, 7))  # one process without a photo
    ]
    for name, loss in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), loss)


def test_an_unknown_choice_is_named():
    features, address_id, xy_m = world()
    with pytest.raises(ValueError, match="allowed: paper, multi, geo"):
        positive_targets("some", address_id, xy_m, 1.0)
    with pytest.raises(ValueError, match="allowed: stated, printed"):
        image_geography_loss(features["image_features"], xy_m, "some")


def test_chance_level_is_the_logarithm_of_the_batch():
    same = torch.ones(16, 4, dtype=torch.float64) / 2
    targets = positive_targets("paper", torch.arange(16), torch.zeros(16, 2), 1.0)
    loss = contrastive_loss(same, same, torch.tensor(10.0), targets)
    assert loss.item() == pytest.approx(math.log(16))


@pytest.mark.parametrize(
    "xy_m",
    [torch.full((4, 2), 7.0), torch.tensor([[0.0, 3.0], [50.0, 3.0], [20.0, 3.0], [90.0, 3.0]]), torch.zeros(1, 2)],
    ids=["one place", "a street due east", "one photo"],
)
def test_an_axis_without_extent_contributes_nothing_and_never_nan(xy_m: torch.Tensor):
    features, _, _ = world(len(xy_m))
    image = features["image_features"]
    loss = image_geography_loss(image, xy_m)
    torch.testing.assert_close(loss, naive_geography(image, xy_m), rtol=1e-6, atol=1e-7)
    assert all(g.isfinite().all() for g in gradients(loss, features))


@pytest.mark.parametrize("positives", POSITIVES)
def test_losses_are_float32_inside_bf16_autocast(positives: str):
    features, address_id, xy_m = world(dtype=torch.float32)
    xy_m = xy_m + torch.tensor([0.0, 4000.0])  # bfloat16 would see every northing as one of two values
    outside = address_clip_losses(features, truths(address_id, xy_m), weights=LossWeights(), positives=positives)
    with torch.autocast("cpu", torch.bfloat16):
        inside = address_clip_losses(features, truths(address_id, xy_m), weights=LossWeights(), positives=positives)
    for name, loss in inside.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, outside[name], rtol=0, atol=0)


def test_near_photos_alike_and_far_ones_apart_has_the_smaller_geography_loss():
    xy_m = torch.tensor([[0.0, 0.0], [1.0, 1.0], [500.0, 500.0], [501.0, 501.0]])
    alike, apart = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    right = torch.stack([alike, alike, apart, apart])
    wrong = torch.stack([alike, apart, alike, apart])
    assert image_geography_loss(right, xy_m) < 1e-4 < image_geography_loss(wrong, xy_m)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.sampled_from(POSITIVES), st.integers(0, 10_000))
def test_targets_are_shares_and_the_loss_does_not_depend_on_the_order(batch: int, positives: str, seed: int):
    features, address_id, xy_m = world(batch, seed=seed)
    targets = positive_targets(positives, address_id, xy_m, 80.0)
    torch.testing.assert_close(targets.sum(dim=-1), torch.ones(batch))
    assert (targets.diagonal() > 0).all()
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    shuffled = {name: f[order] if f.ndim else f for name, f in features.items()}
    one = address_clip_losses(
        features, truths(address_id, xy_m), weights=LossWeights(), positives=positives, sigma_m=80.0
    )
    other = address_clip_losses(
        shuffled, truths(address_id[order], xy_m[order]), weights=LossWeights(), positives=positives, sigma_m=80.0
    )
    for name, loss in one.items():
        torch.testing.assert_close(loss, other[name], rtol=1e-5, atol=1e-6)
