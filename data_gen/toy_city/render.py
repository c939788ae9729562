"""A vectorised ray caster: upright textured faces over a flat ground, for all headings of a panorama at once.

Pitch is a shift of the horizon (as with a shift lens), so uprights stay upright and one ray per image column finds
everything that the column can show. Faces are first sorted by distance within each column; a face is then drawn only
where no nearer solid wall hides it. Rays meet planes, never pixels of other views: the same building seen from two
panoramas is the same building in perspective.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from data_gen.toy_city.arrays import ByteArray, Float32Array, FloatArray, IntArray, random_stream
from data_gen.toy_city.atlas import NUM_LEVELS
from data_gen.toy_city.develop import develop, paint_ground, paint_sky
from data_gen.toy_city.light import Light
from data_gen.toy_city.scene import BUILDING, TREE, Faces, Scene, join_faces, make_faces
from data_gen.toy_city.shadows import Shadows, cast_shadows

REACH_M, POST_REACH_M, NEAR_M = 170.0, 95.0, 0.4
OVERSAMPLING = 2
_MAX_LAYERS = 14
_GROUP = 4


@dataclass(frozen=True)
class Camera:
    """Where a panorama is taken and how its views look out.

    Attributes:
        position: (2,) world metres.
        height_m: Height above the ground.
        headings_deg: (V,) compass directions of the views, clockwise from north (y).
        horizons: (V,) where the horizon lies, as a share of the height from the top.
        field_of_view_deg: Horizontal field of view.
    """

    position: FloatArray
    height_m: float
    headings_deg: FloatArray
    horizons: FloatArray
    field_of_view_deg: float


@dataclass(frozen=True)
class Hits:
    """Meetings of image columns with faces, sorted by column and then by distance.

    Attributes:
        column: (M,) image column, view-major.
        layer: (M,) 0 for the nearest face of a column, then 1, 2, ...
        depth: (M,) distance along the view axis in metres.
        share: (M,) where along the face, 0 to 1.
        face: (M,) number of the face.
    """

    column: IntArray
    layer: IntArray
    depth: FloatArray
    share: FloatArray
    face: IntArray


@dataclass(frozen=True)
class Views:
    """Rendered views and what is in them.

    Attributes:
        images: (V, P, P, 3) uint8.
        face_ids: (V, P, P) number of the face in `faces` that a pixel shows, -1 ground, -2 sky, -3 water.
        faces: All faces that were considered.
    """

    images: ByteArray
    face_ids: npt.NDArray[np.int32]
    faces: Faces


def gather_faces(scene: Scene, camera: Camera, movers: Faces) -> Faces:
    """Return the faces near a camera: buildings that turn towards it, posts turned to it, and the movers."""
    faces, posts = scene.faces, scene.posts
    to_camera = camera.position - faces.start
    along = faces.end - faces.start
    is_turned = along[:, 0] * to_camera[:, 1] - along[:, 1] * to_camera[:, 0] < 0
    near = np.linalg.norm(camera.position - (faces.start + faces.end) / 2, axis=1) < REACH_M
    offset = posts.position - camera.position
    distance = np.linalg.norm(offset, axis=1)
    shown = np.flatnonzero((distance < POST_REACH_M) & (distance > 1.6))
    side = np.stack([offset[shown, 1], -offset[shown, 0]], axis=-1) / distance[shown, None]
    half = side * posts.width[shown, None] / 2
    place = posts.position[shown]
    upright = make_faces(place - half, place + half, posts.height[shown], posts.texture[shown], TREE, shown)
    upright.kind[:] = posts.kind[shown]
    return join_faces([faces.take(near & (is_turned | ~faces.is_one_sided)), upright, movers])


def _axes(camera: Camera) -> tuple[FloatArray, FloatArray]:
    angle = np.radians(camera.headings_deg)
    forward = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    return forward, np.stack([forward[:, 1], -forward[:, 0]], axis=-1)


def cast_rays(camera: Camera, faces: Faces, columns: int) -> Hits:
    """Find every face that each image column meets.

    Args:
        camera: V views.
        faces: N faces.
        columns: Image columns per view.
    """
    forward, right = _axes(camera)
    reach = np.tan(np.radians(camera.field_of_view_deg) / 2)
    start, end = faces.start - camera.position, faces.end - camera.position
    depth_a, depth_b = forward @ start.T, forward @ end.T
    side_a, side_b = right @ start.T, right @ end.T
    share_a = np.where(depth_a < NEAR_M, (NEAR_M - depth_a) / np.where(depth_b == depth_a, 1.0, depth_b - depth_a), 0.0)
    share_b = np.where(depth_b < NEAR_M, (NEAR_M - depth_a) / np.where(depth_b == depth_a, 1.0, depth_b - depth_a), 1.0)
    tangents = [
        (side_a + share * (side_b - side_a)) / np.maximum(depth_a + share * (depth_b - depth_a), NEAR_M * 0.5)
        for share in (share_a, share_b)
    ]
    scale = columns / (2 * reach)
    low = np.ceil((np.minimum(*tangents) + reach) * scale - 0.5).clip(0, columns).astype(np.int64)
    high = np.ceil((np.maximum(*tangents) + reach) * scale - 0.5).clip(0, columns).astype(np.int64)
    high[(depth_a < NEAR_M) & (depth_b < NEAR_M)] = 0
    counts = np.maximum(high - low, 0).reshape(-1)
    pair = np.repeat(np.arange(counts.size), counts)
    within = np.arange(len(pair)) - np.repeat(np.cumsum(counts) - counts, counts)
    view, face = pair // len(faces), pair % len(faces)
    column = low.reshape(-1)[pair] + within
    tangent = (column + 0.5) / scale - reach
    left = side_a.reshape(-1)[pair] - tangent * depth_a.reshape(-1)[pair]
    other = side_b.reshape(-1)[pair] - tangent * depth_b.reshape(-1)[pair]
    share = np.clip(left / np.where(left == other, 1.0, left - other), 0.0, 1.0)
    depth = depth_a.reshape(-1)[pair] * (1 - share) + depth_b.reshape(-1)[pair] * share
    return _sort_hits(view * columns + column, depth, share, face)


def _sort_hits(column: IntArray, depth: FloatArray, share: FloatArray, face: IntArray) -> Hits:
    order = np.lexsort((face, depth, column))
    column = column[order]
    first = np.concatenate([[True], column[1:] != column[:-1]]) if len(column) else np.zeros(0, dtype=bool)
    layer = np.arange(len(column)) - np.maximum.accumulate(np.where(first, np.arange(len(column)), 0))
    keep = layer < _MAX_LAYERS
    order = order[keep]
    return Hits(column[keep], layer[keep], depth[order], share[order], face[order])


def hidden_below(hits: Hits, solid_slope: FloatArray, num_columns: int) -> FloatArray:
    """Return, for every hit, the slope below which nearer solid walls hide it (minus infinity for none)."""
    grid = np.full((num_columns, _MAX_LAYERS + 1), -np.inf)
    grid[hits.column, hits.layer + 1] = solid_slope
    covered: FloatArray = np.maximum.accumulate(grid, axis=1)[hits.column, hits.layer]
    return covered


class _Frame:
    """The oversampled picture while it is filled: texels, and which hit each pixel shows."""

    def __init__(self, camera: Camera, pixels: int) -> None:
        views = len(camera.headings_deg)
        self.side = pixels * OVERSAMPLING
        self.num_columns = views * self.side
        self.focal = self.side / (2 * np.tan(np.radians(camera.field_of_view_deg) / 2))
        self.horizon = np.repeat(camera.horizons * self.side, self.side)
        self.hit = np.full((self.num_columns, self.side), -1, dtype=np.int32)
        self.texel = np.zeros((self.num_columns, self.side), dtype=np.uint32)


def _draw_layer(frame: _Frame, drawn: "_Drawn", chosen: IntArray, texels: npt.NDArray[np.uint32]) -> None:
    """Draw the chosen hits' visible rows; a layer holds one hit per column at most."""
    counts = drawn.last_row[chosen] - drawn.first_row[chosen]
    hit = np.repeat(chosen, counts)
    within = np.arange(len(hit)) - np.repeat(np.cumsum(counts) - counts, counts)
    row = within + np.repeat(drawn.first_row[chosen], counts)
    exact = np.repeat(drawn.row_step[chosen], counts) * row.astype(np.float32)
    exact += np.repeat(drawn.row_offset[chosen], counts)
    texture_row = np.clip(exact.astype(np.int32), 0, np.repeat(drawn.rows[chosen] - 1, counts))
    start, width = (np.repeat(values[chosen], counts) for values in (drawn.base, drawn.columns))
    texel = np.take(texels, start + texture_row * width)
    place = np.repeat(drawn.hits.column[chosen] * frame.side, counts) + row
    code = hit * 2 + (texture_row >= np.repeat(drawn.shadow_row[chosen], counts))
    opaque = texel >= np.uint32(0x80000000)
    if not opaque.all():
        place, code, texel = place[opaque], code[opaque], texel[opaque]
    frame.hit.reshape(-1)[place] = code
    frame.texel.reshape(-1)[place] = texel


