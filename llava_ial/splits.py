"""Train, val and test by panorama, and the check that nothing leaks between them.

The protocol of the AddressCLIP paper: all photos of one panorama stand in one split, so that no test photo was seen
from the same spot in training. A photo whose street is ambiguous may teach but never judges.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from llava_ial.errors import UserError

SPLIT_NAMES = ("train", "val", "test")


def panorama_rank(panorama_id: str, seed: int) -> int:
    """A fixed pseudo-random number of 64 bits: a function of the panorama's name and the seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{panorama_id}".encode()).digest()[:8], "big")


def split_by_panorama(
    panorama_ids: Sequence[str],
    is_ambiguous: Sequence[bool],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> list[str]:
    """A split for each photo.

    Panoramas are ranked by hash; the first ones fill ``test``, the next ones ``val``, the rest is ``train``. The
    fractions count panoramas. At least one panorama stays in train, and with three or more there is one in test where a
    test fraction is asked for. A panorama with an ambiguous photo is always train.

    Args:
        panorama_ids: Per photo.
        is_ambiguous: Per photo.
        val_fraction, test_fraction: Of the panoramas, each at least 0, below 1 together.
        seed: Another seed, another draw.

    Raises:
        UserError: Fractions that leave nothing to train on.
    """
    ranks = np.array([panorama_rank(panorama, seed) for panorama in panorama_ids], dtype=np.uint64)
    unsure = np.array(is_ambiguous, dtype=bool)
    codes = split_by_rank(ranks, unsure, val_fraction=val_fraction, test_fraction=test_fraction)
    return [SPLIT_NAMES[code] for code in codes.tolist()]


def split_by_rank(
    ranks: npt.NDArray[np.uint64], is_ambiguous: npt.NDArray[np.bool_], *, val_fraction: float, test_fraction: float
) -> npt.NDArray[np.int8]:
    """The same for photos ``(N,)`` by the ranks of their panoramas: indices into ``SPLIT_NAMES``, shape ``(N,)``."""
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise UserError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction}: each at least 0, together below 1"
        )
    panoramas, which = np.unique(ranks, return_inverse=True)
    is_unsure = np.zeros(len(panoramas), dtype=bool)
    is_unsure[which[is_ambiguous]] = True
    num_test = round(test_fraction * len(panoramas))
    if test_fraction and len(panoramas) >= 3:
        num_test = max(num_test, 1)
    eligible = np.flatnonzero(~is_unsure)
    # One panorama must be left to train on, also where every photo is sure of its street.
    num_held_out = max(min(num_test + round(val_fraction * len(panoramas)), len(eligible), len(panoramas) - 1), 0)
    split_of = np.full(len(panoramas), SPLIT_NAMES.index("train"), dtype=np.int8)
    split_of[eligible[:num_held_out]] = SPLIT_NAMES.index("val")
    split_of[eligible[: min(num_test, num_held_out)]] = SPLIT_NAMES.index("test")
    return split_of[which]


def straddling(ranks: npt.NDArray[np.uint64], codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint64]:
    """Ranks of the panoramas that stand in two splits, of photos ``(N,)`` with their splits; empty if none leaks."""
    panoramas, which = np.unique(ranks, return_inverse=True)
    lowest, highest = np.full(len(panoramas), 127, dtype=np.int8), np.full(len(panoramas), -1, dtype=np.int8)
    np.minimum.at(lowest, which, codes)
    np.maximum.at(highest, which, codes)
    found: npt.NDArray[np.uint64] = panoramas[lowest != highest]
    return found


def check_leakage(panorama_ids: Sequence[str], splits: Sequence[str]) -> None:
    """Refuses a division in which a panorama stands in two splits.

    Raises:
        UserError: Names up to three such panoramas, or an unknown split.
    """
    found: Mapping[str, set[str]] = defaultdict(set)
    for panorama, split in zip(panorama_ids, splits, strict=True):
        found[panorama].add(split)
    if unknown := set(splits) - set(SPLIT_NAMES):
        raise UserError(f"split '{min(unknown)}' is unknown; allowed: {', '.join(SPLIT_NAMES)}")
    leaking = sorted(panorama for panorama, where in found.items() if len(where) > 1)
    if leaking:
        examples = ", ".join(f"{p} ({' and '.join(sorted(found[p]))})" for p in leaking[:3])
        raise UserError(
            f"{len(leaking)} panorama(s) stand in two splits: {examples}; a test photo would have been seen in "
            "training. Mend the split column, draw the split by fractions, or make panorama_radius_m smaller"
        )
