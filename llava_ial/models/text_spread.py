"""Starts tuning with addresses that point in different directions.

The addresses of one city share most of their words. A text encoder puts them close together, along a few directions;
photos are then pulled towards those first, and many steps pass before single addresses are told apart. A linear map
after the text encoder, which is where CLIP has its projection anyway, can undo that in advance.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from llava_ial.errors import UserError
from llava_ial.models.address_clip import AddressCLIP

# Share of the mean variance that is added before the inverse root, for directions that no text has.
_RIDGE = 1e-5


@torch.no_grad()
def spread_texts(model: AddressCLIP, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Rewrites the text projection so that the features of ``texts`` have the same variance in every direction.

    With ``T (N, D)`` the features of unit length, the projection ``W`` becomes ``(T'T / N)^(-1/2) W``: symmetric (ZCA)
    whitening without centring, the map that moves the features least (Kessy et al., arXiv 1512.00809). Up to ``D``
    texts become orthogonal, save for the ridge; more of them a tight frame.

    Args:
        model: Changed in place; nothing else of it is touched.
        texts: All addresses of the city.
        tokenizer: Of the model.

    Raises:
        UserError: The encoder has no text projection.
    """
    if not hasattr(model.clip, "text_projection"):
        raise UserError("spread_addresses: true; this base has no text projection to refit, leave it false")
    was_training = model.training
    features = model.eval().embed_texts(texts, tokenizer).double()
    model.train(was_training)
    moment = features.T @ features / len(features)  # (D, D)
    values, directions = torch.linalg.eigh(moment)
    inverse_root = directions @ torch.diag((values.clamp(min=0) + _RIDGE * values.mean()).rsqrt()) @ directions.T
    projection = model.clip.text_projection.weight  # (D, W)
    projection.copy_((inverse_root.to(projection.device) @ projection.double()).to(projection.dtype))
