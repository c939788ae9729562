"""Everything that stands still in a town: buildings, trees, lamps and railings, as textured upright faces."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from data_gen.toy_city.arrays import BoolArray, Float32Array, FloatArray, IntArray, random_stream
from data_gen.toy_city.atlas import Atlas, Painter
from data_gen.toy_city.facades import paint_building, texture_shape
from data_gen.toy_city.ground import Ground, build_ground, pavement_half_m
from data_gen.toy_city.looks import Look
from data_gen.toy_city.lots import SHADOW_CELL_M, Lot, place_buildings
from data_gen.toy_city.plan import Plan, SubStreet
from data_gen.toy_city.sprites import (
    CAR_COLOURS,
    PERSON_KINDS,
    TREE_KINDS,
    paint_car_end,
    paint_car_side,
    paint_lamp,
    paint_person,
    paint_railing,
    paint_tree,
)

FRONT_TEXELS_PER_M, SIDE_TEXELS_PER_M = 8.0, 5.0
# Kinds of faces; what a caption counts.
BUILDING, TREE, LAMP, PERSON, CAR, RAILING = range(6)


@dataclass(frozen=True)
class Faces:
    """Upright textured rectangles on the ground.

    Attributes:
        start: (N, 2) left end of the foot, seen from outside.
        end: (N, 2) right end of the foot.
        height: (N,) top of the texture, metres.
        solid: (N,) height up to which nothing shows through, metres.
        texture: (N,) number in the atlas.
        kind: (N,) BUILDING, TREE, LAMP, PERSON, CAR or RAILING.
        owner: (N,) number of the building, or of the colour or kind for other things.
        is_one_sided: (N,) whether the back is never seen.
        is_front: (N,) whether it is a building's street front.
    """

    start: FloatArray
    end: FloatArray
    height: FloatArray
    solid: FloatArray
    texture: IntArray
    kind: IntArray
    owner: IntArray
    is_one_sided: BoolArray
    is_front: BoolArray

    def __len__(self) -> int:
        return len(self.height)

    def take(self, chosen: IntArray | BoolArray) -> "Faces":
        """Return the chosen faces."""
        return Faces(*(getattr(self, name)[chosen] for name in Faces.__dataclass_fields__))


def join_faces(parts: list[Faces]) -> Faces:
    """Concatenate faces."""
    return Faces(*(np.concatenate([getattr(p, name) for p in parts]) for name in Faces.__dataclass_fields__))


def make_faces(
    start: FloatArray, end: FloatArray, height: FloatArray | float, texture: IntArray, kind: int, owner: IntArray
) -> Faces:
    """Build faces that can be seen from both sides and have see-through textures."""
    count = len(start)
    heights = np.broadcast_to(np.asarray(height, dtype=np.float64), (count,)).copy()
    kinds = np.full(count, kind, dtype=np.int64)
    return Faces(start, end, heights, np.zeros(count), texture, kinds, owner, *np.zeros((2, count), dtype=bool))


@dataclass(frozen=True)
class Posts:
    """Things that always turn towards the camera: trees and lamps.

    Attributes:
        position: (S, 2) foot.
        width: (S,) metres.
        height: (S,) metres.
        texture: (S,) number in the atlas.
        kind: (S,) TREE or LAMP.
    """

    position: FloatArray
    width: FloatArray
    height: FloatArray
    texture: IntArray
    kind: IntArray


@dataclass(frozen=True)
class Sprites:
    """Atlas numbers of the things that are not buildings."""

    trees: int
    lamp: int
    people: int
    cars: int
    railing: int


@dataclass
class Scene:
    """A town ready to be looked at.

    Attributes:
        seed: Seed of the town.
        plan: Its street plan.
        ground: Surface classes.
        faces: Buildings and railings.
        posts: Trees and lamps.
        looks: One look per building.
        atlas: All textures.
        sprites: Where the atlas keeps things that are not buildings.
        heights: (H, W) building heights in metres, 1 m cells, same corner as the ground; throws the shadows.
        kerbs: (K, 5) points along the streets: x, y, direction x, direction y, 1 on a dual carriageway.
    """

    seed: int
    plan: Plan
    ground: Ground
    faces: Faces
    posts: Posts
    looks: tuple[Look, ...]
    atlas: Atlas
    sprites: Sprites
    heights: Float32Array
    kerbs: FloatArray


def along_line(part: SubStreet, distances: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return (D, 2) positions and (D, 2) unit directions at distances (metres) from a sub-street's start."""
    steps = np.diff(part.line, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    starts = np.concatenate([[0.0], np.cumsum(lengths)])
    piece = np.clip(np.searchsorted(starts, distances, side="right") - 1, 0, len(lengths) - 1)
    direction = steps[piece] / lengths[piece, None]
    return part.line[piece] + direction * (distances - starts[piece])[:, None], direction


def left_of(direction: FloatArray) -> FloatArray:
    """Return (..., 2) directions turned left by a quarter."""
    return np.stack([-direction[..., 1], direction[..., 0]], axis=-1)


def build_scene(plan: Plan) -> Scene:
    """Put buildings, trees, lamps and railings on a plan."""
    ground = build_ground(plan)
    lots, heights, styles = place_buildings(plan, ground)
    shapes: list[tuple[int, int]] = []
    painters: list[Painter] = []
    sprites = _add_sprites(shapes, painters)
    faces = [_add_buildings(lots, shapes, painters), _build_railings(plan, sprites)]
    return Scene(
        seed=plan.seed,
        plan=plan,
        ground=ground,
        faces=join_faces(faces),
        posts=_plant_posts(plan, ground, heights, styles, sprites),
        looks=tuple(lot.look for lot in lots),
        atlas=Atlas(shapes, painters),
        sprites=sprites,
        heights=heights,
        kerbs=_kerbs(plan),
    )


def _add_sprites(shapes: list[tuple[int, int]], painters: list[Painter]) -> Sprites:
    sprites = Sprites(trees=0, lamp=TREE_KINDS, people=TREE_KINDS + 1, cars=TREE_KINDS + 1 + PERSON_KINDS, railing=0)
    for kind in range(TREE_KINDS):
        painters.append(partial(paint_tree, kind))
    painters.append(paint_lamp)
    painters.extend(partial(paint_person, kind) for kind in range(PERSON_KINDS))
    for colour in CAR_COLOURS.values():
        painters.append(partial(paint_car_side, colour))
        painters.append(partial(paint_car_end, colour, True))
        painters.append(partial(paint_car_end, colour, False))
    painters.append(partial(paint_railing, 160))
    ends = [(36, 96), (36, 40), (36, 40)] * len(CAR_COLOURS)
    shapes.extend([(96, 72)] * TREE_KINDS + [(96, 16)] + [(56, 24)] * PERSON_KINDS + ends + [(24, 160)])
    return Sprites(sprites.trees, sprites.lamp, sprites.people, sprites.cars, len(painters) - 1)


def _add_buildings(lots: list[Lot], shapes: list[tuple[int, int]], painters: list[Painter]) -> Faces:
    parts: list[Faces] = []
    for number, lot in enumerate(lots):
        look, top = lot.look, lot.look.eaves_m + lot.look.roof_m
        textures = []
        for width, per_m, is_front in (
            (lot.width_m, FRONT_TEXELS_PER_M, True),
            (lot.depth_m, SIDE_TEXELS_PER_M, False),
        ):
            textures.append(len(painters))
            painters.append(partial(paint_building, look, width, per_m, is_front))
            shapes.append(texture_shape(width, top, per_m))
        front, side = textures
        corners = lot.corners()
        parts.append(
            Faces(
                start=corners,
                end=np.roll(corners, -1, axis=0),
                height=np.full(4, top),
                solid=np.full(4, look.eaves_m),
                texture=np.array([front, side, side, side]),
                kind=np.full(4, BUILDING),
                owner=np.full(4, number),
                is_one_sided=np.ones(4, dtype=bool),
                is_front=np.array([True, False, False, False]),
            )
        )
    return join_faces(parts)


def _build_railings(plan: Plan, sprites: Sprites) -> Faces:
    starts, ends = [], []
    for part in plan.sub_streets:
        for i in np.flatnonzero(part.is_bridge):
            first, second = part.line[i], part.line[i + 1]
            side = left_of((second - first) / np.linalg.norm(second - first)) * (pavement_half_m(part) - 0.2)
            starts += [first + side, first - side]
            ends += [second + side, second - side]
    count = len(starts)
    start, end = np.array(starts).reshape(-1, 2), np.array(ends).reshape(-1, 2)
    return make_faces(start, end, 1.1, np.full(count, sprites.railing), RAILING, np.zeros(count, dtype=np.int64))


def _plant_posts(plan: Plan, ground: Ground, heights: Float32Array, tree_share: FloatArray, sprites: Sprites) -> Posts:
    """Set trees and lamps along the pavements, and loose trees on the grass."""
    rng = random_stream(plan.seed, "trees")
    spots: list[FloatArray] = []
    lamps: list[FloatArray] = []
    for part in plan.sub_streets:
        distances = np.arange(11.0, part.length_m - 11.0, 8.5)
        position, direction = along_line(part, distances)
        for side in (-1.0, 1.0):
            place = position + side * left_of(direction) * (pavement_half_m(part) - 0.9)
            keep = rng.random(len(place)) < tree_share[part.index]
            spots.extend(place[keep])
            lamps.extend(place[~keep][1 if side > 0 else 0 :: 3])
        if part.is_dual:
            spots.extend(position[rng.random(len(position)) < 0.6])
    west, south, east, north = plan.bounds
    loose = rng.uniform((west, south), (east, north), size=(round((east - west) * (north - south) / 260.0), 2))
    cell = ((loose - (west, south)) / SHADOW_CELL_M).astype(np.int64)
    cell = np.minimum(cell, np.array(heights.shape)[::-1] - 1)
    is_free = (ground.at(loose[:, 0], loose[:, 1]) == 0) & (heights[cell[:, 1], cell[:, 0]] == 0)
    trees = np.concatenate([np.array(spots).reshape(-1, 2), loose[is_free]])
    lamp_position = np.array(lamps).reshape(-1, 2)
    tall = rng.uniform(4.5, 8.5, size=len(trees))
    kinds = rng.integers(TREE_KINDS, size=len(trees))
    num_lamps = len(lamp_position)
    return Posts(
        position=np.concatenate([trees, lamp_position]),
        width=np.concatenate([tall * 0.75, np.full(num_lamps, 0.9)]),
        height=np.concatenate([tall, np.full(num_lamps, 5.4)]),
        texture=np.concatenate([sprites.trees + kinds, np.full(num_lamps, sprites.lamp)]),
        kind=np.concatenate([np.full(len(trees), TREE), np.full(num_lamps, LAMP)]),
    )


def _kerbs(plan: Plan) -> FloatArray:
    rows = []
    for part in plan.sub_streets:
        position, direction = along_line(part, np.arange(6.0, part.length_m - 6.0, 2.0))
        rows.append(np.column_stack([position, direction, np.full(len(position), float(part.is_dual))]))
    return np.concatenate(rows)
