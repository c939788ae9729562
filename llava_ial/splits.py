"""Train, val and test by panorama, and the check that nothing leaks between them.

The protocol of the AddressCLIP paper: all photos of one panorama stand in one split, so that no test photo was seen
from the same spot in training. A photo whose street is ambiguous may teach but never judges.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from llava_ial.errors import UserError

SPLIT_NAMES = ("train", "val", "test")


def panorama_order(panorama_id: str, seed: int) -> str:
    """A fixed pseudo-random rank of a panorama: a function of its name and the seed alone."""
    return hashlib.sha256(f"{seed}:{panorama_id}".encode()).hexdigest()


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
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise UserError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction}: each at least 0, together below 1"
        )
    unsure = {panorama for panorama, flag in zip(panorama_ids, is_ambiguous, strict=True) if flag}
    panoramas = sorted(set(panorama_ids), key=lambda panorama: panorama_order(panorama, seed))
    num_test = round(test_fraction * len(panoramas))
    if test_fraction and len(panoramas) >= 3:
        num_test = max(num_test, 1)
    eligible = [panorama for panorama in panoramas if panorama not in unsure]
    # One panorama must be left to train on, also where every photo is sure of its street.
    num_held_out = min(num_test + round(val_fraction * len(panoramas)), len(eligible), len(panoramas) - 1)
    split_of = dict.fromkeys(panoramas, "train")
    for position, panorama in enumerate(eligible[:num_held_out]):
        split_of[panorama] = "test" if position < num_test else "val"
    return [split_of[panorama] for panorama in panorama_ids]


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
