"""Where does the encoder put the photos of a split? Scores every photo against every address of the gallery."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from llava_ial.data.clip import ClipCollator, ClipExample, ClipPhotos
from llava_ial.distributed import is_main_process
from llava_ial.errors import UserError
from llava_ial.evaluation.retrieval import street_ranks, sub_street_ranks
from llava_ial.models.address_clip import AddressCLIP


@torch.no_grad()
def locate_photos(
    model: AddressCLIP,
    examples: Sequence[ClipExample],
    image_processor: Any,
    collator: ClipCollator,
    gallery_embeddings: torch.Tensor,
    street_of_class: torch.Tensor,
    *,
    batch_size: int,
    num_workers: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Place of the true piece of street, and of the true street, among all candidates: two ``(N,)``, 1 for the best.

    Args:
        model: Whose image encoder is measured.
        examples: Photos with their true addresses.
        image_processor: Of the model.
        collator: Of the model.
        gallery_embeddings: ``(C, D)`` features of all candidate addresses, length one.
        street_of_class: ``(C,)`` street of each candidate.
        batch_size: Photos at a time.
        num_workers: Processes that decode.

    Raises:
        UserError: A photo that cannot be read.
    """
    loader = DataLoader(
        ClipPhotos(examples, image_processor), batch_size=batch_size, collate_fn=collator, num_workers=num_workers
    )
    device = gallery_embeddings.device
    sub_street = [torch.zeros(0, dtype=torch.int64, device=device)]  # a share of a split may hold no photo
    street = list(sub_street)
    was_training = model.training
    model.eval()
    for batch in tqdm(loader, desc="locate", unit="batch", disable=not is_main_process(), leave=False):
        if "error" in batch:
            raise UserError(batch["error"])
        scores = model.encode_images(batch["pixel_values"].to(device)).float() @ gallery_embeddings.T
        truth = batch["address_id"].to(device)
        sub_street.append(sub_street_ranks(scores, truth))
        street.append(street_ranks(scores, truth, street_of_class.to(device)))
    model.train(was_training)
    return torch.cat(sub_street), torch.cat(street)
