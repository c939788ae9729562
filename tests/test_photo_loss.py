"""The loss between photos, and the queue of earlier ones."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_ial.data.clip import ClipExample, clip_examples
from llava_ial.data.dataset import IALDataset
from llava_ial.models.losses import LossWeights, Truths, address_clip_losses
from llava_ial.models.photo_loss import KnownPhotos, PhotoQueue, image_photo_loss
from llava_ial.training import clip_run
from tests.stage1_runs import Interrupter, interrupt, lines, same_results, train, world
from train import stage1_clip

__all__ = ["train", "world"]

SCALE = torch.tensor(7.0, dtype=torch.float64)


def known(seed: int, count: int, *, first_panorama: int = 0) -> KnownPhotos:
    """Photos of three addresses, two of them to a panorama."""
    draw = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(count, 4, generator=draw, dtype=torch.float64), dim=-1)
    panorama = first_panorama + torch.arange(count) // 2
    return KnownPhotos(features.requires_grad_(), torch.randint(0, 3, (count,), generator=draw), panorama)


def naive(photos: KnownPhotos, scale: float, earlier: KnownPhotos | None) -> torch.Tensor:
    """The obvious loops."""
    others = [
        (x, int(a), int(p)) for part in (photos, earlier) if part for x, a, p in zip(*vars(part).values(), strict=True)
    ]
    total = torch.zeros((), dtype=torch.float64)
    for x, address, panorama in zip(*vars(photos).values(), strict=True):
        right = [torch.exp(scale * (x @ y)) for y, a, p in others if p != panorama and a == address]
        wrong = [torch.exp(scale * (x @ y)) for y, a, p in others if p != panorama and a != address]
        if right:
            total = total - torch.log(sum(right) / (sum(right) + sum(wrong)))
    return total / len(photos.features)


@given(seed=st.integers(0, 999), count=st.integers(1, 9), with_earlier=st.booleans())
@settings(max_examples=40, deadline=None)
def test_it_equals_the_double_loop_in_value_and_gradient_and_its_rows_add_up(seed: int, count: int, with_earlier: bool):
    photos, earlier = known(seed, count), known(seed + 1, 5, first_panorama=3) if with_earlier else None
    fast, slow = image_photo_loss(photos, SCALE, earlier), naive(photos, float(SCALE), earlier)
    torch.testing.assert_close(fast, slow)
    if slow.requires_grad:
        (a,), (b,) = (torch.autograd.grad(loss, [photos.features], retain_graph=True) for loss in (fast, slow))
        torch.testing.assert_close(a, b)
    parts = [image_photo_loss(photos, SCALE, earlier, slice(i, i + 2)) for i in range(0, count, 2)]
    torch.testing.assert_close(sum(parts, torch.zeros(())).double(), fast)


def test_photos_of_the_own_panorama_are_no_evidence():
    one = torch.nn.functional.normalize(torch.ones(2, 4), dim=-1)
    same = KnownPhotos(one, torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    assert image_photo_loss(same, SCALE) == 0
    apart = KnownPhotos(one, same.address_id, torch.arange(2))
    assert image_photo_loss(apart, SCALE) == 0  # the only other photo is right
    stranger = KnownPhotos(one[:1], torch.ones(1, dtype=torch.int64), torch.tensor([2]))
    assert math.isclose(image_photo_loss(apart, SCALE, stranger), math.log(2), rel_tol=1e-6)
    assert image_photo_loss(same, SCALE, stranger) == 0  # nothing right to be found


def test_the_temperature_gets_no_gradient_and_the_photos_do():
    photos, scale = known(0, 6), SCALE.clone().requires_grad_()
    image_photo_loss(photos, scale).backward()
    assert photos.features.grad is not None
    assert photos.features.grad.any()
    assert scale.grad is None


def test_autocast_changes_nothing():
    photos = known(0, 6)
    half = KnownPhotos(photos.features.detach().float(), photos.address_id, photos.panorama)
    outside = image_photo_loss(half, SCALE)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(image_photo_loss(half, SCALE), outside)


def test_the_queue_keeps_the_newest_whole_batches():
    queue, batches = PhotoQueue(10), [known(seed, 4) for seed in range(4)]
    assert queue.photos() is None
    for number, batch in enumerate(batches):
        queue.add(batch)
        kept = queue.photos()
        assert kept
        newest = batches[max(0, number - 1) : number + 1]  # two batches of four; three would be twelve
        assert torch.equal(kept.features, torch.cat([batch.features for batch in newest]))
        assert not kept.features.requires_grad
    other = PhotoQueue(10)
    other.load(queue.state(), torch.device("cpu"))
    for mine, its in zip(vars(queue.photos()).values(), vars(other.photos()).values(), strict=True):
        assert torch.equal(mine, its)
    none = PhotoQueue(3)
    none.add(batches[0])
    assert none.photos() is None


def test_it_has_a_weight_in_the_sum_and_a_name():
    photos, earlier = known(0, 6), known(1, 6, first_panorama=9)
    truths = Truths(photos.address_id, photos.address_id, photos.address_id, torch.zeros(6, 2), photos.panorama)
    features = {"image_features": photos.features, "address_features": known(2, 6).features, "logit_scale": SCALE}
    weights = LossWeights(caption=0, geography=0, photo=0.5)
    losses = address_clip_losses(features, truths, weights=weights, earlier=earlier)
    torch.testing.assert_close(losses["image_photo_loss"], image_photo_loss(photos, SCALE, earlier))
    torch.testing.assert_close(losses["loss"], losses["image_address_loss"] + 0.5 * losses["image_photo_loss"])
    assert "image_photo_loss" not in address_clip_losses(features, truths, weights=LossWeights(caption=0, geography=0))


@pytest.fixture
def three_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The eight photos stand in three addresses; the drawn town has one for each."""

    def merged(dataset: IALDataset, split: str) -> list[ClipExample]:
        return [replace(row, address_id=i % 3) for i, row in enumerate(clip_examples(dataset, split))]

    monkeypatch.setattr(clip_run, "clip_examples", merged)


@pytest.mark.usefixtures("three_addresses")
def test_training_resumes_with_its_queue_bitwise(tmp_path: Path, train, monkeypatch):
    options = {"photo_weight": 1.0, "photo_queue": 12}
    whole = train(tmp_path / "whole", **options)
    assert all(0 < entry["image_photo_loss"] < 10 for entry in lines(whole, "image_photo_loss")[1:])
    other = train(tmp_path / "other", photo_weight=1.0, photo_queue=0)
    losses = [[entry["loss"] for entry in lines(run, "loss")] for run in (whole, other)]
    assert losses[0][0] == losses[1][0]  # nothing lies in the queue before the first step
    assert losses[0][1] != losses[1][1]
    with monkeypatch.context() as patch:
        patch.setattr(stage1_clip, "show", Interrupter(8, interrupt))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", checkpoint_every=3, **options)
    same_results(whole, train(tmp_path / "parts", **options))


@pytest.mark.usefixtures("three_addresses")
def test_chunks_train_with_the_same_queue(tmp_path: Path, train):
    runs = [
        lines(train(tmp_path / str(size), photo_weight=1.0, chunk_size=size, num_epochs=2), "image_photo_loss")
        for size in (0, 2)
    ]
    for whole, parts in zip(*runs, strict=True):
        assert whole["image_photo_loss"] > 0
        assert math.isclose(whole["image_photo_loss"], parts["image_photo_loss"], rel_tol=1e-4)
