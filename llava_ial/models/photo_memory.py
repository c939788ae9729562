"""The training photos as a memory beside the texts of the addresses.

An address is as near as its text, and as the photos that were taken there: a cache model in the manner of Tip-Adapter
(arXiv 2207.09519), with features that were tuned for these very addresses. For a photo with feature ``x`` and an
address with text feature ``g`` and photos ``f_i``, all of length one,

    score = (x.g + w n) / (1 + w),    n = log(mean_i exp(b x.f_i)) / b

``n`` lies between the mean and the largest of the similarities; ``b`` says where.

Where a photo's views are kept apart, each of them is remembered, and each view of a photo that is located gets scores
of its own; the photo's probabilities are the mean of its views': one that shows the sky alone speaks for no address and
against none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llava_ial.errors import UserError

MEMORY = "photo_memory.safetensors"
# In memory together, 4 bytes each: all views of all photos of a city are compared with every view that is located. No
# more of them are faster, either: they leave a CPU's caches.
_SIMILARITIES = 2**23


@dataclass(frozen=True)
class PhotoMemory:
    """Features of photos whose addresses are known.

    Attributes:
        features: ``(M, D)`` of length one, of photos or of their views.
        rows: ``(M,)`` row of each photo's address in the gallery.
        panoramas: ``(M,)`` key of each photo's panorama, see ``llava_ial.records.name_key``.
        photos: ``(M,)`` key of each photo; its views stand together, in their order.
        weight: ``w`` of the module's docstring.
        sharpness: ``b``.
    """

    features: torch.Tensor
    rows: torch.Tensor
    panoramas: torch.Tensor
    photos: torch.Tensor
    weight: float
    sharpness: float

    def blend(
        self, features: torch.Tensor, cosines: torch.Tensor, own_panoramas: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores ``(N, C)`` of photos from their cosines with the addresses' texts; they lie between -1 and 1, too.

        An address without photos gets the mean of the others' ``n``: its text alone speaks for or against it.

        Args:
            features: ``(N, D)`` of length one.
            cosines: ``(N, C)``.
            own_panoramas: ``(N,)`` keys; photos of the same panorama are not remembered.
        """
        at_once = max(1, _SIMILARITIES // max(1, len(self.features)))
        if len(features) > at_once:
            some = [slice(start, start + at_once) for start in range(0, len(features), at_once)]
            own = own_panoramas
            return torch.cat([self.blend(features[s], cosines[s], None if own is None else own[s]) for s in some])
        remembered, panoramas, counts = self._by_address
        similarity = self.sharpness * features @ remembered.to(features.dtype).T  # (N, M)
        if own_panoramas is not None:
            similarity.masked_fill_(panoramas == own_panoramas[:, None], -torch.inf)
        nearness = torch.full_like(cosines, -torch.inf)
        parts = torch.split(similarity, list(counts.values()), dim=1)  # type: ignore[no-untyped-call]
        for row, part in zip(counts, parts, strict=True):
            num_counted = (part > -torch.inf).sum(dim=1).clamp(min=1)
            nearness[:, row] = (part.logsumexp(dim=1) - num_counted.to(part.dtype).log()) / self.sharpness
        is_known = nearness > -torch.inf
        nearness = torch.where(is_known, nearness, 0.0)
        mean = nearness.sum(dim=1, keepdim=True) / is_known.sum(dim=1, keepdim=True).clamp(min=1)
        return (cosines + self.weight * torch.where(is_known, nearness, mean)) / (1 + self.weight)

    def features_of(self, keys: Sequence[int]) -> torch.Tensor | None:
        """``(N, V, D)`` of photos by their keys, each with its ``V`` views; None if one is not remembered."""
        first = self._first_row
        if not all(key in first for key in keys):
            return None
        num_views = len(self.photos) // max(1, len(first))
        starts = torch.tensor([first[key] for key in keys], dtype=torch.int64, device=self.features.device)
        return self.features[starts[:, None] + torch.arange(num_views, device=starts.device)]

    @cached_property
    def _first_row(self) -> dict[int, int]:
        first: dict[int, int] = {}
        for row, key in enumerate(self.photos.tolist()):
            first.setdefault(key, row)
        return first

    @cached_property
    def _by_address(self) -> tuple[torch.Tensor, torch.Tensor, dict[int, int]]:
        """Features and panoramas with those of one address together, and how many each has: sums of slices are fast."""
        order = self.rows.argsort(stable=True)
        rows, counts = torch.unique_consecutive(self.rows[order], return_counts=True)
        return self.features[order], self.panoramas[order], dict(zip(rows.tolist(), counts.tolist(), strict=True))


def address_scores(
    features: torch.Tensor,
    texts: torch.Tensor,
    memory: PhotoMemory | None = None,
    own_panoramas: torch.Tensor | None = None,
    *,
    logit_scale: float,
) -> torch.Tensor:
    """Scores ``(N, C)`` of photos and addresses: cosines or a blend of them; of views kept apart see ``mix_views``.

    Args:
        features: ``(N, D)`` of length one, or ``(N, V, D)`` of views that are kept apart.
        texts: ``(C, D)`` of length one.
        memory: Of photos whose addresses are known, if they count beside the texts.
        own_panoramas: ``(N,)`` keys; photos of the same panorama are not remembered.
        logit_scale: The factor that makes logits of scores.
    """
    if features.ndim == 3:
        num_photos, num_views, _ = features.shape
        own = None if own_panoramas is None else own_panoramas.repeat_interleave(num_views)
        scores = address_scores(features.flatten(0, 1), texts, memory, own, logit_scale=logit_scale)
        return mix_views(scores.reshape(num_photos, num_views, -1), logit_scale)
    cosines = features @ texts.T
    return memory.blend(features, cosines, own_panoramas) if memory else cosines


def mix_views(scores: torch.Tensor, logit_scale: float) -> torch.Tensor:
    """Scores ``(N, C)`` whose softmax is the mean of those of the views' scores ``(N, V, C)``.

    They are the logarithm of that mean, over the scale, so at most 0, for an address of which all views are sure. How
    high the best one lies says how far the views agree, and that tells photos of the city from others.
    """
    of_views = (logit_scale * scores).log_softmax(dim=2)
    return (of_views.logsumexp(dim=1) - math.log(scores.shape[1])) / logit_scale


def save_memory(folder: Path, memory: PhotoMemory) -> Path:
    """Writes the photos at 16 bits; weight and sharpness stand in the manifest."""
    path = folder / MEMORY
    numbers = {"rows": memory.rows, "panoramas": memory.panoramas, "photos": memory.photos}
    tensors = {"features": memory.features.half(), **{name: tensor.long() for name, tensor in numbers.items()}}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)
    return path


def load_memory(folder: Path, *, weight: float, sharpness: float, device: str) -> PhotoMemory:
    """What ``save_memory`` wrote, at 32 bits.

    Raises:
        UserError: Unreadable.
    """
    path = folder / MEMORY
    try:
        found = load_file(path, device=device)
        photos = found.get("photos", torch.zeros(0, dtype=torch.int64))  # in folders of older versions there are none
        return PhotoMemory(found["features"].float(), found["rows"], found["panoramas"], photos, weight, sharpness)
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path}: unreadable: {error}; restore it or train stage 1 again") from error
