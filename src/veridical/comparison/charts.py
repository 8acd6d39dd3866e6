"""The geometry of a page's plots: numbers in, pixel coordinates out. The templates draw them as SVG."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from scipy.stats import gaussian_kde

from veridical.comparison.statistics import Interval

COLOURS = 10  # how many series colours report.css defines
FEWEST_FOR_SHAPE = 5  # of fewer values a density would be an invention: they are drawn as dots alone
MOST_DOTS = 60  # with more values than this a violin is drawn without its dots
_SQUEEZED = 3.5  # a row or point that would make the axis this much longer is not drawn
_CHARACTER_PX = 7.2  # mean width of a label's character at the report's 12 px
_LINE_PX = 15.0

_SYMBOLS = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z",  # circle
    "M-4 -4H4V4H-4Z",  # square
    "M0 -5.6L5.6 0L0 5.6L-5.6 0Z",  # diamond
    "M0 -5L5.2 4H-5.2Z",  # triangle
    "M0 5L5.2 -4H-5.2Z",  # triangle pointing down
    "M-1.8 -5H1.8V-1.8H5V1.8H1.8V5H-1.8V1.8H-5V-1.8H-1.8Z",  # plus
    "M-5 -2.4L-2.4 -5L5 2.4L2.4 5Z M-5 2.4L2.4 -5L5 -2.4L-2.4 5Z",  # cross
)


def environment() -> Environment:
    """The templates of every page, which know of series their colours and symbols."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(symbol=symbol, colours=COLOURS)
    return made


def symbol(series: int) -> str:
    """The SVG path of a series' marker, about 10 px wide around the origin.

    Colours repeat after 10 series and symbols after 7, so 70 series can be told apart.
    """
    return _SYMBOLS[series % len(_SYMBOLS)]


@dataclass(frozen=True)
class Tick:
    """One tick: its place along the axis in pixels, and its text."""

    at: float
    text: str


Range = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """One row of a scatter plot in its own units. series: None for the degraded input. x_range, y_range: intervals.
    said: its tooltip."""

    name: str
    series: int | None
    x: float
    y: float
    x_range: Range | None = None
    y_range: Range | None = None
    said: str = ""


@dataclass(frozen=True)
class Mark:
    """One labelled point. anchor: SVG's text-anchor. leader: a line joins the point and its far label. x_arm, y_arm:
    the ends of its cross."""

    name: str
    series: int | None
    x: float
    y: float
    x_arm: Range | None
    y_arm: Range | None
    said: str
    label_x: float
    label_y: float
    anchor: str
    leader: bool


@dataclass(frozen=True)
class Frame:
    """Where the axes of a plot stand, in SVG units."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Scatter(Frame):
    """front: names of the rows that no other beats on both axes, the degraded input not counted; stairs: the SVG path
    that bounds what they beat. off_chart: the degraded input lies too far away to be drawn."""

    marks: tuple[Mark, ...]
    front: tuple[str, ...]
    stairs: str
    off_chart: bool


@dataclass(frozen=True)
class Curve:
    """One training curve as an SVG path; label_y is where its name stands, clear of the others."""

    name: str
    series: int
    path: str
    end_y: float
    label_y: float


@dataclass(frozen=True)
class Curves(Frame):
    curves: tuple[Curve, ...]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers inside [low, high], about `count` of them.

    >>> ticks(0.08, 0.41)
    [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4]
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / raw)))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten inside [low, high]; powers alone when there are many.

    >>> log_ticks(0.08, 1.2)
    [0.1, 0.2, 0.5, 1.0]
    """
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) < 2.2 else (1,)
    inside = [round(m * 10.0**p, 12) for p in powers for m in steps if low <= m * 10.0**p * 1.000001 <= high * 1.00001]
    return inside or [low, high]


