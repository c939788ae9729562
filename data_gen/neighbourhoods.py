"""Neighbourhoods as areas: the user's polygons, else the extract's administrative areas, else around its place nodes.

In OpenStreetMap most neighbourhoods are nodes, seldom polygons, and a clipped extract has lost the polygons that it
cuts. Around a node the area is what is nearer to it than to another one, up to a radius.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import osmium
import shapely

from data_gen.map_files import OSM_SUFFIXES, load_features, plain_name
from llava_ial.errors import UserError
from llava_ial.geo import LocalFrame

GIVEN, ADMINISTRATIVE, PLACE_NODES = "given polygons", "administrative areas", "around place nodes"
_ADMIN_LEVELS = ("9", "10", "11")
_PLACES = ("neighbourhood", "quarter", "suburb")
_REACH_M = 1_000.0  # of a place node
_MARGIN_M = 2_000.0  # nodes this far beyond the streets still bound the areas within


@dataclass(frozen=True)
class Neighbourhoods:
    """Names, sorted, their areas in metres, and where they are from ("" for none)."""

    names: list[str]
    polygons: list[Any]
    source: str


def load_neighbourhoods(
    given: Path | None, streets: Path, frame: LocalFrame, bounds: tuple[float, float, float, float]
) -> Neighbourhoods:
    """The areas by which streets are named.

    Args:
        given: GeoJSON polygons with the property ``name``; None: what the extract knows.
        streets: The map; only an OpenStreetMap extract knows neighbourhoods.
        frame: Of the streets.
        bounds: South, west, north, east of the streets in degrees.

    Raises:
        UserError: The given file is unreadable or holds no polygon here.
    """
    if given is not None:
        return _sorted(_given_polygons(given, frame, bounds), GIVEN)
    if not streets.name.endswith(OSM_SUFFIXES):
        return Neighbourhoods([], [], "")
    if areas := _administrative(streets, frame):
        return _sorted(areas, ADMINISTRATIVE)
    nodes = _around_nodes(streets, frame, bounds)
    return _sorted(nodes, PLACE_NODES if nodes else "")


def _sorted(found: list[tuple[str, Any]], source: str) -> Neighbourhoods:
    found = sorted(found, key=lambda item: item[0])
    for _, polygon in found:
        shapely.prepare(polygon)
    return Neighbourhoods([name for name, _ in found], [polygon for _, polygon in found], source)


def _given_polygons(path: Path, frame: LocalFrame, bounds: tuple[float, float, float, float]) -> list[tuple[str, Any]]:
    south, west, north, east = bounds
    region = shapely.box(west - 0.1, south - 0.1, east + 0.1, north + 0.1)
    found: list[tuple[str, Any]] = []
    for properties, geometry in load_features(path, "neighbourhoods"):
        name = properties.get("name")
        is_area = shapely.get_type_id(geometry) in (3, 6)
        # A polygon far off the streets has no place in this frame.
        if not isinstance(name, str) or not plain_name(name) or not is_area or not region.intersects(geometry):
            continue
        in_metres = shapely.transform(geometry, lambda c: frame.to_xy_m(c[:, 1], c[:, 0]))
        found.append((plain_name(name), shapely.make_valid(in_metres)))
    if not found:
        raise UserError(f"neighbourhoods: {path} holds no polygon with a 'name' in the region of the streets")
    return found


def _administrative(streets: Path, frame: LocalFrame) -> list[tuple[str, Any]]:
    """Areas of the level below the city that has most of them; one alone divides nothing."""
    factory = osmium.geom.WKBFactory()
    by_level: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    wanted = osmium.filter.TagFilter(*(("admin_level", level) for level in _ADMIN_LEVELS))
    for area in osmium.FileProcessor(str(streets)).with_areas(wanted).with_filter(wanted):
        if not area.is_area() or area.tags.get("boundary") != "administrative":
            continue
        name = plain_name(area.tags.get("name", ""))
        if name:
            degrees = shapely.from_wkb(factory.create_multipolygon(area))
            in_metres = shapely.transform(degrees, lambda c: frame.to_xy_m(c[:, 1], c[:, 0]))
            by_level[area.tags["admin_level"]].append((name, shapely.make_valid(in_metres)))
    count = Counter({level: len(areas) for level, areas in by_level.items()})
    best = max(count, key=lambda level: (count[level], level), default="")
    return by_level[best] if count[best] > 1 else []


def _around_nodes(streets: Path, frame: LocalFrame, bounds: tuple[float, float, float, float]) -> list[tuple[str, Any]]:
    south, west, north, east = bounds
    box = shapely.box(*frame.to_xy_m([south, north], [west, east]).ravel().tolist()).buffer(_MARGIN_M)
    places: dict[tuple[float, float], str] = {}
    wanted = osmium.filter.TagFilter(*(("place", kind) for kind in _PLACES))
    for node in osmium.FileProcessor(str(streets), osmium.osm.NODE).with_filter(wanted):
        name = plain_name(node.tags.get("name", ""))
        x, y = frame.to_xy_m([node.lat], [node.lon])[0].tolist()
        if name and box.contains(shapely.Point(x, y)):
            places.setdefault((x, y), name)
    if not places:
        return []
    points = shapely.points(np.array(list(places)))
    cells = shapely.get_parts(shapely.voronoi_polygons(shapely.multipoints(points), extend_to=box))
    if len(places) == 1:  # one place has no neighbours to end at
        cells = np.array([box])
    node, cell = shapely.STRtree(cells).query(points, predicate="intersects")
    by_name: dict[str, list[Any]] = defaultdict(list)
    names = list(places.values())
    for n, c in zip(node.tolist(), cell.tolist(), strict=True):
        by_name[names[n]].append(shapely.intersection(cells[c], shapely.buffer(points[n], _REACH_M)))
    return [(name, shapely.union_all(areas)) for name, areas in by_name.items()]
