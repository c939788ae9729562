"""From a photo to the model's pixels: what a CLIP image processor computes, bit for bit, without its detours.

The processors of ``transformers`` turn a photo to an array and back to a Pillow image to resize it, then pass over the
floats three times. In training, where loaders share the cores with the model, that is most of a small photo's cost.
"""

import math
from typing import Any

import numpy as np
import torch
from PIL import Image

_DRAFT_MARGIN = 2


class PhotoPixels:
    """Photo to ``pixel_values (3, H, W)`` float32, equal to ``image_processor(photo)``.

    Processors that do anything but resize, crop the centre, rescale and normalise are called themselves.

    Args:
        image_processor: A Pillow-backed processor of ``transformers``.
    """

    def __init__(self, image_processor: Any) -> None:
        self._image_processor = image_processor
        self._is_plain = _is_plain(image_processor)
        if self._is_plain:
            # A channel has 256 values: what the processor makes of each is looked up instead of computed.
            values = np.tile(np.arange(256, dtype=np.uint8), (3, 1, 1))
            scaled = image_processor.rescale(values, image_processor.rescale_factor)
            table = image_processor.normalize(scaled, image_processor.image_mean, image_processor.image_std)
            self._table = torch.from_numpy(np.ascontiguousarray(table[:, 0], dtype=np.float32))  # (3, 256)

    def __call__(self, photo: Image.Image) -> torch.Tensor:
        """``(3, H, W)`` of an RGB photo."""
        if not self._is_plain:
            pixels: torch.Tensor = self._image_processor(photo, return_tensors="pt")["pixel_values"][0]
            return pixels
        size, resample = self._image_processor.size, self._image_processor.resample
        if size.get("shortest_edge"):
            short, long = sorted(photo.size)
            target = int(size["shortest_edge"]), int(size["shortest_edge"] * long / short)
            new_size = target if photo.width <= photo.height else target[::-1]
        else:
            new_size = (int(size["width"]), int(size["height"]))
        if new_size != photo.size:
            photo = photo.resize(new_size, resample=resample)
        if self._image_processor.do_center_crop:
            crop = self._image_processor.crop_size
            left, top = (photo.width - crop["width"]) // 2, (photo.height - crop["height"]) // 2
            if (crop["width"], crop["height"]) != photo.size:
                photo = photo.crop((left, top, left + crop["width"], top + crop["height"]))
        channels = torch.from_numpy(np.asarray(photo).transpose(2, 0, 1).astype(np.int32))  # (3, H, W)
        return torch.stack(
            [table.index_select(0, values.flatten()) for table, values in zip(self._table, channels, strict=True)]
        ).view(channels.shape)


def input_side(image_processor: Any) -> int:
    """Side of the square that a CLIP image processor makes, in pixels."""
    size = image_processor.crop_size or image_processor.size
    return int(size["height"])


def draft_side(image_processor: Any, min_crop_area: float = 1.0) -> int:
    """Shortest side in pixels at which a photo need be decoded, so that a crop of it still fills twice the input."""
    return math.ceil(_DRAFT_MARGIN * input_side(image_processor) / math.sqrt(min_crop_area))


def _is_plain(processor: Any) -> bool:
    """True if the processor resizes, crops within the photo, rescales and normalises, and nothing else."""
    steps = [getattr(processor, name, None) for name in ("do_resize", "do_rescale", "do_normalize")]
    if getattr(processor, "backend", None) != "pil" or not all(steps) or getattr(processor, "do_pad", None):
        return False
    size = dict(processor.size)
    sides = {name for name, value in size.items() if value}
    if sides not in ({"shortest_edge"}, {"height", "width"}):
        return False
    if not processor.do_center_crop:
        return sides == {"height", "width"}
    crop = processor.crop_size
    smallest = min(value for value in size.values() if value)
    return bool(max(int(crop["height"]), int(crop["width"])) <= smallest)
