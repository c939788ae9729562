"""What generated answers are worth: from predictions and true addresses to numbers. Pure; no model, no files.

Of the question "where" (one a photo):

    street_accuracy           the answer names the true street and no other of the same name
    sub_street_accuracy       and exactly the true cross streets
    neighbourhood_accuracy    it names the true neighbourhood; of photos whose address has one
    city_accuracy             it names the true city; of photos whose address has one
    nonexistent_address_rate  it names an address that is not among the candidates

Of the other kinds ``<kind>_question_accuracy``. ``yes_recall`` and ``no_recall`` show a model that says yes to
everything. ``unparsed_rate``: no answer of the kind that was asked for could be read; such an answer counts as wrong.
An answer that failed (an error of the machine) is no answer: it is counted apart and scored nowhere.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from llava_ial.address import Address
from llava_ial.evaluation.statistics import Rate, clustered_rate
from llava_ial.gazetteer import Gazetteer, Match
from llava_ial.place_names import plain_key
from llava_ial.prompts import BETWEEN, CITY, NEIGHBOURHOOD, STREET, WHERE, YES_NO, parse_answer
from llava_ial.records import PredictionRecord

ERROR, LENGTH = "error", "length"
_VERDICT = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Truth:
    """What is true of a photo."""

    address: Address
    panorama_id: str


@dataclass(frozen=True)
class AddressMetrics:
    """Numbers of one evaluation; rates are fractions.

    Attributes:
        num_answers: Questions with an answer.
        num_failed: Questions without one, because of an error.
        num_truncated: Answers cut at the length limit.
        rates: By the names in the module's docstring.
    """

    num_answers: int
    num_failed: int
    num_truncated: int
    rates: dict[str, Rate]


def measure(
    predictions: Sequence[PredictionRecord], truths: Mapping[str, Truth], gazetteer: Gazetteer, *, seed: int = 0
) -> AddressMetrics:
    """All metrics of a set of answers.

    Args:
        predictions: One per question.
        truths: By ``image_id``.
        gazetteer: Of all candidate addresses.
        seed: Of the intervals' bootstrap.
    """
    answered = [p for p in predictions if p.finish_reason != ERROR]
    hits: dict[str, list[bool]] = defaultdict(list)
    panoramas: dict[str, list[str]] = defaultdict(list)
    for prediction in answered:
        truth = truths[prediction.image_id]
        for name, is_hit in score_answer(prediction, truth.address, gazetteer).items():
            hits[name].append(is_hit)
            panoramas[name].append(truth.panorama_id)
    return AddressMetrics(
        num_answers=len(answered),
        num_failed=len(predictions) - len(answered),
        num_truncated=sum(p.finish_reason == LENGTH for p in answered),
        rates={name: clustered_rate(hits[name], panoramas[name], seed=seed) for name in sorted(hits)},
    )


def score_answer(prediction: PredictionRecord, truth: Address, gazetteer: Gazetteer) -> dict[str, bool]:
    """What one answer contributes to which metric.

    Raises:
        ValueError: The task is not one of ``llava_ial.prompts.TASKS``.
    """
    text = prediction.answer
    match = gazetteer.match(text)
    if prediction.task == WHERE:
        return _score_where(text, match, truth, gazetteer)
    if prediction.task == YES_NO:
        return _score_yes_no(text, prediction.expected)
    if prediction.task == STREET:
        is_right, is_read = match.street == truth.street, bool(match.street)
    elif prediction.task == BETWEEN:
        is_right, is_read = _same_crossings(match, truth), bool(match.cross_streets)
    elif prediction.task in (NEIGHBOURHOOD, CITY):
        wanted = truth.neighbourhood if prediction.task == NEIGHBOURHOOD else truth.city
        # The project's own form first: a neighbourhood may bear the name of a street.
        said = (parse_answer(prediction.task, text) or {}).get(prediction.task)
        said = said or (match.neighbourhood if prediction.task == NEIGHBOURHOOD else match.city)
        is_right, is_read = plain_key(said) == plain_key(wanted), bool(said)
    else:
        raise ValueError(f"question {prediction.question_id}: unknown task '{prediction.task}'")
    return {f"{prediction.task}_question_accuracy": is_right, "unparsed_rate": not is_read}


def read_verdict(text: str) -> str | None:
    """``yes`` or ``no`` if an answer begins with it."""
    found = _VERDICT.match(text)
    return found[1].lower() if found else None


def names_street(match: Match, truth: Address, gazetteer: Gazetteer) -> bool:
    """True if every street of the map that fits what was named is the true one.

    A city may have two streets of one name; without the neighbourhood the name alone says neither.
    """
    named = gazetteer.candidates(replace(match, cross_streets=(), city=""))
    return {address.street_key for address in named} == {truth.street_key}


def _score_where(text: str, match: Match, truth: Address, gazetteer: Gazetteer) -> dict[str, bool]:
    is_street = names_street(match, truth, gazetteer)
    # A sentence of the right form with an unknown street names an address all the same.
    is_unknown = not match.street and parse_answer(WHERE, text) is not None
    scores = {
        "street_accuracy": is_street,
        "sub_street_accuracy": is_street and _same_crossings(match, truth),
        "nonexistent_address_rate": is_unknown or (bool(match.street) and not gazetteer.candidates(match)),
        "unparsed_rate": not match.street and not is_unknown,
    }
    if truth.neighbourhood:
        scores["neighbourhood_accuracy"] = match.neighbourhood == truth.neighbourhood
    if truth.city:
        scores["city_accuracy"] = match.city == truth.city
    return scores


def _score_yes_no(text: str, expected: str) -> dict[str, bool]:
    verdict, wanted = read_verdict(text), read_verdict(expected)
    is_right = verdict is not None and verdict == wanted
    return {"yes_no_question_accuracy": is_right, f"{wanted}_recall": is_right, "unparsed_rate": verdict is None}


def _same_crossings(match: Match, truth: Address) -> bool:
    return sorted(match.cross_streets) == sorted(cross.street for cross in truth.cross_streets)
