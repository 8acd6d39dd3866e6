"""A run folder -> one HTML file, a table for the terminal and one sentence: which loss should I use?

Reads files only (recipe.toml, comparison.json, the rows, training.csv and the images), and is called by
nobody but the command. The page opens offline: pictures, style and script are inside it.
"""

import itertools
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup, escape
from rich.markup import escape as rich_escape
from rich.table import Table
from rich.text import Text

from veridical.comparison import charts, pictures, plane, wording
from veridical.comparison.failures import Kind, failures, judge
from veridical.comparison.run import Entry, Run, read_run
from veridical.comparison.statistics import (
    INPUT,
    LEVEL,
    Column,
    Interval,
    MetricSummary,
    PairedTest,
    WinMatrix,
)
from veridical.comparison.wording import Support, verdict
from veridical.core.files import atomic_write
from veridical.core.untrusted import read_file

__all__ = ["Run", "markdown", "read_run", "table", "verdict", "write_report"]

DAGGER = "†"
# Rows of the matrix of who beats whom: of 300 losses it would have 630,000 cells, and the page 89 MB.
MATRIX_ROWS = 40
_LOG = {"step": pl.Float64, "total": pl.Float64}  # of training.csv
# How report.css calls them.
_CLASSES = {Support.YES: "yes", Support.DISPUTED: "no", Support.NO: "no", Support.UNTESTED: "untested"}


