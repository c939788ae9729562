"""Multi-turn dialogues about each photo: turns, and what of an answer earlier turns already hold.

A question whose answer an earlier turn of its dialogue already holds is marked: an evaluation may leave it out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llava_ial.address import Address
from llava_ial.conversation import Message, user_question, validate_messages
from llava_ial.prompts import BETWEEN, CITY, NEIGHBOURHOOD, STREET, WHERE, YES_NO
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
