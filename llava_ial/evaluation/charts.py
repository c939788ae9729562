"""Curves as SVG text for the report; colours come from the page's CSS variables."""

from collections.abc import Sequence

from llava_ial.evaluation.reliability import Bin

_SIDE, _LEFT, _BOTTOM = 240.0, 44.0, 40.0
_TOP = 14.0
_WIDTH, _HEIGHT = _LEFT + _SIDE + 16, _TOP + _SIDE + _BOTTOM
Point = tuple[float, float]


def reliability_chart(bins: Sequence[Bin]) -> str:
    """How often answers of each confidence are right; on the diagonal they are as often right as they say."""
    largest = max(b.num_answers for b in bins)
    dots = "".join(
        f'<circle cx="{_x(b.confidence):.1f}" cy="{_y(b.accuracy):.1f}" r="{_radius(b.num_answers / largest):.1f}">'
        f"<title>said {b.confidence:.0%}, right {b.accuracy:.0%}, {b.num_answers} photos</title></circle>"
        for b in bins
    )
    line = _polyline([(b.confidence, b.accuracy) for b in bins])
    diagonal = f'<path class="grid" d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}"/>'
    return _chart(diagonal + line + dots, "confidence", "share right", "Reliability curve")


def risk_coverage_chart(curve: Sequence[Point]) -> str:
    """What share of the answers is wrong if only the surest are given."""
    return _chart(_polyline(curve), "share answered, the surest first", "share wrong", "Risk and coverage")


def _chart(content: str, below: str, beside: str, label: str) -> str:
    ticks = "".join(
        f'<path class="grid" d="M{_x(0)} {_y(v):.1f}H{_x(1)}"/>'
        f'<text x="{_LEFT - 6}" y="{_y(v):.1f}" class="left">{v:.0%}</text>'
        f'<text x="{_x(v):.1f}" y="{_y(0) + 14}" class="below">{v:.0%}</text>'
        for v in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    middle = _TOP + _SIDE / 2
    return (
        f'<svg class="chart" role="img" aria-label="{label}" viewBox="0 0 {_WIDTH} {_HEIGHT}">{ticks}{content}'
        f'<text x="{_x(0.5)}" y="{_HEIGHT - 6}" class="below">{below}</text>'
        f'<text x="10" y="{middle}" class="below" transform="rotate(-90 10 {middle})">{beside}</text></svg>'
    )


def _polyline(points: Sequence[Point]) -> str:
    path = "L".join(f"{_x(x):.1f} {_y(y):.1f}" for x, y in points)
    return f'<path class="curve" d="M{path}"/>'


def _x(share: float) -> float:
    return _LEFT + _SIDE * share


def _y(share: float) -> float:
    return _TOP + _SIDE * (1 - share)


def _radius(share: float) -> float:
    """Of a dot whose area grows with the number of photos."""
    return 3 + 7 * float(share**0.5)
