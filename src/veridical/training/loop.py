"""The training loop: one model, one loss.

Everything a step does is a function of (settings, step): the batch, the learning rate, the draws of a random
loss. With the weights, the optimiser, the moving average and the loss's own buffers in the checkpoint, a run
that was killed goes on exactly where it was: on the CPU, with as many threads, to bit-equal weights.

A loss may have parts that learn (a discriminator). In each step the model goes first: its gradient comes through them
as they are. Then they learn from the same prediction; both have moved when the step ends.
"""

import contextlib
import hashlib
import itertools
import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from veridical.core.errors import DataError
from veridical.core.lock import locked
from veridical.training import checkpoint as checkpoints
from veridical.training.checkpoint import Checkpoint, storage
from veridical.training.data import batches, names_of, share_of
from veridical.training.devices import Group, accelerators, check_same, group, make_fabric, together
from veridical.training.nonfinite import Counters, Inquiry, Sentinel, Skipped, Undo, gradient_size, stopped
from veridical.training.optimisation import learning_rate, make_optimizer
from veridical.training.rows import TrainingRows
from veridical.training.settings import Settings
from veridical.training.stages import spread_over, stage_weights

Batch = tuple[Tensor, Tensor]

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Who watches a training: a progress bar, a log. Called on the first process only.

    `step` comes after every step on the CPU, and after every `log_every` steps elsewhere, where reading a
    number stalls the device; not after a step that was left out. total and terms are means since the last row of
    training.csv, over all processes; rate is in steps per second.
    """

    def started(self, total_steps: int, start_step: int) -> None: ...
    def step(self, step: int, total: float, terms: dict[str, float], rate: float) -> None: ...
    def note(self, text: str) -> None: ...


class LossModule(Protocol):
    """What is needed of a loss here; `veridical.loss(spec)` makes one. `learn` is called where `learns`,
    `calibrate` before the first step where there are `batches_to_calibrate`."""

    @property
    def learns(self) -> bool: ...
    @property
    def batches_to_calibrate(self) -> int: ...
    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]: ...
    def learn(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]: ...
    def prepare(self, target: Tensor) -> Any: ...
    def with_terms(self, prediction: Tensor, target: Any) -> tuple[Tensor, dict[str, Tensor]]: ...
    def terms(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]: ...
    def to(self, device: torch.device) -> object: ...
    def train(self) -> object: ...
    def eval(self) -> object: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> object: ...


class Silent:
    """An observer that does nothing."""

    def started(self, total_steps: int, start_step: int) -> None:
        pass

    def step(self, step: int, total: float, terms: dict[str, float], rate: float) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@dataclass(frozen=True)
class TrainingResult:
    """steps: done in all. seconds: spent in all, over every time the run was taken up. final_terms: label ->
    weighted value in the last row of training.csv. skipped: steps that were left out, as values were not finite."""

    steps: int
    seconds: float
    final_terms: dict[str, float]
    skipped: int = 0


def train(
    model: nn.Module,
    loss: LossModule,
    samples: Dataset[Batch],
    settings: Settings,
    folder: Path,
    *,
    observer: Observer | None = None,
    resume: bool = True,
    fingerprint: Mapping[str, str] | None = None,
    on_checkpoint: Callable[[], None] | None = None,
) -> TrainingResult:
    """Train `model` in place, and leave it with its final weights: the moving average, if there is one.

    Writes training.csv, TensorBoard events and checkpoints into `folder`. Where there is a checkpoint, goes
    on from it. Ctrl-C, or SIGTERM, finishes the step (with several processes, one that all of them look at), saves a
    checkpoint and then raises KeyboardInterrupt; a second Ctrl-C stops at once.

    On several devices each process takes its share of every batch, and in parts with `accumulate`: the same samples,
    the same draws of a random loss, and the mean of the gradients. See `Settings` for what then differs.

    Args:   model: its initial weights are the caller's; seed them.
            loss: has `with_terms(prediction, target) -> (total, {label: term})`. It is put into train mode
            on the device, and left in eval mode. Its random parts count their draws by whole numbers in its state.
            samples: index -> (degraded, sharp); batches are made as `data.batches` says. `samples.name(index)`, where
            there is one, says which photograph that is.
            resume: False deletes what the folder holds of an earlier training.
            fingerprint: more settings, by name, that must not change when a run goes on: task, degradation,
            data. The settings, the model's shapes and the loss are added.
            on_checkpoint: called on the first process whenever a checkpoint is whole.
    Errors: NonFiniteLoss names the guilty term, the layer, the photographs, the step and the last good checkpoint; no
            checkpoint is made after a value that is not finite. RecipeError when the folder holds a run of other
            settings. DataError when a photograph has vanished. StorageError (full disk) names path and cause.
            ProcessLost when another of the processes has ended. FolderInUse when another trains in it.
    """
    observer = observer or Silent()
    weights = stage_weights(model, settings.stages)
    fabric = make_fabric(settings, all_used=all(weights))
    members = group() if settings.processes > 1 else Group()
    chief = members.rank == 0
    watcher: Observer = observer if chief else Silent()
    checkpoint_folder = folder / "checkpoints"
    identity = {**(fingerprint or {}), **settings.fingerprint(), **_identity(model, loss)}

    def last_good() -> Path | None:
        return checkpoints.newest(checkpoint_folder)

    with contextlib.ExitStack() as stack:
        stack.enter_context(together(last_good))
        if chief:
            stack.enter_context(locked(folder, watcher.note))
        if not resume and chief:
            _forget(folder)
        members.barrier()  # every process reads the same checkpoints, or none
        saved, messages = checkpoints.load(checkpoint_folder)
        for message in messages:
            watcher.note(message)
        if saved:
            checkpoints.check_fingerprint(saved, identity, checkpoint_folder)
            model.load_state_dict(saved.model)
            if chief and not messages:  # else what others read may be among what would be deleted
                checkpoints.tidy(checkpoint_folder, saved.step)
        start, seconds_before = (saved.step, saved.seconds) if saved else (0, 0.0)
        check_same(f"checkpoints in {checkpoint_folder}", f"one of step {start}" if saved else "none")

        stack.enter_context(torch.random.fork_rng(accelerators(fabric.device)))
        torch.manual_seed(settings.seed)  # of dropout, for models that have any
        trained, optimizer = fabric.setup(model, make_optimizer(settings, model.parameters()))
        stages = _Stages(trained, weights)
        loss.to(fabric.device)
        loss.train()
        stack.callback(loss.eval)
        trained.train()
        average = _Average(model, settings.ema) if settings.ema else None
        if saved:
            _restore(saved, optimizer, average, loss, fabric.device)
        else:
            _calibrate(loss, trained, samples, settings, members, fabric, watcher.note)

        started = time.perf_counter()
        interrupt = stack.enter_context(deferred_interrupt())
        rows = None
        if chief:
            with storage(folder, last_good=last_good()):
                rows = TrainingRows(folder, start_step=start, note=watcher.note)
        sentinel = Sentinel(members)
        skipped = Skipped(saved.part("skipped") if saved else None)
        counters = Counters(loss)
        means = _Means(members)
        if saved:
            means.go_on(saved.part("means"), fabric.device)
        values: dict[str, float] = rows.last_terms if rows else {}

        def save(step: int) -> None:
            if not chief:
                return
            state = {f"loss.{key}": value for key, value in loss.state_dict().items()}
            state |= {f"optimizer.{key}": value for key, value in checkpoints.optimizer_tensors(optimizer).items()}
            state |= {f"ema.{key}": value for key, value in (average.weights if average else {}).items()}
            state |= {f"random.{key}": value for key, value in _random_state(fabric.device).items()}
            state |= {f"means.{key}": value for key, value in means.state().items()}
            state |= {f"skipped.{key}": value for key, value in skipped.state.items()}
            seconds = seconds_before + time.perf_counter() - started
            if rows:
                with storage(rows.path, last_good=last_good()):
                    rows.flush()
            checkpoints.save(checkpoint_folder, Checkpoint(step, seconds, identity, model.state_dict(), state))
            if on_checkpoint:
                on_checkpoint()

        made = partial(batches, samples, batch_size=settings.batch_size, rank=members.rank, world_size=members.size)
        inquiry = Inquiry(
            members,
            model,
            loss,
            counters=counters,
            names=lambda step: names_of(
                samples,
                share_of(step, batch_size=settings.batch_size, rank=members.rank, world_size=members.size),
            ),
            again=lambda step: next(made(start_step=step - 1, steps=step)),
            autocast=fabric.autocast,
        )
        stream = made(
            start_step=start,
            steps=settings.steps,
            workers=settings.workers,
            pin_memory=fabric.device.type == "cuda",
            note=watcher.note if chief else _log.warning,
        )
        stack.enter_context(contextlib.closing(stream))
        alone, on_cpu, may_skip = members.size == 1, fabric.device.type == "cpu", settings.on_nonfinite == "skip"
        watcher.started(settings.steps, start)
        window, first = time.perf_counter(), start  # of the rate: since when, and after which step

        for step, (degraded, sharp) in enumerate(_readable(stream, start, last_good), start=start + 1):
            degraded = degraded.to(fabric.device, non_blocking=True)  # (B, C, H, W)
            sharp = sharp.to(fabric.device, non_blocking=True)
            parts = list(zip(degraded.chunk(settings.accumulate), sharp.chunk(settings.accumulate), strict=True))
            lr = learning_rate(settings, step)
            for each in optimizer.param_groups:
                each["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            counters.mark()
            undo = Undo(model, loss) if may_skip else None
            seen, predictions = _Seen(), []
            for number, (some, truth) in enumerate(parts):
                if number:
                    counters.back()  # one draw of a random loss for all parts
                with fabric.no_backward_sync(trained, enabled=number < len(parts) - 1):
                    with fabric.autocast():
                        results = stages(some)
                        total, terms = spread_over(loss, results, truth, stages.weights)
                    fabric.backward(total if len(parts) == 1 else total / len(parts))
                seen.add(total, terms)
                predictions.append(results[-1].detach())
            total, terms = seen.mean()
            learned = loss.learn(torch.cat(predictions), sharp) if loss.learns else {}
            # The scaler of float16 meets infinite gradients by design, and passes over their steps.
            gradients = None if settings.precision == "16-mixed" else gradient_size(model)
            sentinel.see(step, total, terms, gradients, learned)

            last, logged = step == settings.steps, step % settings.log_every == 0 or step == settings.steps
            due, stop = last or step % settings.checkpoint_every == 0, interrupt.is_set()
            fault = None
            if on_cpu or may_skip or logged or due or (stop and alone):  # elsewhere a look costs a wait for the device
                fault, stop = sentinel.look(stop=stop)
            elif not alone:
                stop = False  # all of them stop at one that all of them look at
            if fault:
                closer = not undo or skipped.tells
                what, detail = inquiry.report(fault, parts, step) if closer else (fault.said(), "")
                if not undo:
                    raise stopped(what, detail, last_good())
                undo.back()
                skipped.add(what, detail, last_good(), watcher.note)
            else:
                if settings.clip_gradient:
                    fabric.clip_gradients(trained, optimizer, max_norm=settings.clip_gradient, error_if_nonfinite=False)
                optimizer.step()
                if average:
                    average.update(step)
                means.add(total, terms, learned)
                skipped.in_a_row = 0
            if means.count and (logged or (on_cpu and not fault)):
                mean, values, learned_values = means.read()
                rate = (step - first) / max(time.perf_counter() - window, 1e-9)
                if logged:
                    if rows:
                        with storage(rows.path, last_good=last_good()):
                            rows.add(step, mean, values, learned=learned_values, lr=lr, rate=rate)
                    means = _Means(members)
                    window, first = time.perf_counter(), step
                watcher.step(step, mean, values, rate)
            if due or stop:
                save(step)
            if stop:
                members.barrier()  # until it is saved
                watcher.note(f"stopped after step {step}, which is saved.")
                raise KeyboardInterrupt
        if average:
            average.into(model)
        if skipped.total:
            watcher.note(skipped.said)
        seconds = seconds_before + time.perf_counter() - started
    return TrainingResult(settings.steps, seconds, values, skipped.total)


def _readable(stream: Iterator[Batch], start: int, last_good: Callable[[], Path | None]) -> Iterator[Batch]:
    """The batches; with a photograph that can no longer be read, an error that says where the training stands."""
    for step in itertools.count(start + 1):
        try:
            batch = next(stream)
        except StopIteration:
            return
        except DataError as error:
            path = last_good()
            kept = f"The last good checkpoint is {path}." if path else "There is no checkpoint yet."
            raise DataError(
                f"{error} It was there when the training began, and is needed for step {step}. {kept} Put it back and "
                "run the same command again to go on."
            ) from None
        yield batch


# -- before the first step ------------------------------------------------------------------------------


def _calibrate(
    loss: LossModule,
    model: nn.Module,
    samples: Dataset[Batch],
    settings: Settings,
    members: Group,
    fabric: Any,
    note: Callable[[str], None],
) -> None:
    """Let a loss find its automatic weights on the first batches, with the model as it is: nothing else changes, not
    BatchNorm's statistics nor what dropout draws next."""
    count = min(loss.batches_to_calibrate, settings.steps)
    if not count:
        return
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    stream = batches(
        samples,
        batch_size=settings.batch_size,
        start_step=0,
        steps=count,
        rank=members.rank,
        world_size=members.size,
    )

    def predicted() -> Iterator[Batch]:
        for degraded, sharp in _readable(stream, 0, lambda: None):
            parts = degraded.to(fabric.device).chunk(settings.accumulate)
            with torch.no_grad(), fabric.autocast():
                prediction = torch.cat([model(part) for part in parts])
            yield prediction, sharp.to(fabric.device)

    with torch.random.fork_rng(accelerators(fabric.device)):
        found = loss.calibrate(predicted())
    for buffer, before in buffers:
        buffer.copy_(before)
    for term, weight in found.items():
        measured = f"the first {count} batches" if count > 1 else "the first batch"
        note(f"{term}: the weight is {weight:g}, by the gradients of {measured}")


