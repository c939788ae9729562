"""Textures of trees, lamps, people, cars and railings, painted in numpy alone."""

import numpy as np

from data_gen.toy_city.arrays import ByteArray, Colour, random_stream
from data_gen.toy_city.looks import ACCENT_COLOURS

TREE_KINDS = 8
PERSON_KINDS = 12
CAR_COLOURS: dict[str, Colour] = {
    "white": (232, 232, 230),
    "silver": (168, 172, 178),
    "black": (44, 44, 50),
    "red": (176, 34, 36),
    "blue": (40, 72, 150),
    "green": (44, 104, 70),
    "yellow": (228, 184, 42),
    "brown": (112, 78, 52),
}
CAR_LENGTH_M, CAR_WIDTH_M, CAR_HEIGHT_M = 4.3, 1.8, 1.5


def _blank(rows: int, columns: int) -> ByteArray:
    return np.zeros((rows, columns, 4), dtype=np.uint8)


def paint_tree(kind: int) -> ByteArray:
    """Paint a tree, (96, 72): a trunk and a crown of leaf blobs; kinds differ in shape and green."""
    rng = random_stream(kind, "tree")
    rows, columns = 96, 72
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    picture = np.zeros((rows, columns, 4), dtype=np.float32)
    trunk = (np.abs(x - columns / 2) < 2.6 + 0.02 * y) & (y > rows * 0.4)
    picture[trunk] = (96, 72, 52, 255)
    green = np.array([(70, 116, 52), (88, 128, 58), (52, 98, 60), (112, 134, 60), (150, 120, 50), (62, 110, 46)])[
        kind % 6
    ]
    is_conifer = kind == 5
    for blob in range(46):
        height = rng.uniform(0.0, 1.0)
        if is_conifer:
            reach, centre_y = (0.06 + 0.34 * height) * columns, (0.08 + 0.66 * height) * rows
        else:
            reach, centre_y = (
                np.sqrt(max(0.05, 1 - (2 * height - 1) ** 2)) * 0.32 * columns,
                (0.12 + 0.5 * height) * rows,
            )
        centre_x = columns / 2 + rng.uniform(-1, 1) * reach
        radius = rng.uniform(5.0, 10.0)
        inside = (x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2
        shade = rng.uniform(0.72, 1.16) * (1.1 - 0.4 * height) + 0.004 * blob
        picture[inside, :3] = green * shade
        picture[inside, 3] = 255
    speckle = rng.random((rows, columns)) < 0.10
    picture[speckle & (y < rows * 0.62), 3] = 0
    return np.clip(picture, 0, 255).astype(np.uint8)


def paint_lamp() -> ByteArray:
    """Paint a street lamp, (96, 16)."""
    picture = _blank(96, 16)
    picture[14:, 7:9] = (60, 64, 66, 255)
    picture[84:, 6:10] = (60, 64, 66, 255)
    picture[4:14, 4:12] = (236, 226, 180, 255)
    picture[2:4, 3:13] = (52, 56, 58, 255)
    return picture


def paint_person(kind: int) -> ByteArray:
    """Paint a person, (56, 24); kinds differ in clothes, hair and skin."""
    rng = random_stream(kind, "person")
    clothes = list(ACCENT_COLOURS.values())
    coat, legs = clothes[int(rng.integers(len(clothes)))], (40 + 20 * (kind % 4), 44 + 10 * (kind % 3), 64)
    skin = [(232, 196, 164), (196, 146, 110), (122, 84, 60)][kind % 3]
    hair = [(60, 42, 30), (24, 22, 22), (188, 152, 90), (150, 150, 150)][kind % 4]
    y, x = np.mgrid[0:56, 0:24]
    picture = _blank(56, 24)
    picture[(y >= 32) & (np.abs(np.abs(x - 11.5) - 3.2) < 2.3), :3] = legs
    picture[(y >= 32) & (np.abs(np.abs(x - 11.5) - 3.2) < 2.3), 3] = 255
    body = (y >= 12) & (y < 35) & (np.abs(x - 11.5) < 6.5)
    picture[body] = (*coat, 255)
    head = (x - 11.5) ** 2 + (y - 7) ** 2 < 24
    picture[head] = (*skin, 255)
    picture[head & (y < 6)] = (*hair, 255)
    return picture


def paint_car_side(colour: Colour) -> ByteArray:
    """Paint a car from the side, (36, 96): body, cabin with windows, two wheels."""
    y, x = np.mgrid[0:36, 0:96].astype(np.float32)
    picture = _blank(36, 96)
    cabin = (y < 17) & (np.abs(x - 50) < 22 + 0.9 * y)
    glass = (y > 3) & (y < 15) & (np.abs(x - 50) < 17 + 0.9 * y) & (np.abs(x - 50) > 1.6)
    body = (y >= 15) & (y < 31) & (np.abs(x - 47.5) < 46.5 - 0.12 * np.abs(y - 24))
    picture[cabin | body] = (*colour, 255)
    picture[glass] = (52, 62, 74, 255)
    picture[body & (y > 26), :3] = (np.array(colour) * 0.66).astype(np.uint8)
    for wheel in (20, 76):
        distance = (x - wheel) ** 2 + (y - 28) ** 2
        picture[distance < 60] = (26, 26, 28, 255)
        picture[distance < 14] = (150, 152, 156, 255)
    return picture


def paint_car_end(colour: Colour, is_front: bool) -> ByteArray:
    """Paint a car from ahead or behind, (36, 40)."""
    y, x = np.mgrid[0:36, 0:40].astype(np.float32)
    picture = _blank(36, 40)
    cabin = (y < 17) & (np.abs(x - 19.5) < 14 + 0.25 * y)
    body = (y >= 14) & (y < 31) & (np.abs(x - 19.5) < 19)
    picture[cabin | body] = (*colour, 255)
    picture[(y > 3) & (y < 14) & (np.abs(x - 19.5) < 11 + 0.25 * y)] = (52, 62, 74, 255)
    lamps = (y > 18) & (y < 23) & (np.abs(np.abs(x - 19.5) - 14.5) < 3.4)
    picture[lamps] = (250, 244, 214, 255) if is_front else (200, 24, 24, 255)
    picture[(y > 24) & (y < 28) & (np.abs(x - 19.5) < 6)] = (214, 214, 206, 255)
    picture[(y >= 30) & (np.abs(np.abs(x - 19.5) - 14) < 4)] = (26, 26, 28, 255)
    return picture


def paint_railing(columns: int) -> ByteArray:
    """Paint a bridge railing, (24, columns), with open gaps between its bars."""
    picture = _blank(24, columns)
    x = np.arange(columns)
    picture[:, x % 6 < 2] = (92, 104, 108, 255)
    picture[:4] = (112, 122, 126, 255)
    picture[20:] = (92, 104, 108, 255)
    return picture
