"""UTM tables of Pitts250k: CSV columns, a MATLAB array, or the structure that place recognition data sets publish."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data_gen.matlab import read_mat
from data_gen.tables import parse_number, read_csv_rows
from llava_ial.errors import UserError

Metres = tuple[float, float]  # east, north
# Names and positions of the database, and of the queries, in the structure of the published files.
_STRUCTURE = (("dbImageFns", "utmDb", False), ("qImageFns", "utmQ", True))


@dataclass(frozen=True)
class UtmTable:
    """Positions in metres, NaN where one is no number.

    Attributes:
        rows: By panorama or by image.
        by_name: By the end of the path (folder and name) and whether it is a query; where the table has names.
    """

    rows: list[Metres]
    by_name: dict[tuple[str, bool], Metres] = field(default_factory=dict)


def read_utm_table(path: Path, east: str, north: str) -> UtmTable:
    """Reads a table by its suffix: ``.mat``, else CSV with the columns ``east`` and ``north``.

    Raises:
        UserError: Unreadable, or a MATLAB file without positions.
    """
    if path.suffix.lower() != ".mat":
        rows = [(parse_number(row[east]), parse_number(row[north])) for row in read_csv_rows(path, (east, north))]
        return UtmTable([(math.nan if e is None else e, math.nan if n is None else n) for e, n in rows])
    variables = read_mat(path)
    for value in _structures(variables):
        by_name: dict[tuple[str, bool], Metres] = {}
        for names, positions, is_query in _STRUCTURE:
            if names in value and positions in value:
                metres = _metres(np.asarray(value[positions]))
                for name, place in zip(value[names], metres or [], strict=True):
                    by_name["/".join(PurePosixPath(str(name)).parts[-2:]), is_query] = place
        if by_name:
            return UtmTable([], by_name)
    arrays = [_metres(value) for value in variables.values() if isinstance(value, np.ndarray)]
    found = max((array for array in arrays if array), key=len, default=None)
    if found is None:
        raise UserError(
            f"photos_csv: {path} holds neither an array of two columns nor a structure with "
            f"{_STRUCTURE[0][0]} and {_STRUCTURE[0][1]}; it has: {', '.join(variables) or 'nothing'}"
        )
    return UtmTable(found)


def _structures(variables: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield variables  # the fields may have been saved as variables of their own
    yield from (value for value in variables.values() if isinstance(value, dict))


def _metres(array: np.ndarray) -> list[Metres] | None:
    """Rows of an array of shape ``(N, 2)`` or ``(2, N)``; None for any other, and for numbers that are no metres."""
    if array.ndim != 2 or 2 not in array.shape or array.dtype.kind != "f":
        return None
    rows = array if array.shape[1] == 2 else array.T
    return [(float(e), float(n)) for e, n in rows]
