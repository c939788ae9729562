"""Where a model places photos in the list of all addresses, and how good that is.

Anything that scores every address for every photo can be measured: AddressCLIP, a CLIP that was never tuned, a nearest
neighbour.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from llava_ial.data.dataset import IALDataset, Sample
from llava_ial.data.images import load_photo
from llava_ial.distributed import gather_objects, is_main_process, rank, world_size
from llava_ial.errors import UserError
from llava_ial.evaluation.retrieval import retrieval_metrics, street_classes, street_ranks, sub_street_ranks
from llava_ial.evaluation.statistics import clustered_rate

TOP_KS = (1, 5)
_NUM_KEPT = 5
# Fixed: probabilities differ in their last digits between batches of different sizes, and results must not.
_PHOTOS_AT_A_TIME = 32

Scores = Callable[[Sequence[Image.Image]], torch.Tensor]


@dataclass(frozen=True)
class RankedPhoto:
    """A photo and what was ranked best for it.

    Attributes:
        sub_street_id: The true piece of street.
        sub_street_rank, street_rank: Place of the true piece and of the true street, 1 for the best.
        top_ids: The best candidates, best first.
        top_scores: Their scores; of AddressCLIP probabilities among all candidates.
        true_score: Score of the true piece.
    """

    image_id: str
    panorama_id: str
    sub_street_id: str
    sub_street_rank: int
    street_rank: int
    top_ids: list[str]
    top_scores: list[float]
    true_score: float


class Ranker:
    """Turns scores of all candidates into places.

    Args:
        dataset: Whose gallery is ranked.
    """

    def __init__(self, dataset: IALDataset) -> None:
        self._ids = [record.sub_street_id for record in dataset.gallery]
        self._class_of = {name: i for i, name in enumerate(self._ids)}
        self._streets = street_classes([record.address.street_key for record in dataset.gallery])

    def rank(self, samples: Sequence[Sample], scores: torch.Tensor) -> list[RankedPhoto]:
        """The places of photos whose scores are ``(N, C)``, higher is better."""
        truth = torch.tensor([self._class_of[sample.address.sub_street_id] for sample in samples])
        sub_street = sub_street_ranks(scores, truth).tolist()
        street = street_ranks(scores, truth, self._streets).tolist()
        best = scores.sort(dim=1, descending=True, stable=True)
        return [
            RankedPhoto(
                sample.photo.image_id,
                sample.photo.panorama,
                sample.address.sub_street_id,
                sub_street[row],
                street[row],
                [self._ids[c] for c in best.indices[row, :_NUM_KEPT].tolist()],
                best.values[row, :_NUM_KEPT].tolist(),
                float(scores[row, truth[row]]),
            )
            for row, sample in enumerate(samples)
        ]


def rank_photos(
    scores_of: Scores, dataset: IALDataset, samples: Sequence[Sample], *, title: str = "ranking"
) -> list[RankedPhoto]:
    """The places of all photos that can be read; several processes share the work and all get the result.

    Args:
        scores_of: Scores ``(N, C)`` of every candidate for each of some photos.
        dataset: Holds candidates and photos.
        samples: Photos with their true addresses.
        title: Of the progress bar.

    Raises:
        UserError: No photo can be read.
    """
    ranker = Ranker(dataset)
    starts = range(0, len(samples), _PHOTOS_AT_A_TIME)
    own: dict[int, list[RankedPhoto]] = {}
    with tqdm(total=len(samples), desc=title, unit=" photos", disable=not is_main_process()) as progress:
        for start in starts[rank() :: world_size()]:
            part = samples[start : start + _PHOTOS_AT_A_TIME]
            readable = [(sample, photo) for sample in part if (photo := read_photo(dataset, sample)) is not None]
            if readable:
                own[start] = ranker.rank(
                    [sample for sample, _ in readable], scores_of([photo for _, photo in readable])
                )
            progress.update(min(len(part) * world_size(), len(samples) - progress.n))
    found: dict[int, list[RankedPhoto]] = {}
    for share in gather_objects(own):
        found |= share
    ranked = [photo for start in sorted(found) for photo in found[start]]
    if not ranked:
        raise UserError(f"{dataset.folder}: none of the {len(samples)} photos can be read; is --image_root right?")
    return ranked


def best_cosines(cosines_of: Scores, files: Sequence[Path], *, title: str) -> list[float | None]:
    """How like its likeliest address each photo is; None for one that cannot be read.

    Args:
        cosines_of: Cosines ``(N, C)`` of some photos with every candidate.
        files: The photos.
        title: Of the progress bar.
    """
    found: list[float | None] = []
    with tqdm(total=len(files), desc=title, unit=" photos") as progress:
        for start in range(0, len(files), _PHOTOS_AT_A_TIME):
            photos = [_read(file) for file in files[start : start + _PHOTOS_AT_A_TIME]]
            readable = [photo for photo in photos if photo is not None]
            best = iter(cosines_of(readable).amax(dim=1).tolist() if readable else [])
            found += [None if photo is None else next(best) for photo in photos]
            progress.update(len(photos))
    return found


def read_photo(dataset: IALDataset, sample: Sample) -> Image.Image | None:
    """The photo of a sample, None if it cannot be read."""
    return _read(dataset.image_file(sample.photo.image_path))


def _read(file: Path) -> Image.Image | None:
    try:
        return load_photo(file)
    except UserError:
        return None


def ranking_metrics(ranked: Sequence[RankedPhoto], *, num_failed: int, seed: int) -> dict[str, Any]:
    """``SSA@k`` and ``SA@k``, and under ``rates`` the same with intervals clustered by panorama.

    Args:
        ranked: Photos.
        num_failed: Photos that could not be read; they are in no figure.
        seed: Of the intervals.
    """
    ranks = {
        "SSA": [photo.sub_street_rank for photo in ranked],
        "SA": [photo.street_rank for photo in ranked],
    }
    panoramas = [photo.panorama_id for photo in ranked]
    rates = {
        f"{name}@{k}": asdict(clustered_rate([rank <= k for rank in values], panoramas, seed=seed))
        for k in TOP_KS
        for name, values in ranks.items()
    }
    shares = retrieval_metrics(torch.tensor(ranks["SSA"]), torch.tensor(ranks["SA"]), TOP_KS)
    return {**shares, "num_failed": num_failed, "rates": rates}
