"""What a whole comparison takes, on so many workers: made of what was measured here and of what is assumed of them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from veridical.comparison.estimate import Measured
from veridical.comparison.schedule import Cell, Cluster, Photographs, Schedule, longest_first, simulate
from veridical.core.errors import VeridicalError
from veridical.training.checkpoint import KEEP

# What a share of the workers' time is called, and what to do about it.
NAMES = {
    "device": "device",
    "batches": "making batches",
    "preparing": "starting, reading",
    "evaluation": "evaluation",
    "checkpoints": "checkpoints",
    "storage": "storage",
    "driver": "driver",
    "lost": "lost workers",
    "idle": "last cells",
}
# A driver rests so many times as long as it took to record what is finished; as comparison/sweep.py does.
_SPARING = 10.0
# A change that saves less than this share of the time is not worth a word.
_WORTH = 0.02


@dataclass(frozen=True)
class Grid:
    """So many losses (the measured ones, again and again), in so many tasks that cost as the measured one, with so many
    training seeds."""

    losses: int
    tasks: int = 1
    seeds: int = 1

    @property
    def cells(self) -> int:
        return self.losses * self.tasks * self.seeds

    def __str__(self) -> str:
        return f"{self.losses}x{self.tasks}x{self.seeds}"


def read_grid(text: str) -> Grid:
    """Losses x tasks x seeds.

    Errors: VeridicalError.

    >>> read_grid("100x5x3").cells
    1500
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text.strip())
    if not match:
        raise VeridicalError(f"cannot read the grid {text!r}. Expected losses x tasks x seeds, such as 100x5x3.")
    return Grid(*map(int, match.groups()))


@dataclass(frozen=True)
class Assumed:
    """What nobody has measured here.

    workers:   devices that train at once. apart: in processes apart from the driver's, as with --on ray; None for more
               than one.
    speed:     how many times as fast as the device measured on each of them computes. What the processor does
               (batches, photographs, files, Python) stays as it was measured.
    storage:   bytes a second, of all workers together.
    cpus:      cores for the processes that make a worker's batches; None for as many as the recipe asks for.
    lost_every_hours: how long a worker lives on average.
    """

    workers: int = 1
    apart: bool | None = None
    speed: float = 1.0
    storage: float = math.inf
    cpus: int | None = None
    lost_every_hours: float = math.inf

    def __post_init__(self) -> None:
        for name in ("speed", "storage", "lost_every_hours"):
            if not getattr(self, name) > 0:
                raise VeridicalError(f"{name} must be greater than 0, but got {getattr(self, name)!r}.")
        if self.cpus is not None and self.cpus < 1:
            raise VeridicalError(f"each worker needs at least 1 core, but got {self.cpus!r}.")


@dataclass(frozen=True)
class Forecast:
    """What a grid takes. schedule: with the longest cells first; in_order: with the cells as the recipe lists them.

    makers: processes of each worker that make batches. disk: bytes that are left at the end. advice: what would change
            the time, as sentences.
    """

    grid: Grid
    assumed: Assumed
    makers: int
    schedule: Schedule
    in_order: Schedule
    disk: float
    advice: tuple[str, ...]

    @property
    def hours(self) -> float:
        return self.schedule.seconds / 3600

    @property
    def worker_hours(self) -> float:
        return self.assumed.workers * self.hours

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "grid": {"losses": self.grid.losses, "tasks": self.grid.tasks, "seeds": self.grid.seeds},
            "workers": self.assumed.workers,
            "speed": self.assumed.speed,
            "storage_bytes_per_s": None if self.assumed.storage == math.inf else self.assumed.storage,
            "lost_every_hours": None if self.assumed.lost_every_hours == math.inf else self.assumed.lost_every_hours,
            "makers": self.makers,
            "hours": self.hours,
            "hours_in_the_recipe's_order": self.in_order.seconds / 3600,
            "worker_hours": self.worker_hours,
            "shares": self.schedule.shares,
            "bottleneck": NAMES[self.schedule.bottleneck],
            "disk_bytes": self.disk,
            "moved_bytes": self.schedule.moved,
            "workers_lost": self.schedule.losses,
            "advice": list(self.advice),
        }


