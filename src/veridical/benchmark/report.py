"""What the measurements say: a table, a page of Markdown, a plot. They are made from the results alone."""

import json
import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from veridical.benchmark.run import OURS, Measured, Result, Row
from veridical.benchmark.supply import RANDOM
from veridical.comparison.charts import log_ticks
from veridical.core.files import atomic_write

COLUMNS = (
    "case", "ours, ms", "fastest peer, ms", "time", "target", "ours, MiB", "leanest peer, MiB", "memory", "target",
    "x roofline", "met",
)  # fmt: skip

PLOT = "performance.svg"


def write(result: Result, folder: Path) -> tuple[Path, Path, Path]:
    """performance.json, performance.md and performance.svg in the folder."""
    paths = folder / "performance.json", folder / "performance.md", folder / PLOT
    texts = json.dumps(result.as_dict(), indent=1) + "\n", markdown(result), plot(result)
    for path, text in zip(paths, texts, strict=True):
        atomic_write(path, text.encode())
    return paths


def sections(result: Result) -> Iterator[tuple[str, list[Row]]]:
    """The losses, then the metrics, as far as there are any: a title with the images' shapes, and the rows."""
    for title, metric in (("Losses, forward and backward to the prediction", False), ("Metrics, no gradient", True)):
        rows = [row for row in result.rows if row.metric == metric]
        if rows:
            shapes = sorted({"x".join(map(str, row.shape)) for row in rows})
            yield f"{title}: {', '.join(shapes)}, float32", rows


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """One line for each case, under COLUMNS. Ratios are ours over the peer's: less is better."""
    return [_line(row) for row in rows]


def _line(row: Row) -> tuple[str, ...]:
    fastest, leanest = row.fastest, row.leanest
    return (
        row.name,
        _ms(row.ours),
        f"{_ms(fastest)} {fastest.name}" if fastest else "-",
        _ratio(row.time_ratio),
        _limit(row.target.time),
        _mib(row.ours.memory.tensors),
        f"{_mib(leanest.memory.tensors)} {leanest.name}" if leanest else "-",
        _ratio(row.memory_ratio),
        _limit(row.target.memory),
        _ratio(row.roofline),
        {True: "yes", False: "NO", None: "-"}[row.met],
    )


def notes(result: Result) -> list[str]:
    """What a reader of the table has to know: what is missing, what differs, which weights were random."""
    out = []
    random = sorted(name for name, origin in result.weights.items() if origin == RANDOM)
    if random:
        out.append(
            f"The weights of {', '.join(random)} are random, of the same shapes, for ours and for the peers: they were "
            "not found here or not wanted. Times do not depend on them."
        )
    out += [f"Peer left out: {name}: {reason}." for name, reason in result.absent.items()]
    out += [f"Not measured: {name}: {reason}." for name, reason in result.skipped.items()]
    for row in result.rows:
        for name, reason in row.missing.items():
            if name not in result.absent:
                out.append(f"{row.name}: {name} could not be run: {reason}.")
        for each in row.contestants[1:]:
            if each.agrees is False:
                said = each.note or "why is not known: left out of the ratios"
                out.append(f"{row.name}: {each.name} gives another value ({_difference(each)}): {said}.")
    return out


def markdown(result: Result) -> str:
    """The page, fit to be kept as it is."""
    machine, rates = result.machine, result.rates
    versions = [f"{name} {version}" for name, version in machine["peers"].items() if name not in result.absent]
    said = (
        f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']} on {machine['device']} with "
        f"{machine['threads']} threads, Python {machine['python']}, {machine['system']}, "
        f"veridical {machine['veridical']}, {machine['date']}."
    )
    lines = [
        "# Performance",
        "",
        "Printed by `veridical bench losses`. Ratios are ours over the best peer's: less is better.",
        "",
        f"![Ratios of time and memory]({PLOT})",
        "",
        f"Machine: {said}",
        "",
        f"At its best it does {rates.matmul / 1e9:.0f} GFLOP/s in a matrix product, {rates.convolution / 1e9:.0f} in a "
        f"3x3 convolution, and copies {rates.bandwidth / 1e9:.1f} GB/s (read and written).",
        "",
        f"Peers: {', '.join(versions)}.",
        "",
    ]
    for title, rows in sections(result):
        lines += [f"## {title}", "", *_grid(COLUMNS, table(rows)), ""]
    lines += [f"- {note}" for note in notes(result)]
    lines += ["", "## Everybody", "", *_grid(_EVERYBODY, [each for row in result.rows for each in _everybody(row)]), ""]
    return "\n".join(lines) + "\n" + METHOD


METHOD = """\
## How it is measured

One process. Each contestant is run once to warm up and to compare its value and gradient with ours, once to measure
its memory, then one call of each in turn. The times are medians (and quartiles) of whole steps, with a new prediction
and a new target each time; nothing is prepared in advance. The peers' weights do not ask for gradients. Random losses
are in evaluation mode, which fixes their draw.

`time` is our median over that of the fastest peer, `memory` our peak over that of the leanest one. Memory is the most
that tensors held beyond the inputs and the weights, from a record of every allocation of torch's; `process` is by how
much the whole process grew, scratch space of libraries included, as Linux tells it (coarser).

The roofline is the time that the multiply-adds of the plain form, forward and backward, would take at the best rate
above, or that its maps' way to memory and back would at the copy's, whichever is longer. Below 1 lies what needs fewer
multiply-adds than the plain form (Winograd) or keeps its maps in a cache.
"""
_EVERYBODY = ("case", "who", "ms", "quartiles", "calls", "MiB", "process, MiB", "value apart", "gradient apart")


