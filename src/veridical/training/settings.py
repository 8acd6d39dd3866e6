"""How to train: the numbers of the loop, checked once."""

import math
from dataclasses import dataclass, fields

from veridical.core.catalog import nearest
from veridical.core.errors import RecipeError
from veridical.core.untrusted import short

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
DEVICES = ("auto", "cpu", "cuda", "mps")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("cosine", "constant", "exponential", "polynomial", "step")
STAGES = ("authors", "last")
ON_NONFINITE = ("stop", "skip")
# What no training needs and no memory holds, refused before anything is read. The lists of steps and of trainings are
# made as a whole.
MOST = {
    "steps": 10_000_000,
    "batch_size": 1_000_000,
    "crop": 16_384,
    "seeds": 1000,
    "seed": 2**62,
    "devices": 10_000,
    "nodes": 10_000,
    "accumulate": 1_000_000,
    "workers": 1000,
    "log_every": 2**62,
    "checkpoint_every": 2**62,
    "drops": 10_000_000,
}
MOST_PIXELS = 2**28  # of the crops of one batch: 6 GiB of both sides in RGB, before any network looks at them


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The `training` part of a recipe.

    steps:            batches to train on.
    batch_size:       images of a batch, over all devices of all nodes together.
    crop:             side of a training crop, px.
    lr:               learning rate at the start.
    lr_end:           learning rate at the last step, as a share of `lr`.
    schedule:         how it gets there: "cosine" (half a wave), "exponential" (by the same factor at every step),
                      "polynomial" (as (1 - progress)^power), "step" (in `drops` drops by the same factor, evenly
                      spaced: 3 drops to 0.125 halve it after each quarter); "constant" stays at `lr`.
    power:            of "polynomial": 1 is a straight line.
    drops:            of "step".
    optimizer:        "adam" (weight decay added to the gradient), "adamw" (weight decay apart from it) or "sgd" (with
                      Nesterov's momentum).
    weight_decay:     of every parameter.
    momentum:         of "sgd"; 0 for none.
    betas:            of "adam" and "adamw": decay of the mean of the gradient and of its square.
    clip_gradient:    the gradient of all parameters together is shortened to this norm where it is longer; 0 for never.
    stages:           what each stage of a model of several counts in the loss: "authors" (as its authors trained it),
                      "last" (the result alone), or a weight for each stage, from the first to the last.
    seed:             of the initial weights, the crops and the degradations; what a loss draws is by its own seed.
    seeds:            trainings of each loss of a comparison: with seed, seed + 1 and so on. See comparison/sweep.py.
    precision:        "32-true", "bf16-mixed" or "16-mixed".
    ema:              decay of the moving average of the weights, such as 0.999; 0 for none.
    device:           "auto", "cpu", "cuda" or "mps".
    devices:          how many of them on each machine: each is driven by a process of its own, and takes an equal share
                      of every batch. A step comes to the same as on one device, but for the order of summation; only
                      batch normalisation and what couples a batch (gan, ragan) see a share, and dropout draws by share.
    nodes:            machines that train together. torchrun or srun must start the processes, devices on each machine:
                      torchrun --nnodes 2 --nproc-per-node 4 ... -m veridical compare ... --devices 4 --set
                      training.nodes=2 --out FOLDER, with FOLDER on storage that all of them see.
    accumulate:       parts in which a device takes its share of a batch, one after the other, so that a batch needs the
                      memory of a part. A step comes to the same as with 1, with the exceptions that `devices` has; a
                      discriminator learns from the whole share at once.
    on_nonfinite:     what to do when a value of a step is NaN or infinite: "stop" the training, or "skip" that step: it
                      leaves nothing behind. "skip" looks at every step, for which an accelerator must be waited for.
    workers:          processes that make batches; 0 makes them in between the steps.
    log_every:        steps between two rows of training.csv.
    checkpoint_every: steps between two checkpoints.
    """

    steps: int = 2000
    batch_size: int = 8
    crop: int = 192
    lr: float = 5e-4
    seed: int = 0
    seeds: int = 1
    precision: str = "32-true"
    ema: float = 0.0
    device: str = "auto"
    devices: int = 1
    workers: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    lr_end: float = 0.01
    schedule: str = "cosine"
    power: float = 1.0
    drops: int = 1
    optimizer: str = "adam"
    weight_decay: float = 0.0
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    clip_gradient: float = 0.0
    stages: str | tuple[float, ...] = "authors"
    nodes: int = 1
    accumulate: int = 1
    on_nonfinite: str = "stop"

    def __post_init__(self) -> None:
        for f in fields(self):
            value, kind = getattr(self, f.name), type(f.default)
            if f.name in ("betas", "stages"):
                continue
            fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
            _check(f.name, fits, {int: "a whole number", float: "a number", str: "a word"}[kind], value)
            _check(f.name, not isinstance(value, int) or abs(value) < 2**63, "a number of less than 20 digits", value)
        positive = ("steps", "batch_size", "crop", "seeds", "devices", "nodes", "accumulate", "log_every")
        for name in (*positive, "checkpoint_every", "drops"):
            _check(name, getattr(self, name) >= 1, "at least 1", getattr(self, name))
        for name in ("seed", "workers"):
            _check(name, getattr(self, name) >= 0, "0 or more", getattr(self, name))
        for name, most in MOST.items():
            _check(name, getattr(self, name) <= most, f"at most {most:,}", getattr(self, name))
        pixels = self.batch_size * self.crop**2
        _check("batch_size", pixels <= MOST_PIXELS, f"at most {MOST_PIXELS:,} pixels with crops of {self.crop}", pixels)
        _check("lr", 0 < self.lr < float("inf"), "greater than 0", self.lr)
        for name in ("weight_decay", "clip_gradient"):
            _check(name, 0 <= getattr(self, name) < math.inf, "0 or more", getattr(self, name))
        _check("power", 0 < self.power < math.inf, "greater than 0", self.power)
        _check("momentum", 0 <= self.momentum < 1, "at least 0 and less than 1", self.momentum)
        self._check_lists()
        _check("ema", 0 <= self.ema < 1, "at least 0 and less than 1", self.ema)
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("device", self.device, DEVICES)
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check("lr_end", 0 <= self.lr_end <= 1, "a share of training.lr, from 0 to 1", self.lr_end)
        if self.schedule in ("exponential", "step"):
            _check("lr_end", self.lr_end > 0, f"greater than 0 with schedule {self.schedule!r}", self.lr_end)
        _check_choice("on_nonfinite", self.on_nonfinite, ON_NONFINITE)
        factors = {name: getattr(self, name) for name in ("devices", "nodes", "accumulate")}
        named = " * ".join(f"training.{name} ({count})" for name, count in factors.items() if count > 1)
        fits = self.batch_size % math.prod(factors.values()) == 0
        _check("batch_size", fits, f"a multiple of {named}", self.batch_size)

    def _check_lists(self) -> None:
        """`betas` and `stages`, which become tuples: TOML has lists."""
        betas = _numbers(self.betas)
        fits = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        _check("betas", fits, "two numbers of at least 0 and less than 1, as in [0.9, 0.999]", self.betas)
        object.__setattr__(self, "betas", betas)
        if isinstance(self.stages, str):
            _check_choice("stages", self.stages, STAGES, also="a list of weights")
            return
        weights = _numbers(self.stages)
        fits = any(weights) and all(0 <= weight < math.inf for weight in weights)
        _check("stages", fits, "authors, last or a list of weights of at least 0, not all of them 0", self.stages)
        object.__setattr__(self, "stages", weights)

    @property
    def processes(self) -> int:
        """One for each device of each machine."""
        return self.devices * self.nodes

    @property
    def images_at_once(self) -> int:
        """Images that a device takes at a time: a part of its share of a batch."""
        return self.batch_size // (self.processes * self.accumulate)

    def fingerprint(self) -> dict[str, str]:
        """What must not change when a training goes on; where and how fast it runs may, and how many there are: also on
        how many devices and in how many parts, although batch normalisation then sees other shares.

        What came into a recipe later than the first runs is named only where it is not at its default, which is what
        those runs were trained by: so that they can go on."""
        free = {"seeds", "device", "devices", "nodes", "accumulate", "on_nonfinite", "workers"}
        free |= {"log_every", "checkpoint_every"}
        later = {f.name for f in fields(self) if f.name in _LATER and getattr(self, f.name) == f.default}
        return {f"training.{f.name}": str(getattr(self, f.name)) for f in fields(self) if f.name not in free | later}


# Left out of the fingerprint at these defaults, which therefore must stay as they are.
_LATER = {
    "lr_end",
    "schedule",
    "power",
    "drops",
    "optimizer",
    "weight_decay",
    "momentum",
    "betas",
    "clip_gradient",
    "stages",
}


def _numbers(values: object) -> tuple[float, ...]:
    """A list's numbers; of anything else, none."""
    if not isinstance(values, list | tuple):
        return ()
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return ()
    return tuple(float(value) if abs(value) < 1e300 else math.inf for value in values)


def _check(name: str, holds: bool, expected: str, value: object) -> None:
    if not holds:
        raise RecipeError(f"training.{name} must be {expected}, but got {short(value)}.")


def _check_choice(name: str, value: str, choices: tuple[str, ...], *, also: str = "") -> None:
    if value not in choices:
        close = nearest(value, choices)
        hint = f" Did you mean {close!r}?" if close else ""
        expected = f"one of {', '.join(choices)}" + (f", or {also}" if also else "")
        raise RecipeError(f"training.{name} must be {expected}, but got {short(value)}.{hint}")
