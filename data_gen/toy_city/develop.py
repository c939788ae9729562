"""Fills sky and ground and turns linear light into an 8-bit picture, as a small camera would."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from data_gen.toy_city.arrays import BoolArray, ByteArray, Float32Array, FloatArray, IntArray, random_stream
from data_gen.toy_city.ground import GRASS, MARKING, MEDIAN, PAVEMENT, QUAY, ROAD, WATER
from data_gen.toy_city.light import Light
from data_gen.toy_city.shadows import Shadows

if TYPE_CHECKING:
    from data_gen.toy_city.render import Camera
    from data_gen.toy_city.scene import Scene

_TILE, _SHADES = 256, 512
_TONES, _BRIGHTEST = 4096, 1.6
_ALBEDO = {
    GRASS: (0.36, 0.50, 0.25),
    WATER: (0.24, 0.36, 0.42),
    QUAY: (0.60, 0.56, 0.48),
    PAVEMENT: (0.66, 0.64, 0.61),
    MEDIAN: (0.34, 0.48, 0.25),
    ROAD: (0.36, 0.36, 0.38),
    MARKING: (0.86, 0.86, 0.84),
}


def _smooth_tile(seed: int, cells: tuple[int, ...]) -> Float32Array:
    """Return a (256, 256) tile of smooth noise that repeats without a seam, 0 to 1."""
    rng = random_stream(0, "tile", seed)
    total = np.zeros((_TILE, _TILE))
    for weight, count in enumerate(cells, start=1):
        knots = rng.random((count, count))
        knots = np.pad(knots, (0, 1), mode="wrap")
        place = np.arange(_TILE) * count / _TILE
        low = place.astype(np.int64)
        share = place - low
        share = share * share * (3 - 2 * share)
        rows = knots[low] * (1 - share)[:, None] + knots[low + 1] * share[:, None]
        total += (rows[:, low] * (1 - share) + rows[:, low + 1] * share) / weight
    total -= total.min()
    tile: Float32Array = (total / total.max()).astype(np.float32)
    return tile


_CLOUDS = _smooth_tile(1, (5, 11, 23, 47))
_GRAIN = _smooth_tile(2, (9, 40, 128))
_NOISE = random_stream(0, "sensor").standard_normal(1 << 20, dtype=np.float32)


def paint_ground(
    colour: Float32Array,
    places: IntArray,
    slope: Float32Array,
    scene: Scene,
    camera: Camera,
    side: int,
    light: Light,
    shadows: Shadows,
) -> BoolArray:
    """Colour the pixels that show the ground, in place.

    Args:
        colour: (columns * rows, 3) linear colours to fill.
        places: (G,) pixels that show the ground.
        slope: (G,) how far below the horizon, as a (negative) tangent.
        scene: The town.
        camera: The V views.
        side: Columns (and rows) per view.
        light: The light.
        shadows: Shadows around the camera.

    Returns:
        (G,) whether a pixel shows water.
    """
    depth = np.minimum(np.float32(camera.height_m) / -slope, np.float32(600.0))
    direction = _ray_directions(camera, side).astype(np.float32)
    column = places // side
    x = np.take(direction[:, 0], column) * depth + np.float32(camera.position[0] - scene.ground.west)
    y = np.take(direction[:, 1], column) * depth + np.float32(camera.position[1] - scene.ground.south)
    kind = scene.ground.at_offset(x, y)
    tile_row, tile_column = ((8.0 * offset).astype(np.int32) & (_TILE - 1) for offset in (y, x))
    shade = np.take(_GRAIN.reshape(-1), tile_row * _TILE + tile_column)
    sunlit = shadows.at(x + scene.ground.west, y + scene.ground.south) <= 0.0
    found = np.take(_surface_colours(light), kind * np.int32(2) + sunlit, axis=0)
    found *= (0.82 + 0.36 * shade)[:, None]
    is_water: BoolArray = kind == WATER
    if is_water.any():
        mirror = (0.35 + 0.5 * np.exp(6.0 * slope[is_water]))[:, None].astype(np.float32)
        found[is_water] = found[is_water] * (1 - mirror) + mirror * (light.zenith * 0.8).astype(np.float32)
    clear = np.exp(-depth / np.float32(light.haze_m))[:, None]
    haze = light.horizon.astype(np.float32)
    found -= haze
    found *= clear
    found += haze
    colour[places] = found
    return is_water


def _surface_colours(light: Light) -> Float32Array:
    """Return (2 * classes, 3) colours of the surfaces in the shade (even rows) and in the sun (odd rows)."""
    albedo = np.array([_ALBEDO[number] for number in range(len(_ALBEDO))])
    top_light = np.sin(np.arctan(light.sun_slope))
    lit = np.stack([light.ambient, light.ambient + light.sun * top_light])
    colours: Float32Array = (albedo[:, None] * lit).reshape(-1, 3).astype(np.float32)
    return colours


def _ray_directions(camera: Camera, side: int) -> FloatArray:
    """Return (V * side, 2) horizontal directions of all columns, of length 1 along the view axis."""
    angle = np.radians(camera.headings_deg)
    forward = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    right = np.stack([forward[:, 1], -forward[:, 0]], axis=-1)
    reach = np.tan(np.radians(camera.field_of_view_deg) / 2)
    tangent = ((np.arange(side) + 0.5) / side * 2 - 1) * reach
    rays: FloatArray = (forward[:, None] + tangent[None, :, None] * right[:, None]).reshape(-1, 2)
    return rays


def paint_sky(
    colour: Float32Array, places: IntArray, slope: Float32Array, camera: Camera, side: int, light: Light
) -> None:
    """Colour the pixels that show the sky, in place: a gradient, clouds, and a glow around the sun."""
    rays = _ray_directions(camera, side)
    rays = rays / np.linalg.norm(rays, axis=1)[:, None]
    bearing = (np.arctan2(rays[:, 0], rays[:, 1]) * (190.0 / np.pi)).astype(np.int32) + light.cloud_seed
    glow = (0.22 * np.exp(4.0 * (rays @ light.to_sun - 1.0)) * float(light.sun.mean())).astype(np.float32)
    column = places // side
    high = np.clip(slope * np.float32(1.25), 0.0, 1.0)
    row = (np.float32(160.0) / (np.float32(0.35) + slope)).astype(np.int32) + light.cloud_seed // _TILE
    density = np.take(_CLOUDS.reshape(-1), (row & 255) * _TILE + (np.take(bearing, column) & 255))
    cover = np.clip((density + np.float32(light.clouds - 1.0)) * np.float32(3.5), 0.0, 0.9)
    sky = np.take(_sky_colours(light), (high * (_SHADES - 1)).astype(np.int32), axis=0)
    white = (0.88 * light.ambient / light.ambient.max() + 0.12 * light.sun).astype(np.float32)
    sky += cover[:, None] * (white - sky)
    sky += (np.take(glow, column) * (1 - high))[:, None] * np.array([1.0, 0.9, 0.7], dtype=np.float32)
    colour[places] = sky


def _sky_colours(light: Light) -> Float32Array:
    """Return (_SHADES, 3) colours from the horizon to the zenith."""
    high = np.linspace(0.0, 1.0, _SHADES)[:, None]
    return (light.horizon * (1 - high) + light.zenith * high).astype(np.float32)


def develop(colour: Float32Array, light: Light, oversampling: int, rng: np.random.Generator) -> ByteArray:
    """Average the oversampled light, then apply saturation, gain, tone, vignette and noise.

    Args:
        colour: (V, columns, rows, 3) linear light, columns first.
        light: Gain, gamma, saturation and noise.
        oversampling: Pixels that become one, each way.
        rng: Stream of the noise.

    Returns:
        (V, P, P, 3) pictures, rows first.
    """
    views, side = colour.shape[:2]
    pixels = side // oversampling
    wide = colour.reshape(views, side, pixels, oversampling, 3)
    narrow = wide[:, :, :, 0].copy()
    for j in range(1, oversampling):
        narrow += wide[:, :, :, j]
    blocks = narrow.reshape(views, pixels, oversampling, pixels, 3)
    small = blocks[:, :, 0].copy()
    for i in range(1, oversampling):
        small += blocks[:, :, i]
    picture = np.ascontiguousarray(small.transpose(0, 2, 1, 3))
    picture *= np.float32(1.0 / oversampling**2)
    grey = (picture[..., :1] + picture[..., 1:2] + picture[..., 2:]) * np.float32((1.0 - light.saturation) / 3.0)
    picture *= np.float32(light.saturation)
    picture += grey
    off = np.linspace(-1.0, 1.0, pixels, dtype=np.float32) ** 2
    vignette = 1.0 - 0.09 * (off[:, None] + off[None, :])
    picture *= (vignette[..., None] * light.gain.astype(np.float32))[None]
    shades = np.clip(picture * np.float32(_TONES / _BRIGHTEST), 0, _TONES - 1).astype(np.int32)
    picture = np.take(_tone_curve(light), shades)
    for view in range(views):
        start = int(rng.integers(len(_NOISE) - picture[view].size))
        noise = _NOISE[start : start + picture[view].size].reshape(picture[view].shape)
        picture[view] += noise * np.float32(light.noise)
    result: ByteArray = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return result


def _tone_curve(light: Light) -> Float32Array:
    """Return (_TONES,) 8-bit values of linear light from 0 to _BRIGHTEST: gamma, then a soft shoulder."""
    tone = np.linspace(0.0, _BRIGHTEST, _TONES) ** light.gamma
    curve: Float32Array = (255.0 * tone / (1.0 + np.maximum(tone - 0.7, 0.0) * 0.55)).astype(np.float32)
    return curve
