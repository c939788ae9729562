"""Writes the town's map as any OpenStreetMap extract has it (PBF), and the neighbourhoods as GeoJSON."""

import json
from collections.abc import Hashable
from pathlib import Path

import numpy as np
import osmium
from osmium.osm import mutable

from data_gen.toy_city.arrays import FloatArray
from data_gen.toy_city.ground import DUAL_LANE_M
from data_gen.toy_city.place import Place
from data_gen.toy_city.plan import Plan, SubStreet
from data_gen.toy_city.scene import left_of

_TIMESTAMP = "2024-01-01T00:00:00Z"
_CLASSES = {"dual": "primary", "diagonal": "secondary", "curve": "residential", "dead_end": "residential"}
_FIRST_WAY_ID = 1_000_001


class _MapDraft:
    """Nodes and ways while they are collected; a way is a list of node numbers and its tags."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.positions: list[FloatArray] = []
        self.ways: list[tuple[list[int], dict[str, str]]] = []
        self._known: dict[Hashable, int] = {}

    def node(self, key: Hashable, position: FloatArray) -> int:
        """Return the number of a node, adding it at its first mention."""
        if key not in self._known:
            self._known[key] = len(self.positions)
            self.positions.append(position)
        return self._known[key]

    def duals_at(self, node: int) -> list[SubStreet]:
        """Return the dual sub-streets that end at a node of the plan."""
        return [part for part in self.plan.sub_streets if part.is_dual and node in (part.start, part.end)]

    def carriageway_node(self, node: int, side: float) -> int | None:
        """Return the node where a carriageway passes a crossing; none where the carriageways join."""
        duals = self.duals_at(node)
        if len(duals) != 2:
            return None
        direction = sum((_direction_at(part, node) for part in duals), start=np.zeros(2))
        offset = left_of(direction / np.linalg.norm(direction)) * DUAL_LANE_M * side
        return self.node(("carriageway", node, side), self.plan.nodes[node] + offset)


def _direction_at(part: SubStreet, node: int) -> FloatArray:
    step = part.line[1] - part.line[0] if node == part.start else part.line[-1] - part.line[-2]
    direction: FloatArray = step / np.linalg.norm(step)
    return direction


def _trace_single(draft: _MapDraft, part: SubStreet) -> list[int]:
    """Return the nodes of a two-way sub-street, crossing the carriageways it meets on its way."""
    plan = draft.plan
    inner = [draft.node((part.index, i), part.line[i]) for i in range(1, len(part.line) - 1)]
    trace = [
        draft.node(part.start, plan.nodes[part.start]),
        *inner,
        draft.node(part.end, plan.nodes[part.end]),
    ]
    for node, at_end in ((part.start, False), (part.end, True)):
        duals = draft.duals_at(node)
        if len(duals) != 2:
            continue
        before = part.line[-2] if at_end else part.line[1]
        along = sum((_direction_at(dual, node) for dual in duals), start=np.zeros(2))
        side = 1.0 if float(np.dot(before - plan.nodes[node], left_of(along))) > 0 else -1.0
        near, far = draft.carriageway_node(node, side), draft.carriageway_node(node, -side)
        others = [p for p in plan.sub_streets if not p.is_dual and p.index != part.index and node in (p.start, p.end)]
        extra = [] if others or far is None else [far]
        if near is not None:
            trace = [*trace[:-1], near, trace[-1], *extra] if at_end else [*extra, trace[0], near, *trace[1:]]
    return trace


def _trace_dual(draft: _MapDraft, part: SubStreet, side: float) -> list[int]:
    """Return the nodes of one carriageway in the order of the sub-street's line."""
    step = np.gradient(part.line, axis=0)
    offset = left_of(step / np.linalg.norm(step, axis=1)[:, None]) * DUAL_LANE_M * side
    places = part.line + offset
    ends = []
    for node in (part.start, part.end):
        passed = draft.carriageway_node(node, side)
        ends.append(passed if passed is not None else draft.node(node, draft.plan.nodes[node]))
    inner = [draft.node((part.index, side, i), places[i]) for i in range(1, len(places) - 1)]
    return [ends[0], *inner, ends[1]]


