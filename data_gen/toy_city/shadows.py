"""Shadows that buildings throw on the ground and on each other, for the surroundings of one camera."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_gen.toy_city.arrays import Float32Array, FloatArray
from data_gen.toy_city.light import Light
from data_gen.toy_city.lots import SHADOW_CELL_M

if TYPE_CHECKING:
    from data_gen.toy_city.render import Camera, Hits
    from data_gen.toy_city.scene import Faces, Scene

_RADIUS_M, _STEPS = 84, 22


@dataclass(frozen=True)
class Shadows:
    """Height of the shadow above every cell around a camera, in metres; 0 is sunlit ground.

    Attributes:
        height: (C, C) metres.
        west: World x of the raster's corner.
        south: World y of the raster's corner.
    """

    height: Float32Array
    west: float
    south: float

    def at(self, x: FloatArray | Float32Array, y: FloatArray | Float32Array) -> Float32Array:
        """Return shadow heights at world positions; far away there is none."""
        size = len(self.height)
        column = np.clip(((x - self.west) / SHADOW_CELL_M).astype(np.int32), 0, size - 1)
        row = np.clip(((y - self.south) / SHADOW_CELL_M).astype(np.int32), 0, size - 1)
        return np.take(self.height.reshape(-1), row * size + column)

    def on_faces(self, camera: Camera, faces: Faces, hits: Hits) -> FloatArray:
        """Return the height up to which each hit's foot is in the shade, (M,) metres."""
        along = (faces.end - faces.start)[hits.face]
        out = np.stack([along[:, 1], -along[:, 0]], axis=-1)
        out *= 1.2 / np.linalg.norm(along, axis=1)[:, None]
        foot = faces.start[hits.face] + along * hits.share[:, None] + out
        return self.at(foot[:, 0], foot[:, 1]).astype(np.float64)


def cast_shadows(scene: Scene, camera: Camera, light: Light) -> Shadows:
    """Slide the raster of building heights away from the sun and keep the highest shadow."""
    size = 2 * _RADIUS_M
    west_cell = int((camera.position[0] - scene.ground.west) / SHADOW_CELL_M) - _RADIUS_M
    south_cell = int((camera.position[1] - scene.ground.south) / SHADOW_CELL_M) - _RADIUS_M
    shadow = np.zeros((size, size), dtype=np.float32)
    stride = max(1.0, 16.0 / max(light.sun_slope, 0.1) / _STEPS)
    for step in range(1, _STEPS + 1):
        reach = step * stride
        drop = reach * light.sun_slope
        shift = np.round(light.to_sun * reach / SHADOW_CELL_M).astype(int)
        row, column = south_cell + int(shift[1]), west_cell + int(shift[0])
        window = scene.heights[max(row, 0) : max(row + size, 0), max(column, 0) : max(column + size, 0)]
        top, left = max(-row, 0), max(-column, 0)
        target = shadow[top : top + window.shape[0], left : left + window.shape[1]]
        np.maximum(target, window - np.float32(drop), out=target)
    shadow[[0, -1]] = shadow[:, [0, -1]] = 0.0
    west = scene.ground.west + west_cell * SHADOW_CELL_M
    return Shadows(shadow, west, scene.ground.south + south_cell * SHADOW_CELL_M)
