"""The semantic address partition of the AddressCLIP paper: streets cut at their cross streets into sub-streets.

1. Each (street, neighbourhood) is cut at its crossings. Crossings nearer than ``min_piece_m`` to a more important one
   are dropped; the crossings of a dual carriageway with one street are a single one; a neighbourhood border is one too.
2. Pieces shorter than ``min_piece_m`` join a neighbour, then pieces with fewer than ``min_positions`` photo positions
   join a neighbour that has some.
3. A piece is named by the one or two crossings at its ends. Pieces that would be named alike are one sub-street, so
   that every candidate address has a text of its own.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data_gen.crossings import FloatArray, IntArray, StreetGraph
from data_gen.nearby import connect, group_within

DUAL_CARRIAGEWAY_M = 35.0


@dataclass(frozen=True)
class Crossing:
    """A place where a street is cut: the street met there and its neighbourhood, and the nodes it consists of."""

    street: int
    neighbourhood: str | None  # None: the same as the piece's
    nodes: tuple[int, ...]


@dataclass
class Piece:
    """Blocks of one street in one neighbourhood between crossings.

    Attributes:
        boundary: Numbers of the crossings that the piece ends at.
        positions: Photo positions on it.
        numbers: The unmerged pieces it consists of, as the caller counts them.
    """

    street: int
    neighbourhood: str
    blocks: list[FloatArray]
    boundary: set[int]
    positions: set[int] = field(default_factory=set)
    numbers: set[int] = field(default_factory=set)

    @property
    def length_m(self) -> float:
        """Sum over all carriageways."""
        return float(sum(np.hypot(*np.diff(block, axis=0).T).sum() for block in self.blocks))


@dataclass
class CutStreet:
    """The pieces of one (street, neighbourhood) and the crossings between them."""

    pieces: list[Piece]
    crossings: list[Crossing]
    node_xy_m: FloatArray


def cut_street(graph: StreetGraph, street_names: Sequence[str], min_piece_m: float) -> list[CutStreet]:
    """Step 1 and the first half of step 2 for one street: its pieces by neighbourhood, without regard to photos."""
    cut = []
    for label in sorted(set(graph.labels)):
        own = np.array([i for i, name in enumerate(graph.labels) if name == label])
        crossings = _accept(_candidates(graph, own, label, street_names), graph.node_xy_m, street_names, min_piece_m)
        pieces = _components(graph, own, label, crossings)
        part = CutStreet(pieces, crossings, graph.node_xy_m)
        while (short := _weakest(part, [piece.length_m < min_piece_m for piece in part.pieces])) is not None:
            merge_into(part, short, _best_neighbour(part, short, neighbours(part, short)))
        cut.append(part)
    return cut


def merge_sparse(part: CutStreet, min_positions: int) -> None:
    """Second half of step 2: pieces with too few positions join a neighbour with photos, while there is one."""
    while True:
        is_sparse = [0 < len(piece.positions) < min_positions for piece in part.pieces]
        weak = _weakest(part, is_sparse, needs_photos=True)
        if weak is None:
            return
        others = [n for n in neighbours(part, weak) if part.pieces[n].positions]
        merge_into(part, weak, _best_neighbour(part, weak, others))


def neighbours(part: CutStreet, piece: int) -> list[int]:
    """Pieces of the same street that meet a piece at a crossing."""
    mine = part.pieces[piece].boundary
    return [i for i, other in enumerate(part.pieces) if i != piece and mine & other.boundary]


def merge_into(part: CutStreet, gone: int, kept: int) -> None:
    """Joins two neighbouring pieces; a crossing that no third piece touches is inside the new one and is dropped.

    A stub that ends nowhere else keeps it: the street's end is still named by its last crossing.
    """
    first, second = part.pieces[gone], part.pieces[kept]
    shared = first.boundary & second.boundary
    others = [piece.boundary for i, piece in enumerate(part.pieces) if i not in (gone, kept)]
    is_stub = first.boundary <= shared or second.boundary <= shared
    inner = set() if is_stub else {c for c in shared if not any(c in boundary for boundary in others)}
    second.boundary = (first.boundary | second.boundary) - inner
    second.blocks += first.blocks
    second.positions |= first.positions
    second.numbers |= first.numbers
    del part.pieces[gone]


def end_crossings(part: CutStreet, piece: Piece) -> list[Crossing]:
    """The crossings that name a piece, none to two: of more than two, the pair farthest apart."""
    # Where the street leaves all polygons (onto a bridge) there is a border, but nothing to name it by.
    crossings = [c for c in (part.crossings[number] for number in sorted(piece.boundary)) if c.neighbourhood != ""]
    by_name: dict[tuple[int, str | None], Crossing] = {}
    for crossing in crossings:
        by_name.setdefault((crossing.street, crossing.neighbourhood), crossing)
    distinct = list(by_name.values())
    if len(distinct) <= 2:
        return distinct
    middle = [part.node_xy_m[list(crossing.nodes)].mean(axis=0) for crossing in distinct]
    pairs = [(i, j) for i in range(len(distinct)) for j in range(i + 1, len(distinct))]
    first, second = max(pairs, key=lambda pair: (round(float(np.hypot(*(middle[pair[0]] - middle[pair[1]]))), 3), pair))
    return [distinct[first], distinct[second]]


def _candidates(
    graph: StreetGraph, own: IntArray, label: str, names: Sequence[str]
) -> list[tuple[tuple[bool, int, str], Crossing]]:
    """Every possible crossing of one neighbourhood's part of a street, with its priority: low first."""
    best: dict[tuple[int, str | None], list[int]] = defaultdict(list)
    priority: dict[tuple[int, str | None], int] = {}
    border = _border_nodes(graph, own)
    for node in np.unique(graph.ends[own]).tolist():
        key: tuple[int, str | None]
        if graph.crossing[node]:
            rank, _, street = min((rank, names[s], s) for s, rank in graph.crossing[node].items())
            key = (street, None)
        elif node in border:
            rank, key = 0, (graph.street, border[node])
        else:
            continue
        best[key].append(node)
        priority[key] = min(rank, priority.get(key, rank))
    found = []
    for key, nodes in best.items():
        groups = group_within(graph.node_xy_m[nodes], DUAL_CARRIAGEWAY_M)
        for group in np.unique(groups).tolist():
            members = tuple(n for n, g in zip(nodes, groups.tolist(), strict=True) if g == group)
            # A border always cuts: the identity of a main street is (street, neighbourhood).
            order = (not any(n in border for n in members), priority[key], names[key[0]])
            found.append((order, Crossing(key[0], key[1], members)))
    return found


