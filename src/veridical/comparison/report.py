"""A run folder -> one HTML file, a table for the terminal and one sentence: which loss should I use?

Reads files only (recipe.toml, comparison.json, the rows, training.csv and the images), and is called by
nobody but the command. The page opens offline: pictures, style and script are inside it.
"""

import json
import math
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup
from rich.markup import escape as rich_escape
from rich.table import Table
from rich.text import Text

from veridical.comparison import charts, pictures
from veridical.comparison.start import START
from veridical.comparison.statistics import (
    INPUT,
    SCHEMA,
    Analysis,
    Column,
    MetricSummary,
    analyse,
    arrange,
)
from veridical.core.errors import DataError
from veridical.core.files import atomic_write
from veridical.metrics import METRICS

DAGGER = "†"
FEW_IMAGES = 10
_NO_GAIN = "By this score no loss improved on the degraded input: train longer, or check the data."
_NO_FURTHER = "By this score no loss improved on the model that training started from (init)."
_EXPECTED = "Expected a folder written by `veridical compare`, such as runs/x"
_PERCEPTUAL = ("lpips", "ms-ssim", "ssim", "sharpness-q")  # for the plot, the first that was measured


@dataclass(frozen=True)
class Entry:
    """One loss of a run that was evaluated. spec: with the automatic weights that were found. series: its colour and
    symbol, everywhere on the page."""

    name: str
    slug: str
    spec: str
    series: int
    optimises: tuple[str, ...]
    seconds_per_step: float | None

    def optimised(self, column: Column) -> bool:
        """Whether the loss was trained on this very metric."""
        return column.base in self.optimises


@dataclass(frozen=True)
class Run:
    """A run folder, read. about: comparison.json. failed: (loss, reason) of those without a result."""

    folder: Path
    about: dict[str, Any]
    recipe: str
    entries: tuple[Entry, ...]
    failed: tuple[tuple[str, str], ...]
    analysis: Analysis

    def entry(self, name: str) -> Entry:
        return next(e for e in self.entries if e.name == name)

    @property
    def images(self) -> int:
        return len(self.analysis.values.images)


def verdict(run: Run) -> str:
    """Which loss won, by how much, and whether that could be chance: a few plain sentences."""
    lead = _lead(run.analysis, str)
    said = lead if run.analysis.runner_up is None else f"Use {run.analysis.winner}. {lead}"
    return " ".join([said, *_disappointments(run.analysis)])


def table(run: Run, *, bold: bool = True) -> Table:
    """Losses × metrics for the terminal: best value bold, metrics that a loss optimised with a dagger.

    Args:   bold: False marks the best value with a star instead, for a file or a pipe.
    """
    title = Text(f"{_title(run)}: mean over {_count(run.images, 'image')}")
    shown = Table(title=title, title_justify="left", caption_justify="left")
    shown.add_column("loss", overflow="fold", min_width=10)
    shown.add_column("score ↑", justify="right")
    for column in run.analysis.values.columns:
        shown.add_column(Text(_heading(column)), justify="right", min_width=6)
    shown.add_column("s/step", justify="right")
    rows = _rows(run)
    for row in rows:
        name = Text(row["name"], style="dim" if row["entry"] is None else "")
        shown.add_row(name, *(_cell(cell, bold) for cell in (row["score"], *row["cells"])), row["seconds"])
    notes = [f"{'bold' if bold else '*'}: best of the losses"]
    if any(cell["optimised"] for row in rows for cell in row["cells"]):
        notes.append(f"{DAGGER} the loss was trained on this metric")
    notes += [f"{name} failed: {_short(reason)}" for name, reason in run.failed]
    shown.caption = Text("\n".join(notes))  # as Text: a name in brackets is no markup
    return shown


def _cell(cell: dict[str, Any], bold: bool) -> str:
    text = rich_escape(cell["text"] + (DAGGER if cell["optimised"] else ""))
    if not cell["best"]:
        return text
    return f"[bold]{text}[/bold]" if bold else f"*{text}"


