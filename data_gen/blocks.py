"""Splits by area: whole square cells of the city, with a buffer between them, for an honest figure of generalisation.

Panoramas of one street stand some ten metres apart: a split by panorama asks for places that were seen from ten metres
away. Here a test photo has no training photo within the buffer.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import shapely

from llava_ial.errors import UserError

FloatArray = npt.NDArray[np.float64]
IdT = TypeVar("IdT", str, int)  # panoramas by name or by number
IN_BUFFER, AMBIGUOUS = "in_buffer", "ambiguous_in_test"


@dataclass(frozen=True)
class BlockSettings:
    """Side of a cell and distance kept between splits in metres; fractions count panoramas."""

    block_m: float
    buffer_m: float
    val_fraction: float
    test_fraction: float
    seed: int


def split_by_block(
    xy_m: FloatArray, panorama_ids: Sequence[IdT], is_ambiguous: Sequence[bool], settings: BlockSettings
) -> list[str]:
    """``train``, ``val`` or ``test`` of each photo, or why it has none: ``in_buffer``, ``ambiguous_in_test``.

    Cells are ranked by hash; the first ones fill test, the next ones val. What is within the buffer of a test photo is
    left out of train and val, what is within the buffer of a val photo out of train; always whole panoramas.

    Raises:
        UserError: Fractions that leave nothing to train on.
    """
    if min(settings.val_fraction, settings.test_fraction) < 0 or settings.val_fraction + settings.test_fraction >= 1:
        raise UserError(
            f"val_fraction {settings.val_fraction} and test_fraction {settings.test_fraction}: each at least 0, "
            "together below 1"
        )
    photos_of: dict[IdT, list[int]] = defaultdict(list)
    for i, panorama in enumerate(panorama_ids):
        photos_of[panorama].append(i)
    cells: dict[tuple[int, int], list[IdT]] = defaultdict(list)
    for panorama, members in photos_of.items():
        east, north = np.floor(xy_m[members].mean(axis=0) / settings.block_m).astype(int).tolist()
        cells[east, north].append(panorama)
    num_test = settings.test_fraction * len(photos_of)
    num_held_out = num_test + settings.val_fraction * len(photos_of)
    split_of: dict[IdT, str] = {}
    ranked = sorted(cells, key=lambda cell: hashlib.sha256(f"{settings.seed}:{cell}".encode()).hexdigest())
    for cell in ranked[:-1]:  # at least one cell is left to train on
        taken = len(split_of)
        if taken >= num_held_out:
            break
        split_of |= dict.fromkeys(cells[cell], "test" if taken < num_test else "val")
    splits = [split_of.get(panorama, "train") for panorama in panorama_ids]
    for judge, others in (("test", ("train", "val")), ("val", ("train",))):
        _clear_buffer(xy_m, panorama_ids, splits, judge, others, settings.buffer_m)
    return [AMBIGUOUS if split == "test" and flag else split for split, flag in zip(splits, is_ambiguous, strict=True)]


def nearest_train_m(test_xy_m: FloatArray, panorama_ids: Sequence[IdT], train_xy_m: FloatArray) -> dict[IdT, float]:
    """Metres from each test panorama to the nearest training photo; empty if there are none of either.

    Args:
        test_xy_m: ``(N, 2)`` positions of test photos.
        panorama_ids: Their panoramas.
        train_xy_m: ``(M, 2)`` positions of training photos.
    """
    if not len(train_xy_m) or not len(test_xy_m):
        return {}
    tree = shapely.STRtree(shapely.points(train_xy_m))
    (which, _), away_m = tree.query_nearest(shapely.points(test_xy_m), return_distance=True, all_matches=False)
    nearest: dict[IdT, float] = {}
    for i, away in zip(which.tolist(), away_m.tolist(), strict=True):
        name = panorama_ids[i]
        nearest[name] = min(away, nearest.get(name, float("inf")))
    return nearest


def _clear_buffer(
    xy_m: FloatArray,
    panorama_ids: Sequence[IdT],
    splits: list[str],
    judge: str,
    others: Sequence[str],
    buffer_m: float,
) -> None:
    judges = [i for i, split in enumerate(splits) if split == judge]
    rest = [i for i, split in enumerate(splits) if split in others]
    if not judges or not rest or not buffer_m:
        return
    tree = shapely.STRtree(shapely.points(np.unique(xy_m[judges], axis=0)))
    near, _ = tree.query(shapely.points(xy_m[rest]), predicate="dwithin", distance=buffer_m)
    gone = {panorama_ids[rest[i]] for i in near.tolist()}
    for i in rest:
        if panorama_ids[i] in gone:
            splits[i] = IN_BUFFER
