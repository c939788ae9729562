"""How sure a figure is, when the photos it is of are not independent."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rate:
    """A mean of answers with its interval.

    Attributes:
        value: Mean of the answers, a fraction.
        low, high: Its interval.
        num_answers: How many answers it is of.
        num_clusters: How many panoramas they come from.
    """

    value: float
    low: float
    high: float
    num_answers: int
    num_clusters: int


@dataclass(frozen=True)
class Difference:
    """How much better the first of two models answered the same questions.

    Attributes:
        value: Difference of the means.
        low, high: Its interval.
        p_value: Share of random swaps of the two models, panorama by panorama, that differ at least as much.
        num_answers, num_clusters: Questions that both answered, and their panoramas.
        num_only_first, num_only_second: Questions that only one of them answered right.
        smallest_visible: Difference that a test of these pairs would find in four cases of five.
    """

    value: float
    low: float
    high: float
    p_value: float
    num_answers: int
    num_clusters: int
    num_only_first: int
    num_only_second: int
    smallest_visible: float


def clustered_rate(
    hits: Sequence[float],
    cluster_of: Sequence[Hashable],
    *,
    group_of: Sequence[Hashable] | None = None,
    seed: int = 0,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> Rate:
    """A mean and its percentile bootstrap interval, drawing whole panoramas.

    Photos of one panorama are right or wrong together: drawing single answers would make the interval far too narrow.
    Where all answers agree every draw does, and the bootstrap would claim certainty from four photos; there the bound
    is the exact binomial one (Clopper and Pearson 1934) for as many independent answers as there are panoramas.

    Args:
        hits: ``(N,)`` per answer, from 0 to 1.
        cluster_of: ``(N,)`` the panorama of each answer.
        group_of: ``(N,)`` if given, the mean is that of the groups' means: with "yes" and "no" the balanced accuracy.
        seed: Of the draws.
        num_resamples: How often all panoramas are drawn again.
        level: Share of the draws inside the interval.

    Raises:
        ValueError: No answers.
    """
    if not len(hits):
        raise ValueError("clustered_rate: no answers; leave a rate of nothing out")
    sums, counts = _by_cluster(hits, cluster_of, group_of)  # (P, G) each
    generator = np.random.default_rng(seed)
    num_clusters = len(sums)
    draws = np.empty(num_resamples)
    for i in range(num_resamples):
        weights = np.bincount(generator.integers(0, num_clusters, num_clusters), minlength=num_clusters)
        draws[i] = _mean_of_means(weights @ sums, weights @ counts)
    low, high = (float(bound) for bound in np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]))
    value = _mean_of_means(sums.sum(axis=0), counts.sum(axis=0))
    exact = ((1 - level) / 2) ** (1 / num_clusters)
    if value == 0.0:
        high = 1 - exact
    elif value == 1.0:
        low = exact
    return Rate(value, low, high, len(hits), num_clusters)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    cluster_of: Sequence[Hashable],
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> Difference:
    """Compares two models on the same questions.

    The interval draws whole panoramas with both models' answers. The p-value is that of a permutation test: if the
    models were equal, their answers to a panorama could be swapped.

    Args:
        first: ``(N,)`` per question, from 0 to 1.
        second: ``(N,)`` the same of the other model.
        cluster_of: ``(N,)`` panoramas.
        seed: Of the draws.
        num_resamples: How often panoramas are drawn, and how often swapped.
        level: Share of the draws inside the interval.

    Raises:
        ValueError: No pairs.
    """
    if not len(first):
        raise ValueError("paired_difference: no question that both models answered")
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    sums, counts = (part[:, 0] for part in _by_cluster(difference.tolist(), cluster_of, None))  # (P,)
    generator = np.random.default_rng(seed)
    total, num_clusters = float(counts.sum()), len(sums)
    value = float(sums.sum()) / total
    draws, swaps = np.empty(num_resamples), np.empty(num_resamples)
    for i in range(num_resamples):
        drawn = generator.integers(0, num_clusters, num_clusters)
        draws[i] = sums[drawn].sum() / counts[drawn].sum()
        swaps[i] = (sums * generator.choice([-1.0, 1.0], num_clusters)).sum() / total
    low, high = (float(bound) for bound in np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]))
    # The swap that swaps nothing is one of them, so that no p-value is zero.
    as_large = int((np.abs(swaps) >= abs(value) - 1e-12).sum())
    return Difference(
        value,
        low,
        high,
        (as_large + 1) / (num_resamples + 1),
        len(difference),
        num_clusters,
        int((difference > 0).sum()),
        int((difference < 0).sum()),
        smallest_visible_difference(standard_error(difference.tolist(), cluster_of)),
    )


def standard_error(values: Sequence[float], cluster_of: Sequence[Hashable]) -> float:
    """Of the mean of values that come in clusters (the sandwich estimator of a ratio; 0 for one cluster)."""
    sums, counts = (part[:, 0] for part in _by_cluster(values, cluster_of, None))
    if len(sums) < 2:
        return 0.0
    residuals = sums - counts * (sums.sum() / counts.sum())
    scale = len(sums) / (len(sums) - 1)
    return float(np.sqrt(scale * (residuals**2).sum()) / counts.sum())


def smallest_visible_difference(error: float, *, level: float = 0.95, power: float = 0.8) -> float:
    """The true difference that a two-sided test at ``1 - level`` finds with probability ``power``.

    Args:
        error: Standard error of the difference. Of two models that were not compared question by question it is at
            most about the square root of two times that of one.
        level: Of the interval that must not contain zero.
        power: Share of experiments that find it.

    Example:
        >>> round(smallest_visible_difference(0.01), 4)
        0.028
    """
    normal = NormalDist()
    return (normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)) * error


def _by_cluster(
    values: Sequence[float], cluster_of: Sequence[Hashable], group_of: Sequence[Hashable] | None
) -> tuple[FloatArray, FloatArray]:
    """Sums and counts per cluster and group, ``(P, G)`` each."""
    clusters = {name: i for i, name in enumerate(dict.fromkeys(cluster_of))}
    groups = {name: i for i, name in enumerate(dict.fromkeys(group_of or [None]))}
    rows = np.array([clusters[name] for name in cluster_of])
    columns = np.array([groups[name] for name in group_of]) if group_of else np.zeros(len(rows), dtype=np.int64)
    sums, counts = np.zeros((2, len(clusters), len(groups)))
    np.add.at(sums, (rows, columns), np.asarray(values, dtype=np.float64))
    np.add.at(counts, (rows, columns), 1.0)
    return sums, counts


def _mean_of_means(sums: FloatArray, counts: FloatArray) -> float:
    """Mean of the groups' means, ``(G,)``; a draw may hold no answer of a group, which then does not count."""
    is_there = counts > 0
    return float((sums[is_there] / counts[is_there]).mean())
