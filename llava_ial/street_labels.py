"""Where street names have room on a map: along their streets, upright, none over another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llava_ial.geo import FloatArray

# How much closer one must look until a name appears: those of the first level are always there.
LEVELS = (1, 2, 4)
FONT_PX = 12.0
# Mean width of a letter in heights of the font, somewhat generous.
_LETTER = 0.56
# A name is written again where the same name stands at least this far away, at the level's scale.
_AGAIN_PX = 320.0
_STREET_MUST_CARRY = 0.75  # of the name's length
_TRIES = 4


@dataclass(frozen=True)
class StreetRun:
    """A street on the map: its lines, each ``(N, 2)`` metres; the strong ones are named first."""

    name: str
    lines: list[FloatArray]
    is_strong: bool = False


@dataclass(frozen=True)
class Label:
    """A name at its place; ``level`` is the entry of ``LEVELS`` from which on it is shown."""

    text: str
    x: float
    y: float
    angle_deg: float
    level: int
    is_strong: bool


class LabelPlacer:
    """Puts one name after the other where no earlier one stands.

    A label is held to be a row of discs, so that turned labels are compared exactly enough without geometry.

    Args:
        unit: Metres a pixel at the first level.
    """

    def __init__(self, unit: float) -> None:
        self._unit = unit
        self._blocks: list[FloatArray] = []  # rows (x, y, radius in pixels)
        self._discs: dict[int, list[FloatArray]] = {level: [] for level in LEVELS}  # centres, (K, 2)
        self._placed: dict[str, list[Label]] = {}

    def block(self, middle: FloatArray, radius_px: float) -> tuple[float, float]:
        """Keeps names away from a disc; returns its middle, moved aside where another block already is."""
        x, y = (float(value) for value in middle)
        while any(math.hypot(x - bx, y - by) < (radius_px + r) * self._unit for bx, by, r in self._blocks):
            y += radius_px * self._unit
        self._blocks.append(np.array([x, y, radius_px]))
        return x, y

    def place(self, streets: Sequence[StreetRun], middle: FloatArray, half: FloatArray) -> list[Label]:
        """Labels of all levels.

        Args:
            streets: All that may be named.
            middle: ``(2,)`` of the first view; of equal places the one closer to it is taken.
            half: ``(2,)`` half of its width and height; no name of the first level is cut by its edges.
        """
        order = sorted(streets, key=lambda s: (not s.is_strong, -_length(s.lines), s.name))
        places = [(street, _length(street.lines), _places(street.lines, middle)) for street in order if street.name]
        found = []
        for level in LEVELS:
            for street, length, candidates in places:
                needed = _LETTER * FONT_PX * len(street.name) * self._unit / level
                if length < needed * _STREET_MUST_CARRY and not street.is_strong:
                    continue
                label = self._try(street, candidates, needed, level, (middle, half))
                if label is not None:
                    found.append(label)
        return found

    def _try(
        self,
        street: StreetRun,
        candidates: Sequence[tuple[float, float, float]],
        length: float,
        level: int,
        view: tuple[FloatArray, FloatArray],
    ) -> Label | None:
        unit = self._unit / level
        height = FONT_PX * unit
        for x, y, angle in candidates[: _TRIES * level]:
            same = self._placed.get(street.name, [])
            if any(math.hypot(label.x - x, label.y - y) < _AGAIN_PX * unit for label in same):
                continue
            num_discs = max(1, math.ceil(length / height))
            steps = (np.arange(num_discs) - (num_discs - 1) / 2) * height
            row = steps[:, None] * np.array([math.cos(angle), math.sin(angle)])
            # A street that stands out is named beside it where there is no room on it.
            for aside in (0.0, 1.3, -1.3) if street.is_strong else (0.0,):
                px, py = x - aside * height * math.sin(angle), y + aside * height * math.cos(angle)
                discs = np.array([px, py]) + row
                if (level > LEVELS[0] or not _is_cut(discs, *view)) and self._is_free(discs, height, unit, level):
                    label = Label(street.name, px, py, math.degrees(angle), level, street.is_strong)
                    self._keep(label, discs)
                    return label
        return None

    def _keep(self, label: Label, discs: FloatArray) -> None:
        """Whatever stands at a level also stands at closer ones, where it covers less ground."""
        self._placed.setdefault(label.text, []).append(label)
        middle = np.array([label.x, label.y])
        for later in LEVELS[LEVELS.index(label.level) :]:
            self._discs[later].append(middle + (discs - middle) * (label.level / later))

    def _is_free(self, discs: FloatArray, height: float, unit: float, level: int) -> bool:
        for x, y, radius_px in self._blocks:
            if (np.hypot(*(discs - [x, y]).T) < height / 2 + radius_px * unit).any():
                return False
        taken = self._discs[level]
        if not taken:
            return True
        apart = np.hypot(*(np.concatenate(taken)[:, None] - discs[None]).transpose(2, 0, 1))
        return not bool((apart < 1.15 * height).any())


def _length(lines: Sequence[FloatArray]) -> float:
    return float(sum(np.hypot(*np.diff(line, axis=0).T).sum() for line in lines))


def _places(lines: Sequence[FloatArray], middle: FloatArray) -> list[tuple[float, float, float]]:
    """Middles ``(x, y)`` of straight parts with the direction to write in (radians, never upside down), best first."""
    ranked = []
    for line in lines:
        reached = np.concatenate([[0.0], np.hypot(*np.diff(line, axis=0).T).cumsum()])
        total = float(reached[-1])
        # The whole line, and its halves: a line there and back is straight only in these.
        for begin, end in ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0)) if total else ():
            along = total * np.array([0.8 * begin + 0.2 * end, (begin + end) / 2, 0.2 * begin + 0.8 * end])
            (ax, x, bx), (ay, y, by) = (np.interp(along, reached, line[:, axis]).tolist() for axis in (0, 1))
            angle = math.atan2(by - ay, bx - ax)
            if abs(angle) > math.pi / 2:
                angle -= math.copysign(math.pi, angle)
            chord = math.hypot(bx - ax, by - ay) / 0.6
            straightness = chord / (total * (end - begin))
            far = math.hypot(x - middle[0], y - middle[1])
            ranked.append((-(straightness**4) * min(chord, 400.0) / (1 + far / 800.0), x, y, angle))
    return [(x, y, angle) for _, x, y, angle in sorted(ranked)]


def _is_cut(discs: FloatArray, middle: FloatArray, half: FloatArray) -> bool:
    """Whether a label lies partly inside and partly outside of a view."""
    is_inside = (np.abs(discs - middle) < half).all(axis=1)
    return bool(is_inside.any() and not is_inside.all())
