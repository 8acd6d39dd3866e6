"""Run the comparisons that docs/results.md and docs/finding.md are made of, in pieces, on whatever machine is at hand.

    python -m experiments.reproduce --train PHOTOGRAPHS --evaluate CROPS --out runs --minutes 60
    python -m experiments.reproduce --train PHOTOGRAPHS --evaluate TESTSET --scale full --only spl-table --minutes 55
    python -m experiments.reproduce --list

When its minutes are over it stops the comparison that runs, as Ctrl-C would, which leaves a checkpoint; the same
command goes on there, here or on another machine to which the folder of --out was copied. A folder that comes back
takes the place of the one that was sent: the rows of what is finished are in it, and `veridical report` and
`python -m experiments.tables` read it.
"""

import argparse
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

from veridical.comparison.estimate import read_measured

HERE = Path(__file__).parent
TASKS = ("deblur", "denoise", "super-resolve", "jpeg", "demosaic")
RECIPES = (
    "sharpness-table-1-1",  # what sharpness-table-1-2 starts from
    "sharpness-table-1-2",
    "spl-table",
    "mdf-table-3-denoise",
    "mdf-table-3-jpeg",
    "mdf-table-2",
    "pdl-table-1",
    "pdl-table-3",
    "pdl-table-7",
)
BUDGET_S = 40.0
"""Of training, for each loss of equal-cost."""
ESTIMATE = Path("estimate", "estimate.json")
"""In the folder of an equal-cost experiment: what its steps cost."""
GRACE_S = 120
"""How long a comparison may take to finish its step and write a checkpoint."""


def commands(name: str, arguments: argparse.Namespace) -> Iterator[list[str]]:
    """What `veridical` is told for one experiment, one command after the other: a later one may hang on what an
    earlier one has found."""
    out, at = arguments.out, ["--data", arguments.train, "--evaluate", arguments.evaluate]
    more = [word for setting in arguments.set for word in ("--set", setting)]
    kind, _, task = name.partition(":")
    if kind in RECIPES:
        scale = [] if arguments.scale == "full" else ["--scale", "small"]
        if kind == "sharpness-table-1-2":
            more += ["--set", f"init={out}/sharpness-table-1-1/l1"]
        yield ["compare", kind, *scale, *at, *more, "--out", f"{out}/{kind}"]
        return
    if kind == "equal-cost":
        yield from equal_cost(task, at, more, arguments)
        return
    run = f"{out}/{name.replace(':', '-')}"
    recipe = Path(f"{run}.toml")
    if not recipe.exists():  # what a run was begun by stays what it goes on by
        recipe.parent.mkdir(parents=True, exist_ok=True)
        text = (HERE / f"{kind}.toml").read_text(encoding="utf-8")
        recipe.write_text(text.replace("TASK", task).replace("RUNS", str(out)), encoding="utf-8")
    adapter = f"{out}/adapter-{task}.safetensors"
    if adapter in recipe.read_text(encoding="utf-8") and not Path(adapter).exists():
        learn = ["learn", "adapter", "--features", "vgg16", "--block", "relu3_3", "--task", task, "--out", adapter]
        learn += ["--data", arguments.train, "--kind", "token-wise", "--pool", "4", "--width", "256", "--crop", "64"]
        yield [*learn, "--triplets", "256", "--validation-triplets", "64", "--epochs", "60", "--patience", "10"]
    yield ["compare", str(recipe), *at, *more, "--out", run]


def equal_cost(task: str, at: list[str], more: list[str], arguments: argparse.Namespace) -> Iterator[list[str]]:
    """Each loss of equal-steps.toml in a run of its own, for as many steps as it makes in BUDGET_S on this machine."""
    folder = Path(f"{arguments.out}/equal-cost-{task}")
    recipe, estimate = folder / "recipe.toml", folder / ESTIMATE
    if not recipe.exists():
        folder.mkdir(parents=True, exist_ok=True)
        text = (HERE / "equal-steps.toml").read_text(encoding="utf-8")
        recipe.write_text(text.replace("TASK", task), encoding="utf-8")
    if not estimate.exists():  # measured once: what a run was begun by stays what it goes on by
        yield ["estimate", str(recipe), *at, *more, "--rounds", "9", "--out", str(estimate.parent)]
    losses = tomllib.loads(recipe.read_text(encoding="utf-8"))["losses"]
    for k, cost in enumerate(read_measured(estimate).steps):
        own = ["--losses", losses[cost.name], "--steps", str(round(BUDGET_S / cost.seconds)), "--out", f"{folder}/{k}"]
        yield ["compare", str(recipe), *at, *more, *own]


NAMES = (
    *RECIPES,
    "pdl-strong-denoising",
    *(f"{kind}:{task}" for kind in ("grid", "trainings", "equal-steps", "equal-cost") for task in TASKS),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", help="folder of sharp photographs")
    parser.add_argument("--evaluate", help="folder of others to evaluate on")
    parser.add_argument("--out", default="runs", help="folder for the runs' folders")
    parser.add_argument("--minutes", type=float, default=60, help="when to stop")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=NAMES, default=NAMES, help="see --list")
    parser.add_argument("--scale", choices=("small", "full"), default="small", help="of the papers' tables")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings for every comparison")
    parser.add_argument("--list", action="store_true", help="print the names of the experiments")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(NAMES))
        return 0
    if not arguments.train or not arguments.evaluate:
        parser.error("--train and --evaluate must name folders of photographs")
    end = time.monotonic() + 60 * arguments.minutes
    failed = []
    for name in arguments.only:
        for command in commands(name, arguments):
            print(f"{name}: veridical {' '.join(command)}", flush=True)
            status = run_until(end, [sys.executable, "-m", "veridical", *command])
            if time.monotonic() >= end:
                print(f"{arguments.minutes:g} minutes are over; the same command goes on from here.")
                return int(bool(failed))
            if status:
                failed.append(name)
                break
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def run_until(end: float, command: list[str]) -> int:
    """The status of a command, which is interrupted when `end` (of time.monotonic) comes before its own end."""
    process = subprocess.Popen(command)
    try:
        return process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()  # the last checkpoint stands
        return process.wait()


if __name__ == "__main__":
    raise SystemExit(main())
