"""A loss between photos: each shall find the others of its address, taken from other places and on other days.

The losses of AddressCLIP pull photos towards texts. Where photos are located by their likeness to training photos, too,
it is this likeness that has to be right: of all other photos the nearest one shall be of the same address. That is
neighbourhood components analysis (Goldberger et al., NeurIPS 2004) with cosines and a temperature:

    loss_i = -log( sum_{j in P_i} exp(s x_i.x_j)  /  sum_{j in P_i or N_i} exp(s x_i.x_j) )

``P_i`` are the photos of the same address from other panoramas, ``N_i`` those of other addresses. The sum stands inside
of the logarithm: one that shows the same fronts is enough, and those that look the other way need not be alike.

A batch has few photos of an address from other panoramas, so it is compared with earlier batches, too, as they were
encoded then (cross-batch memory, arXiv 1912.06798); no gradient flows to those.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

WHOLE = slice(None)


@dataclass(frozen=True)
class KnownPhotos:
    """Photos that are compared with.

    Attributes:
        features: ``(K, D)``, length one.
        address_id: ``(K,)``.
        panorama: ``(K,)`` key of each photo's panorama: its photos share place and moment, and are no evidence.
    """

    features: torch.Tensor
    address_id: torch.Tensor
    panorama: torch.Tensor


def image_photo_loss(
    photos: KnownPhotos, logit_scale: torch.Tensor, earlier: KnownPhotos | None = None, rows: slice = WHOLE
) -> torch.Tensor:
    """Mean over the batch of the module's ``loss_i``; a photo without another one of its address counts 0.

    Args:
        photos: The batch of all processes.
        logit_scale: ``()``, ``s``. It is learnt from the texts alone: no gradient flows to it from here.
        earlier: Of ``PhotoQueue``.
        rows: Photos to account for, of the mean over all.
    """
    others = [photos, *([earlier] if earlier else [])]
    features, address_id, panorama = (
        torch.cat([getattr(part, name) for part in others]) for name in ("features", "address_id", "panorama")
    )
    with torch.autocast(features.device.type, enabled=False):
        features = features if features.dtype == torch.float64 else features.float()
        logits = logit_scale.detach().to(features.dtype) * features[: len(photos.features)][rows] @ features.T  # (N, K)
        is_other = photos.panorama[rows, None] != panorama
        is_right = is_other & (photos.address_id[rows, None] == address_id)
        has_right = is_right.any(dim=1)
        logits, is_other, is_right = logits[has_right], is_other[has_right], is_right[has_right]
        of_all = logits.masked_fill(~is_other, -torch.inf).logsumexp(dim=1)
        of_right = logits.masked_fill(~is_right, -torch.inf).logsumexp(dim=1)
        return (of_all - of_right).sum() / len(photos.features)


class PhotoQueue:
    """The photos of the last batches, as they were encoded; the same on every process.

    Args:
        num_photos: As many whole batches are kept as have no more photos.
    """

    def __init__(self, num_photos: int) -> None:
        self._num_photos = num_photos
        self._batches: deque[KnownPhotos] = deque()

    def photos(self) -> KnownPhotos | None:
        """All that are kept, None at the beginning."""
        if not self._batches:
            return None
        names = ("features", "address_id", "panorama")
        return KnownPhotos(*(torch.cat([getattr(batch, name) for batch in self._batches]) for name in names))

    def add(self, batch: KnownPhotos) -> None:
        """Keeps a batch, and drops the oldest ones that are too many with it."""
        self._batches.append(KnownPhotos(*(tensor.detach() for tensor in vars(batch).values())))
        while sum(len(kept.features) for kept in self._batches) > self._num_photos:
            self._batches.popleft()

    def state(self) -> list[dict[str, torch.Tensor]]:
        """For a checkpoint."""
        return [{name: tensor.cpu() for name, tensor in vars(batch).items()} for batch in self._batches]

    def load(self, state: Sequence[Mapping[str, torch.Tensor]], device: torch.device) -> None:
        """Goes on from what ``state`` gave."""
        self._batches = deque(KnownPhotos(**{name: t.to(device) for name, t in batch.items()}) for batch in state)
