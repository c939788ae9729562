"""Addresses as people say them, and the text forms that the AddressCLIP paper publishes.

The paper (arXiv 2407.08156) names a place by a main street, the one or two streets that bound the piece of it, and the
neighbourhood. ``verbose`` and ``canonical`` are its published strings, word for word; ``spoken`` is what LLaVA-IAL
answers. Each ``format_*`` has a ``parse_*`` as its inverse.
"""

import re
from dataclasses import dataclass, replace

from llava_ial.errors import UserError

# These separate the parts of every form, so a name that contains one does not survive parsing.
_SEPARATORS = (", ", " and ", " (", ")")


@dataclass(frozen=True, order=True)
class CrossStreet:
    """A street that bounds a piece of the main street, and the neighbourhood it is named in ("" if unknown)."""

    street: str
    neighbourhood: str = ""


@dataclass(frozen=True, order=True)
class Address:
    """A street-level address: a piece of one street.

    Attributes:
        street: Main street, written out.
        neighbourhood: Neighbourhood of the piece, "" if the map gives none.
        cross_streets: None, one or two bounding streets.
        city, region, country: Optional; they are in spoken answers only, never in the texts for CLIP.
    """

    street: str
    neighbourhood: str = ""
    cross_streets: tuple[CrossStreet, ...] = ()
    city: str = ""
    region: str = ""
    country: str = ""

    def __post_init__(self) -> None:
        if not self.street.strip():
            raise UserError("address: street is empty; give its name")
        if len(self.cross_streets) > 2:
            raise UserError(f"address: {len(self.cross_streets)} cross streets on '{self.street}', at most 2 allowed")

    @property
    def street_key(self) -> tuple[str, str]:
        """The identity of a main street in the paper's metric SA@k: (street, neighbourhood)."""
        return self.street, self.neighbourhood

    def at_street_level(self) -> "Address":
        """The same address without the piece of the street."""
        return replace(self, cross_streets=())


def format_verbose(address: Address) -> str:
    """The paper's training text. "that near" without a verb is how the paper prints it.

    Example:
        >>> format_verbose(Address("Grant Street", "Downtown", (CrossStreet("Third Avenue"),)))
        'located in the Downtown, specifically on a section of Grant Street that near Third Avenue'
    """
    where = {
        0: address.street,
        1: "a section of {street} that near {0}",
        2: "a section of {street} that lies between {0} and {1}",
    }[len(address.cross_streets)].format(*(c.street for c in address.cross_streets), street=address.street)
    return (
        f"located in the {address.neighbourhood}, specifically on {where}"
        if address.neighbourhood
        else (f"located on {where}")
    )


def format_canonical(address: Address) -> str:
    """The paper's compact form: ``Main, Neighbourhood (A, NeighbourhoodA and B, NeighbourhoodB)``.

    Example:
        >>> format_canonical(Address("Grant Street", "Downtown", (CrossStreet("Third Avenue", "Downtown"),)))
        'Grant Street, Downtown (Third Avenue, Downtown)'
    """
    crossings = " and ".join(_join(c.street, c.neighbourhood) for c in address.cross_streets)
    return _join(address.street, address.neighbourhood) + (f" ({crossings})" if crossings else "")


def format_spoken(address: Address) -> str:
    """What a person would say, and what LLaVA-IAL answers with.

    Example:
        >>> crossings = (CrossStreet("Third Avenue"), CrossStreet("Fourth Avenue"))
        >>> format_spoken(Address("Grant Street", "Downtown", crossings, "Pittsburgh"))
        'Grant Street, between Third Avenue and Fourth Avenue, Downtown, Pittsburgh'
    """
    between = ("", "near {}", "between {} and {}")[len(address.cross_streets)]
    piece = between.format(*(c.street for c in address.cross_streets))
    return _join(address.street, piece, address.neighbourhood, address.city, address.region, address.country)


_CANONICAL = re.compile(r"(?P<main>[^()]+?)(?: \((?P<crossings>.+)\))?")
_VERBOSE = re.compile(
    r"located (?:in the (?P<neighbourhood>.+?), specifically )?on "
    r"(?:a section of (?P<main>.+?) that (?:lies between (?P<first>.+?) and (?P<second>.+)|near (?P<only>.+))"
    r"|(?P<whole>.+))"
)
_SPOKEN_PIECE = re.compile(r"between (?P<first>.+?) and (?P<second>.+)|near (?P<only>.+)")


def parse_canonical(text: str) -> Address:
    """Inverse of ``format_canonical`` for names without the form's own separators."""
    match = _CANONICAL.fullmatch(text.strip())
    if not match:
        raise UserError(f"not a canonical address: '{text}'; expected 'Main, Neighbourhood (A, NA and B, NB)'")
    street, _, neighbourhood = match["main"].partition(", ")
    crossings = []
    for part in (match["crossings"] or "").split(" and ") if match["crossings"] else []:
        name, _, where = part.partition(", ")
        crossings.append(CrossStreet(name, where))
    return Address(street, neighbourhood, tuple(crossings))


def parse_verbose(text: str) -> Address:
    """Inverse of ``format_verbose``; the form does not carry the neighbourhoods of the cross streets."""
    match = _VERBOSE.fullmatch(text.strip())
    if not match:
        raise UserError(
            f"not a verbose address: '{text}'; expected 'located in the N, specifically on a section of M ...'"
        )
    crossings = tuple(CrossStreet(match[g]) for g in ("first", "second", "only") if match[g])
    return Address(match["main"] or match["whole"], match["neighbourhood"] or "", crossings)


def parse_spoken(text: str, *, city: str = "", region: str = "", country: str = "") -> Address:
    """Inverse of ``format_spoken``, given what the data set knows of its city.

    Only what stands before the city is ambiguous (is the second part a neighbourhood?), so the known tail is removed
    first.
    """
    tail = _join(city, region, country)
    body = text.strip()
    if tail and body.endswith(", " + tail):
        body = body[: -len(tail) - 2]
    street, *rest = body.split(", ")
    crossings: tuple[CrossStreet, ...] = ()
    if rest and (match := _SPOKEN_PIECE.fullmatch(rest[0])):
        crossings = tuple(CrossStreet(match[g]) for g in ("first", "second", "only") if match[g])
        rest = rest[1:]
    if len(rest) > 1:
        raise UserError(f"not an address of {tail or 'a known city'}: '{text}'; too many parts between commas")
    return Address(street, rest[0] if rest else "", crossings, city, region, country)


def is_plain_name(name: str) -> bool:
    """True if a name survives every format and parse, that is, contains none of the forms' separators."""
    return bool(name.strip()) and not any(separator in name for separator in _SEPARATORS)


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