def _border_nodes(graph: StreetGraph, own: IntArray) -> dict[int, str]:
    """Nodes where the street goes on in another neighbourhood, and which."""
    inside = set(graph.ends[own].ravel().tolist())
    others = sorted(set(range(len(graph.blocks))) - set(own.tolist()))
    border: dict[int, str] = {}
    for block in others:
        for node in graph.ends[block].tolist():
            if node in inside:
                border[node] = min(border.get(node, graph.labels[block]), graph.labels[block])
    return border


def _accept(
    candidates: list[tuple[tuple[bool, int, str], Crossing]],
    node_xy_m: FloatArray,
    names: Sequence[str],
    min_piece_m: float,
) -> list[Crossing]:
    """The crossings that cut: greedily by priority, none nearer than ``min_piece_m`` to one taken before."""
    ordered = sorted(candidates, key=lambda c: (c[0], node_xy_m[list(c[1].nodes)].min(axis=0).round(2).tolist()))
    taken: list[Crossing] = []
    for (is_optional, _, _), crossing in ordered:
        here = node_xy_m[list(crossing.nodes)]
        near = any(
            np.hypot(*(here[:, None] - node_xy_m[list(t.nodes)][None]).transpose(2, 0, 1)).min() < min_piece_m
            for t in taken
        )
        if not (is_optional and near):
            taken.append(crossing)
    return taken


def _components(graph: StreetGraph, own: IntArray, label: str, crossings: list[Crossing]) -> list[Piece]:
    """Pieces: what hangs together once the street is cut at its crossings."""
    number_of = {node: number for number, crossing in enumerate(crossings) for node in crossing.nodes}
    at_node: dict[int, list[int]] = defaultdict(list)
    for position, block in enumerate(own.tolist()):
        for node in graph.ends[block].tolist():
            if node not in number_of:
                at_node[node].append(position)
    links = [(blocks[0], other) for blocks in at_node.values() for other in blocks[1:]]
    left, right = np.array(links, dtype=np.int64).reshape(-1, 2).T
    labels = connect(len(own), left, right)
    pieces = []
    for component in np.unique(labels).tolist():
        members = own[labels == component]
        boundary = {number_of[node] for node in graph.ends[members].ravel().tolist() if node in number_of}
        pieces.append(Piece(graph.street, label, [graph.blocks[i] for i in members.tolist()], boundary))
    return _join_carriageways(pieces)


def _join_carriageways(pieces: list[Piece]) -> list[Piece]:
    """Parallel carriageways between the same two crossings are one piece."""
    joined: dict[frozenset[int], Piece] = {}
    rest: list[Piece] = []
    for piece in pieces:
        key = frozenset(piece.boundary)
        if len(key) < 2:
            rest.append(piece)
        elif key in joined:
            joined[key].blocks += piece.blocks
        else:
            joined[key] = piece
    return [*joined.values(), *rest]


def _weakest(part: CutStreet, is_weak: Sequence[bool], *, needs_photos: bool = False) -> int | None:
    """The weak piece to merge next: fewest positions, then shortest; None if none has a neighbour to join."""

    def can_merge(i: int) -> bool:
        return any(part.pieces[n].positions or not needs_photos for n in neighbours(part, i))

    weak = [i for i, flag in enumerate(is_weak) if flag and can_merge(i)]
    return min(weak, key=lambda i: _strength(part.pieces[i], i), default=None)


def _best_neighbour(part: CutStreet, piece: int, others: Sequence[int]) -> int:
    return min(others, key=lambda i: _strength(part.pieces[i], i))


def _strength(piece: Piece, index: int) -> tuple[int, float, int]:
    return len(piece.positions), round(piece.length_m, 2), index
