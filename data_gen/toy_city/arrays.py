"""Array type aliases and named random streams shared by the toy city's modules."""

import zlib

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
ByteArray = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
Colour = tuple[int, int, int]


def random_stream(seed: int, *keys: int | str) -> np.random.Generator:
    """Return the random generator that belongs to a seed and a purpose.

    Every purpose ("names", "building" and its number, ...) has a stream of its own, so drawing more numbers
    for one thing never changes another, and the order of work (or the number of workers) cannot matter.

    Args:
        seed: Seed of the city, at least 0.
        keys: Purpose, as words and numbers.
    """
    words = [zlib.crc32(key.encode()) if isinstance(key, str) else key for key in keys]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *words])))
