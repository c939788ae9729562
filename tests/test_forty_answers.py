"""Every metric of a file of forty answers that was scored by hand."""

from pathlib import Path

import pytest

from llava_ial.evaluation.breakdown import Placing, by_neighbourhood, by_street, confusions
from llava_ial.evaluation.consistency import consistency
from llava_ial.evaluation.metrics import measure, score_answers
from llava_ial.evaluation.reading import is_refusal, read_choice, read_options
from llava_ial.evaluation.reliability import auroc, measure_reliability
from llava_ial.evaluation.report import RATE_LABELS
from tests.forty_answers import ANSWERS, EXPECTED, GAZETTEER, MEDIAN_M, P90_M, PLACES, TRUTHS, prediction, predictions


def test_forty_answers_scored_by_hand() -> None:
    metrics = measure(predictions(), TRUTHS, GAZETTEER, places=PLACES)
    assert len(ANSWERS) == 40
    assert {name: (rate.value, rate.num_answers) for name, rate in metrics.rates.items()} == {
        name: (pytest.approx(hits / of), of) for name, (hits, of) in EXPECTED.items()
    }
    assert (metrics.num_answers, metrics.num_failed, metrics.num_truncated) == (38, 2, 1)
    assert metrics.rates["street_accuracy"].num_clusters == 3
    assert all(rate.low <= rate.value <= rate.high for rate in metrics.rates.values())
    assert metrics.distance_m == {
        "median": pytest.approx(MEDIAN_M, abs=0.05),
        "p90": pytest.approx(P90_M, abs=5),  # a metre of UTM differs from one of the ground by up to 0.1 %
        "num_located": 9,
    }
    assert metrics.smallest_visible.keys() == metrics.rates.keys() - {"yes_no_balanced_accuracy"}


def test_every_rate_is_explained() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert [name for name in {*RATE_LABELS, *EXPECTED} if f"`{name}`" not in text] == []


def test_without_geometry_the_metrics_that_need_it_are_left_out() -> None:
    metrics = measure(predictions(), TRUTHS, GAZETTEER)
    missing = {"within_50_m", "within_100_m", "within_200_m", "adjacent_block_rate"}
    assert metrics.rates.keys() == EXPECTED.keys() - missing
    assert metrics.distance_m == {}


def test_consistency_by_hand() -> None:
    on_grant = "The address of this photo might be Grant Street, Downtown, Pittsburgh."
    answers = [
        ("a", "where", on_grant),
        ("a", "where", "Forbes Avenue, Pittsburgh"),  # another street in other words: inconsistent
        ("a", "where", "I do not know."),  # names nothing: no pair
        ("a", "street", "Grant Street"),  # agrees with the first, not with the second
        ("a", "neighbourhood", "The neighbourhood is Oakland."),  # disagrees with the first; the second names none
        ("a", "yes_no", "No.", "Yes, this is Grant Street."),  # contradicts the first and the street, not the second
        ("f", "where", "Forbes Avenue"),
        ("f", "street", "Forbes Avenue"),  # agrees
    ]
    scored = score_answers([prediction(i, *row) for i, row in enumerate(answers)], TRUTHS, GAZETTEER)
    rates = consistency(scored)
    assert (rates["wording_consistency"].value, rates["wording_consistency"].num_answers) == (0.0, 1)
    assert (rates["kinds_consistency"].value, rates["kinds_consistency"].num_answers) == (pytest.approx(3 / 7), 7)
    assert consistency(scored[:1]) == {}


def test_streets_and_confusions_by_hand() -> None:
    placings = [
        Placing("p1", "Grant", "Downtown", "Grant", True, 10.0),
        Placing("p1", "Grant", "Downtown", "Forbes", False, 900.0),
        Placing("p2", "Grant", "Downtown", "Forbes", False, 700.0),
        Placing("p3", "Forbes", "", "", False, None),
        Placing("p4", "Elm", "Oakland", "Elm", True, 5.0),
    ]
    assert [(g.name, g.rate.value, g.rate.num_answers) for g in by_street(placings)] == [
        ("Forbes", 0.0, 1), ("Grant", pytest.approx(1 / 3), 3), ("Elm", 1.0, 1),
    ]  # fmt: skip
    assert [group.name for group in by_neighbourhood(placings)] == ["Downtown", "Oakland"]
    ((found),) = confusions(placings)
    assert (found.street, found.named, found.count, found.distance_m) == ("Grant", "Forbes", 2, 800.0)


def test_reliability_by_hand() -> None:
    """Three of fifteen bins: 0.25 (none right), 0.65 twice (1 of 2 right), 0.95 and 1.0 (both right)."""
    found = measure_reliability([0.25, 0.65, 0.65, 0.95, 1.0], [False, True, False, True, True])
    assert found.expected_error == pytest.approx((0.25 + 2 * 0.15 + 2 * 0.025) / 5)
    assert [b.num_answers for b in found.bins] == [1, 2, 2]
    # The two answers of 0.65 come together.
    coverages, risks = zip(*found.risk_coverage, strict=True)
    assert coverages == pytest.approx([0.2, 0.4, 0.8, 1.0])
    assert risks == pytest.approx([0, 0, 1 / 4, 2 / 5])
    assert found.mean_risk == pytest.approx(0.4 * 0.25 + 0.2 * 0.4)
    # Right: 0.65, 0.95, 1.0; wrong: 0.25, 0.65. Of six pairs five are in order and one is a tie.
    assert found.auroc == pytest.approx(5.5 / 6)
    assert auroc([1.0], []) is None


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I cannot tell where this was taken.", True),
        ("I'm sorry, I can’t determine the location.", True),
        ("This photo was not taken in this city.", True),
        ("It is outside the city.", True),
        ("Unable to say.", True),
        ("This is Grant Street.", False),
        ("No, this is not Grant Street.", False),
        ("The address of this photo might be Grant Street, Downtown.", False),
    ],
)
def test_refusals(text, refused) -> None:
    assert is_refusal(text) == refused


def test_choices() -> None:
    options = read_options("Which street is this?\nA. Grant Street\nB. Forbes Avenue\nC. Elm Street")
    assert options == {"A": "Grant Street", "B": "Forbes Avenue", "C": "Elm Street"}
    assert [
        read_choice(text, options)
        for text in ("B", "(b)", "C) Elm Street", "The answer is A.", "forbes avenue", "A or B", "Z", "It is A", "")
    ] == ["B", "B", "C", "A", "B", None, None, "A", None]