@dataclass(frozen=True)
class _Drawn:
    """Per hit: the rows it may fill and how rows map to its texture."""

    hits: Hits
    first_row: IntArray
    last_row: IntArray
    row_offset: Float32Array
    row_step: Float32Array
    rows: IntArray
    columns: IntArray
    base: IntArray
    shadow_row: Float32Array


def _prepare(frame: _Frame, scene: Scene, camera: Camera, faces: Faces, hits: Hits, shadows: Shadows) -> _Drawn:
    height, eye = faces.height[hits.face], camera.height_m
    covered = hidden_below(hits, (faces.solid[hits.face] - eye) / hits.depth, frame.num_columns)
    is_open = faces.solid[hits.face] <= 0
    bottom = -eye / hits.depth
    visible_bottom = np.maximum(bottom, covered)
    horizon = frame.horizon[hits.column]
    first = np.ceil(horizon - frame.focal * (height - eye) / hits.depth - 0.5).clip(0, frame.side)
    last = np.ceil(horizon - frame.focal * visible_bottom - 0.5).clip(0, frame.side)
    last = np.maximum(last, first)
    scene.atlas.paint(np.unique(faces.texture[hits.face[last > first]]).tolist())
    texture = faces.texture[hits.face]
    length = np.linalg.norm(faces.end - faces.start, axis=1)[hits.face]
    texels_per_m = scene.atlas.rows[texture, 0] / height
    foreshortening = np.maximum(texels_per_m, 0.5 * scene.atlas.columns[texture, 0] / length)
    level = np.log2(np.maximum(foreshortening * hits.depth / frame.focal, 1e-6)) + 0.25
    level = np.clip(np.floor(level), 0, NUM_LEVELS - 1).astype(np.int64)
    rows, columns = scene.atlas.rows[texture, level], scene.atlas.columns[texture, level]
    step = rows * hits.depth / (frame.focal * height)
    offset = rows * (1.0 - eye / height) - step * (horizon - 0.5)
    column = np.minimum((hits.share * columns).astype(np.int64), columns - 1)
    shadow = shadows.on_faces(camera, faces, hits)
    shadow_row = np.where(is_open & (shadow < height), 1e9, rows * (1.0 - shadow / height))
    return _Drawn(
        hits=hits,
        first_row=first.astype(np.int64),
        last_row=last.astype(np.int64),
        row_offset=offset.astype(np.float32),
        row_step=step.astype(np.float32),
        rows=rows,
        columns=columns,
        base=scene.atlas.offsets[texture, level] + column,
        shadow_row=shadow_row.astype(np.float32),
    )


