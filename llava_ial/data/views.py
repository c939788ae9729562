"""What an encoder sees of a photo that is located: one square of it, or several whose features are averaged.

    1      the middle square, CLIP's own view: of a wide photo it never sees the edges
    3      that, and squares at the left and the right edge. What tells a place may stand anywhere in a street photo;
           parts are seen larger, and training's random crops have made the encoder used to parts
    pad    the whole photo on a grey square, as LLaVA-1.5 looks at photos: nothing is lost, everything is smaller

Of a square photo the first and the last are the same.
"""

from PIL import Image

ONE, THREE, PAD = VIEWS = ("1", "3", "pad")
# Side of the left and right part as a share of the photo's shorter side; chosen on a development town, see
# docs/stage1.md.
PART = 0.65
# CLIP's mean colour, which is nothing to an encoder whose pixels are normalised by it.
_GROUND = (122, 116, 104)


def views_of(photo: Image.Image, views: str) -> list[Image.Image]:
    """The pictures of an RGB photo that the encoder is shown.

    Args:
        photo: Upright.
        views: One of ``VIEWS``.
    """
    if views == ONE:
        return [photo]
    if views == PAD:
        return [_on_square(photo)]
    side = max(1, round(PART * min(photo.size)))
    top = (photo.height - side) // 2
    return [photo, *(photo.crop((left, top, left + side, top + side)) for left in (0, photo.width - side))]


def _on_square(photo: Image.Image) -> Image.Image:
    if photo.width == photo.height:
        return photo
    side = max(photo.size)
    square = Image.new("RGB", (side, side), _GROUND)
    square.paste(photo, ((side - photo.width) // 2, (side - photo.height) // 2))
    return square
