"""Where and when panoramas are taken, and the cars and people that happen to be there."""

from dataclasses import dataclass

import numpy as np

from data_gen.toy_city.arrays import FloatArray, IntArray, random_stream
from data_gen.toy_city.ground import DUAL_LANE_M
from data_gen.toy_city.plan import SIZES, Plan
from data_gen.toy_city.render import Camera
from data_gen.toy_city.scene import CAR, PERSON, Faces, Scene, along_line, join_faces, left_of, make_faces
from data_gen.toy_city.sprites import CAR_COLOURS, CAR_HEIGHT_M, CAR_LENGTH_M, CAR_WIDTH_M, PERSON_KINDS
from llava_ial.errors import UserError

SPLIT_DISTANCE_M = 8.0
_MARGIN_M = 0.3
_SPACING_M = 8.8
TRAIN_DAYS, VAL_DAY, TEST_DAY = (1, 2, 3, 4), 5, 6
FIELD_OF_VIEW_DEG = 78.0


@dataclass(frozen=True)
class Panorama:
    """One capture: a position, a day and a set of views.

    Attributes:
        number: Number within the city.
        sub_street: Number of the sub-street it stands on.
        split: train, val or test.
        day: Number of the day.
        position: (2,) world metres.
        street_deg: Compass direction of the street there.
        num_views: Number of views.
    """

    number: int
    sub_street: int
    split: str
    day: int
    position: FloatArray
    street_deg: float
    num_views: int


def _slots(plan: Plan, rng: np.random.Generator) -> tuple[FloatArray, FloatArray, IntArray, IntArray]:
    """Return candidate positions, street directions, sub-streets, and 0 for the first choice, 1 for the fillers."""
    positions, directions, parts, ranks = [], [], [], []
    for part in plan.sub_streets:
        distances = np.arange(5.0, part.length_m - 4.0, _SPACING_M / 2)
        rank = np.arange(len(distances)) % 2
        distances = distances + rng.uniform(-0.15, 0.15, size=len(distances))
        position, direction = along_line(part, distances)
        lane = DUAL_LANE_M if part.is_dual else 1.6
        lane_sides = rng.choice([-1.0, 1.0], size=len(distances)) * lane + rng.uniform(-0.4, 0.4, size=len(distances))
        positions.append(position + left_of(direction) * lane_sides[:, None])
        directions.append(np.degrees(np.arctan2(direction[:, 0], direction[:, 1])) % 360.0)
        parts.append(np.full(len(distances), part.index))
        ranks.append(rank)
    return np.concatenate(positions), np.concatenate(directions), np.concatenate(parts), np.concatenate(ranks)


def _pick_held_out(
    count: int, positions: FloatArray, parts: IntArray, taken: list[int], rng: np.random.Generator
) -> list[int]:
    """Pick slots sub-street by sub-street, far enough from those already taken by another split."""
    picked: list[int] = []
    free = [list(rng.permutation(np.flatnonzero(parts == part))) for part in range(int(parts.max()) + 1)]
    while len(picked) < count and any(free):
        for part in rng.permutation(len(free)):
            while free[part] and len(picked) < count:
                slot = int(free[part].pop())
                gaps = np.linalg.norm(positions[taken] - positions[slot], axis=1)
                if slot not in taken and (gaps > SPLIT_DISTANCE_M + _MARGIN_M).all():
                    picked.append(slot)
                    break
    return picked


