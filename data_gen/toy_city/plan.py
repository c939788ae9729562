"""The town's plan: streets and crossings, river and bridges, neighbourhoods. Geometry only, no names.

Streets are laid out on a plane with coordinates (u, v) in metres, as a jittered lattice with missing links,
diagonals, crescents and dead ends; a smooth warp then bends everything into world coordinates (x east, y north).
A sub-street is the part of a street between two crossings; neighbourhood borders cut sub-streets as well.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np

from data_gen.toy_city.arrays import BoolArray, FloatArray
from data_gen.toy_city.lattice import Edge, build_lattice
from data_gen.toy_city.terrain import Terrain

_STEP_M = 12.0


@dataclass(frozen=True)
class Size:
    """How big a town is.

    Attributes:
        columns: Streets that run north-south.
        rows: Streets that run east-west.
        river_gap: The river runs between columns `river_gap` and `river_gap + 1`.
        column_borders: Further gaps between columns in which a neighbourhood ends.
        row_borders: Gaps between rows in which a neighbourhood ends.
        bridges: Number of bridges.
        diagonals: Number of diagonal avenues.
        dead_ends: Dead-end streets that leave the lattice outwards.
        missing_share: Share of the lattice's links that are left out.
        photos: Number of photos.
        headings: Views per panorama.
        test_share: Share of the panoramas that are held out for testing.
        val_share: Share of the panoramas that are held out for validation.
    """

    columns: int
    rows: int
    river_gap: int
    column_borders: tuple[int, ...]
    row_borders: tuple[int, ...]
    bridges: int
    diagonals: int
    dead_ends: int
    missing_share: float
    photos: int
    headings: int
    test_share: float
    val_share: float


SIZES = {
    "tiny": Size(3, 2, 1, (), (), 1, 1, 1, 0.0, 48, 4, 0.20, 0.10),
    "small": Size(5, 4, 2, (), (1,), 2, 1, 2, 0.15, 3600, 8, 0.12, 0.06),
    "medium": Size(6, 5, 2, (), (2,), 3, 1, 3, 0.08, 6400, 8, 0.10, 0.05),
    "large": Size(15, 13, 6, (2, 10), (2, 5, 9), 6, 3, 9, 0.12, 40000, 8, 0.075, 0.04),
}


@dataclass(frozen=True)
class SubStreet:
    """Part of a street between two nodes (crossings, neighbourhood borders, dead ends).

    Attributes:
        index: Number within the plan; the label that the baselines and the tests use.
        street: Number of the street.
        neighbourhood: Number of the neighbourhood.
        line: (P, 2) centre line, world metres.
        is_bridge: (P - 1,) whether a piece of the line crosses the river.
        start: Node at the first point.
        end: Node at the last point.
        is_dual: Whether two carriageways run here.
    """

    index: int
    street: int
    neighbourhood: int
    line: FloatArray
    is_bridge: BoolArray
    start: int
    end: int
    is_dual: bool

    @property
    def length_m(self) -> float:
        """Length of the centre line in metres."""
        return float(np.linalg.norm(np.diff(self.line, axis=0), axis=1).sum())


@dataclass(frozen=True)
class Street:
    """A street: its kind (plain, diagonal, curve, dual, dead_end) and its sub-streets in order of travel."""

    kind: str
    sub_streets: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """The whole street plan in world metres.

    Attributes:
        seed: Seed it was drawn from.
        size: Name of its size.
        nodes: (N, 2) positions of crossings, border cuts and dead ends.
        degrees: Streets' ends that meet at each node: 1 is a dead end, 2 a bend or a border, 3 and more a crossing.
        sub_streets: All sub-streets; `sub_streets[i].index == i`.
        streets: All streets.
        twins: Pairs of far-apart streets that shall share a name.
        river: (Q, 2) centre line of the river.
        river_half_m: Half of the river's width.
        neighbourhoods: One (M, 2) polygon ring per neighbourhood, closed.
    """

    seed: int
    size: str
    nodes: FloatArray
    degrees: tuple[int, ...]
    sub_streets: tuple[SubStreet, ...]
    streets: tuple[Street, ...]
    twins: tuple[tuple[int, int], ...]
    river: FloatArray
    river_half_m: float
    neighbourhoods: tuple[FloatArray, ...]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east and north end of the town in world metres."""
        points = np.concatenate(self.neighbourhoods)
        low, high = points.min(axis=0), points.max(axis=0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])


@dataclass
class _Draft:
    """The plan while it grows."""

    nodes: list[FloatArray] = field(default_factory=list)
    sub_streets: list[SubStreet] = field(default_factory=list)
    streets: list[Street] = field(default_factory=list)


