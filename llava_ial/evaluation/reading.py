"""Answers that are no address: yes and no, the letter of a choice, a refusal."""

import re

_VERDICT = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_OPTION = re.compile(r"(?:^|(?<=[\s,;(]))\(?([A-Z])[).:]\s+(.+?)(?=[,;]?\s+\(?[A-Z][).:]\s|$)", re.MULTILINE)
_LETTER = re.compile(
    r"\W*(?:(?:it is|this is|the answer is|answer|option)\W+)?\(?([A-Z])(?:[).:,]|\W*$)", re.IGNORECASE
)
_CANNOT = (
    r"\b(?:can(?:no|')?t|cannot|could ?n[o']t|do(?: not|n't)|am not|is not|isn't|was not|wasn't|un)\s*(?:be\s+)?"
    r"(?:able|possible|recogni[sz]e|tell|say|know|determine|identify|locate|sure|provide|assist|help|certain)"
)
_ELSEWHERE = (
    r"\b(?:is|was|are|were)(?: not|n't)\s+(?:\w+\s+){0,2}(?:from |of |in |taken in )(?:this city|here|the city)"
    r"|\boutside (?:of )?(?:the|this|my) (?:city|area|map)|\belsewhere\b|\bno idea\b|\bunknown place\b"
)
_REFUSAL = re.compile(f"{_CANNOT}|{_ELSEWHERE}|\\bsorry\\b", re.IGNORECASE)


def read_verdict(text: str) -> str | None:
    """``yes`` or ``no`` if an answer begins with it."""
    found = _VERDICT.match(text)
    return found[1].lower() if found else None


def read_options(question: str) -> dict[str, str]:
    """The options of a multiple choice question by letter.

    Example:
        >>> read_options("Which street is this? A) Grant Street, B) Forbes Avenue")
        {'A': 'Grant Street', 'B': 'Forbes Avenue'}
    """
    return {letter: text.strip(" .,;") for letter, text in _OPTION.findall(question)}


def read_choice(text: str, options: dict[str, str]) -> str | None:
    """The letter that an answer chooses: named by letter, or by the words of one option alone.

    Example:
        >>> read_choice("B) Forbes Avenue", {"A": "Grant Street", "B": "Forbes Avenue"})
        'B'
        >>> read_choice("This is Grant Street.", {"A": "Grant Street", "B": "Forbes Avenue"})
        'A'
    """
    named = [letter for letter, option in options.items() if option.casefold() in text.casefold()]
    if len(named) == 1:
        return named[0]
    found = _LETTER.match(text)
    letter = found[1].upper() if found else None
    return letter if letter in options else None


def is_refusal(text: str) -> bool:
    """True for an answer that says that it does not know, or that the photo is from elsewhere.

    Example:
        >>> is_refusal("I cannot tell where this was taken."), is_refusal("This is Grant Street.")
        (True, False)
    """
    return _REFUSAL.search(text.replace("’", "'")) is not None
