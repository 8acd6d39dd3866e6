"""A scale -> its folder: tables as CSV, scale.json, scale.svg, and scale.html, one file that needs nothing else."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import ChoiceLoader, Environment, FileSystemLoader

from veridical import __version__
from veridical.comparison import charts
from veridical.comparison.statistics import LEVEL
from veridical.comparison.wording import count, join, p_text
from veridical.core.files import atomic_write
from veridical.study.scaling import Difference, Scale, share

MOST_RATERS = 40
"""The page lists as many raters; raters.csv has them all."""

_MOST_ROWS = 20  # unusable rows on the page
_CHARACTER_PX = 7.2
_WIDE, _NARROW = 760, 350


@dataclass(frozen=True)
class Claims:
    """The sentences of the first screen."""

    supported: tuple[str, ...]
    unsupported: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One method in pixels: its point, its interval, and where its name ends (or, above its row, begins)."""

    name: str
    y: float
    at: float
    low: float
    high: float
    label_x: float
    label_y: float
    said: str


@dataclass(frozen=True)
class Chart(charts.Frame):
    """shares: the ticks above, in words of preference over a method at 0. zero: where 0 is."""

    rows: tuple[Row, ...]
    shares: tuple[charts.Tick, ...]
    zero: float
    above: bool


def chart(scale: Scale, width: int) -> Chart:
    """Every method's place and interval on an axis in JND, the best on top; names stand above narrow rows."""
    above = width < 500
    pitch = 44.0 if above else 31.0
    left = 14.0 if above else max(len(each.method) for each in scale.placed) * _CHARACTER_PX + 22
    right, top = width - 18.0, 44.0
    bottom = top + pitch * len(scale.placed) + 6
    low, high = min(0.0, *(each.low for each in scale.placed)), max(0.0, *(each.high for each in scale.placed))
    margin = 0.04 * (high - low) or 1.0
    low, high = low - margin, high + margin

    def place(jnd: float) -> float:
        return left + (jnd - low) / (high - low) * (right - left)

    ticks = charts.ticks(low, high, 4 if above else 8)
    rows = []
    for k, each in enumerate(scale.placed):
        y = top + pitch * (k + 0.5) + (11 if above else 2)
        label = (left + 7, y - 12) if above else (left - 12, y + 4)
        said = f"{each.method}: {_jnd(each.jnd)} JND, 95 % interval {_jnd(each.low)} to {_jnd(each.high)}"
        rows.append(Row(each.method, y, place(each.jnd), place(each.low), place(each.high), *label, said))
    return Chart(
        width, round(bottom + 44), left, right, top, bottom,
        tuple(charts.Tick(place(v), f"{v:g}".replace("-", "−")) for v in ticks), (),
        rows=tuple(rows),
        shares=tuple(charts.Tick(place(v), f"{100 * share(v):.0f} %") for v in ticks),
        zero=place(0.0),
        above=above,
    )  # fmt: skip


def lead(scale: Scale) -> str:
    """Who is first, and by how much: in the words of votes."""
    first, second, last = scale.placed[0], scale.placed[1], scale.placed[-1]
    said = (
        f"{first.method} is preferred most. By the scale {_share(first.jnd - second.jnd)} of people prefer it to "
        f"{second.method}, the next ({_jnd(first.jnd - second.jnd)} JND)"
    )
    if len(scale.placed) > 2:
        said += f", and {_share(first.jnd - last.jnd)} to {last.method}, the last ({_jnd(first.jnd - last.jnd)} JND)"
    return said + ". A difference of 1 JND is one that 75 % see."


def claims(scale: Scale) -> Claims:
    """Which differences the votes support and which they do not: of the first, of the last, and of all."""
    yes = [each for each in scale.differences if each.supported]
    shown: list[str] = []
    not_shown: list[str] = []
    ends = [("better", scale.placed[0].method, "is preferred to", "over")]
    if len(scale.placed) > 2:
        ends.append(("worse", scale.placed[-1].method, "is preferred less than", "below"))
    for side, name, verb, word in ends:
        mine = [each for each in scale.differences if getattr(each, side) == name]
        for supported, found in ((True, shown), (False, not_shown)):
            some = [each for each in mine if each.supported is supported]
            if some:
                others = [each.worse if side == "better" else each.better for each in some]
                whom = _whom(others, len(mine))
                text = f"{name} {verb} {whom}" if supported else f"{name} {word} {whom}"
                found.append(f"{text} ({_ps(some, supported)}).")
    total = len(scale.differences)
    if total > 1:
        if yes:
            shown.append(f"{len(yes)} of {total} differences in all.")
        if len(yes) < total:
            not_shown.append(f"{total - len(yes)} of {total} differences in all.")
    return Claims(tuple(shown), tuple(not_shown))