def _texts(values: Sequence[float]) -> list[str]:
    """The tick values with as many decimals as tell them apart."""
    for decimals in range(7):
        texts = [f"{v:.{decimals}f}" for v in values]
        if all(math.isclose(float(t), v, rel_tol=1e-9, abs_tol=1e-12) for t, v in zip(texts, values, strict=True)):
            return texts
    return [f"{v:g}" for v in values]


def scatter(points: Sequence[Point], *, x_rises: bool, y_rises: bool, width: int, height: int) -> Scatter:
    """Points with their names beside them; better is always to the right and upwards.

    Args: points: the degraded input among them is drawn only when it does not squeeze the others. x_rises, y_rises:
          whether a higher value is better on that axis.
    """
    trained = [p for p in points if p.series is not None]
    drawn = list(points)
    for everything, ours in (
        ([p.x for p in points], [p.x for p in trained]),
        ([p.y for p in points], [p.y for p in trained]),
    ):
        spread = np.ptp(ours) or abs(ours[0]) * 0.02 or 1.0
        if len(trained) > 1 and np.ptp(everything) > _SQUEEZED * spread:
            drawn = trained
    left, right, top, bottom = 62.0, width - 18.0, 14.0, height - 46.0
    xs = [v for p in drawn for v in (p.x, *(p.x_range or ()))]
    ys = [v for p in drawn for v in (p.y, *(p.y_range or ()))]
    x_of, x_ticks = _scale(xs, left, right, x_rises, 4 if width < 500 else 6)
    y_of, y_ticks = _scale(ys, bottom, top, y_rises, 5)
    at = [(x_of(p.x), y_of(p.y)) for p in drawn]
    x_arms = [_placed(x_of, p.x_range) for p in drawn]
    y_arms = [_placed(y_of, p.y_range) for p in drawn]
    boxes = [(arm[0], y - 2, arm[1], y + 2) for arm, (_, y) in zip(x_arms, at, strict=True) if arm]
    boxes += [(x - 2, arm[0], x + 2, arm[1]) for arm, (x, _) in zip(y_arms, at, strict=True) if arm]
    labels = _place([p.name for p in drawn], at, boxes, (left, top, right, bottom))
    front = _front([(x, -y) if p.series is not None else None for p, (x, y) in zip(drawn, at, strict=True)])
    stairs = ""
    for x, y in (at[i] for i in front):
        stairs += f"V{y:.1f}H{x:.1f}" if stairs else f"M{left:.1f} {y:.1f}H{x:.1f}"
    return Scatter(
        width, height, left, right, top, bottom, x_ticks, y_ticks,
        tuple(
            Mark(p.name, p.series, x, y, x_arm, y_arm, p.said, *label)
            for p, (x, y), x_arm, y_arm, label in zip(drawn, at, x_arms, y_arms, labels, strict=True)
        ),
        front=tuple(drawn[i].name for i in front),
        stairs=stairs + f"V{bottom:.1f}",
        off_chart=len(drawn) < len(points),
    )  # fmt: skip


def _placed(place: Callable[[float], float], ends: Range | None) -> Range | None:
    """The ends of an interval in pixels, the lesser first."""
    if ends is None:
        return None
    a, b = place(ends[0]), place(ends[1])
    return min(a, b), max(a, b)


def _front(points: Sequence[Range | None]) -> list[int]:
    """Indices of the points (more is better on both axes) that no other beats on both, by rising first coordinate."""
    known = [(x, y, i) for i, point in enumerate(points) if point is not None for x, y in (point,)]
    kept = [
        (x, i)
        for x, y, i in known
        if not any(a >= x and b >= y and (a > x or b > y) for a, b, _ in known)
    ]  # fmt: skip
    return [i for _, i in sorted(kept)]


