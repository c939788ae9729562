"""Hints: what they say, that training's are as unreliable as inference's, and that both see the same prompt."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from llava_ial import distributed
from llava_ial.address import Address, CrossStreet
from llava_ial.conversation import IMAGE_TOKEN, Message, user_question
from llava_ial.data.dataset import IALDataset
from llava_ial.data.llava import encode_dialogue
from llava_ial.errors import UserError
from llava_ial.evaluation.against_encoder import against_encoder
from llava_ial.evaluation.metrics import Truth, score_answers
from llava_ial.evaluation.ranking import RankedPhoto
from llava_ial.gazetteer import Gazetteer
from llava_ial.hints import HintSettings, format_hint, hinted_name, with_hint
from llava_ial.inference import AddressPredictor
from llava_ial.manifest import read_manifest
from llava_ial.models.greedy import greedy_tokens
from llava_ial.models.llava_folder import KIND, load_llava_ial
from llava_ial.models.running_batch import RunningBatch
from llava_ial.records import GalleryRecord, PredictionRecord
from llava_ial.training.llava_hints import HintPlan, TrainingHints, build_hints
from serve.backends import as_backend
from serve.evaluate import evaluate
from serve.evaluate_settings import EvaluateConfig
from serve.talk import Talk, Talker
from tests.stage2_runs import merge_here, train_here
from tests.test_llava_preview import run_of
from tests.tiny_models import TinyFolders
from tests.tiny_world import TinyWorld, build_tiny_dataset, tiny_gallery_record

OAK = Address("Oak Road", "Hill", (CrossStreet("Elm Lane"), CrossStreet("Ash Way")), city="Bay", country="Nowhere")
SAID = "Likely addresses: Oak Road, between Elm Lane and Ash Way, Hill 41%; Oak Road, Hill 3%."


@pytest.fixture(scope="module")
def hinted(tiny_folders: TinyFolders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 2 folder that was trained with two hints."""
    return train_here(tiny_folders, tmp_path_factory.mktemp("hinted") / "out", max_steps=1, hints=2)


def test_a_hint_names_addresses_without_their_city() -> None:
    assert format_hint([(OAK, 0.414), (replace(OAK, cross_streets=()), 0.03)]) == SAID


def test_a_hint_stands_between_photo_and_question() -> None:
    talk = [user_question("Where?"), Message("assistant", "There."), Message("user", "Sure?")]
    assert with_hint(talk, SAID) == [Message("user", f"{IMAGE_TOKEN}\n{SAID}\nWhere?"), *talk[1:]]
    assert with_hint(talk, "") == talk


def test_the_hint_stays_when_earlier_turns_are_left_out(tiny_folders: TinyFolders) -> None:
    llava = load_llava_ial(tiny_folders.llava)
    talk = [
        user_question("First?"),
        Message("assistant", "One."),
        Message("user", "Second?"),
        Message("assistant", "2."),
    ]
    whole = encode_dialogue(llava.tokenizer, talk, 16, hint=SAID)
    cut = encode_dialogue(llava.tokenizer, talk, 16, hint=SAID, max_length=len(whole.input_ids) - 1)
    assert cut.num_dropped_turns == 1
    assert cut == replace(encode_dialogue(llava.tokenizer, [user_question("Second?"), talk[3]], 16, hint=SAID),
                          num_dropped_turns=1)  # fmt: skip


class KnowsItsPhotos:
    """An encoder that finds the address of every training photo, and of every second one of validation."""

    logit_scale = 10.0

    def __init__(self, dataset: IALDataset) -> None:
        draw = torch.Generator().manual_seed(0)
        self.gallery = dataset.gallery
        self.gallery_embeddings = functional.normalize(torch.randn(len(dataset.gallery), 16, generator=draw), dim=1)
        self._row = {record.sub_street_id: i for i, record in enumerate(dataset.gallery)}
        self._feature = {}
        for split in ("train", "val"):
            for number, sample in enumerate(dataset.samples(split)):
                row = self._row[sample.address.sub_street_id]
                shown = (row + 1) % len(self.gallery) if split == "val" and number % 2 else row
                feature = self.gallery_embeddings[shown] + 0.1 * torch.randn(16, generator=draw)
                self._feature[dataset.image_file(sample.photo.image_path)] = functional.normalize(feature, dim=0)

    def photo_features(self, photos: list[Path]) -> torch.Tensor:
        return torch.stack([self._feature[photo] for photo in photos])

    def remembered_features(self, names: list[str]) -> None:
        """It remembers none."""

    def scores(self, features: torch.Tensor, own_panoramas: torch.Tensor) -> torch.Tensor:
        return features @ self.gallery_embeddings.T

    def hints_of(self, cosines: torch.Tensor, settings: HintSettings) -> list[str]:
        return [str(int(row.argmax())) for row in cosines]

    def row_of(self, sub_street_id: str) -> str:
        return str(self._row[sub_street_id])


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> IALDataset:
    world = TinyWorld(num_train=160, num_val=40, num_test=8)
    return IALDataset(build_tiny_dataset(tmp_path_factory.mktemp("crowd") / "data", world))


