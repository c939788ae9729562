"""Is the language model more than an echo of its encoder? Its answers against AddressCLIP's first candidates.

A model that is told the candidates could repeat the first one. What it adds shows where its answer differs from that
one: there it must be right more often than the candidate is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llava_ial.address import Address
from llava_ial.evaluation.metrics import ScoredAnswer, names_street, same_crossings
from llava_ial.evaluation.ranking import RankedPhoto
from llava_ial.evaluation.statistics import Difference, paired_difference
from llava_ial.gazetteer import Gazetteer
from llava_ial.prompts import WHERE
from llava_ial.records import GalleryRecord

STREET, PIECE = "street", "piece"


@dataclass(frozen=True)
class AgainstEncoder:
    """Answers to "where" and the encoder's first candidates for the same photos, paired.

    Attributes:
        num_differ: Answers that name something else than the first candidate.
        num_right, num_encoder_right: Of these, how often the answer is right, and the candidate.
        difference: Of the shares that are right among all photos, the answers' minus the candidates'.
    """

    num_differ: int
    num_right: int
    num_encoder_right: int
    difference: Difference


def against_encoder(
    scored: Sequence[ScoredAnswer], ranked: Sequence[RankedPhoto], gallery: Sequence[GalleryRecord], *, seed: int
) -> dict[str, AgainstEncoder]:
    """By level, ``street`` and ``piece`` (the street with its cross streets); empty without a photo that has both."""
    address_of = {record.sub_street_id: record.address for record in gallery}
    gazetteer = Gazetteer(list(address_of.values()))
    best = {photo.image_id: photo for photo in ranked}
    pairs = [
        (answer, best[answer.prediction.image_id])
        for answer in scored
        if answer.prediction.task == WHERE and answer.prediction.image_id in best
    ]
    if not pairs:
        return {}
    found = {}
    for level, score in ((STREET, "street_accuracy"), (PIECE, "sub_street_accuracy")):
        is_right = [float(answer.scores[score]) for answer, _ in pairs]
        ranks = [photo.street_rank if level == STREET else photo.sub_street_rank for _, photo in pairs]
        encoder_right = [float(rank == 1) for rank in ranks]
        firsts = [address_of[photo.top_ids[0]] for _, photo in pairs]
        differs = [not _names(a, first, level, gazetteer) for (a, _), first in zip(pairs, firsts, strict=True)]
        found[level] = AgainstEncoder(
            sum(differs),
            round(sum(right for right, other in zip(is_right, differs, strict=True) if other)),
            round(sum(right for right, other in zip(encoder_right, differs, strict=True) if other)),
            paired_difference(is_right, encoder_right, [photo.panorama_id for _, photo in pairs], seed=seed),
        )
    return found


def _names(answer: ScoredAnswer, address: Address, level: str, gazetteer: Gazetteer) -> bool:
    """True if an answer would be right, were this the true address."""
    return names_street(answer.match, address, gazetteer) and (level == STREET or same_crossings(answer.match, address))