def _scale(values: Sequence[float], start: float, end: float, rises: bool, count: int):
    """value -> pixel from start (worst) to end (best) with a margin of 12 %, and the ticks."""
    low, high = min(values), max(values)
    margin = 0.12 * (high - low) or abs(low) * 0.02 or 1.0
    low, high = low - margin, high + margin
    if not rises:
        start, end = end, start

    def place(value: float) -> float:
        return start + (value - low) / (high - low) * (end - start)

    at = ticks(low, high, count)
    return place, tuple(Tick(place(v), text) for v, text in zip(at, _texts(at), strict=True))


def _place(names, at, boxes, bounds):
    """A place for every name: the nearest spot that touches no marker, none of the boxes and no name already placed."""
    left, top, right, bottom = bounds
    # The last is where the plot says which corner is better.
    fixed = [*((x - 6, y - 6, x + 6, y + 6) for x, y in at), *boxes, (right - 68, top, right, top + 20)]
    taken = np.zeros((len(fixed) + len(names), 4))
    taken[: len(fixed)] = fixed
    placed = {}
    longest_first = sorted(range(len(names)), key=lambda i: -len(names[i]))
    for count, i in enumerate(longest_first, start=len(fixed)):
        x, y = at[i]
        length = len(names[i]) * _CHARACTER_PX
        spots = [
            (x + dx, y + dy, anchor, distance)
            for distance in (0, 14, 28, 44, 62, 82)
            for dx, dy, anchor in (
                (10 + distance / 2, 4, "start"),
                (-10 - distance / 2, 4, "end"),
                (0, -11 - distance, "middle"),
                (0, 19 + distance, "middle"),
                (9 + distance / 2, -7 - distance, "start"),
                (9 + distance / 2, 15 + distance, "start"),
                (-9 - distance / 2, -7 - distance, "end"),
                (-9 - distance / 2, 15 + distance, "end"),
            )
        ]
        starts = [spot[0] - {"start": 0, "middle": length / 2, "end": length}[spot[2]] for spot in spots]
        candidates = np.array(
            [(start, spot[1] - 11, start + length, spot[1] + 4) for start, spot in zip(starts, spots, strict=True)]
        )
        outside = (np.array([left, top]) - candidates[:, :2]).clip(min=0).sum(axis=1)
        outside += (candidates[:, 2:] - np.array([right, bottom])).clip(min=0).sum(axis=1)
        far = 2 * np.array([spot[3] for spot in spots])
        best = int(np.argmin(_overlaps(candidates, taken[:count]).sum(axis=1) + 40 * outside + far))
        taken[count] = candidates[best]
        x, y, anchor, distance = spots[best]
        placed[i] = (x, y, anchor, distance > 0)
    return [placed[i] for i in range(len(names))]


