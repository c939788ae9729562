"""Does a model contradict itself? Pairs of answers about one photo that speak of the same thing.

    wording_consistency  two wordings of one question get answers that agree in all that both name
    kinds_consistency    answers to two kinds of questions name the same street, neighbourhood or city, and a yes or no
                         about a street agrees with the street named for "where"

A pair counts where both answers could be read; whether they are right does not matter here.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from llava_ial.evaluation.metrics import ScoredAnswer, named_area
from llava_ial.evaluation.reading import read_verdict
from llava_ial.evaluation.statistics import Rate, clustered_rate
from llava_ial.place_names import plain_key
from llava_ial.prompts import CITY, NEIGHBOURHOOD, STREET, WHERE, YES_NO, parse_answer
from llava_ial.wider_prompts import ELSEWHERE, HOUSE_NUMBER, NEARBY, SURE

WORDINGS, KINDS = "wording_consistency", "kinds_consistency"


def consistency(scored: Sequence[ScoredAnswer], *, seed: int = 0) -> dict[str, Rate]:
    """The rates of the module's docstring; one without a pair is left out."""
    by_photo: dict[str, list[ScoredAnswer]] = defaultdict(list)
    for answer in scored:
        by_photo[answer.prediction.image_id].append(answer)
    agree: dict[str, list[bool]] = {WORDINGS: [], KINDS: []}
    panoramas: dict[str, list[str]] = {WORDINGS: [], KINDS: []}
    for answers in by_photo.values():
        for first, second in combinations(answers, 2):
            is_same_kind = first.prediction.task == second.prediction.task
            name = WORDINGS if is_same_kind else KINDS
            found = _compare_wordings(first, second) if is_same_kind else _compare_kinds(first, second)
            agree[name] += found
            panoramas[name] += [first.truth.panorama_id] * len(found)
    return {name: clustered_rate(agree[name], panoramas[name], seed=seed) for name in agree if agree[name]}


def _compare_wordings(first: ScoredAnswer, second: ScoredAnswer) -> list[bool]:
    """One verdict about two answers to the same question in other words; none if they asked different things."""
    is_other_wording = first.prediction.question != second.prediction.question
    if not is_other_wording or first.prediction.task == YES_NO:
        return []
    one, other = _facts(first), _facts(second)
    common = one.keys() & other.keys()
    return [all(one[name] == other[name] for name in common)] if common else []


def _compare_kinds(first: ScoredAnswer, second: ScoredAnswer) -> list[bool]:
    """One verdict for each thing that both answers name."""
    for where, other in ((first, second), (second, first)):
        if other.prediction.task == YES_NO and where.prediction.task in (WHERE, STREET) and where.match.street:
            verdict = read_verdict(other.prediction.answer)
            # The expected answer holds the street that was asked about, whatever the wording of the question.
            asked = (parse_answer(YES_NO, other.prediction.expected) or {}).get("asked", "")
            return [(verdict == "yes") == (asked == where.match.street)] if verdict and asked else []
    one, other_facts = _facts(first), _facts(second)
    return [one[name] == other_facts[name] for name in one.keys() & other_facts.keys()]


def _facts(answer: ScoredAnswer) -> dict[str, str]:
    """What an answer names, by kind of thing."""
    task, match = answer.prediction.task, answer.match
    if task in (NEARBY, SURE, ELSEWHERE, HOUSE_NUMBER):
        return {}  # the streets around a place are not where it is
    if task in (NEIGHBOURHOOD, CITY):
        found = {task: plain_key(named_area(answer.prediction, match))}
    elif task == STREET:
        found = {STREET: plain_key(match.street)}
    else:
        found = {
            STREET: plain_key(match.street),
            NEIGHBOURHOOD: plain_key(match.neighbourhood),
            CITY: plain_key(match.city),
            "between": " / ".join(sorted(match.cross_streets)),
        }
    return {name: value for name, value in found.items() if value}
