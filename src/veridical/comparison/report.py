"""A run folder -> one HTML file, a table for the terminal and one sentence: which loss should I use?

Reads files only (recipe.toml, comparison.json, the rows, training.csv and the images), and is called by
nobody but the command. The page opens offline: pictures, style and script are inside it.
"""

import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup
from rich.markup import escape as rich_escape
from rich.table import Table
from rich.text import Text

from veridical.comparison import charts, pictures, wording
from veridical.comparison.run import Run, read_run
from veridical.comparison.start import START
from veridical.comparison.statistics import INPUT, Analysis, MetricSummary
from veridical.comparison.wording import verdict
from veridical.core.files import atomic_write

__all__ = ["Run", "markdown", "read_run", "table", "verdict", "write_report"]

DAGGER = "†"
_PERCEPTUAL = ("lpips", "ms-ssim", "ssim", "sharpness-q")  # for the plot, the first that was measured


def table(run: Run, *, bold: bool = True) -> Table:
    """Losses × metrics for the terminal: best value bold, metrics that a loss optimised with a dagger.

    Args:   bold: False marks the best value with a star instead, for a file or a pipe.
    """
    title = Text(f"{wording.title(run)}: mean over {wording.count(run.images, 'image')}")
    shown = Table(title=title, title_justify="left", caption_justify="left")
    shown.add_column("loss", overflow="fold", min_width=10)
    shown.add_column("score ↑", justify="right")
    for column in run.analysis.values.columns:
        shown.add_column(Text(wording.heading(column)), justify="right", min_width=6)
    shown.add_column("s/step", justify="right")
    rows = _rows(run)
    for row in rows:
        name = Text(row["name"], style="dim" if row["entry"] is None else "")
        shown.add_row(name, *(_cell(cell, bold) for cell in (row["score"], *row["cells"])), row["seconds"])
    notes = [f"{'bold' if bold else '*'}: best of the losses"]
    if any(cell["optimised"] for row in rows for cell in row["cells"]):
        notes.append(f"{DAGGER} the loss was trained on this metric")
    notes += [f"{name} failed: {wording.short(reason)}" for name, reason in run.failed]
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
        f"| loss | score | {' | '.join(wording.heading(summary.column) for summary in analysis.metrics)} |",
        f"|---|---|{'---|' * len(analysis.metrics)}",
    ]
    for row in _rows(run):
        name = row["name"] if row["entry"] else INPUT
        cells = []
        for summary in analysis.metrics:
            mean = summary.means[name]
            decimals = wording.decimals(summary.column, [each.value for each in summary.means.values()])
            text = f"{mean.value:.{decimals}f}"
            text = f"**{text}**" if name == summary.best else f"{text} ≈" if name in summary.tied else text
            if mean.low is not None and mean.high is not None:
                text += f" ({mean.low:.{decimals}f} to {mean.high:.{decimals}f})"
            cells.append(text)
        lines.append(f"| {row['name']} | {row['score']['text']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


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
            decimals = wording.decimals(summary.column, list(means.values()))
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
                [charts.Point(_clip(n), s, a, b) for n, s, a, b in points],
                x_rises=x.higher_is_better,
                y_rises=y.higher_is_better,
                width=width,
                height=height,
            )
            for width, height in ((760, 440), (350, 360))
        ],
        "input": next(((a, b) for n, s, a, b in points if s is None), None),
        "decimals": [wording.decimals(c, [i.value for i in means[c.name].values()]) for c in (x, y)],
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
                "p": "–"
                if test.corrected is None
                else wording.p_text(test.corrected).removeprefix("p ").removeprefix("= "),
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
    decimals = wording.decimals(summary.column, [i.value for i in summary.means.values()])
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
                    decimals = wording.decimals(column, list(values.cube[:, j, m]))
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
        ("Task", wording.title(run)),
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
    environment.globals.update(heading=wording.heading)

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
        pill = ("no", f"no significant lead over {wording.join(_two(analysis))}")
    else:
        pill = ("yes", f"significant over {run.images} images")
    html = environment.get_template("report.html").render(
        run=run,
        title=wording.title(run),
        winner=run.entry(analysis.winner),
        # lead adds only fixed words and numbers to the names, which chip escapes.
        lead=Markup(wording.lead(analysis, chip)),
        pill=pill,
        caveats=wording.caveats(run),
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
        few=wording.FEW_IMAGES,
        dagger=DAGGER,
        count=wording.count,
    )
    path = run.folder / "report.html"
    atomic_write(path, html.encode("utf-8"))
    return path


def _two(analysis: Analysis) -> list[str]:
    names = [*analysis.tied, *(t.loss for t in analysis.untested)]
    return names if len(names) <= 2 else [names[0], f"{len(names) - 1} others"]
