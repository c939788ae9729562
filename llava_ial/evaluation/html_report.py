"""An evaluation as one HTML file that works from the disk, without a network."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from llava_ial.evaluation.charts import reliability_chart, risk_coverage_chart
from llava_ial.evaluation.gallery import RIGHT, VERDICTS, PhotoCase, choose_cases, draw_case
from llava_ial.evaluation.listed import Letter, Positions
from llava_ial.evaluation.published import PUBLISHED
from llava_ial.evaluation.reliability import Bin
from llava_ial.evaluation.report import (
    AGAINST_HEAD,
    AGAINST_NOTE,
    RATE_LABELS,
    against_rows,
    say_elsewhere,
    say_positions,
)
from llava_ial.geo import GeoPoint
from llava_ial.records import GalleryRecord
from llava_ial.street_map import MapPoint, StreetMap, pan_and_zoom_script

NUM_WRONG, NUM_RIGHT = 60, 24
_STYLE, _SCRIPT = (Path(__file__).with_name(f"report.{kind}") for kind in ("css", "js"))
_RANKS = ("SSA@1", "SSA@5", "SA@1", "SA@5")
_WORST = 10
_SHARED_SIZE = 1.5  # of the marks of places with several photos


def format_html(
    metrics: Mapping[str, Any],
    cases: Sequence[PhotoCase],
    gallery: Sequence[GalleryRecord],
    photo_file: Mapping[str, Path],
    *,
    title: str,
    seed: int,
) -> str:
    """The report.

    Args:
        metrics: What ``metrics.json`` holds.
        cases: All photos; some of them are shown.
        gallery: All candidate addresses.
        photo_file: Where photos lie; those that are not in it are not shown.
        title: What was evaluated.
        seed: Of the draw of the photos that are shown.
    """
    street_map = StreetMap(gallery)
    sections = [
        _headline(metrics),
        _answers(metrics),
        _rankings(metrics),
        _against(metrics),
        _reliability(metrics),
        _map(cases, street_map),
        _places(metrics),
        _gallery(cases, street_map, gallery, photo_file, seed),
    ]
    style = _STYLE.read_text(encoding="utf-8")
    script = _SCRIPT.read_text(encoding="utf-8") + pan_and_zoom_script()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main><h1>{escape(title)}</h1>"
        f"{''.join(sections)}</main><script>{script}</script></body></html>\n"
    )


def _headline(metrics: Mapping[str, Any]) -> str:
    """The figures that one wants first, large."""
    rates = metrics.get("answers", {}).get("rates", {})
    ranks = metrics.get("ranking", {}).get("rates", {})
    figures = [
        ("street in the answer", rates.get("street_accuracy")),
        ("street and cross streets in the answer", rates.get("sub_street_accuracy")),
        ("SSA@1 of the ranking", ranks.get("SSA@1")),
        ("SA@1 of the ranking", ranks.get("SA@1")),
    ]
    tiles = "".join(
        f'<div class="tile"><b>{_percent(rate["value"])}</b><span>{label}</span>'
        f"<small>{_interval(rate)}, {rate['num_answers']} of {rate['num_clusters']} panoramas</small></div>"
        for label, rate in figures
        if rate
    )
    notes = [f"Split <b>{escape(str(metrics['split']))}</b>, {metrics['num_photos']} photos."]
    if metrics["split"] == "train":
        notes.append("A memorisation check: the model was trained on these photos.")
    shuffled = metrics.get("shuffled_photos", {}).get("rates", {}).get("street_accuracy")
    if shuffled and "street_accuracy" in rates:
        notes.append(f"With the photos shuffled the answers name the right street in {_percent(shuffled['value'])}.")
    return f'<p>{" ".join(notes)}</p><div class="tiles">{tiles}</div>'


def _answers(metrics: Mapping[str, Any]) -> str:
    answers = metrics.get("answers")
    if not answers:
        return ""
    rates = answers["rates"] | metrics.get("consistency", {})
    rows = [
        [label, _percent(rate["value"]), _interval(rate), str(rate["num_answers"]), str(rate["num_clusters"])]
        for name, label in RATE_LABELS.items()
        if (rate := rates.get(name))
    ]
    facts = [f"{answers['num_answers']} answers, {answers['num_failed']} failed, {answers['num_truncated']} cut."]
    if far := answers.get("distance_m"):
        facts.append(
            f"From the photo to what was named: median {far['median']:,.0f} m, nine of ten within {far['p90']:,.0f} m "
            f"(the {far['num_located']} answers that name something of the map)."
        )
    if visible := answers.get("smallest_visible", {}).get("street_accuracy"):
        facts.append(
            f"Two models must differ by about {100 * visible:.1f} points in the street for these photos to show it."
        )
    if found := answers.get("positions"):
        letters = {name: Letter(**letter) for name, letter in found["letters"].items()}
        said = say_positions(Positions(letters, found["bias"], found["num_answers"]))
        facts.append(f"{said[0].upper()}{said[1:]}.")
    head = ["of the answers", "share", "95 % interval", "answers", "panoramas"]
    return _section("Answers", _table(head, rows) + f"<p>{' '.join(facts)}</p>")


def _against(metrics: Mapping[str, Any]) -> str:
    if "against_encoder" not in metrics:
        return ""
    table = _table(list(AGAINST_HEAD), against_rows(metrics["against_encoder"]))
    return _section("More than its encoder?", f"{table}<p>{AGAINST_NOTE}</p>")


def _rankings(metrics: Mapping[str, Any]) -> str:
    if "ranking" not in metrics:
        return ""
    rankings = {"AddressCLIP": metrics["ranking"], **metrics.get("baselines", {})}
    rows = [
        [name, *(f"{_percent(r['rates'][k]['value'])}<small>{_interval(r['rates'][k])}</small>" for k in _RANKS)]
        for name, r in rankings.items()
    ]
    published = [
        [f"{escape(method)} <small>published, {city}</small>", *(f"{value:.1f} %" for value in values)]
        for city, methods in PUBLISHED.items()
        for method, values in methods.items()
    ]
    # The ends of the paper's first table stand beside one's own figures, the rest is folded away.
    rows += [published[0], published[len(PUBLISHED["Pitts-IAL"]) - 1]]
    note = (
        "<p>SSA@k: the true piece of street is among the k best candidates; SA@k: its street is. Under each figure its "
        "95 % interval. The published figures are of the paper's own cities.</p>"
    )
    head = ["ranking every address", *_RANKS]
    body = _table(head, rows) + f"<details><summary>all published figures</summary>{_table(head, published)}</details>"
    return _section("Ranking", body + note)


def _reliability(metrics: Mapping[str, Any]) -> str:
    parts = []
    for name, label in (("ranking_reliability", "best candidate"), ("answer_reliability", "answer")):
        if found := metrics.get(name):
            auroc = "" if found["auroc"] is None else f"; a right one is surer than a wrong one in {found['auroc']:.0%}"
            parts.append(
                f"<figure>{reliability_chart([Bin(**b) for b in found['bins']])}<figcaption>{label}: expected "
                f"calibration error {100 * found['expected_error']:.1f} points{auroc}</figcaption></figure>"
                f"<figure>{risk_coverage_chart(found['risk_coverage'])}<figcaption>{label}: mean risk "
                f"{100 * found['mean_risk']:.1f} %</figcaption></figure>"
            )
    content = f'<div class="charts">{"".join(parts)}</div>' if parts else ""
    if "auroc" in metrics.get("elsewhere", {}):
        content += f"<p>{say_elsewhere(metrics['elsewhere'])}</p>"
    return _section("Is it as sure as it should be?", content) if content else ""


def _map(cases: Sequence[PhotoCase], street_map: StreetMap) -> str:
    """One mark a place: a panorama's photos stand on each other, and the last one drawn would hide the others."""
    at: dict[GeoPoint, list[PhotoCase]] = {}
    for case in cases:
        if case.truth.point:
            at.setdefault(case.truth.point, []).append(case)
    marks = [mark for point, here in at.items() for mark in _marks(point, here)]
    points = sorted(marks, key=lambda mark: bool(mark.is_right))  # no square of a neighbour hides a dot
    drawn = street_map.draw(label="right and wrong photos on the map", points=points, width_px=1000, height_px=600)
    legend = (
        '<p class="legend"><span class="dot yes"></span> street right <span class="dot no"></span> wrong; a dot on a '
        "square: some photos of the place are right, the more the larger the dot</p>"
    )
    return _section("Where it is right and wrong", drawn + legend)