def test_hints_of_training_photos_are_as_often_right_as_of_others(crowd: IALDataset) -> None:
    encoder = KnowsItsPhotos(crowd)
    hints = build_hints(encoder, crowd, HintPlan(3, 0.0, 0.0, keeps_misses=True, seed=0), None)  # type: ignore[arg-type]
    val, train, noisy = hints.right_first
    assert (val, train) == (0.5, 1.0)
    assert noisy == pytest.approx(0.5, abs=0.08)
    truths = [encoder.row_of(record.sub_street_id) for record in crowd.conversations("train")]
    right = sum(hint == truth for hint, truth in zip(hints.train, truths, strict=True)) / len(truths)
    assert right == pytest.approx(0.5, abs=0.12), "each dialogue has a draw of its own"
    assert hints.own == {}
    assert "right for 50.0% of the validation photos and 100.0% of the training photos" in hints.describe()


def test_some_have_no_hint_and_some_another_photos(crowd: IALDataset) -> None:
    encoder = KnowsItsPhotos(crowd)
    none = build_hints(encoder, crowd, HintPlan(3, 0.3, 0.0, keeps_misses=True, seed=0), None).train  # type: ignore[arg-type]
    assert 0.2 < none.count("") / len(none) < 0.4
    own = build_hints(encoder, crowd, HintPlan(3, 0.0, 0.0, keeps_misses=True, seed=0), "val")  # type: ignore[arg-type]
    others = build_hints(encoder, crowd, HintPlan(3, 0.0, 0.4, keeps_misses=True, seed=0), "val")  # type: ignore[arg-type]
    assert own.own == others.own, "what is measured on is told what inference tells"
    assert set(own.own) == {sample.photo.image_id for sample in crowd.samples("val")}
    changed = sum(a != b for a, b in zip(own.train, others.train, strict=True)) / len(own.train)
    assert 0.1 < changed < 0.45, "some of the others are of the same address"
    assert build_hints(encoder, crowd, HintPlan(3, 0.0, 0.4, keeps_misses=True, seed=0), None).train == others.train  # type: ignore[arg-type]
    assert build_hints(encoder, crowd, HintPlan(3, 0.0, 0.4, keeps_misses=True, seed=1), None).train != others.train  # type: ignore[arg-type]


def test_processes_that_share_the_hints_tell_the_same_as_one(crowd: IALDataset, monkeypatch) -> None:
    encoder, plan = KnowsItsPhotos(crowd), HintPlan(3, 0.1, 0.1, keeps_misses=True, seed=0)

    def build(_: int = 0) -> TrainingHints:
        return build_hints(encoder, crowd, plan, "val")  # type: ignore[arg-type]

    alone = build()
    # Three threads in the place of three processes.
    me, barrier, table = threading.local(), threading.Barrier(3, timeout=60), [None] * 3

    def gather(value: object) -> list[object]:
        table[me.rank] = value  # type: ignore[call-overload]
        barrier.wait()
        everyone = list(table)
        barrier.wait()
        return everyone

    def run(rank: int) -> TrainingHints:
        me.rank = rank
        return build()

    monkeypatch.setattr(distributed, "gather_objects", gather)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: me.rank)
    with ThreadPoolExecutor(3) as pool:
        for shared in pool.map(run, range(3)):
            assert shared == alone


def test_what_processes_send_each_other_is_no_larger_than_it_is(crowd: IALDataset, monkeypatch) -> None:
    """A row that is a view of a batch is sent with the whole batch."""
    sent: list[object] = []

    def gather(value: object) -> list[object]:
        sent.append(value)
        return [value]

    monkeypatch.setattr(distributed, "gather_objects", gather)
    build_hints(KnowsItsPhotos(crowd), crowd, HintPlan(3, 0.1, 0.1, keeps_misses=True, seed=0), "val")  # type: ignore[arg-type]
    rows = next(value for value in sent if isinstance(value, torch.Tensor))
    assert len(pickle.dumps(rows)) < 1.1 * rows.nbytes + 2000


