"""Choice and tables of the comparison of stage 2's methods over towns."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava_ial.evaluation.statistics import Difference, paired_difference

_STREET, _PIECE = 0, 1
# Of the other kinds of questions, as metrics.json names them, and how the tables do.
_KINDS = {
    "street_question_accuracy": '"which street"',
    "between_question_accuracy": '"between which"',
    "neighbourhood_question_accuracy": '"which neighbourhood"',
    "yes_no_question_accuracy": '"is this"',
}


@dataclass(frozen=True)
class MethodResult:
    """What a method gave on one town.

    Attributes:
        seconds: Of all its commands.
        right: By photo: whether the answer to "where" names the street, and street and cross streets.
        candidate_right: The same of the first candidate of the town's AddressCLIP.
        panoramas: By photo.
        kinds: Accuracy of other questions, as ``serve.evaluate`` names them.
        differs: Answers that name another street than the first candidate: ``num_differ``, ``num_right`` and
            ``num_encoder_right``, the candidates among these that are right.
    """

    method: str
    town: str
    seconds: float
    right: dict[str, list[float]]
    candidate_right: dict[str, list[float]]
    panoramas: dict[str, str]
    kinds: dict[str, float]
    differs: dict[str, Any]


def best_method(names: Sequence[str], results: Sequence[MethodResult]) -> str:
    """By the mean over towns of the share of answers with street and cross streets; of equal ones the first."""
    means = {name: statistics.fmean(_rate(r, _PIECE) for r in results if r.method == name) for name in names}
    return max(names, key=means.__getitem__)


def against_encoder(results: Sequence[MethodResult], level: int) -> Difference:
    """Answers of one method minus first candidates, paired by photo over all towns; clusters are panoramas."""
    photos = [(result, photo) for result in results for photo in result.right]
    return paired_difference(
        [result.right[photo][level] for result, photo in photos],
        [result.candidate_right[photo][level] for result, photo in photos],
        [(result.town, result.panoramas[photo]) for result, photo in photos],
    )


def summary(results: Sequence[MethodResult]) -> dict[str, Any]:
    """By method: what the tables say and the shares of each town."""
    found: dict[str, Any] = {}
    for name, own in _by_method(results).items():
        piece = against_encoder(own, _PIECE)
        found[name] = {
            "street_accuracy": _mean(own, _STREET), "sub_street_accuracy": _mean(own, _PIECE),
            "SA@1": _candidates(own, _STREET), "SSA@1": _candidates(own, _PIECE),
            "kinds": _kinds(own), **_differing(own),
            "difference": {"value": piece.value, "low": piece.low, "high": piece.high, "p_value": piece.p_value},
            "num_photos": sum(len(result.right) for result in own),
            "by_town": {r.town: {"street_accuracy": _rate(r, _STREET), "sub_street_accuracy": _rate(r, _PIECE)}
                        for r in own},
            "seconds": statistics.fmean(result.seconds for result in own),
        }  # fmt: skip
    return found


def format_methods(
    options: Mapping[str, str], dev: Sequence[MethodResult], report: Sequence[MethodResult], best: str
) -> str:
    """Markdown: all methods on the development towns, the first and the best on the others."""
    return "\n".join(
        [
            "# What LLaVA reads",
            "",
            f"Development: {_towns(dev)}. Per cent of the test photos, mean over towns.",
            "",
            *_table(options, dev, best),
            "",
            f"Report: {_towns(report)}.",
            "",
            *_table(options, report, best),
            "",
            "Other street: answers that name another street than AddressCLIP's first candidate, how many of these are "
            "right,",
            "and how many of the candidates. The difference and `p` are of street and cross streets against the first",
            "candidates, paired, with whole panoramas swapped.",
            "",
        ]
    )


def _table(options: Mapping[str, str], results: Sequence[MethodResult], best: str) -> list[str]:
    by_method = _by_method(results)
    kinds = [kind for kind in _KINDS if all(kind in result.kinds for result in results)]
    titles = ["method", "options", "street", "street and cross streets", *(_KINDS[kind] for kind in kinds)]
    titles += ["other street: answer right, candidate right", "difference", "p"]
    encoder = next(iter(by_method.values()))
    shares = [f"{100 * _candidates(encoder, level):.1f}" for level in (_STREET, _PIECE)]
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    lines.append(f"| AddressCLIP alone (SA@1, SSA@1) | | {' | '.join(shares)} |{' |' * (len(titles) - 4)}")
    for name, own in by_method.items():
        shown = f"**{name}**" if name == best else name
        said = f"`{options[name]}`" if options.get(name) else ""
        lines.append(f"| {' | '.join([shown, said, *_cells(own, kinds)])} |")
    return lines


def _cells(own: Sequence[MethodResult], kinds: Sequence[str]) -> list[str]:
    piece, differ, means = against_encoder(own, _PIECE), _differing(own), _kinds(own)
    return [
        _with_deviation(own, _STREET),
        _with_deviation(own, _PIECE),
        *(f"{100 * means[kind]:.1f}" for kind in kinds),
        f"{differ['num_differ']}: {differ['num_right']}, {differ['num_encoder_right']}",
        f"{100 * piece.value:+.1f} [{100 * piece.low:+.1f}, {100 * piece.high:+.1f}]",
        f"{piece.p_value:.4f}",
    ]


def _with_deviation(own: Sequence[MethodResult], level: int) -> str:
    rates = [100 * _rate(result, level) for result in own]
    return f"{statistics.fmean(rates):.1f}" + (f" ± {statistics.stdev(rates):.1f}" if len(rates) > 1 else "")


def _by_method(results: Sequence[MethodResult]) -> dict[str, list[MethodResult]]:
    found: dict[str, list[MethodResult]] = {}
    for result in results:
        found.setdefault(result.method, []).append(result)
    return found


def _rate(result: MethodResult, level: int) -> float:
    return statistics.fmean(right[level] for right in result.right.values())


def _mean(own: Sequence[MethodResult], level: int) -> float:
    return statistics.fmean(_rate(result, level) for result in own)


def _candidates(own: Sequence[MethodResult], level: int) -> float:
    return statistics.fmean(statistics.fmean(r.candidate_right[p][level] for p in r.right) for r in own)


def _kinds(own: Sequence[MethodResult]) -> dict[str, float]:
    common = [kind for kind in own[0].kinds if all(kind in result.kinds for result in own)]
    return {kind: statistics.fmean(result.kinds[kind] for result in own) for kind in common}


def _differing(own: Sequence[MethodResult]) -> dict[str, int]:
    return {key: sum(int(r.differs[key]) for r in own) for key in ("num_differ", "num_right", "num_encoder_right")}


def _towns(results: Sequence[MethodResult]) -> str:
    towns = list(dict.fromkeys(result.town for result in results))
    photos = sum(len(result.right) for result in results if result.method == results[0].method)
    return f"{', '.join(towns)}, {photos} photos"
