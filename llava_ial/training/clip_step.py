"""The losses of a step of stage 1, from the features of this process to its part of the loss of all."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from llava_ial import distributed
from llava_ial.models.losses import Truths, address_clip_losses
from llava_ial.models.photo_loss import KnownPhotos, PhotoQueue
from llava_ial.training.clip_settings import ClipSettings

# Behind these names stand the tensors that the model takes; the rest of a batch says what is true of it.
_INPUTS = ("pixel_values", "input_ids", "attention_mask")
# Pairs of a photo and a text or another photo that are compared at a time: a matrix of 128 MB in float32.
_MOST_PAIRS = 2**25


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
    """The tensors of a batch."""
    return {
        name: value.to(device, non_blocking=True) for name, value in batch.items() if isinstance(value, torch.Tensor)
    }


def model_inputs(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What ``AddressCLIP`` takes of a batch."""
    return {name: tensor for name, tensor in tensors.items() if name.endswith(_INPUTS)}


def batch_losses(
    features: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    settings: ClipSettings,
    queue: PhotoQueue | None = None,
) -> dict[str, torch.Tensor]:
    """This process's part of each loss of the batch of all processes; the parts add up to the loss.

    The negatives of a photo are the texts of all processes; gradients flow back to where a feature was made.

    Args:
        features: Of ``AddressCLIP``: photos, and every different text once.
        tensors: Of the batch.
        settings: Weights and choices.
        queue: Photos of earlier batches; this one is added.
    """
    own = {"image_features": features["image_features"]}
    for kind in settings.loss_weights.text_kinds:
        own[f"{kind}_features"] = features[f"{kind}_features"][tensors[f"{kind}_row"]]
    everyone = {name: distributed.gather_with_gradient(rows) for name, rows in own.items()}
    truths = Truths(**{f.name: distributed.gather_with_gradient(tensors[f.name]) for f in fields(Truths)})
    earlier = queue.photos() if queue else None
    losses_of_rows = partial(
        address_clip_losses, {**everyone, "logit_scale": features["logit_scale"]}, truths,
        weights=settings.loss_weights, positives=settings.positives, sigma_m=settings.sigma_m,
        geography_reading=settings.geography_reading, earlier=earlier,
    )  # fmt: skip
    num_columns = len(truths.address_id) + (len(earlier.features) if earlier else 0)
    losses = losses_in_blocks(
        losses_of_rows, distributed.own_rows(tensors["address_id"]), max(1, _MOST_PAIRS // num_columns)
    )
    if queue:
        queue.add(KnownPhotos(everyone["image_features"].float(), truths.address_id, truths.panorama))
    return losses


def losses_in_blocks(
    losses_of_rows: Callable[..., dict[str, torch.Tensor]], rows: slice, block: int
) -> dict[str, torch.Tensor]:
    """The losses of ``rows``, ``block`` of them at a time and computed again on the way back.

    So memory is that of one block: the matrices of a whole batch of 32,768 photos would take some hundred gigabytes.
    """
    if rows.stop - rows.start <= block:
        return losses_of_rows(rows=rows)
    starts = range(rows.start, rows.stop, block)
    parts = [
        checkpoint(
            losses_of_rows, rows=slice(start, min(start + block, rows.stop)), use_reentrant=False,
            preserve_rng_state=False,
        )
        for start in starts
    ]  # fmt: skip
    return {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}


def losses_of_everyone(losses: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The values of the whole batch, for the record: one message for all."""
    total = distributed.sum_ranks(torch.stack([loss.detach().float() for loss in losses.values()]))
    return dict(zip(losses, total.tolist(), strict=True))
