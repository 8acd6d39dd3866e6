"""How a run folder bears a load: python -m tests.loads LOSSES IMAGES METRICS SEEDS

Made-up values of so many losses, images and metrics, written and read by the code that a comparison uses: processor
seconds, and the most memory that the process has held by then. The images are left out: the page has no pictures.
"""

import argparse
import random
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from tests.photographs import quick_recipe, write_photographs
from veridical.comparison import report
from veridical.comparison.observer import Observer
from veridical.comparison.plan import Plan, prepare
from veridical.comparison.results import References, load_result, save_result, write_state
from veridical.training.recipe import load_recipe

Found = TypeVar("Found")
METRICS = ["psnr", "ssim", "gmsd", "sharpness-q", "psnr(channel=y)", "ssim(channel=y)", "laplacian-variance", "fsim"]


def timed(what: str, call: Callable[[], Found]) -> Found:
    begun = time.process_time()
    found = call()
    seconds = time.process_time() - begun
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what:52} {seconds:9.3f} s {held:8.0f} MiB", flush=True)
    return found


def finished(plan: Plan, losses: int, images: int, seeds: int) -> tuple[Plan, References]:
    """The plan as if all were trained: values that rise slowly from loss to loss, with noise."""
    draw = random.Random(0)
    names = [f"photograph-{number:04}" for number in range(images)]
    example = plan.contenders[0]

    def rows(loss: str, level: float) -> list[dict[str, str | float]]:
        return [
            {"image": name, "loss": loss, "metric": one.name, "value": level + draw.gauss(0, 1)}
            for name in names
            for one in plan.metrics
        ]

    contenders = [
        replace(
            example, name=f"loss {number}", slug=f"loss-{number}", seed=turn, turn=turn, status="done", seconds=100.0,
            seconds_per_step=0.01, rows=rows(f"loss {number}", 20 + 0.02 * number),
        )
        for turn in range(seeds)
        for number in range(losses)
    ]  # fmt: skip
    sizes = dict.fromkeys(names, (512, 768))
    return (
        replace(plan, contenders=contenders, sizes=sizes, slugs={name: name for name in names}),
        References(rows("input", 15), {}),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("losses", "images", "metrics", "seeds"):
        parser.add_argument(name, type=int)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        data = write_photographs(Path(scratch) / "photographs")
        losses = {f"loss {number}": f"{1 + number / 1000:g}*l1" for number in range(asked.losses)}
        table = ", ".join(f'"{name}" = "{spec}"' for name, spec in losses.items())
        recipe = quick_recipe(data, f"losses={{{table}}}", f"metrics={METRICS[: asked.metrics]}")
        recipe = load_recipe(recipe.model_dump(mode="json", exclude_none=True), [f"training.seeds={asked.seeds}"])
        plan = timed("every check before the first step", lambda: prepare(recipe, folder, Observer(), leave_out=False))
        plan, reference = finished(plan, asked.losses, asked.images, asked.seeds)
        cells = len(plan.contenders)
        timed(f"results of {cells} trainings saved", lambda: [save_result(plan, each) for each in plan.contenders])
        timed(f"results of {cells} trainings taken over", lambda: [load_result(plan, each) for each in plan.contenders])
        timed("rows and state of all written, once", lambda: write_state(plan, reference, "loads"))
        run = timed("run read and analysed", lambda: report.read_run(folder))
        timed("table", lambda: report.table(run))
        timed("verdict", lambda: report.verdict(run))
        page = timed("report.html written", lambda: report.write_report(run))
        sizes = {path.name: path.stat().st_size / 1e6 for path in (folder / "rows.parquet", folder / "rows.csv", page)}
        print(", ".join(f"{name} {size:.1f} MB" for name, size in sizes.items()))


if __name__ == "__main__":
    main()
