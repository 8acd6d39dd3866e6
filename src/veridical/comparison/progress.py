"""What a comparison shows while it runs: bars on a terminal, plain lines in a file or a pipe."""

import contextlib
import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import rich.console
import rich.progress
import rich.table
import rich.text

from veridical.comparison.observer import Observer
from veridical.comparison.terminal import Console
from veridical.core.untrusted import printable
from veridical.training.learn_mdf import Watcher

Shown = TypeVar("Shown")


class Lines(Observer):
    """Progress as plain lines, for a file or a pipe: about ten for each loss."""

    def __init__(self) -> None:
        self.losses: list[str] = []
        self.steps, self.tenth = 0, 0
        self.name = ""
        self.beside: dict[str, Lines] = {}

    def note(self, text: str) -> None:
        _print(f"note: {text}")

    def doing(self, what: str, done: int, total: int) -> None:
        if done in (0, total):
            _print(f"{self._where()}{what}{': done' if done == total else ''}")

    def fetching(self, name: str, done: int, total: int | None) -> None:
        if done == 0:
            size = f"{total / 1e6:.0f} MB" if total else "size unknown"
            _print(f"fetching the {name} weights ({size})")

    def begins(self, folder: Path, trainings: Sequence[str], steps: int, seeds: int = 1, models: int = 1) -> None:
        self.losses, self.steps = [*self.losses, *trainings], steps
        _print(_beginning(folder, len(trainings), steps, seeds, models))

    def loss_begins(self, name: str) -> None:
        self.name, self.tenth = name, 0

    def started(self, total_steps: int, start_step: int) -> None:
        going = f"going on from step {start_step} of {total_steps}" if start_step else "training"
        self.steps, self.tenth = total_steps, start_step * 10 // total_steps
        _print(f"{self._where()}{self.name}: {going}")

    def step(self, step: int, total: float, terms: dict[str, float], rate: float) -> None:
        tenth = step * 10 // self.steps
        if tenth > self.tenth:
            self.tenth = tenth
            left = datetime.timedelta(seconds=round((self.steps - step) / max(rate, 1e-9)))
            _print(
                f"{self._where()}{self.name}: step {step} of {self.steps}, {_terms(total, terms)}, "
                f"{rate:.2f} steps/s, {left} left"
            )

    def elsewhere(self, name: str, where: str) -> None:
        other = self.of(name)
        other._say(f"{other._where()}{name}: begun on {where}")

    def of(self, name: str) -> "Lines":
        if name not in self.beside:
            self.beside[name] = other = self._another(name)
            other.losses, other.steps = self.losses, self.steps
            other.loss_begins(name)
        return self.beside[name]

    def _another(self, name: str) -> "Lines":
        """Who shows one training of several that go on at once."""
        del name
        return Lines()

    def loss_ends(self, name: str, status: str, seconds: float, error: str | None) -> None:
        said = {"done": f"done, {seconds:.0f} s of training", "kept": "was finished already"}.get(status)
        self.name = name
        _print(f"{self._where()}{name}: {said or f'FAILED: {error}'}")

    def scored(self, spec: str, score: float, *, best: bool) -> None:
        self._say(f"{self._where()}{spec}: score {score:.4f}{', the best so far' if best else ''}")

    def _say(self, text: str) -> None:
        _print(text)

    def _where(self) -> str:
        if self.name not in self.losses:
            return ""
        return f"[{self.losses.index(self.name) + 1}/{len(self.losses)}] "


class Bars(Lines):
    """Progress as bars on a terminal: all losses, and those that are being trained, with their terms."""

    def __init__(self, bars: rich.progress.Progress) -> None:
        super().__init__()
        self.bars = bars
        self.all = bars.add_task("all losses", total=None, visible=False, said="")
        self.one = bars.add_task("checking", total=None, said="")
        self.total: dict[str, int] = {}  # steps of each training
        self.done: dict[str, int] = {}  # those that it has done

    def note(self, text: str) -> None:
        self.bars.console.print(rich.text.Text(f"note: {text}", style="yellow"))

    def doing(self, what: str, done: int, total: int) -> None:
        self.bars.update(self.one, description=what, completed=done, total=total, said="")

    def fetching(self, name: str, done: int, total: int | None) -> None:
        said = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else f"{done / 1e6:.0f} MB"
        self.bars.update(self.one, description=f"fetching {name}", completed=done, total=total, said=said)

    def begins(self, folder: Path, trainings: Sequence[str], steps: int, seeds: int = 1, models: int = 1) -> None:
        self.losses, self.steps = [*self.losses, *trainings], steps
        self.bars.console.print(_beginning(folder, len(trainings), steps, seeds, models))
        self.total.update(dict.fromkeys(trainings, steps))
        self.bars.update(self.all, total=sum(self.total.values()), visible=True)

    def started(self, total_steps: int, start_step: int) -> None:
        self.bars.reset(self.one, description=self.name, total=total_steps, completed=start_step)

    def step(self, step: int, total: float, terms: dict[str, float], rate: float) -> None:
        self.bars.update(self.one, completed=step, said=f"{rate:.1f} steps/s  {_terms(total, terms)}")
        self._reached(self.name, step)

    def _say(self, text: str) -> None:
        self.bars.console.print(rich.text.Text(text))

    def _another(self, name: str) -> Lines:
        other = _BarBeside(self.bars)
        other.all, other.done = self.all, self.done
        other.one = self.bars.add_task(name, total=None, said="")
        self.bars.update(self.one, visible=False)
        return other

    def _reached(self, name: str, step: int) -> None:
        self.done[name] = step
        self.bars.update(self.all, completed=sum(self.done.values()))

    def loss_ends(self, name: str, status: str, seconds: float, error: str | None) -> None:
        self._reached(name, self.total.get(name, self.steps))
        if name in self.beside:
            self.bars.remove_task(self.beside.pop(name).one)  # type: ignore[attr-defined] # a _BarBeside
        if status == "failed":
            self.bars.console.print(rich.text.Text(f"{name} FAILED: {error}", style="red"))
        elif status == "done":
            self.bars.console.print(f"{name}: {seconds:.0f} s of training")