def markdown(run: Run) -> str:
    """Losses × metrics as a table of Markdown: each mean with its 95 % interval over the images, the best in bold, and
    an ≈ where the best is not significantly better (paired t-test over images, Holm-corrected)."""
    analysis = run.analysis
    lines = [
        f"| loss | score | {' | '.join(_heading(summary.column) for summary in analysis.metrics)} |",
        f"|---|---|{'---|' * len(analysis.metrics)}",
    ]
    for row in _rows(run):
        name = row["name"] if row["entry"] else INPUT
        cells = []
        for summary in analysis.metrics:
            mean = summary.means[name]
            decimals = _decimals(summary.column, [each.value for each in summary.means.values()])
            text = f"{mean.value:.{decimals}f}"
            text = f"**{text}**" if name == summary.best else f"{text} ≈" if name in summary.tied else text
            if mean.low is not None and mean.high is not None:
                text += f" ({mean.low:.{decimals}f} to {mean.high:.{decimals}f})"
            cells.append(text)
        lines.append(f"| {row['name']} | {row['score']['text']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def read_run(run: Path, *, only: str = "") -> Run:
    """Read and analyse a run folder.

    Args:   only: begins the names of the images that count, such as the folder of one test set: "kodak24/".
    Errors: DataError when the folder is not a run, a file is missing or unreadable, or it holds no values.
    """
    if not run.is_dir():
        raise DataError(f"there is no run folder {run}. {_EXPECTED}.")
    about = _json(run / "comparison.json")
    recipe = _text(run / "recipe.toml")
    rows = _read_rows(run)
    if only:
        kept = rows.filter(pl.col("image").str.starts_with(only))
        if kept.is_empty():
            some = ", ".join(rows["image"].unique(maintain_order=True).head(3))
            raise DataError(f"the run {run} has no images whose names begin with {only!r}; it has {some}, ...")
        rows = kept
    columns = [_column(entry, rows) for entry in about["metrics"]]
    entries, failed = [], []
    present = set(rows["loss"].to_list())
    for i, loss in enumerate(about["losses"]):
        name = str(loss["name"])
        if loss.get("status", "done") != "done" or name not in present:
            failed.append((name, str(loss.get("error") or "it has no values in the rows")))
            continue
        optimises = tuple(str(m).partition("(")[0] for m in loss.get("optimises") or ())
        seconds = loss.get("seconds_per_step")
        entries.append(
            Entry(name, str(loss["slug"]), str(loss.get("fixed_spec") or loss.get("spec", name)), i, optimises, seconds)
        )
    values = arrange(rows, [e.name for e in entries], columns)
    if not (values.trained and values.images and values.columns):
        why = " ".join([*values.left_out, *(f"{name}: {reason}" for name, reason in failed)])
        raise DataError(
            f"the run {run} has no values to compare. Expected rows with at least one loss of comparison.json and "
            f"a finite value for each of its metrics on one image. {why}".rstrip()
        )
    valued = tuple(e for e in entries if e.name in values.losses)
    failed += [(e.name, "no image has a finite value for every metric") for e in entries if e not in valued]
    return Run(run, about, recipe, valued, tuple(failed), analyse(values))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path.parent} has no {path.name}. {_EXPECTED}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}). {_EXPECTED}.") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON ({error}). Was the run interrupted while writing?") from error
    for key in ("losses", "metrics"):
        if not isinstance(about, dict) or not isinstance(about.get(key), list) or not about[key]:
            raise DataError(f"{path} has no list {key!r}, or an empty one. {_EXPECTED}.")
    for key, needed in (("losses", ("name", "slug")), ("metrics", ("name", "higher_is_better"))):
        for item in about[key]:
            lacking = [n for n in needed if not isinstance(item, dict) or n not in item]
            if lacking:
                raise DataError(f"{path}: an entry of {key!r} has no {lacking[0]!r}. {_EXPECTED}.")
    return about


