"""How the features of photos and addresses lie on the sphere: what the geography loss promises, as numbers.

Alignment and uniformity are those of Wang and Isola (arXiv 2005.10242); the rank correlation says whether photos that
were taken far apart also lie far apart.
"""

import torch


def alignment(image_features: torch.Tensor, text_features: torch.Tensor) -> float:
    """Mean squared distance between a photo and its own address, 0 at best, 2 for unrelated ones.

    Args:
        image_features: ``(N, D)``, length one.
        text_features: ``(N, D)``, length one.
    """
    return float((image_features - text_features).square().sum(dim=1).mean())


def uniformity(features: torch.Tensor) -> float:
    """Logarithm of the mean of ``exp(-2 |x - y|^2)`` over pairs: 0 if all are one point, down to about -4.

    Args:
        features: ``(N, D)``, length one.
    """
    return float((-2 * _pairs(2 - 2 * features @ features.T)).exp().mean().log())


def distance_correlation(features: torch.Tensor, xy_m: torch.Tensor) -> float:
    """Spearman's rank correlation between the pairs' distance in the features and in metres.

    Args:
        features: ``(N, D)``, length one.
        xy_m: ``(N, 2)``.

    Returns:
        -1 to 1; 0 where all pairs are equally far apart.
    """
    apart_m = (xy_m[:, None] - xy_m[None, :]).double().norm(dim=-1)
    ranks = [mid_ranks(_pairs(distance)) for distance in (1 - features @ features.T, apart_m)]
    one, other = (rank - rank.mean() for rank in ranks)
    size = one.norm() * other.norm()
    return float(one @ other / size) if size > 0 else 0.0


def mid_ranks(values: torch.Tensor) -> torch.Tensor:
    """Place of each value, ties at the middle of theirs."""
    found = torch.unique(values, return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    place, counts = found[1], found[2]
    middle: torch.Tensor = counts.cumsum(0).double() - (counts.double() - 1) / 2
    return middle[place]


def _pairs(matrix: torch.Tensor) -> torch.Tensor:
    """Values above the diagonal."""
    first, second = torch.triu_indices(len(matrix), len(matrix), offset=1, device=matrix.device)
    return matrix[first, second]
