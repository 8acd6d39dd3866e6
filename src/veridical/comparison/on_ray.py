"""The trainings of a comparison as tasks of a Ray cluster: `veridical compare --on ray`.

Ray decides which machine does what, by the resources of the recipe, and begins a task again when its machine or
process is lost; the cell then goes on from its last checkpoint. What a cell came to is read from the run, as when a
stopped comparison goes on. So no result passes through Ray, and this process may be stopped at any time.
"""

import contextlib
import dataclasses
import os
import platform
import time
import uuid
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from veridical.comparison.cell import Cell, Outcome, Relay, carry_out, cell_of, pass_on
from veridical.comparison.observer import Observer
from veridical.comparison.plan import Contender, Plan
from veridical.comparison.results import left_out, load_result
from veridical.comparison.storage import OF_TRAINING, PICTURES
from veridical.comparison.sweep import title
from veridical.core import catalog
from veridical.core.errors import RecipeError, VeridicalError
from veridical.training.recipe import Resources

# Told to the machines where it is set here. No secrets: a cluster shows such variables to whoever asks it.
_PASSED_ON = ("VERIDICAL_WEIGHTS", "VERIDICAL_OFFLINE", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
_STOPPING_SECONDS = 60.0  # for the steps that run to end, and to be saved


class Comparison(Protocol):
    """What is needed here of a comparison that is carried out."""

    @property
    def plan(self) -> Plan: ...


C = TypeVar("C", bound=Comparison)


def run_cells(
    waiting: Sequence[tuple[C, Contender]], observer: Observer, on: str
) -> Generator[tuple[C, Contender], None, list[tuple[tuple[C, Contender], str]]]:
    """Carry out trainings on the machines of a cluster; yields each as it ends, with what became of it. Returns those
    that could not be finished, and why.

    Args:   on: "ray", or the address of a cluster.
    Errors: MissingExtra without Ray. RecipeError when there is no cluster at that address. Ctrl-C lets the steps that
            run end, and be saved.
    """
    if not waiting:
        return []
    ray = catalog.require("ray", "ray", f"--on {on}")
    with _connected(ray, on):
        return (yield from _carried_out(ray, waiting, observer))


def _carried_out(
    ray: Any, waiting: Sequence[tuple[C, Contender]], observer: Observer
) -> Generator[tuple[C, Contender], None, list[tuple[tuple[C, Contender], str]]]:
    titles = [title(comparison.plan, contender) for comparison, contender in waiting]
    board = _board(ray)
    reader = _Reader(ray, board, titles, observer)
    running = _submitted(ray, waiting, titles, board, observer)
    unfinished = []
    try:
        while running:
            ended, _ = ray.wait(list(running), timeout=1)
            reader.pass_on()
            for reference in ended:
                number = running.pop(reference)
                plan, contender = waiting[number][0].plan, waiting[number][1]
                outcome = _outcome(ray, reference)
                _take_over(plan, contender, outcome)
                trainings = plan.trainings[contender.name]
                if left_out(contender, trainings):
                    contender.status = "waiting"
                elif contender.status == "waiting":
                    unfinished.append((waiting[number], outcome.error or "nobody said why"))
                    observer.loss_ends(titles[number], "failed", 0, outcome.error)
                    continue
                if contender.status == "failed":
                    later = {id(each) for each in trainings if left_out(each, trainings)}
                    _cancel(ray, [each for each, other in running.items() if id(waiting[other][1]) in later])
                yield waiting[number]
    except BaseException:
        _stop(ray, list(running), observer)
        raise
    return unfinished


def _submitted(
    ray: Any, waiting: Sequence[tuple[C, Contender]], titles: Sequence[str], board: Any, observer: Observer
) -> dict[Any, int]:
    """The tasks, with the place of each in the list."""
    task = ray.remote(_cell_of_ray)
    asked: dict[int, dict[str, Any]] = {}
    running = {}
    for number, ((comparison, contender), name) in enumerate(zip(waiting, titles, strict=True)):
        plan = comparison.plan
        if id(plan) not in asked:
            asked[id(plan)] = _options(ray, plan)
            _say_if_too_much(ray, asked[id(plan)], observer)
        run = plan.store.url or str(plan.folder.absolute())
        cell = dataclasses.asdict(cell_of(plan, contender, run, max(1, int(plan.recipe.resources.cpus))))
        running[task.options(name=name, **asked[id(plan)]).remote(cell, board, number)] = number
    return running


def _take_over(plan: Plan, contender: Contender, outcome: Outcome) -> None:
    """What became of a training, from its files; where it left none, from what its machine said."""
    plan.store.pull(contender.place, without=(*OF_TRAINING, *PICTURES))
    load_result(plan, contender, look=False)  # it has just been written, and to read all images here would hold up all
    if contender.status not in ("done", "failed"):
        contender.status, contender.error = outcome.status, outcome.error


def _outcome(ray: Any, reference: Any) -> Outcome:
    try:
        return Outcome(**ray.get(reference))
    except ray.exceptions.TaskCancelledError:
        return Outcome("waiting", "not needed any more")
    except ray.exceptions.RayTaskError as error:
        return Outcome("waiting", f"an error that is ours: {str(error).strip().splitlines()[-1]}")
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return Outcome("waiting", f"its machine or process was lost, again and again: {' '.join(lines[:2])}")


# ---- the cluster ----


@contextlib.contextmanager
def _connected(ray: Any, on: str) -> Iterator[None]:
    """To the cluster of that address; without one, to the one that Ray finds, else to one made of this machine."""
    if ray.is_initialized():
        yield
        return
    name, _, address = on.partition("://")
    if name != "ray":
        raise RecipeError(f"--on must be ray or ray://HOST:PORT, but got {on!r}.")
    variables = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
    arguments: dict[str, Any] = {"log_to_driver": False, "runtime_env": {"env_vars": variables}}
    try:
        ray.init(on if address else None, logging_level="warning", **arguments)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        raise RecipeError(
            f"cannot reach a Ray cluster at {on}: {error}. Is it running, and of the same Ray? One that asks for "
            "a token wants RAY_AUTH_MODE=token here, and the file ~/.ray/auth_token of its head."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _options(ray: Any, plan: Plan) -> dict[str, Any]:
    """What a task asks of its machine."""
    wanted: Resources = plan.recipe.resources
    settings = plan.recipe.training
    gpus = wanted.gpus
    if gpus is None:
        there = settings.device in ("cuda", "auto") and ray.cluster_resources().get("GPU", 0)
        gpus = float(settings.devices) if there else 0.0
    options: dict[str, Any] = {
        "num_cpus": wanted.cpus,
        "num_gpus": gpus,
        "resources": wanted.custom or None,
        "max_retries": wanted.retries,
    }
    if wanted.memory_gb is not None:
        options["memory"] = int(wanted.memory_gb * 2**30)
    return options


def _say_if_too_much(ray: Any, options: dict[str, Any], observer: Observer) -> None:
    asked = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], "memory": options.get("memory", 0)}
    asked |= options["resources"] or {}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(each.get(name, 0) >= much for name, much in asked.items()) for each in machines):
        listed = ", ".join(f"{much:g} {name}" for name, much in asked.items() if much)
        observer.note(
            f"no machine of the cluster has {listed}, which a training asks for ([resources] in the recipe); waiting "
            "for one. Ctrl-C ends that."
        )


