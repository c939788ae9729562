"""Where something was photographed: what the steps over all photos of a build hold in memory."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_gen.parts import Context
from data_gen.positions import FloatArray, num_parts, read_columns
from llava_ial.errors import UserError
from llava_ial.splits import SPLIT_NAMES

NO_SPLIT = -1


@dataclass
class Places:
    """Each place once, and four bytes for each photo.

    The crops of a panorama follow each other at one place with one split; they are one entry here.

    Attributes:
        xy_m: ``(P, 2)`` metres of the map's frame.
        panorama: ``(P,)`` rank of its panorama, which also tells panoramas apart.
        given: ``(P,)`` index of the split that the source states, -1 for none.
        first: Rows of each part that are the first photo of a place.
        of_photo: ``(N,)`` the place of each photo.
        rows: Photos in each part.
    """

    xy_m: FloatArray
    panorama: npt.NDArray[np.uint64]
    given: npt.NDArray[np.int8]
    first: list[npt.NDArray[np.int64]]
    of_photo: npt.NDArray[np.int32]
    rows: list[int]


def load_places(context: Context) -> Places:
    """Of the photos that were geocoded, part by part."""
    folder, is_given = context.work / "nearest", context.settings.split == "given"
    xy_m, panorama, given, first, of_photo = [], [], [], [], []
    count = 0
    for part in range(num_parts(folder)):
        table = read_columns(folder, part, ["x_m", "y_m", "panorama"])
        split = _given_splits(context, part) if is_given else np.full(len(table), NO_SPLIT, dtype=np.int8)
        columns = [table[name].to_numpy() for name in table.column_names]
        is_first = np.ones(len(table), dtype=bool)
        is_first[1:] = np.any([column[1:] != column[:-1] for column in (*columns, split)], axis=0)
        first.append(np.flatnonzero(is_first))
        of_photo.append((count - 1 + np.cumsum(is_first)).astype(np.int32))
        xy_m.append(np.stack(columns[:2], axis=1)[is_first])
        panorama.append(columns[2][is_first])
        given.append(split[is_first])
        count += len(first[-1])
    rows = [len(part) for part in of_photo]
    places = (np.concatenate(xy_m), np.concatenate(panorama), np.concatenate(given))
    return Places(*places, first, np.concatenate(of_photo), rows)


def _given_splits(context: Context, part: int) -> npt.NDArray[np.int8]:
    names = read_columns(context.folder / "photos", part, ["given_split"])["given_split"].to_pylist()
    codes = {name: code for code, name in enumerate(SPLIT_NAMES)} | {None: NO_SPLIT}
    if unknown := sorted({str(name) for name in names if name not in codes}):
        raise UserError(f"split '{unknown[0]}' is unknown; allowed: {', '.join(SPLIT_NAMES)}")
    return np.array([codes[name] for name in names], dtype=np.int8)
