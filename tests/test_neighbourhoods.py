"""Neighbourhoods from what an extract knows: administrative areas, place nodes; roads without a name, tunnels."""

import csv
import sys
from pathlib import Path

import numpy as np
import osmium
import pytest
import shapely

from data_gen.build import main
from data_gen.neighbourhoods import ADMINISTRATIVE, GIVEN, PLACE_NODES
from data_gen.streets import DEFAULT_HIGHWAYS, StreetMap, load_street_map
from llava_ial.data.dataset import IALDataset
from tests.grid_town import grid_lines, lon_lat, write_neighbourhoods

Way = tuple[dict[str, str], list[tuple[float, float]]]


def _write(path: Path, nodes: list[tuple[dict[str, str], tuple[float, float]]], ways: list[Way]) -> Path:
    """Nodes and ways with tags; a way that ends where it began shares that node."""
    with osmium.SimpleWriter(str(path), overwrite=True) as writer:
        number = 0
        for tags, place in nodes:
            number += 1
            writer.add_node(osmium.osm.mutable.Node(id=number, location=tuple(lon_lat([place])[0]), tags=tags))
        drawn = []
        for tags, points in ways:
            ids: dict[tuple[float, float], int] = {}
            for point in points:
                if point not in ids:
                    number += 1
                    ids[point] = number
                    writer.add_node(osmium.osm.mutable.Node(id=number, location=tuple(lon_lat([point])[0])))
            drawn.append((tags, [ids[point] for point in points]))
        for i, (tags, refs) in enumerate(drawn):
            writer.add_way(osmium.osm.mutable.Way(id=i + 1, nodes=refs, tags=tags))
    return path


def _streets() -> list[Way]:
    return [({"name": name, "highway": kind}, points) for name, kind, points in grid_lines()]


def _area_of(street_map: StreetMap, x: float, y: float) -> list[str]:
    ((lon, lat),) = lon_lat([(x, y)])
    point = shapely.points(street_map.to_xy_m([lat], [lon])[0])
    return [n for n, p in zip(street_map.neighbourhoods, street_map.polygons, strict=True) if p.intersects(point)]


def test_around_place_nodes_the_nearest_one_counts(tmp_path: Path) -> None:
    nodes = [
        ({"place": "suburb", "name": "West"}, (0.0, 150.0)),
        ({"place": "neighbourhood", "name": "East, Lower"}, (450.0, 150.0)),
        ({"place": "neighbourhood", "name": "Far"}, (90_000.0, 0.0)),
        ({"place": "quarter"}, (225.0, 150.0)),
    ]
    street_map = load_street_map(_write(tmp_path / "t.osm.pbf", nodes, _streets()), DEFAULT_HIGHWAYS)
    assert street_map.neighbourhood_source == PLACE_NODES
    assert _area_of(street_map, 100.0, 100.0) == ["West"]
    assert _area_of(street_map, 300.0, 200.0) == ["East Lower"]
    assert _area_of(street_map, -1_200.0, 150.0) == []  # beyond the reach of every node


def test_one_place_node_and_none(tmp_path: Path) -> None:
    one = [({"place": "suburb", "name": "Only"}, (0.0, 0.0))]
    street_map = load_street_map(_write(tmp_path / "one.osm.pbf", one, _streets()), DEFAULT_HIGHWAYS)
    assert _area_of(street_map, 400.0, 300.0) == ["Only"]
    street_map = load_street_map(_write(tmp_path / "none.osm.pbf", [], _streets()), DEFAULT_HIGHWAYS)
    assert (street_map.neighbourhoods, street_map.neighbourhood_source) == ([], "")


def test_administrative_areas_come_before_nodes_and_the_users_before_both(tmp_path: Path) -> None:
    def area(name: str, left: float, right: float, level: str) -> Way:
        ring = [(left, -200.0), (right, -200.0), (right, 600.0), (left, 600.0), (left, -200.0)]
        return {"boundary": "administrative", "admin_level": level, "name": name}, ring

    areas = [area("A", -200, 225, "10"), area("B", 225, 800, "10"), area("All", -200, 800, "9")]
    nodes = [({"place": "suburb", "name": "Node"}, (0.0, 0.0))]
    path = _write(tmp_path / "t.osm.pbf", nodes, [*_streets(), *areas])
    street_map = load_street_map(path, DEFAULT_HIGHWAYS)
    assert (street_map.neighbourhoods, street_map.neighbourhood_source) == (["A", "B"], ADMINISTRATIVE)
    assert _area_of(street_map, 100.0, 0.0) == ["A"]
    given = load_street_map(path, DEFAULT_HIGHWAYS, write_neighbourhoods(tmp_path / "n.geojson"))
    assert (given.neighbourhoods, given.neighbourhood_source) == (["East", "West"], GIVEN)


def test_a_number_is_a_name_and_a_tunnel_no_street(tmp_path: Path) -> None:
    ways: list[Way] = [
        ({"highway": "primary", "ref": "B 27"}, [(0.0, 0.0), (500.0, 0.0)]),
        ({"highway": "primary", "name": "Under Street", "tunnel": "yes"}, [(0.0, 50.0), (500.0, 50.0)]),
        ({"highway": "primary", "name": "Over Street", "ref": "B 28", "bridge": "yes"}, [(0.0, 90.0), (500.0, 90.0)]),
        ({"highway": "primary"}, [(0.0, 99.0), (500.0, 99.0)]),
    ]
    assert load_street_map(_write(tmp_path / "t.osm.pbf", [], ways), DEFAULT_HIGHWAYS).names == ["B 27", "Over Street"]


@pytest.mark.parametrize(
    ("extract", "city"), [("liechtenstein-latest", ""), ("monaco", "Monaco"), ("Helsinki", "Helsinki")]
)
def test_real_extracts_build_without_special_cases(
    monkeypatch: pytest.MonkeyPatch, shared_data: Path, tmp_path: Path, extract: str, city: str
) -> None:
    path = shared_data / "osm" / f"{extract}.osm.pbf"
    street_map = load_street_map(path, DEFAULT_HIGHWAYS)
    draw = np.random.default_rng(0)
    chosen = draw.integers(0, len(street_map.lines), 400)
    points = shapely.line_interpolate_point(street_map.lines[chosen], draw.random(400), normalized=True)
    xy_m = shapely.get_coordinates(points) + draw.normal(0.0, 3.0, (400, 2))
    lat, lon = street_map.frame.to_lat_lon(xy_m)
    with (tmp_path / "photos.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_path", "lat", "lon"])
        writer.writerows((f"{i}.jpg", y, x) for i, (y, x) in enumerate(zip(lat, lon, strict=True)))
    settings = {"image_root": tmp_path, "photos_csv": tmp_path / "photos.csv", "require_images": "false"}
    settings |= {"streets": path, "min_positions": "1", "questions": "all", "output": tmp_path / "data"}
    arguments = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["build", *arguments])
    main()
    data = IALDataset(tmp_path / "data")
    steps = data.manifest["counts"]["steps"]
    assert (steps["addresses"]["in"], steps["addresses"]["out"]) == (400, 400)
    samples = data.samples("train")
    named = np.mean([bool(sample.address.address.neighbourhood) for sample in samples])
    # Liechtenstein is a land of villages: its extract knows next to no neighbourhood.
    assert named > (0.5 if city else -1.0)
    assert not city or {sample.address.address.city for sample in samples} == {city}
