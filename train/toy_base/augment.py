"""Augmentation of whole batches as tensors: what another day, another camera and another step would change.

No horizontal flip: left and right of a street are part of the place.
"""

import torch
from torch.nn import functional


def augment(pixels: torch.Tensor, generator: torch.Generator, *, min_scale: float = 0.5) -> torch.Tensor:
    """Random crop and light of a batch.

    Args:
        pixels: ``(B, 3, S, S)`` float in [0, 1].
        generator: Source of every draw.
        min_scale: Smallest share of the photo's area that a crop keeps.

    Returns:
        ``(B, 3, S, S)`` float in [0, 1].
    """
    return _light(_crop(pixels, generator, min_scale), generator)


def _crop(pixels: torch.Tensor, generator: torch.Generator, min_scale: float) -> torch.Tensor:
    batch = len(pixels)
    side = torch.empty(batch).uniform_(min_scale, 1.0, generator=generator).sqrt()
    stretch = torch.empty(batch).uniform_(-0.12, 0.12, generator=generator).exp()
    width, height = (side * stretch).clamp(max=1), (side / stretch).clamp(max=1)
    shift = torch.empty(batch, 2).uniform_(-1, 1, generator=generator)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width, height
    theta[:, 0, 2], theta[:, 1, 2] = shift[:, 0] * (1 - width), shift[:, 1] * (1 - height)
    grid = functional.affine_grid(theta, list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _light(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    batch = len(pixels)

    def draw(low: float, high: float, channels: int = 1) -> torch.Tensor:
        return torch.empty(batch, channels, 1, 1).uniform_(low, high, generator=generator)

    pixels = pixels * draw(0.65, 1.4) * draw(0.85, 1.15, 3)
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    grey = pixels.mean(dim=1, keepdim=True)
    pixels = (pixels - mean) * draw(0.7, 1.35) + mean
    pixels = grey + (pixels - grey) * draw(0.6, 1.3)
    return pixels.clamp(0, 1)