def _overlaps(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The area that each of (N, 4) boxes (left, top, right, bottom) shares with each of (M, 4): (N, M)."""
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    return (high - low).clip(min=0).prod(axis=2)


@dataclass(frozen=True)
class Distribution:
    """One row of a violin plot in its own units. values: (n,), one per image."""

    name: str
    series: int | None
    values: np.ndarray
    mean: Interval
    worst: Interval


@dataclass(frozen=True)
class Violin:
    """One row in pixels. y: its middle. shape, dots: SVG paths, or "". beyond: the row lies off the axis, and only its
    name is drawn. mean_range, worst_range: None for a single image."""

    name: str
    series: int | None
    y: float
    label_x: float
    label_y: float
    beyond: bool = False
    shape: str = ""
    dots: str = ""
    mean: float = 0.0
    mean_range: Range | None = None
    worst: float = 0.0
    worst_range: Range | None = None


@dataclass(frozen=True)
class Violins(Frame):
    violins: tuple[Violin, ...]


def density(values: np.ndarray, at: np.ndarray, low: float = -math.inf, high: float = math.inf) -> np.ndarray:
    """A Gaussian kernel density (Scott's bandwidth) of values that cannot lie outside [low, high].

    What a kernel would spread beyond a bound is reflected at it: no mass is lost, and none is where no value can be.

    Shapes: values (n,), n >= 2 and not all alike; at (m,) -> (m,), 0 outside the bounds.
    """
    kernel = gaussian_kde(values)
    total = kernel(at)
    for bound in (low, high):
        if math.isfinite(bound):
            total = total + kernel(2 * bound - at)
    return np.where((at >= low) & (at <= high), total, 0.0)


_HALF_PX = 13.0  # of a violin, at its widest


def violins(
    rows: Sequence[Distribution], *, rises: bool, bounds: Range = (-math.inf, math.inf), width: int, points: int = 44
) -> Violins:
    """One violin per row on a common axis, better always to the right: its density, the mean and the worst 5 % with
    their intervals, and with few values a dot for each below it.

    Each shape is as high as the next and ends where its values end. A row that would squeeze all others into a corner
    is named, not drawn.

    Args: rises: whether higher is better. bounds: between which values of this metric can lie. width: below 500 the
          names stand above the rows instead of left of them.
    """
    above = width < 500
    pitch = 64.0 if above else 46.0
    room = 12.0 if above else max(len(row.name) for row in rows) * _CHARACTER_PX + 34
    left, right, top = room, width - 16.0, 26.0
    bottom = top + pitch * len(rows)
    shown = _together(rows)
    x_of, x_ticks = _scale([v for i in shown for v in _extent(rows[i])], left, right, rises, 4 if above else 6)
    drawn = []
    for i, row in enumerate(rows):
        y = top + pitch * (i + 0.5) + (7.0 if above else -4.0)
        label = (left + 18, y - _HALF_PX - 8) if above else (left - 14, y + 4)
        if i not in shown:
            drawn.append(Violin(row.name, row.series, y, *label, beyond=True))
            continue
        values = np.sort(row.values)
        shape = ""
        if len(values) >= FEWEST_FOR_SHAPE and values[-1] > values[0]:
            # A value outside what its metric promises is drawn all the same.
            low = bounds[0] if bounds[0] <= values[0] else -math.inf
            high = bounds[1] if bounds[1] >= values[-1] else math.inf
            at = np.linspace(values[0], values[-1], points)
            heights = density(values, at, low, high)
            heights *= _HALF_PX / heights.max()
            xs = [x_of(float(v)) for v in at]
            edge = [f"{x:.1f} {y - h:.1f}" for x, h in zip(xs, heights, strict=True)]
            edge += [f"{x:.1f} {y + h:.1f}" for x, h in zip(xs[::-1], heights[::-1], strict=True)]
            shape = "M" + "L".join(edge) + "Z"
        under = y + _HALF_PX + 6
        dots = "".join(f"M{x_of(float(v)):.1f} {under:.1f}h0" for v in values) if len(values) <= MOST_DOTS else ""
        drawn.append(
            Violin(
                row.name, row.series, y, *label, False, shape, dots,
                x_of(row.mean.value), _placed(x_of, range_of(row.mean)),
                x_of(row.worst.value), _placed(x_of, range_of(row.worst)),
            )
        )  # fmt: skip
    return Violins(width, round(bottom + 44), left, right, top, bottom, x_ticks, (), tuple(drawn))


def range_of(interval: Interval | None) -> Range | None:
    """The two ends of an interval, if it has them."""
    if interval is None or interval.low is None or interval.high is None:
        return None
    return interval.low, interval.high


def bounds_of(text: str) -> Range:
    """The least and the largest value of a metric from a description such as "[-1, 1]" or "[0, inf)"; else none.

    >>> bounds_of("[0, inf)"), bounds_of("about 0 to 100")
    ((0.0, inf), (-inf, inf))
    """
    found = re.fullmatch(r"[\[(]\s*(-?(?:inf|[\d.]+))\s*,\s*(-?(?:inf|[\d.]+))\s*[\])]", text.strip())
    return (float(found[1]), float(found[2])) if found else (-math.inf, math.inf)


def _extent(row: Distribution) -> Range:
    every = [*row.values.tolist(), *(range_of(row.mean) or ()), *(range_of(row.worst) or ())]
    return min(every), max(every)


def _together(rows: Sequence[Distribution]) -> set[int]:
    """Which rows share the axis: the degraded input, then a minority of the others, is dropped while that makes the
    axis much shorter."""
    ends = {i: _extent(row) for i, row in enumerate(rows)}
    trained = {i for i, row in enumerate(rows) if row.series is not None}
    kept = set(ends)

    def length(some: set[int]) -> float:
        return max(ends[i][1] for i in some) - min(ends[i][0] for i in some)

    while True:
        spare = kept if len(kept & trained) > max(2, len(trained) / 2) else kept - trained
        without = {i: length(kept - {i}) for i in spare if len(kept) > 1}
        out = min(without, key=lambda i: without[i], default=-1)
        if out < 0 or not 0 < _SQUEEZED * without[out] < length(kept):
            return kept
        kept = kept - {out}


def relative(steps: np.ndarray, totals: np.ndarray, points: int = 80) -> tuple[np.ndarray, np.ndarray] | None:
    """A training curve over its first value, thinned to the geometric mean of each of `points` stretches.

    Values that are not positive have no place on a logarithmic axis and are dropped; None when the first is
    not positive or fewer than two points are left.
    """
    if not len(totals) or not 0 < totals[0] < math.inf:
        return None
    good = np.isfinite(totals) & (totals > 0)
    steps, values = steps[good], totals[good] / totals[0]
    if len(values) < 2:
        return None
    parts = np.array_split(np.arange(len(values)), min(points, len(values)))
    at = np.array([steps[part].mean() for part in parts])
    at[0], at[-1] = steps[0], steps[-1]  # the axis begins and ends where the training did
    return (
        at,
        np.array([math.exp(np.log(values[part]).mean()) for part in parts]),
    )


def curves(
    lines: Sequence[tuple[str, int, np.ndarray, np.ndarray]], *, width: int, height: int, labels: bool
) -> Curves:
    """Curves on a logarithmic axis. lines: one or more (name, series, steps, positive values). labels: name each
    end."""
    room = max(len(name) for name, *_ in lines) * _CHARACTER_PX + 20 if labels else 14.0
    low = min(float(v.min()) for *_, v in lines) / 1.1
    high = max(float(v.max()) for *_, v in lines) * 1.1
    values_at = log_ticks(low, high)
    left = max(52.0, 24 + max(len(f"{v:g}") for v in values_at) * _CHARACTER_PX)
    right, top, bottom = width - min(room, 0.34 * width), 14.0, height - 46.0
    last = max(float(s.max()) for _, _, s, _ in lines)

    def x_of(step: float) -> float:
        return left + step / last * (right - left)

    def y_of(value: float) -> float:
        return bottom - math.log(value / low) / math.log(high / low) * (bottom - top)

    ends = [y_of(float(v[-1])) for *_, v in lines]
    label_ys = _spread(ends, top + 4, bottom)
    drawn = [
        Curve(
            name=name,
            series=series,
            path="M" + "L".join(f"{x_of(s):.1f} {y_of(v):.1f}" for s, v in zip(steps, values, strict=True)),
            end_y=end,
            label_y=label_y,
        )
        for (name, series, steps, values), end, label_y in zip(lines, ends, label_ys, strict=True)
    ]  # fmt: skip
    steps_at = ticks(0, last, 3 if width < 500 else 6)
    return Curves(
        width, height, left, right, top, bottom,
        tuple(Tick(x_of(s), f"{s:,.0f}") for s in steps_at),
        tuple(Tick(y_of(v), f"{v:g}") for v in values_at),
        tuple(drawn),
    )  # fmt: skip


def lines(
    drawn: Sequence[tuple[str, int, Sequence[float], Sequence[float]]],
    *,
    width: int,
    height: int,
    labels: bool = False,
    from_zero: bool = False,
) -> Curves:
    """Curves on plain axes, as wide as the values. drawn: one or more (name, series, xs, ys). labels: name each end.
    from_zero: the vertical axis reaches to 0."""
    room = max(len(name) for name, *_ in drawn) * _CHARACTER_PX + 20 if labels else 10.0
    left, right, top, bottom = 48.0, width - min(room, 0.34 * width), 12.0, height - 44.0
    xs = [x for _, _, each, _ in drawn for x in each]
    ys = [y for *_, each in drawn for y in each] + [0.0] * from_zero
    low, high = min(ys), max(ys)
    margin = 0.04 * (high - low) or abs(low) * 0.02 or 1.0
    low, high = low - margin * (low < 0 or not from_zero), high + margin
    first, last = min(xs), max(xs)

    def x_of(x: float) -> float:
        return left + (x - first) / ((last - first) or 1.0) * (right - left)

    def y_of(y: float) -> float:
        return bottom - (y - low) / (high - low) * (bottom - top)

    ends = [y_of(ys[-1]) for *_, ys in drawn]
    label_ys = _spread(ends, top + 4, bottom)
    made = tuple(
        Curve(
            name, series, "M" + "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in zip(xs, ys, strict=True)), end, at
        )
        for (name, series, xs, ys), end, at in zip(drawn, ends, label_ys, strict=True)
    )
    x_at, y_at = ticks(first, last, 3 if width < 500 else 6), ticks(low, high, 4 if height < 300 else 6)
    return Curves(
        width, height, left, right, top, bottom,
        tuple(Tick(x_of(x), text) for x, text in zip(x_at, _texts(x_at), strict=True)),
        tuple(Tick(y_of(y), text) for y, text in zip(y_at, _texts(y_at), strict=True)),
        made,
    )  # fmt: skip


@dataclass(frozen=True)
class Dot:
    """One point without a label of its own; said: its tooltip."""

    x: float
    y: float
    said: str


@dataclass(frozen=True)
class Dots(Frame):
    dots: tuple[Dot, ...]
    best: int


def dots(points: Sequence[tuple[float, float, str]], *, best: int, width: int, height: int) -> Dots:
    """Points (x, y, tooltip), x on a logarithmic axis and positive. best: which of them is pointed out."""
    left, right, top, bottom = 58.0, width - 14.0, 14.0, height - 46.0
    xs = [math.log10(x) for x, _, _ in points]
    margin = 0.08 * (max(xs) - min(xs)) or 0.1
    low, high = min(xs) - margin, max(xs) + margin
    y_of, y_ticks = _scale([y for _, y, _ in points], bottom, top, True, 5)

    def x_of(x: float) -> float:
        return left + (x - low) / (high - low) * (right - left)

    x_ticks = tuple(Tick(x_of(math.log10(v)), f"{v:g}") for v in log_ticks(10**low, 10**high))
    drawn = tuple(Dot(x_of(x), y_of(y), said) for x, (_, y, said) in zip(xs, points, strict=True))
    return Dots(width, height, left, right, top, bottom, x_ticks, y_ticks, drawn, best)


def _spread(ys: Sequence[float], top: float, bottom: float) -> list[float]:
    """The nearest places to ys, at least one line apart and inside [top, bottom] while they fit there."""
    order = sorted(range(len(ys)), key=lambda i: ys[i])
    gap = min(_LINE_PX, (bottom - top) / max(1, len(ys) - 1)) if len(ys) > 1 else _LINE_PX
    placed = [0.0] * len(ys)
    previous = top - gap
    for i in order:
        previous = placed[i] = max(ys[i], previous + gap)
    limit = bottom
    for i in reversed(order):
        limit = placed[i] = min(placed[i], limit)
        limit -= gap
    return placed
