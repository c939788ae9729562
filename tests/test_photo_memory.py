"""Several views of a photo and a memory of training photos: against naive loops, and through stage 1."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from llava_ial.data.dataset import IALDataset
from llava_ial.data.images import load_photo
from llava_ial.data.views import NUM_VIEWS, views_of
from llava_ial.errors import UserError
from llava_ial.evaluation import baselines
from llava_ial.evaluation.locate import PhotoFeatures, remember
from llava_ial.evaluation.ranking import Ranker
from llava_ial.evaluation.retrieval import retrieval_metrics
from llava_ial.evaluation.ways import EncodedCity
from llava_ial.inference import AddressPredictor
from llava_ial.locating import Way
from llava_ial.manifest import file_hash, read_manifest, write_json
from llava_ial.models import photo_memory
from llava_ial.models.photo_memory import MEMORY, PhotoMemory, address_scores, load_memory, mix_views, save_memory
from llava_ial.records import name_key
from llava_ial.training.llava_hints import HintPlan, build_hints
from serve.evaluate import evaluate
from serve.evaluate_settings import EvaluateConfig
from tests.tiny_world import build_tiny_base_clip, build_tiny_dataset
from train import stage1_clip


def start_stage1(folder: Path, **options: object) -> tuple[Path, Path]:
    """Runs the command for some steps; its output folder and its data set."""
    data = build_tiny_dataset(folder / "data")
    base = build_tiny_base_clip(folder / "base", data)
    settings = {"data": data, "base": base, "output": folder / "out", "cpu": True, "num_workers": 0, "num_epochs": 4,
                "batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": 0, **options}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setattr("sys.argv", ["stage1_clip.py", *(f"--{name}={value}" for name, value in settings.items())])
        stage1_clip.main()
    return folder / "out", data


def random_memory(seed: int, num_photos: int, num_addresses: int) -> tuple[PhotoMemory, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    features = normalize(torch.randn(num_photos, 5, generator=draw, dtype=torch.float64), dim=1)
    rows = torch.randint(num_addresses, (num_photos,), generator=draw)
    panoramas = torch.randint(3, (num_photos,), generator=draw)
    asked = normalize(torch.randn(4, 5, generator=draw, dtype=torch.float64), dim=1)
    texts = normalize(torch.randn(num_addresses, 5, generator=draw, dtype=torch.float64), dim=1)
    photos = torch.arange(num_photos)
    return PhotoMemory(features, rows, panoramas, photos, weight=1.5, sharpness=7.0), asked, texts


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_scores_are_those_of_the_formula(seed: int, num_photos: int, num_addresses: int, leaves_out: bool) -> None:
    memory, asked, texts = random_memory(seed, num_photos, num_addresses)
    own = torch.tensor([0, 1, 2, 5]) if leaves_out else None
    found = memory.blend(asked, asked @ texts.T, own)
    for n, photo in enumerate(asked):
        nearness: dict[int, float] = {}
        for c in range(num_addresses):
            known = [i for i in range(num_photos) if int(memory.rows[i]) == c
                     and (own is None or int(memory.panoramas[i]) != int(own[n]))]  # fmt: skip
            if known:
                mean = sum(math.exp(7.0 * float(photo @ memory.features[i])) for i in known) / len(known)
                nearness[c] = math.log(mean) / 7.0
        others = sum(nearness.values()) / max(len(nearness), 1)
        for c in range(num_addresses):
            expected = (float(photo @ texts[c]) + 1.5 * nearness.get(c, others)) / 2.5
            assert float(found[n, c]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("leaves_out", [False, True])
def test_few_similarities_at_a_time_give_the_same_scores(leaves_out: bool, monkeypatch) -> None:
    memory, asked, texts = random_memory(1, 12, 4)
    own = torch.tensor([0, 1, 2, 5]) if leaves_out else None
    whole = memory.blend(asked, asked @ texts.T, own)
    for few in (1, 12, 36):
        monkeypatch.setattr(photo_memory, "_SIMILARITIES", few)
        torch.testing.assert_close(memory.blend(asked, asked @ texts.T, own), whole)


def test_a_sharp_memory_does_not_overflow() -> None:
    memory, asked, texts = random_memory(0, 12, 3)
    sharp = replace(memory, features=memory.features.float(), weight=1.0, sharpness=1000.0)
    scores = sharp.blend(asked.float(), (asked @ texts.T).float())
    assert bool(torch.isfinite(scores).all())
    assert float(scores.abs().max()) <= 1.0


def test_a_memory_comes_back_from_its_file(tmp_path: Path) -> None:
    memory, _, _ = random_memory(0, 12, 3)
    save_memory(tmp_path, memory)
    back = load_memory(tmp_path, weight=1.5, sharpness=7.0, device="cpu")
    torch.testing.assert_close(back.features, memory.features.float(), atol=1e-3, rtol=0)
    assert torch.equal(back.rows, memory.rows)
    assert torch.equal(back.panoramas, memory.panoramas)
    assert torch.equal(back.photos, memory.photos)
    assert name_key("a") == name_key("a") != name_key("b")


@pytest.mark.parametrize("leaves_out", [False, True])
def test_views_that_are_kept_apart_are_located_each_on_its_own(leaves_out: bool) -> None:
    memory, _, texts = random_memory(3, 12, 4)
    views = normalize(torch.randn(5, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=2)
    own = torch.tensor([0, 1, 2, 5, 0]) if leaves_out else None
    for known in (memory, None):
        found = address_scores(views, texts, known, own, logit_scale=9.0)
        assert found.shape == (5, 4)
        for n, photo in enumerate(views):
            panorama = own[n : n + 1] if own is not None else None
            alone = [address_scores(view[None], texts, known, panorama, logit_scale=9.0)[0] for view in photo]
            votes = torch.stack([(9.0 * scores).softmax(dim=0) for scores in alone])
            torch.testing.assert_close((9.0 * found[n]).softmax(dim=0), votes.mean(dim=0))
    of_one = address_scores(views[:, :1], texts, memory, logit_scale=9.0)
    alone = address_scores(views[:, 0], texts, memory, logit_scale=9.0)
    torch.testing.assert_close((9 * of_one).softmax(dim=1), (9 * alone).softmax(dim=1))


def test_a_view_that_knows_nothing_neither_speaks_nor_vetoes() -> None:
    sure, sky = torch.tensor([0.9, 0.1, 0.1]), torch.full((3,), 0.1)
    both = mix_views(torch.stack([sure, sky])[None], 20.0)[0]
    torch.testing.assert_close((20 * both).softmax(dim=0), ((20 * sure).softmax(dim=0) + 1 / 3) / 2)
    # Sure of the first and sure of the second: the mean of scores would take the third, which both find likely enough.
    torn = mix_views(torch.tensor([[[0.9, 0.1, 0.6], [0.1, 0.9, 0.6]]]), 20.0)[0]
    assert torn[2] < torn[0]
    # Views that agree score higher than views that do not, or that know nothing.
    agreed = mix_views(sure.expand(1, 2, 3), 20.0)[0]
    assert 0 >= agreed.max() > both.max() > mix_views(sky.expand(1, 4, 3), 20.0).max()


def test_every_view_is_remembered_with_its_photos_address_and_panorama(tmp_path: Path) -> None:
    dataset = IALDataset(build_tiny_dataset(tmp_path / "data"))
    samples = dataset.samples("train")
    row = torch.tensor([0, 2, 5])  # the others could not be read
    features = torch.randn(3, 4, 6)
    photos = PhotoFeatures(row, features, torch.tensor([1, 0, 2]), torch.zeros(3, 2))
    memory = remember(dataset, photos, weight=1.0, sharpness=2.0)
    assert torch.equal(memory.features.reshape(3, 4, 6), features)
    assert memory.rows.tolist() == [1] * 4 + [0] * 4 + [2] * 4
    keys = [name_key(samples[i].photo.panorama) for i in row.tolist()]
    assert memory.panoramas.reshape(3, 4).tolist() == [[key] * 4 for key in keys]
    named = [name_key(samples[i].photo.image_id) for i in row.tolist()]
    assert memory.photos.reshape(3, 4).tolist() == [[key] * 4 for key in named]
    assert torch.equal(memory.features_of(named[::-1]), features.flip(0))
    assert memory.features_of([named[0], name_key(samples[1].photo.image_id)]) is None


@pytest.fixture(scope="module")
def by_parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished stage 1 whose photos are located by parts, and its data set."""
    return start_stage1(
        tmp_path_factory.mktemp("parts"), views="parts", memory_weight=30.0, memory_sharpness=4.0, eval_splits="val"
    )


