"""Augmentation of training photos with Pillow alone: changes that leave the address true.

No horizontal flip: left and right of a street are part of the place. A mirrored photo shows the other side, with the
shops in an order that exists nowhere, and lettering nobody painted.
"""

import math
from dataclasses import dataclass

import torch
from PIL import Image, ImageEnhance


@dataclass(frozen=True)
class Augmentation:
    """How far a training photo may be changed; the defaults change nothing.

    Attributes:
        min_crop_area: Smallest share of the photo's area that a random crop keeps, in (0, 1].
        colour_jitter: Largest relative change of brightness, contrast and saturation, in [0, 1).
        white_balance_jitter: Largest relative change of red, green and blue, each for itself, in [0, 1): another hour.
    """

    min_crop_area: float = 1.0
    colour_jitter: float = 0.0
    white_balance_jitter: float = 0.0

    def __call__(self, photo: Image.Image, generator: torch.Generator) -> Image.Image:
        """The changed photo; every draw comes from ``generator``."""
        if self.min_crop_area < 1:
            photo = random_crop(photo, self.min_crop_area, generator)
        if self.colour_jitter > 0:
            for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                factor = 1 + self.colour_jitter * _uniform(-1, 1, generator)
                photo = enhancer(photo).enhance(factor)
        if self.white_balance_jitter > 0:
            gains = [1 + self.white_balance_jitter * _uniform(-1, 1, generator) for _ in range(3)]
            photo = photo.point([min(255, round(gain * value)) for gain in gains for value in range(256)])
        return photo


def augmentation_of(min_crop_area: float, colour_jitter: float, white_balance_jitter: float) -> Augmentation | None:
    """The augmentation that settings ask for; None if it changes nothing."""
    augmentation = Augmentation(min_crop_area, colour_jitter, white_balance_jitter)
    return None if augmentation == Augmentation() else augmentation


def draws_at(seed: int, position: int) -> torch.Generator:
    """What a photo's change is drawn from: a function of the position in the stream of epochs alone."""
    return torch.Generator().manual_seed(seed * 1_000_003 + position)


def random_crop(photo: Image.Image, min_area: float, generator: torch.Generator) -> Image.Image:
    """A crop of a share of the area uniform in ``[min_area, 1]``, with an aspect ratio of 3/4 to 4/3."""
    for _ in range(10):
        area = photo.width * photo.height * _uniform(min_area, 1, generator)
        aspect = math.exp(_uniform(math.log(3 / 4), math.log(4 / 3), generator))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= photo.width and 0 < height <= photo.height:
            left = int(_uniform(0, 1, generator) * (photo.width - width + 1))
            top = int(_uniform(0, 1, generator) * (photo.height - height + 1))
            return photo.crop((left, top, left + width, top + height))
    return photo  # no such crop fits, as in a very long photo


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