def table(run: Run, *, bold: bool = True) -> Table:
    """Losses × metrics for the terminal: best value bold, metrics that a loss optimised with a dagger.

    Args:   bold: False marks the best value with a star instead, for a file or a pipe.
    """
    title = Text(f"{wording.title(run)}: mean over {wording.over(run)}")
    shown = Table(title=title, title_justify="left", caption_justify="left")
    shown.add_column(run.noun, overflow="fold", min_width=10)
    shown.add_column("score ↑", justify="right")
    for column in run.analysis.values.columns:
        shown.add_column(Text(wording.heading(column)), justify="right", min_width=6)
    for heading in (*_costs(run), "s/step"):
        shown.add_column(heading, justify="right")
    rows = _rows(run)
    for row in rows:
        name = Text(row["name"], style="dim" if row["entry"] is None else "")
        cells = (_cell(cell, bold) for cell in (row["score"], *row["cells"]))
        shown.add_row(name, *cells, *row["costs"], row["seconds"])
    notes = [f"{'bold' if bold else '*'}: best of the {run.nouns}"]
    if _costs(run):
        notes.append("s/MP, MB/MP: seconds and peak memory of restoring a megapixel, as evaluated here")
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
    an ≈ where the best is not significantly better (paired t-test, Holm-corrected); then what is supported and what
    is not."""
    analysis = run.analysis
    headings = (_cell_of(wording.heading(column)) for column in analysis.values.columns)
    lines = [
        f"| {' | '.join([run.noun, 'score', *headings, *_costs(run)])} |",
        f"|{'---|' * (2 + len(analysis.metrics) + len(_costs(run)))}",
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
        lines.append(f"| {' | '.join([_cell_of(row['name']), row['score']['text'], *cells, *row['costs']])} |")
    words = [
        # Some readers of Markdown need a blank line before and after a list.
        f"\n{line}" if line.startswith("- ") != before.startswith("- ") else line
        for before, line in itertools.pairwise(["", *wording.written(run)])
    ]
    return names_as_they_are("\n".join([*lines, "", *words])) + "\n"


def names_as_they_are(text: str) -> str:
    r"""A text of Markdown in which no name becomes a tag, and the stars of two sums set nothing in italics.

    >>> names_as_they_are("0.8*l2 + 0.2*lpips has **0.1**")
    '0.8\\*l2 + 0.2\\*lpips has **0.1**'
    """
    text = re.sub(r"(?<!\*)\*(?!\*)", r"\\*", text)
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


def _cell_of(text: str) -> str:
    """What stands in one cell of Markdown: a name may have the sign that ends it."""
    return " ".join(text.replace("|", "\\|").split())


def runs_in(folder: Path) -> list[Path]:
    """The runs of several tasks that a folder holds, where it is no run itself."""
    if (folder / "comparison.json").exists():
        return []
    return sorted(path.parent for path in folder.glob("*/comparison.json"))


def by_task(runs: Mapping[str, Run]) -> tuple[list[str], list[list[str]]]:
    """The columns and rows of a table of losses beside tasks: the scores, a star at the highest of each task."""
    scores = {task: {name: run.analysis.scores[name] for name in run.analysis.ranking} for task, run in runs.items()}
    losses = dict.fromkeys(loss for each in scores.values() for loss in each)

    def cell(task: str, loss: str) -> str:
        if loss not in scores[task]:
            return "–"
        star = "*" if scores[task][loss] == max(scores[task].values()) else ""
        return f"{star}{scores[task][loss]:.3f}"

    return ["loss", *runs], [[loss, *(cell(task, loss) for task in runs)] for loss in losses]


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
                "costs": [_cost(entry, key) for key in _costs(run).values()],
                "seconds": "–" if entry is None else _seconds(entry.seconds_per_step),
            }
        )
    return rows


def _costs(run: Run) -> dict[str, str]:
    """Heading -> key of what restoring costs: where models or methods are compared, which differ by it."""
    measured = any(entry.cost for entry in run.entries)
    return (
        {"s/MP": "seconds_per_megapixel", "MB/MP": "megabytes_per_megapixel"}
        if measured and run.compares_restorers
        else {}
    )


def _cost(entry: Entry | None, key: str) -> str:
    value = (entry.cost or {}).get(key) if entry else None
    return "–" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.3f}" if seconds < 0.1 else f"{seconds:.2f}" if seconds < 10 else f"{seconds:.0f}"


def _planes(run: Run) -> list[dict[str, Any]]:
    """Distortion against perception: a chart for wide and narrow pages of every choice of axes, the best one first."""
    values = run.analysis.values
    horizontal, vertical = plane.axes(values.columns)
    means = {s.column: s.means for s in run.analysis.metrics}
    crosses = {}
    for column in {*horizontal, *vertical}:
        k = values.columns.index(column)
        trained = values.by_seed[[values.losses.index(loss) for loss in values.trained]]
        found = plane.within_image_intervals(trained[..., k])
        crosses[column] = dict(zip(values.trained, map(charts.range_of, found), strict=True))
    series: list[tuple[str, int | None]] = [(e.name, e.series) for e in run.entries]
    if INPUT in run.analysis.scores:
        series.append((INPUT, None))
    planes = []
    for x, y in itertools.product(horizontal, vertical):
        points = [
            charts.Point(
                _clip(name),
                number,
                means[x][name].value,
                means[y][name].value,
                crosses[x].get(name),
                crosses[y].get(name),
                f"{name}: {_number(x, means[x], name)}, {_number(y, means[y], name)}",
            )
            for name, number in series
        ]
        drawn = [
            charts.scatter(points, x_rises=x.higher_is_better, y_rises=y.higher_is_better, width=width, height=height)
            for width, height in ((760, 440), (350, 360))
        ]
        planes.append({"x": x, "y": y, "charts": drawn, "input": points[-1].said, "meaning": plane.meaning(y)})
    return planes


def _number(column: Column, means: Mapping[str, Interval], loss: str) -> str:
    """Such as "PSNR 30.12 dB"."""
    decimals = wording.decimals(column, [each.value for each in means.values()])
    return f"{column.label} {means[loss].value:.{decimals}f}{' ' if column.unit else ''}{column.unit}"


def _clip(name: str, most: int = 30) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _training(run: Run) -> dict[str, Any]:
    """The training curves, each over its first value, and why a loss has none."""
    lines, missing = [], []
    for entry in run.entries:
        if not entry.trained:
            continue
        path = run.folder / entry.slug / "training.csv"
        try:
            log = pl.read_csv(read_file(path), columns=["step", "total"], schema_overrides=_LOG)
        except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
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
        found = wording.support(test)
        word = f"{found}: {test.reason}" if found is Support.UNTESTED else str(found)
        lines.append(
            {
                "entry": run.entry(test.loss),
                "difference": f"{d.value:+.3f}",
                "interval": None if d.low is None or d.high is None else f"{d.low:+.3f} to {d.high:+.3f}",
                "p": _bare(test.corrected),
                "wilcoxon": _bare(test.wilcoxon_corrected),
                "effect": "–" if test.effect is None else f"{test.effect:.2f}",
                "word": word,
                "kind": _CLASSES[found],
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


def _panels(run: Run) -> list[dict[str, Any]]:
    """Per metric: the distributions over images, the tests of the best loss, who beats whom, the luck of training."""
    values, panels = run.analysis.values, []
    ranges = {str(m.get("label") or m["name"]): str(m.get("range") or "") for m in run.about["metrics"]}
    for k, summary in enumerate(run.analysis.metrics):
        column, means = summary.column, summary.means
        sign = -1.0 if column.higher_is_better else 1.0
        losses = sorted(values.trained, key=lambda loss: sign * means[loss].value)
        rows: list[dict[str, Any]] = []
        for name in [loss for loss in values.losses if loss == INPUT] + losses:
            mean, worst = (_interval(summary, i.value, i.low, i.high) for i in (means[name], summary.worst[name]))
            test = next((t for t in summary.tests if t.loss == name), None)
            entry = None if name == INPUT else run.entry(name)
            rows.append({"name": name, "entry": entry, "mean": mean, "worst": worst, "test": _tested(summary, test)})
        spread = [
            charts.Distribution(
                _clip(row["name"]),
                None if row["entry"] is None else row["entry"].series,
                values.seeds_of(row["name"])[..., k].ravel(),
                summary.means[row["name"]],
                summary.worst[row["name"]],
            )
            for row in rows
        ]
        bounds = charts.bounds_of(ranges.get(column.name, ranges.get(column.base, "")))
        panels.append(
            {
                "column": column,
                "rows": rows,
                "charts": [
                    charts.violins(spread, rises=column.higher_is_better, bounds=bounds, width=width)
                    for width in (900, 350)
                ],
                "wins": _wins(run, summary.wins, losses[:MATRIX_ROWS]),
                "pairs": len(losses) * (len(losses) - 1),
                "splits": _splits(run, summary, losses),
            }
        )
    return panels


def _tested(summary: MetricSummary, test: PairedTest | None) -> dict[str, str] | None:
    """The cells of one loss's comparison with the best one; None for the best one and the degraded input."""
    if test is None:
        return None
    behind, found = test.difference, wording.support(test)
    return {
        "behind": _interval(summary, behind.value, behind.low, behind.high)["value"],
        "t": _bare(test.corrected),
        "wilcoxon": _bare(test.wilcoxon_corrected),
        "effect": "–" if test.effect is None else f"{test.effect:.2f}",
        "word": str(found),
        "kind": _CLASSES[found],
    }


