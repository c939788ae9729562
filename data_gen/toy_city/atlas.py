"""All textures in one flat array with mip levels; a texture is painted when the first ray needs it."""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from data_gen.toy_city.arrays import ByteArray, Float32Array, IntArray

NUM_LEVELS = 6
Painter = Callable[[], ByteArray]


class Atlas:
    """RGBA textures, each (H, W) at full size and halved `NUM_LEVELS - 1` times.

    Attributes:
        texels: Flat uint32 array; the bytes of an element are red, green, blue and alpha, lowest first.
        rows: (T, NUM_LEVELS) height of each level.
        columns: (T, NUM_LEVELS) width of each level.
        offsets: (T, NUM_LEVELS) first element of each level in `texels`.
    """

    def __init__(self, shapes: list[tuple[int, int]], painters: list[Painter]) -> None:
        sizes = np.array(shapes, dtype=np.int64).reshape(-1, 2)
        levels = np.arange(NUM_LEVELS)
        self.rows: IntArray = np.maximum(1, sizes[:, :1] >> levels)
        self.columns: IntArray = np.maximum(1, sizes[:, 1:] >> levels)
        areas = self.rows * self.columns
        ends = np.cumsum(areas.reshape(-1))
        self.offsets: IntArray = (ends - areas.reshape(-1)).reshape(areas.shape)
        self._total = int(ends[-1])
        self._painters = painters
        self._is_painted = np.zeros(len(painters), dtype=bool)
        self.texels: npt.NDArray[np.uint32] = np.zeros(0, dtype=np.uint32)

    def paint(self, textures: Iterable[int]) -> None:
        """Paint the given textures where that has not been done yet."""
        if not len(self.texels):
            self.texels = np.zeros(self._total, dtype=np.uint32)
        for texture in textures:
            if self._is_painted[texture]:
                continue
            image = self._painters[texture]().astype(np.float32)
            for level in range(NUM_LEVELS):
                shape = int(self.rows[texture, level]), int(self.columns[texture, level])
                image = image if level == 0 else _halve(image, shape)
                start = int(self.offsets[texture, level])
                packed = np.ascontiguousarray(image.astype(np.uint8)).view(np.uint32).reshape(-1)
                self.texels[start : start + len(packed)] = packed
            self._is_painted[texture] = True


def _halve(image: Float32Array, shape: tuple[int, int]) -> Float32Array:
    """Average 2 x 2 texels, weighted by alpha, down to `shape`."""
    rows, columns = shape
    for axis, count in ((0, rows), (1, columns)):
        if image.shape[axis] > count:
            low = np.take(image, np.arange(count) * 2, axis=axis)
            high = np.take(image, np.arange(count) * 2 + 1, axis=axis)
            weight = low[..., 3:] + high[..., 3:]
            colour = (low[..., :3] * low[..., 3:] + high[..., :3] * high[..., 3:]) / np.maximum(weight, 1.0)
            image = np.concatenate([colour, weight / 2], axis=-1)
    return image
