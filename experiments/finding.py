"""The grid features x distances, and equal steps beside equal cost, into a page: heat maps and tables.

    python -m experiments.finding RUNS docs/finding.md     # fills what RUNS has, writes docs/finding/TASK.svg
    veridical estimate RUNS/grid-deblur.toml --data PHOTOGRAPHS --evaluate CROPS --rounds 9 --out RUNS/estimate
    python -m experiments.finding RUNS docs/finding.md --costs RUNS/estimate/estimate.json     # and its costs of a step

The page says one of these, and further down <!-- end -->; between them stands what came out of the runs of
experiments/reproduce.py. What lacks a run stays.

    <!-- grid: TASK -->               grid-TASK
    <!-- across: TASK,TASK -->        the grids of several tasks
    <!-- trainings: TASK,TASK -->     trainings-TASK of each
    <!-- equal: TASK -->              equal-steps-TASK and equal-cost-TASK
"""

import argparse
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from experiments.places import bounds, fill_places, number
from experiments.reproduce import ESTIMATE
from veridical.comparison.estimate import read_measured
from veridical.comparison.run import read_rows
from veridical.comparison.statistics import INPUT, Interval, holm, mean_interval, paired_p, t_interval, wilcoxon_p
from veridical.core.files import atomic_write

FEATURES = ("pixels", "vgg16", "random", "mdf", "adapter")
DISTANCES = ("l1", "l2", "wasserstein", "contextual", "unit-l2")
ALONE = "l1 alone"
PLACE = re.compile(r"^<!-- (?P<kind>grid|across|trainings|equal): (?P<task>\S+) -->$")
CHEAP = 2.0
"""Times the step of L1 alone, at most, of a pair that counts as cheap."""
BETTER, WORSE = (11, 107, 184), (200, 64, 26)


@dataclass(frozen=True)
class Cell:
    """One pair beside L1 alone. lpips, psnr: means over the images. change, psnr_change: less those of L1 alone, with
    95 % intervals over images. p: that LPIPS changes at all, two-sided: the larger of the paired t-test's and
    Wilcoxon's, each Holm-corrected over the grid."""

    lpips: float
    psnr: float
    change: Interval
    psnr_change: Interval
    p: float

    @property
    def supported(self) -> bool:
        return self.p < 0.05


def by_image(rows: pl.DataFrame, metric: str) -> dict[str, np.ndarray]:
    """loss -> its values, images in one order."""
    chosen = rows.filter(pl.col("metric") == metric).sort("image")
    return {str(loss): part["value"].to_numpy() for (loss,), part in chosen.group_by("loss", maintain_order=True)}


def cells(rows: pl.DataFrame) -> dict[str, Cell]:
    """Every loss of a run beside L1 alone."""
    lpips, psnr = by_image(rows, "lpips"), by_image(rows, "psnr")
    changes = {name: values - lpips[ALONE] for name, values in lpips.items() if name not in (ALONE, INPUT)}
    by_t = holm([two_sided(lambda each: paired_p(each, np.zeros_like(each)), change) for change in changes.values()])
    by_rank = holm([two_sided(wilcoxon_p, change) for change in changes.values()])
    return {
        name: Cell(
            float(lpips[name].mean()),
            float(psnr[name].mean()),
            t_interval(change),
            t_interval(psnr[name] - psnr[ALONE]),
            1.0 if t is None or rank is None else max(t, rank),
        )
        for (name, change), t, rank in zip(changes.items(), by_t, by_rank, strict=True)
    }


def two_sided(test: Callable[[np.ndarray], float | None], differences: np.ndarray) -> float | None:
    """The p of a test for a mean above 0, for one on either side: which side is not known beforehand."""
    sides = test(differences), test(-differences)
    return None if None in sides else min(1.0, 2 * min(side for side in sides if side is not None))


