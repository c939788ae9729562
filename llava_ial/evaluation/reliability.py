"""Is a model as often right as it says? Of any answers that come with a probability."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from llava_ial.calibration import NUM_BINS, calibration_error
from llava_ial.evaluation.statistics import Rate


@dataclass(frozen=True)
class Bin:
    """Answers of similar confidence: how sure they were on average, and how many were right."""

    confidence: float
    accuracy: float
    num_answers: int


@dataclass(frozen=True)
class Reliability:
    """How confidence and being right go together.

    Attributes:
        expected_error: ECE, see ``llava_ial.calibration.calibration_error``.
        bins: The reliability curve; empty bins are left out.
        risk_coverage: ``(coverage, risk)``: of the surest share of the answers, how many are wrong.
        mean_risk: Mean risk over all coverages; small is good.
        auroc: Probability that a right answer is surer than a wrong one, None if all are right or all wrong.
    """

    expected_error: float
    bins: list[Bin]
    risk_coverage: list[tuple[float, float]]
    mean_risk: float
    auroc: float | None


def measure_reliability(confidence: Sequence[float], is_right: Sequence[bool]) -> Reliability:
    """Reliability of answers.

    Args:
        confidence: ``(N,)`` from 0 to 1.
        is_right: ``(N,)``.

    Raises:
        ValueError: No answers.
    """
    if not len(confidence):
        raise ValueError("measure_reliability: no answers")
    sure, right = np.asarray(confidence, dtype=np.float64), np.asarray(is_right, dtype=bool)
    place = np.minimum((sure * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = [
        Bin(float(sure[place == i].mean()), float(right[place == i].mean()), int((place == i).sum()))
        for i in range(NUM_BINS)
        if (place == i).any()
    ]
    order = np.argsort(-sure, kind="stable")
    counts = np.arange(1, len(sure) + 1)
    # Equally sure answers cannot be told apart: a threshold takes all of them or none.
    ends = np.flatnonzero(np.append(np.diff(sure[order]) != 0, True))
    risks = (~right[order]).cumsum()[ends] / counts[ends]
    covered = counts[ends] / len(sure)
    return Reliability(
        expected_error=calibration_error(sure, right),
        bins=bins,
        risk_coverage=[(float(c), float(r)) for c, r in zip(covered, risks, strict=True)],
        mean_risk=float((risks * np.diff(covered, prepend=0.0)).sum()),
        auroc=auroc(sure[right].tolist(), sure[~right].tolist()),
    )


def clustered_auroc(
    positive: Sequence[float],
    cluster_of: Sequence[Hashable],
    negative: Sequence[float],
    *,
    seed: int = 0,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> Rate:
    """``auroc`` with an interval that draws whole panoramas of the positives, and negatives one by one.

    Raises:
        ValueError: None of either.
    """
    value = auroc(positive, negative)
    if value is None:
        raise ValueError("clustered_auroc: no pair to order")
    generator = np.random.default_rng(seed)
    high, low = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    names = {name: i for i, name in enumerate(dict.fromkeys(cluster_of))}
    cluster = np.array([names[name] for name in cluster_of])
    rows = [np.flatnonzero(cluster == i) for i in range(len(names))]
    draws = [
        auroc(
            high[np.concatenate([rows[i] for i in generator.integers(0, len(rows), len(rows))])].tolist(),
            low[generator.integers(0, len(low), len(low))].tolist(),
        )
        for _ in range(num_resamples)
    ]
    bounds = np.quantile(np.array(draws, dtype=np.float64), [(1 - level) / 2, (1 + level) / 2])
    return Rate(value, float(bounds[0]), float(bounds[1]), len(high) + len(low), len(rows))


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float | None:
    """Probability that a positive scores higher than a negative, ties half; None without one of either."""
    if not len(positive) or not len(negative):
        return None
    low = np.sort(np.asarray(negative, dtype=np.float64))
    below = np.searchsorted(low, positive, side="left")
    not_above = np.searchsorted(low, positive, side="right")
    return float((below + not_above).mean() / 2 / len(low))
