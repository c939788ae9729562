"""An evaluation as a person reads it."""

from collections.abc import Mapping, Sequence
from typing import Any

from llava_ial.evaluation.listed import Positions
from llava_ial.evaluation.metrics import AddressMetrics
from llava_ial.evaluation.statistics import Rate

# In this order; a rate that was not measured is left out.
RATE_LABELS = {
    "street_accuracy": "street named right",
    "sub_street_accuracy": "street and cross streets right",
    "wrong_block_rate": "right street, wrong block",
    "adjacent_block_rate": "  of all answers: a block that touches the true one",
    "neighbourhood_accuracy": "neighbourhood right",
    "city_accuracy": "city right",
    "within_50_m": "at most 50 m from the photo",
    "within_100_m": "at most 100 m",
    "within_200_m": "at most 200 m",
    "nonexistent_address_rate": "address is not in the list",
    "refused_rate": "refused to say, wrongly: the photo is of the city",
    "elsewhere_refused_rate": "photo of another place: rightly refused",
    "street_question_accuracy": '"which street" right',
    "between_question_accuracy": '"between which streets" right',
    "neighbourhood_question_accuracy": '"which neighbourhood" right',
    "city_question_accuracy": '"which city" right',
    "yes_no_question_accuracy": '"is this ..." right',
    "choice_question_accuracy": "the right one of four",
    "candidates_question_recall": "the true address is in its list of candidates",
    "nearby_question_recall": "streets nearby that it lists",
    "yes_no_balanced_accuracy": "  mean of yes and no",
    "yes_recall": "  of those to be answered yes",
    "no_recall": "  of those to be answered no",
    "unparsed_rate": "no answer could be read",
    "wording_consistency": "two wordings of a question agree",
    "kinds_consistency": "answers to two kinds of questions agree",
}

AGAINST_HEAD = (
    "answer against first candidate",
    "points",
    "95 % interval",
    "p",
    "differ",
    "answer right",
    "candidate right",
)
AGAINST_NOTE = (
    "points: the answers' accuracy minus that of AddressCLIP's first candidates, paired by photo. Of those that "
    "differ: how many answers are right, and how many first candidates. Answers that repeat the candidates show 0."
)
_LEVELS = {"street": "street", "piece": "street and cross streets"}
_HEAD = ("share", "95 % interval", "answers", "panoramas")


def format_summary(
    metrics: AddressMetrics | None,
    control: AddressMetrics | None,
    rankings: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Any],
    agreement: Mapping[str, Rate] | None = None,
    dialogues: AddressMetrics | None = None,
    elsewhere: Mapping[str, Any] | None = None,
    against: Mapping[str, Any] | None = None,
) -> str:
    """The evaluation in Markdown.

    Args:
        metrics: Of the answers; None for a model that only ranks.
        control: Of the answers with shuffled photos.
        rankings: ``ranking_metrics`` of the encoder and, behind it, of the baselines.
        dialogues: Of the questions that an earlier turn of their dialogue gives away.
        elsewhere: How well photos of other places are told apart.
        agreement: Rates of ``llava_ial.evaluation.consistency``.
        against: ``against_encoder`` of the answers and the encoder's first candidates.
        facts: ``split``, ``num_photos``, ``num_given_away``, ``num_other_tasks``, ``num_same_street``.
    """
    lines = [f"# Evaluation on split `{facts['split']}`", "", *_headline(metrics, control, facts), ""]
    if metrics:
        rates = {**metrics.rates, **(agreement or {})}
        rows = [_row(label, rates[name]) for name, label in RATE_LABELS.items() if name in rates]
        if control and "street_accuracy" in control.rates:
            rows.append(_row("photos shuffled: street named right", control.rates["street_accuracy"]))
        lines += format_table(["of the answers", *_HEAD], rows)
        lines += ["", *_counts(metrics, control, facts)]
        lines += [f"- {say_positions(metrics.positions)}"] if metrics.positions else []
        lines += [""]
    if dialogues:
        rows = [_row(label, dialogues.rates[name]) for name, label in RATE_LABELS.items() if name in dialogues.rates]
        lines += format_table(["in dialogues, given away by an earlier turn", *_HEAD], rows)
        lines += [""]
    if rankings:
        lines += _rankings(rankings)
    if against:
        lines += ["", *format_table(AGAINST_HEAD, against_rows(against)), "", AGAINST_NOTE]
    if elsewhere and "auroc" in elsewhere:
        lines += ["", say_elsewhere(elsewhere)]
    return "\n".join(lines) + "\n"


def _rankings(rankings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = ("SSA@1", "SSA@5", "SA@1", "SA@5")
    rows = [[title, *(_with_interval(ranking["rates"][name]) for name in names)] for title, ranking in rankings.items()]
    lines = format_table(["ranking every address (95 % interval)", *names], rows)
    lines += ["", "SSA@k: the true piece of street is among the k best; SA@k: its street is."]
    lines += [
        f"{title}: {ranking['num_failed']} photos could not be read and are in no figure."
        for title, ranking in rankings.items()
        if ranking["num_failed"]
    ]
    return lines


def against_rows(against: Mapping[str, Any]) -> list[list[str]]:
    """Cells of the table under ``AGAINST_HEAD``."""
    rows = []
    for level, found in against.items():
        gap = found["difference"]
        interval = f"{100 * gap['low']:+.1f} - {100 * gap['high']:+.1f}"
        counts = [str(found[name]) for name in ("num_differ", "num_right", "num_encoder_right")]
        rows.append([_LEVELS[level], f"{100 * gap['value']:+.1f}", interval, f"{gap['p_value']:.3f}", *counts])
    return rows


def say_elsewhere(found: Mapping[str, Any]) -> str:
    """How well photos of other places are told apart, in a sentence."""
    rate = found["auroc"]
    text = (
        f"Of {found['num_elsewhere']} photos of other places and {found['num_here']} of the city, one of each drawn, "
        f"the encoder finds the city's more like an address of it in {_percent(rate['value'])} (AUROC; 95 % interval "
        f"{100 * rate['low']:.1f} - {100 * rate['high']:.1f})."
    )
    if "refused_here" in found:
        text += (
            f" At the calibration's threshold {_percent(found['refused_here'])} of the city's photos are taken for "
            f"another place, and {_percent(found['accepted_elsewhere'])} of those of other places for this city."
        )
    return text


def say_positions(positions: Positions) -> str:
    """Which letters of a choice are preferred, in a sentence."""
    shares = ", ".join(f"{name} {letter.chosen:.0%} ({letter.right:.0%})" for name, letter in positions.letters.items())
    return f"letters chosen (right) in {positions.num_answers} choices: {shares}; position bias {positions.bias:.1%}"


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
        f"- {facts['num_given_away']} questions are given away by an earlier turn of their dialogue: not asked alone",
    ]
    if metrics.distance_m:
        lines.append(
            f"- from the photo to what was named: median {metrics.distance_m['median']:,.0f} m, nine of ten within "
            f"{metrics.distance_m['p90']:,.0f} m ({metrics.distance_m['num_located']:.0f} answers name something of "
            "the map)"
        )
    if visible := metrics.smallest_visible.get("street_accuracy"):
        lines.append(f"- a difference of {100 * visible:.1f} points in the street would show with these photos")
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


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table that is aligned as plain text too: the first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        others = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join([cells[0].ljust(widths[0]), *others])} |"

    return [line(head), line(rule), *(line(row) for row in rows)]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