def test_a_folder_that_locates_by_parts_does_so_everywhere(by_parts: tuple[Path, Path], tmp_path: Path) -> None:
    out, data = by_parts
    measured = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["val"]
    metrics = evaluate(EvaluateConfig(data, tmp_path / "eval", str(out), split="val"))["ranking"]
    way = EncodedCity(str(out), IALDataset(data)).ranks("val", Way("parts", 30.0, 4.0))
    for name in ("SSA@1", "SSA@5", "SA@1", "SA@5"):
        assert metrics[name] == pytest.approx(measured[name])
        assert retrieval_metrics(*way)[name] == pytest.approx(measured[name])
    predictor, dataset = AddressPredictor.from_pretrained(out), IALDataset(data)
    files = [dataset.image_file(sample.photo.image_path) for sample in dataset.samples("val")]
    features = predictor.photo_features(files)
    assert features.shape[:2] == (len(files), NUM_VIEWS["parts"])
    encoder = predictor._encoder
    assert encoder.memory is not None
    assert len(encoder.memory.features) == NUM_VIEWS["parts"] * len(dataset.samples("train"))
    torch.testing.assert_close(predictor.cosines(files)[1:], predictor.cosines(files[1:]), atol=1e-5, rtol=0)
    # Texts of anybody's are compared with every part, too.
    texts = [record.verbose for record in predictor.gallery]
    among = dict(predictor.locate_among(files[0], texts))
    scores = address_scores(features[:1], predictor.gallery_embeddings, logit_scale=predictor.logit_scale)[0]
    expected = predictor.to_probabilities(scores).tolist()
    assert [among[text] for text in texts] == pytest.approx(expected, abs=1e-4)