def _everybody(row: Row) -> list[tuple[str, ...]]:
    return [
        (
            row.name,
            each.name,
            _ms(each),
            f"{_milliseconds(each.time.low)} to {_milliseconds(each.time.high)}",
            str(each.time.calls),
            _mib(each.memory.tensors),
            _mib(each.memory.process) if each.memory.process is not None else "-",
            "-" if each.name == OURS else _apart(each.value_difference),
            "-" if each.name == OURS else _apart(each.gradient_difference),
        )
        for each in row.contestants
    ]


def _grid(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    align = ["---" if column in ("case", "who") else "---:" for column in columns]
    return [f"| {' | '.join(line)} |" for line in (columns, align, *lines)]


def _ms(each: Measured) -> str:
    return _milliseconds(each.time.median)


def _milliseconds(seconds: float) -> str:
    """Three digits.

    >>> _milliseconds(0.0012345), _milliseconds(1.2345)
    ('1.23', '1234')
    """
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _mib(bytes_: int) -> str:
    value = bytes_ / 2**20
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _limit(value: float | None) -> str:
    return "" if value is None else f"≤ {value:g}"


def _apart(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}"


def _difference(each: Measured) -> str:
    return f"value {_apart(each.value_difference)}, gradient {_apart(each.gradient_difference)} apart, relatively"


# ---- the plot ----

_ROW, _TOP, _LABELS, _PANEL, _GAP = 26, 62, 190, 330, 36
_OURS, _PEER, _TARGET, _INK, _FAINT = "#1f6feb", "#9aa4b2", "#c9510c", "#1b2330", "#d8dee6"


def plot(result: Result) -> str:
    """Two panels of ratios to the best peer, time and memory, on logarithmic axes; less is better. SVG."""
    rows = [row for row in result.rows if row.time_ratio is not None]
    height = _TOP + _ROW * max(1, len(rows)) + 40
    width = _LABELS + 2 * _PANEL + _GAP + 20
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{_INK}">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *_legend(),
    ]
    for number, row in enumerate(rows):
        y = _TOP + _ROW * (number + 0.5)
        out.append(f'<text x="{_LABELS - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(row.name)}</text>')
    panels = (
        ("time, over the fastest peer's", _LABELS, [_times(row) for row in rows]),
        ("memory, over the leanest peer's", _LABELS + _PANEL + _GAP, [_memories(row) for row in rows]),
    )
    for title, left, points in panels:
        out += _panel(title, left, points)
    return "\n".join([*out, "</svg>", ""])


Points = tuple[float | None, list[float], float | None]
"""Of one row: ours, the peers, the target; all relative to the best peer."""


def _times(row: Row) -> Points:
    best = row.fastest.time.median if row.fastest else 1.0
    return row.time_ratio, [each.time.median / best for each in row.peers], row.target.time


def _memories(row: Row) -> Points:
    best = row.leanest.memory.tensors if row.leanest else 0
    return row.memory_ratio, [each.memory.tensors / best for each in row.peers] if best else [], row.target.memory


def _panel(title: str, left: float, rows: Sequence[Points]) -> list[str]:
    every = [v for ours, peers, target in rows for v in (ours, *peers, target) if v] or [1.0]
    low, high = min(0.5, *every) / 1.15, max(2.0, *every) * 1.15
    bottom = _TOP + _ROW * max(1, len(rows))

    def x_of(value: float) -> float:
        return left + _PANEL * math.log(value / low) / math.log(high / low)

    out = [f'<text x="{left}" y="{_TOP - 12}" font-weight="600">{title}</text>']
    for tick in log_ticks(low, high):
        x, weight = x_of(tick), 1.5 if tick == 1 else 1
        colour = _INK if tick == 1 else _FAINT
        out.append(f'<path d="M{x:.1f} {_TOP}V{bottom}" stroke="{colour}" stroke-width="{weight}"/>')
        out.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    for number, (ours, peers, target) in enumerate(rows):
        y = _TOP + _ROW * (number + 0.5)
        out += [f'<circle cx="{x_of(p):.1f}" cy="{y:.1f}" r="4" fill="{_PEER}"/>' for p in peers]
        if target:
            x = x_of(target)
            out.append(f'<path d="M{x:.1f} {y - 9:.1f}V{y + 9:.1f}" stroke="{_TARGET}" stroke-width="2.5"/>')
        if ours:
            out.append(f'<circle cx="{x_of(ours):.1f}" cy="{y:.1f}" r="5.5" fill="{_OURS}"/>')
    return out


def _legend() -> list[str]:
    out, x = [], float(_LABELS)
    for name, mark in (
        ("veridical", f'<circle cx="{{x}}" cy="20" r="5.5" fill="{_OURS}"/>'),
        ("a peer", f'<circle cx="{{x}}" cy="20" r="4" fill="{_PEER}"/>'),
        ("target", f'<path d="M{{x}} 11V29" stroke="{_TARGET}" stroke-width="2.5"/>'),
    ):
        out += [mark.replace("{x}", f"{x:.0f}"), f'<text x="{x + 11:.0f}" y="24">{name}</text>']
        x += 40 + 8 * len(name)
    return [*out, f'<text x="{x:.0f}" y="24">further left is better</text>']
