"""Line charts as SVG, readable without color and without scripts; labels are escaped, colors come from the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360.0, 224.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 10.0, 24.0, 36.0
MOST, DOTS = 300, 24
"""Points of a line that are drawn (of more, each stretch's lowest and highest); points up to which each has a dot."""
Points = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line, and its band if it has one; where a value is not finite there is no point."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    band: str = ""  # what the band is
    color: int = 0  # of the page's
    whiskers: bool = False  # the band is a stroke at each point, not an area

    @property
    def points(self) -> Points:
        """The finite ones."""
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if math.isfinite(x) and math.isfinite(y)]

    @property
    def ribbon(self) -> list[tuple[float, float, float]]:
        """x, low, high where all are finite."""
        rows = zip(self.x, self.low, self.high, strict=False)
        return [row for row in rows if all(map(math.isfinite, row))]


class Axis:
    """A range of numbers with round ticks, which ends at one if it is ``whole``.

    ``root``: lengths are as square roots of the numbers, which are >= 0.
    """

    def __init__(self, values: Sequence[float], *, root: bool = False, whole: bool = False) -> None:
        self.root = root
        low, high = min(values), max(values)
        if low == high:
            pad = abs(low) / 2 or 0.5
            low, high = (0.0 if root else low - pad), high + pad
        if root:
            self.ticks = [tick for tick in (0, 0.25, 1, 2, 4, 8, 16, 32, 64, 128, 256) if tick <= high] or [0.0]
            self.low, self.high = 0.0, high
            return
        step = _round_step((high - low) / 4)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        self.low, self.high = (first * step, last * step) if whole else (low, high)
        ticks = [number * step for number in range(first, last + 1)]
        self.ticks = [tick for tick in ticks if self.low - step / 1e6 <= tick <= self.high + step / 1e6]

    def place(self, value: float) -> float:
        """Where ``value`` is, 0 at the low end and 1 at the high end."""
        if self.root:
            return math.sqrt(max(value, 0.0) / self.high)
        return (value - self.low) / (self.high - self.low)


def _round_step(step: float) -> float:
    """The nearest of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return min((each * power for each in (1, 2, 5, 10)), key=lambda each: abs(math.log(each / step)))


def number(value: float, digits: int = 4) -> str:
    """For people: a true minus sign, thousands as k and M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.{digits}g}{letter}".replace("-", "−")
    return f"{round(value, 12) + 0.0:.{digits}g}".replace("-", "−")


def chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    threshold: float | None = None,
    root: bool = False,
) -> Markup | None:
    """The chart as an ``svg`` element that says in words what it shows; None if no value is finite.

    ``root``: the horizontal axis is as square roots.
    """
    series = [each for each in series if each.points]
    if not series:
        return None
    across = Axis([x for each in series for x, _ in each.points], root=root)
    heights = [y for each in series for _, y in each.points]
    heights += [y for each in series for _, *ends in each.ribbon for y in ends]
    up = Axis([*heights, threshold] if threshold is not None else heights, whole=True)

    def at(x: float, y: float) -> str:
        return f"{LEFT + across.place(x) * (WIDTH - LEFT - RIGHT):.1f},{HEIGHT - BOTTOM - up.place(y) * PLOT:.1f}"

    parts = [*_frame(across, up, x_label, y_label)]
    if threshold is not None:
        parts.append(f'<path class="threshold" d="M{at(across.low, threshold)}L{at(across.high, threshold)}"/>')
    for each in series:
        parts += _drawn(each, at)
    words = "; ".join(_in_words(each) for each in series)
    label = f"{title}, {y_label} over {x_label}. {words}"
    return Markup(f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(label)}">') + Markup(
        "".join(parts) + "</svg>"
    )


PLOT = HEIGHT - TOP - BOTTOM


def _frame(across: Axis, up: Axis, x_label: str, y_label: str) -> Iterator[str]:
    for tick in up.ticks:
        y = HEIGHT - BOTTOM - up.place(tick) * PLOT
        yield f'<path class="grid" d="M{LEFT:g},{y:.1f}H{WIDTH - RIGHT:g}"/>'
        yield f'<text x="{LEFT - 6:g}" y="{y + 3.5:.1f}" text-anchor="end">{number(tick)}</text>'
    for tick in across.ticks:
        x = LEFT + across.place(tick) * (WIDTH - LEFT - RIGHT)
        anchor = "end" if x > WIDTH - RIGHT - 8 else "middle"
        yield f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 14:g}" text-anchor="{anchor}">{number(tick)}</text>'
    yield f'<text class="unit" x="0" y="11">{escape(y_label)}</text>'
    yield f'<text class="unit" x="{WIDTH - RIGHT:g}" y="{HEIGHT - 5:g}" text-anchor="end">{escape(x_label)}</text>'


def _drawn(series: Series, at: object) -> Iterator[str]:
    assert callable(at)
    color = f"c{series.color}"
    ribbon = series.ribbon
    if series.whiskers:
        yield from (f'<path class="whisker {color}" d="M{at(x, low)}L{at(x, high)}"/>' for x, low, high in ribbon)
    elif len(ribbon) > 1:
        edge = [at(x, low) for x, low, _ in ribbon] + [at(x, high) for x, _, high in reversed(ribbon)]
        yield f'<path class="band {color}" d="M{"L".join(edge)}Z"/>'
    points = thinned(series.points)
    if len(points) > 1:
        yield f'<path class="line {color}" d="M{"L".join(at(x, y) for x, y in points)}"/>'
    if len(points) <= DOTS:
        for x, y in points:
            shown = escape(f"{series.name or 'value'}: {number(y)} at {number(x)}")
            place = at(x, y).split(",")
            yield f'<circle class="dot {color}" cx="{place[0]}" cy="{place[1]}" r="2.4"><title>{shown}</title></circle>'


def thinned(points: Points) -> Points:
    """At most `MOST` points: of each stretch the lowest and the highest, in their order, so that no spike is lost."""
    if len(points) <= MOST:
        return points
    size = math.ceil(2 * len(points) / (MOST - 2))
    kept = [points[0]]
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(ends)
    return [*kept, points[-1]]


def _in_words(series: Series) -> str:
    points = series.points
    name = f"{series.name}: " if series.name else ""
    (x, y), (_, last) = points[-1], points[0]
    if len(points) == 1:
        return f"{name}{number(y)} at {number(x)}"
    values = [value for _, value in points]
    return (
        f"{name}{number(last)} at first, {number(y)} at {number(x)}, lowest {number(min(values))}, "
        f"highest {number(max(values))}"
    )
