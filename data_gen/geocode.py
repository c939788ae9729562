"""From a position to the street it is on, offline: the nearest named street within range, or a vote of a place.

The vote is for positions that err more than streets lie apart: photos of one walk err in different ways, so a street
that many neighbours are near to is likelier than one that a single position is nearest to.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from tqdm import tqdm

from data_gen.streets import StreetMap

METHOD, VOTED = "nearest_street", "vote"
_NEAR_M = 10.0  # a street twice this far from a position gets e^-2 of its voice
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
        photo, name, away_m = _near_streets(xy_m[part], street_map, tree, max_distance_m + margin_range_m)
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


def vote_streets(
    xy_m: npt.NDArray[np.float64],
    street_map: StreetMap,
    max_distance_m: float,
    margin_range_m: float,
    vote_radius_m: float,
) -> NearestStreets:
    """The street in range of each position that the positions around it agree on most.

    A position within ``vote_radius_m`` gives each of its own candidates a voice that falls with its distance to the
    street and with its distance to the position asked about. Crops of one panorama are one position. The margin is that
    of distances: it is negative where the vote went against the nearest street, which is so marked ambiguous.
    """
    places, place_of = distinct_places(xy_m)
    tree = shapely.STRtree(street_map.lines)
    place, name, away_m = _near_streets(places, street_map, tree, max_distance_m + margin_range_m)
    known = np.flatnonzero(np.isfinite(places).all(axis=1))
    points = shapely.points(places[known])
    left, right = shapely.STRtree(points).query(points, predicate="dwithin", distance=vote_radius_m)
    nearness = 1.0 - shapely.distance(points[left], points[right]) / (2.0 * max(vote_radius_m, 1e-9))
    here, voter = known[left], known[right]
    # Each (place, voter) pair is repeated for every candidate street of the voter.
    first, count = np.searchsorted(place, [voter, voter + 1])
    count = count - first
    row = np.repeat(first - np.concatenate([[0], np.cumsum(count)[:-1]]), count) + np.arange(count.sum())
    voice = np.repeat(nearness, count) * np.exp(-away_m[row] / _NEAR_M)
    keys, which = np.unique(np.repeat(here, count) * len(street_map.names) + name[row], return_inverse=True)
    votes = np.bincount(which, weights=voice, minlength=len(keys))
    own = votes[np.searchsorted(keys, place * len(street_map.names) + name)]
    street, distance_m = np.full(len(places), -1, dtype=np.int64), np.full(len(places), np.nan)
    margin_m = np.full(len(places), np.nan)
    in_range = away_m <= max_distance_m
    order = np.lexsort((name, away_m, -own.round(9), ~in_range, place))
    winners = order[np.flatnonzero(np.diff(place[order], prepend=-1))]
    winners = winners[in_range[winners]]
    street[place[winners]], distance_m[place[winners]] = name[winners], away_m[winners]
    is_other = name != street[place]
    second = np.full(len(places), np.inf)
    np.minimum.at(second, place[is_other], away_m[is_other])
    has_both = np.isfinite(second) & (street >= 0)
    margin_m[has_both] = second[has_both] - distance_m[has_both]
    return NearestStreets(street[place_of], distance_m[place_of], margin_m[place_of])


def streets_in_range(
    xy_m: npt.NDArray[np.float64], street_map: StreetMap, range_m: float
) -> dict[int, list[tuple[int, float]]]:
    """Of each position that has any, the streets in range with their distances, the nearest first."""
    photo, name, away_m = _near_streets(xy_m, street_map, shapely.STRtree(street_map.lines), range_m)
    near: dict[int, list[tuple[int, float]]] = {}
    order = np.lexsort((name, away_m, photo))
    for i, street, away in zip(photo[order].tolist(), name[order].tolist(), away_m[order].tolist(), strict=True):
        near.setdefault(i, []).append((street, away))
    return near


def distinct_places(
    xy_m: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The positions ``(N, 2)`` without repetitions, ``(P, 2)``, and which of them each is, ``(N,)``."""
    places, place_of = np.unique(xy_m, axis=0, return_inverse=True)
    return places.reshape(-1, 2), place_of.ravel()


def _near_streets(
    xy_m: npt.NDArray[np.float64], street_map: StreetMap, tree: shapely.STRtree, range_m: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """(position, street, distance of its nearest line), sorted by position and street."""
    photo, line, away_m = candidates(xy_m, tree, range_m)
    return _first_of_groups(photo, street_map.street[line], away_m)


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
