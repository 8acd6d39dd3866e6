"""What a comparison tells whoever watches it."""

from collections.abc import Sequence
from pathlib import Path

from veridical.training.loop import Silent


class Observer(Silent):
    """Hears what a comparison does, beside what each training tells; a subclass shows it. Each method may be left as
    it is. A note is something that the user should know: a loss left out, photographs skipped."""

    def doing(self, what: str, done: int, total: int) -> None:
        """Progress of something before or between the trainings; it ends with done == total."""

    def fetching(self, name: str, done: int, total: int | None) -> None:
        """Progress of a download, in bytes."""

    def begins(self, folder: Path, trainings: Sequence[str], steps: int, seeds: int = 1, models: int = 1) -> None:
        """All checks have passed. trainings: their names, each model on each loss with each of so many seeds."""

    def loss_begins(self, name: str) -> None:
        """One training begins, or goes on."""

    def scored(self, spec: str, score: float, *, best: bool) -> None:
        """A search has scored weights. best: higher than all before."""

    def elsewhere(self, name: str, where: str) -> None:
        """One training begins on another machine, or once more on a further one, beside others."""

    def of(self, name: str) -> "Observer":
        """Who hears of a training that goes on beside others."""
        del name
        return self

    def loss_ends(self, name: str, status: str, seconds: float, error: str | None) -> None:
        """One training is done and evaluated ("done"), was so already ("kept"), or has failed ("failed")."""
