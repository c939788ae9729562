"""Paints a building's front and side as textures, in numpy alone, so that the pixels are the same everywhere."""

import numpy as np

from data_gen.toy_city.arrays import ByteArray, Colour, Float32Array, random_stream
from data_gen.toy_city.looks import Look
from data_gen.toy_city.ornaments import paint_emblem, paint_mural


class Canvas:
    """An RGBA picture whose coordinates are metres: x from the left, y up from the pavement.

    Attributes:
        pixels: (H, W, 4) float32, 0 to 255; row 0 is the top.
    """

    def __init__(self, width_m: float, height_m: float, per_m: float) -> None:
        self.width_m, self.height_m, self.per_m = width_m, height_m, per_m
        shape = texture_shape(width_m, height_m, per_m)
        self.pixels: Float32Array = np.zeros((*shape, 4), dtype=np.float32)

    def region(self, left: float, right: float, bottom: float, top: float) -> Float32Array:
        """Return the (h, w, 4) view of a rectangle; at least one pixel when it touches the canvas."""
        rows, columns = self.pixels.shape[:2]
        x0, x1 = round(left * self.per_m), round(right * self.per_m)
        y0, y1 = rows - round(top * self.per_m), rows - round(bottom * self.per_m)
        x0, y0 = min(max(x0, 0), columns), min(max(y0, 0), rows)
        return self.pixels[y0 : min(max(y1, y0 + 1), rows), x0 : min(max(x1, x0 + 1), columns)]

    def fill(self, left: float, right: float, bottom: float, top: float, colour: Colour) -> None:
        """Fill a rectangle."""
        self.region(left, right, bottom, top)[..., :3] = colour
        self.region(left, right, bottom, top)[..., 3] = 255.0


def texture_shape(width_m: float, height_m: float, per_m: float) -> tuple[int, int]:
    """Return rows and columns of a texture, at least 8 each."""
    return max(8, round(height_m * per_m)), max(8, round(width_m * per_m))


def paint_building(look: Look, width_m: float, per_m: float, is_front: bool) -> ByteArray:
    """Paint one face of a building.

    Args:
        look: The building's look.
        width_m: Width of the face.
        per_m: Texture pixels per metre.
        is_front: Fronts have doors, shops and gables; sides have fewer windows.

    Returns:
        (H, W, 4) RGBA texture that spans eaves and roof; alpha 0 is open air.
    """
    canvas = Canvas(width_m, look.eaves_m + look.roof_m, per_m)
    rng = random_stream(look.number, "front" if is_front else "side")
    _paint_wall(canvas, look, rng)
    has_mural = look.mural is not None and not is_front
    if has_mural:
        paint_mural(canvas.region(0.5, width_m - 0.5, 0.8, look.eaves_m - 0.5), look.mural or "", look.mural_colours)
    elif look.mural is not None and look.storeys > 1:
        band = canvas.region(0.0, width_m, look.storey_m, look.eaves_m)
        paint_mural(band, look.mural, look.mural_colours)
    _paint_storeys(canvas, look, rng, share=0.0 if has_mural else (1.0 if is_front else 0.6))
    if is_front:
        _paint_ground_floor(canvas, look)
    _paint_roof(canvas, look, is_front)
    _shade_edges(canvas, look)
    return np.clip(canvas.pixels, 0, 255).astype(np.uint8)