class _BarBeside(Bars):
    """The bar of one training of several."""

    def __init__(self, bars: rich.progress.Progress) -> None:
        Lines.__init__(self)
        self.bars = bars


def _print(text: str) -> None:
    print(printable(text), flush=True)


def _beginning(folder: Path, trainings: int, steps: int, seeds: int, models: int) -> str:
    losses = trainings // seeds // models
    what = f"{losses} loss{'' if losses == 1 else 'es'}"
    what = f"{models} models on {what}" if models > 1 else what
    what += f" with {seeds} seeds each" if seeds > 1 else ""
    what += f", {trainings} trainings," if trainings > losses else ""
    return f"comparing {what} over {steps} steps each, into {folder}"


def _terms(total: float, terms: Mapping[str, float]) -> str:
    if len(terms) < 2:
        return f"loss {total:.4g}"
    signed = " ".join(f"{'-' if value < 0 else '+'} {abs(value):.4g} ({label})" for label, value in terms.items())
    return f"loss {total:.4g} = {signed.removeprefix('+ ')}"


def _columns() -> tuple[rich.progress.ProgressColumn, ...]:
    return (
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn(
            "{task.fields[said]}",
            markup=False,
            table_column=rich.table.Column(no_wrap=True, overflow="ellipsis", ratio=1),
        ),
    )


@contextlib.contextmanager
def _shown(lines: Callable[[], Shown], bars: Callable[[rich.progress.Progress], Shown]) -> Iterator[Shown]:
    """Bars on a terminal, lines elsewhere."""
    console = Console(highlight=False)
    if not console.is_terminal:
        yield lines()
        return
    with rich.progress.Progress(*_columns(), console=console, transient=True) as shown:
        yield bars(shown)


def display() -> contextlib.AbstractContextManager[Lines]:
    """Who watches a comparison."""
    return _shown(Lines, Bars)


def display_scales() -> contextlib.AbstractContextManager["ScaleLines"]:
    """Who watches `learn mdf`."""
    return _shown(ScaleLines, ScaleBars)


class ScaleLines(Watcher):
    """What `learn mdf` tells, as plain lines: four for each scale."""

    def __init__(self) -> None:
        self.of, self.iterations, self.quarter = "", 0, 0

    def note(self, text: str) -> None:
        _print(f"note: {text}")

    def scale(self, scale: int, scales: int, size: tuple[int, int], iterations: int, start: int) -> None:
        self.of = f"scale {scale + 1} of {scales}, {size[0]}x{size[1]} px"
        self.iterations, self.quarter = iterations, start * 4 // iterations
        if start:
            _print(f"{self.of}: going on from iteration {start}")

    def step(self, iteration: int, gap: float, psnr_db: float) -> None:
        if iteration * 4 // self.iterations > self.quarter:
            self.quarter = iteration * 4 // self.iterations
            _print(
                f"{self.of}: iteration {iteration} of {self.iterations}, critic gap {gap:.3f}, "
                f"reconstruction {psnr_db:.1f} dB"
            )


class ScaleBars(ScaleLines):
    """The same on a terminal: a bar of all scales and one of the scale that is being trained."""

    def __init__(self, bars: rich.progress.Progress) -> None:
        super().__init__()
        self.bars = bars
        self.all = bars.add_task("all scales", total=None, said="")
        self.one = bars.add_task("checking", total=None, said="")

    def note(self, text: str) -> None:
        self.bars.console.print(rich.text.Text(f"note: {text}", style="yellow"))

    def scale(self, scale: int, scales: int, size: tuple[int, int], iterations: int, start: int) -> None:
        self.done, self.iterations = scale * iterations, iterations
        described = f"scale {scale + 1} of {scales}, {size[0]}x{size[1]} px"
        self.bars.update(self.all, total=scales * iterations, completed=self.done + start)
        self.bars.reset(self.one, description=described, total=iterations, completed=start)

    def step(self, iteration: int, gap: float, psnr_db: float) -> None:
        self.bars.update(self.one, completed=iteration, said=f"gap {gap:.3f}, {psnr_db:.1f} dB")
        self.bars.update(self.all, completed=self.done + iteration)
