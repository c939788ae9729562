"""Votes of a place, misplaced positions, splits by area and the leakage they leave."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_gen.addressing import drop_misplaced, leakage_facts
from data_gen.blocks import BlockSettings, nearest_train_m, split_by_block
from data_gen.geocode import nearest_streets, vote_streets
from data_gen.streets import DEFAULT_HIGHWAYS, StreetMap, load_street_map
from llava_ial.address import Address
from llava_ial.errors import UserError
from llava_ial.records import AddressRecord, PhotoRecord
from tests.grid_town import FRAME, grid_lines, write_streets

BLOCKS = BlockSettings(block_m=200.0, buffer_m=40.0, val_fraction=0.1, test_fraction=0.2, seed=0)


@pytest.fixture
def street_map(tmp_path: Path) -> StreetMap:
    return load_street_map(write_streets(tmp_path / "town.geojson", grid_lines()), DEFAULT_HIGHWAYS)


def _on_map(street_map: StreetMap, places: list[tuple[float, float]]) -> np.ndarray:
    return street_map.to_xy_m(*FRAME.to_lat_lon(np.array(places)))


def test_a_stray_position_is_outvoted(street_map: StreetMap) -> None:
    walk = [(x, 2.0) for x in (100.0, 110.0, 120.0, 130.0, 170.0, 180.0)]
    xy_m = _on_map(street_map, [*walk, (147.0, 12.0), (147.0, 12.0), (9e3, 9e3)])
    plain = [street_map.names[i] for i in nearest_streets(xy_m, street_map, 50.0, 5.0).street[:8]]
    assert plain == ["First Avenue"] * 6 + ["Beech Street"] * 2
    voted = vote_streets(xy_m, street_map, 50.0, 5.0, vote_radius_m=40.0)
    assert [street_map.names[i] for i in voted.street[:8]] == ["First Avenue"] * 8
    assert voted.street[8] == -1
    assert voted.margin_m[6] == pytest.approx(-9.0, abs=0.1)


def test_a_vote_of_one_is_the_nearest_street(street_map: StreetMap) -> None:
    xy_m = _on_map(street_map, np.random.default_rng(0).uniform(-60, 500, (300, 2)).tolist())
    xy_m[3] = np.nan
    plain = nearest_streets(xy_m, street_map, 50.0, 5.0)
    voted = vote_streets(xy_m, street_map, 50.0, 5.0, vote_radius_m=0.0)
    assert (plain.street == voted.street).all()
    np.testing.assert_allclose(plain.distance_m, voted.distance_m)
    near = plain.margin_m < 4.9  # beyond the range sought the margin of a vote may be unknown
    np.testing.assert_allclose(plain.margin_m[near], voted.margin_m[near])


def test_a_position_written_the_wrong_way_is_named(street_map: StreetMap) -> None:
    here = PhotoRecord("here", "a.jpg", 48.78, 9.18, None, None, None, "csv")
    photos = [
        here,
        replace(here, image_id="swapped", lat=9.18, lon=48.78),
        replace(here, image_id="zone", lon=15.18, source="file_name"),
        replace(here, image_id="far", lon=15.18),
    ]
    kept, dropped = drop_misplaced(photos, street_map)
    assert [photo.image_id for photo in kept] == ["here", "far"]
    assert [(d.image_id, d.reason) for d in dropped] == [("swapped", "swapped_lat_lon"), ("zone", "wrong_utm_zone")]


@pytest.mark.parametrize("seed", range(5))
def test_blocks_keep_their_distance(seed: int) -> None:
    draw = np.random.default_rng(seed)
    places = draw.uniform(0, 2000, (400, 2))
    xy_m = np.repeat(places, 3, axis=0)
    panoramas = [f"p{i // 3}" for i in range(len(xy_m))]
    unsure = (draw.random(len(xy_m)) < 0.05).tolist()
    splits = split_by_block(xy_m, panoramas, unsure, replace(BLOCKS, seed=seed))
    assert splits == split_by_block(xy_m, panoramas, unsure, replace(BLOCKS, seed=seed))
    count = {name: splits.count(name) for name in set(splits)}
    assert 0.1 < count["test"] / len(splits) < 0.4
    assert count["train"] > count["test"]
    assert not any(flag and split == "test" for flag, split in zip(unsure, splits, strict=True))
    kept = {name: xy_m[[i for i, split in enumerate(splits) if split == name]] for name in ("train", "val", "test")}
    for a, b in (("train", "test"), ("train", "val"), ("val", "test")):  # naive: every pair
        away_m = np.hypot(*(kept[a][:, None] - kept[b][None]).transpose(2, 0, 1))
        assert away_m.min(initial=np.inf) > BLOCKS.buffer_m
    nearest = nearest_train_m(xy_m, panoramas, splits)
    assert set(nearest) == {p for p, split in zip(panoramas, splits, strict=True) if split == "test"}
    assert min(nearest.values()) > BLOCKS.buffer_m


def test_blocks_leave_something_to_train_on() -> None:
    with pytest.raises(UserError, match="together below 1"):
        split_by_block(np.zeros((1, 2)), ["p"], [False], replace(BLOCKS, test_fraction=1.0))
    assert split_by_block(np.zeros((1, 2)), ["p"], [False], BLOCKS) == ["train"]


def test_leakage_is_measured_and_refused() -> None:
    photos = [PhotoRecord(f"i{n}", "x", 48.0 + n / 1000, 9.0, None, f"p{n}", None, "csv") for n in range(3)]
    records = [
        AddressRecord(p.image_id, "s", Address("A"), split, 0.0, None, False, "m")
        for p, split in zip(photos, ("train", "test", "test"), strict=True)
    ]
    facts = leakage_facts(photos, records, [])
    assert facts["nearest_train_m"] == pytest.approx({"p1": 111.2, "p2": 222.4}, abs=0.5)
    assert facts["share_of_test_panoramas_under_25_m"] == 0.0
    with pytest.raises(UserError, match="stand in two splits"):
        leakage_facts([photos[0], replace(photos[1], panorama_id="p0")], records[:2], [])