def _read_rows(run: Path) -> pl.DataFrame:
    parquet, csv = run / "rows.parquet", run / "rows.csv"
    try:
        if parquet.is_file():
            rows = pl.read_parquet(parquet)
        elif csv.is_file():
            # Without the types a photograph called 001 would be read as the number 1.
            rows = pl.read_csv(csv, schema_overrides=SCHEMA)
        else:
            raise DataError(f"{run} has neither rows.parquet nor rows.csv. {_EXPECTED}, evaluated to the end.")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"the rows of {run} cannot be read ({error}). Evaluate the run again.") from error
    missing = [c for c in SCHEMA if c not in rows.columns]
    if missing:
        raise DataError(
            f"the rows of {run} lack the column {missing[0]!r}. Expected {', '.join(SCHEMA)}; "
            f"found {', '.join(rows.columns)}."
        )
    if rows.is_empty():
        raise DataError(f"the rows of {run} are empty. Expected one row per image, loss and metric.")
    return rows.select([pl.col(c).cast(t) for c, t in SCHEMA.items()])


def _column(metric: dict[str, Any], rows: pl.DataFrame) -> Column:
    """A metric of comparison.json; the rows call it by its label (with its options) or by its name."""
    name, label = str(metric["name"]), str(metric.get("label") or metric["name"])
    key = label if label in set(rows["metric"].to_list()) else name
    base, bracket, options = (part.strip() for part in label.partition("("))
    return Column(
        name=key,
        label=(METRICS[base].label if base in METRICS else base) + (f" ({options}" if bracket else ""),
        higher_is_better=bool(metric["higher_is_better"]),
        unit=str(metric.get("unit") or ""),
        reference=bool(metric.get("reference", True)),
    )


# Words


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _p(p: float) -> str:
    if p < 0.001:
        return "p < 0.001"
    decimals = 4 if 0.0495 <= p < 0.0505 else 3 if p < 0.1 else 2  # never a "significant, p = 0.050"
    return f"p = {p:.{decimals}f}"


def _heading(column: Column) -> str:
    unit = f" {column.unit}" if column.unit else ""
    return f"{column.label}{unit} {'↑' if column.higher_is_better else '↓'}"


def _decimals(column: Column, values: Sequence[float]) -> int:
    if column.unit == "dB":
        return 2
    return 4 if max(map(abs, values)) < 0.1 else 3


def _lead(analysis: Analysis, name: Callable[[str], str]) -> str:
    """The winner's margin and whether it is significant. name: how a loss is written (escaped for HTML)."""
    winner, n = name(analysis.winner), len(analysis.values.images)
    score = f"{analysis.scores[analysis.winner]:.3f}"
    if analysis.runner_up is None:
        return f"{winner} is the only loss with a result, so there was nothing to compare it with."
    second = f"{analysis.scores[analysis.runner_up]:.3f}"
    # Of the printed scores, so that the reader's own subtraction agrees.
    margin = f"{float(score) - float(second):.3f}" if score != second else "less than 0.001"
    said = (
        f"{winner} has the highest aggregate score, {score}; next is {name(analysis.runner_up)} with "
        f"{second}, a margin of {margin}."
    )
    if n == 1:
        return said + " With only one evaluated image, chance cannot be tested."
    tested = [t for t in analysis.tests if t.corrected is not None]
    significant = [t for t in tested if t.significant]
    over = f" Over the {n} evaluated images "
    test = "paired t-test, Holm-corrected"
    if tested and len(significant) == len(tested):
        worst = max(t.corrected for t in significant if t.corrected is not None)
        others = "the other loss" if len(analysis.tests) == 1 else "every other loss"
        if analysis.untested:
            others = f"{len(significant)} of {len(analysis.tests)} other losses"
        at_most = " at most" if len(significant) > 1 and worst >= 0.001 else ""
        said += f"{over}this lead is significant against {others} ({test}: {_p(worst)}{at_most})."
    elif tested:
        tied = [t for t in tested if not t.significant]
        most = len(tied) if len(tied) <= 3 else 2
        named = [f"{name(t.loss)} ({_p(t.corrected)})" for t in tied[:most] if t.corrected is not None]
        named += [f"{len(tied) - most} more"] if len(tied) > most else []
        if significant:
            said += f"{over}this lead is significant against {len(significant)} of {len(analysis.tests)} losses, "
            said += f"but not against {_join(named)}, which could be just as good ({test})."
        else:
            said += f"{over}this lead is not significant against {_join(named)}: it could be chance ({test})."
    if analysis.untested:
        named = [name(t.loss) for t in analysis.untested[:4]]
        said += f" It cannot be tested against {_join(named)}: {analysis.untested[0].reason}."
    return said