def forecast(measured: Measured, grid: Grid, assumed: Assumed) -> Forecast:
    """Simulate the grid, and the changes that might pay."""
    makers = _makers(measured, assumed)
    given = cells(measured, grid, assumed)
    photographs = _photographs(measured, grid, assumed)
    cluster = _cluster(measured, assumed, makers)
    ordered = longest_first(given, makers)
    schedule, in_order = (simulate(each, cluster, photographs) for each in (ordered, given))
    trained = measured.recipe
    checkpoints = min(KEEP, math.ceil(trained["steps"] / trained["checkpoint_every"]))
    disk = grid.cells * (checkpoints * measured.checkpoint_bytes + _kept(measured, images=1 / grid.seeds))
    advice = tuple(_advice(measured, ordered, schedule, in_order, photographs))
    return Forecast(grid, assumed, makers, schedule, in_order, disk, advice)


def cells(measured: Measured, grid: Grid, assumed: Assumed) -> list[Cell]:
    """The cells in the order in which a comparison carries them out: task by task, seed by seed, loss by loss."""
    makers = _makers(measured, assumed)
    trained = measured.recipe
    kinds = []
    for cost, model in zip(measured.steps, measured.models, strict=True):
        device_s, making_s = cost.seconds / assumed.speed + measured.rest_s, measured.making_s(makers)
        # Where the device is the processor itself, such processes take cores from the model.
        if makers and measured.machine["device"] == "cpu" and assumed.speed == 1:
            device_s, making_s = device_s + making_s / measured.machine["threads"], 0.0
        kinds.append((cost.name, model, device_s, making_s))
    found = []
    for task in range(grid.tasks):
        for seed in range(grid.seeds):
            for loss in range(grid.losses):
                name, model, device_s, making_s = kinds[loss % len(kinds)]
                found.append(
                    Cell(
                        f"{name}, task {task}, seed {seed}, {loss // len(kinds)}",
                        str(task),
                        preparing_s=measured.cell_preparing_s if _apart(assumed) else 0.0,
                        steps=trained["steps"],
                        device_s=device_s,
                        making_s=making_s,
                        checkpoint_every=trained["checkpoint_every"],
                        checkpoint_s=measured.checkpoint_s,
                        checkpoint_bytes=measured.checkpoint_bytes,
                        evaluation_s=measured.evaluation.seconds(model, speed=assumed.speed, writes=seed == 0),
                        result_bytes=_kept(measured, float(seed == 0)),
                    )
                )
    return found


def bytes_per_step(measured: Measured, makers: int) -> dict[str, float]:
    """What a step reads: of decoded photographs in memory, of files, and of crops to the device."""
    trained, photographs = measured.recipe, measured.photographs
    count = trained["batch_size"]
    missing = photographs.missing(makers)
    return {
        "files": count * missing * photographs.file_bytes / photographs.count,
        "decoded": count * missing * photographs.decoded_bytes / photographs.count,
        "to_device": 2 * 4 * 3 * count * trained["crop"] ** 2,
    }


def _makers(measured: Measured, assumed: Assumed) -> int:
    wanted = int(measured.recipe["makers"])
    return wanted if assumed.cpus is None else min(wanted, assumed.cpus)


def _apart(assumed: Assumed) -> bool:
    return assumed.workers > 1 if assumed.apart is None else assumed.apart


def _photographs(measured: Measured, grid: Grid, assumed: Assumed) -> dict[str, Photographs]:
    """Those to evaluate on, too, which take as long as others."""
    if not _apart(assumed):
        return {}
    found = measured.photographs
    more = 1 + measured.evaluation.images / found.count
    read = Photographs(more * found.reading_s, more * found.file_bytes)
    return {str(task): read for task in range(grid.tasks)}