def basis(scale: Scale) -> str:
    """What stands behind the claims."""
    resampled = f"{count(scale.units, str(scale.unit))} resampled {scale.settings.draws:,} times"
    return (
        f"{count(scale.votes, 'vote')}, {resampled}; p < {LEVEL:g} by a two-sided z-test of the "
        f"difference, Holm-corrected over {count(len(scale.differences), 'difference')}"
    )


def verdict(scale: Scale) -> str:
    """Lead and claims as lines of plain text."""
    found = claims(scale)
    lines = [lead(scale)]
    if found.supported:
        lines += [f"Supported ({basis(scale)}):", *(f"- {claim}" for claim in found.supported)]
    if found.unsupported:
        lines += ["Not supported:", *(f"- {claim}" for claim in found.unsupported)]
    return "\n".join([*lines, *scale.notes])


def tied(scale: Scale, method: str) -> list[str]:
    """The methods that the votes cannot tell from this one, the best first."""
    found = {
        other
        for each in scale.differences
        if not each.supported and method in (each.better, each.worse)
        for other in (each.better, each.worse)
    }
    return [name for name in scale.methods if name in found and name != method]


def write(scale: Scale, out: Path, *, source: str, command: str) -> Path:
    """Write all files of a scale into the folder `out`; returns the path of scale.html.

    Files: scale.csv (method, jnd, low, high, votes), preferences.csv (share of times row over column), wins.csv (the
    same as counts), differences.csv, raters.csv and bad_rows.csv where there are any, scale.json, scale.svg and
    scale.html.
    Args:   source: what was scaled, as the page names it. command: how to make it again.
    Errors: OSError with its path when the disk refuses.
    """
    tables = _tables(scale)
    for name, table in tables.items():
        text = table.write_csv(float_precision=6)
        atomic_write(out / f"{name}.csv", text.encode("utf-8"))
    for name in {"raters", "bad_rows"} - tables.keys():
        (out / f"{name}.csv").unlink(missing_ok=True)  # of an earlier scale in this folder
    about = {
        "version": __version__,
        "source": source,
        "command": command,
        "settings": asdict(scale.settings),
        "rows": scale.rows,
        "bad_rows": len(scale.bad),
        "votes": scale.votes,
        "images": scale.images,
        "resampled": {"unit": str(scale.unit), "number": scale.units},
        "misfit": scale.misfit,
        "methods": [asdict(each) for each in scale.placed],
        "differences": [{**asdict(each), "supported": each.supported} for each in scale.differences],
        "wins": scale.wins.tolist(),
        "covariance": scale.covariance.tolist(),
        "raters": [asdict(each) for each in scale.raters],
        "notes": list(scale.notes),
    }
    atomic_write(out / "scale.json", (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
    made = environment()
    svg = made.get_template("scale.svg").render(chart=chart(scale, _WIDE))
    atomic_write(out / "scale.svg", "\n".join(filter(str.strip, svg.splitlines())).encode("utf-8"))
    html = made.get_template("scale.html").render(
        scale=scale,
        source=source,
        command=command,
        version=__version__,
        count=count,
        lead=lead(scale),
        claims=claims(scale),
        basis=basis(scale),
        pill=_pill(scale),
        charts=[chart(scale, _WIDE), chart(scale, _NARROW)],
        rows=[_row(scale, k) for k in range(len(scale.placed))],
        differences=[_line(each) for each in scale.differences],
        raters=_raters(scale),
        bad=scale.bad[:_MOST_ROWS],
    )
    path = out / "scale.html"
    atomic_write(path, html.encode("utf-8"))
    return path


def environment() -> Environment:
    """The templates of the comparison's pages, and the study's own."""
    shared = charts.environment()
    own = FileSystemLoader(Path(__file__).parent / "templates")
    return shared.overlay(loader=ChoiceLoader([own, *([shared.loader] if shared.loader else [])]))


def _tables(scale: Scale) -> dict[str, pl.DataFrame]:
    names = list(scale.methods)
    pairs = scale.wins + scale.wins.T
    shares = [
        [float(scale.wins[i, j] / pairs[i, j]) if pairs[i, j] else None for i in range(len(names))]
        for j in range(len(names))
    ]
    tables = {
        "scale": pl.DataFrame([asdict(each) for each in scale.placed]),
        "preferences": pl.DataFrame({"method": names, **_columns(names, shares)}, strict=False),
        "wins": pl.DataFrame({"method": names, **_columns(names, scale.wins.T.tolist())}),
        "differences": pl.DataFrame([{**asdict(each), "supported": each.supported} for each in scale.differences]),
    }
    if scale.raters:
        tables["raters"] = pl.DataFrame([asdict(each) for each in scale.raters], infer_schema_length=None)
    if scale.bad:
        tables["bad_rows"] = pl.DataFrame([asdict(each) for each in scale.bad])
    return tables


def _columns(names: Sequence[str], columns: Sequence[Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Columns by name; a method that is called "method" gets a name of its own."""
    return {name if name != "method" else "method ": column for name, column in zip(names, columns, strict=True)}


def _jnd(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _share(jnd: float) -> str:
    return f"{100 * share(jnd):.0f}\N{NO-BREAK SPACE}%"


def _ps(some: Sequence[Difference], supported: bool) -> str:
    p = (max if supported else min)(each.corrected for each in some)
    text = p_text(p)
    return text if len(some) == 1 or p < 0.001 else text.replace("=", "≤" if supported else "≥")


def _whom(others: Sequence[str], of: int) -> str:
    if len(others) == of and of > 1:
        return f"all {of} others"
    most = len(others) if len(others) <= 4 else 3
    return join([*others[:most], f"{len(others) - most} more"] if len(others) > most else list(others))


def _pill(scale: Scale) -> tuple[str, str]:
    others = tied(scale, scale.placed[0].method)
    if not others:
        return "yes", "ahead of all others"
    return "no", f"not told from {_whom(others, len(scale.placed) - 1)}"


def _row(scale: Scale, k: int) -> dict[str, Any]:
    """One line of the table and of the matrix."""
    each, below = scale.placed[k], scale.placed[k + 1 : k + 2]
    supported = {frozenset((d.better, d.worse)) for d in scale.differences if d.supported}
    cells: list[dict[str, Any] | None] = []
    for j, other in enumerate(scale.methods):
        votes = int(scale.wins[k, j] + scale.wins[j, k])
        if j == k or not votes:
            cells.append(None)
            continue
        part = float(scale.wins[k, j] / votes)
        sure = frozenset((each.method, other)) in supported
        said = f"{each.method} over {other}: {scale.wins[k, j]} of {count(votes, 'vote')}"
        cells.append({"share": part, "text": f"{100 * part:.0f}", "sure": sure, "said": said})
    return {
        "name": each.method,
        "jnd": _jnd(each.jnd),
        "interval": f"{_jnd(each.low)} to {_jnd(each.high)}",
        "next": _share(each.jnd - below[0].jnd) if below else "–",
        "votes": f"{each.votes:,}",
        "tied": ", ".join(tied(scale, each.method)) or "–",
        "cells": cells,
    }


def _line(each: Difference) -> dict[str, Any]:
    return {
        "better": each.better,
        "worse": each.worse,
        "jnd": _jnd(each.jnd),
        "share": _share(each.jnd),
        "votes": f"{each.votes:,}",
        "z": f"{each.z:.2f}",
        "p": p_text(each.corrected).removeprefix("p ").removeprefix("= "),
        "kind": "yes" if each.supported else "no",
        "word": "supported" if each.supported else "not supported",
    }


def _raters(scale: Scale) -> dict[str, Any]:
    """Who was left out or stands out first, then the rest, as far as the page has room."""
    order = sorted(scale.raters, key=lambda r: (r.kept, not r.outlier, r.agreement if r.agreement is not None else 0.0))
    return {
        "all": len(order),
        "dropped": sum(not r.kept for r in order),
        "votes": sum(r.votes for r in order),
        "dropped_votes": sum(r.votes for r in order if not r.kept),
        "outliers": sum(r.outlier for r in order),
        "screened": sum(r.screening > 0 for r in order),
        "shown": [
            {
                "name": r.name,
                "votes": f"{r.votes:,}",
                "screening": f"{r.screening - r.mistakes} of {r.screening}" if r.screening else "–",
                "likelihood": "–" if r.likelihood is None else f"{r.likelihood:.3f}".replace("-", "−"),
                "agreement": "–" if r.agreement is None else f"{r.agreement:+.1f}".replace("-", "−"),
                "kind": "no" if not r.kept or r.outlier else "",
                "word": f"left out: {r.why}" if not r.kept else "stands out, kept" if r.outlier else "kept",
            }
            for r in order[:MOST_RATERS]
        ],
    }