def _insert_crossings(points: FloatArray, distances: list[FloatArray]) -> tuple[FloatArray, BoolArray]:
    """Insert the points where a signed distance changes its sign; also return which points were inserted."""
    inserts: list[tuple[float, FloatArray]] = []
    for distance in distances:
        for i in np.flatnonzero((distance[:-1] > 0) != (distance[1:] > 0)):
            share = float(distance[i] / (distance[i] - distance[i + 1]))
            inserts.append((i + share, points[i] + share * (points[i + 1] - points[i])))
    places = np.array([*range(len(points)), *(place for place, _ in inserts)], dtype=np.float64)
    order = np.argsort(places, kind="stable")
    merged = np.concatenate([points, np.array([point for _, point in inserts]).reshape(-1, 2)])[order]
    return merged, order >= len(points)


def _trace_edge(edge: Edge, terrain: Terrain) -> tuple[FloatArray, BoolArray, BoolArray]:
    """Return an edge's fine line in (u, v), which points cut it at a border, and which pieces are a bridge."""
    start, end = terrain.lattice.positions[edge.start], terrain.lattice.positions[edge.end]
    length = float(np.linalg.norm(end - start))
    share = np.linspace(0.0, 1.0, max(3, round(length / _STEP_M) + 1))[:, None]
    normal = np.array([start[1] - end[1], end[0] - start[0]]) / length
    line = start + share * (end - start) + edge.bulge_m * np.sin(np.pi * share) * normal
    line, _ = _insert_crossings(line, terrain.banks(line))
    line, is_cut = _insert_crossings(line, terrain.borders(line))
    middle = (line[:-1] + line[1:]) / 2
    inside = terrain.banks(middle)
    return line, is_cut, (inside[0] < 0) & (inside[1] > 0)


def _add_edge(draft: _Draft, terrain: Terrain, edge: Edge, street: int) -> list[int]:
    """Cut an edge at the borders into sub-streets; return their numbers."""
    line, is_cut, is_bridge = _trace_edge(edge, terrain)
    cuts = [0, *np.flatnonzero(is_cut).tolist(), len(line) - 1]
    added: list[int] = []
    node = edge.start
    for first, last in itertools.pairwise(cuts):
        end = edge.end
        if last != len(line) - 1:
            end = len(draft.nodes)
            draft.nodes.append(terrain.to_world(line[last]))
        world = terrain.to_world(line[first : last + 1])
        cell = terrain.cell(line[(first + last) // 2] if last - first > 1 else (line[first] + line[last]) / 2)
        index = len(draft.sub_streets)
        pieces = is_bridge[first:last]
        draft.sub_streets.append(SubStreet(index, street, cell, world, pieces, node, end, edge.kind == "dual"))
        added.append(index)
        node = end
    return added


def _find_twins(draft: _Draft) -> tuple[tuple[int, int], ...]:
    """Pick the pair of plain streets that share no neighbourhood and no node and lie farthest apart."""
    best: tuple[float, tuple[int, int]] | None = None
    parts = [[draft.sub_streets[i] for i in street.sub_streets] for street in draft.streets]
    for first in range(len(parts)):
        for second in range(first + 1, len(parts)):
            a, b = parts[first], parts[second]
            if draft.streets[first].kind != "plain" or draft.streets[second].kind != "plain":
                continue
            if {s.neighbourhood for s in a} & {s.neighbourhood for s in b}:
                continue
            if {n for s in a for n in (s.start, s.end)} & {n for s in b for n in (s.start, s.end)}:
                continue
            gap = float(np.linalg.norm(a[0].line.mean(axis=0) - b[0].line.mean(axis=0)))
            if best is None or gap > best[0]:
                best = gap, (first, second)
    return () if best is None else (best[1],)


def build_plan(seed: int, size: str) -> Plan:
    """Draw the street plan of a seed.

    Args:
        seed: Any whole number from 0.
        size: One of `SIZES`.
    """
    spec = SIZES[size]
    lattice = build_lattice(seed, spec)
    terrain = Terrain(seed, lattice)
    draft = _Draft(nodes=[terrain.to_world(position) for position in lattice.positions])
    for kind, edges in lattice.streets:
        number = len(draft.streets)
        added = [index for edge in edges for index in _add_edge(draft, terrain, edge, number)]
        draft.streets.append(Street(kind, tuple(added)))
    degrees = [0] * len(draft.nodes)
    for part in draft.sub_streets:
        degrees[part.start] += 1
        degrees[part.end] += 1
    v = np.arange(terrain.south - 200.0, terrain.north + 201.0, 10.0)
    river = terrain.to_world(np.stack([terrain.river_u(v), v], axis=-1))
    return Plan(
        seed=seed,
        size=size,
        nodes=np.array(draft.nodes),
        degrees=tuple(degrees),
        sub_streets=tuple(draft.sub_streets),
        streets=tuple(draft.streets),
        twins=_find_twins(draft),
        river=river,
        river_half_m=terrain.river_half_m,
        neighbourhoods=terrain.polygons(),
    )