def test_parts_give_hints_as_unreliable_as_inferences(by_parts: tuple[Path, Path]) -> None:
    out, data = by_parts
    locator, dataset = AddressPredictor.from_pretrained(out), IALDataset(data)
    hints = build_hints(locator, dataset, HintPlan(2, 0.0, 0.0, keeps_misses=True, seed=0), "val")
    assert len(hints.train) == len(dataset.conversations("train"))
    assert all(hints.train)
    samples = {sample.photo.image_id: sample for sample in dataset.samples("val")}
    name, hint = next(iter(hints.own.items()))
    file = dataset.image_file(samples[name].photo.image_path)
    assert locator.hints_of(locator.cosines([file]), hints.settings) == [hint]


def test_an_evaluation_looks_at_a_photo_once(remembering, monkeypatch) -> None:
    out, data = remembering
    locator, dataset = AddressPredictor.from_pretrained(out), IALDataset(data)
    files = [dataset.image_file(sample.photo.image_path) for sample in dataset.samples("val")]
    fresh = locator.cosines(files)
    locator.keep_cosines()
    seen, look = [], locator.photo_features
    monkeypatch.setattr(locator, "photo_features", lambda asked: seen.extend(asked) or look(asked))
    torch.testing.assert_close(locator.cosines(files[:1]), fresh[:1])
    again = locator.cosines([load_photo(file) for file in files[::-1]])
    torch.testing.assert_close(again, fresh.flip(0))
    assert len(seen) == len(files)
    assert torch.equal(locator.cosines(files[::-1]), again)
    assert len(seen) == len(files)


@pytest.mark.parametrize("folder", ["by_parts", "remembering"])
def test_what_is_remembered_of_a_photo_needs_no_look_at_it(folder: str, request, monkeypatch) -> None:
    out, data = request.getfixturevalue(folder)
    locator, dataset = AddressPredictor.from_pretrained(out), IALDataset(data)
    plan, samples = HintPlan(2, 0.0, 0.0, keeps_misses=True, seed=0), dataset.samples("train")
    found = locator.remembered_features([sample.photo.image_id for sample in samples[::-1]])
    files = [dataset.image_file(sample.photo.image_path) for sample in samples]
    torch.testing.assert_close(found, locator.photo_features(files).flip(0), atol=2e-3, rtol=0)
    assert locator.remembered_features([dataset.samples("val")[0].photo.image_id]) is None
    seen: list[Path] = []
    look = locator.photo_features
    monkeypatch.setattr(locator, "photo_features", lambda asked: seen.extend(asked) or look(asked))
    hints = build_hints(locator, dataset, plan, "val")
    assert {path.parent.name for path in seen} == {"val"}
    # A folder of an older version does not know whose features they are.
    memory = locator._encoder.memory
    locator._encoder = replace(locator._encoder, memory=replace(memory, photos=torch.zeros(0, dtype=torch.int64)))
    again = build_hints(locator, dataset, plan, "val")
    assert {path.parent.name for path in seen} == {"train", "val"}
    assert hints.own == again.own