def _caveats(run: Run) -> list[str]:
    """What to know before believing the answer."""
    analysis, said = run.analysis, []
    winner = run.entry(analysis.winner)
    own = [c.label for c in analysis.score.columns if winner.optimised(c)]
    if own:
        are = "is" if len(own) == 1 else "are"
        said.append(
            f"{winner.name} was trained on {_join(own)}, which {are} part of the score, so the score flatters "
            "it. Look at the pictures below before trusting it."
        )
    said += _disappointments(analysis)
    if run.images < FEW_IMAGES:
        said.append(
            f"Only {_count(run.images, 'image')} evaluated: means move with each image. Prefer {FEW_IMAGES} or more."
        )
    if not analysis.score.complete:
        lacks_looks = all(c.base != "lpips" and c.reference for c in analysis.score.columns)
        said.append(analysis.score.note + (" It then rewards fidelity more than looks." if lacks_looks else ""))
    said += [f"{name} failed and is not ranked: {_short(reason)}" for name, reason in run.failed]
    said += [_short(str(note)) for note in run.about.get("notes") or ()]
    dropped = {name for name, _ in run.failed}
    said += [note for note in analysis.values.left_out if note.partition(":")[0] not in dropped]
    return said


def _disappointments(analysis: Analysis) -> list[str]:
    """When the best loss is no better than what there was without it."""
    nothing = INPUT in analysis.scores and analysis.scores[analysis.winner] <= analysis.scores[INPUT]
    further = [_NO_FURTHER] if analysis.winner == START and analysis.runner_up is not None else []
    return ([_NO_GAIN] if nothing else []) + further


def _short(text: str, most: int = 260) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def _title(run: Run) -> str:
    parts = [str(run.about.get(key) or "") for key in ("task", "degradation")]
    return " · ".join(part for part in parts if part) or run.folder.name


# The parts of the page


def _rows(run: Run) -> list[dict[str, Any]]:
    """The table: the degraded input, then the losses from the highest score down."""
    analysis = run.analysis
    best = max(analysis.scores[loss] for loss in analysis.ranking)
    names = [INPUT] if INPUT in analysis.scores else []
    rows = []
    for name in (*names, *analysis.ranking):
        entry = None if name == INPUT else run.entry(name)
        cells = []
        for summary in analysis.metrics:
            means = {loss: i.value for loss, i in summary.means.items()}
            decimals = _decimals(summary.column, list(means.values()))
            # Values that print alike are all marked: the page should not tell apart what the reader cannot.
            top = f"{means[summary.best]:.{decimals}f}"
            text = f"{means[name]:.{decimals}f}"
            cells.append(
                {
                    "text": text,
                    "best": entry is not None and text == top,
                    "optimised": entry is not None and entry.optimised(summary.column),
                }
            )
        score = analysis.scores[name]
        rows.append(
            {
                "name": "degraded input" if entry is None else name,
                "entry": entry,
                "score": {
                    "text": f"{score:.3f}",
                    "best": entry is not None and score == best,
                    "optimised": False,
                },
                "cells": cells,
                "seconds": "–" if entry is None else _seconds(entry.seconds_per_step),
            }
        )
    return rows


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.3f}" if seconds < 0.1 else f"{seconds:.2f}" if seconds < 10 else f"{seconds:.0f}"


