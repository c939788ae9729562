"""Numbers of the feature space against loops, and the wordings that candidates are measured in."""

import math
from pathlib import Path

import pytest
import torch

from llava_ial.data.dataset import IALDataset
from llava_ial.evaluation.feature_space import alignment, distance_correlation, uniformity
from llava_ial.evaluation.wordings import TRAINED, UNTRAINED, gallery_texts
from tests.tiny_world import build_tiny_dataset


def unit(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, 4, generator=generator, dtype=torch.float64), dim=1)


def naive_ranks(values: list[float]) -> list[float]:
    return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]


def test_alignment_and_uniformity_equal_their_loops():
    image, text = unit(6, 0), unit(6, 1)
    assert alignment(image, text) == pytest.approx(
        sum(float((a - b).norm()) ** 2 for a, b in zip(image, text, strict=True)) / 6
    )
    pairs = [(i, j) for i in range(6) for j in range(i)]
    energy = [math.exp(-2 * float((image[i] - image[j]).norm()) ** 2) for i, j in pairs]
    assert uniformity(image) == pytest.approx(math.log(sum(energy) / len(energy)))
    assert uniformity(image[:1].expand(3, 4)) == pytest.approx(0)


def test_the_correlation_is_spearmans_with_ties_at_their_middle():
    image = unit(7, 2)
    xy_m = torch.tensor([[0.0, 0], [0, 0], [10, 0], [20, 0], [20, 5], [90, 3], [90, 3]])
    pairs = [(i, j) for i in range(7) for j in range(i)]
    one = naive_ranks([1 - float(image[i] @ image[j]) for i, j in pairs])
    other = naive_ranks([float((xy_m[i] - xy_m[j]).norm()) for i, j in pairs])
    middle = (len(pairs) + 1) / 2
    top = sum((a - middle) * (b - middle) for a, b in zip(one, other, strict=True))
    sizes = math.sqrt(sum((a - middle) ** 2 for a in one)) * math.sqrt(sum((b - middle) ** 2 for b in other))
    assert distance_correlation(image, xy_m) == pytest.approx(top / sizes)
    assert distance_correlation(image, torch.zeros(7, 2)) == 0


def test_features_that_unroll_a_street_follow_its_metres():
    angle = torch.linspace(0, 1.5, 9, dtype=torch.float64)
    street = torch.stack([angle.cos(), angle.sin()], dim=1)
    xy_m = torch.stack([100 * angle, torch.zeros_like(angle)], dim=1)
    assert distance_correlation(street, xy_m) > 0.99


def test_each_wording_tells_every_address_apart_and_only_one_is_trained(tmp_path: Path):
    gallery = IALDataset(build_tiny_dataset(tmp_path / "data")).gallery
    texts = gallery_texts(gallery)
    assert set(texts) == {TRAINED, *UNTRAINED}
    for found in texts.values():
        assert len(set(found)) == len(gallery)
    assert texts["loose"][0] == "a photo of Amber Street close to Birch Avenue and Dune Road"
    assert not {text for name in UNTRAINED for text in texts[name]} & set(texts[TRAINED])