def _paint_wall(canvas: Canvas, look: Look, rng: np.random.Generator) -> None:
    canvas.fill(0.0, canvas.width_m, 0.0, look.eaves_m, look.wall)
    _paint_partition(canvas, look)
    wall = canvas.region(0.0, canvas.width_m, 0.0, look.eaves_m)[..., :3]
    height, width = wall.shape[:2]
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    per_m = canvas.per_m
    if look.material == "brick":
        row = y // max(2, round(0.34 * per_m))
        course = (x + row * 3) // max(3, round(0.75 * per_m))
        wall *= (0.88 + 0.2 * ((row * 7 + course * 13) % 5) / 4.0)[..., None]
    elif look.material == "stone":
        size = max(4, round(0.9 * per_m))
        joint = (y % size == 0) | ((x + (y // size % 2) * size // 2) % (size * 3 // 2) == 0)
        wall *= np.where(joint, 0.78, 1.0)[..., None]
    elif look.material == "siding":
        wall *= np.where(y % max(3, round(0.4 * per_m)) == 0, 0.74, 1.0)[..., None] + 0.0 * x[..., None]
    elif look.material == "timber":
        _paint_timber(canvas, look)
    elif look.material == "panels":
        size = max(6, round(look.bay_m * per_m))
        shade = 0.86 + 0.28 * ((x // size + 2 * (y // size)) % 3) / 2.0
        wall *= shade[..., None]
    wall += rng.normal(0.0, 4.0, size=(height, width, 1)).astype(np.float32)
    if look.base_m:
        canvas.fill(0.0, canvas.width_m, 0.0, min(look.base_m, look.storey_m), look.base)


def _paint_partition(canvas: Canvas, look: Look) -> None:
    """Give parts of the wall its second colour."""
    width, eaves = canvas.width_m, look.eaves_m
    if look.partition == "upper":
        canvas.fill(0.0, width, look.storey_m * (1 if look.storeys > 1 else 0.5), eaves, look.second)
    elif look.partition == "crown":
        canvas.fill(0.0, width, eaves - look.storey_m * (1 if look.storeys > 1 else 0.5), eaves, look.second)
    elif look.partition == "flank":
        left = 0.0 if look.number % 2 else width * 0.6
        canvas.fill(left, left + width * 0.4, 0.0, eaves, look.second)
    elif look.partition == "bands":
        step = width / max(2, round(width / 3.2))
        for x in np.arange(0.0, width, 2 * step):
            canvas.fill(x, x + step, 0.0, eaves, look.second)


def _paint_timber(canvas: Canvas, look: Look) -> None:
    beam: Colour = (78, 54, 40)
    for storey in range(look.storeys + 1):
        level = storey * look.storey_m
        canvas.fill(0.0, canvas.width_m, level - 0.14, level + 0.14, beam)
    for x in np.arange(0.0, canvas.width_m, look.bay_m / 2):
        canvas.fill(x - 0.1, x + 0.12, look.storey_m, look.eaves_m, beam)
    wall = canvas.region(0.0, canvas.width_m, look.storey_m, look.eaves_m)
    height, width = wall.shape[:2]
    slope = (np.arange(height)[:, None] + np.arange(width)[None, :]) % max(8, round(look.storey_m * canvas.per_m * 2))
    wall[slope < max(1, round(0.2 * canvas.per_m)), :3] = beam


def _bays(look: Look, width_m: float) -> list[float]:
    count = max(1, int((width_m - 0.6) // look.bay_m))
    step = width_m / count
    return [(i + 0.5) * step for i in range(count)]


def _paint_storeys(canvas: Canvas, look: Look, rng: np.random.Generator, share: float) -> None:
    for storey in range(0 if share < 1.0 else 1, look.storeys):
        level = storey * look.storey_m
        if storey and look.material != "timber":
            canvas.fill(0.0, canvas.width_m, level - 0.09, level + 0.09, look.frame)
        for x in _bays(look, canvas.width_m):
            if rng.random() < share:
                _paint_window(canvas, look, x, level + 0.8)
        if look.balcony and share == 1.0 and storey % 2 == 1:
            _paint_balcony(canvas, look, level + 0.25)


def _paint_balcony(canvas: Canvas, look: Look, level: float) -> None:
    bays = _bays(look, canvas.width_m)
    for x in bays[:: 2 if len(bays) > 3 else 1]:
        canvas.fill(x - 0.95, x + 0.95, level, level + 0.2, (84, 84, 86))
        rail = canvas.region(x - 0.95, x + 0.95, level + 0.2, level + 0.9)
        rail[:, ::2, :3] = look.shutter
        rail[:1, :, :3] = look.shutter


def _paint_window(canvas: Canvas, look: Look, x: float, sill: float) -> None:
    half, height = {
        "plain": (0.55, 1.4),
        "cross": (0.65, 1.5),
        "arched": (0.55, 1.75),
        "tall": (0.4, 1.95),
        "wide": (min(1.1, look.bay_m * 0.42), 1.15),
        "round": (0.62, 1.25),
        "pair": (0.75, 1.45),
    }[look.window]
    half = min(half, look.bay_m * 0.44)
    if look.shutter_name and look.window != "round":
        canvas.fill(x - half - 0.5, x + half + 0.5, sill, sill + height, look.shutter)
    frame = canvas.region(x - half - 0.14, x + half + 0.14, sill - 0.12, sill + height + 0.12)
    pane = canvas.region(x - half, x + half, sill, sill + height)
    if look.window in ("arched", "round"):
        for area, colour in ((frame, look.frame), (pane, look.glass)):
            rows, columns = area.shape[:2]
            y, across = np.mgrid[0:rows, 0:columns]
            radius = columns / 2 if look.window == "arched" else rows / 2
            drop = (radius - y - 0.5).clip(0) if look.window == "arched" else np.abs(y + 0.5 - rows / 2)
            inside = drop**2 + (across + 0.5 - columns / 2) ** 2 <= radius**2
            area[inside, :3] = colour
    else:
        frame[..., :3] = look.frame
        pane[..., :3] = look.glass
        pane[: max(1, len(pane) // 3), :, :3] += 22.0
    if look.window == "cross":
        pane[len(pane) // 2, :, :3] = look.frame
    if look.window in ("cross", "pair", "wide"):
        pane[:, pane.shape[1] // 2, :3] = look.frame


def _paint_ground_floor(canvas: Canvas, look: Look) -> None:
    width, storey = canvas.width_m, look.storey_m
    door = look.door_place * (width - 1.6) + 0.8
    if look.ground == "shop":
        canvas.fill(0.35, width - 0.35, 0.35, storey - 0.7, look.frame)
        canvas.fill(0.55, width - 0.55, 0.55, storey - 0.9, (56, 66, 80))
        canvas.fill(0.55, width - 0.55, 0.55, 1.15, (126, 116, 96))
        for x in np.arange(0.55, width - 0.5, 1.9):
            canvas.fill(x - 0.06, x + 0.06, 0.5, storey - 0.9, look.frame)
    elif look.ground == "arcade":
        for x in _bays(look, width):
            _paint_arch(canvas, x, min(0.42 * look.bay_m, 1.2), storey - 0.5)
    elif look.ground == "garage":
        canvas.fill(width * 0.2, width * 0.2 + min(3.0, width * 0.5), 0.0, 2.4, look.shutter)
        canvas.region(width * 0.2, width * 0.2 + min(3.0, width * 0.5), 0.0, 2.4)[::3, :, :3] *= 0.8
        door = width * 0.85
    else:
        for x in _bays(look, width):
            if abs(x - door) > 1.4:
                _paint_window(canvas, look, x, 0.9)
    if look.ground != "arcade":
        canvas.fill(door - 0.75, door + 0.75, 0.0, 2.55, look.frame)
        canvas.fill(door - 0.55, door + 0.55, 0.0, 2.35, look.door)
        canvas.fill(door - 0.3, door + 0.3, 1.5, 2.1, look.glass)
    if look.sign_name:
        _paint_sign(canvas, look)
    if look.awning_name:
        _paint_awning(canvas, look)


def _paint_arch(canvas: Canvas, x: float, half: float, top: float) -> None:
    area = canvas.region(x - half, x + half, 0.0, top)
    rows, columns = area.shape[:2]
    y, across = np.mgrid[0:rows, 0:columns]
    inside = (columns / 2 - y - 0.5).clip(0) ** 2 + (across + 0.5 - columns / 2) ** 2 <= (columns / 2) ** 2
    area[inside, :3] = (46, 44, 48)


def _paint_sign(canvas: Canvas, look: Look) -> None:
    width = canvas.width_m
    bottom, top = look.storey_m - 0.65, look.storey_m + 0.45
    margin = 0.12 * width if look.number % 2 else 0.04 * width
    canvas.fill(margin, width - margin, bottom, top, look.sign)
    middle = width * (0.3 + 0.4 * (look.number % 7) / 6.0)
    board = canvas.region(middle - 0.95, middle + 0.95, bottom + 0.1, top - 0.1)
    paint_emblem(board[..., :3], look.emblem, look.emblem_colour)


def _paint_awning(canvas: Canvas, look: Look) -> None:
    area = canvas.region(0.2, canvas.width_m - 0.2, look.storey_m - 1.55, look.storey_m - 0.7)[..., :3]
    area[...] = look.awning
    if look.is_striped:
        stripe = max(2, round(0.5 * canvas.per_m))
        area[:, np.arange(area.shape[1]) // stripe % 2 == 1] = (240, 238, 230)
    area *= np.linspace(1.08, 0.8, len(area), dtype=np.float32)[:, None, None]


def _paint_roof(canvas: Canvas, look: Look, is_front: bool) -> None:
    roof = canvas.region(0.0, canvas.width_m, look.eaves_m, canvas.height_m)
    rows, columns = roof.shape[:2]
    up = 1.0 - (np.arange(rows)[:, None] + 0.5) / rows
    across = (np.arange(columns)[None, :] + 0.5) / columns
    edge = 1.0 - np.abs(2.0 * across - 1.0)
    kind = look.roof if is_front or look.roof in ("flat", "mansard", "hip") else "hip"
    inset = min(1.5 / canvas.width_m, 0.3)
    inside = {
        "flat": np.ones((rows, columns), dtype=bool),
        "gable": up < edge,
        "stepped": np.ceil(up * 4) <= np.ceil(edge * 4.99),
        "hip": up * inset * 2 < edge,
        "mansard": up * inset < edge,
        "curved": up < np.sqrt((1 - (2 * across - 1) ** 2).clip(0)),
        "twin": up < 1.0 - np.abs((across * 4) % 2 - 1),
    }[kind]
    is_wall = kind in ("gable", "stepped", "curved", "twin")
    colour = np.array(look.wall if is_wall else look.roof_colour, dtype=np.float32)
    shade = 1.0 - 0.14 * (np.arange(rows)[:, None, None] % 3 == 0) * (not is_wall)
    roof[..., :3] = colour * shade
    roof[..., 3] = np.where(inside, 255.0, 0.0)
    if is_wall:
        inner = up < (edge - 0.16 if kind == "gable" else 0.72)
        roof[inside & ~inner, :3] = look.roof_colour
        if look.number % 3:
            _paint_window(canvas, look, canvas.width_m / 2, look.eaves_m + 0.25)
    elif kind == "mansard":
        for x in _bays(look, canvas.width_m):
            canvas.fill(x - 0.55, x + 0.55, look.eaves_m + 0.5, look.eaves_m + 2.0, look.frame)
            canvas.fill(x - 0.38, x + 0.38, look.eaves_m + 0.6, look.eaves_m + 1.85, look.glass)
    else:
        canvas.fill(0.0, canvas.width_m, look.eaves_m - 0.15, look.eaves_m + 0.2, look.frame)


def _shade_edges(canvas: Canvas, look: Look) -> None:
    """Darken the foot and the two vertical edges a little, so that neighbours stand apart."""
    columns = canvas.pixels.shape[1]
    canvas.pixels[:, : max(1, columns // 60), :3] *= 0.72
    canvas.pixels[:, columns - max(1, columns // 60) :, :3] *= 0.72
    foot = canvas.region(0.0, canvas.width_m, 0.0, 1.0)[..., :3]
    foot *= np.linspace(1.0, 0.78, len(foot), dtype=np.float32)[:, None, None]
