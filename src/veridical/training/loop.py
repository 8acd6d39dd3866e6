"""The training loop: one model, one loss.

Everything a step does is a function of (settings, step): the batch, the learning rate, the draws of a random
loss. With the weights, the optimiser, the moving average and the loss's own buffers in the checkpoint, a run
that was killed goes on exactly where it was: on the CPU, with as many threads, to bit-equal weights.

A loss may have parts that learn (a discriminator). In each step the model goes first: its gradient comes through them
as they are. Then they learn from the same prediction; both have moved when the step ends.
"""

import atexit
import contextlib
import hashlib
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

from veridical.core.errors import NonFiniteLoss, RecipeError
from veridical.core.lock import locked
from veridical.training import checkpoint as checkpoints
from veridical.training.checkpoint import Checkpoint, storage
from veridical.training.data import batches
from veridical.training.device import choose_device
from veridical.training.optimisation import learning_rate, make_optimizer
from veridical.training.rows import TrainingRows
from veridical.training.settings import Settings
from veridical.training.stages import spread_over, stage_weights


class Observer(Protocol):
    """Who watches a training: a progress bar, a log. Called on the first process only.

    `step` comes after every step on the CPU, and after every `log_every` steps elsewhere, where reading a
    number stalls the device. total and terms are means since the last row of training.csv; rate is in steps
    per second.
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
    weighted value in the last row of training.csv."""

    steps: int
    seconds: float
    final_terms: dict[str, float]


