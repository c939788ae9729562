"""Answers that list, choose or decline: candidates, streets nearby, the letter of a choice, a photo of elsewhere.

    candidates_question_recall   the true address, cross streets and all, is one of those listed
    nearby_question_recall       the share of the expected streets that is named
    elsewhere_refused_rate       of photos of other places: it says that it has no address for them

The positions of a choice: how often each letter was chosen, how often it was right, and how often it was found where it
was right. A model that prefers a letter, whatever stands behind it, chooses it more often than it is right.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llava_ial.evaluation.reading import is_refusal, read_choice, read_options
from llava_ial.gazetteer import Gazetteer, Match
from llava_ial.wider_prompts import CANDIDATES, ELSEWHERE, NEARBY

# An address holds commas itself, so a list of them is read where lines, semicolons or the project's own words part it.
_BETWEEN_ITEMS = re.compile(r";|\n|\balso possible\b:?", re.IGNORECASE)


@dataclass(frozen=True)
class Letter:
    """A letter of multiple choice questions; shares are of the answers that chose a letter.

    Attributes:
        chosen: Share that chose it.
        right: Share whose right option it is.
        found: Of these the share that chose it; None without one.
    """

    chosen: float
    right: float
    found: float | None


@dataclass(frozen=True)
class Positions:
    """The letters of multiple choice answers.

    Attributes:
        bias: Half the sum of the differences between chosen and right: 0 for a model without a preference (but for the
            luck of the draw), 0.75 for one of four letters always.
    """

    letters: dict[str, Letter]
    bias: float
    num_answers: int


def score_candidates(text: str, is_truth: Callable[[Match], bool], gazetteer: Gazetteer) -> dict[str, float]:
    """A list of addresses."""
    named = [match for match in (gazetteer.match(item) for item in _BETWEEN_ITEMS.split(text)) if match.street]
    return {
        f"{CANDIDATES}_question_recall": any(is_truth(match) for match in named),
        "unparsed_rate": not named,
    }


def score_nearby(text: str, expected: str, gazetteer: Gazetteer) -> dict[str, float]:
    """A list of streets."""
    named, wanted = set(gazetteer.streets(text)), set(gazetteer.streets(expected))
    scores: dict[str, float] = {"unparsed_rate": not named}
    if wanted:
        scores[f"{NEARBY}_question_recall"] = len(named & wanted) / len(wanted)
    return scores


def score_elsewhere(text: str, match: Match) -> dict[str, float]:
    """The answer about a photo that was taken in no place of the map."""
    is_refused = not match.street and is_refusal(text)
    return {f"{ELSEWHERE}_refused_rate": is_refused, "unparsed_rate": not match.street and not is_refused}


def measure_positions(answers: Sequence[tuple[str, str, str]]) -> Positions | None:
    """The letters of ``(question, expected, answer)``; None where no answer chose one."""
    pairs = []
    for question, expected, answer in answers:
        options = read_options(question)
        chosen, right = read_choice(answer, options), read_choice(expected, options)
        if chosen and right:
            pairs.append((chosen, right))
    if not pairs:
        return None
    chosen_of, right_of = (Counter(pair[i] for pair in pairs) for i in range(2))
    found_of = Counter(chosen for chosen, right in pairs if chosen == right)
    letters = {
        letter: Letter(
            chosen_of[letter] / len(pairs),
            right_of[letter] / len(pairs),
            found_of[letter] / right_of[letter] if right_of[letter] else None,
        )
        for letter in sorted({*chosen_of, *right_of})
    }
    bias = sum(abs(letter.chosen - letter.right) for letter in letters.values()) / 2
    return Positions(letters, bias, len(pairs))
