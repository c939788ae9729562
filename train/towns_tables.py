"""Choice, comparison and tables of a comparison over towns."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llava_ial.evaluation.statistics import paired_difference

# What the winner shall reach, and how sure it shall be.
AIM, LEVEL = 0.25, 0.05
_METRICS = ("SSA@1", "SSA@5", "SA@1", "SA@5")


@dataclass(frozen=True)
class Run:
    """A method with a learning rate."""

    method: str
    rate: float


@dataclass(frozen=True)
class TownResult:
    """What a run gave on one town.

    Attributes:
        ranks: By photo: place of the true piece of street and of the true street.
        panoramas: By photo.
        cost: ``seconds`` of the training and ``peak_bytes`` of its memory.
    """

    method: str
    rate: float
    town: int
    metrics: dict[str, float]
    ranks: dict[str, list[int]]
    panoramas: dict[str, str]
    cost: dict[str, float]


@dataclass(frozen=True)
class Choice:
    """What the development towns say: each method's best rate, and which method beside the first is best."""

    first: str
    best: str
    rates: dict[str, float]


def choose(names: Sequence[str], sweep: Sequence[TownResult]) -> Choice:
    """By the mean SSA@1 over towns; of equal ones the first."""
    means = {name: _mean_by_rate(name, sweep) for name in names}
    rates = {name: max(found, key=found.__getitem__) for name, found in means.items()}
    best = max(names[1:], key=lambda name: means[name][rates[name]])
    return Choice(names[0], best, rates)


def verdict(choice: Choice, report: Sequence[TownResult]) -> dict[str, Any]:
    """The best method against the first, over the photos of all towns; clusters are panoramas."""
    found = against_first(choice, choice.best, report)
    return {
        "first": choice.first, "best": choice.best, "rates": choice.rates, **found,
        "aim_is_reached": bool(found["fewer_wrong"] >= AIM and found["p_value"] < LEVEL),
    }  # fmt: skip


