"""Where streets meet, and each street cut there into blocks.

Two lines meet where a vertex of one lies on the other, within a snap distance. Lines that cross without a vertex there
are a bridge and the road below it: OpenStreetMap gives every level crossing a common node.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import shapely

from data_gen.nearby import group_within
from data_gen.streets import StreetMap

_DIRECTIONS = frozenset(
    {"north", "south", "east", "west", "northeast", "northwest", "southeast", "southwest"}
    | {"n", "s", "e", "w", "ne", "nw", "se", "sw"}
)

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Touches:
    """Places on lines where another line meets them, sorted by line.

    Attributes:
        line: ``(T,)`` which line.
        at_m: ``(T,)`` distance along it.
        other: ``(T,)`` the line that meets it there; it may be of the same street.
    """

    line: IntArray
    at_m: FloatArray
    other: IntArray

    def of(self, line: int) -> slice:
        """The touches of one line."""
        return slice(*np.searchsorted(self.line, [line, line + 1]).tolist())


@dataclass
class StreetGraph:
    """One street as blocks between nodes.

    Attributes:
        street: Index into the map's names.
        node_xy_m: ``(K, 2)``.
        crossing: For each node, the streets that meet it there and the highest rank of each.
        blocks: Pieces of line between two nodes.
        ends: ``(E, 2)`` the nodes of each block.
        labels: Neighbourhood of each block, "" for none.
    """

    street: int
    node_xy_m: FloatArray
    crossing: list[dict[int, int]]
    blocks: list[FloatArray]
    ends: IntArray
    labels: list[str] = field(default_factory=list)


def find_touches(street_map: StreetMap, snap_m: float) -> Touches:
    """All meetings of lines of the map."""
    coordinates, owner = shapely.get_coordinates(street_map.lines, return_index=True)
    tree = shapely.STRtree(street_map.lines)
    points = shapely.points(coordinates)
    vertex, line = tree.query(points, predicate="dwithin", distance=snap_m)
    is_other = owner[vertex] != line
    vertex, line = vertex[is_other], line[is_other]
    # A meeting is one on both lines: the vertex's own, and the one it lies on.
    lines = np.concatenate([line, owner[vertex]])
    others = np.concatenate([owner[vertex], line])
    at_m = shapely.line_locate_point(street_map.lines[lines], points[np.concatenate([vertex, vertex])])
    order = np.lexsort((others, at_m, lines))
    return Touches(lines[order], at_m[order], others[order])


def build_street_graph(
    street_map: StreetMap, street: int, touches: Touches, snap_m: float, min_run_m: float
) -> StreetGraph:
    """Cuts the lines of one street at every meeting, and at neighbourhood borders.

    Args:
        street_map: The map.
        street: Index into its names.
        touches: Of the whole map.
        snap_m: Ends this near each other are one node.
        min_run_m: A block that enters another neighbourhood for less than this stays one block, in the neighbourhood
            of its greater part: along a border street the polygons' edges cross the line many times.
    """
    blocks: list[FloatArray] = []
    labels: list[str] = []
    marks: list[tuple[int, bool, int]] = []  # (block, is its end, touch)
    for line in np.flatnonzero(street_map.street == street).tolist():
        here = touches.of(line)
        geometry = street_map.lines[line]
        cuts = _distinct(touches.at_m[here], geometry.length, snap_m)
        nearest = np.abs(touches.at_m[here][:, None] - cuts[None, :]).argmin(axis=1)
        starts: dict[int, int] = {}
        for i, part in enumerate(_cut(shapely.get_coordinates(geometry), cuts)):
            starts[i] = len(blocks)
            for label, run in split_by_neighbourhood(part, street_map, min_run_m):
                blocks.append(run)
                labels.append(label)
        for touch, cut in zip(range(here.start, here.stop), nearest.tolist(), strict=True):
            is_last = cut == len(starts)
            marks.append((len(blocks) - 1 if is_last else starts[cut], is_last, touch))
    tips = np.array([(block[0], block[-1]) for block in blocks]).reshape(-1, 2)
    numbers, nodes = np.unique(group_within(tips, max(snap_m, 0.01)), return_inverse=True)
    crossing: list[dict[int, int]] = [{} for _ in numbers]
    for block, is_end, touch in marks:
        other = int(street_map.street[touches.other[touch]])
        if other != street and not is_continuation(street_map.names[other], street_map.names[street]):
            found = crossing[nodes[2 * block + is_end]]
            found[other] = min(found.get(other, 99), int(street_map.rank[touches.other[touch]]))
    return StreetGraph(street, tips[numbers], crossing, blocks, nodes.reshape(-1, 2), labels)


def is_continuation(first: str, second: str) -> bool:
    """True for two names of one street that differ in a direction alone: where they meet, it goes on.

    What is left without the direction must be a name: "North Avenue" and "South Avenue" are two streets.

    Example:
        >>> is_continuation("North 2nd Street", "South 2nd Street"), is_continuation("2nd Street", "E 2nd Street")
        (True, True)
        >>> is_continuation("North Avenue", "South Avenue"), is_continuation("2nd Street", "2nd Avenue")
        (False, False)
    """
    bases = {_without_direction(first), _without_direction(second)}
    return len(bases) == 1 and len(next(iter(bases))) > 1


def _without_direction(name: str) -> tuple[str, ...]:
    words = tuple(word.rstrip(".").lower() for word in name.split())
    if words[:1] and words[0] in _DIRECTIONS:
        return words[1:]
    return words[:-1] if words[-1:] and words[-1] in _DIRECTIONS else words


def split_by_neighbourhood(
    coordinates: FloatArray, street_map: StreetMap, min_run_m: float
) -> list[tuple[str, FloatArray]]:
    """Cuts a line ``(M, 2)`` at neighbourhood borders: (name or "", part) in order along it.

    Parts shorter than ``min_run_m`` go to the longer one beside them.
    """
    if not len(street_map.polygons):
        return [("", coordinates)]
    line = shapely.linestrings(coordinates)
    touched = np.flatnonzero(shapely.intersects(street_map.polygons, line))
    if not len(touched):
        return [("", coordinates)]
    if shapely.covers(street_map.polygons[touched[0]], line):
        return [(street_map.neighbourhoods[touched[0]], coordinates)]
    borders = shapely.get_coordinates(shapely.intersection(line, shapely.boundary(street_map.polygons[touched])))
    at_m = shapely.line_locate_point(line, shapely.points(borders)) if len(borders) else np.zeros(0)
    cuts = _distinct(at_m, line.length, 0.01)
    middles = shapely.line_interpolate_point(line, (cuts[1:] + cuts[:-1]) / 2)
    runs: list[tuple[str, float]] = []  # (name, length)
    for middle, length in zip(middles, np.diff(cuts).tolist(), strict=True):
        inside = touched[shapely.covers(street_map.polygons[touched], middle)]
        runs.append((street_map.neighbourhoods[inside[0]] if len(inside) else "", length))
    runs = _absorb_short_runs(runs, min_run_m)
    ends = np.concatenate([[0.0], np.cumsum([length for _, length in runs])])
    ends[-1] = line.length
    return list(zip([name for name, _ in runs], _cut(coordinates, ends), strict=True))


def _absorb_short_runs(runs: list[tuple[str, float]], min_run_m: float) -> list[tuple[str, float]]:
    while True:
        joined: list[tuple[str, float]] = []
        for name, length in runs:
            if joined and joined[-1][0] == name:
                joined[-1] = (name, joined[-1][1] + length)
            else:
                joined.append((name, length))
        shortest = min(range(len(joined)), key=lambda i: (joined[i][1], i))
        if len(joined) == 1 or joined[shortest][1] >= min_run_m:
            return joined
        beside = [i for i in (shortest - 1, shortest + 1) if 0 <= i < len(joined)]
        longer = max(beside, key=lambda i: (joined[i][1], -i))
        joined[shortest] = (joined[longer][0], joined[shortest][1])
        runs = joined


def _distinct(at_m: FloatArray, length: float, tolerance_m: float) -> FloatArray:
    """Sorted cuts from 0 to ``length``, no two nearer than the tolerance."""
    kept = [0.0]
    for value in np.sort(at_m).tolist():
        if value - kept[-1] > tolerance_m and length - value > tolerance_m:
            kept.append(value)
    return np.array([*kept, length])


def _cut(coordinates: FloatArray, cuts: FloatArray) -> list[FloatArray]:
    """Parts of a line between consecutive distances along it."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(coordinates, axis=0).T))])
    x, y = np.interp(cuts, along, coordinates[:, 0]), np.interp(cuts, along, coordinates[:, 1])
    corners = np.stack([x, y], axis=1)
    corners[0], corners[-1] = coordinates[0], coordinates[-1]
    parts = []
    for i in range(len(cuts) - 1):
        inner = coordinates[(along > cuts[i] + 1e-6) & (along < cuts[i + 1] - 1e-6)]
        parts.append(np.vstack([corners[i], inner, corners[i + 1]]))
    return parts
