"""An observer of trainings that remembers what it was told."""

from veridical.comparison.observer import Observer


class Heard(Observer):
    """notes; trained: what began; starts: at which steps; ends: (name, status) of what is over."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.trained: list[str] = []
        self.starts: list[int] = []
        self.ends: list[tuple[str, str]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def loss_begins(self, name: str) -> None:
        self.trained.append(name)

    def started(self, total_steps: int, start_step: int) -> None:
        del total_steps
        self.starts.append(start_step)

    def loss_ends(self, name: str, status: str, seconds: float, error: str | None) -> None:
        del seconds, error
        self.ends.append((name, status))
