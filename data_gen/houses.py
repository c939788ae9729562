"""Numbered houses of an OpenStreetMap extract: ``addr:housenumber`` with ``addr:street``, on nodes and on buildings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import osmium

from data_gen.map_files import OSM_SUFFIXES, plain_name
from llava_ial.geo import LocalFrame


@dataclass(frozen=True)
class Houses:
    """Houses whose street the map has: places ``(H, 2)`` in metres, index of the street ``(H,)``, and numbers."""

    xy_m: npt.NDArray[np.float64]
    street: npt.NDArray[np.int64]
    numbers: list[str]


def load_houses(streets: Path, names: Sequence[str], frame: LocalFrame) -> Houses:
    """The houses of an extract, sorted by street, number and place; a building stands at the middle of its corners.

    Args:
        streets: The extract; only OpenStreetMap's form holds houses.
        names: The map's streets.
        frame: Of the map.
    """
    index = {name: number for number, name in enumerate(names)}
    found: set[tuple[int, str, float, float]] = set()
    if streets.name.endswith(OSM_SUFFIXES):
        wanted = osmium.filter.KeyFilter("addr:housenumber")
        entities = osmium.FileProcessor(str(streets), osmium.osm.NODE | osmium.osm.WAY).with_locations()
        for entity in entities.with_filter(wanted):
            street = index.get(plain_name(entity.tags.get("addr:street", "")))
            number = plain_name(entity.tags["addr:housenumber"])
            corners = entity.nodes if entity.is_way() else [entity]
            places = [(node.location.lat, node.location.lon) for node in corners if node.location.valid()]
            if street is not None and number and places:
                lat, lon = np.mean(places, axis=0).tolist()
                found.add((street, number, lat, lon))
    houses = sorted(found)
    degrees = np.array([house[2:] for house in houses]).reshape(-1, 2)
    return Houses(
        xy_m=frame.to_xy_m(degrees[:, 0], degrees[:, 1]),
        street=np.array([house[0] for house in houses], dtype=np.int64),
        numbers=[house[1] for house in houses],
    )
