"""Forty answers about four photos, and every metric of them worked out by hand.

The map, in metres east and north of its origin:

    A  Grant Street, Downtown, between Third and Fourth Avenue          from (0, 0) to (100, 0)
    B  Grant Street, Downtown, between Fourth and Fort Pitt Boulevard   from (100, 0) to (200, 0); touches A
    M  Grant Street, Millvale                                           from (0, 5000) to (100, 5000)
    F  Forbes Avenue, Oakland, between Craig and Bouquet Street         from (1000, 0) to (1000, 100)

Photo a stands at (50, 10), b at (150, 10), m at (50, 4960), f at (970, 50); a and b are of one panorama.
"""

from llava_ial.address import Address, CrossStreet, format_canonical, format_spoken, format_verbose
from llava_ial.evaluation.metrics import Truth
from llava_ial.evaluation.places import Places
from llava_ial.gazetteer import Gazetteer
from llava_ial.geo import GeoPoint, LocalFrame
from llava_ial.records import GalleryRecord, PredictionRecord

_FRAME = LocalFrame(GeoPoint(lat=40.44, lon=-80.0))


def _address(street: str, where: str, *crossings: str) -> Address:
    return Address(street, where, tuple(CrossStreet(name) for name in crossings), "Pittsburgh")


def _point(east: float, north: float) -> GeoPoint:
    lat, lon = _FRAME.to_lat_lon([[east, north]])
    return GeoPoint(lat=float(lat[0]), lon=float(lon[0]))


def _piece(name: str, address: Address, start: tuple[float, float], end: tuple[float, float], touches: list[str]):
    line = [[point.lon, point.lat] for point in (_point(*start), _point(*end))]
    return GalleryRecord(
        name, address, format_verbose(address), format_canonical(address), format_spoken(address), address.street,
        address.neighbourhood, [line], 1, touches,
    )  # fmt: skip


