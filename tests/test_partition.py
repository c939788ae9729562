"""Sub-streets on small maps whose right partition is known by hand."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import utm

from data_gen.crossings import build_street_graph, find_touches
from data_gen.gallery import City, Gallery, PartitionSettings, build_gallery, sub_street_id
from data_gen.geocode import nearest_streets
from data_gen.partition import cut_street
from data_gen.streets import DEFAULT_HIGHWAYS, StreetMap, load_street_map
from llava_ial.address import Address, CrossStreet, parse_canonical, parse_verbose
from tests.grid_town import FRAME, Line, grid_lines, write_neighbourhoods, write_osm, write_streets

Places = list[tuple[float, float]]


def _gallery(street_map: StreetMap, places: Places, city: City | None = None, **settings: float) -> Gallery:
    lat, lon = FRAME.to_lat_lon(np.array(places))
    xy_m = street_map.to_xy_m(lat, lon)
    street = nearest_streets(xy_m, street_map, 50.0).street
    names = [f"p{i:03d}" for i in range(len(places))]
    options = PartitionSettings(**{"min_positions": 1, **settings})  # type: ignore[arg-type]
    return build_gallery(street_map, xy_m, street, names, options, city or City())


def _canonical(gallery: Gallery) -> list[str]:
    """The address of each photo, "" for none."""
    return [gallery.records[number].canonical if number >= 0 else "" for number in gallery.photo_class.tolist()]


def _map(tmp_path: Path, lines: list[Line], border_x_m: float | None = None, kind: str = "osm") -> StreetMap:
    write, name = (write_osm, "town.osm.pbf") if kind == "osm" else (write_streets, "town.geojson")
    parts = None if border_x_m is None else write_neighbourhoods(tmp_path / "parts.geojson", border_x_m)
    return load_street_map(write(tmp_path / name, lines), [*DEFAULT_HIGHWAYS, "service"], parts)


@pytest.mark.parametrize("kind", ["osm", "geojson"])
def test_a_grid_is_cut_at_every_crossing(tmp_path: Path, kind: str) -> None:
    gallery = _gallery(_map(tmp_path, grid_lines(), kind=kind), [(75, 1), (225, 1), (375, 1), (1, 75), (1, 225)])
    assert _canonical(gallery) == [
        "First Avenue (Ash Street and Beech Street)",
        "First Avenue (Beech Street and Cedar Street)",
        "First Avenue (Cedar Street and Dogwood Street)",
        "Ash Street (First Avenue and Second Avenue)",
        "Ash Street (Second Avenue and Third Avenue)",
    ]
    by_name = {record.canonical: record for record in gallery.records}
    ids = {record.sub_street_id: record.canonical for record in gallery.records}
    # Pieces that meet: along the avenue, along the street, and where both meet at the corner.
    near = {ids[i] for i in by_name["First Avenue (Ash Street and Beech Street)"].adjacent_ids}
    assert near == {"First Avenue (Beech Street and Cedar Street)", "Ash Street (First Avenue and Second Avenue)"}


def test_candidate_texts_and_geometry(tmp_path: Path) -> None:
    gallery = _gallery(_map(tmp_path, grid_lines(), 225.0), [(75, 1), (75, 2)], City("Gridville", "GV", "Gridland"))
    (record,) = gallery.records
    crossings = (CrossStreet("Ash Street", "West"), CrossStreet("Beech Street", "West"))
    assert record.address == Address("First Avenue", "West", crossings, "Gridville", "GV", "Gridland")
    assert record.spoken == "First Avenue, between Ash Street and Beech Street, West, Gridville, GV, Gridland"
    assert parse_verbose(record.verbose).street_key == ("First Avenue", "West")
    assert record.street_text == "located in the West, specifically on First Avenue"
    assert (record.neighbourhood_text, record.num_positions) == ("located in the West", 2)
    xy_m = FRAME.to_xy_m(*np.array(record.lines[0]).T[::-1])
    assert sorted(xy_m[:, 0].round(1).tolist()) == [0.0, 150.0]
    assert record.sub_street_id == sub_street_id(record.address)
    assert record.sub_street_id.startswith("first-avenue-west-ash-street-beech-street-")


def test_neighbourhood_border_is_a_crossing(tmp_path: Path) -> None:
    gallery = _gallery(_map(tmp_path, grid_lines(), 225.0), [(180, 1), (270, 1), (400, 1)])
    assert _canonical(gallery) == [
        "First Avenue, West (Beech Street, West and First Avenue, East)",
        "First Avenue, East (Cedar Street, East and First Avenue, West)",
        "First Avenue, East (Cedar Street, East and Dogwood Street, East)",
    ]


def test_border_near_a_crossing_moves_to_it(tmp_path: Path) -> None:
    gallery = _gallery(_map(tmp_path, grid_lines(), 180.0), [(160, 1), (120, 1)])
    assert _canonical(gallery) == [
        "First Avenue, East (Beech Street, East and Cedar Street, East)",
        "First Avenue, West (Ash Street, West and Beech Street, West)",
    ]


def test_street_along_a_border_is_not_shredded(tmp_path: Path) -> None:
    zigzag = [(150.0 + (3 if i % 2 else -3), 10.0 * i) for i in range(1, 30)]
    lines: list[Line] = [line for line in grid_lines() if line[0] != "Beech Street"]
    lines.append(("Beech Street", "residential", [(150, 0), *zigzag[:14], (150, 150), *zigzag[15:], (150, 300)]))
    street_map = _map(tmp_path, lines, 150.0)
    labels = set()
    street = street_map.names.index("Beech Street")
    graph = build_street_graph(street_map, street, find_touches(street_map, 0.5), 0.5, 60.0)
    labels = Counter(graph.labels)
    assert sum(labels.values()) == 2  # one neighbourhood for each block between two avenues


def test_crossings_too_close_give_way_to_the_more_important(tmp_path: Path) -> None:
    lines = [*grid_lines(), ("Back Alley", "service", [(40, -80), (40, 0), (40, 80)])]
    lines[0] = ("First Avenue", "secondary", [(0, 0), (40, 0), (150, 0), (300, 0), (450, 0)])
    street_map = _map(tmp_path, lines)
    assert _canonical(_gallery(street_map, [(20, 1)])) == ["First Avenue (Ash Street and Beech Street)"]
    assert _canonical(_gallery(street_map, [(20, 1)], min_piece_m=30.0)) == ["First Avenue (Ash Street and Back Alley)"]


def test_dual_carriageways_cross_once(tmp_path: Path) -> None:
    lines: list[Line] = [
        ("Main Street", "primary", [(0, 0), (200, 0), (220, 0), (420, 0)]),
        ("Main Street", "primary", [(420, 20), (220, 20), (200, 20), (0, 20)]),
        ("Ring Road", "primary", [(200, -90), (200, 0), (200, 20), (200, 90)]),
        ("Ring Road", "primary", [(220, 90), (220, 20), (220, 0), (220, -90)]),
        ("West End", "residential", [(0, -50), (0, 0), (0, 20), (0, 50)]),
        ("East End", "residential", [(420, -50), (420, 0), (420, 20), (420, 50)]),
    ]
    gallery = _gallery(_map(tmp_path, lines), [(100, -1), (100, 21), (300, -1), (300, 21), (210, -60)])
    assert _canonical(gallery) == [
        "Main Street (Ring Road and West End)",
        "Main Street (Ring Road and West End)",
        "Main Street (East End and Ring Road)",
        "Main Street (East End and Ring Road)",
        "Ring Road (Main Street)",
    ]


def test_a_bridge_is_no_crossing(tmp_path: Path) -> None:
    lines: list[Line] = [
        ("Low Road", "residential", [(0, 0), (300, 0)]),
        ("High Bridge", "primary", [(150, -200), (150, 200)]),
        ("Side Street", "residential", [(300, -90), (300, 0), (300, 90)]),
    ]
    assert _canonical(_gallery(_map(tmp_path, lines), [(100, 1), (150, 100)])) == [
        "Low Road (Side Street)",
        "High Bridge",
    ]


def test_a_street_that_changes_its_direction_word_goes_on(tmp_path: Path) -> None:
    lines: list[Line] = [
        ("South 2nd Street", "residential", [(0, 0), (0, 200), (0, 400)]),
        ("North 2nd Street", "residential", [(0, 400), (0, 600), (0, 800)]),
        ("Oak Street", "residential", [(-100, 200), (0, 200), (100, 200)]),
        ("Elm Street", "residential", [(-100, 600), (0, 600), (100, 600)]),
    ]
    found = _canonical(_gallery(_map(tmp_path, lines), [(1, 100), (1, 300), (1, 500), (1, 700)]))
    assert found == [
        f"{part} 2nd Street ({street} Street)" for part, street in (("South", "Oak"), ("North", "Elm")) for _ in (0, 1)
    ]
    market: Line = ("Market Street", "secondary", [(-100, 400), (0, 400), (100, 400)])
    found = _canonical(_gallery(_map(tmp_path, [*lines, market]), [(1, 300), (1, 500)]))
    assert found == [
        "South 2nd Street (Market Street and Oak Street)",
        "North 2nd Street (Elm Street and Market Street)",
    ]


def test_lines_that_nearly_meet_are_snapped(tmp_path: Path) -> None:
    lines: list[Line] = [
        ("Main Street", "residential", [(0, 0), (300, 0)]),
        ("Side Street", "residential", [(150, 2), (150, 90)]),
    ]
    street_map = _map(tmp_path, lines, kind="geojson")
    assert _canonical(_gallery(street_map, [(75, 1), (225, 1)], snap_m=3.0)) == ["Main Street (Side Street)"] * 2
    assert _canonical(_gallery(street_map, [(75, 1), (225, 1)], snap_m=0.5)) == ["Main Street"] * 2


def test_a_short_end_keeps_the_last_crossing(tmp_path: Path) -> None:
    lines: list[Line] = [
        ("Main Street", "residential", [(0, 0), (200, 0), (240, 0)]),
        ("Left Street", "residential", [(0, -90), (0, 0), (0, 90)]),
        ("Right Street", "primary", [(200, -90), (200, 0), (200, 90)]),
    ]
    assert (
        _canonical(_gallery(_map(tmp_path, lines), [(100, 1), (238, 1)]))
        == ["Main Street (Left Street and Right Street)"] * 2
    )


@pytest.mark.parametrize(
    ("counts", "min_positions", "expected"),
    [
        ([5, 5, 5], 5, [5, 5, 5]),
        ([2, 5, 5], 5, [7, 5]),
        ([2, 2, 2], 5, [6]),
        ([1, 0, 1], 5, [1, 1]),  # nothing to gain from a block that no photo shows
        ([3, 4, 9], 5, [7, 9]),
        ([4, 4, 4], 1, [4, 4, 4]),
    ],
)
def test_sparse_pieces_join_a_neighbour(
    tmp_path: Path, counts: list[int], min_positions: int, expected: list[int]
) -> None:
    places: Places = [(30.0 + 150 * block + 7 * i, 1.0) for block, count in enumerate(counts) for i in range(count)]
    gallery = _gallery(_map(tmp_path, grid_lines()), places, min_positions=min_positions)
    in_order = sorted(gallery.records, key=lambda record: min(line[0][0] for line in record.lines))
    assert [record.num_positions for record in in_order] == expected
    if expected == [6]:
        assert in_order[0].canonical == "First Avenue (Ash Street and Dogwood Street)"


def test_crops_of_one_panorama_are_one_position(tmp_path: Path) -> None:
    street_map = _map(tmp_path, grid_lines())
    lat, lon = FRAME.to_lat_lon(np.array([[75.0, 1.0]] * 6 + [[225.0, 1.0]] * 6))
    xy_m = street_map.to_xy_m(lat, lon)
    street = nearest_streets(xy_m, street_map, 50.0).street
    gallery = build_gallery(street_map, xy_m, street, ["a"] * 6 + ["b"] * 6, PartitionSettings(min_positions=5), City())
    assert [record.num_positions for record in gallery.records] == [2]


def test_pieces_cover_each_street_once(tmp_path: Path) -> None:
    street_map = _map(tmp_path, grid_lines(), 225.0)
    touches = find_touches(street_map, 0.5)
    for street in range(len(street_map.names)):
        graph = build_street_graph(street_map, street, touches, 0.5, 60.0)
        pieces = [piece for part in cut_street(graph, street_map.names, 60.0) for piece in part.pieces]
        total = sum(line.length for line in street_map.lines[street_map.street == street])
        assert sum(piece.length_m for piece in pieces) == pytest.approx(total)


def test_photo_without_a_street_has_no_class(tmp_path: Path) -> None:
    gallery = _gallery(_map(tmp_path, grid_lines()), [(75, 1), (75, 75)])
    assert gallery.photo_class.tolist() == [0, -1]
    assert _gallery(_map(tmp_path, grid_lines()), [(75, 75)]).records == []


def test_ids_are_readable_and_follow_the_whole_address() -> None:
    first, second = (Address("Straße des Übens", "Süd", (CrossStreet(name),)) for name in ("A Weg", "B Weg"))
    assert sub_street_id(first).startswith("strasse-des-ubens-sud-a-weg-")
    assert sub_street_id(first) != sub_street_id(second)
    assert len(sub_street_id(Address("銀座通り"))) == 8


def test_real_city_reads_as_published(shared_data: Path) -> None:
    folder = shared_data / "pittsburgh"
    parts = folder / "neighbourhoods.geojson"
    street_map = load_street_map(folder / "pittsburgh.osm.pbf", DEFAULT_HIGHWAYS, parts)
    with (folder / "pitts30k_test_positions.csv").open(encoding="utf-8") as file:
        places = [(float(row["utm_east"]), float(row["utm_north"])) for row in csv.DictReader(file)]
    lat, lon = utm.to_latlon(*np.array(places).T.copy(), 17, northern=True)
    xy_m = street_map.to_xy_m(lat, lon)
    street = nearest_streets(xy_m, street_map, 50.0).street
    assert (street >= 0).all()
    gallery = build_gallery(street_map, xy_m, street, [str(place) for place in places], PartitionSettings(), City())
    assert (gallery.photo_class >= 0).all()
    assert len(set(places)) == sum(record.num_positions for record in gallery.records) == 700
    assert all(record.address.neighbourhood and record.address.cross_streets for record in gallery.records)
    assert len({record.verbose for record in gallery.records}) == len(gallery.records)
    for record in gallery.records:
        assert parse_canonical(record.canonical) == record.address
