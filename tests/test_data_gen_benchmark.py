"""The benchmark of data generation runs, and compares ways that give the same answers."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.data_gen import main
from llava_ial.errors import UserError
from tests.grid_town import grid_lines, write_osm


def test_benchmark_runs_on_a_small_town(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    streets = write_osm(tmp_path / "town.osm.pbf", grid_lines())
    sizes = ["--num_positions", "300", "--num_looped", "50", "--num_records", "60", "--repeats", "1"]
    arguments = ["--streets", str(streets), *sizes, "--output", str(tmp_path / "out" / "r.json")]
    monkeypatch.setattr(sys, "argv", ["data_gen", *arguments])
    main()
    found = json.loads((tmp_path / "out" / "r.json").read_text())
    assert [row["records"] for row in found["rows"]][:3] == [300, 50, 50]
    assert all(row["records_per_s"] > 0 for row in found["rows"])
    monkeypatch.setattr(sys, "argv", ["data_gen", *arguments, "--repeats", "0"])
    with pytest.raises(UserError, match="repeats"):
        main()
