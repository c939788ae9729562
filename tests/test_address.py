"""Address formats against their parsers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_ial.address import (
    Address,
    CrossStreet,
    format_canonical,
    format_spoken,
    format_verbose,
    is_plain_name,
    parse_canonical,
    parse_spoken,
    parse_verbose,
)
from llava_ial.errors import UserError

WORDS = st.sampled_from(["Grant", "Theodor-Heuss", "St.", "5th", "Rue", "P. J.", "Ö", "McArdle", "Kings", "Nord"])
NAMES = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)
ADDRESSES = st.builds(
    Address,
    street=NAMES,
    neighbourhood=NAMES | st.just(""),
    cross_streets=st.lists(st.builds(CrossStreet, NAMES, NAMES | st.just("")), max_size=2).map(tuple),
)


@given(ADDRESSES)
def test_canonical_form_is_inverted_by_its_parser(address: Address) -> None:
    assert parse_canonical(format_canonical(address)) == address


@given(ADDRESSES)
def test_verbose_form_is_inverted_up_to_the_neighbourhoods_of_crossings(address: Address) -> None:
    plain = Address(address.street, address.neighbourhood, tuple(CrossStreet(c.street) for c in address.cross_streets))
    assert parse_verbose(format_verbose(address)) == plain


@given(ADDRESSES, st.booleans())
def test_spoken_form_is_inverted_by_its_parser(address: Address, has_country: bool) -> None:
    tail = {"city": "Pittsburgh", "region": "PA", "country": "USA" if has_country else ""}
    crossings = tuple(CrossStreet(c.street) for c in address.cross_streets)
    plain = Address(address.street, address.neighbourhood, crossings, **tail)
    assert parse_spoken(format_spoken(plain), **tail) == plain


def test_published_strings_word_for_word() -> None:
    crossings = (CrossStreet("Third Avenue", "Downtown"), CrossStreet("Fourth Avenue", "Downtown"))
    address = Address("Grant Street", "Downtown", crossings, "Pittsburgh")
    assert (
        format_verbose(address) == "located in the Downtown, specifically on a section of Grant Street that lies "
        "between Third Avenue and Fourth Avenue"
    )
    assert format_canonical(address) == "Grant Street, Downtown (Third Avenue, Downtown and Fourth Avenue, Downtown)"
    assert format_spoken(address) == "Grant Street, between Third Avenue and Fourth Avenue, Downtown, Pittsburgh"


def test_real_names_survive_the_forms(shared_data) -> None:
    import osmium

    names = {
        o.tags["name"] for o in osmium.FileProcessor(shared_data / "pittsburgh/pittsburgh.osm.pbf") if "name" in o.tags
    }
    plain = sorted(filter(is_plain_name, names))
    assert len(plain) > 0.99 * len(names)
    for name in plain:
        address = Address(name, "Downtown", (CrossStreet(plain[0], "Oakland"),))
        assert parse_canonical(format_canonical(address)) == address


@pytest.mark.parametrize("text", ["", "()", "Grant ("])
def test_garbage_is_refused_with_the_text_in_the_message(text: str) -> None:
    with pytest.raises(UserError):
        parse_canonical(text)


def test_three_cross_streets_are_refused() -> None:
    with pytest.raises(UserError, match="3 cross streets on 'A'"):
        Address("A", "", (CrossStreet("B"),) * 3)