def _bare(p: float | None) -> str:
    return "–" if p is None else wording.p_text(p).removeprefix("p ").removeprefix("= ")


def _wins(run: Run, wins: WinMatrix, losses: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the win matrix, from the best mean down: on how many % of the images the row beats each column."""
    at = [wins.losses.index(loss) for loss in losses]
    rows = []
    for loss, i in zip(losses, at, strict=True):
        cells: list[dict[str, Any] | None] = []
        for other, j in zip(losses, at, strict=True):
            if i == j:
                cells.append(None)
                continue
            share, p = float(wins.share[i, j]), float(wins.p_corrected[i, j])
            said = f"{loss} beats {other} on {100 * share:.0f} % of the images"
            said += "" if math.isnan(p) else f"; its mean is better with {wording.p_text(p)}"
            cells.append({"text": f"{100 * share:.0f}", "share": share, "significant": p < LEVEL, "said": said})
        rows.append({"entry": run.entry(loss), "cells": cells})
    return rows


def _splits(run: Run, summary: MetricSummary, losses: Sequence[str]) -> list[dict[str, Any]]:
    """Per loss: the standard deviations between trainings, between images, and of the rest; empty with one seed."""
    decimals = wording.decimals(summary.column, [each.value for each in summary.means.values()])
    return [
        {
            "entry": run.entry(loss),
            "shares": split.shares,
            "cells": [f"{each:.{decimals}f}" for each in (split.seed, split.image, split.rest)],
        }
        for loss in losses
        if (split := summary.splits.get(loss))
    ]


def _interval(summary: MetricSummary, value: float, low: float | None, high: float | None) -> dict[str, str]:
    decimals = wording.decimals(summary.column, [i.value for i in summary.means.values()])
    around = "" if low is None or high is None else f"{low:.{decimals}f} to {high:.{decimals}f}"
    return {"value": f"{value:.{decimals}f}", "interval": around}


def _failures(run: Run) -> dict[str, Any]:
    """Per loss the images on which it fails, as crops, until their share of the page's bytes is used."""
    analysis = run.analysis
    column = judge(analysis.values.columns)
    slugs = _slugs(run)
    found = failures(analysis.values, column, analysis.ranking)
    found = [case for case in found if case.image in slugs]
    k = analysis.values.columns.index(column)
    decimals = wording.decimals(column, list(analysis.values.cube[..., k].ravel()))
    cases: list[dict[str, Any]] = []
    used, left_out = 0, 0
    # Of every loss one image first, then the second ones.
    for case in sorted(found, key=lambda case: case.kinds[0] is Kind.WORST):
        entry, rival = run.entry(case.loss), run.entry(case.rival) if case.rival else None
        cut = pictures.failure(run.folder, slugs[case.image], entry.slug, rival.slug if rival else None)
        if cut is None:
            continue
        box, crops = cut
        if used + pictures.size(crops) > pictures.FAILURE_SHARE * pictures.BUDGET:
            left_out += 1
            continue
        used += pictures.size(crops)
        of = {e.slug: e for e in (entry, rival) if e}
        tiles = [{"folder": folder, "entry": of.get(folder), "crop": crop} for folder, crop in crops.items()]
        cases.append(
            {
                "entry": entry,
                "rival": rival,
                "image": case.image,
                "kinds": wording.join([str(kind) for kind in case.kinds]),
                "value": f"{case.value:.{decimals}f}",
                "rival_value": "" if case.rival_value is None else f"{case.rival_value:.{decimals}f}",
                "box": box,
                "tiles": tiles,
            }
        )
    order = list(analysis.ranking)
    cases.sort(key=lambda case: order.index(case["entry"].name))
    return {"column": column, "cases": cases, "used": used, "left_out": left_out}


def _slugs(run: Run) -> dict[str, str]:
    """Name of an image -> its file under images/, without the ending."""
    return {str(i["name"]): str(i["slug"]) for i in run.about.get("images") or ()}


def _gallery(run: Run, budget: int) -> list[dict[str, Any]]:
    """The photographs: per image its variants (input, each loss by rank, truth) with crops and values."""
    analysis = run.analysis
    values = analysis.values
    slugs = _slugs(run)
    k = values.columns.index(analysis.score.columns[0])
    reference = values.of(INPUT if INPUT in values.losses else analysis.winner)[:, k]
    hardest_first = np.argsort(reference if values.columns[k].higher_is_better else -reference, kind="stable")
    images = [(values.images[j], slugs[values.images[j]]) for j in hardest_first if values.images[j] in slugs]
    entries = [run.entry(loss) for loss in analysis.ranking]
    folders = [INPUT, *(e.slug for e in entries), "truth"]
    names = {INPUT: "input", "truth": "truth", **{e.slug: e.name for e in entries}}
    gallery = []
    for shown in pictures.choose(run.folder, images, folders, budget=budget):
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
    machine = about.get("machine") or {}
    data = about.get("dataset") or {}
    try:
        seed = tomllib.loads(run.recipe).get("training", {}).get("seed")
    except (ValueError, RecursionError, AttributeError):
        seed = None
    lines = [
        ("Task", wording.title(run)),
        ("Trained on", data.get("train")),
        ("Evaluated on", data.get("evaluate")),
        *((f"Model {model.get('label', '')}".rstrip(), _model(model)) for model in run.models),
        ("Started from", _started_from(about.get("init"))),
        ("Steps", about.get("steps")),
        (
            "Batch, crop",
            f"{about.get('batch_size')} crops of {about.get('crop')} px" if about.get("crop") else None,
        ),
        ("Seeds", ", ".join(map(str, run.analysis.values.seeds))) if wording.several_seeds(run) else ("Seed", seed),
        ("Version", f"veridical {about.get('version', '?')}"),
        ("Machine", ", ".join(f"{key} {value}" for key, value in machine.items()) or None),
        ("Created", about.get("created")),
    ]
    return [(label, str(text)) for label, text in lines if text not in (None, "")]


def _model(model: Mapping[str, Any]) -> str:
    options = ", ".join(f"{k}={v}" for k, v in (model.get("options") or {}).items())
    parameters = f", {model['parameters']:,} parameters" if model.get("parameters") else ""
    return f"{model.get('name', '?')}({options}){parameters}"


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


_NAME = ("\x02", "\x03")  # begin and end of a loss's name in a sentence that is not HTML yet


def _mark(name: str) -> str:
    return f"{_NAME[0]}{name}{_NAME[1]}"


def _marked(sentence: str) -> Markup:
    """A sentence as HTML, everything in it escaped, the marked names in bold, no line broken inside a p."""
    whole = re.sub(r"\bp ([<=≤≥]) ", "p\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", sentence)
    return Markup(str(escape(whole)).replace(_NAME[0], '<b class="name">').replace(_NAME[1], "</b>"))


def write_report(run: Run) -> Path:
    """Write report.html into the run's folder and return its path.

    Errors: DataError when an image of the run cannot be read.
    """
    environment = charts.environment()
    environment.globals.update(heading=wording.heading)

    analysis = run.analysis
    failed = _failures(run)
    gallery = _gallery(run, pictures.BUDGET - failed["used"])
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
    support, said = wording.pill(run)
    claims = wording.claims(run, _mark)
    html = environment.get_template("report.html").render(
        run=run,
        title=wording.title(run),
        winner=run.entry(analysis.winner),
        lead=_marked(wording.lead(run, _mark)),
        claims=[(title, [_marked(each) for each in sentences]) for title, sentences in claims.titled if sentences],
        basis=wording.basis(run),
        over=wording.over(run),
        luck=wording.luck(run),
        seed_words=wording.seed_words(run),
        fewest=charts.FEWEST_FOR_SHAPE,
        several_seeds=wording.several_seeds(run),
        pill=(_CLASSES[support], said),
        caveats=wording.caveats(run),
        score=analysis.score,
        columns=analysis.values.columns,
        rows=_rows(run),
        costs=list(_costs(run)),
        planes=_planes(run),
        training=_training(run),
        significance=_significance(run),
        per_metric=_per_metric(run),
        panels=_panels(run),
        failed=failed,
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