def _tradeoff(run: Run) -> dict[str, Any] | None:
    """Fidelity against perception, for wide and narrow pages; None with a single metric."""
    columns = run.analysis.values.columns
    if len(columns) < 2:
        return None
    x = next((c for c in columns if c.base == "psnr"), columns[0])
    y = next(
        (c for base in _PERCEPTUAL for c in columns if c.base == base and c is not x),
        next(c for c in columns if c is not x),
    )
    means = {s.column.name: s.means for s in run.analysis.metrics}
    series: list[tuple[str, int | None]] = [(e.name, e.series) for e in run.entries]
    if INPUT in run.analysis.scores:
        series.append((INPUT, None))
    points = [(name, s, means[x.name][name].value, means[y.name][name].value) for name, s in series]
    return {
        "x": x,
        "y": y,
        "charts": [
            charts.scatter(
                [(_clip(n), s, a, b) for n, s, a, b in points],
                x_rises=x.higher_is_better,
                y_rises=y.higher_is_better,
                width=width,
                height=height,
            )
            for width, height in ((760, 440), (350, 360))
        ],
        "input": next(((a, b) for n, s, a, b in points if s is None), None),
        "decimals": [_decimals(c, [i.value for i in means[c.name].values()]) for c in (x, y)],
    }


def _clip(name: str, most: int = 30) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _training(run: Run) -> dict[str, Any]:
    """The training curves, each over its first value, and why a loss has none."""
    lines, missing = [], []
    for entry in run.entries:
        if entry.slug == START:
            continue
        path = run.folder / entry.slug / "training.csv"
        try:
            log = pl.read_csv(path, columns=["step", "total"], schema_overrides={"total": pl.Float64})
        except (OSError, pl.exceptions.PolarsError):
            missing.append(f"{entry.name}: no training.csv with the columns step and total.")
            continue
        log = log.drop_nulls()
        curve = charts.relative(log["step"].to_numpy().astype(np.float64), log["total"].to_numpy())
        if curve is None:
            missing.append(f"{entry.name}: its first total is not positive, or too few steps were logged.")
        else:
            lines.append((_clip(entry.name), entry.series, *curve))
    sizes = ((760, 380), (350, 300)) if lines else ()
    drawn = [charts.curves(lines, width=w, height=h, labels=w > 500) for w, h in sizes]
    return {"charts": drawn, "missing": missing}


def _significance(run: Run) -> list[dict[str, Any]]:
    """One line per loss: the winner's lead with its interval, on one common scale from 0 to 100."""
    tests = sorted(run.analysis.tests, key=lambda t: run.analysis.ranking.index(t.loss))
    ends = [0.0]
    for test in tests:
        d = test.difference
        ends += [d.value if d.low is None else d.low, d.value if d.high is None else d.high]
    low, high = min(ends), max(ends)
    pad = 0.06 * (high - low) or 1.0

    def place(value: float) -> float:
        return 100 * (value - low + pad) / (high - low + 2 * pad)

    lines = []
    for test in tests:
        d = test.difference
        if test.corrected is None:
            word, kind = f"cannot be tested: {test.reason}", "untested"
        else:
            word, kind = ("significant", "yes") if test.significant else ("not significant", "no")
        lines.append(
            {
                "entry": run.entry(test.loss),
                "difference": f"{d.value:+.3f}",
                "interval": None if d.low is None or d.high is None else f"{d.low:+.3f} to {d.high:+.3f}",
                "p": "–" if test.corrected is None else _p(test.corrected).removeprefix("p ").removeprefix("= "),
                "word": word,
                "kind": kind,
                "zero": place(0.0),
                "at": place(d.value),
                "from": place(d.value if d.low is None else d.low),
                "to": place(d.value if d.high is None else d.high),
            }
        )
    return lines


