"""The ground as a raster of surface classes: grass, water, quays, pavements, roads and their markings."""

from dataclasses import dataclass

import numpy as np

from data_gen.toy_city.arrays import BoolArray, ByteArray, Float32Array, FloatArray, IntArray
from data_gen.toy_city.plan import Plan, SubStreet

GRASS, WATER, QUAY, PAVEMENT, MEDIAN, ROAD, MARKING = range(7)
RESOLUTION_M = 0.25
ROAD_HALF_M, PAVEMENT_HALF_M = 4.0, 7.0
DUAL_MEDIAN_HALF_M, DUAL_ROAD_HALF_M, DUAL_PAVEMENT_HALF_M = 1.5, 9.0, 12.0
DUAL_LANE_M = 5.2


def pavement_half_m(part: SubStreet) -> float:
    """Distance from the centre line to the outer edge of the pavement, in metres."""
    return DUAL_PAVEMENT_HALF_M if part.is_dual else PAVEMENT_HALF_M


@dataclass(frozen=True)
class Ground:
    """Surface classes on a raster; a higher class covers a lower one.

    Attributes:
        classes: (H, W) uint8; row 0 is the south, column 0 the west.
        west: World x of the raster's corner.
        south: World y of the raster's corner.
    """

    classes: ByteArray
    west: float
    south: float

    def cells(self, x: FloatArray, y: FloatArray) -> tuple[IntArray, IntArray]:
        """Return row and column of world positions, clamped to the raster."""
        rows, columns = self.classes.shape
        row = ((y - self.south) * (1.0 / RESOLUTION_M)).astype(np.int64)
        column = ((x - self.west) * (1.0 / RESOLUTION_M)).astype(np.int64)
        return np.clip(row, 0, rows - 1), np.clip(column, 0, columns - 1)

    def at(self, x: FloatArray, y: FloatArray) -> ByteArray:
        """Return the classes at world positions."""
        found: ByteArray = self.classes[self.cells(x, y)]
        return found

    def at_offset(self, east: Float32Array, north: Float32Array) -> ByteArray:
        """Return the classes at positions given in metres from the raster's corner; fast, for many pixels."""
        rows, columns = self.classes.shape
        row = np.clip((north * np.float32(1.0 / RESOLUTION_M)).astype(np.int32), 0, rows - 1)
        column = np.clip((east * np.float32(1.0 / RESOLUTION_M)).astype(np.int32), 0, columns - 1)
        found: ByteArray = np.take(self.classes.reshape(-1), row.astype(np.int64) * columns + column)
        return found


def build_ground(plan: Plan) -> Ground:
    """Paint the whole ground of a plan."""
    west, south, east, north = plan.bounds
    shape = (round((north - south) / RESOLUTION_M) + 1, round((east - west) / RESOLUTION_M) + 1)
    ground = Ground(np.zeros(shape, dtype=np.uint8), west, south)
    for first, second in zip(plan.river[:-1], plan.river[1:], strict=True):
        _paint_band(ground, first, second, ((QUAY, plan.river_half_m + 3.5), (WATER, plan.river_half_m)))
    _keep_water(ground)
    for part in plan.sub_streets:
        _paint_street(ground, plan, part)
    return ground


def _keep_water(ground: Ground) -> None:
    """Where the river's pieces overlap, water wins over the quay (its class number is lower)."""
    is_water = ground.classes >= 128
    ground.classes[is_water] = WATER


def _window(ground: Ground, first: FloatArray, second: FloatArray, reach: float) -> tuple[slice, slice]:
    low, high = np.minimum(first, second) - reach, np.maximum(first, second) + reach
    row, column = ground.cells(np.array([low[0], high[0]]), np.array([low[1], high[1]]))
    return slice(int(row[0]), int(row[1]) + 1), slice(int(column[0]), int(column[1]) + 1)


def _frame(
    ground: Ground, first: FloatArray, second: FloatArray, reach: float
) -> tuple[tuple[slice, slice], FloatArray, FloatArray, FloatArray]:
    """Return the window around a piece of line, with along, across and distance (metres) of every cell in it."""
    window = _window(ground, first, second, reach)
    y = ground.south + (np.arange(window[0].start, window[0].stop) + 0.5)[:, None] * RESOLUTION_M
    x = ground.west + (np.arange(window[1].start, window[1].stop) + 0.5)[None, :] * RESOLUTION_M
    length = float(np.linalg.norm(second - first))
    dx, dy = (second - first) / max(length, 1e-9)
    along = (x - first[0]) * dx + (y - first[1]) * dy
    across = (y - first[1]) * dx - (x - first[0]) * dy
    beyond = np.maximum(np.maximum(-along, along - length), 0.0)
    return window, along, across, np.hypot(beyond, across)


def _paint_band(ground: Ground, first: FloatArray, second: FloatArray, bands: tuple[tuple[int, float], ...]) -> None:
    window, _, _, distance = _frame(ground, first, second, max(half for _, half in bands))
    cells = ground.classes[window]
    for kind, half in bands:
        code = 128 if kind == WATER else kind
        np.maximum(cells, np.where(distance <= half, code, 0).astype(np.uint8), out=cells)


def _paint_street(ground: Ground, plan: Plan, part: SubStreet) -> None:
    lengths = np.linalg.norm(np.diff(part.line, axis=0), axis=1)
    starts = np.concatenate([[0.0], np.cumsum(lengths)])
    crossings = plan.degrees[part.start] > 2, plan.degrees[part.end] > 2
    for i in range(len(lengths)):
        frame = _frame(ground, part.line[i], part.line[i + 1], pavement_half_m(part) + 1.0)
        window, along, across, distance = frame
        on_piece = (along >= -0.3) & (along <= lengths[i] + 0.3)
        if part.is_dual:
            code = _dual_classes(np.where(on_piece, np.abs(across), 99.0))
        else:
            code = np.where(distance <= ROAD_HALF_M, ROAD, np.where(distance <= PAVEMENT_HALF_M, PAVEMENT, GRASS))
        travelled = along + starts[i]
        is_marked = on_piece & _is_marked(travelled, across, float(starts[-1]), part.is_dual, crossings)
        code = np.where(is_marked & (code == ROAD), MARKING, code)
        cells = ground.classes[window]
        np.maximum(cells, code.astype(np.uint8), out=cells)


def _dual_classes(off: FloatArray) -> IntArray:
    code = np.where(off <= DUAL_ROAD_HALF_M, ROAD, np.where(off <= DUAL_PAVEMENT_HALF_M, PAVEMENT, GRASS))
    return np.where(off <= DUAL_MEDIAN_HALF_M, MEDIAN, code).astype(np.int64)


def _is_marked(
    travelled: FloatArray, across: FloatArray, length: float, is_dual: bool, crossings: tuple[bool, bool]
) -> BoolArray:
    """Dashed centre lines away from the crossings, zebra stripes right before them."""
    off = np.abs(np.abs(across) - DUAL_LANE_M) if is_dual else np.abs(across)
    inner = (travelled > 14.0) & (travelled < length - 14.0)
    dashes = inner & (off < 0.14) & (travelled % 6.0 < 3.0)
    stripes = np.floor(across / 0.6) % 2 == 0
    zebra = np.zeros_like(dashes)
    if crossings[0]:
        zebra |= (travelled > 8.4) & (travelled < 11.2)
    if crossings[1]:
        zebra |= (length - travelled > 8.4) & (length - travelled < 11.2)
    marked: BoolArray = dashes | (zebra & stripes)
    return marked