def _marks(point: GeoPoint, cases: Sequence[PhotoCase]) -> list[MapPoint]:
    """A dot, a square, or a square with a dot on it that is as wide as the share of its photos that is right."""
    share, said = sum(case.verdict == RIGHT for case in cases) / len(cases), _say_place(cases)
    size = _SHARED_SIZE if len(cases) > 1 else 1.0
    square = [MapPoint(point, False, said, size)] if share < 1 else []
    return [*square, MapPoint(point, True, said, size * share)] if share else square


def _say_place(cases: Sequence[PhotoCase]) -> str:
    if len(cases) == 1:
        return f"{cases[0].image_id}: {VERDICTS[cases[0].verdict]}"
    return f"street right in {sum(case.verdict == RIGHT for case in cases)} of {len(cases)} photos"


def _places(metrics: Mapping[str, Any]) -> str:
    found, of = metrics.get("answers_by_place"), "answers"
    if not found:
        found, of = metrics.get("ranking_by_place"), "best candidates"
    if not found:
        return ""

    def rows(groups: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        return [
            [escape(g["name"]), _percent(g["rate"]["value"]), _interval(g["rate"]), str(g["rate"]["num_answers"])]
            for g in groups
        ]

    head = ["", "right", "95 % interval", "photos"]
    confused = [
        [escape(c["street"]), escape(c["named"]), str(c["count"]), _metres(c["distance_m"])]
        for c in found["confusions"][:_WORST]
    ]
    streets = found["streets"]
    parts = [
        f"<h3>The worst streets</h3>{_table(head, rows(streets[:_WORST]))}",
        f"<details><summary>all {len(streets)} streets</summary>{_table(head, rows(streets))}</details>",
        f"<h3>Neighbourhoods</h3>{_table(head, rows(found['neighbourhoods']))}" if found["neighbourhoods"] else "",
        f"<h3>Taken for</h3>{_table(['truth', 'named', 'photos', 'metres'], confused)}" if confused else "",
    ]
    return _section(f"Street by street ({of})", "".join(parts))


def _gallery(
    cases: Sequence[PhotoCase],
    street_map: StreetMap,
    gallery: Sequence[GalleryRecord],
    photo_file: Mapping[str, Path],
    seed: int,
) -> str:
    record_of = {record.sub_street_id: record for record in gallery}
    shown = choose_cases(cases, NUM_WRONG, NUM_RIGHT, seed)
    cards = [draw_case(case, street_map, record_of, photo_file.get(case.image_id)) for case in shown]
    places = sorted({case.truth.address.neighbourhood for case in shown} - {""})
    verdicts = [name for name in VERDICTS if any(case.verdict == name for case in shown)]
    filters = (
        '<form class="filters"><label>Verdict <select name="verdict"><option value="">all</option>'
        + "".join(f'<option value="{name}">{VERDICTS[name]}</option>' for name in verdicts)
        + '</select></label><label>Neighbourhood <select name="place"><option value="">all</option>'
        + "".join(f"<option>{escape(name)}</option>" for name in places)
        + '</select></label><label>Words <input name="words" type="search"></label>'
        '<output aria-live="polite"></output></form>'
    )
    note = f"{len(shown)} of {len(cases)} photos: failures first. On the maps green is the truth, red what was named."
    return _section("Photos", f'<p>{note}</p>{filters}<div class="cases">{"".join(cards)}</div>')


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the cells are HTML."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _interval(rate: Mapping[str, float]) -> str:
    return f"{100 * rate['low']:.1f} - {100 * rate['high']:.1f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _metres(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} m"
