"""The sweep of a comparison over towns as a picture: SSA@1 by learning rate."""

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape

from train.towns_tables import TownResult

# Told apart by people who see few colours, too (Okabe and Ito); one for each method, then from the start again.
_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _LINE = 480.0, 260.0, 50.0, 36.0, 50.0, 18.0


def draw_sweep(rates: Sequence[float], sweep: Sequence[TownResult]) -> str:
    """A picture of its own, on white: dots are towns, lines the mean over them.

    Args:
        rates: That every method was trained with.
        sweep: On the development towns.

    Returns:
        SVG.
    """
    values: dict[str, dict[float, list[float]]] = {}
    for result in sweep:
        values.setdefault(result.method, {}).setdefault(result.rate, []).append(100 * result.metrics["SSA@1"])
    x_of = {rate: (i + 0.5) / len(rates) for i, rate in enumerate(sorted(rates))}
    top = _round_up(max(max(found) for by_rate in values.values() for found in by_rate.values()))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(values)}
    drawn = "".join(_method(name, by_rate, x_of, top, colours[name]) for name, by_rate in values.items())
    legend = _TOP + _HEIGHT + _BOTTOM
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 16} {legend + _LINE * len(values)}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
        f"{_frame(x_of, top)}{drawn}{_legend(colours, legend)}</svg>\n"
    )


def _method(
    name: str, by_rate: Mapping[float, Sequence[float]], x_of: Mapping[float, float], top: float, colour: str
) -> str:
    path = "L".join(f"{_x(x_of[rate]):.1f} {_y(statistics.fmean(by_rate[rate]) / top):.1f}" for rate in sorted(by_rate))
    dots = "".join(
        f'<circle cx="{_x(x_of[rate]):.1f}" cy="{_y(value / top):.1f}" r="3" fill="{colour}">'
        f"<title>{escape(name)}, {rate:g}: {value:.1f} %</title></circle>"
        for rate, found in by_rate.items()
        for value in found
    )
    return f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}'


def _frame(x_of: Mapping[float, float], top: float) -> str:
    lines = "".join(
        f'<path d="M{_LEFT} {_y(share):.1f}h{_WIDTH}" stroke="#ddd"/>'
        f'<text x="{_LEFT - 8}" y="{_y(share) + 4:.1f}" text-anchor="end">{share * top:g}</text>'
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    ticks = "".join(
        f'<text x="{_x(x):.1f}" y="{_y(0) + 16:.1f}" text-anchor="middle">{rate:g}</text>' for rate, x in x_of.items()
    )
    return (
        f'{lines}{ticks}<text x="{_x(0.5)}" y="{_y(0) + 34}" text-anchor="middle">highest learning rate</text>'
        f'<text x="{_LEFT}" y="{_TOP - 16}" font-weight="bold">SSA@1 on the development towns, per cent</text>'
    )


def _legend(colours: Mapping[str, str], top: float) -> str:
    return "".join(
        f'<path d="M{_LEFT} {top + _LINE * i}h22" stroke="{colour}" stroke-width="3"/>'
        f'<text x="{_LEFT + 30}" y="{top + _LINE * i + 4}">{escape(name)}</text>'
        for i, (name, colour) in enumerate(colours.items())
    )


def _x(share: float) -> float:
    return _LEFT + _WIDTH * share


def _y(share: float) -> float:
    return _TOP + _HEIGHT * (1 - share)


def _round_up(value: float) -> float:
    """The next end of an axis whose quarters are round."""
    unit = 10 ** math.floor(math.log10(max(value, 1e-9)))
    return next(step * unit for step in (1, 2, 4, 6, 8, 10) if step * unit >= value)
