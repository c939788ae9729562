"""House numbers: read with the map, given to photos close to one of their own street."""

from pathlib import Path

import numpy as np
import pytest

from data_gen.build import build
from data_gen.house_numbers import nearest_houses
from data_gen.houses import Houses, load_houses
from data_gen.run_options import RunOptions
from data_gen.streets import DEFAULT_HIGHWAYS, load_street_map
from llava_ial.data.dataset import IALDataset
from llava_ial.records import HouseNumberRecord, read_records
from llava_ial.wider_prompts import HOUSE_NUMBER
from tests.grid_town import HOUSES, grid_lines, write_osm, write_streets, write_town
from tests.test_build_parts import town_settings


def test_the_nearest_house_of_the_own_street_as_a_double_loop_finds_it() -> None:
    draw = np.random.default_rng(0)
    xy_m, street = draw.uniform(0, 200, (80, 2)), draw.integers(0, 4, 80)
    houses = Houses(draw.uniform(0, 200, (60, 2)), draw.integers(0, 4, 60), [str(i) for i in range(60)])
    house, away_m = nearest_houses(xy_m, street, houses, 25.0)
    for i in range(80):
        near = {float(np.hypot(*(xy_m[i] - houses.xy_m[h]))): h for h in range(60) if houses.street[h] == street[i]}
        best = min(near)
        assert (house[i], away_m[i]) == (
            (near[best], pytest.approx(best)) if best <= 25.0 else (-1, pytest.approx(np.nan, nan_ok=True))
        )
    assert (house >= 0).any()
    assert (house < 0).any()


def test_a_town_with_numbered_houses(tmp_path: Path) -> None:
    town = write_town(tmp_path / "town")
    build(town_settings(town, questions="all", num_dialogues=9), RunOptions(tmp_path / "data", workers=1))
    found = {
        r.image_id: (r.house_number, r.distance_m)
        for r in read_records(tmp_path / "data" / "house_numbers", HouseNumberRecord)
    }
    # The house of another street beside photo000 is not its own; 38 m to number 7a are too far.
    assert found == {"photo000": ("12", pytest.approx(6.0, abs=0.1)), "photo009": ("3", pytest.approx(3.0, abs=0.1))}
    data = IALDataset(tmp_path / "data")
    answers = {
        dialogue.image_id: dialogue.messages[2 * turn + 1].content
        for split in ("train", "val", "test")
        if (tmp_path / "data" / "conversations" / split).is_dir()
        for dialogue in data.conversations(split)
        for turn, task in enumerate(dialogue.tasks)
        if task == HOUSE_NUMBER
    }
    assert answers == {"photo000": "The nearest house number is 12.", "photo009": "The nearest house number is 3."}
    build(town_settings(town, house_number_m=0.0), RunOptions(tmp_path / "none", workers=1))
    assert not (tmp_path / "none" / "house_numbers").exists()


def test_houses_of_an_extract(tmp_path: Path) -> None:
    extract = write_osm(tmp_path / "town.osm.pbf", grid_lines(), houses=HOUSES)
    street_map = load_street_map(extract, DEFAULT_HIGHWAYS)
    houses = load_houses(extract, street_map.names, street_map.frame)
    names = [(street_map.names[s], n) for s, n in zip(houses.street.tolist(), houses.numbers, strict=True)]
    assert names == [("Ash Street", "3"), ("First Avenue", "12"), ("First Avenue", "14"), ("Second Avenue", "7a")]
    lines = write_streets(tmp_path / "lines.geojson", grid_lines())
    assert load_houses(lines, street_map.names, street_map.frame).numbers == []


def test_real_extracts_have_houses(shared_data: Path) -> None:
    extract = shared_data / "osm" / "liechtenstein-latest.osm.pbf"
    street_map = load_street_map(extract, DEFAULT_HIGHWAYS)
    houses = load_houses(extract, street_map.names, street_map.frame)
    assert len(houses.numbers) > 500
