"""Splits: no panorama straddles, the draw is fixed by the seed, ambiguous photos never judge."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_ial.errors import UserError
from llava_ial.splits import check_leakage, split_by_panorama

PANORAMAS = st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=80)


def _draw(rows: list[tuple[int, bool]], seed: int, val: float = 0.2, test: float = 0.3) -> list[str]:
    names = [f"p{number}" for number, _ in rows]
    return split_by_panorama(names, [flag for _, flag in rows], val_fraction=val, test_fraction=test, seed=seed)


@settings(max_examples=150, deadline=None)
@given(PANORAMAS, st.integers(0, 5), st.sampled_from([(0.0, 0.0), (0.2, 0.3), (0.1, 0.85), (0.0, 0.01)]))
def test_invariants(rows: list[tuple[int, bool]], seed: int, fractions: tuple[float, float]) -> None:
    val, test = fractions
    splits = _draw(rows, seed, val, test)
    names = [f"p{number}" for number, _ in rows]
    check_leakage(names, splits)
    assert "train" in splits
    unsure = {name for name, (_, flag) in zip(names, rows, strict=True) if flag}
    assert all(split == "train" for name, split in zip(names, splits, strict=True) if name in unsure)
    sure = set(names) - unsure
    if test and len(set(names)) >= 3 and sure:
        assert "test" in splits
    held = {name for name, split in zip(names, splits, strict=True) if split == "test"}
    assert len(held) <= max(1, round(test * len(set(names))))


def test_the_draw_follows_the_panorama_and_not_the_order() -> None:
    rows = [(i % 20, False) for i in range(60)]
    splits = dict(zip([number for number, _ in rows], _draw(rows, 1), strict=True))
    shuffled = random.Random(0).sample(rows, len(rows))
    assert dict(zip([number for number, _ in shuffled], _draw(shuffled, 1), strict=True)) == splits
    assert _draw(rows, 1) != _draw(rows, 2)


def test_fractions_count_panoramas() -> None:
    splits = _draw([(i, False) for i in range(100)], 0)
    assert {split: splits.count(split) for split in ("train", "val", "test")} == {"train": 50, "val": 20, "test": 30}


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.2), (0.0, 1.0)])
def test_fractions_that_leave_no_training_are_refused(val: float, test: float) -> None:
    with pytest.raises(UserError, match="together below 1"):
        _draw([(0, False)], 0, val, test)


def test_leakage_names_the_panorama() -> None:
    with pytest.raises(UserError, match=r"1 panorama\(s\) stand in two splits: b \(test and train\)"):
        check_leakage(["a", "b", "b"], ["train", "train", "test"])
    with pytest.raises(UserError, match="split 'dev' is unknown"):
        check_leakage(["a"], ["dev"])
