"""The wordings of further kinds of questions: choices, candidates, surroundings, certainty, refusals and follow-ups.

They teach a model to talk about an address. The measured kinds are those of ``llava_ial.prompts``.
"""

from collections.abc import Mapping, Sequence

from llava_ial.address import Address, format_spoken
from llava_ial.prompts import BETWEEN, CITY, NEIGHBOURHOOD, STREET, Wordings, format_piece

CHOICE, CANDIDATES, NEARBY, SURE, ELSEWHERE = "choice", "candidates", "nearby", "sure", "elsewhere"
HOUSE_NUMBER = "house_number"
WIDER_TASKS = (CHOICE, CANDIDATES, NEARBY, SURE, ELSEWHERE, HOUSE_NUMBER)
LETTERS = "ABCD"

WIDER_WORDINGS: Mapping[str, Wordings] = {
    CHOICE: Wordings(
        train=(
            "Which of these places is it?",
            "Choose the address of this photo.",
            "One of these is right. Which one?",
            "Pick the place that this photo shows.",
            "Where was this taken: which of the following?",
            "Select the right address.",
            "Which option is the place in the picture?",
            "The photo was taken at one of these addresses. At which?",
            "Which letter stands before the true address?",
            "Of these places, where am I?",
            "Only one of these addresses fits. Name it.",
            "Which of the listed addresses matches this view?",
        ),
        test=(
            "At which of these places was the photo made?",
            "Which of the answers below is right?",
            "Decide between these addresses.",
            "Here are some addresses. Which one is shown?",
        ),
        answers=("{letter}) {option}",),
    ),
    HOUSE_NUMBER: Wordings(
        train=(
            "Which house number is this?",
            "What is the nearest house number?",
            "At which number of the street was this taken?",
            "Name the house number.",
            "Can you tell the house number?",
            "In front of which number am I standing?",
            "What number does the closest house have?",
            "Tell me the number of the nearest house.",
            "Beside which house number was the camera?",
            "Which number is closest to this spot?",
            "Give the house number nearest to this place.",
            "Do you know the number of the house here?",
        ),
        test=(
            "What house number is closest?",
            "Which number has the nearest house?",
            "Could you name the house number here?",
            "Near which house number was the photo made?",
        ),
        answers=("The nearest house number is {number}.",),
    ),
    CANDIDATES: Wordings(
        train=(
            "List the addresses that are likely.",
            "Which addresses come into question?",
            "Name a few places where this could be, the likeliest first.",
            "What are your best guesses for the address?",
            "Give me several candidates for this place.",
            "Where could this be? List some possibilities.",
            "Which places would you consider?",
            "Rank the likely addresses of this photo.",
            "Give the most likely address and its alternatives.",
            "What other addresses are possible, besides the best one?",
            "Tell me the likely places of this picture.",
            "Suggest addresses for this photo.",
        ),
        test=(
            "Which addresses would you shortlist?",
            "Could you list candidates for this location?",
            "What are the probable addresses here?",
            "Offer a few possible addresses, in order.",
        ),
        answers=("Most likely {best}. Also possible: {others}.",),
    ),
    NEARBY: Wordings(
        train=(
            "What is nearby?",
            "Which streets are close to here?",
            "Which other streets are around this place?",
            "What streets are near this photo?",
            "Name streets in the surroundings.",
            "Which streets could I reach from here in a minute?",
            "What lies around this spot?",
            "Tell me some streets near here.",
            "What other streets meet or run close by?",
            "Around here, which streets are there?",
            "Which streets border on this place?",
            "Name the streets around the corner.",
        ),
        test=(
            "What streets surround this place?",
            "Which streets are within a short walk?",
            "Could you name nearby streets?",
            "What is in the vicinity?",
        ),
        answers=("Nearby are {streets}.",),
    ),
    SURE: Wordings(
        train=(
            "How sure are you about the street?",
            "Are you certain which street this is?",
            "How confident are you of the street here?",
            "Can the street be told for certain?",
            "Is there any doubt about the street?",
            "How reliable would an answer about the street be?",
            "Could it be another street?",
            "Would you bet on the street?",
            "How clear is it which street this is?",
            "Is the street beyond doubt?",
            "Do you hesitate about the street?",
            "How certain can one be about this street?",
        ),
        test=(
            "What is your confidence in the street?",
            "Might the street be a different one?",
            "Is it clear on which street this was taken?",
            "How much do you trust your answer about the street?",
        ),
        answers=(
            "I am fairly sure: no other street is close.",
            "I am not sure: another street is almost as close.",
        ),
    ),
    ELSEWHERE: Wordings(
        train=(
            "Where in this city is this?",
            "Give me the address of this photo, if it is from here.",
            "Is this from our city, and where?",
            "Which address of this city does the photo show?",
            "Where was this picture taken, if you know the place?",
            "Can you place this photo?",
            "Do you know this place?",
            "Which street of this city is it?",
            "Try to locate this picture.",
            "What address would you give for this image?",
            "Tell me where this is, or that you do not know.",
            "Have you an address for this view?",
        ),
        test=(
            "Is there an address for this photo?",
            "Would you know where this is?",
            "Could you place this image on the map?",
            "What do you say to this photo: which address?",
        ),
        answers=("I do not know its address: this photo is not from this city.",),
    ),
}

