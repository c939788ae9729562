"""An evaluation as a person reads it."""

from collections.abc import Mapping, Sequence
from typing import Any

from llava_ial.evaluation.metrics import AddressMetrics
from llava_ial.evaluation.statistics import Rate

# In this order; a rate that was not measured is left out.
_LABELS = {
    "street_accuracy": "street named right",
    "sub_street_accuracy": "street and cross streets right",
    "neighbourhood_accuracy": "neighbourhood right",
    "city_accuracy": "city right",
    "nonexistent_address_rate": "address is not in the list",
    "street_question_accuracy": '"which street" right',
    "between_question_accuracy": '"between which streets" right',
    "neighbourhood_question_accuracy": '"which neighbourhood" right',
    "city_question_accuracy": '"which city" right',
    "yes_no_question_accuracy": '"is this ..." right',
    "yes_recall": "  of those to be answered yes",
    "no_recall": "  of those to be answered no",
    "unparsed_rate": "no answer could be read",
}


def format_summary(
    metrics: AddressMetrics | None,
    control: AddressMetrics | None,
    rankings: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> str:
    """The evaluation in Markdown.

    Args:
        metrics: Of the answers; None for a model that only ranks.
        control: Of the answers with shuffled photos.
        rankings: ``ranking_metrics`` of the encoder and, behind it, of the baselines.
        facts: ``split``, ``num_photos``, ``num_given_away``, ``num_other_tasks``, ``num_same_street``.
    """
    lines = [f"# Evaluation on split `{facts['split']}`", "", *_headline(metrics, control, facts), ""]
    if metrics:
        rows = [_row(_LABELS[name], metrics.rates[name]) for name in _LABELS if name in metrics.rates]
        if control and "street_accuracy" in control.rates:
            rows.append(_row("photos shuffled: street named right", control.rates["street_accuracy"]))
        lines += _table(["of the answers", "share", "95 % interval", "answers", "panoramas"], rows)
        lines += ["", *_counts(metrics, control, facts), ""]
    names = ("SSA@1", "SSA@5", "SA@1", "SA@5")
    rows = [[title, *(_with_interval(ranking["rates"][name]) for name in names)] for title, ranking in rankings.items()]
    lines += _table(["ranking every address (95 % interval)", *names], rows)
    lines += ["", "SSA@k: the true piece of street is among the k best; SA@k: its street is."]
    lines += [
        f"{title}: {ranking['num_failed']} photos could not be read and are in no figure."
        for title, ranking in rankings.items()
        if ranking["num_failed"]
    ]
    return "\n".join(lines) + "\n"


def _headline(metrics: AddressMetrics | None, control: AddressMetrics | None, facts: Mapping[str, Any]) -> list[str]:
    kind = "Memorisation check (the model was trained on these photos). " if facts["split"] == "train" else ""
    street = metrics.rates.get("street_accuracy") if metrics else None
    if street is None:
        return [f"{kind}{facts['num_photos']} photos."]
    right = round(street.value * street.num_answers)
    lines = [f"{kind}**{right} of {street.num_answers} answers name the right street: {_percent(street.value)}**"]
    shuffled = control.rates.get("street_accuracy") if control else None
    if shuffled:
        is_seen = shuffled.high < street.low
        lines.append(
            f"With the photos shuffled: {_percent(shuffled.value)}; "
            + ("the answers come from the pixels." if is_seen else "the intervals overlap, so no difference is shown.")
        )
    return lines


def _counts(metrics: AddressMetrics, control: AddressMetrics | None, facts: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- {facts['num_photos']} photos, {metrics.num_answers} answers, "
        f"{metrics.num_truncated} of them cut at the length limit",
        f"- {metrics.num_failed + (control.num_failed if control else 0)} failed (no answer; scored nowhere)",
        f"- {facts['num_given_away']} questions left out: an earlier turn of their dialogue holds the answer",
    ]
    if facts["num_other_tasks"]:
        lines.append(f"- {facts['num_other_tasks']} questions of other kinds left out, as asked")
    if facts["num_same_street"]:
        lines.append(f"- {facts['num_same_street']} photos were shuffled to one of their own street: no other was left")
    return lines


def _row(label: str, rate: Rate) -> list[str]:
    interval = f"{100 * rate.low:.1f} - {100 * rate.high:.1f}"
    return [label, _percent(rate.value), interval, str(rate.num_answers), str(rate.num_clusters)]


def _with_interval(rate: Mapping[str, float]) -> str:
    return f"{_percent(rate['value'])} ({100 * rate['low']:.1f} - {100 * rate['high']:.1f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table that is aligned as plain text too: the first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        others = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join([cells[0].ljust(widths[0]), *others])} |"

    return [line(head), line(rule), *(line(row) for row in rows)]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