class NamesAddresses(KnowsItsPhotos):
    """The same, in the words of real hints."""

    def hints_of(self, cosines: torch.Tensor, settings: HintSettings) -> list[str]:
        best = cosines.topk(2, dim=1).indices.tolist()
        return [format_hint([(self.gallery[row].address, 0.4) for row in rows]) for rows in best]


def test_hints_without_the_truth_can_be_left_out(crowd: IALDataset) -> None:
    encoder = NamesAddresses(crowd)

    def train_hints(shuffled: float, *, keeps_misses: bool) -> list[str]:
        plan = HintPlan(2, 0.0, shuffled, keeps_misses=keeps_misses, seed=0)
        return build_hints(encoder, crowd, plan, None).train  # type: ignore[arg-type]

    kept, some = train_hints(0.0, keeps_misses=True), train_hints(0.0, keeps_misses=False)
    address_of = {record.sub_street_id: record.address for record in crowd.gallery}
    truths = [hinted_name(address_of[record.sub_street_id]) for record in crowd.conversations("train")]
    assert some == [hint if truth in hint else "" for hint, truth in zip(kept, truths, strict=True)]
    assert 0.1 < some.count("") / len(some) < 0.6
    mixed = train_hints(0.3, keeps_misses=False)
    others = sum(bool(hint) and truth not in hint for hint, truth in zip(mixed, truths, strict=True))
    assert 0.1 < others / len(mixed) < 0.3, "another photo's hints stay: they are there to mislead"


