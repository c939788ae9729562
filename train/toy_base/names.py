"""Names for address-shaped texts: those of generated cities, and made-up ones, so that any spelling is met."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from llava_ial.address import Address, CrossStreet, format_verbose

_CONSONANTS = "b|br|c|ch|d|dr|f|g|gr|h|k|l|m|n|p|pl|r|s|sh|st|t|th|v|w|z"
_VOWELS = "a|e|i|o|u|ai|ea|ou"
_KINDS = ("Street", "Avenue", "Road", "Lane", "Way", "Alley", "Row", "Drive", "Court", "Place", "Boulevard", "Hill")
_MADE_UP_SHARE = 0.5
_SPACE = "\u0120"  # how byte-level BPE writes the space before a word
LONGER_THAN_NAMES = 16
_NUM_STREETS, _NUM_NEIGHBOURHOODS = 10, 3


@dataclass(frozen=True)
class NameSource:
    """Street and neighbourhood names of one city."""

    streets: list[str]
    neighbourhoods: list[str]

    @classmethod
    def of_city(cls, folder: Path) -> "NameSource":
        """The names that a generated city's table of truth holds."""
        rows = list(csv.DictReader(io.StringIO((folder / "truth.csv").read_text(encoding="utf-8"))))
        return cls(sorted({row["street"] for row in rows}), sorted({row["neighbourhood"] for row in rows}))

    def addresses(self, count: int, draw: np.random.Generator) -> list[Address]:
        """Different addresses put together at random; for half of the calls with made-up names in place of the city's.

        Few names stand in all of them: neighbours in a town share their street, crossings and neighbourhood.
        """
        if draw.random() < _MADE_UP_SHARE:
            source = NameSource(
                [made_up_street(draw) for _ in range(_NUM_STREETS)],
                [made_up_word(draw) for _ in range(_NUM_NEIGHBOURHOODS)],
            )
        else:
            source = NameSource(
                draw.permutation(self.streets)[:_NUM_STREETS].tolist(),
                draw.permutation(self.neighbourhoods)[:_NUM_NEIGHBOURHOODS].tolist(),
            )
        found: dict[Address, None] = {}
        while len(found) < count:
            found[source.address(draw)] = None
        return list(found)

    def address(self, draw: np.random.Generator) -> Address:
        """A street between two others in a neighbourhood, whatever the map says."""
        street, first, second = (self.streets[i] for i in draw.choice(len(self.streets), 3, replace=False))
        where = self.neighbourhoods[draw.integers(len(self.neighbourhoods))]
        return Address(street, where, (CrossStreet(first), CrossStreet(second)))


def made_up_street(draw: np.random.Generator) -> str:
    """As "Brouvai Lane"."""
    return f"{made_up_word(draw)} {_KINDS[draw.integers(len(_KINDS))]}"


def made_up_word(draw: np.random.Generator) -> str:
    """Two or three syllables."""
    consonants, vowels = _CONSONANTS.split("|"), _VOWELS.split("|")
    syllables = [
        consonants[draw.integers(len(consonants))] + vowels[draw.integers(len(vowels))]
        for _ in range(draw.integers(2, 4))
    ]
    return "".join(syllables).capitalize()


def spelling_pieces(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The letters and runs of letters that a vocabulary spells words with, in lower case."""
    bare = {token.removeprefix(_SPACE) for token in tokenizer.get_vocab()}
    return sorted({piece.lower() for piece in bare if piece.isascii() and piece.isalpha()})


def spelled_word(pieces: Sequence[str], draw: np.random.Generator) -> str:
    """Pieces of a vocabulary in any order, so that none of them stays unread; longer than any town's word.

    What a language model never had to write it cannot write later: tuning leaves its table of tokens as it is.
    """
    word = ""
    while len(word) < LONGER_THAN_NAMES:
        word += pieces[int(draw.integers(len(pieces)))]
    return word.capitalize()


def invented_addresses(cities: Sequence[Path], *, per_city: int, seed: int) -> list[str]:
    """Address-shaped texts of the cities' own names, put together at random: what a tokenizer must know, no truth."""
    draw = np.random.default_rng(seed)
    texts: list[str] = []
    for city in cities:
        names = NameSource.of_city(city)
        texts += [format_verbose(names.address(draw)) for _ in range(per_city)]
    return texts
