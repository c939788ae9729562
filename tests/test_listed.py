"""Lists, choices and photos of elsewhere, scored by hand on the map of the forty answers."""

from dataclasses import replace

import numpy as np
import pytest

from llava_ial.address import Address
from llava_ial.evaluation.consistency import consistency
from llava_ial.evaluation.listed import measure_positions
from llava_ial.evaluation.metrics import Truth, score_answer, score_answers, summarise
from llava_ial.evaluation.reliability import clustered_auroc
from llava_ial.evaluation.report import say_positions
from llava_ial.inference import AddressPredictor, Answer
from llava_ial.wider_prompts import format_candidates, format_refusal
from serve.backends import Backend, as_backend
from serve.evaluate import EvaluateConfig, evaluate
from tests.forty_answers import GALLERY, GAZETTEER, TRUTHS, prediction
from tests.tiny_world import tiny_photo

_A, _B, _M, _F = (record.address for record in GALLERY)


@pytest.mark.parametrize(
    ("photo", "said", "recall", "unparsed"),
    [
        ("a", format_candidates(_A, [_B, _F]), 1, 0),
        ("a", format_candidates(_F, [_M, _A]), 1, 0),
        ("a", format_candidates(_F, [_B, _M]), 0, 0),  # another piece of its street
        ("f", "1. Grant Street, Millvale\n2. Forbes Ave, between Craig St and Bouquet St", 1, 0),
        ("m", "Grant Street; Forbes Avenue", 0, 0),  # two streets bear the name
        ("m", "Grant Street, Millvale", 1, 0),
        ("a", "Somewhere in town; or not.", 0, 1),
    ],
)
def test_lists_of_candidates(photo, said, recall, unparsed) -> None:
    scores = score_answer(prediction(0, photo, "candidates", said), TRUTHS[photo], GAZETTEER).scores
    assert scores == {"candidates_question_recall": recall, "unparsed_rate": unparsed}


@pytest.mark.parametrize(
    ("said", "recall", "unparsed"),
    [
        ("Nearby are Craig St., Bouquet Street and Forbes Avenue.", 2 / 3, 0),
        ("Not Craig Street, but Third Avenue and fourth ave", 1 / 3, 0),
        ("Nearby are trees.", 0, 1),
    ],
)
def test_lists_of_streets_nearby(said, recall, unparsed) -> None:
    expected = "Nearby are Bouquet Street, Craig Street and Third Avenue."
    scores = score_answer(prediction(0, "f", "nearby", said, expected), TRUTHS["f"], GAZETTEER).scores
    assert scores == {"nearby_question_recall": pytest.approx(recall), "unparsed_rate": unparsed}


@pytest.mark.parametrize(
    ("said", "refused", "unparsed"),
    [
        (format_refusal(), 1, 0),
        ("I have no idea.", 1, 0),
        ("I am not sure, but it is Grant Street.", 0, 0),  # named all the same
        ("A church.", 0, 1),
    ],
)
def test_photos_of_elsewhere(said, refused, unparsed) -> None:
    truth = Truth(Address("nowhere"), "x")
    scores = score_answer(prediction(0, "x", "elsewhere", said, format_refusal()), truth, GAZETTEER).scores
    assert scores == {"elsewhere_refused_rate": refused, "unparsed_rate": unparsed}


def test_streets_nearby_contradict_no_address() -> None:
    rows = [("f", "where", "This is Forbes Avenue."), ("f", "nearby", "Nearby is Grant Street.")]
    assert consistency(score_answers([prediction(i, *row) for i, row in enumerate(rows)], TRUTHS, GAZETTEER)) == {}


