"""The lattice under a town's plan: nodes, edges and the streets that run along them, before any bending."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_gen.toy_city.arrays import FloatArray, random_stream

if TYPE_CHECKING:
    from data_gen.toy_city.plan import Size

Node = tuple[int, int]


@dataclass(frozen=True)
class Edge:
    """A straight or bulging link between two nodes.

    Attributes:
        start: First node.
        end: Second node.
        kind: Kind of its street: plain, diagonal, curve, dual or dead_end.
        bulge_m: How far the middle leaves the straight line, in metres.
    """

    start: int
    end: int
    kind: str = "plain"
    bulge_m: float = 0.0


@dataclass(frozen=True)
class Lattice:
    """Nodes and streets on the (u, v) plane.

    Attributes:
        positions: (N, 2) node positions in metres.
        streets: Kind and edges of each street, edges in order of travel.
        river_u: Mean u of the river.
        column_borders_u: u of the neighbourhood borders between columns.
        row_borders_v: v of the neighbourhood borders between rows.
        low: (2,) south-west corner of the lattice.
        high: (2,) north-east corner of the lattice.
    """

    positions: FloatArray
    streets: tuple[tuple[str, tuple[Edge, ...]], ...]
    river_u: float
    column_borders_u: tuple[float, ...]
    row_borders_v: tuple[float, ...]
    low: FloatArray
    high: FloatArray


class _Weaver:
    """Draws one lattice; every method adds one thing to it."""

    def __init__(self, seed: int, spec: Size) -> None:
        self.rng = random_stream(seed, "lattice")
        self.spec = spec
        wide_columns, wide_rows = {spec.river_gap, *spec.column_borders}, set(spec.row_borders)
        self.u = self._spread(spec.columns, wide_columns)
        self.v = self._spread(spec.rows, wide_rows)
        grid = np.stack(np.meshgrid(self.u, self.v, indexing="xy"), axis=-1).reshape(-1, 2)
        self.positions: list[FloatArray] = list(grid + self.rng.uniform(-6.0, 6.0, size=grid.shape))
        self.removed: set[frozenset[int]] = set()
        self.dual_row = int(self.rng.integers(spec.rows))
        self.dual_columns = range(spec.river_gap) if spec.river_gap else range(0)
        self.diagonals = [self._draw_diagonal() for _ in range(spec.diagonals)]

    def _spread(self, count: int, wide: set[int]) -> FloatArray:
        gaps = [
            self.rng.uniform(132.0, 150.0) if i in wide else self.rng.uniform(80.0, 116.0) for i in range(count - 1)
        ]
        return np.concatenate([[0.0], np.cumsum(gaps)])

    def node(self, column: int, row: int) -> int:
        """Return the number of a lattice node."""
        return row * self.spec.columns + column

    def _draw_diagonal(self) -> list[int]:
        spec = self.spec
        breaks = sorted([-1, spec.river_gap, *spec.column_borders, spec.columns - 1])
        sections = [(a + 1, b) for a, b in itertools.pairwise(breaks) if b - a > 1]
        low, high = sections[int(self.rng.integers(len(sections)))]
        reach = min(high - low, spec.rows - 1)
        column = int(self.rng.integers(low, high - reach + 1))
        row = int(self.rng.integers(0, spec.rows - reach))
        rising = bool(self.rng.random() < 0.5)
        path = [(column + k, row + k if rising else row + reach - k) for k in range(reach + 1)]
        return [self.node(*step) for step in path]

    def lines(self) -> list[tuple[str, list[int]]]:
        """Return every straight line of the lattice: its direction and its nodes."""
        rows = [("row", [self.node(i, j) for i in range(self.spec.columns)]) for j in range(self.spec.rows)]
        columns = [("column", [self.node(i, j) for j in range(self.spec.rows)]) for i in range(self.spec.columns)]
        return rows + columns

    def is_over_river(self, start: int, end: int) -> bool:
        """Tell whether a link crosses the river."""
        a, b = (node % self.spec.columns for node in (start, end))
        return {a, b} == {self.spec.river_gap, self.spec.river_gap + 1}

    def is_dual(self, start: int, end: int) -> bool:
        """Tell whether a link belongs to the dual carriageway."""
        row, column = divmod(min(start, end), self.spec.columns)
        other_row = max(start, end) // self.spec.columns
        return row == other_row == self.dual_row and column in self.dual_columns

    def links(self) -> list[tuple[int, int]]:
        """Return all the links that stand."""
        chains = [nodes for _, nodes in self.lines()] + self.diagonals
        pairs = [pair for nodes in chains for pair in itertools.pairwise(nodes)]
        return [pair for pair in pairs if frozenset(pair) not in self.removed]

    def is_sound(self) -> bool:
        """Tell whether the town hangs together and no lattice node lost more than it can bear."""
        near: dict[int, set[int]] = {node: set() for node in range(self.spec.columns * self.spec.rows)}
        for start, end in self.links():
            near[start].add(end)
            near[end].add(start)
        seen, todo = {0}, [0]
        while todo:
            for node in near[todo.pop()] - seen:
                seen.add(node)
                todo.append(node)
        return len(seen) == len(near) and all(len(ends) >= 2 for ends in near.values())

    def remove(self, pairs: Iterable[tuple[int, int]], count: int) -> list[tuple[int, int]]:
        """Remove up to `count` links, in the order given, as long as the town stays sound."""
        gone: list[tuple[int, int]] = []
        for pair in pairs:
            if len(gone) == count:
                break
            self.removed.add(frozenset(pair))
            if self.is_sound():
                gone.append(pair)
            else:
                self.removed.discard(frozenset(pair))
        return gone

    def shuffled(self, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the links in a random order."""
        return [pairs[i] for i in self.rng.permutation(len(pairs))]

    def street_runs(self) -> list[tuple[str, list[Edge]]]:
        """Cut every line into streets: at the dual carriageway's ends, at some gaps, at the river, when long."""
        curves = self._draw_curves()
        runs: list[tuple[str, list[Edge]]] = []
        for _, nodes in self.lines():
            run: list[Edge] = []
            limit = int(self.rng.integers(3, 8))
            for pair in itertools.pairwise(nodes):
                kind = "dual" if self.is_dual(*pair) else "plain"
                ends = bool(run) and (run[-1].kind != kind or len(run) >= limit)
                ends = ends or (self.is_over_river(*pair) and bool(self.rng.random() < 0.5))
                if frozenset(pair) in self.removed:
                    ends, pair_edge = bool(self.rng.random() < 0.6), None
                else:
                    pair_edge = Edge(*pair, kind, curves.get(pair, 0.0))
                if ends and run:
                    runs.append((run[-1].kind, run))
                    run, limit = [], int(self.rng.integers(3, 8))
                if pair_edge is not None:
                    run.append(pair_edge)
            if run:
                runs.append((run[-1].kind, run))
        runs = [("curve" if any(edge.bulge_m for edge in run) else kind, run) for kind, run in runs]
        for nodes in self.diagonals:
            diagonal = [Edge(*pair, "diagonal") for pair in itertools.pairwise(nodes)]
            runs.append(("diagonal", diagonal))
        return runs

    def _draw_curves(self) -> dict[tuple[int, int], float]:
        """Pick links that bulge; none beside a diagonal, on the dual carriageway or over the river."""
        taken = {node for nodes in self.diagonals for node in nodes}
        free = [
            pair
            for pair in self.links()
            if not (taken & set(pair)) and not self.is_dual(*pair) and not self.is_over_river(*pair)
        ]
        count = max(1, len(free) // 9) if free else 0
        return {
            pair: float(self.rng.choice([-1, 1]) * self.rng.uniform(13, 19)) for pair in self.shuffled(free)[:count]
        }

    def add_dead_ends(self, gone: list[tuple[int, int]], count: int) -> list[tuple[str, list[Edge]]]:
        """Grow dead ends: stumps of removed links first, then stubs that leave the lattice northwards or southwards."""
        stubs: list[tuple[str, list[Edge]]] = []
        for start, end in gone:
            delta = self.positions[end] - self.positions[start]
            length = float(np.linalg.norm(delta))
            if length < 100.0 or self.rng.random() < 0.35:
                continue
            stubs.append(("dead_end", [self._stub(start, delta / length * min(54.0, length - 36.0))]))
        columns = self.rng.permutation(self.spec.columns)
        for column in columns[: max(0, count - len(stubs))]:
            row = int(self.rng.choice([0, self.spec.rows - 1]))
            sign = -1.0 if row == 0 else 1.0
            reach = np.array([self.rng.uniform(-14.0, 14.0), sign * self.rng.uniform(62.0, 80.0)])
            stubs.append(("dead_end", [self._stub(self.node(int(column), row), reach)]))
        return stubs

    def _stub(self, start: int, reach: FloatArray) -> Edge:
        self.positions.append(self.positions[start] + reach)
        return Edge(start, len(self.positions) - 1, "dead_end")


def build_lattice(seed: int, spec: Size) -> Lattice:
    """Draw the lattice of a seed.

    Args:
        seed: Seed of the city.
        spec: How many rows, columns, borders, bridges, diagonals and dead ends it gets.
    """
    weaver = _Weaver(seed, spec)
    over = [pair for pair in weaver.links() if weaver.is_over_river(*pair)]
    weaver.remove(weaver.shuffled(over), len(over) - spec.bridges)
    ordinary = [
        pair
        for nodes in (nodes for _, nodes in weaver.lines())
        for pair in itertools.pairwise(nodes)
        if not weaver.is_over_river(*pair) and not weaver.is_dual(*pair)
    ]
    gone = weaver.remove(weaver.shuffled(ordinary), round(spec.missing_share * len(ordinary)))
    streets = weaver.street_runs() + weaver.add_dead_ends(gone, spec.dead_ends)
    gap = spec.river_gap
    return Lattice(
        positions=np.array(weaver.positions),
        streets=tuple((kind, tuple(edges)) for kind, edges in streets),
        river_u=float(weaver.u[gap] + weaver.u[gap + 1]) / 2,
        column_borders_u=tuple(float(weaver.u[i] + weaver.u[i + 1]) / 2 for i in spec.column_borders),
        row_borders_v=tuple(float(weaver.v[j] + weaver.v[j + 1]) / 2 for j in spec.row_borders),
        low=np.array([weaver.u[0], weaver.v[0]]),
        high=np.array([weaver.u[-1], weaver.v[-1]]),
    )
