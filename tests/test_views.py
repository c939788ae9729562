"""Views of a photo: squares of it, by their pixels."""

import pytest
from PIL import Image

from llava_ial.data.views import NUM_VIEWS, PART, views_of


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (100, 100), (1, 1)])
def test_views_are_the_photo_and_squares_at_its_edges(size: tuple[int, int]) -> None:
    photo = Image.linear_gradient("L").resize(size).convert("RGB")
    assert views_of(photo, "1") == [photo]
    whole, left, right = views_of(photo, "3")
    side = max(1, round(PART * min(size)))
    assert whole is photo
    assert left.size == right.size == (side, side)
    top = (size[1] - side) // 2
    assert left.tobytes() == photo.crop((0, top, side, top + side)).tobytes()
    assert right.tobytes() == photo.crop((size[0] - side, top, size[0], top + side)).tobytes()


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (100, 100), (1, 1)])
def test_parts_are_the_photo_and_rows_of_smaller_and_smaller_squares(size: tuple[int, int]) -> None:
    photo = Image.linear_gradient("L").resize(size).convert("RGB")
    whole, *parts = views_of(photo, "parts")
    assert {views: len(views_of(photo, views)) for views in NUM_VIEWS} == NUM_VIEWS
    assert whole is photo
    assert len(parts) + 1 == NUM_VIEWS["parts"]
    expected = []
    mid, rows = 0.5, (0.25, 0.5, 0.75)
    for share, count, row in ((0.65, 3, mid), (0.5, 3, mid), *((0.35, 4, row) for row in rows), (0.25, 6, mid)):
        side = max(1, round(share * min(size)))
        top = int(row * (size[1] - side))
        lefts = [round(i / (count - 1) * (size[0] - side)) for i in range(count)]
        assert (lefts[0], lefts[-1] + side) == (0, size[0]), "from edge to edge"
        expected += [photo.crop((left, top, left + side, top + side)).tobytes() for left in lefts]
    assert [part.tobytes() for part in parts] == expected
