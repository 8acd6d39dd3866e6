"""How long a grid of trainings takes on so many workers: a simulation of discrete events. Nothing here is measured.

The driver makes everything ready. A worker is a process with a device of its own. It starts, and then takes one cell
after the other from the front of the queue. For the first cell of a task it reads the photographs; a cell is a training
with its checkpoints, and an evaluation. Whatever is written or read goes through one storage whose bandwidth all
transfers at a time share equally. Each task has a driver, which records its finished cells. A worker that is lost takes
with it the steps since the last checkpoint; its cell goes back to the front of the queue, and a new worker starts.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from veridical.core.errors import VeridicalError

# What a worker may spend its time on; "idle": there is no cell left for it, though others are at work.
SPENDING = ("device", "batches", "preparing", "evaluation", "checkpoints", "storage", "driver", "lost", "idle")


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation; seconds are those of a worker.

    task:     cells of one task share photographs, and a run folder. preparing_s: before the first step.
    device_s: of one step on the device. making_s: of one core, to make the batch of a step.
    checkpoint_every: steps. checkpoint_s: to put one together. result_bytes: written at the end.
    """

    name: str
    task: str = ""
    preparing_s: float = 0.0
    steps: int = 1
    device_s: float = 1.0
    making_s: float = 0.0
    checkpoint_every: int = 10**9
    checkpoint_s: float = 0.0
    checkpoint_bytes: float = 0.0
    evaluation_s: float = 0.0
    result_bytes: float = 0.0

    def step_s(self, makers: int) -> float:
        """Of one step, where so many processes make batches beside it; with none they are made in between the steps."""
        return max(self.device_s, self.making_s / makers) if makers else self.device_s + self.making_s

    def seconds(self, makers: int) -> float:
        """Of the whole cell, with a storage that takes no time."""
        checkpoints = math.ceil(self.steps / self.checkpoint_every)
        trained = self.steps * self.step_s(makers) + checkpoints * self.checkpoint_s
        return self.preparing_s + trained + self.evaluation_s


@dataclass(frozen=True)
class Photographs:
    """What a worker does before its first cell of a task: seconds of decoding, bytes from the storage."""

    seconds: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """Where the cells are carried out.

    makers:        processes of each worker that make batches.
    before_s:      of the driver, before the first worker starts.
    start_s:       until a new worker process has imported what it needs.
    storage:       bytes a second that all share.
    record_s:      of a driver to record what is finished, and record_growth_s more for each finished cell of the task.
    sparing:       it does so after each cell, but not before so many times as long as the last time took have passed;
                   and once more at the end.
    driver_waits:  whether a worker's next cell waits until its last is recorded, as where both are one process.
    lost_every_s:  mean seconds that a worker lives; infinite for ever.
    """

    workers: int = 1
    makers: int = 0
    before_s: float = 0.0
    start_s: float = 0.0
    storage: float = math.inf
    record_s: float = 0.0
    record_growth_s: float = 0.0
    sparing: float = 0.0
    driver_waits: bool = False
    lost_every_s: float = math.inf

    def __post_init__(self) -> None:
        durations = ("before_s", "start_s", "record_s", "record_growth_s", "sparing")
        for name in ("workers", "makers", *durations):
            least = int(name == "workers")
            if not getattr(self, name) >= least:
                raise VeridicalError(f"{name} must be at least {least}, but got {getattr(self, name)!r}.")
        for name in ("storage", "lost_every_s"):
            if not getattr(self, name) > 0:
                raise VeridicalError(f"{name} must be greater than 0, but got {getattr(self, name)!r}.")


@dataclass(frozen=True)
class Finished:
    """A cell that was carried out to its end. worker: its number; begun, ended: seconds from the start, of the try that
    ended it."""

    cell: Cell
    worker: int
    begun: float
    ended: float


@dataclass(frozen=True)
class Schedule:
    """What became of a grid of cells.

    seconds:  until the driver has recorded the last cell. finished: in the order in which they ended.
    spent:    seconds of all workers together, by SPENDING; they add up to workers * seconds.
    moved:    bytes through the storage. losses: of workers.
    """

    cluster: Cluster
    seconds: float
    finished: tuple[Finished, ...]
    spent: Mapping[str, float]
    moved: float
    losses: int

    @property
    def shares(self) -> dict[str, float]:
        """Of the workers' time."""
        whole = self.cluster.workers * self.seconds
        return {name: self.spent[name] / whole if whole else 0.0 for name in SPENDING}

    @property
    def bottleneck(self) -> str:
        """What the workers spend most of their time on."""
        return max(SPENDING, key=lambda name: self.spent[name])


