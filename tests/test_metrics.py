"""Metrics of a file of answers that were scored by hand, and the interval that knows of panoramas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_ial.address import Address, CrossStreet
from llava_ial.evaluation.metrics import Truth, measure, read_verdict, score_answer
from llava_ial.evaluation.statistics import clustered_rate
from llava_ial.gazetteer import Gazetteer
from llava_ial.prompts import TASKS, format_answer
from llava_ial.records import PredictionRecord


def _address(street: str, where: str, *crossings: str) -> Address:
    return Address(street, where, tuple(CrossStreet(name) for name in crossings), "Pittsburgh")


BLOCK = _address("Grant Street", "Downtown", "Third Avenue", "Fourth Avenue")
RIVER_END = _address("Grant Street", "Downtown", "Fort Pitt Boulevard")
NAMESAKE = _address("Grant Street", "Millvale")
FORBES = _address("Forbes Avenue", "Oakland", "Craig Street", "Bouquet Street")
GAZETTEER = Gazetteer([BLOCK, RIVER_END, NAMESAKE, FORBES])
TRUTHS = {
    "block": Truth(BLOCK, "pano-1"),
    "river": Truth(RIVER_END, "pano-1"),
    "forbes": Truth(FORBES, "pano-2"),
    "namesake": Truth(NAMESAKE, "pano-3"),
}
SAID = "The address of this photo might be {}."
# photo, task, answer, true answer (yes_no alone reads it), how generation ended; the hits follow in the comment
ANSWERS = [
    ("block", "where", SAID.format("Grant Street, between Third Avenue and Fourth Avenue, Downtown, Pittsburgh")),
    # street, sub-street, neighbourhood, city
    ("river", "where", SAID.format("Grant Street, between Third Avenue and Fourth Avenue, Downtown, Pittsburgh")),
    # street, neighbourhood, city: the wrong block
    ("forbes", "where", SAID.format("Forbes Avenue, Downtown, Pittsburgh")),
    # city; there is no Forbes Avenue in Downtown: nonexistent
    ("namesake", "where", "This is Grant Street."),
    # nothing: two streets bear the name
    ("namesake", "where", "I do not know."),
    # unparsed
    ("forbes", "where", "", "", "error"),
    # failed: counted apart
    ("block", "where", SAID.format("Elm Street, Downtown, Pittsburgh")),
    # neighbourhood, city; no Elm Street: nonexistent
    ("block", "street", "This is Grant St."),  # right
    ("forbes", "street", "This is not Forbes Avenue."),  # unparsed
    ("block", "between", "It is between 4th Avenue and Third Avenue."),  # right
    ("river", "between", "It is near Third Avenue."),  # wrong
    ("forbes", "neighbourhood", "The neighbourhood is Oakland."),  # right
    ("forbes", "city", "The city is London."),  # wrong
    ("block", "yes_no", "Yes, this is Grant Street.", "Yes, this is Grant Street."),  # right
    ("forbes", "yes_no", "yes", "No, this is not Grant Street.", "length"),  # wrong and cut
    ("forbes", "yes_no", "No.", "No, this is not Grant Street."),  # right
    ("river", "yes_no", "Perhaps.", "Yes, this is Grant Street."),  # unparsed
]
EXPECTED = {
    "street_accuracy": (2, 6),
    "sub_street_accuracy": (1, 6),
    "neighbourhood_accuracy": (3, 6),
    "city_accuracy": (4, 6),
    "nonexistent_address_rate": (2, 6),
    "unparsed_rate": (3, 16),
    "street_question_accuracy": (1, 2),
    "between_question_accuracy": (1, 2),
    "neighbourhood_question_accuracy": (1, 1),
    "city_question_accuracy": (0, 1),
    "yes_no_question_accuracy": (2, 4),
    "yes_recall": (1, 2),
    "no_recall": (1, 2),
}


def _prediction(number: int, photo: str, task: str, answer: str, expected: str = "", end: str = "stop"):
    return PredictionRecord(f"q{number}", photo, task, "?", expected, answer, end)


def test_answers_scored_by_hand() -> None:
    metrics = measure([_prediction(i, *row) for i, row in enumerate(ANSWERS)], TRUTHS, GAZETTEER)
    assert {name: (rate.value, rate.num_answers) for name, rate in metrics.rates.items()} == {
        name: (pytest.approx(hits / of), of) for name, (hits, of) in EXPECTED.items()
    }
    assert (metrics.num_answers, metrics.num_failed, metrics.num_truncated) == (16, 1, 1)
    assert metrics.rates["street_accuracy"].num_clusters == 3
    assert all(rate.low <= rate.value <= rate.high for rate in metrics.rates.values())


@pytest.mark.parametrize(
    ("task", "address"),
    [(task, a) for task in TASKS for a in GAZETTEER.addresses if task != "between" or a.cross_streets],
)
def test_the_true_answer_is_right_in_every_metric(task, address) -> None:
    asked = address.street if task == "yes_no" else ""
    answer = format_answer(task, address, asked=asked)
    scores = score_answer(_prediction(0, "", task, answer, answer), address, GAZETTEER)
    bad = {name for name in scores if name.endswith("rate")}
    assert all(scores[name] == (name not in bad) for name in scores)


def test_failed_answers_are_scored_nowhere() -> None:
    failed = [_prediction(i, "block", "where", "", "", "error") for i in range(3)]
    metrics = measure(failed, TRUTHS, GAZETTEER)
    assert (metrics.num_answers, metrics.num_failed, metrics.rates) == (0, 3, {})


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("Yes, it is.", "yes"), ("NO", "no"), (" no.", "no"), ("Nowhere", None), ("It is, yes", None), ("", None)],
)
def test_verdicts(text, verdict) -> None:
    assert read_verdict(text) == verdict


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown task 'colour'"):
        score_answer(_prediction(7, "block", "colour", "red"), BLOCK, GAZETTEER)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=40))
def test_rate_is_the_mean_inside_its_interval(rows) -> None:
    hits, clusters = zip(*rows, strict=True)
    rate = clustered_rate(hits, clusters, num_resamples=50)
    assert rate.value == pytest.approx(sum(hits) / len(hits))
    assert 0 <= rate.low <= rate.high <= 1
    assert (rate.num_answers, rate.num_clusters) == (len(hits), len(set(clusters)))


def test_interval_of_independent_answers_is_the_binomial_one() -> None:
    hits = np.random.default_rng(0).random(2000) < 0.3
    rate = clustered_rate(hits.tolist(), range(2000))
    half = 1.96 * math.sqrt(rate.value * (1 - rate.value) / 2000)
    assert rate.high - rate.low == pytest.approx(2 * half, rel=0.1)


@pytest.mark.parametrize(("is_hit", "low", "high"), [(False, 0.0, 0.6024), (True, 0.3976, 1.0)])
def test_four_equal_answers_are_no_certainty(is_hit, low, high) -> None:
    """Clopper-Pearson: 0 of 4 is compatible with rates up to 60.2 %."""
    rate = clustered_rate([is_hit] * 8, [0, 0, 1, 1, 2, 2, 3, 3])
    assert (rate.low, rate.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_answers_of_one_panorama_count_as_one_observation() -> None:
    hits = (np.random.default_rng(0).random(100) < 0.5).tolist()
    repeated = [hit for hit in hits for _ in range(20)]
    clustered = clustered_rate(repeated, [i // 20 for i in range(2000)])
    single = clustered_rate(hits, range(100))
    assert (clustered.low, clustered.high) == (single.low, single.high)
    pretended = clustered_rate(repeated, range(2000))
    assert clustered.high - clustered.low > 3 * (pretended.high - pretended.low)
