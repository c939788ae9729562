"""The wordings of questions and answers about a photo's address.

A task is a kind of question. Its wordings for training and for testing are disjoint, so that a test asks for the
address and not for a sentence learned by heart; validation uses the training wordings. Which wording a question gets is
a function of its name and the seed alone, never of the order or the number of workers.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from llava_ial.address import Address, format_spoken

ItemT = TypeVar("ItemT")

WHERE, STREET, BETWEEN = "where", "street", "between"
NEIGHBOURHOOD, CITY, YES_NO = "neighbourhood", "city", "yes_no"
TASKS = (WHERE, STREET, BETWEEN, NEIGHBOURHOOD, CITY, YES_NO)

# The question that the AddressCLIP paper prints (arXiv 2407.08156, LLaVA-IAL).
PUBLISHED_QUESTION = "Where might this photo have been taken? Tell me its street level address."


@dataclass(frozen=True)
class Wordings:
    """How a task is asked, in training and in testing, and how it is answered."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    answers: tuple[str, ...]


WORDINGS: Mapping[str, Wordings] = {
    WHERE: Wordings(
        train=(
            PUBLISHED_QUESTION,
            "Where was this photo taken?",
            "Where was this taken?",
            "What is the address of this place?",
            "Can you tell me where I am standing?",
            "Please give the street level address of this photo.",
            "At which address was this picture made?",
            "Which place does this picture show? Give its address.",
            "Locate this photo for me.",
            "What would be the address of this view?",
            "I took this photo somewhere in town. Where was I?",
            "Tell me the address where this image was captured.",
        ),
        test=(
            "Do you know where this picture was taken?",
            "Where am I?",
            "Name the address shown in this photo.",
            "Could you work out the address of this scene?",
        ),
        answers=("The address of this photo might be {address}.",),
    ),
    STREET: Wordings(
        train=(
            "Which street is this?",
            "What street am I on?",
            "What is the name of this street?",
            "On which street was this photo taken?",
            "Name the street in this picture.",
            "Tell me which street this is.",
            "Can you tell which street is shown here?",
            "What street does this photo show?",
            "Which road is this?",
            "Please name the street.",
            "Along which street was the camera standing?",
            "Do you recognise the street?",
        ),
        test=(
            "What is this street called?",
            "Which street do we see here?",
            "In which street was this picture made?",
            "Could you name the street in this photo?",
        ),
        answers=("This is {street}.",),
    ),
    BETWEEN: Wordings(
        train=(
            "Between which cross streets is this?",
            "Which cross streets are near?",
            "Between which streets does this part of the street lie?",
            "What are the nearest cross streets?",
            "Which streets cross here?",
            "Name the cross streets around this place.",
            "Which intersections is this close to?",
            "On which block is this? Name the cross streets.",
            "Which side streets bound this section?",
            "Between what corners was this photo taken?",
            "Tell me the cross streets of this section.",
            "At which cross streets does this section end?",
        ),
        test=(
            "What cross streets bound this block?",
            "Which crossings are closest to this spot?",
            "Between which intersections was the photo taken?",
            "Could you name the cross streets nearby?",
        ),
        answers=("It is {piece}.",),
    ),
    NEIGHBOURHOOD: Wordings(
        train=(
            "Which neighbourhood is this?",
            "What part of town is this?",
            "In which neighbourhood was this photo taken?",
            "Which district does this place belong to?",
            "Name the neighbourhood.",
            "What neighbourhood am I in?",
            "Which area of the city is shown here?",
            "Tell me the neighbourhood of this photo.",
            "What is this district called?",
            "In which quarter was the picture made?",
            "Can you tell the neighbourhood?",
            "To which neighbourhood does this street belong here?",
        ),
        test=(
            "What is the name of this neighbourhood?",
            "Which part of the city is this?",
            "In which district was this taken?",
            "Could you name the neighbourhood in this picture?",
        ),
        answers=("The neighbourhood is {neighbourhood}.",),
    ),
    CITY: Wordings(
        train=(
            "Which city is this?",
            "What city am I in?",
            "In which city was this photo taken?",
            "Name the city.",
            "Which town is shown here?",
            "Tell me the city of this picture.",
            "What is the name of this city?",
            "Where in the world is this? The city is enough.",
            "Can you tell which city this is?",
            "In what city was the picture made?",
            "Which city does this street belong to?",
            "Do you recognise the city?",
        ),
        test=(
            "What city is shown in this photo?",
            "Which city was this taken in?",
            "Could you name the city?",
            "What is this city called?",
        ),
        answers=("The city is {city}.",),
    ),
    YES_NO: Wordings(
        train=(
            "Is this {asked}?",
            "Am I on {asked}?",
            "Was this photo taken on {asked}?",
            "Does this picture show {asked}?",
            "Could this be {asked}?",
            "Is the street in this photo {asked}?",
            "I think this is {asked}. Is that right?",
            "Are we on {asked} here?",
            "Would you say that this is {asked}?",
            "Is {asked} the street we see?",
            "Was the camera standing on {asked}?",
            "Do we see {asked} here?",
        ),
        test=(
            "Is it {asked} that this photo shows?",
            "Might this be {asked}?",
            "Was this picture made on {asked}?",
            "Is that {asked}?",
        ),
        answers=("Yes, this is {asked}.", "No, this is not {asked}."),
    ),
}


