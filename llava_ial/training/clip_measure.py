"""What is measured of an encoder while it trains, and which of its states is the best one."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from llava_ial import distributed
from llava_ial.calibration import Calibration, calibrate
from llava_ial.data.views import ONE
from llava_ial.errors import UserError
from llava_ial.evaluation.feature_space import alignment, distance_correlation, uniformity
from llava_ial.evaluation.locate import PhotoFeatures, address_ranks, encode_photos, remember
from llava_ial.evaluation.retrieval import retrieval_metrics, street_classes
from llava_ial.evaluation.wordings import TRAINED, UNTRAINED, gallery_texts
from llava_ial.models.address_clip import AddressCLIP
from llava_ial.models.photo_memory import PhotoMemory, address_scores
from llava_ial.training.clip_run import ClipRun

# Pairs grow with the square; so many photos, evenly over a split, say enough of the space.
_MAX_PHOTOS_IN_PAIRS = 1000
# A temperature is one number: so many photos, evenly over a split, fit it.
_MOST_CALIBRATED, _CALIBRATED_AT_A_TIME = 2000, 64
JUDGED_BY = "SSA@1"


def measure_splits(run: ClipRun) -> dict[str, dict[str, float]]:
    """Metrics of each split to measure on; the same on every process.

    ``SSA@k``, ``SA@k`` with the gallery in its trained wording and, under ``spoken SSA@1`` and so on, in three others;
    ``alignment``, ``uniformity`` and ``distance_correlation``, see ``evaluation.feature_space``. Photos that cannot be
    read are counted as ``num_unreadable``: a long training shall not end on one of them.

    Raises:
        UserError: No photo of a split can be read.
    """
    model = run.published_model()
    gallery = {
        name: model.embed_texts(texts, run.tokenizer) for name, texts in gallery_texts(run.dataset.gallery).items()
    }
    streets = street_classes([record.address.street_key for record in run.dataset.gallery])
    metrics = {}
    for split in run.settings.eval_splits:
        photos = features_of_split(run, split)
        if not len(photos.features):
            raise UserError(f"split '{split}': none of its {len(run.examples[split])} photos can be read")
        metrics[split] = retrieval_metrics(
            *address_ranks(photos, gallery[TRAINED], streets, logit_scale=model.logit_scale)
        )
        metrics[split]["num_unreadable"] = len(run.examples[split]) - len(photos.features)
        for wording in UNTRAINED:
            found = retrieval_metrics(*address_ranks(photos, gallery[wording], streets, logit_scale=model.logit_scale))
            metrics[split] |= {f"{wording} {name}": value for name, value in found.items() if "@" in name}
        few = slice(None, None, -(-len(photos.features) // _MAX_PHOTOS_IN_PAIRS))
        features, own = photos.features[few], gallery[TRAINED][photos.address_id[few]]
        metrics[split] |= {
            "alignment": alignment(features, own),
            "uniformity": uniformity(features) if len(features) > 1 else 0.0,
            "distance_correlation": distance_correlation(features, photos.xy_m[few]),
        }
    return metrics


def measure_located(
    run: ClipRun, model: AddressCLIP, memory: PhotoMemory | None, photos: Mapping[str, PhotoFeatures]
) -> dict[str, dict[str, float]]:
    """``SSA@k`` and ``SA@k`` of each split as the finished folder locates photos: by all views, with the memory."""
    gallery = model.embed_texts([record.verbose for record in run.dataset.gallery], run.tokenizer)
    streets = street_classes([record.address.street_key for record in run.dataset.gallery])
    ranks = partial(address_ranks, logit_scale=model.logit_scale, memory=memory)
    return {split: retrieval_metrics(*ranks(some, gallery, streets)) for split, some in photos.items()}


@torch.no_grad()
def calibrate_located(
    run: ClipRun, model: AddressCLIP, memory: PhotoMemory | None, photos: PhotoFeatures
) -> Calibration | None:
    """What the probabilities of the finished folder are worth, measured on photos of a split; None without a photo."""
    every = -(-len(photos.features) // _MOST_CALIBRATED)
    if not every:
        return None
    few = photos.map(lambda tensor: tensor[::every])
    gallery = model.embed_texts([record.verbose for record in run.dataset.gallery], run.tokenizer)
    parts = torch.split(few.features, _CALIBRATED_AT_A_TIME)
    scores = torch.cat([address_scores(part, gallery, memory, logit_scale=model.logit_scale).cpu() for part in parts])
    scores = scores.double()
    return calibrate(
        (model.logit_scale * scores).numpy(), scores.amax(dim=1).numpy(), few.address_id.cpu().numpy(),
        street_classes([record.address.street_key for record in run.dataset.gallery]).numpy(), np.zeros(0),
    )  # fmt: skip


def remember_photos(run: ClipRun, model: AddressCLIP) -> PhotoMemory | None:
    """The memory of the training photos, None where they shall not count; the same on every process."""
    settings = run.settings
    if not settings.memory_weight:
        return None
    photos = features_of_split(run, "train", model=model, views=settings.views)
    sharpness = settings.memory_sharpness * model.logit_scale
    return remember(run.dataset, photos, weight=settings.memory_weight, sharpness=sharpness)


def features_of_split(run: ClipRun, split: str, *, model: AddressCLIP | None = None, views: str = ONE) -> PhotoFeatures:
    """All photos of a split on every process, each encoded by one of them, in as many bits as are trained with."""
    examples, rank, world = run.examples[split], distributed.rank(), distributed.world_size()
    encode = partial(
        encode_photos, model or run.published_model(), examples[rank::world], run.image_processor,
        device=run.accelerator.device, batch_size=max(1, run.settings.batch_size // world),
        num_workers=run.settings.num_workers, views=views,
    )  # fmt: skip
    with run.accelerator.autocast():
        own = distributed.run_on_every_process(encode)
    own = replace(own, row=rank + world * own.row)
    order = distributed.gather_with_gradient(own.row).argsort()
    return own.map(lambda tensor: distributed.gather_with_gradient(tensor)[order])
