"""How to train: the numbers of the loop, checked once."""

from dataclasses import dataclass, fields

from veridical.core.catalog import nearest
from veridical.core.errors import RecipeError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The `training` part of a recipe.

    steps:            batches to train on.
    batch_size:       images of a batch, over all devices together.
    crop:             side of a training crop, px.
    lr:               Adam's learning rate at the start; it falls along a cosine to 1% of this.
    seed:             of the initial weights, the crops and the degradations; what a loss draws is by its own seed.
    seeds:            trainings of each loss of a comparison: with seed, seed + 1 and so on. See comparison/sweep.py.
    precision:        "32-true", "bf16-mixed" or "16-mixed".
    ema:              decay of the moving average of the weights, such as 0.999; 0 for none.
    device:           "auto", "cpu", "cuda" or "mps".
    devices:          how many of them.
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

    def __post_init__(self) -> None:
        for f in fields(self):
            value, kind = getattr(self, f.name), type(f.default)
            fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
            _check(f.name, fits, {int: "a whole number", float: "a number", str: "a word"}[kind], value)
        for name in ("steps", "batch_size", "crop", "seeds", "devices", "log_every", "checkpoint_every"):
            _check(name, getattr(self, name) >= 1, "at least 1", getattr(self, name))
        for name in ("seed", "workers"):
            _check(name, getattr(self, name) >= 0, "0 or more", getattr(self, name))
        _check("lr", 0 < self.lr < float("inf"), "greater than 0", self.lr)
        _check("ema", 0 <= self.ema < 1, "at least 0 and less than 1", self.ema)
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("device", self.device, DEVICES)
        _check(
            "batch_size",
            self.batch_size % self.devices == 0,
            f"a multiple of training.devices ({self.devices})",
            self.batch_size,
        )

    def fingerprint(self) -> dict[str, str]:
        """What must not change when a training goes on; where and how fast it runs may, and how many there are."""
        free = {"seeds", "device", "devices", "workers", "log_every", "checkpoint_every"}
        return {f"training.{f.name}": str(getattr(self, f.name)) for f in fields(self) if f.name not in free}


def _check(name: str, holds: bool, expected: str, value: object) -> None:
    if not holds:
        raise RecipeError(f"training.{name} must be {expected}, but got {value!r}.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        close = nearest(value, choices)
        hint = f" Did you mean {close!r}?" if close else ""
        raise RecipeError(f"training.{name} must be one of {', '.join(choices)}, but got {value!r}.{hint}")
