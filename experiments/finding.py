"""The grid features x distances, and equal steps beside equal cost, into a page: heat maps and tables.

    python -m experiments.finding RUNS docs/finding.md            # fills what RUNS has, writes docs/finding/TASK.svg
    python -m experiments.finding RUNS docs/finding.md --costs RUNS/grid-deblur.toml  # also measures costs.json

The page says <!-- grid: TASK --> or <!-- equal: TASK -->, and further down <!-- end -->; between them stands what came
out of grid-TASK, or of equal-steps-TASK and equal-cost-TASK (experiments/reproduce.py). What has no run stays.
"""

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import polars as pl

from experiments.reproduce import seconds_per_step
from veridical.comparison.run import read_rows
from veridical.comparison.statistics import holm, paired_p, t_interval, wilcoxon_p
from veridical.core.files import atomic_write

FEATURES = ("pixels", "vgg16", "random", "mdf", "adapter")
DISTANCES = ("l1", "l2", "wasserstein", "contextual", "unit-l2")
ALONE = "l1 alone"
PLACE = re.compile(r"^<!-- (?P<kind>grid|equal): (?P<task>\S+) -->$")
END = "<!-- end -->"
BETTER, WORSE = (11, 107, 184), (200, 64, 26)
DEGRADED = "input"  # as rows call it


@dataclass(frozen=True)
class Cell:
    """One pair beside L1 alone. lpips, psnr: means over the images. lead: by how much LPIPS is lower than with L1
    alone, with its 95 % interval over images. p: Holm-corrected over the grid, the larger of the paired t-test's and
    Wilcoxon's, for the sign that the lead has."""

    lpips: float
    psnr: float
    lead: tuple[float, float, float]
    psnr_lead: tuple[float, float, float]
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
    names = [name for name in lpips if name not in (ALONE, DEGRADED)]
    leads = {name: lpips[ALONE] - lpips[name] for name in names}
    signs = {name: np.sign(lead.mean()) or 1.0 for name, lead in leads.items()}
    by_t = holm([paired_p(signs[name] * leads[name], np.zeros_like(leads[name])) for name in names])
    by_rank = holm([wilcoxon_p(signs[name] * leads[name]) for name in names])
    found = {}
    for name, *both in zip(names, by_t, by_rank, strict=True):
        p = 1.0 if None in both else max(each for each in both if each is not None)
        found[name] = Cell(
            float(lpips[name].mean()),
            float(psnr[name].mean()),
            _ends(leads[name]),
            _ends(psnr[name] - psnr[ALONE]),
            p,
        )
    return found


def _ends(differences: np.ndarray) -> tuple[float, float, float]:
    interval = t_interval(differences)
    low = interval.value if interval.low is None else interval.low
    high = interval.value if interval.high is None else interval.high
    return interval.value, low, high


