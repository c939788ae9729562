"""The map: named streets as lines in metres, and neighbourhoods as polygons.

Streets come from an OpenStreetMap extract (``.osm.pbf``) or from GeoJSON lines with the properties ``name`` and
``highway``; neighbourhoods as ``data_gen.neighbourhoods`` finds them.
"""

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import osmium
import shapely

from data_gen.map_files import OSM_SUFFIXES, load_features, plain_name
from data_gen.neighbourhoods import load_neighbourhoods
from llava_ial.errors import UserError
from llava_ial.geo import GeoPoint, LocalFrame, distance_m

# From the most to the least important: where crossings are too close, the more important street names the place.
HIGHWAY_RANK = {
    name: rank
    for rank, names in enumerate(
        (
            ("motorway", "trunk", "primary"),
            ("secondary",),
            ("tertiary",),
            ("motorway_link", "trunk_link", "primary_link", "secondary_link", "tertiary_link"),
            ("unclassified", "residential", "living_street", "pedestrian", "road"),
            ("service", "track", "busway"),
            ("footway", "path", "cycleway", "steps", "bridleway"),
        )
    )
    for name in names
}
# Named, but not what people give as an address: service ways (a bank's drive-through window), paths, elevators.
DEFAULT_HIGHWAYS = [name for name, rank in HIGHWAY_RANK.items() if rank < HIGHWAY_RANK["service"]]
MARGIN_M = 1000.0
_METRES_PER_DEGREE = 111_195.0
_QUOTED = re.compile(r"""'([^']+)'|"([^"]+)\"""")
GEOJSON_SUFFIXES = (".geojson", ".json")