def _cell_of_ray(cell: dict[str, Any], board: Any, number: int) -> dict[str, Any]:
    """Runs on a machine of the cluster."""

    def tell(*event: Any) -> None:
        board.tell.remote(number, event)

    tell("begins", platform.node())
    return dataclasses.asdict(carry_out(Cell(**cell), Relay(tell)))


# ---- progress ----


class _Board:
    """What the cells tell, until whoever reads it has it."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex  # of this board: one that is begun again counts anew
        self.told = 0
        self.events: deque[tuple[int, tuple[Any, ...]]] = deque(maxlen=10_000)

    def tell(self, number: int, event: tuple[Any, ...]) -> None:
        self.events.append((number, event))
        self.told += 1

    def read(self, name: str, known: int) -> tuple[str, int, list[tuple[int, tuple[Any, ...]]]]:
        """The events after the first `known` of the board of that name; those are forgotten."""
        had = min(max(0, known - (self.told - len(self.events))) if name == self.name else 0, len(self.events))
        for _ in range(had):
            self.events.popleft()
        return self.name, self.told, list(self.events)


class _Reader:
    """Reads the board; an answer that is lost on the way is asked for again."""

    def __init__(self, ray: Any, board: Any, titles: Sequence[str], observer: Observer) -> None:
        self.ray, self.board, self.titles, self.observer = ray, board, titles, observer
        self._name, self._known = "", 0

    def pass_on(self) -> None:
        """Tell the observer what is new."""
        try:
            answer = self.ray.get(self.board.read.remote(self._name, self._known), timeout=10)
        except self.ray.exceptions.RayError:
            return  # later; if the board is lost, what was on it is only progress
        self._name, self._known, events = answer
        for number, (name, *values) in events:
            if name == "begins":
                self.observer.elsewhere(self.titles[number], *values)
            else:
                pass_on((name, *values), self.observer.of(self.titles[number]))


def _board(ray: Any) -> Any:
    """On the machine of this process, so that no other's loss takes it away."""
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    return ray.remote(_Board).options(num_cpus=0, max_restarts=-1, scheduling_strategy=strategy).remote()


# ---- an end before the end ----


def _cancel(ray: Any, references: Sequence[Any]) -> None:
    for reference in references:
        ray.cancel(reference, force=False)


def _stop(ray: Any, running: list[Any], observer: Observer) -> None:
    """As Ctrl-C does with one training: every step that runs ends, and is saved."""
    observer.note(f"stopping {len(running)} trainings; what runs ends its step and saves it")
    with contextlib.suppress(ray.exceptions.RayError, VeridicalError):
        _cancel(ray, running)
        until = time.monotonic() + _STOPPING_SECONDS
        while running and time.monotonic() < until:
            _, running = ray.wait(running, timeout=1)
