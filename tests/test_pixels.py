"""The short way from photo to pixels against the image processors of ``transformers``."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from llava_ial.data.pixels import PhotoPixels


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


PROCESSORS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    "clip with a margin": CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 33, "width": 30}),
    "siglip": SiglipImageProcessorPil(size={"height": 24, "width": 36}),
    "crop beyond the photo": CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 32, "width": 32}),
    "no normalisation": CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_normalize=False
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(32, 32), (40, 40), (33, 100), (101, 47), (31, 32), (7, 9)])
def test_the_pixels_are_those_of_the_processor_bit_for_bit(name: str, size: tuple[int, int]):
    photo = noise(*size)
    expected = PROCESSORS[name](photo, return_tensors="pt")["pixel_values"][0]
    found = PhotoPixels(PROCESSORS[name])(photo)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
