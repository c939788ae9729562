"""Painted ornaments that make a building recognisable: emblems on shop signs and murals. None is a letter."""

import numpy as np

from data_gen.toy_city.arrays import BoolArray, Colour, Float32Array


def _grid(rows: int, columns: int) -> tuple[Float32Array, Float32Array]:
    """Return y and x in -1..1, y pointing down."""
    y = (np.arange(rows, dtype=np.float32)[:, None] + 0.5) / rows * 2 - 1
    x = (np.arange(columns, dtype=np.float32)[None, :] + 0.5) / columns * 2 - 1
    shape = (rows, columns)
    return np.broadcast_to(y, shape).astype(np.float32), np.broadcast_to(x, shape).astype(np.float32)


def paint_emblem(board: Float32Array, emblem: str, colour: Colour) -> None:
    """Paint an emblem on a (h, w, 3) sign board, in place."""
    y, x = _grid(*board.shape[:2])
    x = x * board.shape[1] / max(1, board.shape[0])
    radius = np.sqrt(x**2 + y**2)
    shapes: dict[str, BoolArray] = {
        "disc": radius < 0.85,
        "ring": (radius < 0.95) & (radius > 0.5),
        "cross": ((np.abs(x) < 0.32) & (np.abs(y) < 0.95)) | ((np.abs(y) < 0.32) & (np.abs(x) < 0.95)),
        "bars": (np.floor((x + 4) * 1.6) % 2 == 0) & (np.abs(y) < 0.8),
        "triangle": np.abs(x) < (y + 1) * 0.6,
        "diamond": np.abs(x) * 0.6 + np.abs(y) < 0.9,
        "waves": np.abs(y - 0.5 * np.sin(x * 4)) < 0.32,
    }
    board[shapes[emblem]] = colour


def paint_mural(wall: Float32Array, mural: str, colours: tuple[Colour, Colour, Colour]) -> None:
    """Paint a big pattern over a (h, w, 4) wall, in place."""
    rows, columns = wall.shape[:2]
    if not rows or not columns:
        return
    y, x = _grid(rows, columns)
    x, y = x * columns / 16.0, y * rows / 16.0
    radius = np.sqrt((x - 1.0) ** 2 + (y - 0.5) ** 2)
    bands = {
        "circles": np.floor(radius * 1.1),
        "diagonals": np.floor((x + y + 40) * 0.8),
        "zigzag": np.floor(y * 1.2 + np.abs((x * 0.8) % 2 - 1) + 40),
        "checks": np.floor((x + 40) * 0.7) + np.floor((y + 40) * 0.7),
        "sunrise": np.floor((np.arctan2(y - rows / 16.0, x) + np.pi) * 4.5),
        "leaves": np.floor(np.sin(x * 1.3) * 1.5 + np.sin(y * 1.7) * 1.5 + 40),
    }[mural]
    palette = np.array(colours, dtype=np.float32)
    wall[..., :3] = palette[bands.astype(np.int64) % 3]
