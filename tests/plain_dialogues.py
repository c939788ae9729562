"""The dialogues of the measured kinds, photo by photo and turn by turn: what the columns of a build must say."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_gen.converse import TELLS, DialogueSettings, Turn, assemble, known_facts
from llava_ial.address import Address
from llava_ial.prompts import (
    BETWEEN,
    CITY,
    NEIGHBOURHOOD,
    STREET,
    WHERE,
    YES_NO,
    choose,
    format_answer,
    question_wordings,
    stable_number,
)
from llava_ial.records import ConversationRecord

_FACTS = {task: frozenset(facts) for task, facts in TELLS.items()}


@dataclass(frozen=True)
class _Question:
    """A kind of question; ``asked`` is the street that a yes/no question names."""

    task: str
    asked: str = ""


def plain_dialogues(
    image_id: str,
    image_path: str,
    sub_street_id: str,
    split: str,
    address: Address,
    streets: Sequence[str],
    settings: DialogueSettings,
) -> Iterator[ConversationRecord]:
    """The dialogues about one photo.

    Args:
        image_id, image_path, sub_street_id, split: The photo.
        address: Its address.
        streets: Sorted distinct streets of the gallery: the wrong streets of yes/no questions are among them.
        settings: How many dialogues, and the seed.
    """
    known = known_facts(address)
    count: Counter[str] = Counter()
    for number, questions in enumerate(_dialogues(image_id, address, streets, known, settings)):
        turns = []
        for question in questions:
            task, asked = question.task, question.asked
            tells = _FACTS[task] if task != YES_NO or asked == address.street else frozenset()
            turns.append(
                Turn(
                    task,
                    _word(question, image_id, split, count[task], settings.seed),
                    format_answer(task, address, asked=asked),
                    f"{image_id}/{task}/{count[task]}",
                    tells,
                    _FACTS[task],
                    asked,
                )
            )
            count[task] += 1
        yield assemble(f"{image_id}/{number}", image_id, image_path, sub_street_id, split, turns, known)


def _dialogues(
    image_id: str, address: Address, streets: Sequence[str], known: set[str], settings: DialogueSettings
) -> list[list[_Question]]:
    """Every question once, shared out over the dialogues.

    Each photo is asked one yes and one no, so that the two are balanced in every data set.
    """
    seed = settings.seed
    kinds = [_Question(task) for task in (STREET, BETWEEN, NEIGHBOURHOOD, CITY) if task in known]
    own = bisect_left(streets, address.street)
    has_own = own < len(streets) and streets[own] == address.street
    if num_wrong := len(streets) - has_own:
        # One of the others, without a list of them for every photo.
        chosen = stable_number(seed, image_id, "wrong street") % num_wrong
        wrong = streets[chosen + (has_own and chosen >= own)]
        kinds += [_Question(YES_NO, address.street), _Question(YES_NO, wrong)]
    mixed = sorted(kinds, key=lambda q: stable_number(seed, image_id, q.task, q.asked))
    shares = [mixed[number :: settings.num_dialogues] for number in range(settings.num_dialogues)]
    # The shortest share follows the open question, which already makes its dialogue one longer.
    return [[_Question(WHERE), *shares[-1]], *(share for share in shares[:-1] if share)]


def _word(question: _Question, image_id: str, split: str, repetition: int, seed: int) -> str:
    wordings = question_wordings(question.task, split)
    return choose(wordings, seed, image_id, question.task, "wording", offset=repetition).format(asked=question.asked)