def _add_ways(
    draft: _MapDraft, trace: list[int], is_bridge: list[bool], tags: dict[str, str], goes_on: bool = True
) -> None:
    """Add a line as ways, cut where a bridge begins or ends and joined to the way before where it goes on."""
    first = 0
    for i in range(1, len(trace)):
        if i < len(trace) - 1 and is_bridge[i] == is_bridge[i - 1]:
            continue
        own = {**tags, "bridge": "yes", "layer": "1"} if is_bridge[i - 1] else dict(tags)
        nodes = trace[first : i + 1]
        if (goes_on or first) and draft.ways and draft.ways[-1][1] == own and draft.ways[-1][0][-1] == nodes[0]:
            draft.ways[-1][0].extend(nodes[1:])
        else:
            draft.ways.append((nodes, own))
        first = i


def _draft_map(plan: Plan, place: Place) -> _MapDraft:
    draft = _MapDraft(plan)
    for number, street in enumerate(plan.streets):
        default = "tertiary" if len(street.sub_streets) >= 3 else "residential"
        tags = {"highway": _CLASSES.get(street.kind, default), "name": place.streets[number]}
        parts = [plan.sub_streets[index] for index in street.sub_streets]
        if street.kind != "dual":
            for part in parts:
                trace = _trace_single(draft, part)
                lead = trace.index(draft.node(part.start, plan.nodes[part.start]))
                bridge = [False] * lead + part.is_bridge.tolist()
                bridge += [bridge[-1]] * (len(trace) - 1 - len(bridge))
                _add_ways(draft, trace, bridge, tags)
            continue
        for side in (-1.0, 1.0):
            for place_in_row, part in enumerate(parts if side < 0 else parts[::-1]):
                trace = _trace_dual(draft, part, side)
                trace = trace if side < 0 else trace[::-1]
                _add_ways(draft, trace, [False] * (len(trace) - 1), {**tags, "oneway": "yes"}, goes_on=place_in_row > 0)
    return draft


def write_osm(path: Path, plan: Plan, place: Place) -> None:
    """Write `city.osm.pbf`: streets (bridges with layer, one-way pairs), the river, and place nodes.

    Args:
        path: File that does not exist yet.
        plan: The street plan.
        place: Names and position.
    """
    draft = _draft_map(plan, place)
    river = [draft.node(("river", i), point) for i, point in enumerate(plan.river)]
    draft.ways.append((river, {"waterway": "river", "name": place.river, "width": str(round(2 * plan.river_half_m))}))
    middle = np.mean([ring.mean(axis=0) for ring in plan.neighbourhoods], axis=0)
    labels = [(middle, {"place": "city", "name": place.city, "is_in": f"{place.state}, {place.country}"})]
    for ring, name in zip(plan.neighbourhoods, place.neighbourhoods, strict=True):
        labels.append((ring.mean(axis=0), {"place": "neighbourhood", "name": name}))
    tags_of = {draft.node(("label", i), where): tags for i, (where, tags) in enumerate(labels)}
    lat_lon = place.to_lat_lon(np.array(draft.positions))
    header = osmium.io.Header()
    header.set("generator", "toy_city")
    with osmium.SimpleWriter(str(path), header=header) as writer:
        for number, (lat, lon) in enumerate(lat_lon):
            tags = tags_of.get(number, {})
            node = mutable.Node(id=number + 1, version=1, timestamp=_TIMESTAMP, location=(lon, lat), tags=tags)
            writer.add_node(node)
        for number, (nodes, tags) in enumerate(draft.ways):
            refs = [node + 1 for node in nodes]
            way = mutable.Way(id=_FIRST_WAY_ID + number, version=1, timestamp=_TIMESTAMP, nodes=refs, tags=tags)
            writer.add_way(way)


def write_neighbourhoods(path: Path, plan: Plan, place: Place) -> None:
    """Write `neighbourhoods.geojson`: one polygon per neighbourhood with the property `name`."""
    features = []
    for ring, name in zip(plan.neighbourhoods, place.neighbourhoods, strict=True):
        line = [[lon, lat] for lat, lon in place.to_lat_lon(ring).tolist()]
        geometry = {"type": "Polygon", "coordinates": [[*line[:-1], line[0]]]}
        features.append({"type": "Feature", "properties": {"name": name}, "geometry": geometry})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}, indent=1) + "\n")
