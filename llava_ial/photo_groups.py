"""Which questions are answered together: those about one photo always are, so that it is encoded once."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from llava_ial.locating import Photo


def identity_of(photo: Photo) -> object:
    """The same for the same photo."""
    return photo if isinstance(photo, Path) else id(photo)


def whole_photos(photos: Sequence[Photo], most_photos: int, many_rows: int) -> Iterator[list[int]]:
    """Rows in groups that hold all rows of a photo or none.

    Args:
        photos: One a row.
        most_photos: In a group; their keys and values are in memory together.
        many_rows: A group with so many takes no further photo; with several batches of rows, those of similar length
            find each other.
    """
    rows_of: dict[object, list[int]] = {}
    for row, photo in enumerate(photos):
        rows_of.setdefault(identity_of(photo), []).append(row)
    group: list[int] = []
    num_photos = 0
    for rows in rows_of.values():
        group += rows
        num_photos += 1
        if num_photos == most_photos or len(group) >= many_rows:
            yield group
            group, num_photos = [], 0
    if group:
        yield group
