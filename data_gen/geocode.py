"""From a position to the street it is on, offline: the nearest named street within range."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from tqdm import tqdm

from data_gen.streets import StreetMap

METHOD = "nearest_street"
_CHUNK = 100_000  # bounds memory: the candidates of one chunk are held at a time


@dataclass(frozen=True)
class NearestStreets:
    """The nearest street of each position.

    Attributes:
        street: ``(N,)`` index into the map's names, -1 where no street is in range.
        distance_m: ``(N,)`` to it; NaN without one.
        margin_m: ``(N,)`` how much farther the nearest street of another name is; NaN where no other is near.
    """

    street: npt.NDArray[np.int64]
    distance_m: npt.NDArray[np.float64]
    margin_m: npt.NDArray[np.float64]


def nearest_streets(
    xy_m: npt.NDArray[np.float64], street_map: StreetMap, max_distance_m: float, margin_range_m: float = 0.0
) -> NearestStreets:
    """Looks up the nearest named street of each position; equally near ones go by name.

    Args:
        xy_m: ``(N, 2)`` metres of the map's frame; NaN off the map.
        street_map: The streets.
        max_distance_m: A street farther away is not the photo's.
        margin_range_m: The second street is sought this much farther out, so that a margin up to it is always known.
    """
    tree = shapely.STRtree(street_map.lines)
    street = np.full(len(xy_m), -1, dtype=np.int64)
    distance_m = np.full(len(xy_m), np.nan)
    margin_m = np.full(len(xy_m), np.nan)
    for part in _chunks(len(xy_m)):
        photo, line, away_m = candidates(xy_m[part], tree, max_distance_m + margin_range_m)
        # The nearest line of each (photo, street), then the nearest street of each photo.
        photo, name, away_m = _first_of_groups(photo, street_map.street[line], away_m)
        order = np.lexsort((name, away_m, photo))
        photo, name, away_m = photo[order], name[order], away_m[order]
        first = np.flatnonzero(np.diff(photo, prepend=-1))
        has_second = np.append(np.diff(first), len(photo) - first[-1:]) > 1
        in_range = away_m[first] <= max_distance_m
        first, has_second = first[in_range], has_second[in_range]
        street[part.start + photo[first]] = name[first]
        distance_m[part.start + photo[first]] = away_m[first]
        first = first[has_second]
        margin_m[part.start + photo[first]] = away_m[first + 1] - away_m[first]
    return NearestStreets(street, distance_m, margin_m)


def candidates(
    xy_m: npt.NDArray[np.float64], tree: shapely.STRtree, max_distance_m: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """All (point, line, distance in metres) within range, as three arrays of one length."""
    known = np.flatnonzero(np.isfinite(xy_m).all(axis=1))
    points = shapely.points(xy_m[known])
    point, line = tree.query(points, predicate="dwithin", distance=max_distance_m)
    return known[point], line, shapely.distance(points[point], tree.geometries[line])


def _first_of_groups(
    photo: npt.NDArray[np.int64], name: npt.NDArray[np.int64], away_m: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    order = np.lexsort((away_m, name, photo))
    photo, name, away_m = photo[order], name[order], away_m[order]
    starts = (np.diff(photo, prepend=-1) != 0) | (np.diff(name, prepend=-1) != 0)
    return photo[starts], name[starts], away_m[starts]


def _chunks(total: int) -> Iterator[slice]:
    with tqdm(total=total, desc="finding streets", unit="photo", disable=None) as bar:
        for start in range(0, total, _CHUNK):
            part = slice(start, min(start + _CHUNK, total))
            yield part
            bar.update(part.stop - part.start)
