"""MATLAB files of level 5 (``save -v6`` and ``-v7``): numbers, texts, cells and structures, nothing executed.

The format is MathWorks' "MAT-File Format" (level 5): elements of a tag and data, some of them deflated. Files of
version 7.3 are HDF5 and refused.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llava_ial.errors import UserError

_MATRIX, _COMPRESSED, _UTF8 = 14, 15, 16
_NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
    16: "u1",
    17: "u2",
}
_CELL, _STRUCT, _TEXT = 1, 2, 4
_NUMERIC = range(6, 16)
_HEADER_BYTES = 128


def read_mat(path: Path) -> dict[str, Any]:
    """The variables of a file: arrays, texts, lists for cells, dictionaries (or lists of them) for structures.

    Raises:
        UserError: No MATLAB file of level 5, cut off, or with something else in it.
    """
    try:
        data = path.read_bytes()
        if data[:4] == b"\x89HDF" or b"HDF5" in data[:_HEADER_BYTES] or b"MATLAB 7.3" in data[:_HEADER_BYTES]:
            raise UserError(f"{path}: a MATLAB file of version 7.3; save it again with -v7, or export it to CSV")
        order = {b"IM": "<", b"MI": ">"}[data[126:128]]
        found = [_matrix(body, order) for kind, body in _elements(data[_HEADER_BYTES:], order) if kind == _MATRIX]
    except (OSError, KeyError, struct.error, zlib.error, ValueError, IndexError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable MATLAB file: {error or type(error).__name__}") from error
    return dict(found)


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """(type, data) of each element; deflated ones are inflated."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(order + "II", data, at)
        if kind >> 16:  # the short form: size, type and up to four bytes in one word and the next
            kind, size = kind & 0xFFFF, kind >> 16
            yield kind, data[at + 4 : at + 4 + size]
            at += 8
            continue
        body = data[at + 8 : at + 8 + size]
        if len(body) < size:
            raise ValueError("it is cut off")
        at += 8 + size
        if kind == _COMPRESSED:
            yield from _elements(zlib.decompress(body), order)
            continue
        at += -size % 8
        yield kind, body


def _matrix(body: bytes, order: str) -> tuple[str, Any]:
    """Name and value of a variable, a cell or a field."""
    parts = list(_elements(body, order))
    if not parts:  # an empty cell
        return "", np.zeros((0, 0))
    flags, shape = _numbers(*parts[0], order), _numbers(*parts[1], order)
    name, rest, kind = parts[2][1].decode("ascii"), parts[3:], int(flags[0]) & 0xFF
    if kind == _CELL:
        return name, [_matrix(part, order)[1] for _, part in rest]
    if kind == _STRUCT:
        width = int(_numbers(*rest[0], order)[0])
        fields = [rest[1][1][i : i + width].split(b"\0")[0].decode() for i in range(0, len(rest[1][1]), width)]
        values = [_matrix(part, order)[1] for _, part in rest[2:]]
        rows = [dict(zip(fields, values[i : i + len(fields)], strict=True)) for i in range(0, len(values), len(fields))]
        return name, rows[0] if len(rows) == 1 else rows
    if kind == _TEXT:
        return name, _text(*rest[0], order) if rest else ""
    if kind not in _NUMERIC:
        raise ValueError(f"'{name}' is of class {kind}; numbers, texts, cells and structures are read")
    return name, _numbers(*rest[0], order).reshape(shape.tolist(), order="F")


def _numbers(kind: int, data: bytes, order: str) -> np.ndarray:
    return np.frombuffer(data, dtype=np.dtype(order + _NUMBERS[kind]))


def _text(kind: int, data: bytes, order: str) -> str:
    return data.decode() if kind == _UTF8 else "".join(map(chr, _numbers(kind, data, order).tolist()))
