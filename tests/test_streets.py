"""The map: streets from OpenStreetMap and GeoJSON, neighbourhoods, names."""

import json
from pathlib import Path

import numpy as np
import pytest
import shapely

from data_gen.map_files import plain_name
from data_gen.streets import DEFAULT_HIGHWAYS, load_city_name, load_street_map
from llava_ial.address import is_plain_name
from llava_ial.errors import UserError
from llava_ial.geo import GeoPoint
from tests.grid_town import AVENUES, FRAME, STREETS, Line, grid_lines, write_neighbourhoods, write_osm, write_streets


def test_extract_and_geojson_give_the_same_map(tmp_path: Path) -> None:
    from_osm = load_street_map(write_osm(tmp_path / "town.osm.pbf", grid_lines()), DEFAULT_HIGHWAYS)
    from_json = load_street_map(write_streets(tmp_path / "town.geojson", grid_lines()), DEFAULT_HIGHWAYS)
    assert from_osm.names == from_json.names == sorted((*AVENUES, *STREETS))
    for a, b in zip(from_osm.lines, from_json.lines, strict=True):
        assert shapely.equals_exact(a, b, 0.02)
    assert from_osm.street.tolist() == from_json.street.tolist()
    assert from_osm.rank.tolist() == [1] * 3 + [4] * 4


def test_both_directions_of_a_way_are_one_line(tmp_path: Path) -> None:
    lines = grid_lines()
    both: list[Line] = [*lines, *((name, highway, points[::-1]) for name, highway, points in lines)]
    street_map = load_street_map(write_osm(tmp_path / "town.osm.pbf", both), DEFAULT_HIGHWAYS)
    assert len(street_map.lines) == len(lines)


def test_kinds_of_street_that_are_not_asked_for_are_left_out(tmp_path: Path) -> None:
    lines: list[Line] = [
        ("Main Street", "residential", [(0, 0), (100, 0)]),
        ("Bank Drive Thru", "service", [(0, 9), (100, 9)]),
        ("Guest Elevator (North)", "elevator", [(0, 20), (100, 20)]),
    ]
    assert load_street_map(write_osm(tmp_path / "town.osm.pbf", lines), DEFAULT_HIGHWAYS).names == ["Main Street"]
    with pytest.raises(UserError, match="highways: 'avenue' is unknown; allowed: motorway"):
        load_street_map(tmp_path / "town.osm.pbf", ["avenue"])
    with pytest.raises(UserError, match="no named street of the accepted kinds; widen 'highways'"):
        load_street_map(tmp_path / "town.osm.pbf", ["motorway"])


def test_exported_lists_of_names_and_classes(tmp_path: Path) -> None:
    lines: list[Line] = [
        ("['King Street', 'Queen Street']", "['footway', 'residential']", [(0, 0), (100, 0)]),
        ("['Left Lane' 'Right Lane']", "residential", [(0, 50), (100, 50)]),
        ("Path", "['footway', 'steps']", [(0, 80), (100, 80)]),
    ]
    street_map = load_street_map(write_streets(tmp_path / "town.geojson", lines), DEFAULT_HIGHWAYS)
    assert street_map.names == ["King Street", "Left Lane"]


@pytest.mark.parametrize(
    "name", ["Water and Wood Street", "North 2nd Street (upper)", "Platz, der", " a  b ", "Rue; Street", "A and B, (C)"]
)
def test_every_name_survives_the_address_forms(name: str) -> None:
    assert is_plain_name(plain_name(name))


def test_neighbourhoods_are_polygons_in_metres(tmp_path: Path) -> None:
    streets = write_streets(tmp_path / "town.geojson", grid_lines())
    street_map = load_street_map(streets, DEFAULT_HIGHWAYS, write_neighbourhoods(tmp_path / "parts.geojson"))
    assert street_map.neighbourhoods == ["East", "West"]
    lat, lon = FRAME.to_lat_lon(np.array([[100.0, 0.0], [400.0, 0.0]]))
    points = shapely.points(street_map.to_xy_m(lat, lon))
    assert [bool(shapely.covers(street_map.polygons[1], p)) for p in points] == [True, False]


def test_metres_agree_with_the_ground_and_end_with_the_map(tmp_path: Path) -> None:
    street_map = load_street_map(write_streets(tmp_path / "town.geojson", grid_lines()), DEFAULT_HIGHWAYS)
    lat, lon = FRAME.to_lat_lon(np.array([[0.0, 0.0], [450.0, 300.0], [9000.0, 0.0]]))
    xy_m = street_map.to_xy_m([*lat, 1.3, np.nan], [*lon, 103.8, 9.0])
    assert np.hypot(*(xy_m[1] - xy_m[0])) == pytest.approx(np.hypot(450, 300), abs=0.01)
    assert np.isnan(xy_m[2:]).all()


def test_city_label_of_the_extract(tmp_path: Path) -> None:
    path = write_osm(tmp_path / "town.osm.pbf", grid_lines(), city="Gridville")
    assert load_city_name(path, GeoPoint(48.78, 9.18)) == "Gridville"
    assert load_city_name(write_osm(tmp_path / "b.osm.pbf", grid_lines()), GeoPoint(48.78, 9.18)) == ""
    assert load_city_name(write_streets(tmp_path / "b.geojson", grid_lines()), GeoPoint(48.78, 9.18)) == ""


def test_files_that_are_no_map(tmp_path: Path) -> None:
    (tmp_path / "a.osm.pbf").write_bytes(b"no map at all")
    with pytest.raises(UserError, match=r"a\.osm\.pbf: not a readable OpenStreetMap file"):
        load_street_map(tmp_path / "a.osm.pbf", DEFAULT_HIGHWAYS)
    (tmp_path / "b.geojson").write_text('{"features": [{"geometry": {"type": "Nonsense"}}]}')
    with pytest.raises(UserError, match=r"b\.geojson: not a GeoJSON feature collection"):
        load_street_map(tmp_path / "b.geojson", DEFAULT_HIGHWAYS)
    with pytest.raises(UserError, match="unknown kind"):
        load_street_map(tmp_path / "c.shp", DEFAULT_HIGHWAYS)
    (tmp_path / "d.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": []}))
    streets = write_streets(tmp_path / "town.geojson", grid_lines())
    with pytest.raises(UserError, match="no polygon with a 'name' in the region"):
        load_street_map(streets, DEFAULT_HIGHWAYS, tmp_path / "d.geojson")


def test_real_extracts_load(shared_data: Path) -> None:
    for name, city in (("monaco", "Monaco"), ("Helsinki", "Helsinki")):
        path = shared_data / "osm" / f"{name}.osm.pbf"
        street_map = load_street_map(path, DEFAULT_HIGHWAYS)
        assert len(street_map.names) > 50
        assert load_city_name(path, street_map.frame.origin) == city
