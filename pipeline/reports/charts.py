"""Charts of a report as inline SVG: Pareto picture, training curves, the interval of a check. Strings, no library.

Colours are CSS classes, so that one drawing serves the light and the dark scheme. Text is escaped here. Each chart
takes its width in CSS pixels and is drawn at that size, so that letters stay readable on a phone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from pipeline.quantities import show

Box = tuple[float, float, float, float]  # left, top, right, bottom in px
LETTER = 6.7  # px a character at the charts' 12 px font, on the safe side


@dataclass(frozen=True, kw_only=True)
class Point:
    """A subject in the Pareto picture: latency in ms, the task's metric (accuracy as a fraction); `kind` is a CSS
    class."""

    label: str
    x: float
    y: float
    kind: str
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve: y over x; `kind` is a CSS class."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    kind: str


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values in [low, high], about `count` of them, on steps of 1, 2 or 5."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    base = 10 ** math.floor(math.log10(raw))
    step = next(base * m for m in (1, 2, 5, 10) if base * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in [low, high]."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    return [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points that no other one beats in both speed and accuracy, fastest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not kept or point.y > kept[-1].y:
            kept.append(point)
    return kept


def _svg(width: float, height: float, title: str, body: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(body)}</svg>'
    )


def _text(x: float, y: float, text: str, css: str = "tick", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{escape(text)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def pareto(
    points: Sequence[Point],
    *,
    width: int,
    height: int,
    everyone: bool = True,
    axis: str = "top-1 accuracy, %",
    unit: str = "fraction",
) -> str:
    """Accuracy over latency (logarithmic); up and left is better. Empty when no point has both.

    `everyone=False` names only the chosen one, the frontier and the trained subjects: for small screens. `axis` names
    another metric, whose values are in `unit`.
    """
    factor, most, least_pad = (100.0, 1.0, 0.004) if unit == "fraction" else (1.0, math.inf, 0.02)
    points = [p for p in points if p.x > 0 and math.isfinite(p.x) and math.isfinite(p.y)]
    if not points:
        return ""
    left, right, top, bottom = 48, width - 14, 26, height - 40
    low_x, high_x = math.log10(min(p.x for p in points)) - 0.14, math.log10(max(p.x for p in points)) + 0.14
    low, high = min(p.y for p in points), max(p.y for p in points)
    pad = max(least_pad, 0.14 * (high - low))
    low, high = low - pad, min(most + pad / 4, high + pad)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (math.log10(x) - low_x) / (high_x - low_x) * (right - left),
            bottom - (y - low) / (high - low) * (bottom - top),
        )

    body = []
    for value in ticks(factor * low, factor * min(most, high), 5):
        y = at(1, value / factor)[1]
        body += [_rule(left, y, right, y, "grid"), _text(left - 8, y + 4, f"{value:g}", anchor="end")]
    marks = log_ticks(10**low_x, 10**high_x)
    for value in marks if len(marks) <= width / 46 else [m for m in marks if f"{m:e}"[0] == "1"] or marks[:1]:
        x = at(value, low)[0]
        body += [_rule(x, top, x, bottom, "grid"), _text(x, bottom + 17, f"{value:g}", anchor="middle")]
    body.append(_text(left - 40, 12, axis, "axis"))
    body.append(_text(right, height - 5, "median latency, ms (logarithmic) \u2190 faster", "axis", "end"))
    best = [at(p.x, p.y) for p in frontier(points)]
    steps = " ".join(
        f"{'M' if i == 0 else 'L'}{x:.1f} {y:.1f}"
        for i, (x, y) in enumerate(
            [best[0], *(step for a, b in itertools.pairwise(best) for step in ((b[0], a[1]), b))]
        )
    )
    body.append(f'<path d="{steps} L{right:.1f} {best[-1][1]:.1f}" class="frontier"/>')
    placed = [(*at(p.x, p.y), p) for p in points]
    best_names = {id(p) for p in frontier(points)}
    named = [(x, y, p) for x, y, p in placed if everyone or p.chosen or id(p) in best_names or "@" not in p.label]
    labels, dots = _labels(named, (left, top, right, bottom)), []
    for x, y, point in placed:
        ring = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="10.5" class="ring"/>' if point.chosen else ""
        tip = escape(f"{point.label}: {show(point.y, unit)}, {show(point.x, 'ms')}")
        dots.append(
            f'{ring}<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" class="dot {point.kind}"><title>{tip}</title></circle>'
        )
    what = "Accuracy" if unit == "fraction" else axis
    return _svg(width, height, f"{what} over median latency; up and left is better", body + labels + dots)


def _labels(placed: list[tuple[float, float, Point]], frame: Box) -> list[str]:
    """Names beside their points without overlap, each nearest to its own point; a thin leader where that cannot be."""
    taken: list[Box] = []
    for x, y, point in placed:
        r = 13 if point.chosen else 7
        taken.append((x - r, y - r, x + r, y + r))
    out = []
    for x, y, point in sorted(placed, key=lambda item: (not item[2].chosen, item[2].kind != "teacher")):
        wide = LETTER * len(point.label) * (1.06 if point.chosen else 1.0)
        best: tuple[float, Box, bool] | None = None
        for radius in (0, 20, 34, 50, 68, 88):
            for dx, dy in _ways(radius, wide, 16 if point.chosen else 12):
                box = (x + dx, y + dy - 8, x + dx + wide, y + dy + 8)
                inside = frame[0] <= box[0] and box[2] <= frame[2] and frame[1] - 6 <= box[1] and box[3] <= frame[3]
                if not inside or any(_overlap(box, other) for other in taken):
                    continue
                own = _distance(box, x, y)
                led = own > 22 or any(_distance(box, a, b) < own + 6 for a, b, other in placed if other is not point)
                cost = own + (40 if led else 0)
                if best is None or cost < best[0]:
                    best = (cost, box, led)
        if best is None:
            continue
        _, box, led = best
        taken.append(box)
        if led:
            out.append(_rule(x, y, min(max(x, box[0]), box[2]), box[3] - 3 if box[3] <= y else box[1] + 3, "leader"))
        out.append(_text(box[0], box[1] + 12, point.label, "name strong" if point.chosen else "name"))
    return out


def _ways(radius: int, wide: float, gap: int) -> list[tuple[float, float]]:
    """Offsets of a label's left middle from its point, at a vertical distance of `radius`."""
    sides = [gap, -gap - wide] if radius == 0 else [-wide / 2, -8.0, 8 - wide, gap, -gap - wide]
    return [(dx, dy) for dx in sides for dy in ((-radius, radius) if radius else (0,))]


