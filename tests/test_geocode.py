"""Nearest streets: the bulk search against an obvious loop, and against an independent truth."""

import csv
from pathlib import Path

import numpy as np
import pytest
import shapely

from data_gen import geocode
from data_gen.geocode import nearest_streets, vote_streets
from data_gen.streets import DEFAULT_HIGHWAYS, HIGHWAY_RANK, StreetMap, load_street_map
from tests.grid_town import Line, grid_lines, write_streets


@pytest.fixture
def street_map(tmp_path: Path) -> StreetMap:
    crooked: list[Line] = [("Diagonal Way", "residential", [(-20, -20), (130, 90), (280, 320)])]
    parted: list[Line] = [(name, kind, points[:2]) for name, kind, points in grid_lines()]
    parted += [(name, kind, points[1:]) for name, kind, points in grid_lines()]
    return load_street_map(write_streets(tmp_path / "town.geojson", parted + crooked), DEFAULT_HIGHWAYS)


def _loop(point: np.ndarray, street_map: StreetMap, max_distance_m: float, range_m: float) -> tuple[int, float, float]:
    """The nearest street of one point, one line after another."""
    away = dict.fromkeys(range(len(street_map.names)), np.inf)
    for line, street in zip(street_map.lines, street_map.street.tolist(), strict=True):
        away[street] = min(away[street], shapely.distance(shapely.Point(point), line))
    (first, best), (_, second), *_ = sorted(away.items(), key=lambda item: (item[1], item[0]))
    if not best <= max_distance_m:
        return -1, np.nan, np.nan
    return first, best, second - best if second <= max_distance_m + range_m else np.nan


@pytest.mark.parametrize("chunk", [7, 100_000])
@pytest.mark.parametrize(("max_distance_m", "range_m"), [(50.0, 0.0), (20.0, 5.0), (200.0, 50.0)])
def test_equals_the_loop(
    street_map: StreetMap, monkeypatch: pytest.MonkeyPatch, chunk: int, max_distance_m: float, range_m: float
) -> None:
    monkeypatch.setattr(geocode, "_CHUNK", chunk)
    corner = street_map.lines[0].coords[0]
    xy_m = np.random.default_rng(0).uniform(-250, 500, (120, 2)) + corner
    xy_m[5] = np.nan
    xy_m[6] = corner
    found = nearest_streets(xy_m, street_map, max_distance_m, range_m)
    for i, point in enumerate(xy_m):
        expected = (-1, np.nan, np.nan) if i == 5 else _loop(point, street_map, max_distance_m, range_m)
        actual = (found.street[i], found.distance_m[i], found.margin_m[i])
        assert actual == pytest.approx(expected, abs=1e-9, nan_ok=True), i


def test_no_position_in_range_and_none_at_all(street_map: StreetMap) -> None:
    far = nearest_streets(np.array([[9e5, 9e5], [np.nan, np.nan]]), street_map, 50.0)
    assert far.street.tolist() == [-1, -1]
    assert nearest_streets(np.zeros((0, 2)), street_map, 50.0).street.shape == (0,)


def test_real_positions_agree_with_their_published_street(shared_data: Path) -> None:
    street_map = load_street_map(shared_data / "stuttgart" / "streets.geojson", list(HIGHWAY_RANK))
    with (shared_data / "stuttgart" / "mapillary_positions.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["osm_street"] and float(row["lat"]) > 40]
    xy_m = street_map.to_xy_m([float(row["lat"]) for row in rows], [float(row["lon"]) for row in rows])
    found = [street_map.names[street] for street in nearest_streets(xy_m, street_map, 50.0).street]
    # A published name can be a list of the names of merged ways.
    right = [
        name == row["osm_street"] or f"'{name}'" in row["osm_street"] for name, row in zip(found, rows, strict=True)
    ]
    assert len(rows) == 1653
    assert np.mean(right) > 0.99
    # What differs stands at a crossing: another street is almost as near.
    margin_m = nearest_streets(xy_m, street_map, 50.0).margin_m
    assert all(margin < 5.0 for margin, ok in zip(margin_m, right, strict=True) if not ok)
    with_photo = [ok for ok, row in zip(right, rows, strict=True) if row["file"]]
    assert (len(with_photo), all(with_photo)) == (18, True)


def test_a_vote_helps_where_positions_err_by_more_than_a_street_is_wide(shared_data: Path) -> None:
    """And it costs where they do not: exact positions keep their nearest street, the default."""
    street_map = load_street_map(shared_data / "stuttgart" / "streets.geojson", list(HIGHWAY_RANK))
    with (shared_data / "stuttgart" / "mapillary_positions.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["osm_street"] and float(row["lat"]) > 40]
    xy_m = street_map.to_xy_m([float(row["lat"]) for row in rows], [float(row["lon"]) for row in rows])

    def share_right(street: np.ndarray) -> float:
        names = [street_map.names[index] for index in street]
        return float(np.mean([name in row["osm_street"] for name, row in zip(names, rows, strict=True)]))

    erring = xy_m + np.random.default_rng(0).normal(0.0, 10.0, xy_m.shape)
    plain = share_right(nearest_streets(erring, street_map, 50.0, 5.0).street)
    assert share_right(vote_streets(erring, street_map, 50.0, 5.0, 25.0).street) > plain + 0.02
    exact = share_right(vote_streets(xy_m, street_map, 50.0, 5.0, 25.0).street)
    assert exact < share_right(nearest_streets(xy_m, street_map, 50.0).street)
