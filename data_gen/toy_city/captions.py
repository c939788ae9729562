"""Describes what a rendered view shows, from the pixels' owners: visible facts only, never a name."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_gen.toy_city.arrays import FloatArray
from data_gen.toy_city.light import Light
from data_gen.toy_city.looks import Look
from data_gen.toy_city.plan import Plan
from data_gen.toy_city.render import Views
from data_gen.toy_city.scene import BUILDING, CAR, PERSON, TREE
from data_gen.toy_city.sprites import CAR_COLOURS

MAX_WORDS = 30
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_MATERIALS = {
    "plaster": ("plastered", "rendered"),
    "brick": ("brick",),
    "stone": ("stone",),
    "siding": ("clapboard", "wood-sided"),
    "timber": ("half-timbered", "timber-framed"),
    "panels": ("panelled", "checkered"),
}
_ROOFS = {
    "flat": ("a flat roof",),
    "gable": ("a pointed gable", "a gable"),
    "stepped": ("a stepped gable",),
    "hip": ("a {roof} hipped roof",),
    "mansard": ("a {roof} mansard roof",),
    "curved": ("a rounded gable", "a curved gable"),
    "twin": ("twin gables", "two small gables"),
}
_WINDOWS = {
    "plain": ("plain windows",),
    "cross": ("paned windows",),
    "arched": ("arched windows",),
    "tall": ("tall narrow windows",),
    "wide": ("wide windows",),
    "round": ("round windows",),
    "pair": ("paired windows",),
}
_EMBLEMS = {
    "disc": "a round dot",
    "ring": "a ring",
    "cross": "a cross",
    "bars": "bars",
    "triangle": "a triangle",
    "diamond": "a diamond",
    "waves": "waves",
}
_MURALS = {
    "circles": "ring",
    "diagonals": "diagonal stripe",
    "zigzag": "zigzag",
    "checks": "checkered",
    "sunrise": "sunburst",
    "leaves": "leafy",
}


@dataclass(frozen=True)
class _Sight:
    """A building in a view: its look, its share of the picture, and what of it can be seen."""

    look: Look
    share: float
    middle: float
    shows_top: bool
    shows_front: bool
    is_whole: bool


class _Tally:
    """Counts, per face, the pixels of one view."""

    def __init__(self, views: Views, view: int) -> None:
        self.shown: npt.NDArray[np.int32] = views.face_ids[view]
        self.faces = views.faces
        counts = np.bincount(self.shown.reshape(-1) + 3, minlength=3 + len(views.faces))
        self.water, self.sky = float(counts[0] / self.shown.size), float(counts[1] / self.shown.size)
        self.counts = counts[3:]
        self.seen = np.flatnonzero(self.counts)

    def shares(self, kind: int) -> dict[int, float]:
        """Return the share of the view of every owner of a kind that shows."""
        totals: dict[int, float] = {}
        for face in self.seen[self.faces.kind[self.seen] == kind].tolist():
            owner = int(self.faces.owner[face])
            totals[owner] = totals.get(owner, 0.0) + float(self.counts[face]) / self.shown.size
        return totals

    def count(self, kind: int, least: float) -> list[int]:
        """Return the owners of a kind that fill at least a share of the view."""
        return [owner for owner, share in self.shares(kind).items() if share >= least]


def _find_buildings(tally: _Tally, looks: tuple[Look, ...]) -> list[_Sight]:
    """List the three biggest buildings that fill at least 3 % of a view."""
    shares = tally.shares(BUILDING)
    biggest = sorted(shares, key=lambda owner: -shares[owner])[:3]
    is_building = tally.faces.kind == BUILDING
    side = tally.shown.shape[0]
    sights = []
    for owner in biggest:
        if shares[owner] < 0.03:
            continue
        own = np.flatnonzero(is_building & (tally.faces.owner == owner))
        marks = np.zeros(3 + len(tally.faces), dtype=bool)
        marks[own + 3] = True
        mask = np.take(marks, tally.shown + 3)
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        is_front = bool(tally.faces.is_front[own[tally.counts[own].argmax()]])
        is_whole = bool(columns[0] > 1 and columns[-1] < side - 2)
        middle = float((mask.sum(axis=0) * np.arange(side)).sum() / (mask.sum() * side))
        sights.append(_Sight(looks[owner], shares[owner], middle, bool(rows[0] > 1), is_front, is_whole))
    return sights


def _with_article(phrase: str) -> str:
    is_vowel = phrase[0] in "aeiou" and not phrase.startswith("one")
    return ("an " if is_vowel else "a ") + phrase


def _describe_building(sight: _Sight, pick: Callable[..., str]) -> str:
    look = sight.look
    storeys = f"{_NUMBERS[look.storeys]}-storey " if sight.shows_top else ""
    colour = f"{look.wall_name} and {look.second_name}" if look.partition else look.wall_name
    noun = pick("building", "house") if look.ground != "shop" or not sight.shows_front else "building"
    phrase = _with_article(f"{storeys}{colour} {pick(*_MATERIALS[look.material])} {noun}")
    details: list[str] = []
    if look.mural and sight.share > 0.04:
        details.append(_with_article(f"{look.mural_name} {_MURALS[look.mural]} mural"))
    if sight.shows_front and sight.share > 0.05:
        if look.awning_name:
            stripes = "striped " if look.is_striped else ""
            details.append(_with_article(f"{look.awning_name} {stripes}awning"))
        if look.sign_name:
            emblem = f" with {_EMBLEMS[look.emblem]}" if sight.is_whole and sight.share > 0.12 else ""
            details.append(_with_article(f"{look.sign_name} shop sign{emblem}"))
        if look.shutter_name and look.window != "round":
            details.append(f"{look.shutter_name} shutters")
        if sight.is_whole and look.ground != "arcade":
            details.append(_with_article(f"{look.door_name} door"))
        if look.ground == "arcade":
            details.append("dark arches")
    if sight.shows_top and sight.shows_front:
        details.append(pick(*_ROOFS[look.roof]).format(roof=look.roof_name))
    if sight.share > 0.06:
        details.append(pick(*_WINDOWS[look.window]))
    chosen = details[: 2 if sight.share > 0.2 else 1]
    return phrase + (" with " + " and ".join(chosen) if chosen else "")


def _place_words(middle: float, pick: Callable[..., str]) -> str:
    if middle < 0.38:
        return pick("on the left", "to the left", "at left")
    if middle > 0.62:
        return pick("on the right", "to the right", "at right")
    return pick("straight ahead", "in the middle", "in the centre")


def has_crossing_ahead(plan: Plan, position: FloatArray, heading_deg: float) -> bool:
    """Tell whether a crossing lies 12 to 48 m ahead, within 18 degrees of the view's axis."""
    crossings = plan.nodes[np.array(plan.degrees) > 2]
    offset = crossings - position
    distance = np.linalg.norm(offset, axis=1)
    bearing = np.degrees(np.arctan2(offset[:, 0], offset[:, 1]))
    turn = (bearing - heading_deg + 180.0) % 360.0 - 180.0
    return bool(((distance > 12.0) & (distance < 48.0) & (np.abs(turn) < 18.0)).any())


