"""Places buildings along both sides of every street, wherever the ground is free."""

from dataclasses import dataclass

import numpy as np

from data_gen.toy_city.arrays import Float32Array, FloatArray, random_stream
from data_gen.toy_city.ground import GRASS, Ground, pavement_half_m
from data_gen.toy_city.looks import Look, Style, draw_look, draw_style
from data_gen.toy_city.plan import Plan, SubStreet

SHADOW_CELL_M = 1.0
_QUARTERS = 2


@dataclass(frozen=True)
class Lot:
    """A building's footprint and look.

    Attributes:
        origin: (2,) left end of the front, seen from the street.
        direction: (2,) unit vector along the front, to the right.
        width_m: Length of the front.
        depth_m: Depth behind the front.
        look: What it looks like.
    """

    origin: FloatArray
    direction: FloatArray
    width_m: float
    depth_m: float
    look: Look

    def corners(self) -> FloatArray:
        """Return (4, 2) corners: front left, front right, back right, back left, seen from the street."""
        inward = np.array([-self.direction[1], self.direction[0]]) * self.depth_m
        right = self.origin + self.direction * self.width_m
        return np.stack([self.origin, right, right + inward, self.origin + inward])


class _Builder:
    """Keeps what is already built on while buildings are added."""

    def __init__(self, plan: Plan, ground: Ground) -> None:
        west, south, east, north = plan.bounds
        self.plan, self.ground = plan, ground
        self.corner = np.array([west, south])
        shape = (int((north - south) / SHADOW_CELL_M) + 2, int((east - west) / SHADOW_CELL_M) + 2)
        self.heights: Float32Array = np.zeros(shape, dtype=np.float32)
        self.lots: list[Lot] = []
        self.centres, self.styles = _draw_quarters(plan)

    def style_at(self, neighbourhood: int, position: FloatArray) -> Style:
        """Return the style of the quarter that holds a position."""
        distance = np.linalg.norm(self.centres[neighbourhood] - position, axis=1)
        return self.styles[neighbourhood][int(distance.argmin())]

    def _samples(self, lot: Lot, margin: float) -> FloatArray:
        across = np.arange(margin, lot.width_m - margin + 0.01, 0.9)
        inward = np.arange(margin, lot.depth_m - margin + 0.01, 0.9)
        normal = np.array([-lot.direction[1], lot.direction[0]])
        grid = across[:, None, None] * lot.direction + inward[None, :, None] * normal
        points: FloatArray = lot.origin + grid.reshape(-1, 2)
        return points

    def _cells(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        cell = ((points - self.corner) / SHADOW_CELL_M).astype(np.int64)
        cell = np.clip(cell, 0, np.array(self.heights.shape)[::-1] - 1)
        return cell[:, 1], cell[:, 0]

    def is_free(self, lot: Lot) -> bool:
        """Tell whether nothing stands or runs where the lot would be."""
        points = self._samples(lot, 0.5)
        on_grass = self.ground.at(points[:, 0], points[:, 1]) == GRASS
        return bool(on_grass.all()) and not self.heights[self._cells(points)].any()

    def build(self, lot: Lot) -> None:
        """Add a building."""
        self.heights[self._cells(self._samples(lot, 0.3))] = lot.look.eaves_m + 0.4 * lot.look.roof_m
        self.lots.append(lot)


def _draw_quarters(plan: Plan) -> tuple[list[FloatArray], list[list[Style]]]:
    centres, styles = [], []
    for number, ring in enumerate(plan.neighbourhoods):
        rng = random_stream(plan.seed, "quarters", number)
        centres.append(rng.uniform(ring.min(axis=0), ring.max(axis=0), size=(_QUARTERS, 2)))
        styles.append([draw_style(plan.seed, number * _QUARTERS + quarter) for quarter in range(_QUARTERS)])
    return centres, styles


def _point(part: SubStreet, lengths: FloatArray, distance: float) -> FloatArray:
    starts = np.concatenate([[0.0], np.cumsum(lengths)])
    x = np.interp(distance, starts, part.line[:, 0])
    y = np.interp(distance, starts, part.line[:, 1])
    return np.array([x, y])


def _fill_side(builder: _Builder, part: SubStreet, is_left: bool, rng: np.random.Generator) -> None:
    """Walk along one side of a sub-street and build wherever a lot fits."""
    lengths = np.linalg.norm(np.diff(part.line, axis=0), axis=1)
    total, travelled = float(lengths.sum()), 0.0
    while travelled < total - 6.0:
        width = min(float(rng.uniform(8.5, 17.0)), total - travelled)
        first, second = (_point(part, lengths, d) for d in (travelled, travelled + width))
        if is_left:
            first, second = second, first
        chord = second - first
        width = float(np.linalg.norm(chord))
        direction = chord / width
        setback = float(rng.choice([0.2, 0.2, 0.4, 1.2, 2.4]))
        right = np.array([direction[1], -direction[0]])
        origin = first - right * (pavement_half_m(part) + setback)
        style = builder.style_at(part.neighbourhood, origin)
        look = draw_look(builder.plan.seed, len(builder.lots), style)
        for depth in (12.0, 9.0, 6.0):
            lot = Lot(origin, direction, width, depth, look)
            if builder.is_free(lot):
                builder.build(lot)
                travelled += width + (float(rng.uniform(2.5, 7.0)) if rng.random() < 0.14 else 0.0)
                break
        else:
            travelled += 1.0


def place_buildings(plan: Plan, ground: Ground) -> tuple[list[Lot], Float32Array, FloatArray]:
    """Build the town.

    Args:
        plan: Streets; they are visited in a random order, so that corners fall to either street.
        ground: Surfaces; buildings stand on grass only.

    Returns:
        The buildings, the (H, W) raster of their heights, and each sub-street's (S,) share of street trees,
        which is that of the quarter at its middle.
    """
    builder = _Builder(plan, ground)
    rng = random_stream(plan.seed, "lots")
    for index in rng.permutation(len(plan.sub_streets)):
        for is_left in (True, False):
            _fill_side(builder, plan.sub_streets[int(index)], is_left, rng)
    middles = [part.line[len(part.line) // 2] for part in plan.sub_streets]
    shares = [
        builder.style_at(part.neighbourhood, middle).tree_share
        for part, middle in zip(plan.sub_streets, middles, strict=True)
    ]
    return builder.lots, builder.heights, np.array(shares)
