"""Why here? The regions of a photo that carried the answer, found by occlusion.

Each region of a grid is blurred away in turn, and the encoder looks again: the more the address loses, the more that
region carried (Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", arXiv 1311.2901, 4.2).
It holds for any encoder and needs no gradient; what it shows is what the candidates rest on, not LLaVA's words.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageFilter

from llava_ial.data.images import load_photo
from llava_ial.inference import AddressPredictor

Look = Callable[[], torch.Tensor]

GRID = 6
# A region is covered together with half of each neighbour, so that nothing hides on a border of the grid.
OVERLAP = 0.5
NUM_MARKED = 6
_LONGER_SIDE = 640
_BATCH = 12


@dataclass(frozen=True)
class Attribution:
    """A photo as it was looked at, and what each region carried.

    Attributes:
        photo: Upright, at most 640 pixels on its longer side.
        loss: ``(GRID, GRID)`` by how much the address's log-probability falls when the region is blurred away.
    """

    photo: Image.Image
    loss: torch.Tensor

    def marked(self, count: int = NUM_MARKED) -> list[tuple[int, int]]:
        """Rows and columns of the regions that carried most, best first; only those that carried anything."""
        order = self.loss.flatten().sort(descending=True, stable=True)
        best = zip(order.indices[:count].tolist(), order.values[:count].tolist(), strict=True)
        return [divmod(index, self.loss.shape[1]) for index, value in best if value > 0]


def attribute(
    predictor: AddressPredictor, photo: Path, row: int, run: Callable[[Look], torch.Tensor] = lambda look: look()
) -> Attribution:
    """Covers region after region and looks what the address loses.

    Args:
        predictor: Whose encoder is asked.
        photo: The photo.
        row: The address, by its place in the gallery.
        run: Looks at some views when it is their turn; at once by default.

    Raises:
        UserError: The photo cannot be read.
    """
    image = load_photo(photo)
    image.thumbnail((_LONGER_SIDE, _LONGER_SIDE))
    blurred = image.filter(ImageFilter.GaussianBlur(max(image.size) / 8))
    cells = [(r, c) for r in range(GRID) for c in range(GRID)]
    views = [image, *(cover(image, blurred, [cell], OVERLAP) for cell in cells)]
    batches = [views[start : start + _BATCH] for start in range(0, len(views), _BATCH)]
    parts = [run(functools.partial(predictor.cosines, batch)) for batch in batches]
    chances = predictor.to_probabilities(torch.cat(parts))[:, row].clamp_min(1e-12).log()  # (1 + GRID * GRID,)
    return Attribution(image, (chances[0] - chances[1:]).reshape(GRID, GRID))


def cover(image: Image.Image, blurred: Image.Image, cells: list[tuple[int, int]], overlap: float = 0.0) -> Image.Image:
    """A photo with regions of the grid taken from its blurred version, each wider by ``overlap`` of a region a side."""
    covered = image.copy()
    for cell in cells:
        box = region(image.size, cell, overlap)
        covered.paste(blurred.crop(box), box)
    return covered


def region(size: tuple[int, int], cell: tuple[int, int], overlap: float = 0.0) -> tuple[int, int, int, int]:
    """Left, top, right and bottom in pixels of a region ``(row, column)`` of a picture of a size."""
    width, height = size
    row, column = cell
    left, right = (round(width * min(GRID, max(0.0, column + step)) / GRID) for step in (-overlap, 1 + overlap))
    top, bottom = (round(height * min(GRID, max(0.0, row + step)) / GRID) for step in (-overlap, 1 + overlap))
    return left, top, right, bottom