def heat_map(rows: pl.DataFrame, costs: Mapping[str, float], task: str) -> str:
    """The grid as SVG: colour and first line are LPIPS beside L1 alone, then PSNR beside it, then a step's cost."""
    found, alone = cells(rows), by_image(rows, "lpips")[ALONE].mean()
    widest = max(abs(cell.change.value) for cell in found.values())
    best = min(found, key=lambda name: found[name].lpips)
    left, top, width, height = 92, 76, 132, 74
    total = (left + len(DISTANCES) * width + 12, top + len(FEATURES) * height + 40)
    size = f'width="{total[0]}" height="{total[1]}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {total[0]} {total[1]}"'
        f' role="img" aria-label="LPIPS of features by distances, {escape(task)}">',
        "<style>text { font-family: system-ui, sans-serif; font-size: 12px; } .b { font-weight: 600; }"
        " .l { font-size: 15px; } .m { text-anchor: middle; }</style>",
        f'<rect {size} fill="#fff"/>',
        f'<text class="b l" x="12" y="22">{escape(task)}: L1 + features × distance, LPIPS beside L1 alone '
        f"({alone:.3f})</text>",
        '<text x="12" y="42" fill="#5f6670">blue: lower, better. ● found by both tests over 24 images. '
        "dB: PSNR beside L1 alone. ×: time of a step.</text>",
    ]
    for k, distance in enumerate(DISTANCES):
        parts.append(f'<text class="b m" x="{left + (k + 0.5) * width}" y="{top - 10}">{distance}</text>')
    for j, features in enumerate(FEATURES):
        y = top + j * height
        parts.append(f'<text class="b" x="12" y="{y + height / 2 + 4}">{features}</text>')
        for k, distance in enumerate(DISTANCES):
            name, x = f"{features} x {distance}", left + k * width
            cell = found.get(name)
            if cell is None:
                parts.append(f'<text class="m" x="{x + width / 2}" y="{y + height / 2}" fill="#5f6670">failed</text>')
                continue
            share = abs(cell.change.value) / widest
            red, green, blue = (
                round(255 + share * 0.85 * (part - 255)) for part in (BETTER if cell.change.value < 0 else WORSE)
            )
            ink = "#fff" if share > 0.55 else "#17191c"
            frame = ' stroke="#17191c" stroke-width="3"' if name == best else ' stroke="#fff"'
            parts.append(
                f'<rect x="{x + 2}" y="{y + 2}" width="{width - 4}" height="{height - 4}" rx="4"'
                f' fill="rgb({red},{green},{blue})"{frame}/>'
            )
            lines = (
                _change(cell),
                f"{number(cell.psnr_change.value, 2, '+')} dB",
                f"{costs[name] / costs[ALONE]:.1f}×" if name in costs else "",
            )
            for line, text in enumerate(lines):
                style = ' class="b m l"' if line == 0 else ' class="m"'
                parts.append(f'<text{style} x="{x + width / 2}" y="{y + 26 + 18 * line}" fill="{ink}">{text}</text>')
    parts.append(
        f'<text x="12" y="{total[1] - 14}" fill="#5f6670">framed: the lowest LPIPS, {found[best].lpips:.3f}</text>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def grid_block(rows: pl.DataFrame, costs: Mapping[str, float], task: str, picture: str) -> str:
    """The picture, and the grid's best and worst in a table."""
    found = cells(rows)
    psnr, lpips = by_image(rows, "psnr"), by_image(rows, "lpips")
    ranked = sorted(found, key=lambda name: found[name].lpips)
    lines = [f"![{task}: LPIPS of features by distances]({picture})", ""]
    lines += ["| L1 + | LPIPS ↓ | beside L1 alone (95 %) | PSNR dB ↑ | beside L1 alone (95 %) | step × |"]
    lines += ["|---|---|---|---|---|---|"]
    for name in ranked:
        cell = found[name]
        cost = f"{costs[name] / costs[ALONE]:.1f}" if name in costs else "–"
        lines.append(
            f"| {_times(name)}{' ●' if cell.supported else ''} | {cell.lpips:.3f} "
            f"| {_said(cell.change, 3, '+')} | {cell.psnr:.2f} | {_said(cell.psnr_change, 2, '+')} | {cost} |"
        )
    for name, cost in ((ALONE, "1"), (INPUT, "–")):
        if name in lpips:
            label = "degraded input" if name == INPUT else name
            lines.append(f"| *{label}* | {lpips[name].mean():.3f} | – | {psnr[name].mean():.2f} | – | {cost} |")
    return "\n".join(lines)


def across_block(grids: Mapping[str, pl.DataFrame], costs: Mapping[str, float]) -> str:
    """Of several tasks: who wins each, what each distance and each features do on average, and every pair in all."""
    found = {task: cells(rows) for task, rows in grids.items()}
    cheap = {name for name in costs if name != ALONE and costs[name] <= CHEAP * costs[ALONE]}
    tables = [_winners(found, cheap)]
    for title, parts, place in (("distance", DISTANCES, 1), ("features", FEATURES, 0)):
        lines = [f"| {title}, mean | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
        for part in parts:
            means = [
                np.mean([cell.change.value for name, cell in task.items() if name.split(" x ")[place] == part])
                for task in found.values()
            ]
            lines.append(f"| {part} | {' | '.join(number(float(mean), 3, '+') for mean in means)} |")
        tables.append("\n".join(lines))
    return "\n\n".join([*tables, _every_pair(found)])


def _winners(found: Mapping[str, Mapping[str, Cell]], cheap: set[str]) -> str:
    lines = [
        f"| task | lowest LPIPS | of a step of at most {CHEAP:g} × | beside L1 alone: lower, higher, not told apart |",
        "|---|---|---|---|",
    ]
    for task, pairs in found.items():
        best = min(pairs, key=lambda name: pairs[name].lpips)
        best_cheap = min(cheap & set(pairs), key=lambda name: pairs[name].lpips, default=None)
        lower = sum(cell.supported and cell.change.value < 0 for cell in pairs.values())
        higher = sum(cell.supported and cell.change.value > 0 for cell in pairs.values())
        cheapest = "–" if best_cheap is None else _pair(best_cheap, pairs[best_cheap])
        counts = f"{lower}, {higher}, {len(pairs) - lower - higher}"
        lines.append(f"| {task} | {_pair(best, pairs[best])} | {cheapest} | {counts} |")
    return "\n".join(lines)


def _every_pair(found: Mapping[str, Mapping[str, Cell]]) -> str:
    """LPIPS beside L1 alone, task by task, by the mean place."""
    places: dict[str, list[int]] = {}
    for pairs in found.values():
        for place, name in enumerate(sorted(pairs, key=lambda name: pairs[name].lpips), start=1):
            places.setdefault(name, []).append(place)
    lines = [f"| L1 + | mean place | worst | {' | '.join(found)} |", "|---" * (len(found) + 3) + "|"]
    for name in sorted(places, key=lambda name: (np.mean(places[name]), name)):
        changes = " | ".join(_change(pairs[name]) if name in pairs else "failed" for pairs in found.values())
        lines.append(f"| {_times(name)} | {np.mean(places[name]):.1f} | {max(places[name])} | {changes} |")
    return "\n".join(lines)


def _times(name: str) -> str:
    return name.replace(" x ", " × ")


def _change(cell: Cell) -> str:
    return f"{number(cell.change.value, 3, '+')}{' ●' if cell.supported else ''}"


def _pair(name: str, cell: Cell) -> str:
    return f"{_times(name)}: {_change(cell)}, {number(cell.psnr_change.value, 2, '+')} dB"


def _said(interval: Interval, places: int, sign: str = "") -> str:
    return f"{number(interval.value, places, sign)}{bounds(interval, places, sign)}"


def trainings_block(runs: Mapping[str, pl.DataFrame]) -> str:
    """What becomes of a pair's lead over L1 alone in other trainings, task by task."""
    lines = [
        "| task | L1 + | LPIPS beside L1 alone, of each training | mean (95 %) | PSNR dB (95 %) |",
        "|---|---|---|---|---|",
    ]
    for task, rows in runs.items():
        for pair in dict.fromkeys(rows["loss"]):
            if pair in (ALONE, INPUT):
                continue
            lpips, psnr = by_training(rows, pair, "lpips"), by_training(rows, pair, "psnr")
            each = ", ".join(number(float(mean), 3, "+") for mean in lpips.mean(axis=1))
            lines.append(
                f"| {task} | {_times(pair)} | {each} | {_said(mean_interval(lpips), 3, '+')} "
                f"| {_said(mean_interval(psnr), 2, '+')} |"
            )
    return "\n".join(lines)


def by_training(rows: pl.DataFrame, pair: str, metric: str) -> np.ndarray:
    """(S, I): a pair beside L1 alone with the same seed on the same image."""
    seeds = sorted(set(rows.filter(pl.col("loss") == pair)["seed"]))
    of_seed = [by_image(rows.filter(pl.col("seed") == seed), metric) for seed in seeds]
    return np.stack([values[pair] - values[ALONE] for values in of_seed])


class Result(NamedTuple):
    """What a training came to, over the images."""

    steps: int
    psnr: float
    lpips: Interval


def result(run: Path, loss: str | None = None) -> Result:
    """Of a loss of a run, or of its only one."""
    rows = read_rows(run)
    (name,) = [loss] if loss else set(rows["loss"]) - {INPUT}
    steps = json.loads((run / "comparison.json").read_text(encoding="utf-8"))["steps"]
    return Result(steps, float(by_image(rows, "psnr")[name].mean()), t_interval(by_image(rows, "lpips")[name]))


def equal_block(runs: Path, task: str) -> str | None:
    """A row for each loss: after equal steps, and after equal time. None where a run is missing."""
    steps_run, cost_run = runs / f"equal-steps-{task}", runs / f"equal-cost-{task}"
    if not (cost_run / ESTIMATE).exists():
        return None
    costs = {each.name: each.seconds for each in read_measured(cost_run / ESTIMATE).steps}
    own_runs = {name: cost_run / str(k) for k, name in enumerate(costs)}
    if not all((run / "rows.parquet").exists() for run in (steps_run, *own_runs.values())):
        return None
    by_steps = {name: result(steps_run, name) for name in costs}
    by_time = {name: result(run) for name, run in own_runs.items()}
    first, second = (sorted(costs, key=lambda name: found[name].lpips.value) for found in (by_steps, by_time))
    lines = [
        f"| loss | step × | {by_steps[first[0]].steps} steps: PSNR dB ↑ | LPIPS ↓ | place "
        "| equal time: steps | PSNR dB ↑ | LPIPS ↓ | place |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for place, name in enumerate(second, start=1):
        before, after = by_steps[name], by_time[name]
        lines.append(
            f"| `{name}` | {costs[name] / costs['l1']:.1f} | {before.psnr:.2f} | {_said(before.lpips, 3)} "
            f"| {first.index(name) + 1} | {after.steps} | {after.psnr:.2f} | {_said(after.lpips, 3)} | {place} |"
        )
    return "\n".join(lines)


def fill(text: str, runs: Path, page: Path) -> tuple[str, list[str]]:
    """The page with what there is, and the places that stay as they were."""
    folder = page.with_suffix("")
    costs_file = folder / "costs.json"
    costs = json.loads(costs_file.read_text(encoding="utf-8")) if costs_file.exists() else {}

    def made(place: re.Match[str]) -> str | None:
        task = place["task"]
        if place["kind"] == "equal":
            return equal_block(runs, task)
        if place["kind"] in ("across", "trainings"):
            kind = "grid" if place["kind"] == "across" else "trainings"
            found = {each: runs / f"{kind}-{each}" for each in task.split(",")}
            if not all((run / "rows.parquet").exists() for run in found.values()):
                return None
            of_tasks = {each: read_rows(run) for each, run in found.items()}
            return across_block(of_tasks, costs) if kind == "grid" else trainings_block(of_tasks)
        if not (runs / f"grid-{task}" / "rows.parquet").exists():
            return None
        rows = read_rows(runs / f"grid-{task}")
        picture = folder / f"{task}.svg"
        atomic_write(picture, heat_map(rows, costs, task).encode())
        return grid_block(rows, costs, task, f"{folder.name}/{picture.name}")

    filled = fill_places(text, PLACE, made)
    return filled.text, [f"{place['kind']} {place['task']}" for place in filled.missing]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--costs", metavar="ESTIMATE", type=Path, help="the estimate.json of a grid's recipe")
    arguments = parser.parse_args()
    if arguments.costs:
        costs = {each.name: each.seconds for each in read_measured(arguments.costs).steps}
        atomic_write(arguments.page.with_suffix("") / "costs.json", json.dumps(costs, indent=1).encode())
    filled, missing = fill(arguments.page.read_text(encoding="utf-8"), arguments.runs, arguments.page)
    atomic_write(arguments.page, filled.encode())
    print(f"left as they were: {', '.join(missing) or 'none'}")


if __name__ == "__main__":
    main()
