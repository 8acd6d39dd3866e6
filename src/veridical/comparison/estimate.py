"""What the cells of a comparison cost on this machine: each part measured by itself, in a folder that is thrown away.

A cell is one training and its evaluation. `forecast` makes of these costs what a whole comparison takes.
"""

import contextlib
import copy
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from veridical.comparison.architecture import Architecture, samples_for
from veridical.comparison.evaluate import Row, quantise, restored, score_images
from veridical.comparison.folder import read_json
from veridical.comparison.observer import Observer
from veridical.comparison.plan import Contender, Plan, prepare
from veridical.comparison.results import References, write_state
from veridical.core.errors import DataError
from veridical.core.files import write_image
from veridical.core.memory import peak_memory
from veridical.core.options import check_whole
from veridical.training import checkpoint as checkpoints
from veridical.training.data import CACHE_BYTES, Photograph, Samples, batches, decode
from veridical.training.devices import needs_fabric
from veridical.training.loop import Silent, train
from veridical.training.optimisation import make_optimizer
from veridical.training.recipe import Recipe
from veridical.training.settings import Settings
from veridical.training.stages import spread_over, stage_weights

# Photographs that are decoded, and images that are evaluated, to see what one costs.
LOOKED_AT = 4


@dataclass(frozen=True)
class StepCost:
    """What one loss with one model takes of the device in a step: medians, in seconds, and what they add up to.

    model:      forward and backward. loss: the same, to the prediction. learning: of what the loss itself trains.
    optimiser:  with the clipping of gradients. peak_bytes: held at once, beyond weights and optimiser.
    """

    name: str
    model: float
    loss: float
    learning: float
    optimiser: float
    peak_bytes: int

    @property
    def seconds(self) -> float:
        return self.model + self.loss + self.learning + self.optimiser


@dataclass(frozen=True)
class PhotographCosts:
    """The training photographs.

    count: of samples' sources, a pair counting once. file_bytes, decoded_bytes: of all. reading_s: all of them, on
    several threads, as a worker does before its first cell. decode_s: of one core, what a sample's source takes that is
    not in memory.
    """

    count: int
    file_bytes: int
    decoded_bytes: int
    reading_s: float
    decode_s: float

    def missing(self, makers: int) -> float:
        """The share of samples whose photograph is not in memory, where so many processes make batches: each keeps its
        part of CACHE_BYTES, and any photograph is as likely to come next as any other."""
        kept = CACHE_BYTES / max(1, makers)
        return max(0.0, 1 - kept / self.decoded_bytes) if self.decoded_bytes else 0.0


@dataclass(frozen=True)
class EvaluationCosts:
    """Of all evaluation images of one cell, in seconds. restoring: by model. metrics: by metric."""

    images: int
    megapixels: float
    degrading: float
    restoring: Mapping[str, float]
    metrics: Mapping[str, float]
    writing: float

    def seconds(self, model: str, *, speed: float = 1.0, writes: bool = True) -> float:
        """Of a cell, on a device so many times as fast; only the first seed's images are written."""
        device = self.restoring[model] + sum(self.metrics.values())
        return self.degrading + device / speed + (self.writing if writes else 0.0)


