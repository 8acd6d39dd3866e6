"""One training of a comparison that another process has begun, perhaps on another machine: a cell of its grid.

All that a cell is told is text: the recipe, and where the run is. All that it leaves are files in the run: checkpoints,
the model, the result. So it does not matter where it is carried out, nor how often it is begun.

`python -m veridical.comparison.cell FILE` carries one out in a process of its own, as trainings on several devices
need: Lightning Fabric starts the other processes as copies of that command.
"""

import atexit
import copy
import functools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from veridical import __version__
from veridical.comparison.observer import Observer
from veridical.comparison.plan import Contender, Plan, prepare
from veridical.comparison.results import load_result
from veridical.comparison.sources import Sources
from veridical.comparison.storage import OF_TRAINING, Mirror, Store, is_url
from veridical.comparison.sweep import run_one
from veridical.core.errors import DataError, FolderInUse, VeridicalError
from veridical.training.devices import is_first
from veridical.training.recipe import Recipe, make_recipe

_PATIENCE_S = 60.0
VERSIONS = {"veridical": __version__, "torch": torch.__version__.partition("+")[0]}


@dataclass(frozen=True)
class Cell:
    """run: the absolute path of the run, or its URL. place: of the training inside it. recipe: that of the run, of this
    loss and model alone. cwd: where the recipe's paths start. threads: of torch. versions: of what began the run."""

    run: str
    place: str
    recipe: str
    cwd: str
    threads: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: "done", "failed", or "waiting" when it could not be finished here, and why."""

    status: str
    error: str | None = None


def cell_of(plan: Plan, contender: Contender, run: str, threads: int) -> Cell:
    """The cell of one training of a plan."""
    parts: dict[str, object] = {"losses": {contender.loss_name: contender.spec}, "classical": ()}
    if plan.recipe.models:
        parts["models"] = {contender.model.label: plan.recipe.models[contender.model.label]}
    recipe = plan.recipe.model_copy(update=parts).to_toml()
    return Cell(run, contender.place.as_posix(), recipe, str(Path.cwd()), threads, VERSIONS)


def carry_out(cell: Cell, observer: Observer) -> Outcome:
    """Train and evaluate what is left of a cell; in other processes, where it takes several devices."""
    try:
        if Path(cell.cwd).is_dir():
            os.chdir(cell.cwd)
        _check_machine(cell)
        recipe = make_recipe(tomllib.loads(cell.recipe))
        if recipe.training.processes > 1 and __name__ != "__main__":
            return _apart(cell, observer)
        torch.set_num_threads(cell.threads)
        plan, contender = _prepared(cell, recipe)
        plan.store.pull(contender.place, without=OF_TRAINING)
        if not load_result(plan, contender):
            _patiently(lambda: run_one(plan, contender, observer))
    except VeridicalError as error:
        return Outcome("waiting", f"{error} ({platform.node()})")
    if isinstance(plan.store, Mirror):
        for place in (contender.place, contender.images):
            shutil.rmtree(plan.folder / place, ignore_errors=True)
    return Outcome(contender.status, contender.error)


def _patiently(run: Callable[[], None]) -> None:
    """run(), once a process that was given up for lost has let go of the folder."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return run()
        except FolderInUse:
            if time.monotonic() > until:
                raise
            time.sleep(1)


def _check_machine(cell: Cell) -> None:
    """Raise DataError where a cell cannot be what it would be elsewhere."""
    differing = [f"{name} {VERSIONS[name]}, not {was}" for name, was in cell.versions.items() if VERSIONS[name] != was]
    if differing:
        raise DataError(f"this machine has {'; '.join(differing)}. Install what the comparison was begun with.")
    if not is_url(cell.run) and not (Path(cell.run) / "recipe.toml").is_file():
        raise DataError(
            f"this machine does not see the run folder {cell.run}. Give a folder that all machines share, or the URL "
            "of a storage: --out s3://bucket/run."
        )


def _prepared(cell: Cell, recipe: Recipe) -> tuple[Plan, Contender]:
    """The plan of this training alone. The photographs stay read for the next cell of the same data."""
    store: Store = Store()
    folder = Path(cell.run)
    if is_url(cell.run):
        folder = _scratch()
        store = Mirror(cell.run, folder)
        store.pull("comparison.json")
    data = recipe.model_copy(update={"losses": {}, "models": None})
    key = f"{cell.run} {data.to_toml()}"
    plan = prepare(recipe, folder, Observer(), leave_out=False, begin=False, sources=_read.get(key))
    _read.clear()
    _read[key] = plan.sources
    found = next((each for each in plan.contenders if each.place.as_posix() == cell.place), None)
    if found is None:
        raise DataError(f"the run {cell.run} has no training {cell.place!r}: another process has changed it.")
    return replace(plan, store=store), copy.copy(found)


_read: dict[str, Sources] = {}


@functools.cache
def _scratch() -> Path:
    """The folder of this process for runs on a storage."""
    folder = Path(tempfile.mkdtemp(prefix="veridical-cell-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class Relay(Observer):
    """Tells what it hears of a training as names and plain values; of the steps, one a second at most."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell, self._next = tell, 0.0

    def started(self, total_steps: int, start_step: int) -> None:
        self._tell("started", total_steps, start_step)

    def step(self, step: int, total: float, terms: dict[str, float], rate: float) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 1
            self._tell("step", step, total, terms, rate)

    def note(self, text: str) -> None:
        self._tell("note", text)

    def doing(self, what: str, done: int, total: int) -> None:
        self._tell("doing", what, done, total)


def pass_on(event: Sequence[Any], observer: Observer) -> None:
    """Tell an observer what a Relay told."""
    tell: dict[str, Callable[..., None]] = {
        "started": observer.started,
        "step": observer.step,
        "note": observer.note,
        "doing": observer.doing,
    }
    tell[event[0]](*event[1:])


# ---- in processes of its own ----


def _apart(cell: Cell, observer: Observer) -> Outcome:
    """Carry a cell out in another process, which is joined by others."""
    with tempfile.TemporaryDirectory(prefix="veridical-cell-") as folder:
        file, said = Path(folder) / "cell.json", Path(folder) / "stderr"
        file.write_text(json.dumps(asdict(cell)))
        environment = os.environ | {"OMP_NUM_THREADS": str(cell.threads)}
        with (
            said.open("w") as stderr,
            subprocess.Popen(
                [sys.executable, "-m", __spec__.name, str(file)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
            ) as process,
        ):
            assert process.stdout is not None
            outcome = None
            try:
                for line in process.stdout:
                    event = json.loads(line) if line.startswith("[") else ["other"]
                    if event[0] == "outcome":
                        outcome = Outcome(*event[1:])
                    elif event[0] != "other":
                        pass_on(event, observer)
            except BaseException:
                process.send_signal(signal.SIGINT)  # it ends its step and saves
                raise
        why = said.read_text(errors="replace").strip()[-500:]
    return outcome or Outcome("waiting", f"its process ended with status {process.returncode}: {why}")


def _main() -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    def tell(*event: Any) -> None:
        print(json.dumps(event), flush=True)

    outcome = carry_out(Cell(**json.loads(Path(sys.argv[1]).read_text())), Relay(tell))
    if is_first():
        tell("outcome", outcome.status, outcome.error)


def _end_with(parent: int) -> None:
    """So that nothing goes on, and holds a device, when what asked for it was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    _main()
