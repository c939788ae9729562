"""Every address of a list is found in the sentence that names it, and names that are not meant are not found."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_ial.address import Address, CrossStreet, format_canonical, format_spoken, format_verbose, is_plain_name
from llava_ial.gazetteer import Gazetteer, Match
from llava_ial.place_names import name_key, plain_key, tokenize
from llava_ial.prompts import BETWEEN, NEIGHBOURHOOD, STREET, WHERE, format_answer


def _address(street: str, *crossings: str, where: str = "", city: str = "Pittsburgh") -> Address:
    return Address(street, where, tuple(CrossStreet(name) for name in crossings), city)


FORBES = _address("Forbes Avenue", "North Craig Street", "South Bouquet Street", where="Oakland")
GRANT = _address("Grant Street", "Fifth Avenue", where="Downtown")
TOWN = Gazetteer([
    FORBES,
    GRANT,
    _address("Grant Street", "Fort Pitt Boulevard", where="Downtown"),
    _address("Grant Street", where="Millvale"),
    _address("Fifth Avenue", "Sixth Avenue", "Grant Street", where="Downtown"),
    _address("Saint Clair Street", where="East Liberty"),
    _address("E Street Northwest", where="Oakland"),
    _address("East Street", where="Downtown"),
    _address("Avenue of the Americas"),
    _address("Doctor Martin Luther King Drive"),
    _address("Twenty-First Street", where="Strip District"),
    _address("Oakland Avenue", where="Oakland"),
    _address("O'Hara Street", where="Oakland"),
])  # fmt: skip
STUTTGART = Gazetteer([
    _address("Königstraße", "Schloßplatz", where="Mitte", city="Stuttgart"),
    _address("Theodor-Heuss-Straße", "Lange Straße", "Calwer Straße", city="Stuttgart"),
])  # fmt: skip


def _parts(match: Match) -> tuple[str, tuple[str, ...], str, str]:
    return match.street, match.cross_streets, match.neighbourhood, match.city


def _wanted(address: Address) -> tuple[str, tuple[str, ...], str, str]:
    return address.street, tuple(c.street for c in address.cross_streets), address.neighbourhood, address.city


names = st.text("ABCDefgh ÄäßéЖя 15'-", min_size=1, max_size=14).map(str.strip).filter(is_plain_name).filter(name_key)
addresses = st.builds(
    Address,
    street=names,
    neighbourhood=st.one_of(st.just(""), names),
    cross_streets=st.lists(st.builds(CrossStreet, street=names), max_size=2).map(tuple),
    city=st.just("Pittsburgh"),
)


@settings(max_examples=150)
@given(st.lists(addresses, min_size=1, max_size=6))
def test_every_address_is_found_in_its_own_sentence(gallery: list[Address]) -> None:
    gazetteer = Gazetteer(gallery)
    for address in gallery:
        match = gazetteer.match(format_answer(WHERE, address))
        assert _parts(match) == _wanted(address)
        assert match.how == "template"
        assert address in gazetteer.candidates(match)


@pytest.mark.parametrize("form", [format_spoken, format_verbose, format_canonical])
def test_published_forms_are_found_in_any_case_and_abbreviated(form) -> None:
    for address in TOWN.addresses:
        text = form(address)
        short = text.lower().replace("street", "St.").replace("avenue", "AVE").replace("fifth", "5th")
        assert TOWN.match(f"It is {short}").street == address.street
        assert set(TOWN.match(short).cross_streets) == {c.street for c in address.cross_streets}


@pytest.fixture(scope="module")
def real_names(shared_data) -> list[str]:
    osmium = pytest.importorskip("osmium")
    ways = osmium.FileProcessor(str(shared_data / "pittsburgh" / "pittsburgh.osm.pbf"), osmium.osm.WAY)
    names = sorted({way.tags["name"] for way in ways if "name" in way.tags})
    assert len(names) == 6022
    return names


def test_all_streets_of_a_real_city(real_names) -> None:
    """Each as main street with none, one and two cross streets, as the first of two and as the second, in all forms."""
    draw = random.Random(0)
    names = draw.sample(real_names, len(real_names))
    gallery = []
    for i, name in enumerate(names):
        crossings = names[i - 1], names[i - 2]
        where = draw.choice(("", "Shadyside"))
        gallery += [_address(name, *crossings[:count], where=where) for count in range(3)]
    gazetteer = Gazetteer(gallery)
    for address in gallery:
        assert _parts(gazetteer.match(format_answer(WHERE, address))) == _wanted(address)
        for form in (format_spoken, format_verbose, format_canonical):  # the published two do not name the city
            assert _parts(gazetteer.match(form(address)))[:3] == _wanted(address)[:3]
        if len(address.cross_streets) == 2:
            assert gazetteer.match(format_answer(STREET, address)).street == address.street
            assert gazetteer.match(format_answer(NEIGHBOURHOOD, address)).neighbourhood == address.neighbourhood
            assert gazetteer.match(f"No, this is not {address.street}.").street == ""
        if address.cross_streets:
            assert gazetteer.match(format_answer(BETWEEN, address)).cross_streets == _wanted(address)[1]


@pytest.mark.parametrize(
    ("text", "street"),
    [
        ("We are on FORBES AVE.", "Forbes Avenue"),
        ("forbes av", "Forbes Avenue"),
        ("This is 5th Ave!", "Fifth Avenue"),
        ("This is St. Clair St", "Saint Clair Street"),
        ("This is Saint Clair Street.", "Saint Clair Street"),
        ("on E St NW, I believe", "E Street Northwest"),
        ("on E. St. N.W.", "E Street Northwest"),
        ("on East St", "East Street"),
        ("Avenue of the Americas", "Avenue of the Americas"),
        ("21st St in the Strip District", "Twenty-First Street"),
        ("twenty first street", "Twenty-First Street"),
        ("O’Hara Street", "O'Hara Street"),
        ("OHara St", "O'Hara Street"),
        ("Oakland Avenue in Oakland", "Oakland Avenue"),
    ],
)
def test_abbreviations(text, street) -> None:
    assert TOWN.match(text).street == street


def test_dr_is_a_drive_and_never_a_doctor() -> None:
    assert TOWN.match("Doctor Martin Luther King Dr").street == "Doctor Martin Luther King Drive"
    assert name_key("Dr King") != name_key("Doctor King")


@pytest.mark.parametrize(
    "text",
    ["Königstr. in Mitte", "KOENIGSTRASSE, Mitte", "konigstrasse, mitte", "an der Königstraße, Mitte, Stuttgart"],
)
def test_german_names(text) -> None:
    match = STUTTGART.match(text)
    assert (match.street, match.neighbourhood) == ("Königstraße", "Mitte")


def test_german_sentence_between_two_streets() -> None:
    match = STUTTGART.match("Theodor-Heuss-Str. zwischen der Langen Straße und der Calwer Str.")
    assert match.street == "Theodor-Heuss-Straße"
    assert "Calwer Straße" in match.cross_streets


@pytest.mark.parametrize(
    ("text", "street"),
    [
        ("This is Forbs Avenue.", "Forbes Avenue"),
        ("This is Fobres Ave.", "Forbes Avenue"),
        ("This is Forbes Avenuee.", "Forbes Avenue"),
        ("ForbesAvenue", "Forbes Avenue"),
        ("on Saint Clar Street in East Liberty", "Saint Clair Street"),
        ("Fort Pit Boulevard", "Fort Pitt Boulevard"),
        ("This is 4th Avenue.", ""),
        ("This is Oakley Lane.", ""),
    ],
)
def test_one_mistyped_letter(text, street) -> None:
    match = TOWN.match(text)
    assert match.street == street
    assert match.how == ("fuzzy" if street else "unmatched")


def test_a_mistyped_cross_street_is_found_too() -> None:
    match = TOWN.match("Forbes Avenue, between North Craig Street and South Bouqet Street, Oakland")
    assert _parts(match) == ("Forbes Avenue", ("North Craig Street", "South Bouquet Street"), "Oakland", "")
    assert match.how == "fuzzy"


@pytest.mark.parametrize(
    ("text", "street"),
    [
        ("No, this is not Grant Street.", ""),
        ("It is not on Grant Street but on Forbes Avenue.", "Forbes Avenue"),
        ("This isn't Grant Street, it's Forbes Avenue.", "Forbes Avenue"),
        ("It was not taken on the Grant St", ""),
        ("I am not sure, but it may be Grant Street.", "Grant Street"),
        ("No, it is Grant Street.", "Grant Street"),
    ],
)
def test_denied_streets_are_not_named(text, street) -> None:
    assert TOWN.match(text).street == street


def test_between_wins_over_the_order_of_the_names() -> None:
    match = TOWN.match("We are between N Craig St and S Bouquet St on Forbes Ave, Oakland.")
    assert match.street == "Forbes Avenue"
    assert match.how == "between"
    assert TOWN.candidates(match) == [FORBES]


def test_a_name_may_begin_with_a_filler() -> None:
    gazetteer = Gazetteer([_address("The Boulevard"), _address("Toner Street"), _address("Green Lane")])
    for text in (
        "between The Boulevard and Green Lane on Toner Street",
        "on Toner Street between Green Lane and the Boulevard",
    ):
        match = gazetteer.match(text)
        assert (match.street, set(match.cross_streets)) == ("Toner Street", {"The Boulevard", "Green Lane"})


@pytest.mark.parametrize(
    "text",
    ["ここはForbes Avenueです。", "这是Forbes Ave。", "여기는 Forbes Avenue입니다", "Это Forbes Avenue."],
)
def test_a_name_among_letters_of_another_script(text) -> None:
    assert TOWN.match(text).street == "Forbes Avenue"


def test_a_name_of_a_script_without_spaces() -> None:
    gazetteer = Gazetteer([_address("中山路"), _address("南京東路")])
    assert gazetteer.match("中山路, 台北").street == "中山路"
    assert gazetteer.match("between 中山路 and 南京東路").cross_streets == ("中山路", "南京東路")


@pytest.mark.parametrize(
    "text", ["It is near Toner Street.", "near Toner Street, Oakland, Pittsburgh", "Near Toner St"]
)
def test_a_street_that_the_place_is_near_is_not_its_street(text) -> None:
    """Though "Toner Street, Oakland, Pittsburgh" is an address in full."""
    gazetteer = Gazetteer([_address("Toner Street"), _address("Toner Street", where="Oakland")])
    match = gazetteer.match(text)
    assert (match.street, match.cross_streets) == ("", ("Toner Street",))


@pytest.mark.parametrize(
    ("text", "street"),
    [
        ("This is Guest Elevator (Northeast).", "Guest Elevator (Northeast)"),
        ("near the church, guest elevator (NORTHEAST)", "Guest Elevator (Northeast)"),
        ("Fifth Avenue (Northeast)", "Fifth Avenue"),
        ("Guest Elevator, Northeast", ""),
    ],
)
def test_a_name_may_hold_a_separator(text, street) -> None:
    gazetteer = Gazetteer([_address("Guest Elevator (Northeast)"), _address("Fifth Avenue")])
    assert gazetteer.match(text).street == street


def test_cross_streets_alone_name_no_main_street() -> None:
    match = TOWN.match("It is between North Craig Street and South Bouquet Street.")
    assert (match.street, match.cross_streets) == ("", ("North Craig Street", "South Bouquet Street"))
    assert TOWN.match("It is near Fifth Avenue.").cross_streets == ("Fifth Avenue",)


def test_two_streets_in_one_sentence_the_first_counts() -> None:
    assert TOWN.match("Grant Street or Forbes Avenue").street == "Grant Street"


def test_candidates_are_those_that_fit_all_that_was_said() -> None:
    assert len(TOWN.candidates(TOWN.match("Grant Street"))) == 3
    assert len(TOWN.candidates(TOWN.match("Grant Street, Downtown"))) == 2
    assert TOWN.candidates(TOWN.match("Grant Street, near 5th Avenue, Downtown")) == [GRANT]
    assert TOWN.candidates(TOWN.match("Grant Street, near Forbes Avenue, Downtown")) == []
    assert TOWN.candidates(TOWN.match("somewhere")) == []


@given(st.text(max_size=80))
def test_any_text_is_answered(text) -> None:
    assert TOWN.match(text).how in {"template", "exact", "between", "ngram", "fuzzy", "unmatched"}


def test_names_do_not_go_across_a_comma() -> None:
    gazetteer = Gazetteer([_address("Main Street"), _address("Street Lane"), _address("Main")])
    assert gazetteer.match("Main, Street Lane").street == "Main"


def test_tokens_keep_what_was_written() -> None:
    assert plain_key("N. Craig Street") == "n craig street"
    assert [token.is_after_break for token in tokenize("Main St, Oakland (near 5th)")] == [
        False, False, True, True, False,
    ]  # fmt: skip
