"""Names of streets and places in a form in which equal names are equal.

Abbreviations are folded towards the short form (``Street`` and ``St`` both become ``st``), never expanded. So nobody
has to decide whether the ``St`` of a sentence is a Saint (at the start) or a Street (at the end), and ``Dr`` never
becomes a Doctor. What this folds together (``E Street`` and ``East Street``) ``plain_key`` keeps apart.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

# Left: what a name may be written with. Right: what it is compared by. Types of streets in English and German.
_SHORT = {
    "street": "st", "saint": "st", "sankt": "st", "avenue": "ave", "av": "ave", "boulevard": "blvd", "boul": "blvd",
    "road": "rd", "drive": "dr", "lane": "ln", "court": "ct", "place": "pl", "platz": "pl", "square": "sq",
    "terrace": "ter", "terr": "ter", "parkway": "pkwy", "highway": "hwy", "expressway": "expy", "alley": "aly",
    "circle": "cir", "crescent": "cres", "plaza": "plz", "trail": "trl", "extension": "ext", "heights": "hts",
    "mount": "mt", "fort": "ft", "junior": "jr", "freeway": "fwy", "turnpike": "tpke", "bridge": "brg", "way": "wy",
    "north": "n", "south": "s", "east": "e", "west": "w",
    "northeast": "ne", "northwest": "nw", "southeast": "se", "southwest": "sw",
    "strasse": "str",
}  # fmt: skip
# German types of streets are written into the name: Königstraße, Königstr.
_SHORT_ENDINGS = {"strasse": "str", "platz": "pl"}
_ONES = ("", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
_TEENS = (
    "tenth", "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth",
    "nineteenth",
)  # fmt: skip
_TENS = ("", "", "twent", "thirt", "fort", "fift", "sixt", "sevent", "eight", "ninet")
# Letters that carry no separate accent, so that decomposition leaves them as they are.
_LETTERS = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "æ": "ae", "œ": "oe", "þ": "th", "ı": "i"})
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue"})
_INITIALS = re.compile(r"\b(\w)\.(?=\w\b)")
_APOSTROPHES = re.compile(r"['’ʼ`´]")
# Kana, Chinese and Hangul (its parts too): written without spaces, so a Latin name among them is a word of its own.
_UNSPACED = "\u1100-\u11ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD_OR_BREAK = re.compile(rf"(?P<word>[{_UNSPACED}]+|[^\W{_UNSPACED}]+)|[,;:()\[\]!?|\n、。]")


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


_ORDINALS = (
    {word: _ordinal(i) for i, word in enumerate(_ONES) if word}
    | {word: _ordinal(10 + i) for i, word in enumerate(_TEENS)}
    | {f"{stem}ieth": _ordinal(10 * i) for i, stem in enumerate(_TENS) if stem}
)
_TENS_WORDS = {f"{stem}y": 10 * i for i, stem in enumerate(_TENS) if stem}


@dataclass(frozen=True, slots=True)
class Token:
    """A word of a text.

    Attributes:
        plain: Lower case, without accents and apostrophes.
        key: What it is compared by: ``plain`` with abbreviations and ordinals folded.
        is_after_break: A comma, bracket or the like stands before it: no name goes across.
    """

    plain: str
    key: str
    is_after_break: bool = False

    @property
    def is_street_type(self) -> bool:
        """True for words such as Street and N., which many names share."""
        return self.plain in _SHORT or self.plain in _SHORT.values()


def fold_letters(text: str) -> str:
    """Lower case without accents and apostrophes: ``Schloßstraße`` gives ``schlossstrasse``.

    Example:
        >>> fold_letters("Calle de Alcalá, O’Hara Street")
        'calle de alcala, ohara street'
    """
    folded = _APOSTROPHES.sub("", text).casefold()
    if not folded.isascii():
        parts = unicodedata.normalize("NFKD", folded)
        folded = "".join(c for c in parts if not unicodedata.combining(c)).translate(_LETTERS)
    return _INITIALS.sub(r"\1", folded) if "." in folded else folded


def tokenize(text: str) -> list[Token]:
    """The words of a text, in order.

    Example:
        >>> [token.key for token in tokenize("N. Craig St. and Twenty-First Avenue")]
        ['n', 'craig', 'st', 'and', '21st', 'ave']
    """
    tokens: list[Token] = []
    is_after_break = False
    for word in _WORD_OR_BREAK.findall(fold_letters(text)):
        if not word:
            is_after_break = True
            continue
        if word in _ONES and tokens and tokens[-1].plain in _TENS_WORDS and not is_after_break:
            tens = tokens.pop()
            number = _ordinal(_TENS_WORDS[tens.plain] + _ONES.index(word))
            tokens.append(Token(f"{tens.plain} {word}", number, tens.is_after_break))
        else:
            tokens.append(_token(word, is_after_break))
        is_after_break = False
    return tokens


@lru_cache(maxsize=1 << 16)
def _token(word: str, is_after_break: bool) -> Token:
    return Token(word, _short(word), is_after_break)


def plain_key(name: str) -> str:
    """A name by its words alone: case, accents and punctuation do not count, abbreviations do."""
    return " ".join(token.plain for token in tokenize(name))


def name_key(name: str) -> str:
    """A name as it is compared.

    Example:
        >>> name_key("North Saint Clair Street") == name_key("n. st. clair st")
        True
        >>> name_key("Königstraße") == name_key("KÖNIGSTR.")
        True
    """
    return " ".join(token.key for token in tokenize(name))


def spellings(name: str) -> tuple[str, ...]:
    """The name and, where it has umlauts, how it is typed on a keyboard without them (``Koenigstrasse``)."""
    typed = unicodedata.normalize("NFC", name.casefold()).translate(_UMLAUTS)
    return (name,) if name_key(typed) == name_key(name) else (name, typed)


def _short(word: str) -> str:
    if word in _SHORT:
        return _SHORT[word]
    if word in _ORDINALS:
        return _ORDINALS[word]
    for ending, short in _SHORT_ENDINGS.items():
        if word.endswith(ending):
            return word.removesuffix(ending) + short
    return word
