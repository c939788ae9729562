"""AddressCLIP's metrics: is the right address among the first k candidates?

    SSA@k  sub-street accuracy: the true piece of street is among the k best candidates
    SA@k   street accuracy: the street (main street + neighbourhood) of any of the k best candidates is right

Ties count against the model: a candidate that scores as high as the true one stands before it. So a model that says the
same of every address is right about none.
"""

from collections.abc import Sequence

import torch


def sub_street_ranks(scores: torch.Tensor, true_class: torch.Tensor) -> torch.Tensor:
    """Place of the true candidate of each photo, 1 for the best.

    Args:
        scores: ``(N, C)``, higher is better.
        true_class: ``(N,)`` column of the true candidate.

    Returns:
        ``(N,)`` int64.
    """
    own = scores.gather(1, true_class[:, None])  # (N, 1)
    return (scores >= own).sum(dim=1)  # the true candidate counts itself


def street_ranks(scores: torch.Tensor, true_class: torch.Tensor, street_of_class: torch.Tensor) -> torch.Tensor:
    """Smallest k for which the street is right among the k best candidates.

    Args:
        scores: ``(N, C)``, higher is better.
        true_class: ``(N,)`` column of the true candidate.
        street_of_class: ``(C,)`` street of each candidate.

    Returns:
        ``(N,)`` int64.
    """
    same_street = street_of_class[None, :] == street_of_class[true_class][:, None]  # (N, C)
    best = scores.masked_fill(~same_street, -torch.inf).amax(dim=1, keepdim=True)
    return ((scores >= best) & ~same_street).sum(dim=1) + 1


def retrieval_metrics(
    sub_street_rank: torch.Tensor, street_rank: torch.Tensor, top_ks: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """``SSA@k`` and ``SA@k`` as fractions, and how many photos they are of.

    Args:
        sub_street_rank: ``(N,)`` of ``sub_street_ranks``.
        street_rank: ``(N,)`` of ``street_ranks``.
        top_ks: The values of k.
    """
    metrics: dict[str, float] = {"num_photos": len(sub_street_rank)}
    for k in top_ks:
        metrics[f"SSA@{k}"] = float((sub_street_rank <= k).double().mean())
        metrics[f"SA@{k}"] = float((street_rank <= k).double().mean())
    return metrics


def street_classes(street_keys: Sequence[tuple[str, str]]) -> torch.Tensor:
    """Candidates' ``Address.street_key`` as class indices, ``(C,)``, for ``street_ranks``."""
    index = {key: i for i, key in enumerate(dict.fromkeys(street_keys))}
    return torch.tensor([index[key] for key in street_keys])