@pytest.mark.parametrize("folder", ["by_parts", "remembering"])
def test_the_baseline_that_locates_alike_is_the_locator_with_other_weights(folder: str, request, monkeypatch) -> None:
    out, data = request.getfixturevalue(folder)
    monkeypatch.setattr(baselines, "choose_precision", lambda asked, *, cpu: "no")
    locator, dataset = AddressPredictor.from_pretrained(out), IALDataset(data)
    samples = dataset.samples("val")
    own = baselines.Baselines(dataset, str(out), device="cpu").rank(samples, locator.way)[baselines.ALIKE]
    files = [dataset.image_file(sample.photo.image_path) for sample in samples]
    expected = Ranker(dataset).rank(samples, locator.cosines(files))
    for mine, its in zip(own, expected, strict=True):
        assert mine.sub_street_rank == its.sub_street_rank
        assert mine.top_scores == pytest.approx(its.top_scores, abs=2e-3)
    untrained = baselines.Baselines(dataset, str(data.parent / "base"), device="cpu").rank(samples, locator.way)
    assert [photo.true_score for photo in untrained[baselines.ALIKE]] != [photo.true_score for photo in own]
    assert baselines.ALIKE not in baselines.Baselines(dataset, str(out), device="cpu").rank(samples, Way("3"))


@pytest.mark.parametrize("alike", [True, False])
def test_the_evaluation_has_that_baseline_unless_it_is_declined(alike: bool, remembering, tmp_path: Path) -> None:
    out, data = remembering
    base = str(data.parent / "base")
    config = EvaluateConfig(data, tmp_path / "eval", str(out), split="val", baselines=base, untuned_alike=alike)
    assert (baselines.ALIKE in evaluate(config)["baselines"]) == alike


@pytest.fixture(scope="module")
def remembering(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished stage 1 with three views and a memory, and its data set."""
    return start_stage1(tmp_path_factory.mktemp("memory"), views=3, memory_weight=2.0, eval_splits="val")


def test_the_folder_locates_as_it_measured(remembering: tuple[Path, Path], tmp_path: Path) -> None:
    out, data = remembering
    measured = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["val"]
    metrics = evaluate(EvaluateConfig(data, tmp_path / "eval", str(out), split="val"))["ranking"]
    assert {"SSA@1", "SA@1", "plain SSA@1"} <= measured.keys()
    for name in ("SSA@1", "SSA@5", "SA@1", "SA@5"):
        assert metrics[name] == pytest.approx(measured[name])


def test_features_are_the_mean_of_the_views(remembering: tuple[Path, Path]) -> None:
    out, data = remembering
    predictor, dataset = AddressPredictor.from_pretrained(out), IALDataset(data)
    file = dataset.image_file(dataset.samples("val")[0].photo.image_path)
    encoder = predictor._encoder
    single = [
        encoder.model.encode_images(encoder.image_processor([view], return_tensors="pt")["pixel_values"])[0]
        for view in views_of(load_photo(file), "3")
    ]
    expected = normalize(torch.stack(single).mean(dim=0), dim=0)
    torch.testing.assert_close(predictor.photo_features([file])[0], expected, atol=1e-5, rtol=0)
    samples = dataset.samples("train")
    assert encoder.memory is not None
    assert len(encoder.memory.features) == len(samples)
    files = [dataset.image_file(sample.photo.image_path) for sample in samples]
    torch.testing.assert_close(encoder.memory.features, predictor.photo_features(files), atol=2e-3, rtol=0)
    assert [predictor.gallery[row].sub_street_id for row in encoder.memory.rows.tolist()] == [
        sample.address.sub_street_id for sample in samples
    ]


def test_another_memory_is_refused(remembering: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(remembering[0], tmp_path / "copy")
    (folder / MEMORY).write_bytes(b"other")
    with pytest.raises(UserError, match="is not the one it was written with"):
        AddressPredictor.from_pretrained(folder)
    manifest = read_manifest(folder, "address_clip")
    write_json(folder / "manifest.json", {**manifest, "memory_hash": file_hash(folder / MEMORY)})
    with pytest.raises(UserError, match="unreadable"):
        AddressPredictor.from_pretrained(folder)
    (folder / MEMORY).unlink()
    with pytest.raises(UserError, match="is not the one it was written with"):
        AddressPredictor.from_pretrained(folder)


def test_wrong_options_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--views 2: allowed: 1, 3, parts, pad"):
        start_stage1(tmp_path, views=2)
    with pytest.raises(UserError, match="--photo_queue 3: allowed: 0, or at least --batch_size 4"):
        start_stage1(tmp_path, photo_weight=1.0, photo_queue=3)
    with pytest.raises(UserError, match="--memory_weight -1"):
        start_stage1(tmp_path, memory_weight=-1.0)
