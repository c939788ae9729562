"""Votes of a place, misplaced positions, splits by area and the leakage they leave."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_gen.blocks import BlockSettings, nearest_train_m, split_by_block
from data_gen.geocode import nearest_streets, vote_streets
from data_gen.positions import misplaced
from data_gen.streets import DEFAULT_HIGHWAYS, StreetMap, load_street_map
from llava_ial.errors import UserError
from llava_ial.splits import straddling
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
    lat, lon = np.array([48.78, 9.18, 48.78, 48.78, 48.78]), np.array([9.18, 48.78, 15.18, 15.18, 2.0])
    is_utm = np.array([False, True, True, False, True])
    reasons = misplaced(lat, lon, is_utm, street_map).tolist()
    assert reasons == ["", "swapped_lat_lon", "wrong_utm_zone", "", ""]


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
    judges = [p for p, split in zip(panoramas, splits, strict=True) if split == "test"]
    nearest = nearest_train_m(kept["test"], judges, kept["train"])
    assert set(nearest) == set(judges)
    assert min(nearest.values()) > BLOCKS.buffer_m


def test_blocks_leave_something_to_train_on() -> None:
    with pytest.raises(UserError, match="together below 1"):
        split_by_block(np.zeros((1, 2)), ["p"], [False], replace(BLOCKS, test_fraction=1.0))
    assert split_by_block(np.zeros((1, 2)), ["p"], [False], BLOCKS) == ["train"]


def test_a_panorama_in_two_splits_is_found() -> None:
    draw = np.random.default_rng(0)
    ranks = draw.integers(0, 40, 300).astype(np.uint64)
    codes = np.where(draw.random(300) < 0.02, 2, ranks % 3).astype(np.int8)
    naive = {int(r) for r in ranks if len(set(codes[ranks == r].tolist())) > 1}
    assert set(straddling(ranks, codes).tolist()) == naive
    assert naive
    assert not len(straddling(ranks, (ranks % 3).astype(np.int8)))
