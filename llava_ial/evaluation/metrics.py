"""What generated answers are worth: from predictions and true addresses to numbers. Pure; no model, no files.

Of the question "where" (one a photo):

    street_accuracy           the answer names the true street and no other of the same name
    sub_street_accuracy       and exactly the true cross streets
    wrong_block_rate          the true street, but other cross streets
    adjacent_block_rate       of these the pieces that touch the true one, as a share of all answers
    neighbourhood_accuracy    it names the true neighbourhood; of photos whose address has one
    city_accuracy             it names the true city; of photos whose address has one
    within_50_m ... 200_m     what it names is at most so far from the photo's position
    nonexistent_address_rate  it names an address that is not among the candidates
    refused_rate              it says that it does not know, or that the photo is from elsewhere

Of lists, and of photos of elsewhere, see ``llava_ial.evaluation.listed``. Of the other kinds
``<kind>_question_accuracy``. ``yes_recall`` and ``no_recall`` show a model that says yes to
everything, ``yes_no_balanced_accuracy`` is their mean. ``unparsed_rate``: no answer of the kind that was asked for
could be read; such an answer counts as wrong. An answer that failed (an error of the machine) is no answer: it is
counted apart and scored nowhere. ``docs/evaluation.md`` works each of them out on an example.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from llava_ial.address import Address
from llava_ial.evaluation.listed import (
    Positions,
    measure_positions,
    score_candidates,
    score_elsewhere,
    score_nearby,
)
from llava_ial.evaluation.places import Places
from llava_ial.evaluation.reading import is_refusal, read_choice, read_options, read_verdict
from llava_ial.evaluation.statistics import Rate, clustered_rate, smallest_visible_difference, standard_error
from llava_ial.gazetteer import Gazetteer, Match
from llava_ial.geo import GeoPoint
from llava_ial.place_names import plain_key
from llava_ial.prompts import BETWEEN, CITY, NEIGHBOURHOOD, STREET, WHERE, YES_NO, parse_answer
from llava_ial.records import PredictionRecord
from llava_ial.wider_prompts import CANDIDATES, CHOICE, ELSEWHERE, NEARBY, WIDER_TASKS

ERROR, LENGTH = "error", "length"
NEAR_M = (50, 100, 200)
_BALANCED = "yes_no_balanced_accuracy"


@dataclass(frozen=True)
class Truth:
    """What is true of a photo; without position or piece the metrics that need them are left out."""

    address: Address
    panorama_id: str
    sub_street_id: str = ""
    point: GeoPoint | None = None


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer, what was read in it, and what it contributes to which metric.

    Attributes:
        scores: From 0 to 1 by metric; of most metrics 0 or 1.
        named_ids: Pieces of street that fit what was named.
        distance_m: Their mean distance from the photo's position; None where nothing of the map was named.
    """

    prediction: PredictionRecord
    truth: Truth
    match: Match
    scores: dict[str, float]
    named_ids: tuple[str, ...] = ()
    distance_m: float | None = None


@dataclass(frozen=True)
class AddressMetrics:
    """Numbers of one evaluation; rates are fractions.

    Attributes:
        num_answers: Questions with an answer.
        num_failed: Questions without one, because of an error.
        num_truncated: Answers cut at the length limit.
        rates: By the names in the module's docstring.
        distance_m: ``median`` and ``p90`` of the answers that name something of the map, and how many these are.
        smallest_visible: By rate, the difference to another model that these photos would show in four of five tests
            (questions not paired; paired they show smaller ones).
        positions: Letters that multiple choice answers prefer; None without such answers.
    """

    num_answers: int
    num_failed: int
    num_truncated: int
    rates: dict[str, Rate]
    distance_m: dict[str, float] = field(default_factory=dict)
    smallest_visible: dict[str, float] = field(default_factory=dict)
    positions: Positions | None = None


