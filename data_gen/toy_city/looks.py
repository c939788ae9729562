"""What a building looks like: parameters drawn one by one per building, never from its street.

A neighbourhood is split into quarters; a quarter has a style, which only shifts how likely colours, materials,
heights and roofs are. Parallel streets of one quarter therefore look alike, and only the single buildings,
each a draw from a rich space, tell them apart.
"""

from dataclasses import dataclass

import numpy as np

from data_gen.toy_city.arrays import Colour, FloatArray, random_stream

WALL_COLOURS: dict[str, Colour] = {
    "white": (226, 224, 216),
    "cream": (226, 208, 166),
    "yellow": (222, 184, 88),
    "orange": (208, 132, 70),
    "red": (172, 66, 54),
    "pink": (216, 152, 150),
    "purple": (138, 108, 152),
    "blue": (92, 126, 176),
    "light blue": (158, 192, 208),
    "teal": (74, 140, 138),
    "green": (110, 146, 92),
    "olive": (148, 142, 96),
    "brown": (134, 94, 70),
    "grey": (146, 146, 146),
    "dark grey": (88, 90, 98),
}
ACCENT_COLOURS: dict[str, Colour] = {
    "white": (240, 240, 236),
    "yellow": (244, 200, 40),
    "orange": (238, 128, 30),
    "red": (204, 34, 40),
    "pink": (234, 104, 150),
    "purple": (122, 58, 152),
    "blue": (34, 80, 182),
    "light blue": (90, 178, 222),
    "green": (32, 132, 66),
    "brown": (104, 62, 36),
    "black": (36, 36, 40),
}
ROOF_COLOURS: dict[str, Colour] = {
    "red": (160, 72, 52),
    "brown": (112, 80, 62),
    "grey": (112, 114, 120),
    "dark grey": (66, 70, 80),
    "green": (88, 132, 112),
}
MATERIALS = ("plaster", "brick", "stone", "siding", "timber", "panels")
ROOFS = ("flat", "gable", "stepped", "hip", "mansard", "curved", "twin")
WINDOWS = ("plain", "cross", "arched", "tall", "wide", "round", "pair")
GROUNDS = ("shop", "door", "door", "garage", "arcade")
EMBLEMS = ("disc", "cross", "bars", "triangle", "ring", "diamond", "waves")
PARTITIONS = ("upper", "bands", "flank", "crown")
MURALS = ("circles", "diagonals", "zigzag", "checks", "sunrise", "leaves")


@dataclass(frozen=True)
class Style:
    """Tastes of a quarter: weights over the choices, and how tall it builds."""

    walls: FloatArray
    materials: FloatArray
    roofs: FloatArray
    windows: FloatArray
    storeys: float
    shop_share: float
    tree_share: float


@dataclass(frozen=True)
class Look:
    """Everything that is painted on one building; colours are named so that captions can speak of them.

    Attributes:
        number: Seed of the painter's finer choices.
        wall_name: Colour word of the wall.
        wall: Wall colour.
        partition: One of `PARTITIONS`: which parts of the wall have the second colour, or none.
        second_name: Colour word of the second colour.
        second: Second colour of the wall.
        material: One of `MATERIALS`.
        storeys: Number of storeys, the ground floor included.
        storey_m: Height of a storey in metres.
        roof: One of `ROOFS`.
        roof_name: Colour word of the roof.
        roof_colour: Roof colour.
        roof_m: Height of the roof above the eaves in metres.
        window: One of `WINDOWS`.
        bay_m: Width of a window bay in metres.
        frame: Window frames and trims.
        glass: Window glass.
        shutter_name: Colour word of the shutters, or none.
        shutter: Colour of the shutters.
        ground: One of `GROUNDS`.
        door_name: Colour word of the door.
        door: Door colour.
        door_place: Where the door stands, as a share of the width.
        awning_name: Colour word of the awning, or none.
        awning: Awning colour.
        is_striped: Whether the awning is striped with white.
        sign_name: Colour word of the shop sign, or none.
        sign: Sign colour.
        emblem: One of `EMBLEMS`, drawn on the sign.
        emblem_colour: Colour of the emblem.
        mural: One of `MURALS`, or none.
        mural_name: Main colour word of the mural.
        mural_colours: Colours of the mural.
        balcony: Whether the upper floors have balconies.
        base_m: Height of a coloured base in metres, 0 for none.
        base: Colour of the base.
    """

    number: int
    wall_name: str
    wall: Colour
    partition: str | None
    second_name: str
    second: Colour
    material: str
    storeys: int
    storey_m: float
    roof: str
    roof_name: str
    roof_colour: Colour
    roof_m: float
    window: str
    bay_m: float
    frame: Colour
    glass: Colour
    shutter_name: str | None
    shutter: Colour
    ground: str
    door_name: str
    door: Colour
    door_place: float
    awning_name: str | None
    awning: Colour
    is_striped: bool
    sign_name: str | None
    sign: Colour
    emblem: str
    emblem_colour: Colour
    mural: str | None
    mural_name: str
    mural_colours: tuple[Colour, Colour, Colour]
    balcony: bool
    base_m: float
    base: Colour

    @property
    def eaves_m(self) -> float:
        """Height of the walls in metres."""
        return self.storeys * self.storey_m


