"""Positions on the earth: WGS84 degrees, UTM metres, distances.

Latitude stands before longitude everywhere in this project, by name where there is a choice; GeoJSON alone has it the
other way round and is turned at the door.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

EARTH_RADIUS_M = 6_371_008.8
FloatArray = npt.NDArray[np.float64]


class GeoPoint(NamedTuple):
    """A WGS84 position in degrees."""

    lat: float
    lon: float

    def is_valid(self) -> bool:
        """True for a finite position on the earth that is not (0, 0), the mark of a missing fix."""
        in_range = math.isfinite(self.lat) and math.isfinite(self.lon) and abs(self.lat) <= 90 and abs(self.lon) <= 180
        return in_range and (self.lat, self.lon) != (0.0, 0.0)


class LocalFrame:
    """Metres east and north of an origin, on the UTM plane of that origin.

    One frame serves a whole city also where the city straddles a UTM zone border: every point is forced into the
    origin's zone. The scale of UTM differs from the ground's by at most 0.1 % inside a zone.
    """

    def __init__(self, origin: GeoPoint) -> None:
        import utm  # here: what only answers questions runs without it

        self.origin = origin
        east, north, self.zone, _ = utm.from_latlon(origin.lat, origin.lon)
        self._offset = np.array([east, north], dtype=np.float64)
        self._north = origin.lat >= 0

    def to_xy_m(self, lat: npt.ArrayLike, lon: npt.ArrayLike) -> FloatArray:
        """Degrees, shapes ``(N,)``, to metres east and north of the origin, shape ``(N, 2)``."""
        import utm

        lat_array, lon_array = np.asarray(lat, dtype=np.float64).copy(), np.asarray(lon, dtype=np.float64).copy()
        if not len(lat_array):
            return np.zeros((0, 2))
        east, north, _, _ = utm.from_latlon(
            lat_array, lon_array, force_zone_number=self.zone, force_northern=self._north
        )
        return np.stack([east, north], axis=-1) - self._offset

    def to_lat_lon(self, xy_m: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Metres of this frame, shape ``(N, 2)``, to latitudes and longitudes in degrees, shapes ``(N,)``."""
        import utm

        absolute = np.asarray(xy_m, dtype=np.float64) + self._offset
        if not len(absolute):
            return np.zeros(0), np.zeros(0)
        lat, lon = utm.to_latlon(
            absolute[:, 0].copy(), absolute[:, 1].copy(), self.zone, northern=self._north, strict=False
        )
        return lat, lon


def distance_m(a: GeoPoint, b: GeoPoint) -> float:
    """Great-circle distance between two points in metres (haversine formula)."""
    lat_a, lat_b = math.radians(a.lat), math.radians(b.lat)
    half = (
        math.sin((lat_b - lat_a) / 2) ** 2
        + math.cos(lat_a) * math.cos(lat_b) * math.sin(math.radians(b.lon - a.lon) / 2) ** 2
    )
    return 2 * EARTH_RADIUS_M * math.asin(min(1.0, math.sqrt(half)))