def measure(
    predictions: Sequence[PredictionRecord],
    truths: Mapping[str, Truth],
    gazetteer: Gazetteer,
    *,
    places: Places | None = None,
    seed: int = 0,
) -> AddressMetrics:
    """All metrics of a set of answers.

    Args:
        predictions: One per question.
        truths: By ``image_id``.
        gazetteer: Of all candidate addresses.
        places: Geometry of the candidates, for distances.
        seed: Of the intervals' bootstrap.
    """
    scored = score_answers(predictions, truths, gazetteer, places)
    return summarise(scored, num_failed=len(predictions) - len(scored), seed=seed)


def score_answers(
    predictions: Sequence[PredictionRecord],
    truths: Mapping[str, Truth],
    gazetteer: Gazetteer,
    places: Places | None = None,
) -> list[ScoredAnswer]:
    """Each answer with its scores; failed ones are left out."""
    return [
        score_answer(prediction, truths[prediction.image_id], gazetteer, places)
        for prediction in predictions
        if prediction.finish_reason != ERROR
    ]


def summarise(scored: Sequence[ScoredAnswer], *, num_failed: int, seed: int = 0) -> AddressMetrics:
    """The metrics of scored answers."""
    hits: dict[str, list[float]] = defaultdict(list)
    panoramas: dict[str, list[str]] = defaultdict(list)
    for answer in scored:
        for name, hit in answer.scores.items():
            hits[name].append(hit)
            panoramas[name].append(answer.truth.panorama_id)
    rates = {name: clustered_rate(hits[name], panoramas[name], seed=seed) for name in hits}
    verdicts = [answer for answer in scored if answer.prediction.task == YES_NO]
    if "yes_recall" in hits and "no_recall" in hits:
        rates[_BALANCED] = clustered_rate(
            [answer.scores["yes_no_question_accuracy"] for answer in verdicts],
            [answer.truth.panorama_id for answer in verdicts],
            group_of=[read_verdict(answer.prediction.expected) for answer in verdicts],
            seed=seed,
        )
    choices = [answer.prediction for answer in scored if answer.prediction.task == CHOICE]
    errors = {name: standard_error(hits[name], panoramas[name]) for name in hits}
    return AddressMetrics(
        num_answers=len(scored),
        num_failed=num_failed,
        num_truncated=sum(answer.prediction.finish_reason == LENGTH for answer in scored),
        rates=dict(sorted(rates.items())),
        distance_m=_distances(scored),
        smallest_visible={name: smallest_visible_difference(2**0.5 * errors[name]) for name in sorted(errors)},
        positions=measure_positions([(choice.question, choice.expected, choice.answer) for choice in choices]),
    )


def score_answer(
    prediction: PredictionRecord, truth: Truth, gazetteer: Gazetteer, places: Places | None = None
) -> ScoredAnswer:
    """What one answer contributes to which metric.

    Raises:
        ValueError: The task is of no known kind.
    """
    text, address = prediction.answer, truth.address
    match = gazetteer.match(text)
    if prediction.task == WHERE:
        return _score_where(prediction, match, truth, gazetteer, places)
    if prediction.task == YES_NO:
        return ScoredAnswer(prediction, truth, match, _score_yes_no(text, prediction.expected))
    if prediction.task == STREET:
        is_right, is_read = match.street == address.street, bool(match.street)
    elif prediction.task == BETWEEN:
        is_right, is_read = same_crossings(match, address), bool(match.cross_streets)
    elif prediction.task in (NEIGHBOURHOOD, CITY):
        said = named_area(prediction, match)
        wanted = address.neighbourhood if prediction.task == NEIGHBOURHOOD else address.city
        is_right, is_read = plain_key(said) == plain_key(wanted), bool(said)
    elif prediction.task == CHOICE:
        options = read_options(prediction.question)
        chosen = read_choice(text, options)
        is_right, is_read = chosen == read_choice(prediction.expected, options), chosen is not None
    elif prediction.task == CANDIDATES:

        def is_truth(found: Match) -> bool:
            return names_street(found, address, gazetteer) and same_crossings(found, address)

        return ScoredAnswer(prediction, truth, match, score_candidates(text, is_truth, gazetteer))
    elif prediction.task == NEARBY:
        return ScoredAnswer(prediction, truth, match, score_nearby(text, prediction.expected, gazetteer))
    elif prediction.task == ELSEWHERE:
        return ScoredAnswer(prediction, truth, match, score_elsewhere(text, match))
    elif prediction.task in WIDER_TASKS:  # asked on the way to another question, never scored
        return ScoredAnswer(prediction, truth, match, {})
    else:
        raise ValueError(f"question {prediction.question_id}: unknown task '{prediction.task}'")
    scores: dict[str, float] = {f"{prediction.task}_question_accuracy": is_right, "unparsed_rate": not is_read}
    return ScoredAnswer(prediction, truth, match, scores)