# -- the parts of a step --------------------------------------------------------------------------------


class _Stages:
    """The results of the model's stages that a training needs: all, or the last where no other counts."""

    def __init__(self, trained: Any, weights: tuple[float, ...]) -> None:
        self.trained, self.weights = trained, weights
        self.several = any(self.weights[:-1])
        if not self.several:
            self.weights = self.weights[-1:]
        elif hasattr(trained, "mark_forward_method"):  # Fabric's wrapper sees to precision and gradients in `forward`
            trained.mark_forward_method("stages")

    def __call__(self, degraded: Tensor) -> tuple[Tensor, ...]:
        return self.trained.stages(degraded) if self.several else (self.trained(degraded),)


class _Seen:
    """The loss and its terms of the parts of a step."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, dict[str, Tensor]]] = []

    def add(self, total: Tensor, terms: Mapping[str, Tensor]) -> None:
        self._parts.append((total.detach(), {label: term.detach() for label, term in terms.items()}))

    def mean(self) -> tuple[Tensor, dict[str, Tensor]]:
        if len(self._parts) == 1:
            return self._parts[0]
        totals, terms = zip(*self._parts, strict=True)
        return torch.stack(totals).mean(0), {k: torch.stack([each[k] for each in terms]).mean(0) for k in terms[0]}


class _Average:
    """The exponential moving average of the weights: decay min(ema, (1 + step) / (10 + step)), so that it is
    not held back by the initial weights. Buffers, such as BatchNorm's, are taken as they are."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = dict(model.named_parameters())
        self.weights = {name: value.detach().clone() for name, value in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in self.parameters.items():
            self.weights[name].lerp_(value, 1 - decay)

    @torch.no_grad()
    def into(self, model: nn.Module) -> None:
        for name, value in model.named_parameters():
            value.copy_(self.weights[name])


class _Means:
    """Means of the loss, its terms and what it logs of its learning, over the processes too; added up on the device."""

    def __init__(self, members: Group) -> None:
        self.members = members
        self.count = 0
        self._terms: list[str] = []
        self._learned: list[str] = []
        self._sum: Tensor | None = None

    def add(self, total: Tensor, terms: Mapping[str, Tensor], learned: Mapping[str, Tensor]) -> None:
        self._terms, self._learned = list(terms), list(learned)
        values = torch.stack([value.detach().float() for value in (total, *terms.values(), *learned.values())])
        self._sum = values if self._sum is None else self._sum + values
        self.count += 1

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, so that a row of training.csv does not tell where a run was stopped."""
        return {} if self._sum is None else {"sum": self._sum, "count": torch.tensor(self.count)}

    def go_on(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        if state:
            self._sum, self.count = state["sum"].to(device), int(state["count"])

    def read(self) -> tuple[float, dict[str, float], dict[str, float]]:
        assert self._sum is not None
        total, *means = (self.members.total(self._sum / self.count) / self.members.size).tolist()
        count = len(self._terms)
        return (
            total,
            dict(zip(self._terms, means[:count], strict=True)),
            dict(zip(self._learned, means[count:], strict=True)),
        )


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event instead of raising; the second raises. SIGTERM, which a cluster sends some time
    before it kills, sets it too.

    Only where Python lets signals be caught: in the main thread.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def remember(number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- what a checkpoint needs ----------------------------------------------------------------------------


def _identity(model: nn.Module, loss: LossModule) -> dict[str, str]:
    shapes = [(key, tuple(value.shape)) for key, value in model.state_dict().items()]
    digest = hashlib.blake2b(repr(shapes).encode(), digest_size=6).hexdigest()
    return {
        "model": f"{type(model).__name__} of {sum(p.numel() for p in model.parameters())} weights ({digest})",
        "loss": str(getattr(loss, "label", type(loss).__name__)),
    }


def _restore(
    saved: Checkpoint,
    optimizer: torch.optim.Optimizer,
    average: _Average | None,
    loss: LossModule,
    device: torch.device,
) -> None:
    checkpoints.restore_optimizer(optimizer, saved.part("optimizer"))
    if average:
        for name, value in saved.part("ema").items():
            average.weights[name].copy_(value)
    loss.load_state_dict(saved.part("loss"))
    random_state = saved.part("random")
    torch.set_rng_state(random_state["cpu"])
    if device.type == "cuda" and "cuda" in random_state:
        torch.cuda.set_rng_state(random_state["cuda"], device)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _forget(folder: Path) -> None:
    """Delete the checkpoints, rows and events of an earlier training."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    for path in (folder / "training.csv", *folder.glob("events.out.*")):
        path.unlink(missing_ok=True)
