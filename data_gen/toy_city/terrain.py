"""The ground plan's shape: the warp into world coordinates, the river and the neighbourhood borders."""

import itertools

import numpy as np

from data_gen.toy_city.arrays import FloatArray, random_stream
from data_gen.toy_city.lattice import Lattice

_OUTSKIRTS_M = 95.0


class Terrain:
    """The warp from (u, v) to the world, the river and the neighbourhood borders."""

    def __init__(self, seed: int, lattice: Lattice) -> None:
        rng = random_stream(seed, "terrain")
        self.lattice = lattice
        self.river_half_m = float(rng.uniform(13.0, 17.0))
        self._angle = float(rng.uniform(-0.6, 0.6))
        self._amplitude_m = rng.uniform(9.0, 17.0, size=2)
        self._wave_m = rng.uniform(330.0, 520.0, size=2)
        self._phase = rng.uniform(0.0, 2 * np.pi, size=4)
        self._meander_m = float(rng.uniform(6.0, 11.0))
        self._meander_wave_m = float(rng.uniform(300.0, 480.0))
        low, high = lattice.low, lattice.high
        self.west, self.south = (low - _OUTSKIRTS_M).tolist()
        self.east, self.north = (high + _OUTSKIRTS_M).tolist()

    def to_world(self, points: FloatArray) -> FloatArray:
        """Bend (..., 2) lattice coordinates into world metres."""
        u, v = points[..., 0], points[..., 1]
        a, b = self._amplitude_m
        x = u + a * np.sin(2 * np.pi * v / self._wave_m[0] + self._phase[0])
        y = v + b * np.sin(2 * np.pi * u / self._wave_m[1] + self._phase[1])
        cos, sin = np.cos(self._angle), np.sin(self._angle)
        return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)

    def river_u(self, v: FloatArray) -> FloatArray:
        """Return the u of the river's centre at each v."""
        swing: FloatArray = np.sin(2 * np.pi * v / self._meander_wave_m + self._phase[2])
        return self.lattice.river_u + self._meander_m * swing

    def borders(self, points: FloatArray) -> list[FloatArray]:
        """Return one signed distance per neighbourhood border: first across (u), then along (v), sorted."""
        u, v = points[..., 0], points[..., 1]
        across = [(self.lattice.river_u, u - self.river_u(v))]
        across += [(border, u - border) for border in self.lattice.column_borders_u]
        along = [v - border for border in self.lattice.row_borders_v]
        return [distance for _, distance in sorted(across, key=lambda item: item[0])] + along

    def cell(self, point: FloatArray) -> int:
        """Return the number of the neighbourhood that holds a point."""
        signs = [bool(distance > 0) for distance in self.borders(point)]
        num_across = 1 + len(self.lattice.column_borders_u)
        return sum(signs[:num_across]) + (num_across + 1) * sum(signs[num_across:])

    def banks(self, points: FloatArray) -> list[FloatArray]:
        """Return signed distances to the two ends of a bridge."""
        off = points[..., 0] - self.river_u(points[..., 1])
        reach = self.river_half_m + 4.0
        return [off - reach, off + reach]

    def polygons(self) -> tuple[FloatArray, ...]:
        """Return the neighbourhoods' closed rings in world metres, in the order of `cell`."""
        rows = [self.south, *self.lattice.row_borders_v, self.north]
        inner = sorted([self.lattice.river_u, *self.lattice.column_borders_u])
        columns = [self.west, *inner, self.east]
        rings = []
        for south, north in itertools.pairwise(rows):
            v = np.linspace(south, north, max(2, round((north - south) / 25.0)))
            for west, east in itertools.pairwise(columns):
                left, right = (self._side(border, v) for border in (west, east))
                top = np.linspace(left[-1], right[-1], 16)
                bottom = np.linspace(right[0], left[0], 16)
                rings.append(self.to_world(np.concatenate([left, top[1:-1], right[::-1], bottom[1:]])))
        return tuple(rings)

    def _side(self, border: float, v: FloatArray) -> FloatArray:
        u = self.river_u(v) if border == self.lattice.river_u else np.full_like(v, border)
        return np.stack([u, v], axis=-1)