def _light_faces(light: Light, faces: Faces, hits: Hits) -> tuple[Float32Array, Float32Array]:
    """Return factors and offsets, (2 * M, 3) each: what a texel of a hit becomes in the sun (even) and shade (odd)."""
    along = faces.end - faces.start
    normal = np.stack([along[:, 1], -along[:, 0]], axis=-1) / np.linalg.norm(along, axis=1)[:, None]
    towards = np.clip(normal @ light.to_sun, 0.0, 1.0) / np.sqrt(1.0 + light.sun_slope**2)
    towards = np.where(faces.kind == BUILDING, towards, 0.45)
    side = 0.86 + 0.1 * (normal @ np.array([0.6, 0.8]))
    ambient = light.ambient * np.where(faces.kind == BUILDING, side, 0.95)[:, None]
    lit = np.stack([ambient + light.sun * towards[:, None], ambient], axis=1)[hits.face]
    clear = np.exp(-hits.depth / light.haze_m)[:, None, None]
    factor = (lit * clear / 255.0).reshape(-1, 3).astype(np.float32)
    offset = np.broadcast_to(light.horizon * (1.0 - clear), lit.shape).reshape(-1, 3).astype(np.float32)
    return factor, offset


def render_views(scene: Scene, camera: Camera, light: Light, movers: Faces, pixels: int, noise_key: int) -> Views:
    """Render all views of a panorama.

    Args:
        scene: The town.
        camera: Position and V views.
        light: Sun, sky and development.
        movers: Cars and people of this capture.
        pixels: Side P of the square pictures.
        noise_key: Number that decides the sensor's noise.
    """
    faces = gather_faces(scene, camera, movers)
    shadows = cast_shadows(scene, camera, light)
    rng = random_stream(scene.seed, "noise", noise_key)
    images, ids = [], []
    for first in range(0, len(camera.headings_deg), _GROUP):
        part = slice(first, first + _GROUP)
        group = replace(camera, headings_deg=camera.headings_deg[part], horizons=camera.horizons[part])
        colour, shown = _render_group(scene, group, light, faces, shadows, pixels)
        images.append(develop(colour, light, OVERSAMPLING, rng))
        ids.append(shown)
    return Views(np.concatenate(images), np.concatenate(ids), faces)