def _per_metric(run: Run) -> list[dict[str, Any]]:
    """Per metric: the best loss with its interval, and those that are not significantly worse."""
    lines = []
    for summary in run.analysis.metrics:
        mean = summary.means[summary.best]
        lines.append(
            {
                "column": summary.column,
                "best": run.entry(summary.best),
                "mean": _interval(summary, mean.value, mean.low, mean.high),
                "tied": [run.entry(loss) for loss in summary.tied],
            }
        )
    return lines


def _worst(run: Run) -> list[dict[str, Any]]:
    """Per loss: the 5th percentile of PSNR and the 95th of LPIPS (without both, of the first metric)."""
    chosen = [s for base in ("psnr", "lpips") for s in run.analysis.metrics if s.column.base == base]
    chosen = chosen or [run.analysis.metrics[0]]
    return [
        {
            "column": summary.column,
            "cells": {
                loss: _interval(summary, i.value, i.low, i.high)
                for loss, i in summary.worst.items()
                if loss in run.analysis.ranking
            },
        }
        for summary in chosen
    ]


def _interval(summary: MetricSummary, value: float, low: float | None, high: float | None) -> dict[str, str]:
    decimals = _decimals(summary.column, [i.value for i in summary.means.values()])
    around = "" if low is None or high is None else f"{low:.{decimals}f} to {high:.{decimals}f}"
    return {"value": f"{value:.{decimals}f}", "interval": around}


def _gallery(run: Run) -> list[dict[str, Any]]:
    """The photographs: per image its variants (input, each loss by rank, truth) with crops and values."""
    analysis = run.analysis
    values = analysis.values
    slugs = {str(i["name"]): str(i["slug"]) for i in run.about.get("images") or ()}
    k = values.columns.index(analysis.score.columns[0])
    reference = values.of(INPUT if INPUT in values.losses else analysis.winner)[:, k]
    hardest_first = np.argsort(reference if values.columns[k].higher_is_better else -reference, kind="stable")
    images = [(values.images[j], slugs[values.images[j]]) for j in hardest_first if values.images[j] in slugs]
    entries = [run.entry(loss) for loss in analysis.ranking]
    folders = [INPUT, *(e.slug for e in entries), "truth"]
    names = {INPUT: "input", "truth": "truth", **{e.slug: e.name for e in entries}}
    gallery = []
    for shown in pictures.choose(run.folder, images, folders):
        j = values.images.index(shown.name)
        ours = np.stack([values.of(loss)[j] for loss in values.trained])
        best = np.where([c.higher_is_better for c in values.columns], ours.max(axis=0), ours.min(axis=0))
        variants = []
        for folder, crop in shown.crops.items():
            entry = next((e for e in entries if e.slug == folder), None)
            loss = INPUT if folder == INPUT else entry.name if entry else None
            cells = []
            if loss in values.losses:
                for m, column in enumerate(values.columns):
                    value = float(values.of(str(loss))[j, m])
                    decimals = _decimals(column, list(values.cube[:, j, m]))
                    cells.append(
                        {
                            "column": column,
                            "text": f"{value:.{decimals}f}",
                            "best": entry is not None and math.isclose(value, best[m]),
                        }
                    )
            variants.append({"folder": folder, "name": names[folder], "entry": entry, "crop": crop, "cells": cells})
        gallery.append({"shown": shown, "variants": variants})
    return gallery