def sweep_by_rate(sweep: Sequence[TownResult]) -> dict[str, dict[str, dict[str, float]]]:
    """SSA@1 by method, rate and town."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for result in sweep:
        by_town = found.setdefault(result.method, {}).setdefault(f"{result.rate:g}", {})
        by_town[str(result.town)] = result.metrics["SSA@1"]
    return found


def against_first(choice: Choice, name: str, report: Sequence[TownResult]) -> dict[str, Any]:
    """A method against the first one: shares of wrong SSA@1 answers, and the paired test over all towns."""
    own, first = (
        {result.town: result for result in report if result.method == method} for method in (name, choice.first)
    )
    photos = [(town, photo) for town, result in first.items() for photo in result.ranks]
    hits = [float(own[town].ranks[photo][0] == 1) for town, photo in photos]
    first_hits = [float(first[town].ranks[photo][0] == 1) for town, photo in photos]
    found = paired_difference(hits, first_hits, [(town, first[town].panoramas[photo]) for town, photo in photos])
    wrong, first_wrong = (1 - statistics.fmean(values) for values in (hits, first_hits))
    return {
        "wrong": wrong, "first_wrong": first_wrong, "fewer_wrong": 1 - wrong / first_wrong if first_wrong else 0.0,
        "difference": found.value, "low": found.low, "high": found.high, "p_value": found.p_value,
        "num_photos": found.num_answers, "num_panoramas": found.num_clusters,
        "fewer_wrong_by_town": {
            str(town): _fewer(own[town].metrics["SSA@1"], first[town].metrics["SSA@1"]) for town in first
        },
    }  # fmt: skip


def format_towns(
    rates: Sequence[float],
    sweep: Sequence[TownResult],
    choice: Choice,
    report: Sequence[TownResult],
    found: dict[str, Any],
) -> str:
    """Markdown: what was chosen on the development towns, and what came out on the others."""
    dev, towns = (list(dict.fromkeys(result.town for result in results)) for results in (sweep, report))
    lines = [
        "# Against the faithful AddressCLIP",
        "",
        f"Development towns {_list(dev)}: SSA@1 in per cent, mean over towns, by the highest learning rate. Each",
        "method's best rate was taken, and the best method.",
        "",
        f"| method | {' | '.join(f'{rate:g}' for rate in rates)} |",
        f"|{' --- |' * (len(rates) + 1)}",
        *(_sweep_row(name, rates, sweep, choice) for name in choice.rates),
        "",
        *_edges(rates, choice),
        f"Report's towns {_list(towns)}: per cent of all {found['num_photos']} photos of {found['num_panoramas']} "
        "panoramas,",
        "standard deviation over towns. The difference and `p` are of SSA@1, paired, with whole panoramas swapped.",
        "",
        f"| method | rate | {' | '.join(_METRICS)} | fewer wrong | by town | difference | p |",
        f"|{' --- |' * (len(_METRICS) + 6)}",
        *(_report_row(name, choice, report) for name in dict.fromkeys(result.method for result in report)),
        "",
        f"**{choice.best}** has {100 * found['fewer_wrong']:.1f} % fewer wrong answers than {choice.first}, "
        f"p {found['p_value']:.4f}; the aim, {AIM:.0%} with p below {LEVEL:g}, is "
        f"{'reached' if found['aim_is_reached'] else 'not reached'}.",
        "",
        f"A training took {statistics.fmean(r.cost['seconds'] for r in [*sweep, *report]):.0f} s in the mean.",
        "",
    ]
    return "\n".join(lines)


def _mean_by_rate(name: str, sweep: Sequence[TownResult]) -> dict[float, float]:
    values: dict[float, list[float]] = {}
    for result in sweep:
        if result.method == name:
            values.setdefault(result.rate, []).append(result.metrics["SSA@1"])
    return {rate: statistics.fmean(found) for rate, found in values.items()}


def _fewer(own: float, first: float) -> float:
    return 1 - (1 - own) / (1 - first) if first < 1 else 0.0


def _list(towns: Sequence[int]) -> str:
    return ", ".join(map(str, towns))


def _sweep_row(name: str, rates: Sequence[float], sweep: Sequence[TownResult], choice: Choice) -> str:
    means = _mean_by_rate(name, sweep)
    cells = [f"{100 * means[rate]:.1f}" for rate in rates]
    shown = [f"**{cell}**" if rate == choice.rates[name] else cell for rate, cell in zip(rates, cells, strict=True)]
    return f"| {' | '.join([name, *shown])} |"


def _edges(rates: Sequence[float], choice: Choice) -> list[str]:
    """A best rate at the end of the sweep may not be the best there is."""
    at_end = [name for name, rate in choice.rates.items() if len(rates) > 1 and rate in (min(rates), max(rates))]
    return [f"At an end of the sweep, so perhaps not yet the best: {', '.join(at_end)}.", ""] if at_end else []


def _report_row(name: str, choice: Choice, report: Sequence[TownResult]) -> str:
    own = [result for result in report if result.method == name]
    cells = [name, f"{choice.rates[name]:g}"]
    for metric in _METRICS:
        values = [100 * result.metrics[metric] for result in own]
        mean = statistics.fmean(100 * float(place <= int(metric[-1])) for r in own for place in _places(r, metric))
        cells.append(f"{mean:.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""))
    if name == choice.first:
        return f"| {' | '.join([*cells, '', '', '', ''])} |"
    found = against_first(choice, name, report)
    by_town = ", ".join(f"{100 * value:.0f}" for value in found["fewer_wrong_by_town"].values())
    low, high = (f"{100 * found[bound]:+.1f}" for bound in ("low", "high"))
    cells += [f"{100 * found['fewer_wrong']:.1f} %", by_town, f"{100 * found['difference']:+.1f} [{low}, {high}]"]
    cells.append(f"{found['p_value']:.4f}")
    return f"| {' | '.join(cells)} |"


def _places(result: TownResult, metric: str) -> list[int]:
    column = 0 if metric.startswith("SSA") else 1
    return [ranks[column] for ranks in result.ranks.values()]
