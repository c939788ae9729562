"""Baselines against slow, obvious versions of themselves."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPTokenizerFast

from llava_ial.data.dataset import IALDataset
from llava_ial.data.images import load_photo
from llava_ial.errors import UserError
from llava_ial.evaluation.appearance import histogram_features, pixel_features
from llava_ial.evaluation.baselines import FEATURES, HISTOGRAM, PIXELS, ZERO_SHOT, Baselines
from llava_ial.evaluation.ranking import rank_photos
from llava_ial.evaluation.retrieval import street_ranks
from serve.evaluate import EvaluateConfig, evaluate
from tests.tiny_models import TinyFolders
from tests.tiny_world import TinyWorld, build_tiny_base_clip, build_tiny_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> IALDataset:
    """Six training photos at six of eight addresses: not every address of a test photo has a neighbour."""
    folder = tmp_path_factory.mktemp("baselines") / "data"
    return IALDataset(build_tiny_dataset(folder, TinyWorld(num_train=6, num_val=1, num_test=6)))


@pytest.fixture(scope="module")
def base(dataset: IALDataset) -> Path:
    return build_tiny_base_clip(dataset.folder.parent / "base", dataset.folder)


def _ranks_by_hand(scores: dict[str, float], truth: str, dataset: IALDataset) -> tuple[int, int]:
    street_of = {record.sub_street_id: record.address.street_key for record in dataset.gallery}
    sub_street = sum(score >= scores[truth] for score in scores.values())
    best = max(score for name, score in scores.items() if street_of[name] == street_of[truth])
    others = [s for name, s in scores.items() if street_of[name] != street_of[truth]]
    return sub_street, 1 + sum(score >= best for score in others)


@pytest.mark.parametrize(("name", "describe"), [(PIXELS, pixel_features), (HISTOGRAM, histogram_features)])
def test_the_nearest_training_photo_decides(dataset, base, name, describe) -> None:
    ranked = Baselines(dataset, str(base), device="cpu").rank(dataset.samples("test"))[name]
    features = {
        s.photo.image_id: describe(load_photo(dataset.image_file(s.photo.image_path)))
        for split in ("train", "test")
        for s in dataset.samples(split)
    }
    assert [photo.image_id for photo in ranked] == [s.photo.image_id for s in dataset.samples("test")]
    for photo in ranked:
        scores = {record.sub_street_id: -np.inf for record in dataset.gallery}
        for known in dataset.samples("train"):
            similarity = float(features[photo.image_id] @ features[known.photo.image_id])
            where = known.address.sub_street_id
            scores[where] = max(scores[where], similarity)
        assert (photo.sub_street_rank, photo.street_rank) == _ranks_by_hand(scores, photo.sub_street_id, dataset)


def test_a_photo_is_not_its_own_neighbour(dataset, base) -> None:
    """Every training photo of this world stands alone at its address: without itself it has no neighbour there."""
    ranked = Baselines(dataset, str(base), device="cpu").rank(dataset.samples("train"))
    for name in (PIXELS, HISTOGRAM, FEATURES):
        assert {photo.sub_street_rank for photo in ranked[name]} == {len(dataset.gallery)}


def test_zero_shot_is_what_transformers_says(dataset, base) -> None:
    ranked = Baselines(dataset, str(base), device="cpu").rank(dataset.samples("test"))[ZERO_SHOT]
    clip, tokenizer = CLIPModel.from_pretrained(base).eval(), CLIPTokenizerFast.from_pretrained(base)
    baselines = Baselines(dataset, str(base), device="cpu")
    texts = tokenizer([record.verbose for record in dataset.gallery], padding=True, return_tensors="pt")
    for photo, sample in zip(ranked, dataset.samples("test"), strict=True):
        image = load_photo(dataset.image_file(sample.photo.image_path))
        pixels = baselines._image_processor(image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            cosines = clip(**texts, pixel_values=pixels).logits_per_image[0] / clip.logit_scale.exp()
        assert photo.true_score == pytest.approx(
            float(cosines[[r.sub_street_id for r in dataset.gallery].index(photo.sub_street_id)]), abs=1e-5
        )
        assert photo.top_scores == pytest.approx(cosines.sort(descending=True).values[:5].tolist(), abs=1e-5)


def test_the_command_states_them_with_intervals(tiny_folders: TinyFolders, tmp_path, capsys) -> None:
    base = tiny_folders.data.parent / "base_clip"
    config = EvaluateConfig(tiny_folders.data, tmp_path / "out", str(tiny_folders.clip), baselines=str(base))
    with pytest.raises(UserError, match="no such folder"):
        evaluate(replace(config, baselines="./nowhere"))
    assert not config.output.exists()
    metrics = evaluate(config)
    assert list(metrics["baselines"]) == [ZERO_SHOT, PIXELS, HISTOGRAM, FEATURES]
    for ranking in [metrics["ranking"], *metrics["baselines"].values()]:
        assert set(ranking["rates"]) == {"SSA@1", "SSA@5", "SA@1", "SA@5"}
        for name, rate in ranking["rates"].items():
            assert rate["value"] == ranking[name]
            assert 0 <= rate["low"] <= rate["value"] <= rate["high"] <= 1
            assert rate["num_clusters"] == 2
    assert json.loads((config.output / "metrics.json").read_text())["baselines"] == metrics["baselines"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in metrics["baselines"])


def test_the_best_candidates_are_kept_in_order(dataset) -> None:
    scores = torch.rand(6, len(dataset.gallery), generator=torch.Generator().manual_seed(0))
    samples = dataset.samples("test")
    ranked = rank_photos(lambda photos: scores, dataset, samples)
    streets = [record.address.street_key for record in dataset.gallery]
    classes = torch.tensor([sorted(set(streets)).index(street) for street in streets])
    ids = [record.sub_street_id for record in dataset.gallery]
    truth = torch.tensor([ids.index(s.address.sub_street_id) for s in samples])
    assert [photo.street_rank for photo in ranked] == street_ranks(scores, truth, classes).tolist()
    for photo, row in zip(ranked, scores, strict=True):
        assert photo.top_ids == [ids[c] for c in row.argsort(descending=True)[:5].tolist()]
        assert photo.top_ids[0] == photo.sub_street_id or photo.sub_street_rank > 1
