"""Groups of points that hang together within a distance (single linkage)."""

import numpy as np
import numpy.typing as npt
import shapely

IntArray = npt.NDArray[np.int64]


def group_within(xy_m: npt.NDArray[np.float64], distance_m: float) -> IntArray:
    """A group number for each point; points within ``distance_m`` of each other share it, chains included.

    Args:
        xy_m: ``(N, 2)`` metres; a row with NaN is a group of its own.
        distance_m: At most this far apart.

    Returns:
        ``(N,)`` numbers, each group's being the smallest index of its points.
    """
    numbers = np.arange(len(xy_m))
    known = np.flatnonzero(np.isfinite(xy_m).all(axis=1))
    if not len(known):
        return numbers
    # Crops of one panorama share a position: pairs are sought among the distinct ones.
    distinct, first, which = np.unique(xy_m[known], axis=0, return_index=True, return_inverse=True)
    points = shapely.points(distinct)
    left, right = shapely.STRtree(points).query(points, predicate="dwithin", distance=distance_m)
    labels = connect(len(distinct), left, right)
    smallest = np.full(len(distinct), len(xy_m))
    np.minimum.at(smallest, labels, known[first])
    numbers[known] = smallest[labels][which.ravel()]
    return numbers


def connect(num_nodes: int, left: npt.ArrayLike, right: npt.ArrayLike) -> IntArray:
    """Connected components of an undirected graph: ``(num_nodes,)`` labels, each the smallest node of its component."""
    a, b = np.asarray(left, dtype=np.int64), np.asarray(right, dtype=np.int64)
    labels = np.arange(num_nodes)
    while True:
        best = labels.copy()
        np.minimum.at(best, labels[a], labels[b])
        np.minimum.at(best, labels[b], labels[a])
        best = best[best]  # jumping over known links keeps the rounds few on long chains
        if (best == labels).all():
            return labels
        labels = best
