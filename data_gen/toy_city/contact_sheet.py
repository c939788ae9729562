"""Pictures for people: a contact sheet of panoramas and a map of the town."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_gen.toy_city.arrays import Colour, FloatArray, random_stream
from data_gen.toy_city.photos import Photo
from data_gen.toy_city.place import Place
from data_gen.toy_city.plan import Plan, SubStreet

_ROWS, _COLUMNS, _GAP = 6, 8, 6
_PAPER: Colour = (250, 248, 243)
_INK: Colour = (52, 50, 48)
_TINTS: tuple[Colour, ...] = (
    (232, 222, 200),
    (214, 226, 206),
    (234, 214, 208),
    (214, 218, 232),
    (236, 230, 206),
    (222, 212, 228),
    (208, 226, 224),
)
_MAP_PIXELS = 1400


def draw_contact_sheet(folder: Path, photos: list[Photo], seed: int) -> Image.Image:
    """Draw panoramas (rows) by headings (columns), spread over the sub-streets.

    Args:
        folder: The city's folder.
        photos: All rows.
        seed: Decides which panoramas are shown.
    """
    panoramas: dict[str, list[Photo]] = {}
    for photo in photos:
        panoramas.setdefault(photo.panorama_id, []).append(photo)
    groups = list(panoramas.values())
    picked = random_stream(seed, "contact sheet").permutation(len(groups))[:_ROWS]
    columns = min(_COLUMNS, max(len(group) for group in groups))
    with Image.open(folder / photos[0].image_path) as image:
        side = image.width
    step = side + _GAP
    sheet = Image.new("RGB", (columns * step + _GAP, len(picked) * step + _GAP), _PAPER)
    for row, number in enumerate(sorted(picked.tolist())):
        group = groups[number]
        for column, place in enumerate(np.linspace(0, len(group), columns, endpoint=False).astype(int).tolist()):
            with Image.open(folder / group[place].image_path) as image:
                sheet.paste(image.convert("RGB"), (_GAP + column * step, _GAP + row * step))
    return sheet


class _Map:
    """A drawing whose coordinates are world metres, at twice the final size for smooth lines."""

    def __init__(self, plan: Plan) -> None:
        west, south, east, north = plan.bounds
        self.scale = 2 * _MAP_PIXELS / max(east - west, north - south)
        self.west, self.north = west, north
        size = round((east - west) * self.scale), round((north - south) * self.scale)
        self.image = Image.new("RGB", size, _PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def to_pixels(self, points: FloatArray) -> list[tuple[float, float]]:
        """Turn (P, 2) world metres into pixels."""
        return [((x - self.west) * self.scale, (self.north - y) * self.scale) for x, y in points.tolist()]

    def line(self, points: FloatArray, width_m: float, colour: Colour) -> None:
        """Draw a line with round corners."""
        pixels = self.to_pixels(points)
        width = max(1, round(width_m * self.scale))
        self.draw.line(pixels, fill=colour, width=width, joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            self.draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=colour)

    def label(self, text: str, where: FloatArray, angle_deg: float, size_px: int, colour: Colour) -> None:
        """Write a centred, turned text with a pale outline."""
        font = ImageFont.load_default(size=size_px)
        box = font.getbbox(text, stroke_width=size_px // 7)
        layer = Image.new("RGBA", (round(box[2] - box[0]) + 8, round(box[3] - box[1]) + 8), (*_PAPER, 0))
        pen = ImageDraw.Draw(layer)
        pen.text((4 - box[0], 4 - box[1]), text, fill=colour, font=font, stroke_width=size_px // 7, stroke_fill=_PAPER)
        layer = layer.rotate(angle_deg, expand=True, resample=Image.Resampling.BICUBIC)
        x, y = self.to_pixels(where[None])[0]
        self.image.paste(layer, (round(x - layer.width / 2), round(y - layer.height / 2)), layer)


def draw_map(plan: Plan, place: Place) -> Image.Image:
    """Draw the town: neighbourhood tints, river, streets, and the names of streets and neighbourhoods."""
    canvas = _Map(plan)
    for number, ring in enumerate(plan.neighbourhoods):
        canvas.draw.polygon(canvas.to_pixels(ring), fill=_TINTS[number % len(_TINTS)])
    canvas.line(plan.river, 2 * plan.river_half_m + 5.0, (170, 190, 196))
    canvas.line(plan.river, 2 * plan.river_half_m, (148, 186, 210))
    for part in plan.sub_streets:
        canvas.line(part.line, 21.0 if part.is_dual else 13.0, (186, 176, 160))
    for part in plan.sub_streets:
        canvas.line(part.line, 17.5 if part.is_dual else 10.0, (255, 255, 255))
    for part in plan.sub_streets:
        if part.is_dual:
            canvas.line(part.line, 2.5, (188, 206, 170))
    size = round(9.0 * canvas.scale) if len(plan.sub_streets) < 150 else round(12.0 * canvas.scale)
    for ring, name in zip(plan.neighbourhoods, place.neighbourhoods, strict=True):
        canvas.label(name.upper(), ring[:-1].mean(axis=0), 0.0, round(size * 1.2), (150, 128, 108))
    for number, street in enumerate(plan.streets):
        parts = [plan.sub_streets[index] for index in street.sub_streets]
        for cell in sorted({part.neighbourhood for part in parts}):
            longest = max((part for part in parts if part.neighbourhood == cell), key=lambda part: part.length_m)
            _label_street(canvas, longest, place.streets[number], size)
    return canvas.image.resize((canvas.image.width // 2, canvas.image.height // 2), Image.Resampling.LANCZOS)


def _label_street(canvas: _Map, part: SubStreet, name: str, size_px: int) -> None:
    middle = len(part.line) // 2
    step = part.line[min(middle + 2, len(part.line) - 1)] - part.line[max(middle - 2, 0)]
    angle = float(np.degrees(np.arctan2(step[1], step[0])))
    angle = (angle + 90.0) % 180.0 - 90.0
    canvas.label(name, (part.line[0] + 2 * part.line[middle] + part.line[-1]) / 4, angle, size_px, _INK)