def test_letters_by_hand() -> None:
    """Four questions, each letter right once, A chosen three times and once in vain read: half of the shares differ."""
    question = "Which one?\nA) Ash Street\nB) Oak Street\nC) Elm Street\nD) Fir Street"
    rows = [("A) Ash Street", "A"), ("B) Oak Street", "A"), ("C) Elm Street", "A) Ash Street"), ("D) Fir Street", "D")]
    found = measure_positions([(question, right, said) for right, said in rows] + [(question, "A) Ash Street", "no")])
    assert found is not None
    assert {name: (letter.chosen, letter.right, letter.found) for name, letter in found.letters.items()} == {
        "A": (0.75, 0.25, 1.0), "B": (0.0, 0.25, 0.0), "C": (0.0, 0.25, 0.0), "D": (0.25, 0.25, 1.0),
    }  # fmt: skip
    assert (found.bias, found.num_answers) == (0.5, 4)
    assert say_positions(found) == (
        "letters chosen (right) in 4 choices: A 75% (25%), B 0% (25%), C 0% (25%), D 25% (25%); position bias 50.0%"
    )
    asked = [
        replace(prediction(i, "a", "choice", said, right), question=question) for i, (right, said) in enumerate(rows)
    ]
    assert summarise(score_answers(asked, TRUTHS, GAZETTEER), num_failed=0).positions == found
    assert measure_positions([]) is None


def test_the_interval_of_an_area_knows_of_panoramas() -> None:
    generator = np.random.default_rng(0)
    high, low = generator.normal(1, 1, 100).tolist(), generator.normal(0, 1, 100).tolist()
    single = clustered_auroc(high, range(100), low, num_resamples=200)
    assert single.low < single.value < single.high
    repeated = clustered_auroc(high * 5, [i % 100 for i in range(500)], low, num_resamples=200)
    assert repeated.value == pytest.approx(single.value)
    assert repeated.high - repeated.low == pytest.approx(single.high - single.low, rel=0.25)
    assert clustered_auroc([2, 3], ["p", "p"], [1], num_resamples=10).value == 1.0
    with pytest.raises(ValueError, match="no pair"):
        clustered_auroc([], [], [1.0])


def test_an_evaluation_with_photos_of_elsewhere(tiny_folders, tmp_path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "far").mkdir(parents=True)
    for i in range(3):
        tiny_photo(20 + i, 0).save(elsewhere / "far" / f"{i}.jpg")
    (elsewhere / "broken.jpg").write_bytes(b"no photo")
    config = EvaluateConfig(
        tiny_folders.data, tmp_path / "out", str(tiny_folders.llava), split="train", elsewhere=elsewhere,
        shuffle_photos=False, dialogues=False,
    )  # fmt: skip
    predictor = AddressPredictor.from_pretrained(tiny_folders.llava)

    class Declines:
        def answer_batch(self, dialogues, photos, **settings) -> list[Answer]:
            says = ["I do not know.", "This is Amber Street.", "It is Nowhere Lane."]
            return [Answer(says[i % 3], "stop") for i in range(len(dialogues))]

    declines = Declines()
    backend = as_backend(predictor, config)
    asks = Backend(lambda q, p: declines.answer_batch(q, p), backend.scores_of, backend.locator)
    with pytest.raises(ValueError, match="1 questions have no answer"):
        evaluate(config, asks)  # the broken one, which is scored nowhere
    (elsewhere / "broken.jpg").unlink()
    config.output = tmp_path / "whole"
    metrics = evaluate(config, asks)
    rate = metrics["answers"]["rates"]["elsewhere_refused_rate"]
    assert rate["num_answers"] == 3
    assert metrics["questions"]["asked"] == 11
    found = metrics["elsewhere"]
    assert (found["num_here"], found["num_elsewhere"], found["num_failed"]) == (8, 3, 0)
    assert 0 <= found["auroc"]["low"] <= found["auroc"]["value"] <= found["auroc"]["high"] <= 1
    assert "3 photos of other places and 8 of the city" in (config.output / "metrics.md").read_text()
    assert "AUROC" in (config.output / "report.html").read_text()
    assert "other/far/0.jpg" in (config.output / "answers.csv").read_text()

    (elsewhere / "near").mkdir()
    tiny_photo(30, 0).save(elsewhere / "near" / "0.jpg")  # of the same name, in another folder
    with pytest.raises(ValueError, match="holds another run"):
        evaluate(config, asks)
    (elsewhere / "near" / "0.jpg").unlink()

    ranked = EvaluateConfig(
        tiny_folders.data, tmp_path / "ranked", str(tiny_folders.clip), split="train", elsewhere=elsewhere
    )
    assert evaluate(ranked)["elsewhere"]["num_elsewhere"] == 3  # a folder of stage 1 tells them apart too
