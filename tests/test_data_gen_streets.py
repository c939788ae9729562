"""The comparison of streets with published ones: shares that a loop gives too, and a reason for each difference."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.data_gen_streets import main
from llava_ial.errors import UserError
from tests.grid_town import AVENUES, grid_lines, lon_lat, write_csv, write_osm


def _compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *options: str) -> dict[str, object]:
    streets = write_osm(tmp_path / "town.osm.pbf", grid_lines())
    output = tmp_path / "found.json"
    command = ["streets", "--streets", str(streets), "--output", str(output), "--errors_m", "0", *options]
    monkeypatch.setattr(sys, "argv", command)
    main()
    found: dict[str, object] = json.loads(output.read_text())
    return found


def test_each_difference_is_listed_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = []
    for number, (y, street, snap_m) in enumerate(
        [(1.0, AVENUES[0], "1.0"), (4.0, f"['{AVENUES[0]}', 'Other']", ""), (5.0, AVENUES[1], ""), (6.0, "Gone", "6.0")]
    ):
        ((lon, lat),) = lon_lat([(75.0, y)])
        rows.append({"image_id": f"p{number}", "lat": lat, "lon": lon, "osm_street": street, "snap_dist_m": snap_m})
    write_csv(tmp_path / "positions.csv", rows, ("image_id", "lat", "lon", "osm_street", "snap_dist_m"))
    found = _compare(
        monkeypatch, tmp_path, "--positions", str(tmp_path / "positions.csv"), "--street_column", "osm_street"
    )
    assert found["positions"] == 4
    assert found["rows"][0]["right"] == 0.5
    listed = {row["name"]: row["reason"] for row in found["disagreements"]}
    assert set(listed) == {"p2", "p3"}
    assert listed["p2"] == "the published street is 140.0 m farther; the two do not meet"
    assert listed["p3"].startswith("the published distance is the one to this very line")
    assert listed["p3"].endswith("the map has no street of that name")


def test_drawn_positions_without_error_are_on_their_street(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = _compare(monkeypatch, tmp_path, "--vote_radii_m", "25", "--drawn", "100")
    assert [row["way"] for row in found["rows"]] == ["nearest street", "vote within 25 m"]
    assert found["positions"] == 100
    assert found["rows"][0]["right"] == 1.0
    assert found["disagreements"] == []


def test_positions_off_the_map_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_csv(tmp_path / "positions.csv", [{"lat": 1.0, "lon": 2.0}], ("lat", "lon"))
    with pytest.raises(UserError, match="positions: none of the 1 of"):
        _compare(monkeypatch, tmp_path, "--positions", str(tmp_path / "positions.csv"))


def test_published_streets_of_real_positions(
    monkeypatch: pytest.MonkeyPatch, shared_data: Path, tmp_path: Path
) -> None:
    kinds = "primary secondary tertiary unclassified residential living_street pedestrian service footway path cycleway"
    folder, output = shared_data / "stuttgart", tmp_path / "found.json"
    options = ["--streets", folder / "streets.geojson", "--positions", folder / "mapillary_positions.csv"]
    options += ["--street_column", "osm_street", "--output", output, "--errors_m", "0", "--vote_radii_m", "25"]
    monkeypatch.setattr(sys, "argv", ["streets", *map(str, options), "--highways", *kinds.split(), "steps"])
    main()
    found = json.loads(output.read_text())
    assert found["positions"] == 1653
    assert found["rows"][0]["right"] > 0.99
    assert len(found["disagreements"]) == round(1653 * (1 - found["rows"][0]["right"]))
    assert all("this very line" in row["reason"] for row in found["disagreements"])