def choose(items: Sequence[ItemT], *key: object, offset: int = 0) -> ItemT:
    """One of ``items``, fixed by the key; the next ``offset`` gives the next one, so that repetitions differ."""
    return items[(stable_number(*key) + offset) % len(items)]


def stable_number(*key: object) -> int:
    """A non-negative number that depends on the key alone, the same on every machine and in every process."""
    text = "\x1f".join(map(str, key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def question_wordings(task: str, split: str) -> tuple[str, ...]:
    """The wordings that a split may use."""
    return WORDINGS[task].test if split == "test" else WORDINGS[task].train


def format_piece(address: Address) -> str:
    """The part of the street in words: ``between A and B`` or ``near A``, "" without cross streets."""
    names = [cross.street for cross in address.cross_streets]
    return ("", "near {}", "between {} and {}")[len(names)].format(*names)


def format_answer(task: str, address: Address, *, asked: str = "") -> str:
    """The answer to a question of a task.

    Args:
        task: One of ``TASKS``.
        address: The photo's.
        asked: The street named in a ``yes_no`` question.

    Example:
        >>> format_answer("where", Address("Grant Street", "Downtown", (), "Pittsburgh", "PA", "USA"))
        'The address of this photo might be Grant Street, Downtown, Pittsburgh, PA, USA.'
    """
    forms = WORDINGS[task].answers
    form = forms[asked != address.street] if task == YES_NO else forms[0]
    # What a form does not hold is not worked out: tens of millions of answers are written.
    return form.format(
        address=format_spoken(address) if task == WHERE else "",
        street=address.street,
        piece=format_piece(address) if task == BETWEEN else "",
        neighbourhood=address.neighbourhood,
        city=address.city,
        asked=asked,
    )


def parse_answer(task: str, text: str) -> dict[str, str] | None:
    """Inverse of ``format_answer``: what stands in the places of the form, None if the text is of no known form.

    Keys are ``address``, ``street``, ``piece``, ``neighbourhood`` or ``city``; for ``yes_no`` they are ``asked`` and
    ``verdict`` (``yes`` or ``no``).

    Example:
        >>> parse_answer("street", "This is Grant Street.")
        {'street': 'Grant Street'}
    """
    for form, pattern in zip(WORDINGS[task].answers, _PATTERNS[task], strict=True):
        if match := pattern.fullmatch(text.strip()):
            verdict = {"verdict": form.partition(",")[0].lower()} if task == YES_NO else {}
            return match.groupdict() | verdict
    return None


def _pattern(form: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(form)))


_PATTERNS = {task: [_pattern(form) for form in wordings.answers] for task, wordings in WORDINGS.items()}
