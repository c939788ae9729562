"""Names with one mistyped letter."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from rapidfuzz.distance import OSA

from llava_ial.place_names import Token, tokenize

# With fewer letters beside "Street" and the like, one mistyped letter makes too many other names.
_MIN_LETTERS = 4


class NearNames:
    """Names that one letter inserted, deleted, replaced or swapped with its neighbour turns into a text.

    Spaces do not count. Two strings are that near only if they share a form with at most one letter deleted; an index
    of those forms makes a look-up independent of the number of names.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names_by_form: dict[str, set[tuple[str, str]]] = defaultdict(set)
        self.max_words = 0
        for name in sorted(names):
            tokens = tokenize(name)
            self.max_words = max(self.max_words, len(tokens))
            if sum(len(token.plain) for token in tokens if not token.is_street_type) < _MIN_LETTERS:
                continue
            for joined in _joined(tokens):
                for form in _with_one_deleted(joined):
                    self._names_by_form[form].add((joined, name))

    def find(self, part: Sequence[Token]) -> str | None:
        """The one name near these words; None if there is none or more than one."""
        distances: dict[str, int] = {}
        for text in _joined(part):
            for joined, name in {
                pair for form in _with_one_deleted(text) for pair in self._names_by_form.get(form, ())
            }:
                # 5th and 6th are two streets, not a slip of the finger.
                if _digits(joined) == _digits(text) and (d := OSA.distance(text, joined, score_cutoff=1)) <= 1:
                    distances[name] = min(d, distances.get(name, d))
        nearest = [name for name, distance in distances.items() if distance == min(distances.values())]
        return nearest[0] if len(nearest) == 1 else None


def _joined(tokens: Sequence[Token]) -> set[str]:
    return {"".join(t.key for t in tokens), "".join(t.plain for t in tokens).replace(" ", "")}


def _with_one_deleted(text: str) -> Iterator[str]:
    yield text
    for i in range(len(text)):
        yield text[:i] + text[i + 1 :]


def _digits(text: str) -> str:
    return "".join(c for c in text if c.isdigit())
