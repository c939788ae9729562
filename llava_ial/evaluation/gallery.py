"""Photos of a report with everything that was said about them: which ones are shown, and how."""

import base64
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from llava_ial.data.images import load_photo
from llava_ial.errors import UserError
from llava_ial.evaluation.metrics import ScoredAnswer, Truth
from llava_ial.evaluation.ranking import RankedPhoto
from llava_ial.prompts import WHERE
from llava_ial.records import GalleryRecord
from llava_ial.street_map import Highlight, MapPoint, StreetMap

RIGHT, BLOCK, WRONG, NOWHERE, REFUSED = "right", "block", "wrong", "nowhere", "refused"
VERDICTS: Mapping[str, str] = {
    RIGHT: "street right",
    BLOCK: "right street, wrong block",
    WRONG: "another street",
    NOWHERE: "not on the map",
    REFUSED: "refused",
}
# The first score of an answer that ends so says whether it is right.
_HITS = ("_accuracy", "_recall", "elsewhere_refused_rate")
_THUMBNAIL_PX = 360
_JPEG_QUALITY = 72
# Somewhat wider than it is shown, so that names are small but can be read.
_MAP_WIDTH_PX, _MAP_HEIGHT_PX = 400, 290


@dataclass(frozen=True)
class PhotoCase:
    """A photo of the report.

    Attributes:
        answers: All that was said about it.
        ranked: Its place in the ranking, None for a model that does not rank.
    """

    image_id: str
    truth: Truth
    answers: list[ScoredAnswer]
    ranked: RankedPhoto | None

    @property
    def verdict(self) -> str:
        """One of ``VERDICTS``: of the first answer to "where", else of the best candidate."""
        where = next((a for a in self.answers if a.prediction.task == WHERE), None)
        if where is None:
            return RIGHT if self.ranked and self.ranked.street_rank == 1 else WRONG
        for name, verdict in (
            ("refused_rate", REFUSED),
            ("wrong_block_rate", BLOCK),
            ("street_accuracy", RIGHT),
            ("nonexistent_address_rate", NOWHERE),
            ("unparsed_rate", NOWHERE),
        ):
            if where.scores[name]:
                return verdict
        return WRONG

    @property
    def named_ids(self) -> Sequence[str]:
        """Pieces of street that it was placed on."""
        where = next((a for a in self.answers if a.prediction.task == WHERE), None)
        if where is not None:
            return where.named_ids
        return self.ranked.top_ids[:1] if self.ranked else []


def collect_cases(
    truths: Mapping[str, Truth], scored: Sequence[ScoredAnswer], ranked: Sequence[RankedPhoto]
) -> list[PhotoCase]:
    """Every photo that something was said about."""
    answers: dict[str, list[ScoredAnswer]] = {}
    for answer in scored:
        answers.setdefault(answer.prediction.image_id, []).append(answer)
    places = {photo.image_id: photo for photo in ranked}
    return [
        PhotoCase(image_id, truths[image_id], answers.get(image_id, []), places.get(image_id))
        for image_id in truths
        if image_id in answers or image_id in places
    ]


def choose_cases(cases: Sequence[PhotoCase], num_wrong: int, num_right: int, seed: int) -> list[PhotoCase]:
    """Failures first, then successes; drawn where there are more of them than asked for."""
    draw = random.Random(seed)  # noqa: S311 (a fixed draw, not a secret)
    wrong = [case for case in cases if case.verdict != RIGHT]
    right = [case for case in cases if case.verdict == RIGHT]
    chosen = draw.sample(wrong, min(num_wrong, len(wrong))) + draw.sample(right, min(num_right, len(right)))
    order = {name: i for i, name in enumerate((WRONG, NOWHERE, REFUSED, BLOCK, RIGHT))}
    return sorted(chosen, key=lambda case: (order[case.verdict], case.image_id))


def draw_case(case: PhotoCase, street_map: StreetMap, spoken: Mapping[str, GalleryRecord], photo: Path | None) -> str:
    """A card of the gallery; ``photo`` is None where photos are left out."""
    truth = case.truth
    true_name = spoken[truth.sub_street_id].spoken
    words = " ".join([true_name, *(a.prediction.answer for a in case.answers), case.image_id]).casefold()
    picture = _picture(photo, case.image_id) if photo else ""
    return (
        f'<article class="case" data-verdict="{case.verdict}" data-place="{escape(truth.address.neighbourhood)}" '
        f'data-words="{escape(words)}"><header><span class="verdict {case.verdict}">{VERDICTS[case.verdict]}</span>'
        f'<span class="quiet">{escape(case.image_id)}</span></header>'
        f'<div class="views">{picture}{_mini_map(case, street_map, true_name)}</div>'
        f'<p class="truth"><b>truth</b> {escape(true_name)}</p>{_questions(case.answers)}'
        f"{_candidates(case.ranked, spoken)}</article>"
    )


def _mini_map(case: PhotoCase, street_map: StreetMap, true_name: str) -> str:
    # A street that was named without a block is drawn whole; a name that fits half the city would be no help.
    named = [name for name in case.named_ids[:20] if name != case.truth.sub_street_id]
    highlights = [Highlight(name, shade=0.7, title="named") for name in named]
    highlights.append(Highlight(case.truth.sub_street_id, is_answer=True, title=f"truth: {true_name}"))
    points = [MapPoint(case.truth.point, case.verdict in (RIGHT, BLOCK), "the photo")] if case.truth.point else []
    return street_map.draw(
        highlights,
        label="map of the truth and of what was named",
        points=points,
        width_px=_MAP_WIDTH_PX,
        height_px=_MAP_HEIGHT_PX,
    )


def _questions(answers: Sequence[ScoredAnswer]) -> str:
    rows = []
    for answer in answers:
        is_right = next((hit == 1 for name, hit in answer.scores.items() if name.endswith(_HITS)), False)
        far = f' <span class="quiet">{answer.distance_m:,.0f} m away</span>' if answer.distance_m is not None else ""
        mark = '<span class="yes">&#10003;</span>' if is_right else '<span class="no">&#10007;</span>'
        said = escape(answer.prediction.answer) or '<span class="quiet">(nothing)</span>'
        rows.append(f"<dt>{escape(answer.prediction.question)}</dt><dd>{mark} {said}{far}</dd>")
    return f"<dl>{''.join(rows)}</dl>" if rows else ""


def _candidates(ranked: RankedPhoto | None, spoken: Mapping[str, GalleryRecord]) -> str:
    if ranked is None:
        return ""
    rows = []
    for name, score in zip(ranked.top_ids, ranked.top_scores, strict=True):
        kind = "true" if name == ranked.sub_street_id else ""
        rows.append(
            f'<li class="{kind}"><span>{escape(spoken[name].spoken)}</span><span class="share">{score:.0%}</span></li>'
        )
    summary = f"<summary>ranked: the truth is number {ranked.sub_street_rank}</summary>"
    return f"<details>{summary}<ol>{''.join(rows)}</ol></details>"


def _picture(photo: Path, name: str) -> str:
    try:
        image = load_photo(photo, min_side=_THUMBNAIL_PX)
    except UserError:
        return '<p class="quiet">the photo cannot be read</p>'
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY)  # decoded pixels alone: no EXIF position goes with them
    content = base64.b64encode(file.getvalue()).decode()
    return f'<img decoding="async" alt="{escape(name)}" src="data:image/jpeg;base64,{content}">'