def longest_first(cells: Sequence[Cell], makers: int = 0) -> list[Cell]:
    """The cells from the longest down.

    A queue in this order ends at most a third later than the best plan, and in any order at most twice as late.
    Source: Graham, "Bounds on multiprocessing timing anomalies", SIAM Journal on Applied Mathematics 17 (1969) 416-429.
    """
    return sorted(cells, key=lambda cell: -cell.seconds(makers))


def simulate(
    cells: Sequence[Cell], cluster: Cluster, photographs: Mapping[str, Photographs] | None = None, *, seed: int = 0
) -> Schedule:
    """Carry out the cells in this order. photographs: by task. seed: of when workers are lost.

    Errors: VeridicalError where workers are lost so often that the cells hardly ever end.
    """
    return _Simulation(cells, cluster, photographs or {}, seed).run()


# ---- the events ----


@dataclass(frozen=True)
class _Hold:
    """Go on after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class _Move:
    """Go on when so many bytes have gone through the storage."""

    bytes: float


@dataclass(frozen=True)
class _Record:
    """Tell the driver of a finished cell, and wait for it where it is waited for."""

    cell: Cell


@dataclass(frozen=True)
class _Park:
    """Go on when a cell has come back."""


_Doing = Iterator[_Hold | _Move | _Record | _Park]


class _Lost(Exception):
    """The worker process has died."""


@dataclass
class _Work:
    """A cell in the queue; done: steps that are in a checkpoint."""

    cell: Cell
    done: int = 0


@dataclass
class _Storage:
    """Transfers that share one bandwidth equally: one ends when as many bytes have gone by for each as it has.

    passed: bytes for a transfer that was there all the time.
    """

    bandwidth: float
    now: float = 0.0
    passed: float = 0.0
    ends: list[tuple[float, int]] = field(default_factory=list)

    def advance(self, now: float) -> None:
        if self.ends:
            self.passed += (now - self.now) * self.bandwidth / len(self.ends)
        self.now = now

    def begin(self, worker: int, amount: float) -> None:
        heapq.heappush(self.ends, (self.passed + amount, worker))

    @property
    def next(self) -> float:
        """When the next transfer ends, if none begins until then."""
        if not self.ends:
            return math.inf
        return self.now + max(0.0, self.ends[0][0] - self.passed) * len(self.ends) / self.bandwidth

    def end(self) -> int:
        """The worker whose transfer has ended."""
        self.passed, worker = heapq.heappop(self.ends)
        return worker


@dataclass
class _Driver:
    """Of one task. free: when it has done what it was told. cells: that it was told of; written: how many of them are
    recorded. next: when it may record again."""

    cluster: Cluster
    free: float = 0.0
    next: float = 0.0
    cells: int = 0
    written: int = 0

    def record(self, now: float) -> float:
        """Tell it of a finished cell; -> when it has time again."""
        self.cells += 1
        self.free = max(self.free, now)
        if self.free >= self.next:
            self._write()
        return self.free

    def end(self) -> float:
        """When all is recorded."""
        if self.written < self.cells:
            self._write()
        return self.free

    def _write(self) -> None:
        seconds = self.cluster.record_s + self.cluster.record_growth_s * self.cells
        self.free += seconds
        self.next = self.free + self.cluster.sparing * seconds
        self.written = self.cells


class _Simulation:
    def __init__(
        self, cells: Sequence[Cell], cluster: Cluster, photographs: Mapping[str, Photographs], seed: int
    ) -> None:
        self.cluster, self.photographs = cluster, photographs
        self.queue = deque(_Work(cell) for cell in cells)
        self.most_losses = 100 * (len(cells) + cluster.workers)
        self.random = random.Random(seed)
        self.storage = _Storage(cluster.storage)
        self.timers: list[tuple[float, int]] = []
        self.parked: deque[int] = deque()
        self.spent = dict.fromkeys(SPENDING, 0.0)
        self.drivers: dict[str, _Driver] = {}
        self.finished: list[Finished] = []
        self.moved = 0.0
        self.losses = 0

    def run(self) -> Schedule:
        workers = [_Worker(number, self) for number in range(self.cluster.workers)]
        self.spent["driver"] += self.cluster.workers * self.cluster.before_s
        for worker in workers:
            self._go_on(worker, self.cluster.before_s)
        while True:
            timed, moved = self.timers[0][0] if self.timers else math.inf, self.storage.next
            now = min(timed, moved)
            if now == math.inf:
                break
            self.storage.advance(now)
            number = heapq.heappop(self.timers)[1] if timed <= moved else self.storage.end()
            self._go_on(workers[number], now)
        last = max((each.ended for each in self.finished), default=0.0)
        seconds = max([last, self.cluster.before_s, *(each.end() for each in self.drivers.values())])
        # Where a worker did nothing: after the last cell all wait for the driver, before it there was no cell left.
        rest = max(0.0, self.cluster.workers * seconds - sum(self.spent.values()))
        waiting = min(rest, self.cluster.workers * (seconds - last))
        self.spent["driver"] += waiting
        self.spent["idle"] += rest - waiting
        return Schedule(self.cluster, seconds, tuple(self.finished), dict(self.spent), self.moved, self.losses)

    def take(self) -> _Work | None:
        return self.queue.popleft() if self.queue else None

    def give_back(self, work: _Work, now: float) -> None:
        """The cell of a worker that was lost; whoever has nothing to do takes it."""
        self.queue.appendleft(work)
        if self.parked:
            heapq.heappush(self.timers, (now, self.parked.popleft()))

    def lose(self) -> None:
        self.losses += 1
        if self.losses > self.most_losses:
            raise VeridicalError(
                f"a worker is lost every {self.cluster.lost_every_s / 3600:.3g} hours, too often for these cells: they "
                "hardly ever come to their next checkpoint. Set a smaller training.checkpoint_every."
            )

    def _go_on(self, worker: "_Worker", now: float) -> None:
        worker.now = now
        wanted = next(worker.doing)
        if isinstance(wanted, _Hold):
            heapq.heappush(self.timers, (now + wanted.seconds, worker.number))
        elif isinstance(wanted, _Move):
            self.moved += wanted.bytes
            if wanted.bytes and self.cluster.storage < math.inf:
                self.storage.begin(worker.number, wanted.bytes)
            else:
                heapq.heappush(self.timers, (now, worker.number))
        elif isinstance(wanted, _Record):
            driver = self.drivers.setdefault(wanted.cell.task, _Driver(self.cluster))
            free = driver.record(now)
            heapq.heappush(self.timers, (free if self.cluster.driver_waits else now, worker.number))
        else:
            self.parked.append(worker.number)


class _Worker:
    """One worker, and those that come in its place. now: set by whoever goes on with `doing`."""

    def __init__(self, number: int, simulation: _Simulation) -> None:
        self.number, self.simulation = number, simulation
        self.now, self.dies = 0.0, math.inf
        self.work: _Work | None = None
        self.doing = self._lives()

    def _lives(self) -> _Doing:
        while True:
            self.dies = self._death()
            try:
                yield from self._life()
            except _Lost:
                self.simulation.lose()
                if self.work is not None:
                    self.simulation.give_back(self.work, self.now)
                    self.work = None

    def _death(self) -> float:
        every = self.simulation.cluster.lost_every_s
        return self.now + self.simulation.random.expovariate(1 / every) if every < math.inf else math.inf

    def _life(self) -> _Doing:
        cluster = self.simulation.cluster
        known: set[str] = set()
        yield from self._hold("preparing", cluster.start_s)
        while True:
            while (work := self.simulation.take()) is None:
                yield _Park()
                if self.now > self.dies:  # it had nothing to do: nobody noticed
                    self.dies = self._death()
            self.work, begun = work, self.now
            if work.cell.task not in known:
                known.add(work.cell.task)
                read = self.simulation.photographs.get(work.cell.task, Photographs())
                yield from self._move(read.bytes)
                yield from self._hold("preparing", read.seconds)
            yield from self._cell(work)
            self.work = None
            self.simulation.finished.append(Finished(work.cell, self.number, begun, self.now))
            ended = self.now
            yield _Record(work.cell)
            self.simulation.spent["driver"] += self.now - ended

    def _cell(self, work: _Work) -> _Doing:
        cell, makers = work.cell, self.simulation.cluster.makers
        yield from self._hold("preparing", cell.preparing_s)
        if work.done:  # another worker's checkpoint
            yield from self._move(cell.checkpoint_bytes)
        step_s = cell.step_s(makers)
        while work.done < cell.steps:
            steps = min(cell.checkpoint_every, cell.steps - work.done)
            yield from self._hold("device", steps * step_s, batches=steps * (step_s - cell.device_s))
            yield from self._hold("checkpoints", cell.checkpoint_s)
            yield from self._move(cell.checkpoint_bytes)
            work.done += steps
        yield from self._hold("evaluation", cell.evaluation_s)
        yield from self._move(cell.result_bytes)

    def _hold(self, what: str, seconds: float, *, batches: float = 0.0) -> _Doing:
        """Spend seconds on something, so many of them waiting for batches."""
        begun, spent = self.now, self.simulation.spent
        if begun + seconds > self.dies:
            yield _Hold(max(0.0, self.dies - begun))
            spent["lost"] += self.now - begun
            raise _Lost
        yield _Hold(seconds)
        spent[what] += self.now - begun - batches
        spent["batches"] += batches

    def _move(self, amount: float) -> _Doing:
        begun = self.now
        yield _Move(amount)
        lost = self.now > self.dies
        self.simulation.spent["lost" if lost else "storage"] += self.now - begun
        if lost:
            raise _Lost