def _distance(box: Box, x: float, y: float) -> float:
    return math.hypot(max(box[0] - x, 0, x - box[2]), max(box[1] - y, 0, y - box[3]))


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def curves(
    lines: Sequence[Line], *, width: int, height: int, title: str, percent: bool = False, factor: float = 100.0
) -> str:
    """Lines over epochs, each named at its end. Values that are not finite break no chart: they are left out.

    percent: a score, of which the last percents matter, shown times `factor`; else a loss, which ends near 0.
    """
    shown = []
    for line in lines:
        pairs = [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
        if pairs:
            shown.append((line, pairs))
    if not shown:
        return ""
    longest = max(len(line.label) for line, _ in shown)
    left, right, top, bottom = 40, width - 14 - LETTER * longest, 28, height - 34
    xs = [x for _, pairs in shown for x, _ in pairs]
    ys = sorted(y for _, pairs in shown for _, y in pairs)
    # a start that is far off must not press the rest of the picture flat
    low = ys[len(ys) // 40] if percent else min(0.0, ys[0])
    most = ys[int(0.9 * (len(ys) - 1))]
    high = ys[-1] if percent or ys[-1] <= 3 * most else 3 * most
    span = (high - low) or abs(high) or 1.0
    low, high = (low - 0.06 * span, high + 0.06 * span) if percent else (low, high + 0.06 * span)
    first, last = min(xs), max(*xs, min(xs) + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        share = (min(max(y, low), high) - low) / (high - low)
        return left + (x - first) / (last - first) * (right - left), bottom - share * (bottom - top)

    body = [_text(left - 34, 13, title, "axis")]
    for value in ticks(low, high, 4):
        y = at(first, value)[1]
        text = f"{factor * value:g}" if percent else f"{value:g}"
        body += [_rule(left, y, right, y, "grid"), _text(left - 7, y + 4, text, anchor="end")]
    for value in [v for v in ticks(first, last, 5) if v == int(v)]:
        body.append(_text(at(value, low)[0], bottom + 16, f"{value:g}", anchor="middle"))
    body.append(_text(right, height - 4, "epoch", "axis", "end"))
    ends = []
    for line, pairs in shown:
        spots = [at(x, y) for x, y in pairs]
        path = " ".join(f"{'M' if i == 0 else 'L'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(spots))
        body.append(f'<path d="{path}" class="line {line.kind}"/>')
        if len(spots) == 1:
            body.append(f'<circle cx="{spots[0][0]:.1f}" cy="{spots[0][1]:.1f}" r="3.5" class="dot {line.kind}"/>')
        ends.append([spots[-1][1], line])
    ends.sort(key=lambda end: end[0])
    for above, below in itertools.pairwise(ends):
        below[0] = max(below[0], above[0] + 15)
    body += [_text(right + 6, y + 4, line.label, f"name ink-{line.kind}") for y, line in ends]
    return _svg(width, height, f"{title} over epochs", body)


def interval(
    value: float | None,
    lower: float | None,
    upper: float | None,
    limit: float,
    *,
    direction: str,
    unit: str,
    outcome: str,
) -> str:
    """One check as a picture: the 99 % interval against its limit, the forbidden side shaded. 240 by 44 px."""
    width, height, left, right, middle = 240, 44, 6, 234, 17
    numbers = [x for x in (value, lower, upper) if x is not None and math.isfinite(x)]
    if value is None or len(numbers) < 3 or lower is None or upper is None:
        return ""
    low, high = min([*numbers, limit]), max([*numbers, limit])
    # a limit far away would squeeze the interval to a dot, which is then the honest picture; zero is kept when near
    pad = 0.18 * ((high - low) or abs(high) or 1.0)
    low, high = low - pad, high + pad

    def at(x: float) -> float:
        return left + (x - low) / (high - low) * (right - left)

    wide = max(2.0, at(upper) - at(lower))
    start, end = (at(limit), right) if direction == "max" else (left, at(limit))
    body = [
        f'<rect x="{start:.1f}" y="{middle - 11}" width="{max(0.0, end - start):.1f}" height="22" class="forbidden"/>',
        _rule(left, middle, right, middle, "grid"),
        _rule(at(limit), middle - 13, at(limit), middle + 13, "limit"),
        f'<rect x="{at(lower):.1f}" y="{middle - 4}" width="{wide:.1f}" height="8" rx="4" class="span {outcome}"/>',
        f'<circle cx="{at(value):.1f}" cy="{middle}" r="4.5" class="mark {outcome}"/>',
    ]
    text = f"limit {show(limit, unit)}"
    half = LETTER * len(text) / 2
    body.append(_text(min(max(at(limit), left + half), right - half), height - 2, text, anchor="middle"))
    return _svg(width, height, f"{show(value, unit)} against a limit of {show(limit, unit)}", body)
