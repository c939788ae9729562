"""Views of a photo whose features are averaged: the whole, and its left and its right part.

What tells a place may stand anywhere in a street photo, and CLIP's own view is the middle square. Parts are seen
larger, and those of a wide photo reach its edges. Training's random crops have made the encoder used to parts.
"""

from PIL import Image

ONE, THREE = NUM_VIEWS = (1, 3)
# Side of the left and right part as a share of the photo's shorter side; chosen on a development town, see
# docs/stage1.md.
PART = 0.65


def views_of(photo: Image.Image, num_views: int) -> list[Image.Image]:
    """The photo itself, and for three views squares at its left and right edge, half-way up."""
    if num_views == ONE:
        return [photo]
    side = max(1, round(PART * min(photo.size)))
    top = (photo.height - side) // 2
    return [photo, *(photo.crop((left, top, left + side, top + side)) for left in (0, photo.width - side))]