def _provenance(run: Run) -> list[tuple[str, str]]:
    """Label and text of everything that made these numbers."""
    about = run.about
    model = about.get("model") or {}
    machine = about.get("machine") or {}
    data = about.get("dataset") or {}
    options = ", ".join(f"{k}={v}" for k, v in (model.get("options") or {}).items())
    described = f"{model.get('name', '?')}({options})"
    if model.get("parameters"):
        described += f", {model['parameters']:,} parameters"
    try:
        seed = tomllib.loads(run.recipe).get("training", {}).get("seed")
    except tomllib.TOMLDecodeError:
        seed = None
    lines = [
        ("Task", _title(run)),
        ("Trained on", data.get("train")),
        ("Evaluated on", data.get("evaluate")),
        ("Model", described if model else None),
        ("Started from", _started_from(about.get("init"))),
        ("Steps", about.get("steps")),
        (
            "Batch, crop",
            f"{about.get('batch_size')} crops of {about.get('crop')} px" if about.get("crop") else None,
        ),
        ("Seed", seed),
        ("Version", f"veridical {about.get('version', '?')}"),
        ("Machine", ", ".join(f"{key} {value}" for key, value in machine.items()) or None),
        ("Created", about.get("created")),
    ]
    return [(label, str(text)) for label, text in lines if text not in (None, "")]


def _started_from(init: dict[str, Any] | None) -> str:
    if not init:
        return "random weights, the same for every loss"
    trained = f"trained on {init.get('loss')}" + (f" for {init['steps']} steps" if init.get("steps") else "")
    return f"{init.get('folder')}, {trained}; sha256 of its weights {init.get('sha256')}"


def _hashes(run: Run) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for loss in run.about["losses"]:
        found |= {str(k): str(v) for k, v in (loss.get("weight_hashes") or {}).items()}
    return sorted(found.items())


def write_report(run: Run) -> Path:
    """Write report.html into the run's folder and return its path.

    Errors: DataError when an image of the run cannot be read.
    """
    environment = charts.environment()
    environment.globals.update(heading=_heading)

    def chip(name: str) -> Markup:
        return Markup('<b class="name">{}</b>').format(name)

    analysis = run.analysis
    gallery = _gallery(run)
    frames = [
        {
            "name": item["shown"].name,
            "width": item["shown"].width,
            "height": item["shown"].height,
            "frames": bool(item["shown"].frames),
            "variants": [{"folder": v["folder"], "name": v["name"]} for v in item["variants"]],
        }
        for item in gallery
    ]
    if analysis.runner_up is None or not any(t.corrected is not None for t in analysis.tests):
        pill = ("untested", "not tested")
    elif analysis.tied or analysis.untested:
        pill = ("no", f"no significant lead over {_join(_two(analysis))}")
    else:
        pill = ("yes", f"significant over {run.images} images")
    html = environment.get_template("report.html").render(
        run=run,
        title=_title(run),
        winner=run.entry(analysis.winner),
        # _lead adds only fixed words and numbers to the names, which chip escapes.
        lead=Markup(_lead(analysis, chip)),
        pill=pill,
        caveats=_caveats(run),
        score=analysis.score,
        columns=analysis.values.columns,
        rows=_rows(run),
        tradeoff=_tradeoff(run),
        training=_training(run),
        significance=_significance(run),
        per_metric=_per_metric(run),
        worst=_worst(run),
        gallery=gallery,
        frames=frames,
        winner_folder=run.entry(analysis.winner).slug,
        provenance=_provenance(run),
        hashes=_hashes(run),
        command=run.about.get("command") or f"veridical compare {run.folder / 'recipe.toml'}",
        few=FEW_IMAGES,
        dagger=DAGGER,
        count=_count,
    )
    path = run.folder / "report.html"
    atomic_write(path, html.encode("utf-8"))
    return path


def _two(analysis: Analysis) -> list[str]:
    names = [*analysis.tied, *(t.loss for t in analysis.untested)]
    return names if len(names) <= 2 else [names[0], f"{len(names) - 1} others"]
