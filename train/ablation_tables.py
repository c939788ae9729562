"""Results of an ablation, and the paper's two tables made of them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llava_ial.evaluation.published import PUBLISHED, PUBLISHED_LOSSES
from llava_ial.evaluation.statistics import paired_difference

ZERO_SHOT, ADDRESS_CLIP, RETRIEVAL = "zero-shot CLIP", "AddressCLIP", "retrieval of training photos"
_METRICS = ("SSA@1", "SSA@5", "SA@1", "SA@5")
_PUBLISHED_SETS = ("Pitts-IAL", "SF-IAL-Base", "SF-IAL-Large")
# As the paper calls what is here "CLIP + address".
_PUBLISHED_NAMES = {"CLIP + address": "CLIP tuned on addresses"}


@dataclass
class MethodResult:
    """What one method gave with each seed.

    Attributes:
        metrics: By seed.
        ranks: By seed and photo: place of the true piece of street and of the true street.
        costs: By seed: ``seconds`` of the training, ``peak_bytes`` of its memory; of retrieval ``gallery_bytes`` and
            ``query_milliseconds``.
    """

    name: str
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    ranks: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, seed: int, metrics: dict[str, float], ranks: dict[str, list[int]], **costs: float) -> None:
        """Takes in a run."""
        self.metrics[str(seed)], self.ranks[str(seed)], self.costs[str(seed)] = metrics, ranks, costs

    def hits(self) -> dict[str, float]:
        """By photo, the share of seeds with which its true piece of street came first."""
        photos = next(iter(self.ranks.values()))
        return {
            photo: statistics.fmean(float(ranks[photo][0] == 1) for ranks in self.ranks.values()) for photo in photos
        }


def format_tables(results: Sequence[MethodResult], panoramas: Mapping[str, str], remarks: Sequence[str] = ()) -> str:
    """Markdown: methods, losses, and what they cost.

    Args:
        results: Of all methods.
        panoramas: Panorama of each photo: the paired test swaps whole panoramas.
        remarks: Lines below the methods.
    """
    faithful = next((result for result in results if result.name == ADDRESS_CLIP), None)
    num_photos = int(next(iter(results[0].metrics.values()))["num_photos"])
    lines = [
        "# Stage 1 against its peers",
        "",
        f"Per cent of {num_photos} photos; mean and, over several seeds, standard deviation. Published figures are",
        "those of arXiv 2407.08156 on other data: they say how hard a city is, not who is better. `p`: paired",
        f"permutation test of SSA@1 against {ADDRESS_CLIP}, by panorama.",
        "",
        *_table(results, faithful, panoramas, {name: PUBLISHED[name] for name in _PUBLISHED_SETS}),
        "",
        *(line for remark in remarks for line in (remark, "")),
        "## Losses",
        "",
        *_table(
            [result for result in results if result.name in PUBLISHED_LOSSES["Pitts-IAL"]],
            faithful,
            panoramas,
            PUBLISHED_LOSSES,
        ),
        "",
        "## Cost of a seed",
        "",
        "| method | seconds | peak memory, MB | gallery, MB | ms a query |",
        "| --- | --- | --- | --- | --- |",
        *(_cost_row(result) for result in results),
        "",
    ]
    return "\n".join(lines)


def _table(
    results: Sequence[MethodResult],
    faithful: MethodResult | None,
    panoramas: Mapping[str, str],
    published: Mapping[str, Mapping[str, tuple[float, float, float, float]]],
) -> list[str]:
    titles = [
        "method",
        "seeds",
        *_METRICS,
        "SSA@1 against AddressCLIP",
        "p",
        *(f"{name} (published)" for name in published),
    ]
    rows = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    for result in results:
        cells = [result.name, str(len(result.metrics)), *(_mean(result, name) for name in _METRICS)]
        cells += _against(result, faithful, panoramas)
        for figures in published.values():
            found = figures.get(_PUBLISHED_NAMES.get(result.name, result.name)) or figures.get(result.name)
            cells.append(" / ".join(f"{value:.2f}" for value in found) if found else "")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _mean(result: MethodResult, name: str) -> str:
    values = [100 * metrics[name] for metrics in result.metrics.values()]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def _against(result: MethodResult, faithful: MethodResult | None, panoramas: Mapping[str, str]) -> list[str]:
    if faithful is None or result is faithful:
        return ["", ""]
    own, other = result.hits(), faithful.hits()
    photos = list(own)
    found = paired_difference(
        [own[photo] for photo in photos], [other[photo] for photo in photos], [panoramas[photo] for photo in photos]
    )
    return [f"{100 * found.value:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]", f"{found.p_value:.4f}"]


def _cost_row(result: MethodResult) -> str:
    def mean(name: str, factor: float, digits: int) -> str:
        values = [costs[name] * factor for costs in result.costs.values() if name in costs]
        return f"{statistics.fmean(values):.{digits}f}" if values else ""

    cells = [
        result.name, mean("seconds", 1, 1), mean("peak_bytes", 1e-6, 0), mean("gallery_bytes", 1e-6, 3),
        mean("query_milliseconds", 1, 3),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"