def _describe_things(tally: _Tally, light: Light, crossing: bool, pick: Callable[..., str]) -> list[str]:
    """Return phrases for water, trees, cars, people, crossing and sky, those that are there."""
    things: list[str] = []
    if tally.water > 0.012:
        things.append(pick("the river", "water beside the street", "a river"))
    if crossing:
        things.append(pick("a crossing ahead", "an intersection ahead", "a street corner ahead"))
    trees = len(tally.count(TREE, 0.006))
    if trees:
        things.append("a tree" if trees == 1 else f"{_NUMBERS[trees]} trees" if trees < 5 else "many trees")
    cars = tally.count(CAR, 0.0025)
    if cars:
        colour = list(CAR_COLOURS)[cars[0] % len(CAR_COLOURS)]
        things.append(_with_article(f"{colour} car") if len(cars) == 1 else f"{_NUMBERS[min(len(cars), 12)]} cars")
    people = len(tally.count(PERSON, 0.001))
    if people:
        things.append(pick("a person", "a pedestrian") if people == 1 else f"{_NUMBERS[min(people, 12)]} people")
    if tally.sky > 0.04:
        things.append(pick(*_sky_words(light)))
    return things


def _sky_words(light: Light) -> tuple[str, ...]:
    if light.weather == "overcast":
        return ("an overcast sky", "grey clouds", "dull light")
    if light.weather == "hazy":
        return ("a hazy sky", "haze in the distance", "milky light")
    if light.hour < 8.7 or light.hour > 17.0:
        return ("low warm sunlight", "golden light")
    if light.weather == "clear":
        return ("a clear sky", "a bright blue sky")
    return ("scattered clouds", "a partly cloudy sky")


def describe_view(
    views: Views, view: int, looks: tuple[Look, ...], light: Light, crossing: bool, rng: np.random.Generator
) -> str:
    """Write one sentence of 10 to 30 words about a view.

    Args:
        views: The rendered panorama.
        view: Number of the view.
        looks: Looks of all buildings.
        light: The capture's light.
        crossing: Whether a crossing lies ahead.
        rng: Stream of the wording.
    """

    def pick(*words: str) -> str:
        return words[int(rng.integers(len(words)))]

    tally = _Tally(views, view)
    sights = _find_buildings(tally, looks)
    phrases = [f"{_describe_building(sight, pick)} {_place_words(sight.middle, pick)}" for sight in sights]
    things = _describe_things(tally, light, crossing, pick)
    things = [things[i] for i in rng.permutation(len(things))]
    opening = pick("a street view with", "a photo of", "a street scene with", "this view shows", "there is")
    opening = opening if phrases else pick("a street view with", "a photo of an open street with", "a view of")
    parts = phrases[:1]
    for phrase in [*things[:1], *phrases[1:2], *things[1:], *phrases[2:]]:
        if _words(opening, [*parts, phrase]) <= MAX_WORDS - 2:
            parts.append(phrase)
    parts = parts or ["open grass beside the road"]
    while _words(opening, parts) < 10:
        parts.append(pick("a paved road and pavements on both sides", "an open road with pavements along it"))
    return f"{opening} {', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else f"{opening} {parts[0]}"


def _words(opening: str, parts: list[str]) -> int:
    return len(f"{opening} {' '.join(parts)}".split()) + 1
