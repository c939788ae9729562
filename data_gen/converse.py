"""Multi-turn dialogues about each photo.

A photo's first dialogue opens with the open question of the paper. The other kinds are shared out over all dialogues in
an order that changes from photo to photo, so that every kind opens a dialogue somewhere. A question whose answer an
earlier turn of its dialogue already holds is marked: an evaluation may leave it out.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from llava_ial.address import Address
from llava_ial.conversation import Message, user_question, validate_messages
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

# What an answer tells, and what a question asks for.
TELLS = {
    WHERE: {STREET, BETWEEN, NEIGHBOURHOOD, CITY},
    STREET: {STREET},
    BETWEEN: {BETWEEN},
    NEIGHBOURHOOD: {NEIGHBOURHOOD},
    CITY: {CITY},
    YES_NO: {STREET},
}


_FACTS = {task: frozenset(facts) for task, facts in TELLS.items()}


@dataclass(frozen=True)
class DialogueSettings:
    """How many dialogues a photo gets, and the seed of every choice."""

    num_dialogues: int = 2
    seed: int = 0


@dataclass(frozen=True)
class Turn:
    """A question with its answer.

    Attributes:
        tells: Facts that stand in the answer.
        needs: Facts that the answer can be read from.
        asked: The street that a yes/no question names.
    """

    task: str
    question: str
    answer: str
    question_id: str
    tells: frozenset[str]
    needs: frozenset[str]
    asked: str = ""

    def with_question(self, question: str) -> "Turn":
        """The same in other words."""
        return replace(self, question=question)


@dataclass(frozen=True)
class _Question:
    """A kind of question; ``asked`` is the street that a yes/no question names."""

    task: str
    asked: str = ""


def converse(
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


def assemble(
    name: str,
    image_id: str,
    image_path: str,
    sub_street_id: str,
    split: str,
    turns: Sequence[Turn],
    known: set[str],
) -> ConversationRecord:
    """A dialogue of these turns, each marked if those before it hold its answer, as far as the address is known."""
    messages: list[Message] = []
    given: list[bool] = []
    told: set[str] = set()
    for turn in turns:
        question = Message("user", turn.question) if messages else user_question(turn.question)
        messages += [question, Message("assistant", turn.answer)]
        given.append(turn.needs & known <= told)
        told |= turn.tells
    validate_messages(messages, name)
    return ConversationRecord(
        conversation_id=name,
        image_id=image_id,
        image_path=image_path,
        sub_street_id=sub_street_id,
        split=split,
        messages=messages,
        question_ids=[turn.question_id for turn in turns],
        tasks=[turn.task for turn in turns],
        is_given_away=given,
    )


def known_facts(address: Address) -> set[str]:
    """What the address says, by the task that asks for it."""
    facts = {STREET}
    # A street that goes on in another neighbourhood is its own border there: no one asks for it.
    if address.cross_streets and all(cross.street != address.street for cross in address.cross_streets):
        facts.add(BETWEEN)
    if address.neighbourhood:
        facts.add(NEIGHBOURHOOD)
    if address.city:
        facts.add(CITY)
    return facts


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