# (name, highway class, [[lon, lat], ...])
_RawLine = tuple[str, str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class StreetMap:
    """Named streets and neighbourhoods of one region, in metres of one frame.

    Attributes:
        names: Distinct street names, sorted; a street is its index here.
        lines: ``(L,)`` LineStrings, each way once although a map may hold both of its directions.
        street: ``(L,)`` index of each line's name.
        rank: ``(L,)`` importance of each line's highway class, 0 the highest.
        neighbourhoods: Names, sorted.
        polygons: ``(P,)`` their areas.
        bounds: South, west, north, east of the streets in degrees.
        neighbourhood_source: Where the areas are from, as ``data_gen.neighbourhoods`` says it.
    """

    names: list[str]
    lines: npt.NDArray[np.object_]
    street: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]
    neighbourhoods: list[str]
    polygons: npt.NDArray[np.object_]
    frame: LocalFrame
    bounds: tuple[float, float, float, float]
    neighbourhood_source: str = ""

    def to_xy_m(self, lat: npt.ArrayLike, lon: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Degrees, ``(N,)`` each, to metres ``(N, 2)``; NaN for a place more than about 1 km off the map."""
        lats, lons = np.asarray(lat, dtype=np.float64), np.asarray(lon, dtype=np.float64)
        south, west, north, east = self.bounds
        lat_margin = MARGIN_M / _METRES_PER_DEGREE
        lon_margin = lat_margin / max(math.cos(math.radians(max(abs(south), abs(north)))), 0.01)
        inside = (lats > south - lat_margin) & (lats < north + lat_margin)
        inside &= (lons > west - lon_margin) & (lons < east + lon_margin)
        xy_m = np.full((len(lats), 2), np.nan)
        xy_m[inside] = self.frame.to_xy_m(lats[inside], lons[inside])
        return xy_m


def load_street_map(streets: Path, highways: Collection[str], neighbourhoods: Path | None = None) -> StreetMap:
    """Reads the map.

    Args:
        streets: ``.osm.pbf`` or GeoJSON.
        highways: Accepted values of OpenStreetMap's ``highway`` tag; a GeoJSON line without one is accepted.
        neighbourhoods: GeoJSON polygons; None: what the extract knows of them.

    Raises:
        UserError: Unknown kind of file, unreadable, or no named street in it.
    """
    if unknown := sorted(set(highways) - set(HIGHWAY_RANK)):
        raise UserError(f"highways: '{unknown[0]}' is unknown; allowed: {', '.join(HIGHWAY_RANK)}")
    raw = list(_raw_lines(streets, set(highways)))
    if not raw:
        raise UserError(
            f"streets: {streets} holds no named street of the accepted kinds; widen 'highways' ({', '.join(highways)})"
        )
    degrees = np.concatenate([coordinates for _, _, coordinates in raw])
    # The median is not moved by a stray way far off the city.
    origin = GeoPoint(float(np.median(degrees[:, 1])), float(np.median(degrees[:, 0])))
    frame = LocalFrame(origin)
    bounds = (*degrees.min(axis=0)[::-1].tolist(), *degrees.max(axis=0)[::-1].tolist())
    lengths = [len(coordinates) for _, _, coordinates in raw]
    xy_m = frame.to_xy_m(degrees[:, 1], degrees[:, 0])
    lines = shapely.linestrings(xy_m, indices=np.repeat(np.arange(len(raw)), lengths))
    kept = _first_of_each_way([name for name, _, _ in raw], lines)
    names = sorted({raw[i][0] for i in kept})
    index = {name: i for i, name in enumerate(names)}
    areas = load_neighbourhoods(neighbourhoods, streets, frame, bounds)
    return StreetMap(
        names=names,
        lines=np.asarray(lines)[kept],
        street=np.array([index[raw[i][0]] for i in kept], dtype=np.int64),
        rank=np.array([HIGHWAY_RANK.get(raw[i][1], HIGHWAY_RANK["residential"]) for i in kept], dtype=np.int64),
        neighbourhoods=areas.names,
        polygons=np.array(areas.polygons, dtype=object),
        neighbourhood_source=areas.source,
        frame=frame,
        bounds=bounds,
    )


def load_city_name(streets: Path, middle: GeoPoint) -> str:
    """The city that an OpenStreetMap extract names: its ``place=city`` node nearest to the middle, else ``town``.

    A clipped extract has lost the city's outline, so its label is all there is; "" where it has none.
    """
    if not streets.name.endswith(OSM_SUFFIXES):
        return ""
    found: list[tuple[bool, float, str]] = []
    places = osmium.filter.TagFilter(("place", "city"), ("place", "town"))
    for node in osmium.FileProcessor(str(streets), osmium.osm.NODE).with_filter(places):
        if "name" in node.tags and plain_name(node.tags["name"]):
            away_m = distance_m(GeoPoint(node.lat, node.lon), middle)
            found.append((node.tags["place"] != "city", away_m, plain_name(node.tags["name"])))
    return min(found, default=(False, 0.0, ""))[2]


def _raw_lines(path: Path, highways: set[str]) -> Iterator[_RawLine]:
    if path.name.endswith(OSM_SUFFIXES):
        found = _osm_lines(path, highways)
    elif path.suffix.lower() in GEOJSON_SUFFIXES:
        found = _geojson_lines(path, highways)
    else:
        raise UserError(f"streets: {path} is of an unknown kind; give an .osm.pbf extract or a .geojson file")
    for name, highway, coordinates in found:
        moved = np.any(np.diff(coordinates, axis=0) != 0, axis=1)
        distinct = coordinates[np.concatenate([[True], moved])]
        if len(distinct) >= 2 and np.isfinite(distinct).all() and plain_name(name):
            yield plain_name(name), highway, distinct


def _osm_lines(path: Path, highways: set[str]) -> Iterator[_RawLine]:
    try:
        ways = (
            osmium.FileProcessor(str(path), osmium.osm.NODE | osmium.osm.WAY)
            .with_locations()
            .with_filter(osmium.filter.EntityFilter(osmium.osm.WAY))
            .with_filter(osmium.filter.KeyFilter("highway"))
            .with_filter(osmium.filter.KeyFilter("name", "ref"))
        )
        for way in ways:
            # A road without a name is called by its number. In a tunnel no position is measured: whoever stands above
            # it is not on it.
            if way.tags["highway"] in highways and way.tags.get("tunnel") != "yes":
                # A clipped extract names nodes that it does not hold.
                places = [(node.lon, node.lat) for node in way.nodes if node.location.valid()]
                if len(places) >= 2:
                    yield way.tags.get("name") or way.tags["ref"], way.tags["highway"], np.array(places)
    except (RuntimeError, OSError) as error:
        raise UserError(f"streets: {path}: not a readable OpenStreetMap file: {error}") from error


def _geojson_lines(path: Path, highways: set[str]) -> Iterator[_RawLine]:
    for properties, geometry in load_features(path, "streets"):
        names = listed_texts(properties.get("name"))
        classes = listed_texts(properties.get("highway"))
        if not names or (classes and not highways & set(classes)):
            continue
        highway = next((c for c in classes if c in highways), "")
        if shapely.get_type_id(geometry) in (1, 5):
            for part in shapely.get_parts(geometry):
                # A merged way with two names counts as the first of them.
                yield names[0], highway, shapely.get_coordinates(part)


def listed_texts(value: Any) -> list[str]:
    """A property as a list of texts: a text, a list, or a list printed as text (as exports of merged ways hold)."""
    if isinstance(value, str) and value.startswith("["):
        return [single or double for single, double in _QUOTED.findall(value)]
    return [str(item) for item in value] if isinstance(value, list) else [value] if isinstance(value, str) else []


def _first_of_each_way(names: Sequence[str], lines: npt.NDArray[np.object_]) -> list[int]:
    """Lines without their repetitions in the same or the other direction, to the centimetre."""
    keys = shapely.to_wkb(shapely.normalize(shapely.set_precision(lines, 0.01, mode="pointwise")))
    first: dict[tuple[str, bytes], int] = {}
    for i, key in enumerate(zip(names, keys.tolist(), strict=True)):
        first.setdefault(key, i)
    return list(first.values())
