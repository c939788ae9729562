"""Where does the encoder put the photos of a split? Their features, and the place of the truth among all addresses."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from llava_ial.data.clip import ClipExample, ClipPhotos, PhotoChange
from llava_ial.data.dataset import IALDataset
from llava_ial.data.views import NUM_VIEWS, ONE, PARTS
from llava_ial.distributed import is_main_process
from llava_ial.evaluation.retrieval import street_ranks, sub_street_ranks
from llava_ial.models.address_clip import AddressCLIP
from llava_ial.models.photo_memory import PhotoMemory, address_scores
from llava_ial.records import name_key


@dataclass(frozen=True)
class PhotoFeatures:
    """Features of photos with what is true of them.

    Attributes:
        row: ``(N,)`` which of the asked photos these are; those that could not be read are not among them.
        features: ``(N, D)`` float32, length one; ``(N, V, D)`` where views are kept apart.
        address_id: ``(N,)`` row of the true address in the gallery.
        xy_m: ``(N, 2)`` metres from a local origin.
    """

    row: torch.Tensor
    features: torch.Tensor
    address_id: torch.Tensor
    xy_m: torch.Tensor

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "PhotoFeatures":
        """The same change made to all tensors."""
        return PhotoFeatures(change(self.row), change(self.features), change(self.address_id), change(self.xy_m))


@torch.no_grad()
def encode_photos(
    model: AddressCLIP,
    examples: Sequence[ClipExample],
    image_processor: Any,
    *,
    device: torch.device,
    batch_size: int,
    num_workers: int = 0,
    views: str = ONE,
    change: PhotoChange | None = None,
) -> PhotoFeatures:
    """Features of all photos that can be read, in their order; of the others a warning is printed.

    Args:
        model: Whose image encoder is measured.
        examples: Photos with their true addresses.
        image_processor: Of the model.
        device: Where the model is.
        batch_size: Photos at a time.
        num_workers: Processes that decode.
        views: Of each photo, see ``llava_ial.data.views``.
        change: Made to each photo first.
    """
    apart = views == PARTS
    loader = DataLoader(
        ClipPhotos(examples, image_processor, augmentation=change, views=views),
        batch_size=max(1, batch_size // NUM_VIEWS[views]) if apart else batch_size,
        collate_fn=list,
        num_workers=num_workers,
    )
    found: list[bool] = []
    # A share of a split may hold no photo.
    rows = [torch.zeros(0, *([NUM_VIEWS[views]] if apart else []), model.feature_width, device=device)]
    was_training = model.training
    model.eval()
    for items in tqdm(loader, desc="locate", unit="batch", disable=not is_main_process(), leave=False):
        found += ["error" not in item for item in items]
        for item in items:
            if "error" in item:
                tqdm.write(f"not measured: {item['error']}")
        if pixels := [item["pixel_values"] for item in items if "error" not in item]:
            rows.append(model.encode_views(torch.stack(pixels).to(device), apart=apart).float())
    model.train(was_training)
    row = torch.tensor(found, dtype=torch.bool).nonzero().flatten()
    known = [examples[i] for i in row.tolist()]
    return PhotoFeatures(
        row.to(device),
        torch.cat(rows),
        torch.tensor([example.address_id for example in known], dtype=torch.int64, device=device),
        torch.tensor([example.xy_m for example in known], device=device).reshape(-1, 2),
    )


def remember(dataset: IALDataset, photos: PhotoFeatures, *, weight: float, sharpness: float) -> PhotoMemory:
    """The training photos as a memory.

    Args:
        dataset: Whose split ``train`` was encoded.
        photos: Of that split.
        weight, sharpness: As of ``PhotoMemory``.
    """
    records = [sample.photo for sample in dataset.samples("train")]
    num_views = photos.features[0, ..., 0].numel() if len(photos.features) else 1

    def keys(names: Sequence[str]) -> torch.Tensor:
        all_keys = torch.tensor([name_key(name) for name in names], device=photos.row.device)
        return all_keys[photos.row].repeat_interleave(num_views)

    return PhotoMemory(
        photos.features.flatten(0, -2), photos.address_id.repeat_interleave(num_views),
        keys([record.panorama for record in records]), keys([record.image_id for record in records]), weight, sharpness,
    )  # fmt: skip


def address_ranks(
    photos: PhotoFeatures,
    gallery_embeddings: torch.Tensor,
    street_of_class: torch.Tensor,
    *,
    logit_scale: float,
    memory: PhotoMemory | None = None,
    batch_size: int = 64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Place of the true piece of street, and of the true street, among all candidates: two ``(N,)``, 1 for the best.

    Args:
        photos: Of ``encode_photos``.
        gallery_embeddings: ``(C, D)`` features of all candidate addresses, length one.
        street_of_class: ``(C,)`` street of each candidate.
        logit_scale: Of the encoder.
        memory: Of the training photos, if they shall count.
        batch_size: Photos whose scores are in memory together.
    """
    streets = street_of_class.to(gallery_embeddings.device)
    pieces = [torch.zeros(0, dtype=torch.int64, device=gallery_embeddings.device)]
    roads = list(pieces)
    for rows in _slices(len(photos.features), batch_size):
        scores = address_scores(photos.features[rows], gallery_embeddings, memory, logit_scale=logit_scale)
        truth = photos.address_id[rows]
        pieces.append(sub_street_ranks(scores, truth))
        roads.append(street_ranks(scores, truth, streets))
    return torch.cat(pieces), torch.cat(roads)


def _slices(num_rows: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, num_rows, size))