@dataclass(frozen=True)
class Measured:
    """The costs of one comparison, as measured here.

    machine:     as comparison.json describes it, with torch's threads. recipe: what of it decides the costs.
    start_s:     a process that imports what a worker needs, and wakes the device. preparing_s: every check before the
                 first step, without reading photographs.
    batch_s:     of one core, to make a batch of photographs that are decoded. rest_s: what the loop does in a step
                 besides the parts that are measured.
    steps:       of each loss (and model), in the recipe's order. models: which model each is of.
    checkpoint_s, checkpoint_bytes: of one. model_bytes, row_bytes (a row of training.csv, with its events),
                 result_bytes, image_bytes (all restored images of a cell): on disk.
    record_s, record_growth_s: what the driver takes for a finished cell, and more for each one before it.
    """

    machine: Mapping[str, Any]
    recipe: Mapping[str, Any]
    start_s: float
    preparing_s: float
    cell_preparing_s: float
    photographs: PhotographCosts
    batch_s: float
    rest_s: float
    steps: tuple[StepCost, ...]
    models: tuple[str, ...]
    checkpoint_s: float
    checkpoint_bytes: int
    model_bytes: int
    row_bytes: float
    result_bytes: float
    image_bytes: float
    evaluation: EvaluationCosts
    record_s: float
    record_growth_s: float

    def making_s(self, makers: int) -> float:
        """Of one core, to make a batch, with the decoding of what is not in memory."""
        found = self.photographs
        return self.batch_s + int(self.recipe["batch_size"]) * found.missing(makers) * found.decode_s

    def of_more(self, *, photographs: int | None = None, images: int | None = None) -> "Measured":
        """What so many photographs to train on, and images to evaluate on, of the same sizes would have come to."""
        more = (photographs or self.photographs.count) / self.photographs.count
        again = (images or self.evaluation.images) / self.evaluation.images
        old, judged = self.photographs, self.evaluation
        return replace(
            self,
            photographs=replace(
                old,
                count=round(more * old.count),
                file_bytes=round(more * old.file_bytes),
                decoded_bytes=round(more * old.decoded_bytes),
                reading_s=more * old.reading_s,
            ),
            evaluation=EvaluationCosts(
                images=round(again * judged.images),
                megapixels=again * judged.megapixels,
                degrading=again * judged.degrading,
                restoring={name: again * seconds for name, seconds in judged.restoring.items()},
                metrics={name: again * seconds for name, seconds in judged.metrics.items()},
                writing=again * judged.writing,
            ),
            result_bytes=again * self.result_bytes,
            image_bytes=again * self.image_bytes,
            record_growth_s=again * self.record_growth_s,
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Measured":
        """What `as_dict` gave, also through JSON. Errors: DataError when it is not that."""
        try:
            return cls(
                **{
                    **values,
                    "photographs": PhotographCosts(**values["photographs"]),
                    "evaluation": EvaluationCosts(**values["evaluation"]),
                    "steps": tuple(StepCost(**each) for each in values["steps"]),
                    "models": tuple(values["models"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise DataError(f"these are not the measurements of `veridical estimate`: {error}.") from error


def read_measured(path: Path) -> Measured:
    """The measurements in an estimate.json. Errors: DataError when there are none."""
    found = read_json(path).get("measured")
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no measurements. Expected an estimate.json written by `veridical estimate`.")
    return Measured.from_dict(found)


def measure(
    recipe: Recipe, scratch: Path, observer: Observer, *, rounds: int = 10, leave_out: bool = False
) -> Measured:
    """Measure the costs of a comparison, by small pieces of it.

    Args:   scratch: a folder for what it writes, on the storage that the runs will be on; the caller deletes it.
            rounds: steps of each loss that are timed, one of each in turn. Of several devices the share of one is
            measured, in one part. leave_out: as for compare.
    Errors: as for plan.prepare.
    """
    check_whole("rounds", rounds, low=1)
    settings = recipe.training
    share = settings.batch_size // (settings.devices * settings.nodes)
    one_device = replace(settings, devices=1, nodes=1, accumulate=1, batch_size=share, workers=0)
    begun = time.perf_counter()
    reading = _Reading(observer)
    plan = prepare(recipe.model_copy(update={"training": one_device}), scratch / "run", reading, leave_out=leave_out)
    preparing_s = time.perf_counter() - begun - reading.seconds
    first = [each for each in plan.contenders if not each.turn]
    total = rounds * len(first) + len(plan.models) + 3
    done = itertools.count(1)

    def advance() -> None:
        observer.doing("measuring", next(done), total)

    advance()
    photographs = _photographs(plan.sources.samples, reading.seconds)
    batch_s = _batch(plan)
    advance()
    steps = [cost for model in plan.models for cost in _steps(plan, model, rounds, advance)]
    whole_s, row_bytes = _training(plan, first[0], rounds, scratch / "cell")
    advance()
    saved = checkpoints.newest(scratch / "cell" / "checkpoints")
    assert saved is not None
    checkpoint_s = _saving(saved, scratch / "again")
    evaluation, image_bytes, result_bytes = _evaluation(plan, scratch / "images", advance)
    record_s, record_growth_s = _recording(plan, scratch / "record")
    about = read_json(scratch / "record" / "comparison.json")
    return Measured(
        machine={**about["machine"], "threads": torch.get_num_threads()},
        recipe={
            "task": plan.recipe.task,
            "degradation": plan.sources.degradation,
            "models": [model.described for model in plan.models],
            "dataset": plan.sources.described,
            "losses": len(plan.recipe.losses),
            "seeds": settings.seeds,
            "steps": settings.steps,
            "batch_size": one_device.batch_size,
            "crop": settings.crop,
            "precision": settings.precision,
            "makers": settings.workers,
            "log_every": settings.log_every,
            "checkpoint_every": settings.checkpoint_every,
            "rounds": rounds,
        },
        start_s=_starting(plan.device, settings),
        preparing_s=preparing_s,
        cell_preparing_s=_preparing_again(plan),
        photographs=photographs,
        batch_s=batch_s,
        rest_s=max(0.0, whole_s - batch_s - steps[0].seconds),
        steps=tuple(steps),
        models=tuple(each.model.called for each in first),
        checkpoint_s=checkpoint_s,
        checkpoint_bytes=_size(saved),
        model_bytes=_size(saved / "model.safetensors"),
        row_bytes=row_bytes,
        result_bytes=result_bytes,
        image_bytes=image_bytes,
        evaluation=evaluation,
        record_s=record_s,
        record_growth_s=record_growth_s,
    )


# ---- before the first step ----


class _Reading(Observer):
    """Passes on what it hears, and times the reading of photographs. seconds: of all of them."""

    def __init__(self, other: Observer) -> None:
        self.other = other
        self.first = self.last = 0.0
        self.count = 0

    def doing(self, what: str, done: int, total: int) -> None:
        if what.startswith("reading"):
            now = time.perf_counter()
            self.first, self.last, self.count = (now if done == 1 else self.first), now, done
        self.other.doing(what, done, total)

    def fetching(self, name: str, done: int, total: int | None) -> None:
        self.other.fetching(name, done, total)

    def note(self, text: str) -> None:
        self.other.note(text)

    @property
    def seconds(self) -> float:
        """The first one's end is the first that is heard of it: its own time is taken to be that of the others."""
        return (self.last - self.first) * self.count / max(1, self.count - 1)


def _starting(device: torch.device, settings: Settings) -> float:
    """Of a process that finds the files in the system's memory, where this one has left them."""
    # The first optimiser imports torch._dynamo.
    modules = ["torch._dynamo", "tensorboard.summary.writer.record_writer"]
    if needs_fabric(settings):
        modules.append("lightning_fabric")
    code = (
        "import torch, veridical.comparison.sweep\n"
        f"for name in {modules}:\n"
        "    try: __import__(name)\n"
        "    except ImportError: pass\n"
        f"torch.zeros(1, device={str(device)!r})\n"
    )
    return _timed(lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True))


def _preparing_again(plan: Plan) -> float:
    """Of a worker, which is told of one training and has read the photographs: of the first loss and of the last."""
    losses = list(plan.recipe.losses.items())
    recipes = [plan.recipe.model_copy(update={"losses": dict([each])}) for each in (losses[0], losses[-1])]
    return sum(
        _timed(
            lambda one=recipe: prepare(  # type: ignore[misc]
                one, plan.folder, Observer(), leave_out=False, begin=False, sources=plan.sources
            )
        )
        for recipe in recipes
    ) / len(recipes)


def _photographs(samples: Samples, reading_s: float) -> PhotographCosts:
    """Those in memory from the beginning take nothing."""
    sources = [{photo.source: photo for photo in (item.degraded, item.sharp)} for item in samples.items]
    files = [{path: photo for path, photo in each.items() if isinstance(path, Path)} for each in sources]
    if not files[0]:
        return PhotographCosts(len(files), 0, 0, reading_s, 0.0)
    seconds, decoded, pixels = [], 0, 0
    with _one_thread():
        for each in files[:LOOKED_AT]:
            begun = time.perf_counter()
            arrays = [decode(path) for path in each]
            seconds.append(time.perf_counter() - begun)
            decoded += sum(array.nbytes for array in arrays)
            pixels += sum(array.shape[1] * array.shape[2] for array in arrays)

    def size(photo: Photograph) -> int:
        height, width = samples.store.size(photo)
        return height * width

    return PhotographCosts(
        count=len(files),
        file_bytes=sum(path.stat().st_size for each in files for path in each),
        decoded_bytes=round(decoded / pixels * sum(size(photo) for each in files for photo in each.values())),
        reading_s=reading_s,
        decode_s=median(seconds),
    )


def _batch(plan: Plan) -> float:
    """The median of several batches of a few photographs, which stay decoded."""
    few = copy.copy(plan.sources.samples)
    few.items = few.items[:LOOKED_AT]
    for item in few.items:
        for photo in (item.degraded, item.sharp):
            few.store.samples(photo)
    settings = plan.recipe.training
    count = max(3, math.ceil(32 / settings.batch_size))
    made = batches(samples_for(plan.models[0], few), batch_size=settings.batch_size, start_step=0, steps=count + 1)
    next(made)
    return median(_timed(lambda: next(made)) for _ in range(count))


# ---- steps ----


def _steps(plan: Plan, one: Architecture, rounds: int, advance: Callable[[], None]) -> list[StepCost]:
    """Every loss with one model: a step of each in turn, from the same weights on the same batch, so that whatever else
    the machine does meets all alike."""
    settings, device = plan.recipe.training, plan.device
    contenders = [each for each in plan.contenders if each.model is one and not each.turn]
    model = one.initial(settings.seed).to(device).train()
    initial = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = make_optimizer(settings, model.parameters())
    stream = _batches(samples_for(one, plan.sources.samples), settings, device)

    def step(contender: Contender, batch: tuple[Tensor, Tensor]) -> tuple[float, ...]:
        return _phases(model, contender.loss, batch, optimizer, settings, device)

    peaks = {}
    for contender in contenders:
        batch = next(stream)
        _ready(contender, model, batch, device)
        step(contender, batch)
        peaks[contender.name] = peak_memory(lambda each=contender, at=batch: step(each, at), device).tensors  # type: ignore[misc]
    taken: dict[str, list[tuple[float, ...]]] = {each.name: [] for each in contenders}
    for round_ in range(rounds):
        batch, turn = next(stream), round_ % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            model.load_state_dict(initial)
            taken[contender.name].append(step(contender, batch))
            advance()
    for contender in contenders:
        contender.loss.eval()
    return [StepCost(name, *_medians(phases), peak_bytes=peaks[name]) for name, phases in taken.items()]


def _medians(phases: Sequence[tuple[float, ...]]) -> tuple[float, float, float, float]:
    model, loss, learning, optimiser = (median(phase) for phase in zip(*phases, strict=True))
    return model, loss, learning, optimiser


def _batches(samples: Any, settings: Settings, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    stream = batches(samples, batch_size=settings.batch_size, start_step=0, steps=10**6)
    return ((degraded.to(device), sharp.to(device)) for degraded, sharp in stream)


def _ready(contender: Contender, model: nn.Module, batch: tuple[Tensor, Tensor], device: torch.device) -> None:
    """On the device, in train mode, with automatic weights found."""
    loss = contender.loss.to(device).train()
    if loss.batches_to_calibrate:
        with torch.no_grad():
            prediction = model(batch[0])
        loss.calibrate([(prediction, batch[1])] * loss.batches_to_calibrate)


def _phases(
    model: Any,
    loss: Any,
    batch: tuple[Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    device: torch.device,
) -> tuple[float, ...]:
    """Seconds of model, loss, learning and optimiser in one step. What training/loop.py does at once is done in two
    halves here, from the loss to the prediction and from there to the weights, which add up to the same gradient."""
    degraded, sharp = batch
    weights = stage_weights(model, settings.stages)
    several = any(weights[:-1])
    mixed = torch.autocast(
        device.type,
        dtype=torch.float16 if settings.precision == "16-mixed" else torch.bfloat16,
        enabled=settings.precision != "32-true",
    )
    ticks = [_now(device)]
    optimizer.zero_grad(set_to_none=True)
    with mixed:
        results = model.stages(degraded) if several else (model(degraded),)
    ticks.append(_now(device))
    leaves = [each.detach().requires_grad_() for each in results]
    with mixed:
        total, _ = spread_over(loss, leaves, sharp, weights if several else weights[-1:])
    total.backward()
    ticks.append(_now(device))
    counted = [(each, leaf.grad) for each, leaf in zip(results, leaves, strict=True) if leaf.grad is not None]
    torch.autograd.backward(*zip(*counted, strict=True))  # type: ignore[arg-type]
    ticks.append(_now(device))
    if loss.learns:
        loss.learn(results[-1].detach(), sharp)
    ticks.append(_now(device))
    if settings.clip_gradient:
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_gradient)
    optimizer.step()
    ticks.append(_now(device))
    forward, of_loss, backward, learning, optimiser = (after - before for before, after in itertools.pairwise(ticks))
    return forward + backward, of_loss, learning, optimiser


class _Ticks(Silent):
    """When each step ended, as far as the loop tells."""

    def __init__(self) -> None:
        self.at: list[tuple[int, float]] = []

    def step(self, step: int, total: float, terms: dict[str, float], rate: float) -> None:
        del total, terms, rate
        self.at.append((step, time.perf_counter()))


def _training(plan: Plan, contender: Contender, rounds: int, folder: Path) -> tuple[float, float]:
    """(seconds of a step, bytes of a row of training.csv with its events) of a short training by the loop itself."""
    steps = max(8, rounds)
    settings = replace(plan.recipe.training, steps=steps, log_every=max(1, steps // 4), checkpoint_every=steps)
    heard = _Ticks()
    model = contender.model.initial(contender.seed)
    train(model, contender.own_loss(), plan.samples(contender.seed, contender.model), settings, folder, observer=heard)
    seconds = [(later - sooner) / (b - a) for (a, sooner), (b, later) in itertools.pairwise(heard.at)]
    rows = len((folder / "training.csv").read_text().splitlines()) - 1
    written = sum(_size(path) for path in folder.iterdir() if path.is_file())
    return median(seconds), written / rows


# ---- after the last step ----


def _saving(saved: Path, folder: Path) -> float:
    state = checkpoints.read(saved)
    return median(
        _timed(lambda at=step: checkpoints.save(folder, replace(state, step=at)))  # type: ignore[misc]
        for step in range(1, 4)
    )


def _evaluation(plan: Plan, folder: Path, advance: Callable[[], None]) -> tuple[EvaluationCosts, float, float]:
    """Costs of all images, and the bytes of the restored ones and of a cell's rows: what a few take, by their share of
    the pixels. The first image of a model is restored twice: what warms up does not count."""
    device = plan.device
    pixels = {name: height * width for name, (height, width) in plan.sizes.items()}
    metrics = {one.name: 0.0 for one in plan.metrics}
    restoring: dict[str, float] = {}
    degrading = writing = seen = 0.0
    written = row_bytes = 0
    for one in plan.models:
        model = one.initial(plan.recipe.training.seed).to(device)
        restoring[one.called] = seen = 0.0
        first = one is plan.models[0]
        pairs = iter(plan.pairs_for(one))
        for number in range(min(LOOKED_AT, len(plan.pairs))):
            begun = time.perf_counter()
            pair = next(pairs)
            degrading += (time.perf_counter() - begun) if first else 0.0
            seen += pixels[pair.name]
            if not number:
                image = restored(model, pair, device)
            begun = _now(device)
            image = restored(model, pair, device)
            restoring[one.called] += _now(device) - begun
            if not first:
                continue
            truth = quantise(pair.sharp)
            for measured in plan.metrics:
                if not number:
                    list(score_images(image[None], truth[None], [measured], device))
                begun = _now(device)
                ((name, (value,)),) = score_images(image[None], truth[None], [measured], device)
                metrics[name] += _now(device) - begun
                row = {"image": pair.name, "loss": plan.contenders[0].name, "metric": name, "value": value}
                row_bytes += len(json.dumps([row], indent=2))
            path = folder / f"{number}.png"
            begun = time.perf_counter()
            write_image(path, image)
            writing += time.perf_counter() - begun
            written += _size(path)
        advance()
    share = sum(pixels.values()) / seen
    costs = EvaluationCosts(
        images=len(pixels),
        megapixels=sum(pixels.values()) / 1e6,
        degrading=share * degrading,
        restoring={name: share * seconds for name, seconds in restoring.items()},
        metrics={name: share * seconds for name, seconds in metrics.items()},
        writing=share * writing,
    )
    return costs, share * written, row_bytes * len(pixels) / min(LOOKED_AT, len(pixels))


def _recording(plan: Plan, folder: Path) -> tuple[float, float]:
    """(a, b): the driver records a cell in a + b * the cells finished before. Measured with made-up rows."""
    few, many = 2, 100  # cells that are finished
    example = plan.contenders[0]
    rows: list[Row] = [
        {"image": name, "loss": example.name, "metric": one.name, "value": 0.5}
        for name in plan.sizes
        for one in plan.metrics
    ]
    seconds = []
    for finished in (few, many):
        contenders = [
            replace(
                example,
                name=f"{example.name} {number}",
                status="done" if number < finished else "waiting",
                rows=[{**row, "loss": f"{example.name} {number}"} for row in rows] if number < finished else [],
            )
            for number in range(many)
        ]
        made_up = replace(plan, folder=folder, contenders=contenders)
        write_state(made_up, References([], {}), "")
        seconds.append(min(_timed(lambda: write_state(made_up, References([], {}), "")) for _ in range(3)))  # noqa: B023
    growth = max(0.0, seconds[1] - seconds[0]) / (many - few)
    return max(0.0, seconds[0] - few * growth), growth


# ---- clocks ----


def _timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _now(device: torch.device) -> float:
    """The time when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """As in a process that makes batches."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _size(path: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    return path.stat().st_size if path.is_file() else sum(_size(each) for each in path.iterdir())
