"""Scores of single answers, and intervals and tests that know of panoramas."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_ial.evaluation.metrics import Truth, measure, score_answer
from llava_ial.evaluation.reading import read_verdict
from llava_ial.evaluation.statistics import (
    clustered_rate,
    paired_difference,
    smallest_visible_difference,
    standard_error,
)
from llava_ial.prompts import TASKS, format_answer
from tests.forty_answers import GAZETTEER, TRUTHS, prediction


@pytest.mark.parametrize(
    ("task", "address"),
    [(task, a) for task in TASKS for a in GAZETTEER.addresses if task != "between" or a.cross_streets],
)
def test_the_true_answer_is_right_in_every_metric(task, address) -> None:
    asked = address.street if task == "yes_no" else ""
    answer = format_answer(task, address, asked=asked)
    scores = score_answer(prediction(0, "", task, answer, answer), Truth(address, ""), GAZETTEER).scores
    bad = {name for name in scores if name.endswith("rate")}
    assert all(scores[name] == (name not in bad) for name in scores)


def test_failed_answers_are_scored_nowhere() -> None:
    failed = [prediction(i, "a", "where", "", "", "error") for i in range(3)]
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
        score_answer(prediction(7, "a", "colour", "red"), TRUTHS["a"], GAZETTEER)


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


def test_a_balanced_rate_is_the_mean_of_the_groups() -> None:
    rate = clustered_rate([1, 1, 1, 0], range(4), group_of=["yes", "yes", "yes", "no"])
    assert rate.value == pytest.approx((1 + 0) / 2)


def test_standard_error_is_that_of_the_bootstrap() -> None:
    generator = np.random.default_rng(1)
    clusters = generator.integers(0, 150, 1000)
    hits = (generator.random(150)[clusters] > 0.4).astype(float)
    rate = clustered_rate(hits.tolist(), clusters.tolist())
    error = standard_error(hits.tolist(), clusters.tolist())
    assert (rate.high - rate.low) / (2 * 1.96) == pytest.approx(error, rel=0.1)
    assert standard_error([1.0, 0.0], ["one", "one"]) == 0.0


def test_a_paired_test_sees_what_two_intervals_do_not() -> None:
    generator = np.random.default_rng(0)
    second = (generator.random(400) < 0.5).astype(float)
    first = second.copy()
    first[np.flatnonzero(second == 0)[:16]] = 1  # better on 16 questions, worse on none
    found = paired_difference(first.tolist(), second.tolist(), range(400))
    assert found.value == pytest.approx(0.04)
    assert (found.num_only_first, found.num_only_second) == (16, 0)
    assert 0 < found.low <= found.value <= found.high
    assert found.p_value < 0.01
    assert clustered_rate(first.tolist(), range(400)).low < clustered_rate(second.tolist(), range(400)).high
    same = paired_difference(first.tolist(), first.tolist(), range(400))
    assert (same.value, same.p_value, same.smallest_visible) == (0.0, 1.0, 0.0)


def test_the_paired_test_knows_of_panoramas() -> None:
    """Twenty photos of one lucky panorama are no evidence."""
    first, second = [1.0] * 20 + [0.0, 1.0] * 5, [0.0] * 20 + [1.0, 0.0] * 5
    lucky = paired_difference(first, second, [0] * 20 + list(range(1, 11)))
    assert lucky.p_value > 0.5
    assert paired_difference(first, second, range(30)).p_value < 0.01


def test_the_smallest_visible_difference_is_found_in_four_cases_of_five() -> None:
    generator = np.random.default_rng(0)
    error = 1 / math.sqrt(200)
    effect = smallest_visible_difference(error)
    draws = generator.normal(effect, error, 20_000)
    assert (np.abs(draws) > 1.96 * error).mean() == pytest.approx(0.8, abs=0.01)


def test_a_choice_is_scored_by_its_letter_and_talk_is_not_scored() -> None:
    truth = TRUTHS["a"]
    asked = prediction(7, "a", "choice", "")
    asked = replace(asked, question="Which one?\nA) Ash Street\nB) Oak Street", expected="B) Oak Street")
    for answer, right in (("B) Oak Street", 1.0), ("B", 1.0), ("A) Ash Street", 0.0), ("perhaps", 0.0)):
        scores = score_answer(replace(asked, answer=answer), truth, GAZETTEER).scores
        assert scores["choice_question_accuracy"] == right
        assert scores["unparsed_rate"] == (answer == "perhaps")
    assert score_answer(replace(asked, task="sure", answer="I am fairly sure."), truth, GAZETTEER).scores == {}