def train(
    model: nn.Module,
    loss: LossModule,
    samples: Dataset[tuple[Tensor, Tensor]],
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
    on from it. Ctrl-C finishes the step, saves a checkpoint and then raises KeyboardInterrupt; a second
    Ctrl-C stops at once.

    Args:   model: its initial weights are the caller's; seed them.
            loss: has `with_terms(prediction, target) -> (total, {label: term})`. It is put into train mode
            on the device, and left in eval mode.
            samples: index -> (degraded, sharp); batches are made as `data.batches` says.
            resume: False deletes what the folder holds of an earlier training.
            fingerprint: more settings, by name, that must not change when a run goes on: task, degradation,
            data. The settings, the model's shapes and the loss are added.
            on_checkpoint: called on the first process whenever a checkpoint is whole.
    Errors: NonFiniteLoss names the guilty term, the step and the last good checkpoint; no checkpoint is made
            after a value that is not finite. RecipeError when the folder holds a run of other settings.
            StorageError (full disk) names path and cause. FolderInUse when another process trains in the folder.
    """
    observer = observer or Silent()
    fabric = _fabric(settings)
    chief = fabric.global_rank == 0
    watcher: Observer = observer if chief else Silent()
    checkpoint_folder = folder / "checkpoints"
    identity = {**(fingerprint or {}), **settings.fingerprint(), **_identity(model, loss)}

    with contextlib.ExitStack() as stack:
        if chief:
            stack.enter_context(locked(folder, watcher.note))
        if not resume and chief:
            _forget(folder)
        if fabric.world_size > 1:
            fabric.barrier()  # every process reads the same checkpoints, or none
        saved, messages = checkpoints.load(checkpoint_folder)
        for message in messages:
            watcher.note(message)
        if saved:
            checkpoints.check_fingerprint(saved, identity, checkpoint_folder)
            model.load_state_dict(saved.model)
            if chief and not messages:  # else what others read may be among what would be deleted
                checkpoints.tidy(checkpoint_folder, saved.step)
        start, seconds_before = (saved.step, saved.seconds) if saved else (0, 0.0)

        stack.enter_context(torch.random.fork_rng(_accelerators(fabric.device)))
        torch.manual_seed(settings.seed)  # of dropout, for models that have any
        trained, optimizer = fabric.setup(model, make_optimizer(settings, model.parameters()))
        stages = _Stages(model, trained, settings)
        loss.to(fabric.device)
        loss.train()
        stack.callback(loss.eval)
        trained.train()
        average = _Average(model, settings.ema) if settings.ema else None
        if saved:
            _restore(saved, optimizer, average, loss, fabric.device)
        else:
            _calibrate(loss, trained, samples, settings, fabric, watcher.note)

        started = time.perf_counter()
        interrupt = stack.enter_context(deferred_interrupt(alone=fabric.world_size == 1))
        rows = None
        if chief:
            with storage(folder, last_good=checkpoints.newest(checkpoint_folder)):
                rows = TrainingRows(folder, start_step=start, note=watcher.note)
        sentinel = _Sentinel(fabric.device, fabric.world_size)
        means = _Means()
        if saved:
            means.go_on(saved.part("means"), fabric.device)
        values: dict[str, float] = rows.last_terms if rows else {}

        def last_good() -> Path | None:
            return checkpoints.newest(checkpoint_folder)

        def save(step: int) -> None:
            if not chief:
                return
            state = {f"loss.{key}": value for key, value in loss.state_dict().items()}
            state |= {f"optimizer.{key}": value for key, value in checkpoints.optimizer_tensors(optimizer).items()}
            state |= {f"ema.{key}": value for key, value in (average.weights if average else {}).items()}
            state |= {f"random.{key}": value for key, value in _random_state(fabric.device).items()}
            state |= {f"means.{key}": value for key, value in means.state().items()}
            seconds = seconds_before + time.perf_counter() - started
            if rows:
                with storage(rows.path, last_good=last_good()):
                    rows.flush()
            checkpoints.save(checkpoint_folder, Checkpoint(step, seconds, identity, model.state_dict(), state))
            if on_checkpoint:
                on_checkpoint()

        stream = batches(
            samples,
            batch_size=settings.batch_size,
            start_step=start,
            steps=settings.steps,
            workers=settings.workers,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
            pin_memory=fabric.device.type == "cuda",
        )
        on_cpu = fabric.device.type == "cpu"
        watcher.started(settings.steps, start)
        window, first = time.perf_counter(), start  # of the rate: since when, and after which step

        for step, (degraded, sharp) in enumerate(stream, start=start + 1):
            degraded = degraded.to(fabric.device, non_blocking=True)  # (B, C, H, W)
            sharp = sharp.to(fabric.device, non_blocking=True)
            lr = learning_rate(settings, step)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            with fabric.autocast():
                results = stages(degraded)
                total, terms = spread_over(loss, results, sharp, stages.weights)
            fabric.backward(total)
            learned = loss.learn(results[-1].detach(), sharp) if loss.learns else {}
            if settings.clip_gradient:
                fabric.clip_gradients(trained, optimizer, max_norm=settings.clip_gradient, error_if_nonfinite=False)
            # The scaler of float16 meets infinite gradients by design, and passes over their steps.
            gradients = None if settings.precision == "16-mixed" else _gradient_size(model)
            sentinel.see(step, total, terms, gradients, learned)

            last, logged = step == settings.steps, step % settings.log_every == 0 or step == settings.steps
            due = last or step % settings.checkpoint_every == 0
            if on_cpu or logged or due:  # elsewhere a look costs a wait for the device
                closer = partial(_guilty_gradient, loss, trained, degraded, sharp) if on_cpu else list
                sentinel.check(last_good, closer)
            optimizer.step()
            if average:
                average.update(step)
            means.add(total, terms, learned)
            if on_cpu or logged:
                mean, values, learned_values = means.read()
                rate = (step - first) / max(time.perf_counter() - window, 1e-9)
                if logged:
                    if rows:
                        with storage(rows.path, last_good=last_good()):
                            rows.add(step, mean, values, learned=learned_values, lr=lr, rate=rate)
                    means = _Means()
                    window, first = time.perf_counter(), step
                watcher.step(step, mean, values, rate)
            if due or interrupt.is_set():
                save(step)
            if interrupt.is_set():
                watcher.note(f"stopped after step {step}, which is saved.")
                raise KeyboardInterrupt
        if average:
            average.into(model)
        seconds = seconds_before + time.perf_counter() - started
    return TrainingResult(settings.steps, seconds, values)


# -- devices --------------------------------------------------------------------------------------------


class _PlainFabric:
    """What the loop needs of Lightning Fabric, by torch alone: one device, float32 or bfloat16."""

    global_rank = 0
    world_size = 1

    def __init__(self, settings: Settings) -> None:
        if settings.devices > 1 or settings.precision == "16-mixed":
            raise RecipeError(
                "training on several devices, or in 16-mixed, needs Lightning Fabric. "
                'Install it with: pip install "veridical[compare]", or use devices = 1 and bf16-mixed.'
            )
        self.device = choose_device(settings.device)
        self._mixed = settings.precision == "bf16-mixed"

    def setup(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        return model.to(self.device), optimizer

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._mixed)

    def backward(self, total: Tensor) -> None:
        total.backward()

    def clip_gradients(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, max_norm: float, error_if_nonfinite: bool
    ) -> None:
        del optimizer
        nn.utils.clip_grad_norm_(model.parameters(), max_norm, error_if_nonfinite=error_if_nonfinite)


def _fabric(settings: Settings) -> Any:
    try:
        from lightning_fabric import Fabric
    except ImportError:
        return _PlainFabric(settings)
    fabric = Fabric(
        accelerator=choose_device(settings.device, count=settings.devices).type,
        devices=settings.devices,
        precision=settings.precision,  # type: ignore[arg-type] # checked by Settings
        strategy="ddp" if settings.devices > 1 else "auto",
    )
    if settings.devices > 1:
        fabric.launch()
        atexit.register(_leave_the_group)
    return fabric


def _leave_the_group() -> None:
    """Without it, a process that ends while others are connected is aborted."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _accelerators(device: torch.device) -> list[int]:
    """Which CUDA devices' random state to keep aside, for torch.random.fork_rng."""
    return [device.index or 0] if device.type == "cuda" else []


# -- before the first step ------------------------------------------------------------------------------


def _calibrate(
    loss: LossModule,
    model: nn.Module,
    samples: Dataset[tuple[Tensor, Tensor]],
    settings: Settings,
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
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )

    def predicted() -> Iterator[tuple[Tensor, Tensor]]:
        for degraded, sharp in stream:
            with torch.no_grad(), fabric.autocast():
                prediction = model(degraded.to(fabric.device))
            yield prediction, sharp.to(fabric.device)

    with torch.random.fork_rng(_accelerators(fabric.device)):
        found = loss.calibrate(predicted())
    for buffer, before in buffers:
        buffer.copy_(before)
    for term, weight in found.items():
        measured = f"the first {count} batches" if count > 1 else "the first batch"
        note(f"{term}: the weight is {weight:g}, by the gradients of {measured}")


# -- the parts of a step --------------------------------------------------------------------------------


class _Stages:
    """The results of the model's stages that a training needs: all, or the last where no other counts."""

    def __init__(self, model: nn.Module, trained: Any, settings: Settings) -> None:
        self.trained = trained
        self.weights = stage_weights(model, settings.stages)
        self.several = any(self.weights[:-1])
        if not self.several:
            self.weights = self.weights[-1:]
        elif hasattr(trained, "mark_forward_method"):  # Fabric's wrapper sees to precision and gradients in `forward`
            trained.mark_forward_method("stages")

    def __call__(self, degraded: Tensor) -> tuple[Tensor, ...]:
        return self.trained.stages(degraded) if self.several else (self.trained(degraded),)


def _gradient_size(model: nn.Module) -> Tensor:
    """A scalar that is finite exactly when every gradient is."""
    sizes = [parameter.grad.abs().amax() for parameter in model.parameters() if parameter.grad is not None]
    return torch.stack(sizes).sum() if sizes else torch.zeros(())


def _guilty_gradient(loss: LossModule, model: nn.Module, degraded: Tensor, sharp: Tensor) -> list[str]:
    """The terms whose own gradient with respect to the prediction is not finite."""
    with torch.no_grad():
        prediction = model(degraded)
    prediction.requires_grad_()
    guilty = []
    for label, term in loss.terms(prediction, sharp).items():
        if not term.requires_grad:
            continue
        (gradient,) = torch.autograd.grad(term, prediction, retain_graph=True, allow_unused=True)
        if gradient is not None and not torch.isfinite(gradient).all():
            guilty.append(label)
    return guilty


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
    """Means of the loss, its terms and what it logs of its learning, added up on the device."""

    def __init__(self) -> None:
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
        total, *means = (self._sum / self.count).tolist()
        count = len(self._terms)
        return (
            total,
            dict(zip(self._terms, means[:count], strict=True)),
            dict(zip(self._learned, means[count:], strict=True)),
        )


class _Sentinel:
    """Remembers, on the device, the first step at which each value was not finite."""

    _NEVER = 2**62

    def __init__(self, device: torch.device, world_size: int) -> None:
        self.device, self.world_size = device, world_size
        self._labels: list[str] = []
        self._learned: list[str] = []
        self._first: Tensor | None = None

    def see(
        self,
        step: int,
        total: Tensor,
        terms: Mapping[str, Tensor],
        gradients: Tensor | None,
        learned: Mapping[str, Tensor],
    ) -> None:
        self._labels, self._learned = list(terms), list(learned)
        gradients = total if gradients is None else gradients
        values = torch.stack([v.detach().float() for v in (*terms.values(), *learned.values(), total, gradients)])
        bad = torch.where(torch.isfinite(values), self._NEVER, step)
        self._first = bad if self._first is None else torch.minimum(self._first, bad)

    def check(self, last_good: Callable[[], Path | None], guilty: Callable[[], list[str]]) -> None:
        """Raise NonFiniteLoss if anything seen was not finite. `guilty` looks closer at gradients."""
        assert self._first is not None
        if self.world_size > 1:
            torch.distributed.all_reduce(self._first, torch.distributed.ReduceOp.MIN)
        *values, total, gradients = self._first.tolist()
        step = min(*values, total, gradients)
        if step == self._NEVER:
            return
        count = len(self._labels)
        named = [label for label, first in zip(self._labels, values[:count], strict=True) if first == step]
        learned = [label for label, first in zip(self._learned, values[count:], strict=True) if first == step]
        if named:
            what = f"the term {', '.join(named)} became NaN or infinite"
        elif learned:
            what = f"what the loss learns became NaN or infinite: {', '.join(learned)}"
        elif total == step:
            what = f"the sum of the terms {', '.join(self._labels)} became infinite, though each is finite"
        else:
            named = guilty() or (self._labels if len(self._labels) == 1 else [])
            what = (
                f"the gradient of the term {', '.join(named)} became NaN or infinite"
                if named
                else f"the gradients became NaN or infinite, of one of the terms {', '.join(self._labels)}"
            )
        path = last_good()
        kept = f"The last good checkpoint is {path}." if path else "There is no checkpoint yet."
        raise NonFiniteLoss(
            f"{what} at step {step}. {kept} Try a smaller training.lr, training.precision = '32-true', or another loss."
        )


@contextlib.contextmanager
def deferred_interrupt(*, alone: bool) -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event instead of raising; the second raises.

    Only where Python lets signals be caught (the main thread), and with one process: several would stop at
    different steps, and then wait for each other forever.
    """
    event = threading.Event()
    if not alone or threading.current_thread() is not threading.main_thread():
        yield event
        return

    def remember(number: int, frame: FrameType | None) -> None:
        del number, frame
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


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