# What refers back to an earlier answer: a beginning and a question.
_BEGINNINGS = {"train": ("And ", "So ", "Then ", "Thank you. And "), "test": ("Good. And ", "I see. So ")}
_REFERRING: Mapping[str, dict[str, tuple[str, ...]]] = {
    STREET: {
        "train": (
            "which street is that?",
            "what is its street called?",
            "on which street is it?",
            "the street's name?",
        ),
        "test": ("what street would that be?", "which street does it lie on?"),
    },
    BETWEEN: {
        "train": (
            "between which streets is that?",
            "which cross streets are there?",
            "what are its cross streets?",
            "which corners is that near?",
        ),
        "test": ("what crosses there?", "between what streets does it lie?"),
    },
    NEIGHBOURHOOD: {
        "train": (
            "which neighbourhood is that?",
            "what part of town is that?",
            "in which district is it?",
            "what is that neighbourhood called?",
        ),
        "test": ("which quarter would that be?", "what neighbourhood does it belong to?"),
    },
    CITY: {
        "train": ("which city is that?", "in what city is it?", "what city does it belong to?", "the city is which?"),
        "test": ("what city would that be?", "in which town is it?"),
    },
}


def follow_up_wordings(task: str, split: str) -> tuple[str, ...]:
    """Wordings that refer to an earlier turn; () for a kind that has none.

    Example:
        >>> follow_up_wordings("neighbourhood", "train")[0]
        'And which neighbourhood is that?'
    """
    part = "test" if split == "test" else "train"
    if task not in _REFERRING:
        return ()
    return tuple(beginning + core for beginning in _BEGINNINGS[part] for core in _REFERRING[task][part])


def format_option(address: Address) -> str:
    """An address as an option of a choice: without the city, which all of them share.

    Example:
        >>> format_option(Address("Grant Street", "Downtown", (), "Pittsburgh", "PA", "USA"))
        'Grant Street, Downtown'
    """
    return ", ".join(part for part in (address.street, format_piece(address), address.neighbourhood) if part)


def format_choice_question(question: str, options: Sequence[Address]) -> str:
    """A question and its options, a line each."""
    lines = [f"{letter}) {format_option(option)}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines])


def format_choice(address: Address, options: Sequence[Address]) -> str:
    """The option that is right."""
    form = WIDER_WORDINGS[CHOICE].answers[0]
    return form.format(letter=LETTERS[list(options).index(address)], option=format_option(address))


def format_candidates(address: Address, others: Sequence[Address]) -> str:
    """The address and its alternatives."""
    form = WIDER_WORDINGS[CANDIDATES].answers[0]
    return form.format(best=format_spoken(address), others="; ".join(format_option(other) for other in others))


def format_nearby(streets: Sequence[str]) -> str:
    """Streets around a place."""
    listed = ", ".join(streets[:-1]) + f" and {streets[-1]}" if len(streets) > 1 else streets[0]
    return WIDER_WORDINGS[NEARBY].answers[0].format(streets=listed).replace("are", "is" if len(streets) == 1 else "are")


def format_house_number(number: str) -> str:
    """The number of the house that a photo stands close to."""
    return WIDER_WORDINGS[HOUSE_NUMBER].answers[0].format(number=number)


def format_certainty(*, is_ambiguous: bool) -> str:
    """Whether the street can be told for certain."""
    return WIDER_WORDINGS[SURE].answers[is_ambiguous]


def format_refusal() -> str:
    """The answer to a photo of elsewhere."""
    return WIDER_WORDINGS[ELSEWHERE].answers[0]