def test_training_and_inference_see_the_same_prompt(
    tiny_folders: TinyFolders, hinted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a validation photo, whose hint is its own in both."""
    assert read_manifest(hinted, KIND)["hints"]["count"] == 2
    run = run_of(tiny_folders, hinted, max_steps=1, hints=2, eval_strategy="steps", eval_steps=1)
    assert run.validation
    record, encoded = run.validation.dialogues.conversations[0], run.validation.dialogues.encoded[0]
    asked: list[list[int]] = []

    def spy(model, prefixes, rows, questions, **options):
        asked.extend(list(question) for question in questions)
        return greedy_tokens(model, prefixes, rows, questions, **options)

    join = RunningBatch.join

    def spy_join(batch, prefixes, rows, questions, views):
        asked.extend(list(question) for question in questions)
        return join(batch, prefixes, rows, questions, views)

    monkeypatch.setattr("llava_ial.inference.greedy_tokens", spy)
    monkeypatch.setattr(RunningBatch, "join", spy_join)
    predictor = AddressPredictor.from_pretrained(hinted)
    photo = run.dataset.image_file(record.image_path)
    predictor.answer(record.messages[:1], photo, max_new_tokens=1)
    list(predictor.stream(record.messages[:1], photo, max_new_tokens=1))
    talk = Talk([photo])
    list(Talker(predictor).ask(talk, record.messages[0].content.removeprefix(f"{IMAGE_TOKEN}\n")))
    first_answer = next(i for i, label in enumerate(encoded.labels) if label >= 0)
    assert len(asked) == 3
    for question in asked:
        assert encoded.input_ids[:first_answer][-len(question) :] == question
    text = predictor._require_llava().tokenizer.decode(asked[0])
    assert predictor.own_hints([photo])[0] in text
    predictor.answer(record.messages[:1], photo, max_new_tokens=1)
    assert predictor.answer_batch([record.messages[:1]], [photo], hints=[""], max_new_tokens=1)
    assert "Likely addresses" not in predictor._require_llava().tokenizer.decode(asked[-1])


def test_measuring_in_training_equals_the_evaluation(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    measured = {"eval_strategy": "steps", "eval_steps": 1, "eval_split": "val", "eval_photos": 5}
    out = train_here(tiny_folders, tmp_path / "out", max_steps=1, hints=2, **measured)
    lines = [
        line for line in (out / "train_log.jsonl").read_text(encoding="utf-8").splitlines() if "street_acc" in line
    ]
    metrics = evaluate(EvaluateConfig(tiny_folders.data, tmp_path / "eval", str(out), split="val", tasks=["where"],
                                      shuffle_photos=False, dialogues=False))  # fmt: skip
    assert f'"street_accuracy": {metrics["answers"]["rates"]["street_accuracy"]["value"]}' in lines[-1]


def test_a_merged_model_keeps_its_hints(hinted: Path, tmp_path: Path) -> None:
    merged = AddressPredictor.from_pretrained(merge_here(hinted, tmp_path / "merged"))
    assert merged.takes_hints


def test_an_evaluation_without_hints_or_with_other_photos(
    tiny_folders: TinyFolders, hinted: Path, tmp_path: Path
) -> None:
    predictor = AddressPredictor.from_pretrained(hinted)
    dataset = IALDataset(tiny_folders.data)
    own = {s.photo.image_id: predictor.own_hints([dataset.image_file(s.photo.image_path)])[0]
           for s in dataset.samples("train")}  # fmt: skip
    told: dict[str, list[str] | None] = {}
    for mode in ("own", "none", "shuffled"):
        config = EvaluateConfig(tiny_folders.data, tmp_path / mode, str(hinted), split="train", tasks=["where"],
                                hints=mode, shuffle_photos=False, dialogues=False)  # fmt: skip
        found: list[str | None] = []

        def spy(dialogues, photos, *, hints, found=found, **settings):
            found += hints or [None] * len(dialogues)
            return AddressPredictor.answer_batch(predictor, dialogues, photos, hints=hints, **settings)

        spied = SimpleNamespace(
            can_answer=True, takes_hints=True, probabilities=predictor.probabilities, answer_batch=spy,
            own_hints=predictor.own_hints, cosines=predictor.cosines, calibration=None,
        )  # fmt: skip
        evaluate(config, as_backend(spied, config))  # type: ignore[arg-type]
        told[mode] = found
    assert sorted(told["own"]) == sorted(own.values())
    assert set(told["none"]) == {""}
    assert sorted(told["shuffled"]) == sorted(own.values())
    changed = sum(first != other for first, other in zip(told["own"], told["shuffled"], strict=True))
    assert changed >= 0.75 * len(own), "another photo's, though it may say the same"


def test_what_cannot_be_asked_is_refused(tiny_folders: TinyFolders, tmp_path: Path) -> None:
    config = EvaluateConfig(tiny_folders.data, tmp_path / "out", str(tiny_folders.llava), split="train", hints="none")
    with pytest.raises(UserError, match="trained without hints"):
        evaluate(config)
    with pytest.raises(UserError, match="--hints 'some' is unknown"):
        evaluate(replace(config, hints="some"))
    with pytest.raises(UserError, match="is for a folder of stage 2"):
        evaluate(replace(config, server="http://localhost:1/v1"))
    with pytest.raises(UserError, match="together at most 1"):
        train_here(tiny_folders, tmp_path / "out2", hints=2, hint_dropout=0.7, hint_shuffle=0.4)


def test_hints_need_validation_photos(tmp_path: Path, tiny_folders: TinyFolders) -> None:
    dataset = IALDataset(build_tiny_dataset(tmp_path / "data", TinyWorld(num_val=0)))
    with pytest.raises(UserError, match=r"--hints 3 needs validation photos.* or take --hints 0"):
        build_hints(AddressPredictor.from_pretrained(tiny_folders.llava), dataset, HintPlan(3, 0.1, 0.1, True, 0), None)


def _ranked(name: str, truth: str, best: str, *, same_street: bool) -> RankedPhoto:
    rank = 1 if truth == best else 2
    return RankedPhoto(name, name, truth, rank, 1 if same_street else 2, [best], [0.5], 0.1)


def test_answers_are_paired_with_the_first_candidates() -> None:
    """Four photos of A: repeated rightly, mended, spoiled, and another wrong one."""
    streets = {"a": "Oak Road", "b": "Elm Lane", "c": "Ash Way"}
    gallery = [
        GalleryRecord(**{**_gallery_defaults(), "sub_street_id": name, "address": Address(street, "Hill")})
        for name, street in streets.items()
    ]
    said = {"p1": "Oak Road", "p2": "Oak Road", "p3": "Elm Lane", "p4": "Ash Way"}
    first = {"p1": "a", "p2": "b", "p3": "a", "p4": "b"}
    predictions = [
        PredictionRecord(f"{p}/where", p, "where", "Where?", "", f"This is {street}, Hill.", "stop")
        for p, street in said.items()
    ]
    truths = {p: Truth(Address("Oak Road", "Hill"), p) for p in said}
    scored = score_answers(predictions, truths, Gazetteer([record.address for record in gallery]))
    ranked = [_ranked(p, "a", best, same_street=best == "a") for p, best in first.items()]
    found = against_encoder(scored, ranked, gallery, seed=0)["street"]
    assert (found.num_differ, found.num_right, found.num_encoder_right) == (3, 1, 1)
    assert found.difference.value == 0.0
    assert (found.difference.num_only_first, found.difference.num_only_second) == (1, 1)
    assert against_encoder([], ranked, gallery, seed=0) == {}


def _gallery_defaults() -> dict[str, object]:
    return dict(vars(tiny_gallery_record(0, TinyWorld(), 1)))
