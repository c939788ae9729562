"""Maps of a city's streets as SVG text, for the chat, the evaluation report and the preview of a data set.

    streets = StreetMap(dataset.gallery)
    svg = streets.draw([Highlight(piece.sub_street_id, shade=0.7)], label="where the photo was taken")

Drawn from the gallery's own geometry, so that no tile server learns which place is looked at and no network is needed.
A drawing stands alone in any page; with ``pan_and_zoom_script()`` once in the page it can be dragged, zoomed by wheel,
buttons and keys, and shows more names the closer one looks. A page changes the colours, for dark mode say, through the
CSS variables ``--map-ground``, ``--map-street``, ``--map-ink``, ``--map-hot``, ``--map-answer`` and ``--map-wrong``.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from llava_ial.geo import EARTH_RADIUS_M, FloatArray, GeoPoint
from llava_ial.records import GalleryRecord
from llava_ial.street_labels import LEVELS, Label, LabelPlacer, StreetRun

Lines = Sequence[Sequence[Sequence[float]]]
# Drawn around the view, in views: enough to drag it without seeing an edge, without sending a whole region.
REACH = 3.0
MIN_VIEW_M = 500.0
TILE_PX = 256
MAX_TILE_ZOOM = 19
_TAG_RADIUS_PX = 9.0
_SCRIPT = Path(__file__).with_name("street_map.js")

STYLE = """
.street-map { display: block; width: 100%; height: auto; background: var(--map-ground, #f6f7f4); touch-action: none; }
.street-map path { fill: none; stroke-linecap: round; stroke-linejoin: round; vector-effect: non-scaling-stroke; }
.street-map .street { stroke: var(--map-street, #cdd3da); stroke-width: 3; }
.street-map .quiet { stroke: var(--map-street, #cdd3da); stroke-width: 1.2; opacity: .7; }
.street-map .hot { stroke: var(--map-hot, #2563eb); }
.street-map .answer { stroke: var(--map-answer, #c2410c); stroke-width: 9; }
.street-map .point { stroke-width: calc(8px * var(--size, 1)); stroke: var(--map-hot, #2563eb); }
.street-map .right { stroke: var(--map-right, #15803d); }
.street-map .wrong { stroke: var(--map-wrong, #b91c1c); stroke-linecap: square; }
.street-map text { font-family: system-ui, sans-serif; fill: var(--map-ink, #334155); text-anchor: middle;
  dominant-baseline: central; stroke: var(--map-ground, #f6f7f4); paint-order: stroke; stroke-linejoin: round;
  font-size: calc(var(--unit) * 12); stroke-width: calc(var(--unit) * 3); pointer-events: none; }
.street-map .strong { font-weight: 700; }
.street-map .tag circle { fill: var(--map-ground, #f6f7f4); stroke: var(--map-ink, #334155);
  r: calc(var(--unit) * 9); stroke-width: calc(var(--unit) * 1.5); }
.street-map .tag text { stroke: none; font-weight: 700; }
.street-map:not([data-level="2"], [data-level="4"]) .level-2, .street-map:not([data-level="4"]) .level-4 {
  display: none; }
"""


@dataclass(frozen=True)
class Highlight:
    """A piece of street that stands out.

    Attributes:
        sub_street_id: Which piece of the gallery.
        shade: From 0 (hardly) to 1; opacity and width of the stroke.
        is_answer: Drawn in the colour of the answer, whatever the shade.
        tag: A character or two, drawn at its middle.
        title: Said on hovering and by a screen reader; the piece's address if empty.
    """

    sub_street_id: str
    shade: float = 1.0
    is_answer: bool = False
    tag: str = ""
    title: str = ""


@dataclass(frozen=True)
class MapPoint:
    """A position; ``is_right`` makes it a green dot or a red square, None a neutral one; ``size`` scales it."""

    point: GeoPoint
    is_right: bool | None = None
    title: str = ""
    size: float = 1.0


@dataclass(frozen=True)
class View:
    """The part of the map that is shown first: metres east and south of the map's middle."""

    left: float
    top: float
    width: float
    height: float

    def around(self, factor: float) -> "View":
        """The same middle, ``factor`` times as wide and high."""
        wide, high = self.width * factor, self.height * factor
        return View(self.left - (wide - self.width) / 2, self.top - (high - self.height) / 2, wide, high)

    def touches(self, box: FloatArray) -> bool:
        """Whether a box ``(4,)`` of left, top, right, bottom reaches into the view."""
        left, top, right, bottom = box.tolist()
        is_beside = right < self.left or left > self.left + self.width
        return not (is_beside or bottom < self.top or top > self.top + self.height)


@dataclass(frozen=True)
class _Piece:
    """A piece of street on the plane of the map: its lines ``(N, 2)`` and their box ``(4,)``."""

    name: str
    title: str
    lines: list[FloatArray]
    box: FloatArray


class StreetMap:
    """The streets of a city, projected once and drawn many times.

    The plane is a Mercator projection scaled to metres at the middle of the city: axes and angles are those of web
    maps, so that tiles fit under it, and lengths are right to some per mille (the earth is held to be a sphere).

    Args:
        gallery: Pieces that can be highlighted; they carry the names.
        background: Lines of further streets, parts of ``[lon, lat]`` points in degrees.

    Raises:
        ValueError: No piece has a geometry.
    """

    def __init__(self, gallery: Sequence[GalleryRecord], background: Iterable[Lines] = ()) -> None:
        points = [point for record in gallery for line in record.lines for point in line]
        if not points:
            raise ValueError("a map needs at least one piece of street with a geometry")
        lon, lat = np.asarray(points, dtype=np.float64).T
        self.origin = GeoPoint(lat=float((lat.min() + lat.max()) / 2), lon=float((lon.min() + lon.max()) / 2))
        self._pieces = {
            record.sub_street_id: self._project(record.lines, record.address.street, record.spoken)
            for record in gallery
            if any(record.lines)
        }
        self._background = [self._project(lines, "", "") for lines in background if any(lines)]

    def to_xy_m(self, lat: FloatArray, lon: FloatArray) -> FloatArray:
        """Degrees, ``(N,)`` each, to metres east and south of the map's middle, ``(N, 2)``."""
        scale = EARTH_RADIUS_M * math.cos(math.radians(self.origin.lat))
        north = np.arcsinh(np.tan(np.radians(lat))) - math.asinh(math.tan(math.radians(self.origin.lat)))
        return np.stack([scale * np.radians(lon - self.origin.lon), -scale * north], axis=-1)

    def draw(
        self,
        highlights: Sequence[Highlight] = (),
        *,
        label: str,
        points: Sequence[MapPoint] = (),
        focus: Collection[str] | None = None,
        width_px: int = 560,
        height_px: int = 400,
        tiles: str = "",
    ) -> str:
        """The map as one ``<svg>`` element.

        Args:
            highlights: Pieces that stand out; later ones are drawn over earlier ones. Unknown ids are left out.
            label: What the drawing shows, for screen readers.
            points: Positions drawn over the streets.
            focus: Pieces that the first view shows as a whole; by default what is highlighted, else everything.
            width_px: Width for which names are placed; the drawing itself fills what it is given.
            height_px: Height in the same pixels.
            tiles: Address of an online background with ``{z}``, ``{x}``, ``{y}``; none by default.
        """
        known = [highlight for highlight in highlights if highlight.sub_street_id in self._pieces]
        wanted = focus if focus is not None else [highlight.sub_street_id for highlight in known]
        view = self._view([self._pieces[i].box for i in wanted if i in self._pieces], width_px / height_px)
        unit = view.width / width_px
        area = view.around(REACH)
        pieces = [piece for piece in self._pieces.values() if area.touches(piece.box)]
        quiet = [piece for piece in self._background if area.touches(piece.box)]
        parts = self._tiles(tiles, view.around(1.5), unit) if tiles else []
        parts += [_path("quiet", quiet), _path("street", pieces)]
        parts += [_highlight(self._pieces[h.sub_street_id], h) for h in known]
        parts += self._names(pieces, known, view, unit)
        parts += [self._point(point) for point in points]
        shown = f"{view.left:.0f} {view.top:.0f} {view.width:.0f} {view.height:.0f}"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="street-map" role="img" tabindex="0" '
            f'aria-label="{escape(label)}" viewBox="{shown}" data-home="{shown}" style="--unit: {unit:.3f}px; '
            f'aspect-ratio: {width_px} / {height_px}"><style>{STYLE}</style>{"".join(parts)}</svg>'
        )

    def _project(self, lines: Lines, name: str, title: str) -> _Piece:
        drawn = []
        for line in lines:
            if len(line):
                lon, lat = np.asarray(line, dtype=np.float64)[:, :2].T
                drawn.append(self.to_xy_m(lat, lon))
        every = np.concatenate(drawn)
        return _Piece(name, title, drawn, np.concatenate([every.min(axis=0), every.max(axis=0)]))

    def _view(self, boxes: Sequence[FloatArray], aspect: float) -> View:
        """A view of an aspect ratio in which all boxes lie, with room around them."""
        every = np.stack(list(boxes) or [piece.box for piece in self._pieces.values()])
        (left, top), (right, bottom) = every[:, :2].min(axis=0).tolist(), every[:, 2:].max(axis=0).tolist()
        width, height = max((right - left) * 1.25, MIN_VIEW_M), max((bottom - top) * 1.25, MIN_VIEW_M / aspect)
        width, height = max(width, height * aspect), max(height, width / aspect)
        return View((left + right - width) / 2, (top + bottom - height) / 2, width, height)

    def _names(self, pieces: Sequence[_Piece], highlights: Sequence[Highlight], view: View, unit: float) -> list[str]:
        """Tags of the highlighted pieces, then street names where they have room, the highlighted streets' first."""
        placer = LabelPlacer(unit)
        parts = []
        for highlight in highlights:
            if highlight.tag:
                x, y = placer.block(_middle(self._pieces[highlight.sub_street_id].lines), _TAG_RADIUS_PX)
                parts.append(
                    f'<g class="tag"><circle cx="{x:.1f}" cy="{y:.1f}"/>'
                    f'<text x="{x:.1f}" y="{y:.1f}">{escape(highlight.tag)}</text></g>'
                )
        strong = {self._pieces[highlight.sub_street_id].name for highlight in highlights}
        runs: dict[str, list[FloatArray]] = {}
        for piece in pieces:
            runs.setdefault(piece.name, []).extend(piece.lines)
        streets = [StreetRun(name, lines, name in strong) for name, lines in runs.items()]
        half = np.array([view.width / 2, view.height / 2])
        middle = half + np.array([view.left, view.top])
        return [_text(found) for found in placer.place(streets, middle, half)] + parts

    def _point(self, point: MapPoint) -> str:
        ((x, y),) = self.to_xy_m(np.array([point.point.lat]), np.array([point.point.lon]))
        kind = {True: "right", False: "wrong", None: ""}[point.is_right]
        style = "" if point.size == 1 else f' style="--size:{point.size:.2f}"'
        return f'<path class="point {kind}" d="M{x:.1f} {y:.1f}h0"{style}>{_title(point.title)}</path>'

    def _tiles(self, template: str, area: View, unit: float) -> list[str]:
        """Images of a tile server under an area, about as fine as the map is shown."""
        circle = 2 * math.pi * EARTH_RADIUS_M * math.cos(math.radians(self.origin.lat))
        zoom = min(MAX_TILE_ZOOM, max(0, round(math.log2(circle / (TILE_PX * unit)))))
        side = circle / 2**zoom
        middle_x = (self.origin.lon / 360 + 0.5) * circle
        middle_y = (0.5 - math.asinh(math.tan(math.radians(self.origin.lat))) / (2 * math.pi)) * circle
        columns = range(_tile(middle_x + area.left, side), _tile(middle_x + area.left + area.width, side) + 1)
        rows = range(_tile(middle_y + area.top, side), _tile(middle_y + area.top + area.height, side) + 1)
        return [
            f'<image href="{escape(template.format(z=zoom, x=x % 2**zoom, y=y))}" x="{x * side - middle_x:.1f}" '
            f'y="{y * side - middle_y:.1f}" width="{side:.1f}" height="{side:.1f}"/>'
            for x in columns
            for y in rows
            if 0 <= y < 2**zoom
        ]


def pan_and_zoom_script() -> str:
    """JavaScript for a page with maps: once in a page, it serves all maps that are there or come later."""
    return _SCRIPT.read_text(encoding="utf-8")


def _tile(position: float, side: float) -> int:
    return math.floor(position / side)


def _path(kind: str, pieces: Iterable[_Piece]) -> str:
    return f'<path class="{kind}" d="{"".join(_outline(line) for piece in pieces for line in piece.lines)}"/>'


def _outline(line: FloatArray) -> str:
    """A line in decimetres of accuracy; a line of one point becomes a dot."""
    first, *rest = (f"{x:.1f} {y:.1f}" for x, y in line.tolist())
    return f"M{first}L{' '.join(rest)}" if rest else f"M{first}h0"


def _highlight(piece: _Piece, highlight: Highlight) -> str:
    shade = min(1.0, max(0.0, highlight.shade))
    kind, style = "answer", ""
    if not highlight.is_answer:
        kind, style = "hot", f' style="stroke-width: {3 + 5 * shade:.1f}; stroke-opacity: {0.2 + 0.8 * shade:.2f}"'
    outline = "".join(_outline(line) for line in piece.lines)
    return (
        f'<path class="{kind}" data-piece="{escape(highlight.sub_street_id)}"{style} d="{outline}">'
        f"{_title(highlight.title or piece.title)}</path>"
    )


def _text(label: Label) -> str:
    kinds = (["strong"] if label.is_strong else []) + ([f"level-{label.level}"] if label.level > LEVELS[0] else [])
    turn = f"rotate({label.angle_deg:.1f} {label.x:.1f} {label.y:.1f})"
    place = f'x="{label.x:.1f}" y="{label.y:.1f}" transform="{turn}"'
    return f'<text class="{" ".join(kinds)}" {place}>{escape(label.text)}</text>'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _middle(lines: Sequence[FloatArray]) -> FloatArray:
    """The point of the lines that is closest to the middle of their box, ``(2,)``.

    Not the point half-way along: a piece with two carriageways is one line there and back, which turns at half its way.
    """
    every = np.concatenate(lines)
    middle = (every.min(axis=0) + every.max(axis=0)) / 2
    steps = [line[:-1] + share * np.diff(line, axis=0) for line in lines for share in (0.0, 0.25, 0.5, 0.75)]
    choices = np.concatenate([*steps, every])
    nearest: FloatArray = choices[np.argmin(((choices - middle) ** 2).sum(axis=1))]
    return nearest
