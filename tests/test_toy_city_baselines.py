"""The untuned CLIP as a baseline of a toy city: the same photos find themselves, names come from the plan."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from data_gen.toy_city.__main__ import build_parser
from data_gen.toy_city.build import CityOptions, build_city
from data_gen.toy_city.clip_baselines import measure_clip, name_sub_street
from data_gen.toy_city.photos import Photo
from data_gen.toy_city.place import build_place
from data_gen.toy_city.plan import build_plan
from tests.tiny_world import TinyWorld, build_tiny_base_clip, build_tiny_dataset

SEED = 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baselines")
    build_tiny_dataset(folder / "data", TinyWorld())
    build_tiny_base_clip(folder / "clip", folder / "data")
    build_city(CityOptions(SEED, "tiny", 32), folder / "city", workers=1, clip=folder / "clip")
    return folder


def test_a_clip_is_measured_beside_the_rest(world: Path) -> None:
    figures = json.loads((world / "city" / "baselines.json").read_text())
    assert {"pixels_16x16_1nn_ssa_at_1", "clip_1nn_ssa_at_1", "clip_zero_shot_ssa_at_1"} < set(figures)
    assert all(0 <= figures[name] <= 1 for name in figures if name.endswith("at_1"))


def test_photos_that_are_in_both_splits_find_themselves(world: Path) -> None:
    plan = build_plan(SEED, "tiny")
    with (world / "city" / "photos.csv").open() as table, (world / "city" / "truth.csv").open() as truth:
        rows = [{**photo, **where} for photo, where in zip(csv.DictReader(table), csv.DictReader(truth), strict=True)]
    photos = [
        Photo(
            image_path=row["image_path"], image_id=row["image_id"], panorama_id="", lat=0.0, lon=0.0, heading_deg=0.0,
            captured_at="", split="train", caption="", sub_street=int(row["sub_street"]),
        )
        for row in rows
    ]  # fmt: skip
    twice = [*photos, *(dataclasses.replace(photo, split="test") for photo in photos)]
    found = measure_clip(world / "city", twice, plan, build_place(plan), world / "clip")
    assert found["clip_1nn_ssa_at_1"] == 1.0
    assert found["clip_zero_shot_ssa_at_1"] < 1.0


def test_a_sub_street_is_named_by_streets_that_meet_it() -> None:
    plan = build_plan(SEED, "small")
    place = build_place(plan)
    for part in plan.sub_streets:
        address = name_sub_street(plan, place, part.index)
        assert address.street == place.streets[part.street]
        ends = {part.start, part.end}
        meeting = {p.street for p in plan.sub_streets if ends & {p.start, p.end}} - {part.street}
        assert {crossing.street for crossing in address.cross_streets} <= {place.streets[street] for street in meeting}
        assert bool(address.cross_streets) == bool(meeting)


def test_none_measures_no_clip() -> None:
    assert build_parser().parse_args(["--seed", "1", "--output", "x", "--clip", "none"]).clip == Path("none")
