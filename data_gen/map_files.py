"""What streets and neighbourhoods have in common: names of places, GeoJSON files, suffixes of extracts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shapely

from llava_ial.errors import UserError

OSM_SUFFIXES = (".osm.pbf", ".osm", ".osm.bz2", ".osm.gz")


def plain_name(name: str) -> str:
    """A name without the marks that separate the parts of an address, so that every form of it parses back.

    Example:
        >>> plain_name(" Water and Wood  Street (upper deck), north")
        'Water & Wood Street upper deck north'
    """
    name = name.replace(" and ", " & ").replace("(", " ").replace(")", " ").replace(",", " ").replace(";", " / ")
    return " ".join(name.split())


def load_features(path: Path, field: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """Properties and geometry in degrees of each feature of a GeoJSON file."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
        features = loaded["features"]
        geometries = shapely.from_geojson([json.dumps(feature["geometry"]) for feature in features])
    except (OSError, ValueError, KeyError, TypeError, shapely.GEOSException) as error:
        raise UserError(f"{field}: {path}: not a GeoJSON feature collection: {error}") from error
    for feature, geometry in zip(features, geometries, strict=True):
        if geometry is not None:
            yield feature.get("properties") or {}, geometry
