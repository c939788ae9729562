"""From ranked photos and scored answers to the tables of an evaluation: places, confusions, reliability."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from llava_ial.address import Address
from llava_ial.evaluation.breakdown import Placing, by_neighbourhood, by_street, confusions
from llava_ial.evaluation.metrics import ScoredAnswer, Truth
from llava_ial.evaluation.places import Places
from llava_ial.evaluation.ranking import RankedPhoto
from llava_ial.evaluation.reliability import measure_reliability
from llava_ial.prompts import WHERE
from llava_ial.records import GalleryRecord

# Enough of a curve to draw it; a test set has thousands of points.
_CURVE_POINTS = 50
_MOST_CONFUSIONS = 100


def street_name(address: Address) -> str:
    """A street as the tables name it: with its neighbourhood, because two may share a name."""
    return ", ".join(part for part in address.street_key if part)


def placings_of_ranking(
    ranked: Sequence[RankedPhoto], truths: Mapping[str, Truth], gallery: Sequence[GalleryRecord], places: Places
) -> list[Placing]:
    """Where the best candidate puts each photo."""
    address_of = {record.sub_street_id: record.address for record in gallery}
    placings = []
    for photo in ranked:
        truth, best = truths[photo.image_id], photo.top_ids[0]
        placings.append(
            Placing(
                photo.panorama_id,
                street_name(truth.address),
                truth.address.neighbourhood,
                street_name(address_of[best]),
                photo.street_rank == 1,
                places.distance_m(truth.point, best) if truth.point else None,
            )
        )
    return placings


def placings_of_answers(scored: Sequence[ScoredAnswer], gallery: Sequence[GalleryRecord]) -> list[Placing]:
    """Where the answers to "where" put their photos."""
    address_of = {record.sub_street_id: record.address for record in gallery}
    placings = []
    for answer in scored:
        if answer.prediction.task != WHERE:
            continue
        fitting = {street_name(address_of[name]) for name in answer.named_ids}
        placings.append(
            Placing(
                answer.truth.panorama_id,
                street_name(answer.truth.address),
                answer.truth.address.neighbourhood,
                # Of a name that several streets bear nobody knows which was meant.
                fitting.pop() if len(fitting) == 1 else answer.match.street,
                bool(answer.scores["street_accuracy"]),
                answer.distance_m,
            )
        )
    return placings


def break_down(placings: Sequence[Placing], *, seed: int) -> dict[str, Any]:
    """Every street and neighbourhood with its share of photos placed right, the worst first, and what is confused."""
    return {
        "streets": [asdict(group) for group in by_street(placings, seed=seed)],
        "neighbourhoods": [asdict(group) for group in by_neighbourhood(placings, seed=seed)],
        "confusions": [asdict(row) for row in confusions(placings)[:_MOST_CONFUSIONS]],
    }


def reliability_of_ranking(ranked: Sequence[RankedPhoto]) -> dict[str, Any]:
    """Is the best candidate as often the true piece of street as its probability says?"""
    return reliability([photo.top_scores[0] for photo in ranked], [photo.sub_street_rank == 1 for photo in ranked])


def reliability(confidence: Sequence[float], is_right: Sequence[bool]) -> dict[str, Any]:
    """``measure_reliability`` as JSON, its curve thinned."""
    found = asdict(measure_reliability(confidence, is_right))
    curve = found["risk_coverage"]
    step = max(1, len(curve) // _CURVE_POINTS)
    found["risk_coverage"] = [list(point) for i, point in enumerate(curve) if i % step == 0 or i == len(curve) - 1]
    return found