def _cluster(measured: Measured, assumed: Assumed, makers: int) -> Cluster:
    """The driver starts, checks everything, reads the photographs and evaluates the degraded images; where it is the
    only worker, too, nothing of that is done twice."""
    evaluation = measured.evaluation
    inputs = evaluation.degrading + sum(evaluation.metrics.values()) / assumed.speed + 2 * evaluation.writing
    apart = _apart(assumed)
    return Cluster(
        workers=assumed.workers,
        makers=makers,
        before_s=measured.start_s + measured.preparing_s + measured.photographs.reading_s + inputs,
        start_s=measured.start_s if apart else 0.0,
        storage=assumed.storage,
        record_s=measured.record_s,
        record_growth_s=measured.record_growth_s,
        sparing=_SPARING,
        driver_waits=not apart,
        lost_every_s=assumed.lost_every_hours * 3600,
    )


def _kept(measured: Measured, images: float) -> float:
    """Bytes that a cell leaves besides its checkpoints. images: the share of its restored images that is written."""
    rows = measured.recipe["steps"] / measured.recipe["log_every"]
    return measured.model_bytes + rows * measured.row_bytes + measured.result_bytes + images * measured.image_bytes


def _advice(
    measured: Measured,
    ordered: Sequence[Cell],
    schedule: Schedule,
    in_order: Schedule,
    photographs: dict[str, Photographs],
) -> list[str]:
    """What would change the time, each by a simulation of its own."""
    cluster, now = schedule.cluster, schedule.seconds

    def saved(changed: Cluster, given: Sequence[Cell] = ordered) -> float:
        return 1 - simulate(given, changed, photographs).seconds / now

    said = []
    if (gain := 1 - now / in_order.seconds) > _WORTH:
        said.append(f"longest cells first: {gain:.0%} less time than in the recipe's order")
    if cluster.workers < len(ordered):
        more = saved(replace(cluster, workers=2 * cluster.workers, driver_waits=False))
        said.append(f"twice the workers: {more:.0%} less time" if more > _WORTH else "more workers: hardly any faster")
    else:
        said.append(f"there are only {len(ordered)} cells, so more workers would have nothing to do")
    longest = max(cell.seconds(cluster.makers) for cell in ordered)
    if longest > 0.5 * now:
        said.append(
            f"the longest cell alone takes {longest / now:.0%} of the time: {ordered[0].name.partition(',')[0]}"
        )
    slowest = max(ordered, key=lambda cell: cell.making_s / cell.device_s)
    needed = math.ceil(slowest.making_s / min(cell.device_s for cell in ordered))
    if slowest.making_s and needed > cluster.makers and (gain := saved(replace(cluster, makers=needed))) > _WORTH:
        said.append(f"{needed} to make batches for each worker (training.workers): {gain:.0%} less time")
    if measured.photographs.missing(cluster.makers) > 0:
        quick = [replace(cell, making_s=measured.batch_s) for cell in ordered]
        if (gain := saved(cluster, quick)) > _WORTH:
            said.append(f"photographs that all fit into memory, or smaller ones: {gain:.0%} less time")
    if cluster.storage < math.inf and (gain := saved(replace(cluster, storage=2 * cluster.storage))) > _WORTH:
        said.append(f"twice the bandwidth of the storage: {gain:.0%} less time")
    quiet = replace(cluster, record_s=0.0, record_growth_s=0.0)
    if (gain := saved(quiet)) > _WORTH:
        said.append(f"a driver whose work takes no time: {gain:.0%} less time")
    if cluster.lost_every_s < math.inf:
        said.append(_checkpoint_every(measured, ordered[0], cluster))
    return said


def _checkpoint_every(measured: Measured, cell: Cell, cluster: Cluster) -> str:
    """Source: Young, "A first order approximation to the optimum checkpoint interval", Communications of the ACM 17
    (1974) 530-531: the root of twice the seconds of a checkpoint and the seconds between two losses."""
    taken = measured.checkpoint_s + (measured.checkpoint_bytes / cluster.storage)
    steps = math.sqrt(2 * taken * cluster.lost_every_s) / cell.step_s(cluster.makers)
    return f"a checkpoint every {max(1, round(steps))} steps of the longest cell loses least (Young 1974)"
