"""A chart as inline SVG, coloured by the page's style sheet so that it follows a light or dark theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from html import escape

from matplotlib.ticker import LogLocator, MaxNLocator

from frskd_plugin.report.charts import Chart, Curve, Point, is_drawable
from frskd_plugin.report.run_logs import position_text

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 40
MARGIN = 0.05  # above and below the curves, of their range
MAX_MARKERS = 30  # of a curve; longer ones have a few, which tell the runs apart without colours
# one shape a run, around (0, 0)
MARKERS = (
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0Z",
    "M-3-3H3V3H-3Z",
    "M0-4.5L4.5 0L0 4.5L-4.5 0Z",
    "M0-4L4 3H-4Z",
    "M0 4L4-3H-4Z",
    "M-4-1.2H-1.2V-4H1.2V-1.2H4V1.2H1.2V4H-1.2V1.2H-4Z",
    "M-4-1.5H4V1.5H-4Z",
    "M-1.5-4H1.5V4H-1.5Z",
)
Scale = Callable[[float], float]
# where the style sheet is not applied, say by a program that prints; style sheets win over attributes
_PLAIN = 'fill="none" stroke="currentColor"'


def draw(chart: Chart) -> str:
    """The chart; its label says for each curve where it begins and ends."""
    points = [point for curve in chart.curves for point in curve.points if is_drawable(point[1])]
    label = escape(f"{chart.title} over {chart.unit}s. {' '.join(map(describe, chart.curves))}")
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" font-size="13" role="img" aria-label="{label}">']
    if points:
        across, xticks = _linear([0.0, chart.end], LEFT, WIDTH - RIGHT, whole=chart.end >= 2, margin=0.0)
        make = _logarithmic if chart.log_scale else _linear
        up, yticks = make([y for _, y in points], HEIGHT - BOTTOM, TOP)
        parts += _axes(chart.unit, across, xticks, up, yticks)
        for curve in chart.curves:
            parts += _curve(curve, across, up)
    else:
        parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no finite value</text>')
    return "".join([*parts, "</svg>"])


def swatch(curve: Curve) -> str:
    """A piece of the curve for a legend."""
    return (
        f'<svg class="swatch" viewBox="0 0 36 12" aria-hidden="true"><g class="{_classes(curve)}">'
        f'<path class="line" {_PLAIN} d="M1 6H35"/>'
        f'<path class="marker" transform="translate(18 6)" d="{_marker(curve)}"/></g></svg>'
    )


def describe(curve: Curve) -> str:
    """Begin, end and range of a curve, in a sentence."""
    values = [value for _, value in curve.points if is_drawable(value)]
    if not values:
        return f"{curve.label}: no finite value."
    low, high = min(values), max(values)
    return f"{curve.label}: from {values[0]:.4g} to {values[-1]:.4g}, lowest {low:.4g}, highest {high:.4g}."


def _axes(unit: str, across: Scale, xticks: list[float], up: Scale, yticks: list[float]) -> Iterator[str]:
    for tick in yticks:
        y = up(tick)
        yield f'<path class="grid" {_PLAIN} d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    yield f'<path class="axis" {_PLAIN} d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>'
    for tick in xticks:
        x = across(tick)
        yield f'<path class="axis" {_PLAIN} d="M{x:.1f} {HEIGHT - BOTTOM}v4"/>'
        yield f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{position_text(tick)}</text>'
    yield f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">{unit}</text>'


def _curve(curve: Curve, across: Scale, up: Scale) -> Iterator[str]:
    yield f'<g class="{_classes(curve)}">'
    for piece in _pieces(curve.points):
        yield f'<path class="line" {_PLAIN} d="M{"L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in piece)}"/>'
    drawable = [point for point in curve.points if is_drawable(point[1])]
    few = len(drawable) <= MAX_MARKERS
    marked = drawable if few else drawable[:: math.ceil(len(drawable) / 8)]
    for x, y in marked:
        title = f"<title>{escape(curve.label)}: {y:.6g} at {position_text(x)}</title>" if few else ""
        place = f"translate({across(x):.1f} {up(y):.1f})"
        yield f'<path class="marker" transform="{place}" d="{_marker(curve)}">{title}</path>'
    yield "</g>"


def _pieces(points: tuple[Point, ...]) -> list[list[Point]]:
    """The runs of points between those that cannot be drawn."""
    pieces: list[list[Point]] = [[]]
    for point in points:
        if is_drawable(point[1]):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _linear(
    values: list[float], begin: float, end: float, whole: bool = False, margin: float = MARGIN
) -> tuple[Scale, list[float]]:
    """Pixel of a value, and the ticks within the range of the values."""
    low, high = min(values), max(values)
    if low == high:  # a constant, or a single point
        low, high = low - (abs(low) * MARGIN or 1), high + (abs(high) * MARGIN or 1)
    else:
        low, high = low - margin * (high - low), high + margin * (high - low)
    ticks = MaxNLocator(nbins=5, integer=whole).tick_values(low, high)
    return (
        lambda value: begin + (value - low) / (high - low) * (end - begin),
        [float(tick) for tick in ticks if low <= tick <= high],
    )


def _logarithmic(values: list[float], begin: float, end: float) -> tuple[Scale, list[float]]:
    scale, _ = _linear([math.log10(value) for value in values], begin, end)
    ticks = LogLocator(base=10).tick_values(min(values), max(values))
    # a learning rate stands on a power of ten as a rule, up to its last digit
    inside = [float(tick) for tick in ticks if 0.999 * min(values) <= tick <= 1.001 * max(values)]
    return lambda value: scale(math.log10(value)), inside


def _classes(curve: Curve) -> str:
    return f"c{curve.run % len(MARKERS)}{' dashed' if curve.dashed else ''}"


def _marker(curve: Curve) -> str:
    return MARKERS[curve.run % len(MARKERS)]
