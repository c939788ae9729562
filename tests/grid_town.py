"""A hand-made town for the tests of data generation: a grid of streets, two neighbourhoods, drawn photos.

Avenues run east-west at y = 0, 150, 300 m, streets north-south at x = 0, 150, 300, 450 m; the neighbourhoods West and
East meet at x = 225 m, in the middle of a block.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import osmium
from PIL import Image, ImageDraw

from llava_ial.geo import GeoPoint, LocalFrame

FRAME = LocalFrame(GeoPoint(lat=48.78, lon=9.18))
SPACING_M = 150.0
AVENUES = ("First Avenue", "Second Avenue", "Third Avenue")
STREETS = ("Ash Street", "Beech Street", "Cedar Street", "Dogwood Street")
COLUMNS = ("image_path", "image_id", "panorama_id", "lat", "lon", "heading_deg", "captured_at", "split")

# A line is (name, highway class, points in metres).
Line = tuple[str, str, list[tuple[float, float]]]


def grid_lines() -> list[Line]:
    xs = [i * SPACING_M for i in range(len(STREETS))]
    ys = [i * SPACING_M for i in range(len(AVENUES))]
    rows: list[Line] = [(name, "secondary", [(x, y) for x in xs]) for name, y in zip(AVENUES, ys, strict=True)]
    return rows + [(name, "residential", [(x, y) for y in ys]) for name, x in zip(STREETS, xs, strict=True)]


def lon_lat(points: Iterable[tuple[float, float]]) -> list[list[float]]:
    lat, lon = FRAME.to_lat_lon(np.array(list(points)))
    return [[round(x, 7), round(y, 7)] for x, y in zip(lon.tolist(), lat.tolist(), strict=True)]


def write_streets(path: Path, lines: Sequence[Line]) -> Path:
    features = [
        {
            "type": "Feature",
            "properties": {"name": name, "highway": highway},
            "geometry": {"type": "LineString", "coordinates": lon_lat(points)},
        }
        for name, highway, points in lines
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


# A house is (street, number, place in metres).
House = tuple[str, str, tuple[float, float]]


def write_osm(path: Path, lines: Sequence[Line], city: str = "", houses: Sequence[House] = ()) -> Path:
    """The same lines as OpenStreetMap nodes and ways; points at one place are one node."""
    number: dict[tuple[float, ...], int] = {}
    with osmium.SimpleWriter(str(path), overwrite=True) as writer:
        ways = []
        for name, highway, points in lines:
            places = [tuple(place) for place in lon_lat(points)]
            for place in places:
                if place not in number:
                    number[place] = len(number) + 1
                    writer.add_node(osmium.osm.mutable.Node(id=number[place], location=place))
            ways.append((name, highway, [number[place] for place in places]))
        for i, (street, house_number, place) in enumerate(houses):
            tags = {"addr:street": street, "addr:housenumber": house_number}
            here = tuple(lon_lat([place])[0])
            writer.add_node(osmium.osm.mutable.Node(id=90_000 + i, location=here, tags=tags))
        if city:
            label = osmium.osm.mutable.Node(id=99_999, location=(9.18, 48.78), tags={"place": "city", "name": city})
            writer.add_node(label)
        for i, (name, highway, nodes) in enumerate(ways):
            writer.add_way(osmium.osm.mutable.Way(id=i + 1, nodes=nodes, tags={"name": name, "highway": highway}))
    return path


def write_neighbourhoods(path: Path, border_x_m: float = 225.0) -> Path:
    boxes = {"West": (-500.0, border_x_m), "East": (border_x_m, 1000.0)}
    features = []
    for name, (left, right) in boxes.items():
        ring = [(left, -500.0), (right, -500.0), (right, 900.0), (left, 900.0), (left, -500.0)]
        geometry = {"type": "Polygon", "coordinates": [lon_lat(ring)]}
        features.append({"type": "Feature", "properties": {"name": name}, "geometry": geometry})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def draw_photo(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (48, 36), (number * 37 % 256, number * 91 % 256, number * 53 % 256))
    ImageDraw.Draw(image).rectangle((number % 30, 8, number % 30 + 12, 28), fill=(255, 255, 255))
    image.save(path, quality=90)


def photo_row(number: int, x: float, y: float, **more: str) -> dict[str, str]:
    ((lon, lat),) = lon_lat([(x, y)])
    name = f"photo{number:03d}"
    return {"image_path": f"{name}.jpg", "image_id": name, "lat": str(lat), "lon": str(lon), **more}


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


HOUSES: list[House] = [
    ("First Avenue", "12", (75.0, 8.0)),
    ("First Avenue", "14", (60.0, 8.0)),
    ("Second Avenue", "7a", (75.0, 40.0)),
    ("Ash Street", "3", (5.0, 75.0)),
    ("Nowhere Street", "1", (75.0, 3.0)),
]


def write_town(folder: Path) -> dict[str, str]:
    """Map, neighbourhoods, photos, tables; gives the settings that build it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_osm(folder / "town.osm.pbf", grid_lines(), city="Gridville", houses=HOUSES)
    write_neighbourhoods(folder / "neighbourhoods.geojson")
    places = [(75.0 + 150 * i, 150.0 * j + 2) for i in range(3) for j in range(3)]
    places += [(150.0 * i + 2, 75.0 + 150 * j) for i in range(4) for j in range(2)]
    rows = []
    for number, (x, y) in enumerate(places):
        draw_photo(folder / "photos" / f"photo{number:03d}.jpg", number)
        rows.append(photo_row(number, x, y, heading_deg="90", captured_at="2024-05-01 12:00:00"))
    rows.append(photo_row(900, 5000.0, 5000.0))
    draw_photo(folder / "photos" / "photo900.jpg", 900)
    rows.append({**photo_row(901, 75.0, 0.0), "image_path": ""})
    write_csv(folder / "photos.csv", rows)
    write_csv(
        folder / "captions.csv",
        [{"image_id": row["image_id"], "caption": f"a house on {AVENUES[0]}"} for row in rows],
        ("image_id", "caption"),
    )
    return {
        "image_root": str(folder / "photos"),
        "photos_csv": str(folder / "photos.csv"),
        "streets": str(folder / "town.osm.pbf"),
        "neighbourhoods": str(folder / "neighbourhoods.geojson"),
        "captioner": "csv",
        "captions_csv": str(folder / "captions.csv"),
        "min_positions": "1",
        "test_fraction": "0.2",
        "region": "GV",
    }