GALLERY = [
    _piece("A", _address("Grant Street", "Downtown", "Third Avenue", "Fourth Avenue"), (0, 0), (100, 0), ["B"]),
    _piece(
        "B", _address("Grant Street", "Downtown", "Fourth Avenue", "Fort Pitt Boulevard"), (100, 0), (200, 0), ["A"]
    ),
    _piece("M", _address("Grant Street", "Millvale"), (0, 5000), (100, 5000), []),
    _piece("F", _address("Forbes Avenue", "Oakland", "Craig Street", "Bouquet Street"), (1000, 0), (1000, 100), []),
]
GAZETTEER = Gazetteer([record.address for record in GALLERY])
PLACES = Places(GALLERY)
TRUTHS = {
    "a": Truth(GALLERY[0].address, "panorama-1", "A", _point(50, 10)),
    "b": Truth(GALLERY[1].address, "panorama-1", "B", _point(150, 10)),
    "m": Truth(GALLERY[2].address, "panorama-2", "M", _point(50, 4960)),
    "f": Truth(GALLERY[3].address, "panorama-3", "F", _point(970, 50)),
}
_IS = "The address of this photo might be {}."
_ON_A = _IS.format("Grant Street, between Third Avenue and Fourth Avenue, Downtown, Pittsburgh")
_YES, _NO = "Yes, this is Grant Street.", "No, this is not Grant Street."
# Photo, kind, answer; what was expected (only yes and no read it); how the generation ended.
ANSWERS = [
    ("a", "where", _ON_A),  # street, piece, neighbourhood, city; 10 m
    ("b", "where", _ON_A),  # street, adjacent block, neighbourhood, city; (50, 10) from its end: 50.99 m
    # street, wrong block (not on the map: nonexistent, no distance), neighbourhood, city
    ("a", "where", _IS.format("Grant Street, between Third Avenue and Bouquet Street, Downtown, Pittsburgh")),
    ("f", "where", _IS.format("Forbes Avenue, Downtown, Pittsburgh")),  # city; nonexistent
    # No hit: two streets bear the name; A 4960 m, B 4960.25 m, M 40 m: 3320.08 m
    ("m", "where", "This is Grant Street."),
    ("m", "where", "I do not know."),  # refused
    ("f", "where", "", "", "error"),  # failed
    ("a", "where", _IS.format("Elm Street, Downtown, Pittsburgh")),  # neighbourhood, city; nonexistent
    ("a", "where", "Looks like Grant St in Downtown to me"),  # street, neighbourhood; A 10 m, B 50.99 m: 30.50 m
    ("f", "where", "FORBES AVE, BETWEEN CRAIG ST AND BOUQUET ST"),  # street, piece; 30 m
    ("f", "where", "Forbez Avenue, Oakland"),  # street, neighbourhood; 30 m
    ("b", "where", "Not Forbes Avenue but Grant Street, Downtown."),  # street, neighbourhood; 30.50 m
    ("b", "where", "Purple monkeys."),  # unparsed
    ("m", "where", _IS.format("Grant Street, Millvale, Pittsburgh")),  # street, piece, neighbourhood, city; 40 m
    ("a", "where", "Sorry, I cannot help with locations."),  # refused
    ("f", "where", _IS.format("Grant Street, Millvale, Pittsburgh")),  # city; (870, 4950): 5025.87 m
    ("a", "street", "This is Grant St."),  # right
    ("f", "street", "This is not Forbes Avenue."),  # unparsed
    ("f", "street", "Forbes Avenue"),  # right
    ("b", "street", "Forbes Avenue"),  # wrong
    ("m", "street", "It might be Grant Street, I think."),  # right
    ("a", "street", "I don't know"),  # unparsed
    ("a", "between", "It is between 4th Avenue and Third Avenue."),  # right
    ("b", "between", "It is near Third Avenue."),  # wrong
    ("f", "between", "It is between Craig Street and Bouquet Street."),  # right
    ("b", "between", "between Fort Pitt Blvd and Fourth Ave"),  # right
    ("b", "between", "no idea"),  # unparsed
    ("f", "neighbourhood", "The neighbourhood is Oakland."),  # right
    ("a", "neighbourhood", "The neighbourhood is Oakland."),  # wrong
    ("b", "neighbourhood", "Downtown"),  # right
    ("m", "neighbourhood", "The neighbourhood is Grant Street."),  # wrong
    ("f", "city", "The city is London."),  # wrong
    ("a", "city", "The city is Pittsburgh."),  # right
    ("a", "yes_no", "Yes, this is Grant Street.", _YES),  # right
    ("f", "yes_no", "yes", _NO, "length"),  # wrong, and cut
    ("f", "yes_no", "No.", _NO),  # right
    ("b", "yes_no", "Perhaps.", _YES),  # unparsed
    ("m", "yes_no", "NO, never", "No, this is not Forbes Avenue."),  # right
    ("a", "yes_no", "", _YES, "error"),  # failed
    ("b", "yes_no", "Yes", _YES),  # right
]
EXPECTED = {
    "street_accuracy": (8, 15),
    "sub_street_accuracy": (3, 15),
    "wrong_block_rate": (2, 15),
    "adjacent_block_rate": (1, 15),
    "neighbourhood_accuracy": (8, 15),
    "city_accuracy": (7, 15),
    "nonexistent_address_rate": (3, 15),
    "refused_rate": (2, 15),
    "within_50_m": (6, 15),
    "within_100_m": (7, 15),
    "within_200_m": (7, 15),
    "unparsed_rate": (5, 38),
    "street_question_accuracy": (3, 6),
    "between_question_accuracy": (3, 5),
    "neighbourhood_question_accuracy": (2, 4),
    "city_question_accuracy": (1, 2),
    "yes_no_question_accuracy": (4, 6),
    "yes_no_balanced_accuracy": (4, 6),  # two of three yes, two of three no
    "yes_recall": (2, 3),
    "no_recall": (2, 3),
}
# Of the nine distances 10, 30, 30, 30.50, 30.50, 40, 50.99, 3320.08, 5025.87.
MEDIAN_M, P90_M = 30.50, 3320.08 + 0.2 * (5025.87 - 3320.08)


def prediction(number: int, photo: str, task: str, answer: str, expected: str = "", end: str = "stop"):
    """A line of predictions.jsonl."""
    return PredictionRecord(f"q{number}", photo, task, f"wording {number}?", expected, answer, end)


def predictions() -> list[PredictionRecord]:
    """All forty."""
    return [prediction(number, *row) for number, row in enumerate(ANSWERS)]