def draw_style(seed: int, quarter: int) -> Style:
    """Draw the tastes of a quarter."""
    rng = random_stream(seed, "style", quarter)
    return Style(
        walls=_normalise(rng.gamma(1.6, 1.0, len(WALL_COLOURS)) + 0.5),
        materials=_normalise(rng.gamma(1.0, 1.0, len(MATERIALS)) + 0.25),
        roofs=_normalise(rng.gamma(1.0, 1.0, len(ROOFS)) + 0.25),
        windows=_normalise(rng.gamma(1.2, 1.0, len(WINDOWS)) + 0.3),
        storeys=float(rng.uniform(2.2, 3.8)),
        shop_share=float(rng.uniform(0.25, 0.6)),
        tree_share=float(rng.uniform(0.08, 0.24)),
    )


def _normalise(weights: FloatArray) -> FloatArray:
    shares: FloatArray = weights / weights.sum()
    return shares


def _jitter(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    shade = rng.normal(0.0, spread)
    red, green, blue = (int(np.clip(c + shade + rng.normal(0.0, spread * 0.6), 12, 246)) for c in colour)
    return red, green, blue


def _pick(rng: np.random.Generator, colours: dict[str, Colour], spread: float = 7.0) -> tuple[str, Colour]:
    name = list(colours)[int(rng.integers(len(colours)))]
    return name, _jitter(rng, colours[name], spread)


def _choose(rng: np.random.Generator, names: tuple[str, ...], weights: FloatArray) -> str:
    return names[int(rng.choice(len(names), p=weights))]


def draw_look(seed: int, number: int, style: Style) -> Look:
    """Draw one building's look.

    Args:
        seed: Seed of the city.
        number: Number of the building.
        style: Tastes of the quarter it stands in.
    """
    rng = random_stream(seed, "building", number)
    wall_name = _choose(rng, tuple(WALL_COLOURS), style.walls)
    roof_name, roof_colour = _pick(rng, ROOF_COLOURS)
    roof = _choose(rng, ROOFS, style.roofs)
    roof_m = {"flat": 0.7, "mansard": 3.0, "curved": 2.6, "twin": 2.8}.get(roof, 3.6) * float(rng.uniform(0.85, 1.25))
    is_light = bool(rng.random() < 0.7)
    frame = _jitter(rng, (236, 232, 222) if is_light else (70, 58, 52), 8.0)
    if rng.random() < 0.25:
        frame = _pick(rng, ACCENT_COLOURS)[1]
    shutter_name, shutter = _pick(rng, ACCENT_COLOURS)
    is_shop = bool(rng.random() < style.shop_share)
    ground = "shop" if is_shop else GROUNDS[int(rng.integers(1, len(GROUNDS)))]
    door_name, door = _pick(rng, ACCENT_COLOURS)
    awning_name, awning = _pick(rng, ACCENT_COLOURS)
    sign_name, sign = _pick(rng, ACCENT_COLOURS)
    emblem_colour = _pick(rng, ACCENT_COLOURS)[1]
    if sum(abs(a - b) for a, b in zip(sign, emblem_colour, strict=True)) < 150:
        emblem_colour = (244, 244, 238) if sum(sign) < 420 else (30, 30, 34)
    second_name = _choose(rng, tuple(WALL_COLOURS), style.walls)
    is_parted = second_name != wall_name and bool(rng.random() < 0.45)
    mural_name, mural_colour = _pick(rng, ACCENT_COLOURS)
    return Look(
        number=int(rng.integers(2**31)),
        wall_name=wall_name,
        wall=_jitter(rng, WALL_COLOURS[wall_name], 13.0),
        partition=PARTITIONS[int(rng.integers(len(PARTITIONS)))] if is_parted else None,
        second_name=second_name,
        second=_jitter(rng, WALL_COLOURS[second_name], 13.0),
        material=_choose(rng, MATERIALS, style.materials),
        storeys=int(np.clip(round(rng.normal(style.storeys, 0.95)), 1, 6)),
        storey_m=float(rng.uniform(2.9, 3.6)),
        roof=roof,
        roof_name=roof_name,
        roof_colour=roof_colour,
        roof_m=roof_m,
        window=_choose(rng, WINDOWS, style.windows),
        bay_m=float(rng.uniform(1.9, 3.6)),
        frame=frame,
        glass=_jitter(rng, (70, 86, 104), 14.0),
        shutter_name=shutter_name if rng.random() < 0.28 else None,
        shutter=shutter,
        ground=ground,
        door_name=door_name,
        door=door,
        door_place=float(rng.uniform(0.12, 0.88)),
        awning_name=awning_name if rng.random() < (0.62 if is_shop else 0.08) else None,
        awning=awning,
        is_striped=bool(rng.random() < 0.5),
        sign_name=sign_name if rng.random() < (0.85 if is_shop else 0.06) else None,
        sign=sign,
        emblem=EMBLEMS[int(rng.integers(len(EMBLEMS)))],
        emblem_colour=emblem_colour,
        mural=MURALS[int(rng.integers(len(MURALS)))] if rng.random() < 0.15 else None,
        mural_name=mural_name,
        mural_colours=(mural_colour, _pick(rng, ACCENT_COLOURS)[1], _pick(rng, ACCENT_COLOURS)[1]),
        balcony=bool(rng.random() < 0.2),
        base_m=float(rng.uniform(0.5, 3.0)) if rng.random() < 0.5 else 0.0,
        base=_pick(rng, WALL_COLOURS, 10.0)[1],
    )