def named_area(prediction: PredictionRecord, match: Match) -> str:
    """The neighbourhood or city that an answer names; in the project's own form first.

    A neighbourhood may bear the name of a street.
    """
    said = (parse_answer(prediction.task, prediction.answer) or {}).get(prediction.task)
    return said or (match.neighbourhood if prediction.task == NEIGHBOURHOOD else match.city)


def names_street(match: Match, truth: Address, gazetteer: Gazetteer) -> bool:
    """True if every street of the map that fits what was named is the true one.

    A city may have two streets of one name; without the neighbourhood the name alone says neither.
    """
    named = gazetteer.candidates(replace(match, cross_streets=(), city=""))
    return {address.street_key for address in named} == {truth.street_key}


def _score_where(
    prediction: PredictionRecord, match: Match, truth: Truth, gazetteer: Gazetteer, places: Places | None
) -> ScoredAnswer:
    address = truth.address
    is_street = names_street(match, address, gazetteer)
    is_piece = is_street and same_crossings(match, address)
    # A sentence of the right form with an unknown street names an address all the same.
    is_unknown = not match.street and parse_answer(WHERE, prediction.answer) is not None
    is_refused = not match.street and not is_unknown and is_refusal(prediction.answer)
    fitting = gazetteer.candidates(match)
    named = tuple(places.ids_of(fitting)) if places else ()
    is_wrong_block = is_street and bool(match.cross_streets) and not is_piece
    scores: dict[str, float] = {
        "street_accuracy": is_street,
        "sub_street_accuracy": is_piece,
        "wrong_block_rate": is_wrong_block,
        "nonexistent_address_rate": is_unknown or (bool(match.street) and not fitting),
        "refused_rate": is_refused,
        "unparsed_rate": not match.street and not is_unknown and not is_refused,
    }
    if places and truth.sub_street_id:
        touches = [places.is_adjacent(name, truth.sub_street_id) for name in named]
        scores["adjacent_block_rate"] = is_wrong_block and bool(touches) and all(touches)
    if address.neighbourhood:
        scores["neighbourhood_accuracy"] = match.neighbourhood == address.neighbourhood
    if address.city:
        scores["city_accuracy"] = match.city == address.city
    distance_m = places.mean_distance_m(truth.point, named) if places and truth.point else None
    if places and truth.point:
        scores |= {f"within_{near}_m": distance_m is not None and distance_m <= near for near in NEAR_M}
    return ScoredAnswer(prediction, truth, match, scores, named, distance_m)


def _score_yes_no(text: str, expected: str) -> dict[str, float]:
    verdict, wanted = read_verdict(text), read_verdict(expected)
    is_right = verdict is not None and verdict == wanted
    return {"yes_no_question_accuracy": is_right, f"{wanted}_recall": is_right, "unparsed_rate": verdict is None}


def same_crossings(match: Match, truth: Address) -> bool:
    """True if the cross streets that were named are those of the address, in any order."""
    return sorted(match.cross_streets) == sorted(cross.street for cross in truth.cross_streets)


def _distances(scored: Sequence[ScoredAnswer]) -> dict[str, float]:
    found = [answer.distance_m for answer in scored if answer.distance_m is not None]
    if not found:
        return {}
    return {"median": float(np.median(found)), "p90": float(np.quantile(found, 0.9)), "num_located": len(found)}
