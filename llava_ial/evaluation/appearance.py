"""Photos as raw pixels and as colours: what a nearest neighbour finds without any learning."""

import numpy as np
import numpy.typing as npt
from PIL import Image

Float32Array = npt.NDArray[np.float32]
_THUMBNAIL_SIDE = 16
_BINS = 8


def pixel_features(image: Image.Image) -> Float32Array:
    """A 16 x 16 thumbnail of an RGB photo, ``(768,)``, mean removed and of unit length."""
    side = (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE)
    thumbnail = np.asarray(image.resize(side, Image.Resampling.BOX), dtype=np.float32).reshape(-1)
    small: Float32Array = thumbnail - thumbnail.mean()
    return small / np.float32(max(float(np.linalg.norm(small)), 1e-6))


def histogram_features(image: Image.Image) -> Float32Array:
    """Square root of the joint colour histogram of an RGB photo, ``(512,)`` (Hellinger kernel): of unit length."""
    codes = np.asarray(image, dtype=np.int64) * _BINS // 256
    flat = (codes[..., 0] * _BINS + codes[..., 1]) * _BINS + codes[..., 2]
    counts = np.bincount(flat.reshape(-1), minlength=_BINS**3)
    roots: Float32Array = np.sqrt(counts / counts.sum()).astype(np.float32)
    return roots
