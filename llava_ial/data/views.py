"""What an encoder sees of a photo that is located: one square of it, or several.

    1      the middle square, CLIP's own view: of a wide photo it never sees the edges
    3      that, and squares at the left and the right edge, the features averaged. What tells a place may stand
           anywhere in a street photo; parts are seen larger, and training's random crops have made the encoder used to
           parts
    parts  that, and squares of four sizes from left to right, each located as a photo of its own, the probabilities
           averaged. A shop front that another photo shows from another place is found again, whatever stands around it
    pad    the whole photo on a grey square, as LLaVA-1.5 looks at photos: nothing is lost, everything is smaller

Of a square photo the first and the last are the same.
"""

from PIL import Image

ONE, THREE, PARTS, PAD = VIEWS = ("1", "3", "parts", "pad")
# Sides of the squares as shares of the photo's shorter side; chosen on a development town, see docs/stage1.md.
PART = 0.65
# Of the parts that are located on their own: side, how many stand from the left edge to the right one, and in which
# rows, by the share of what is left of the height that lies above.
_PARTS = ((PART, 3, (0.5,)), (0.5, 3, (0.5,)), (0.35, 4, (0.25, 0.5, 0.75)), (0.25, 6, (0.5,)))
NUM_VIEWS = {ONE: 1, THREE: 3, PARTS: 1 + sum(count * len(rows) for _, count, rows in _PARTS), PAD: 1}
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
    if views == PARTS:
        rows = [(share, count, row) for share, count, heights in _PARTS for row in heights]
        return [photo, *(square for share, count, row in rows for square in _squares(photo, share, count, row))]
    return [photo, *_squares(photo, PART, 2)]


def _squares(photo: Image.Image, share: float, count: int, row: float = 0.5) -> list[Image.Image]:
    """Squares evenly from the left edge to the right one; ``row`` is 0 at the top and 1 at the bottom."""
    side = max(1, round(share * min(photo.size)))
    top = int(row * (photo.height - side))
    lefts = [round(i * (photo.width - side) / (count - 1)) for i in range(count)]
    return [photo.crop((left, top, left + side, top + side)) for left in lefts]


def _on_square(photo: Image.Image) -> Image.Image:
    if photo.width == photo.height:
        return photo
    side = max(photo.size)
    square = Image.new("RGB", (side, side), _GROUND)
    square.paste(photo, ((side - photo.width) // 2, (side - photo.height) // 2))
    return square
