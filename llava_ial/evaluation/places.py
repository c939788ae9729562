"""The pieces of street in metres: how far is what was named from where the photo was taken?"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from llava_ial.address import Address
from llava_ial.geo import FloatArray, GeoPoint, LocalFrame
from llava_ial.records import GalleryRecord


class Places:
    """Geometry and neighbours of the candidate addresses.

    Args:
        gallery: Of a data set; at least one record with a line.
    """

    def __init__(self, gallery: Sequence[GalleryRecord]) -> None:
        lon, lat = next(point for record in gallery for line in record.lines for point in line)
        self._frame = LocalFrame(GeoPoint(lat=lat, lon=lon))
        self._segments = {record.sub_street_id: self._as_segments(record) for record in gallery}
        self._adjacent = {record.sub_street_id: frozenset(record.adjacent_ids) for record in gallery}
        self._ids_of: dict[Address, list[str]] = defaultdict(list)
        for record in gallery:
            self._ids_of[record.address].append(record.sub_street_id)

    def ids_of(self, addresses: Iterable[Address]) -> list[str]:
        """The pieces of street that bear these addresses."""
        return [name for address in addresses for name in self._ids_of.get(address, [])]

    def is_adjacent(self, first: str, second: str) -> bool:
        """True if two pieces touch."""
        return second in self._adjacent.get(first, ()) or first in self._adjacent.get(second, ())

    def distance_m(self, point: GeoPoint, sub_street_id: str) -> float:
        """From a position to the nearest point of a piece, in metres."""
        at = self._frame.to_xy_m([point.lat], [point.lon])[0]  # (2,)
        start, end = self._segments[sub_street_id].swapaxes(0, 1)  # (S, 2) each
        along = end - start
        length2 = np.maximum((along**2).sum(axis=1), 1e-12)
        share = (((at - start) * along).sum(axis=1) / length2).clip(0, 1)
        nearest = start + share[:, None] * along
        return float(np.sqrt(((nearest - at) ** 2).sum(axis=1)).min())

    def mean_distance_m(self, point: GeoPoint, sub_street_ids: Sequence[str]) -> float | None:
        """The mean over several pieces that an answer may mean; None without a piece.

        The nearest of them would reward a vague answer: a street's name alone would nearly always be right.
        """
        if not sub_street_ids:
            return None
        return float(np.mean([self.distance_m(point, name) for name in sub_street_ids]))

    def gap_m(self, first: Iterable[str], second: Iterable[str]) -> float:
        """Between the middles of two sets of pieces, in metres."""
        return float(np.linalg.norm(self._middle(first) - self._middle(second)))

    def _middle(self, sub_street_ids: Iterable[str]) -> FloatArray:
        points: FloatArray = np.concatenate([self._segments[name].reshape(-1, 2) for name in sub_street_ids])
        middle: FloatArray = points.mean(axis=0)
        return middle

    def _as_segments(self, record: GalleryRecord) -> FloatArray:
        """``(S, 2, 2)``: start and end of each straight part, in metres."""
        parts = []
        for line in record.lines:
            lon, lat = np.asarray(line, dtype=np.float64).T
            xy = self._frame.to_xy_m(lat, lon)
            parts.append(np.stack([xy[:-1], xy[1:]], axis=1) if len(xy) > 1 else np.stack([xy, xy], axis=1))
        return np.concatenate(parts)