def heat_map(rows: pl.DataFrame, costs: Mapping[str, float], task: str) -> str:
    """The grid as SVG: colour and first line are LPIPS beside L1 alone, then PSNR beside it, then a step's cost."""
    found, alone = cells(rows), by_image(rows, "lpips")[ALONE].mean()
    widest = max(abs(cell.lead[0]) for cell in found.values())
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
            share = min(1.0, abs(cell.lead[0]) / widest)
            red, green, blue = (
                round(255 + share * 0.85 * (part - 255)) for part in (BETTER if cell.lead[0] > 0 else WORSE)
            )
            ink = "#fff" if share > 0.55 else "#17191c"
            frame = ' stroke="#17191c" stroke-width="3"' if name == best else ' stroke="#fff"'
            parts.append(
                f'<rect x="{x + 2}" y="{y + 2}" width="{width - 4}" height="{height - 4}" rx="4"'
                f' fill="rgb({red},{green},{blue})"{frame}/>'
            )
            dot = " ●" if cell.supported else ""
            lines = (
                f"{_signed(-cell.lead[0], 3)}{dot}",
                f"{_signed(cell.psnr_lead[0], 2)} dB",
                f"{costs[name] / costs[ALONE]:.1f}×" if name in costs else "",
            )
            for line, text in enumerate(lines):
                style = ' class="b m l"' if line == 0 else ' class="m"'
                parts.append(f'<text{style} x="{x + width / 2}" y="{y + 26 + 18 * line}" fill="{ink}">{text}</text>')
    parts.append(
        f'<text x="12" y="{total[1] - 14}" fill="#5f6670">framed: the lowest LPIPS, {found[best].lpips:.3f}</text>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def grid_block(rows: pl.DataFrame, costs: Mapping[str, float], task: str, picture: str) -> list[str]:
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
        change = _range(tuple(-each for each in cell.lead), 3)
        lines.append(
            f"| {name.replace(' x ', ' × ')}{' ●' if cell.supported else ''} | {cell.lpips:.3f} | {change} "
            f"| {cell.psnr:.2f} | {_range(cell.psnr_lead, 2)} | {cost} |"
        )
    for name, cost in ((ALONE, "1"), (DEGRADED, "–")):
        if name in lpips:
            label = "degraded input" if name == DEGRADED else name
            lines.append(f"| *{label}* | {lpips[name].mean():.3f} | – | {psnr[name].mean():.2f} | – | {cost} |")
    return lines


def _range(ends: tuple[float, ...], digits: int) -> str:
    mean, *both = ends
    low, high = sorted(both)
    return f"{_signed(mean, digits)} ({_signed(low, digits)} to {_signed(high, digits)})"


def equal_block(runs: Path, task: str) -> list[str] | None:
    """A row for each loss: after equal steps, and after equal time. None where a run is missing."""
    steps_run, cost_run = runs / f"equal-steps-{task}", runs / f"equal-cost-{task}"
    if not (steps_run / "rows.parquet").exists() or not (cost_run / "costs.json").exists():
        return None
    costs = json.loads((cost_run / "costs.json").read_text(encoding="utf-8"))
    rows = read_rows(steps_run)
    values: dict[str, list[tuple[float, ...]]] = {}
    for k, name in enumerate(costs):
        folder = cost_run / str(k)
        if not (folder / "rows.parquet").exists():
            return None
        about = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
        own = read_rows(folder)
        (loss,) = set(own["loss"]) - {DEGRADED}
        values[name] = [
            *(_ends(by_image(rows, metric)[name]) for metric in ("psnr", "lpips")),
            *(_ends(by_image(own, metric)[loss]) for metric in ("psnr", "lpips")),
            (about["steps"],),
        ]
    steps = json.loads((steps_run / "comparison.json").read_text(encoding="utf-8"))["steps"]
    places = {k: sorted(values, key=lambda name: values[name][k][0]).index for k in (1, 3)}
    lines = [
        f"| loss | step × | {steps} steps: PSNR dB ↑ | LPIPS ↓ | place "
        "| equal time: steps | PSNR dB ↑ | LPIPS ↓ | place |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in sorted(values, key=lambda name: values[name][3][0]):
        psnr, lpips, own_psnr, own_lpips, (count,) = values[name]
        shown = "`" + name + "`"
        lines.append(
            f"| {shown} | {costs[name] / costs['l1']:.1f} | {psnr[0]:.2f} | {_plain(lpips)} | {places[1](name) + 1} "
            f"| {count} | {own_psnr[0]:.2f} | {_plain(own_lpips)} | {places[3](name) + 1} |"
        )
    return lines


def _plain(ends: tuple[float, ...]) -> str:
    return f"{ends[0]:.3f} ({ends[1]:.3f} to {ends[2]:.3f})"


def fill(text: str, runs: Path, page: Path) -> tuple[str, list[str]]:
    """The page with what there is, and the places that stay as they were."""
    folder, lines, missing = page.with_suffix(""), [], []
    costs_file = folder / "costs.json"
    costs = json.loads(costs_file.read_text(encoding="utf-8")) if costs_file.exists() else {}
    rest = iter(text.split("\n"))
    for line in rest:
        lines.append(line)
        place = PLACE.match(line)
        if place is None:
            continue
        before = []
        for inside in rest:
            if inside == END:
                break
            before.append(inside)
        else:
            raise SystemExit(f"{line} has no {END}")
        kind, task = place["kind"], place["task"]
        block = None
        if kind == "equal":
            block = equal_block(runs, task)
        elif (runs / f"grid-{task}" / "rows.parquet").exists():
            rows = read_rows(runs / f"grid-{task}")
            picture = folder / f"{task}.svg"
            picture.parent.mkdir(exist_ok=True)
            atomic_write(picture, heat_map(rows, costs, task).encode())
            block = grid_block(rows, costs, task, f"{folder.name}/{picture.name}")
        if block is None:
            missing.append(f"{kind} {task}")
        lines += before if block is None else ["", *block, ""]
        lines.append(END)
    return "\n".join(lines), missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--costs", metavar="RECIPE", type=Path, help="measure the steps of a grid's recipe first")
    arguments = parser.parse_args()
    folder = arguments.page.with_suffix("")
    if arguments.costs:
        folder.mkdir(exist_ok=True)
        (folder / "costs.json").write_text(
            json.dumps(seconds_per_step(arguments.costs, []), indent=1), encoding="utf-8"
        )
    filled, missing = fill(arguments.page.read_text(encoding="utf-8"), arguments.runs, arguments.page)
    atomic_write(arguments.page, filled.encode())
    print(f"left as they were: {', '.join(missing) or 'none'}")


if __name__ == "__main__":
    main()
