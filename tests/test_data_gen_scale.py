"""The benchmark of millions, on a few hundred positions."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.data_gen_scale import main, write_positions
from data_gen.streets import DEFAULT_HIGHWAYS, load_street_map
from llava_ial.errors import UserError
from tests.grid_town import grid_lines, write_osm


def test_positions_are_panoramas_of_twelve(tmp_path: Path) -> None:
    street_map = load_street_map(write_osm(tmp_path / "town.osm.pbf", grid_lines()), DEFAULT_HIGHWAYS)
    write_positions(street_map, 40, tmp_path / "p.parquet")
    rows = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert len({row["image_path"] for row in rows}) == 40
    assert [row["panorama_id"] for row in rows] == [f"{i // 12:08d}" for i in range(40)]
    assert len({(row["lat"], row["lon"]) for row in rows}) == 4


@pytest.mark.slow
def test_a_build_is_measured_step_by_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    streets = write_osm(tmp_path / "town.osm.pbf", grid_lines())
    folder = tmp_path / "work"
    options = ["--streets", str(streets), "--num_positions", "600", "--folder", str(folder)]
    monkeypatch.setattr(sys, "argv", ["scale", *options, "--output", str(tmp_path / "r.json"), "--workers", "1"])
    main()
    found = json.loads((tmp_path / "r.json").read_text())
    steps = ["list", "check", "photos", "geocode", "addresses", "caps", "captions", "conversations", "summary"]
    assert [row["step"] for row in found["steps"]] == steps
    assert found["positions"] == 600
    assert found["peak_memory_mb"] > 50
    assert found["cpu_seconds"] > 0.5
    assert not folder.exists()
    folder.mkdir()
    with pytest.raises(UserError, match="is there already"):
        main()
