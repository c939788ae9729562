"""From free text to an address of the map: what a model, or a person, named.

Tried in this order, the surest first (``Match.how``):

    template   the text ends with an address of the list exactly as the project says it
    exact      the text ends with an address of the list in a published form, abbreviations and case aside
    between    "between A and B": two streets that bound the place, and the main street beside them
    ngram      the longest known names in the text
    fuzzy      the same with one mistyped letter in a name
    unmatched  no street of the map

A street that is denied ("not on Grant Street") is not named.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llava_ial.address import Address, format_canonical, format_spoken, format_verbose
from llava_ial.near_names import NearNames
from llava_ial.place_names import Token, fold_letters, name_key, plain_key, spellings, tokenize

_STREET, _NEIGHBOURHOOD, _CITY = "street", "neighbourhood", "city"
_DENIALS = frozenset({"not", "isnt", "wasnt", "arent", "cannot", "never", "nicht", "kein", "keine", "unlike"})
_BETWEEN = frozenset({"between", "zwischen"})
_NEAR = frozenset({"near", "nahe"})
_AND = frozenset({"and", "und"})
# Words that may stand between a denial, "between" or "near" and the name that it is about.
_FILLERS = frozenset({
    "on", "in", "at", "the", "from", "along", "be", "to", "taken", "located", "is", "was", "really", "actually",
    "auf", "an", "der", "die", "das", "dem", "den",
})  # fmt: skip
# A mistyped name is not looked for among these alone.
_NO_NAMES = _FILLERS | _DENIALS | {"this", "that", "it", "no", "yes"}


@dataclass(frozen=True)
class Match:
    """What a text names, in the map's own spelling; "" and () where it names none.

    Attributes:
        street: Main street.
        cross_streets: Streets that bound the piece.
        neighbourhood, city: As named.
        how: Which step found it, see the module's docstring.
    """

    street: str = ""
    cross_streets: tuple[str, ...] = ()
    neighbourhood: str = ""
    city: str = ""
    how: str = "unmatched"


@dataclass(frozen=True, slots=True)
class _Mention:
    """A known name in a text: its tokens, and its spelling on the map for each kind of place that bears it."""

    start: int
    end: int
    names: Mapping[str, str]


class _Branch(dict[str, "_Branch"]):
    """Names as a tree of words, by their comparison keys.

    Attributes:
        kinds: The names that end here, by kind of place.
        only: The same where every kind has one: no spelling is to be chosen.
    """

    __slots__ = ("kinds", "only")

    def __init__(self) -> None:
        super().__init__()
        self.kinds: Mapping[str, Sequence[str]] = {}
        self.only: Mapping[str, str] = {}


class Gazetteer:
    """The names of a list of addresses, ready to be found in text.

    Args:
        addresses: The candidates, as in a data set's gallery.

    Example:
        >>> from llava_ial.address import CrossStreet
        >>> crossings = (CrossStreet("North Craig Street"), CrossStreet("Fifth Avenue"))
        >>> gazetteer = Gazetteer([Address("Forbes Avenue", "Oakland", crossings, "Pittsburgh")])
        >>> match = gazetteer.match("Looks like Forbes Ave, between N. Craig St and 5th Av.")
        >>> match.street, match.cross_streets, match.how
        ('Forbes Avenue', ('North Craig Street', 'Fifth Avenue'), 'between')
        >>> gazetteer.match("That is not Forbes Avenue.").how
        'unmatched'
    """

    def __init__(self, addresses: Iterable[Address]) -> None:
        self.addresses = tuple(dict.fromkeys(addresses))
        self._by_street: dict[str, list[Address]] = defaultdict(list)
        self._spoken: dict[str, Match] = {}
        self._whole: dict[str, Match | None] = {}
        for address in self.addresses:
            self._by_street[address.street].append(address)
            self._spoken[format_spoken(address)] = _as_match(address, "template")
            found = _as_match(address, "exact")
            for text in (format_spoken(address), format_verbose(address), format_canonical(address)):
                # Two addresses that differ in an abbreviation alone cannot be told apart this way.
                is_clear = self._whole.setdefault(name_key(text), found) == found
                self._whole[name_key(text)] = found if is_clear else None
        names = _names_by_key(self.addresses)
        self._tree = _Branch()
        for key, kinds in names.items():
            branch = self._tree
            for word in key.split(" "):
                branch = branch.setdefault(word, _Branch())
            branch.kinds = kinds
            if all(len(options) == 1 for options in kinds.values()):
                branch.only = {kind: options[0] for kind, options in kinds.items()}
        self._near = NearNames({name for kinds in names.values() for name in kinds.get(_STREET, [])})

    def match(self, text: str) -> Match:
        """The address that a text names. Never raises; a text without a known street is ``unmatched``."""
        tokens = tokenize(text)
        mentions = self._mentions(tokens, text)
        streets = [m for m in mentions if _STREET in m.names]
        bounds, has_gap = _bounds(tokens, streets)
        free = [m for m in streets if m not in bounds and not _is_denied(tokens, m.start)]
        leading = [m for m in free if not bounds or m.start < bounds[0].start]  # what bounds a place is a part of it
        if leading and (whole := self._whole_address(text, tokens, leading)):
            return whole
        found = _interpret(tokens, mentions, bounds, free)
        if found.street and not has_gap:
            return found
        added = [m for part in _uncovered(tokens, mentions) for m in [self._near_mention(tokens, *part)] if m]
        if not added:
            return found
        mentions = sorted([*mentions, *added], key=lambda mention: mention.start)
        streets = [m for m in mentions if _STREET in m.names]
        bounds, _ = _bounds(tokens, streets)
        free = [m for m in streets if m not in bounds and not _is_denied(tokens, m.start)]
        better = _interpret(tokens, mentions, bounds, free)
        is_same = (better.street, better.cross_streets) == (found.street, found.cross_streets)
        return found if is_same else replace(better, how="fuzzy")

    def streets(self, text: str) -> list[str]:
        """Every street that a text names and does not deny, in its order; names with a mistyped letter are left out."""
        tokens = tokenize(text)
        named = [m for m in self._mentions(tokens, text) if _STREET in m.names and not _is_denied(tokens, m.start)]
        return list(dict.fromkeys(mention.names[_STREET] for mention in named))

    def candidates(self, match: Match) -> list[Address]:
        """The addresses of the list that fit all that was named; none without a main street."""
        return [
            address
            for address in self._by_street.get(match.street, [])
            if match.neighbourhood in ("", address.neighbourhood)
            and match.city in ("", address.city)
            and (not match.cross_streets or sorted(match.cross_streets) == _crossings(address))
        ]

    def _mentions(self, tokens: Sequence[Token], text: str) -> list[_Mention]:
        """Known names from left to right, the longest at each place, without overlaps."""
        found = []
        start, count = 0, len(tokens)
        while start < count:
            branch = self._tree.get(tokens[start].key)
            ends = []
            end = start + 1
            while branch is not None:
                if branch.kinds:
                    ends.append((end, branch))
                branch = branch.get(tokens[end].key) if end < count else None
                end += 1
            while ends:
                end, named = ends.pop()
                if names := _names_of(named, tokens[start:end], text):
                    found.append(_Mention(start, end, names))
                    start = end - 1
                    break
            start += 1
        return found

    def _whole_address(self, text: str, tokens: Sequence[Token], streets: Sequence[_Mention]) -> Match | None:
        """An address of the list in full, from its first word to the end of the text.

        Args:
            text: Where it is looked for.
            tokens: Of the text.
            streets: Those that may be the main street.
        """
        sentence = text.strip()
        ends = (sentence, sentence[:-1]) if sentence.endswith(".") else (sentence,)
        # A street may be called like a word of the sentence ("Be"), so each mention has its try; but a later one must
        # come with its surroundings, or it is just the second street of an enumeration.
        for number, main in enumerate(streets if ", " in sentence else streets[:1]):
            for end in ends:
                for offset in _places_of(main.names[_STREET], end):
                    if (found := self._spoken.get(end[offset:])) and (number == 0 or ", " in end[offset:]):
                        return found
        main = streets[0]
        keys = [token.key for token in tokens]
        starts = {0, main.start, *(i for i, key in enumerate(keys) if key == "located")}
        for start in sorted(starts):
            whole = self._whole.get(" ".join(keys[start:]))
            if whole and whole.street == main.names[_STREET]:
                return whole
        return None

    def _near_mention(self, tokens: Sequence[Token], start: int, end: int) -> _Mention | None:
        """The street whose name one mistyped letter turns into words of this part, if there is just one such street."""
        for size in range(min(end - start, self._near.max_words + 1), 0, -1):
            found: dict[str, int] = {}
            for first in range(start, end - size + 1):
                if name := self._near.find(tokens[first : first + size]):
                    found.setdefault(name, first)
            if len(found) == 1:
                ((name, first),) = found.items()
                return _Mention(first, first + size, {_STREET: name})
        return None


def _names_of(branch: _Branch, part: Sequence[Token], text: str) -> Mapping[str, str]:
    """The places that these words name, by kind."""
    names = branch.only
    if not names:
        plain = " ".join(token.plain for token in part)
        names = {kind: _closest_spelling(options, plain, text) for kind, options in branch.kinds.items()}
    for token in part[1:]:
        if token.is_after_break:  # "Main, Street 5" does not name Main Street, unless that is how it is written
            folded = fold_letters(text)
            return {kind: name for kind, name in names.items() if fold_letters(name) in folded}
    return names


def _interpret(
    tokens: Sequence[Token], mentions: Sequence[_Mention], bounds: Sequence[_Mention], free: Sequence[_Mention]
) -> Match:
    """Roles of the names in a text.

    Args:
        tokens: Of the text.
        mentions: All names.
        bounds: Those that bound the place.
        free: Streets that are neither bounds nor denied.
    """
    # A name that a neighbourhood or the city bears too is the street only where nothing else can be.
    main = min(free, key=lambda m: len(m.names), default=None)
    areas = {_NEIGHBOURHOOD: "", _CITY: ""}
    for mention in mentions:
        if mention is main or (len(mention.names) == 1 and _STREET in mention.names):
            continue
        for kind, named in areas.items():
            if not named and kind in mention.names and mention not in bounds and not _is_denied(tokens, mention.start):
                areas[kind] = mention.names[kind]
    return Match(
        street=main.names[_STREET] if main else "",
        cross_streets=tuple(m.names[_STREET] for m in bounds),
        neighbourhood=areas[_NEIGHBOURHOOD],
        city=areas[_CITY],
        how="between" if len(bounds) == 2 else "ngram" if main or bounds else "unmatched",
    )


def _bounds(tokens: Sequence[Token], streets: Sequence[_Mention]) -> tuple[list[_Mention], bool]:
    """The streets of the first "between A and B" or "near A", and whether one of them is an unknown word."""
    by_start = {m.start: m for m in streets}
    for i, token in enumerate(tokens):
        if token.key not in _BETWEEN and token.key not in _NEAR:
            continue
        first = _first_name(tokens, i + 1, by_start)
        if token.key in _NEAR:
            return ([first], False) if first else ([], True)
        ands = [j for j in range(first.end if first else i + 1, len(tokens)) if tokens[j].key in _AND]
        second = _first_name(tokens, ands[0] + 1, by_start) if ands else None
        return [m for m in (first, second) if m], first is None or second is None
    return [], False


def _is_denied(tokens: Sequence[Token], start: int) -> bool:
    before = start - 1
    while before >= 0 and tokens[before].key in _FILLERS and not tokens[before + 1].is_after_break:
        before -= 1
    return before >= 0 and tokens[before].key in _DENIALS and not tokens[before + 1].is_after_break


def _first_name(tokens: Sequence[Token], start: int, by_start: Mapping[int, _Mention]) -> _Mention | None:
    """The name that stands here, fillers before it aside; a filler may be a part of it ("The Boulevard")."""
    while start not in by_start and start < len(tokens) and tokens[start].key in _FILLERS:
        start += 1
    return by_start.get(start)


def _uncovered(tokens: Sequence[Token], mentions: Sequence[_Mention]) -> Iterator[tuple[int, int]]:
    """Runs of words that no mention covers and no comma parts, as (start, end); not those that can name nothing."""
    covered = {i for m in mentions for i in range(m.start, m.end)}
    start = 0
    for i in range(len(tokens) + 1):
        if i == len(tokens) or i in covered or tokens[i].is_after_break:
            if any(tokens[j].key not in _NO_NAMES for j in range(start, i)):
                yield start, i
            start = i + 1 if i in covered else i


def _names_by_key(addresses: Sequence[Address]) -> dict[str, dict[str, list[str]]]:
    """Every name by its comparison key, then by kind; several names may share a key."""
    kinds = {
        _STREET: {a.street for a in addresses} | {c.street for a in addresses for c in a.cross_streets},
        _NEIGHBOURHOOD: {a.neighbourhood for a in addresses} - {""},
        _CITY: {a.city for a in addresses} - {""},
    }
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for kind, names in kinds.items():
        for name in sorted(names):
            for key in {name_key(spelling) for spelling in spellings(name)} - {""}:
                found[key][kind].append(name)
    return found


def _closest_spelling(names: Sequence[str], plain: str, text: str) -> str:
    """Of several names with one key the one that is written like the text."""
    if len(names) == 1:
        return names[0]
    words = set(plain.split(" "))
    return min(names, key=lambda name: (name not in text, len(words ^ set(plain_key(name).split(" ")))))


def _as_match(address: Address, how: str) -> Match:
    crossings = tuple(cross.street for cross in address.cross_streets)
    return Match(address.street, crossings, address.neighbourhood, address.city, how)


def _crossings(address: Address) -> list[str]:
    return sorted(cross.street for cross in address.cross_streets)


def _places_of(part: str, text: str) -> Iterator[int]:
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)
