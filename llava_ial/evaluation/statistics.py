"""How sure a figure is, when the photos it is of are not independent."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rate:
    """A share of answers with its interval.

    Attributes:
        value: Fraction of the answers.
        low, high: Its interval.
        num_answers: How many answers it is of.
        num_clusters: How many panoramas they come from.
    """

    value: float
    low: float
    high: float
    num_answers: int
    num_clusters: int


def clustered_rate(
    is_hit: Sequence[bool],
    cluster_of: Sequence[Hashable],
    *,
    seed: int = 0,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> Rate:
    """A share and its percentile bootstrap interval, drawing whole panoramas.

    Photos of one panorama are right or wrong together: drawing single answers would make the interval far too narrow.
    Where all answers agree every draw does, and the bootstrap would claim certainty from four photos; there the bound
    is the exact binomial one (Clopper and Pearson 1934) for as many independent answers as there are panoramas.

    Args:
        is_hit: ``(N,)`` per answer.
        cluster_of: ``(N,)`` the panorama of each answer.
        seed: Of the draws.
        num_resamples: How often all panoramas are drawn again.
        level: Share of the draws inside the interval.

    Raises:
        ValueError: No answers.
    """
    if not is_hit:
        raise ValueError("clustered_rate: no answers; leave a rate of nothing out")
    index = {name: i for i, name in enumerate(dict.fromkeys(cluster_of))}
    cluster = np.array([index[name] for name in cluster_of])
    sizes = np.bincount(cluster).astype(np.float64)  # (P,)
    hits = np.bincount(cluster, weights=np.asarray(is_hit, dtype=np.float64))  # (P,)
    generator = np.random.default_rng(seed)
    draws = np.empty(num_resamples)
    for i in range(num_resamples):
        drawn = generator.integers(0, len(sizes), len(sizes))
        draws[i] = hits[drawn].sum() / sizes[drawn].sum()
    low, high = (float(bound) for bound in np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]))
    value = float(hits.sum() / sizes.sum())
    exact = ((1 - level) / 2) ** (1 / len(sizes))
    if value == 0.0:
        high = 1 - exact
    elif value == 1.0:
        low = exact
    return Rate(value, low, high, len(is_hit), len(sizes))