def _render_group(
    scene: Scene, camera: Camera, light: Light, faces: Faces, shadows: Shadows, pixels: int
) -> tuple[Float32Array, npt.NDArray[np.int32]]:
    """Render a few views at once: few enough for the processor's cache, enough to keep numpy busy.

    Returns:
        (V, columns, rows, 3) oversampled linear light, and (V, P, P) what each pixel shows, as in `Views`.
    """
    frame = _Frame(camera, pixels)
    hits = cast_rays(camera, faces, frame.side)
    drawn = _prepare(frame, scene, camera, faces, hits, shadows)
    for layer in range(int(hits.layer.max(initial=-1)), -1, -1):
        chosen = np.flatnonzero((hits.layer == layer) & (drawn.last_row > drawn.first_row))
        if len(chosen):
            _draw_layer(frame, drawn, chosen, scene.atlas.texels)
    colour = np.empty((frame.num_columns, frame.side, 3), dtype=np.float32)
    flat, hit = colour.reshape(-1, 3), frame.hit.reshape(-1)
    _colour_faces(flat, frame, *_light_faces(light, faces, hits))
    rest = np.flatnonzero(hit < 0)
    slope = ((frame.horizon[rest // frame.side] - (rest % frame.side) - 0.5) / frame.focal).astype(np.float32)
    is_below = slope < -1e-4
    below, above = rest[is_below], rest[~is_below]
    is_water = paint_ground(flat, below, slope[is_below], scene, camera, frame.side, light, shadows)
    hit[below] = np.where(is_water, -3, -1)
    hit[above] = -2
    paint_sky(flat, above, slope[~is_below], camera, frame.side, light)
    views = len(camera.headings_deg)
    shown = frame.hit.reshape(views, frame.side, frame.side)[:, ::OVERSAMPLING, ::OVERSAMPLING].transpose(0, 2, 1)
    ids = np.where(shown >= 0, np.take(hits.face, np.maximum(shown, 0) // 2), shown) if len(hits.face) else shown
    return colour.reshape(views, frame.side, frame.side, 3), ids.astype(np.int32)


def _colour_faces(flat: Float32Array, frame: _Frame, factor: Float32Array, offset: Float32Array) -> None:
    """Turn the texels of all pixels that show a face into linear light, in place."""
    shown = np.flatnonzero(frame.hit.reshape(-1) >= 0)
    which = np.take(frame.hit.reshape(-1), shown)
    texel = np.take(frame.texel.reshape(-1), shown).view(np.uint8).reshape(-1, 4)[:, :3].astype(np.float32)
    texel *= np.take(factor, which, axis=0)
    texel += np.take(offset, which, axis=0)
    flat[shown] = texel