def place_panoramas(plan: Plan, num_photos: int | None, num_headings: int) -> list[Panorama]:
    """Spread panoramas over all sub-streets and split them into training, validation and test.

    Held-out panoramas are picked first; training ones keep more than 8 m away from all of them.

    Args:
        plan: The street plan.
        num_photos: Photos in total; the last panorama gets what is left over. None takes the size's own number, or as
            many as the streets hold: some towns are drawn with short ones.
        num_headings: Views per panorama.

    Raises:
        UserError: If the streets are too short for the number that was asked for.
    """
    rng = random_stream(plan.seed, "panoramas")
    spec = SIZES[plan.size]
    positions, directions, parts, ranks = _slots(plan, rng)
    total = spec.photos if num_photos is None else num_photos
    count = -(-total // num_headings)
    test = _pick_held_out(max(1, round(count * spec.test_share)), positions, parts, [], rng)
    val = _pick_held_out(max(1, round(count * spec.val_share)), positions, parts, test, rng)
    held_out = positions[test + val]
    gaps = np.linalg.norm(positions[:, None] - held_out[None], axis=-1).min(axis=1)
    usable = np.flatnonzero(gaps > SPLIT_DISTANCE_M + _MARGIN_M)
    order = rng.permutation(len(usable))
    usable = usable[order[np.argsort(ranks[usable[order]], kind="stable")]]
    wanted = count - len(test) - len(val)
    if num_photos is None and wanted > len(usable):
        wanted = len(usable)
        count = wanted + len(test) + len(val)
        total = count * num_headings
    if wanted < 1 or wanted > len(usable):
        most = (len(usable) + len(test) + len(val)) * num_headings
        raise UserError(
            f"--photos {total}: a {plan.size} city holds between {4 * num_headings} and about {most} photos; "
            "choose a number in between or another --size"
        )
    split_of = {**dict.fromkeys(test, "test"), **dict.fromkeys(val, "val")}
    split_of |= dict.fromkeys(usable[:wanted].tolist(), "train")
    panoramas = []
    for number, slot in enumerate(sorted(split_of)):
        split = split_of[slot]
        day = {"val": VAL_DAY, "test": TEST_DAY}.get(split, int(rng.choice(TRAIN_DAYS)))
        views = num_headings if number < count - 1 else total - (count - 1) * num_headings
        where = positions[slot]
        panoramas.append(Panorama(number, int(parts[slot]), split, day, where, float(directions[slot]), views))
    return panoramas


def aim_camera(seed: int, panorama: Panorama, num_headings: int) -> Camera:
    """Hold the camera: a slightly different height, pitch and first heading at every capture."""
    rng = random_stream(seed, "camera", panorama.number)
    first = panorama.street_deg + rng.uniform(-9.0, 9.0)
    steps = np.arange(panorama.num_views) * (360.0 / num_headings)
    pitch = rng.uniform(0.63, 0.72) + rng.uniform(-0.012, 0.012, size=panorama.num_views)
    return Camera(
        position=panorama.position,
        height_m=float(rng.uniform(1.65, 2.35)),
        headings_deg=(first + steps + rng.uniform(-2.0, 2.0, size=panorama.num_views)) % 360.0,
        horizons=pitch,
        field_of_view_deg=FIELD_OF_VIEW_DEG,
    )


def draw_movers(scene: Scene, panorama: Panorama) -> Faces:
    """Put cars and people around a panorama; every capture has its own."""
    rng = random_stream(scene.seed, "movers", panorama.number)
    gap = np.linalg.norm(scene.kerbs[:, :2] - panorama.position, axis=1)
    near = np.flatnonzero(gap < 80.0)
    cars = _place(scene, near, int(rng.integers(2, 11)), rng, is_person=False)
    people = _place(scene, near, int(rng.integers(2, 12)), rng, is_person=True)
    cars = [item for item in cars if np.linalg.norm(item[0] - panorama.position) > 5.0]
    people = [item for item in people if np.linalg.norm(item[0] - panorama.position) > 2.5]
    return join_faces([*_build_cars(scene, cars, rng), *_build_people(scene, people, panorama.position, rng)])


def _place(
    scene: Scene, near: IntArray, count: int, rng: np.random.Generator, is_person: bool
) -> list[tuple[FloatArray, FloatArray]]:
    placed: list[tuple[FloatArray, FloatArray]] = []
    for kerb in scene.kerbs[rng.choice(near, size=count)] if len(near) else []:
        direction, dual = kerb[2:4], bool(kerb[4])
        if is_person:
            off = rng.uniform(4.6, 6.3) + 5.0 * dual
        else:
            off = DUAL_LANE_M + rng.choice([-1.7, 2.6]) if dual else rng.choice([1.7, 3.0])
        side = float(rng.choice([-1.0, 1.0]))
        position = kerb[:2] + left_of(direction) * side * off
        if not any(np.linalg.norm(position - other) < (0.8 if is_person else 5.5) for other, _ in placed):
            placed.append((position, direction * -side))
    return placed


def _build_cars(scene: Scene, cars: list[tuple[FloatArray, FloatArray]], rng: np.random.Generator) -> list[Faces]:
    parts = [make_faces(np.zeros((0, 2)), np.zeros((0, 2)), 0.0, _ints(), CAR, _ints())]
    for number, (position, direction) in enumerate(cars):
        colour = int(rng.integers(len(CAR_COLOURS)))
        first = scene.sprites.cars + 3 * colour
        ahead, aside = direction * CAR_LENGTH_M / 2, left_of(direction) * CAR_WIDTH_M / 2
        # Textures face left, so the left end of a side is the car's front on its left side.
        start = position + np.stack([ahead + aside, ahead - aside, ahead * 0.96 + aside, -ahead * 0.96 - aside])
        end = position + np.stack([-ahead + aside, -ahead - aside, ahead * 0.96 - aside, -ahead * 0.96 + aside])
        texture = np.array([first, first, first + 1, first + 2])
        owner = np.full(4, number * len(CAR_COLOURS) + colour)
        parts.append(make_faces(start, end, CAR_HEIGHT_M, texture, CAR, owner))
    return parts


def _build_people(
    scene: Scene, people: list[tuple[FloatArray, FloatArray]], eye: FloatArray, rng: np.random.Generator
) -> list[Faces]:
    parts = []
    for number, (position, _) in enumerate(people):
        side = left_of((eye - position) / np.linalg.norm(eye - position)) * 0.37
        tall = float(rng.uniform(1.5, 1.9))
        texture = np.array([scene.sprites.people + int(rng.integers(PERSON_KINDS))])
        start, end = (position - side)[None], (position + side)[None]
        parts.append(make_faces(start, end, tall, texture, PERSON, np.array([number])))
    return parts


def _ints() -> IntArray:
    return np.zeros(0, dtype=np.int64)
