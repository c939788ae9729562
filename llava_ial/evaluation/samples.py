"""One line per answer and per photo, for a spreadsheet: what was asked, said, true, and how it was scored."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from llava_ial.address import format_spoken
from llava_ial.evaluation.metrics import ScoredAnswer
from llava_ial.evaluation.ranking import RankedPhoto
from llava_ial.records import GalleryRecord, PredictionRecord


def answers_csv(predictions: Sequence[PredictionRecord], scored: Sequence[ScoredAnswer]) -> str:
    """Every question; the columns behind ``how`` are scores, 0 to 1, empty where a score does not apply."""
    by_question = {answer.prediction.question_id: answer for answer in scored}
    names = sorted({name for answer in scored for name in answer.scores})
    rows = []
    for prediction in predictions:
        answer = by_question.get(prediction.question_id)
        row: dict[str, Any] = {
            "question_id": prediction.question_id,
            "image_id": prediction.image_id,
            "panorama_id": answer.truth.panorama_id if answer else "",
            "task": prediction.task,
            "question": prediction.question,
            "expected": prediction.expected,
            "answer": prediction.answer,
            "finish_reason": prediction.finish_reason,
            "error": prediction.error or "",
            "named_street": answer.match.street if answer else "",
            "named_cross_streets": " / ".join(answer.match.cross_streets) if answer else "",
            "named_neighbourhood": answer.match.neighbourhood if answer else "",
            "distance_m": "" if answer is None or answer.distance_m is None else f"{answer.distance_m:.1f}",
            "how": answer.match.how if answer else "",
        }
        scores = answer.scores if answer else {}
        rows.append(row | {name: f"{scores[name]:.4g}" if name in scores else "" for name in names})
    return _as_csv(rows)


def photos_csv(ranked: Sequence[RankedPhoto], gallery: Sequence[GalleryRecord]) -> str:
    """Every ranked photo: the place of the truth and the best candidates."""
    address_of: Mapping[str, str] = {record.sub_street_id: format_spoken(record.address) for record in gallery}
    rows = []
    for photo in ranked:
        row: dict[str, Any] = {
            "image_id": photo.image_id,
            "panorama_id": photo.panorama_id,
            "truth": address_of[photo.sub_street_id],
            "sub_street_rank": photo.sub_street_rank,
            "street_rank": photo.street_rank,
            "true_score": f"{photo.true_score:.6g}",
        }
        for place, (name, score) in enumerate(zip(photo.top_ids, photo.top_scores, strict=True), start=1):
            row |= {f"candidate_{place}": address_of[name], f"score_{place}": f"{score:.6g}"}
        rows.append(row)
    return _as_csv(rows)


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
