"""What every group of commands shares: the application, errors in words, tables and progress."""

import contextlib
import errno
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

from veridical import __version__
from veridical.comparison.terminal import Console
from veridical.core import catalog
from veridical.core.errors import VeridicalError
from veridical.core.untrusted import printable

try:
    import rich.box
    import rich.console
    import rich.progress
    import rich.table
    import rich.text
    import typer
except ImportError as error:
    raise SystemExit(
        f'error: the command needs {error.name!r}. Install it with: pip install "veridical[compare]"'
    ) from error

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    name="veridical",
    help="Perceptual losses for image restoration: correct, fast, and compared on your own photographs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
weights_app = typer.Typer(help="The pretrained networks: which are here, fetch them, check them.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")
bench_app = typer.Typer(help="How fast things are, and how much memory they take.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
learn_app = typer.Typer(help="Make a loss for your own degradation.", no_args_is_help=True)
app.add_typer(learn_app, name="learn")
study_app = typer.Typer(help="Ask people which loss looks best.", no_args_is_help=True)
app.add_typer(study_app, name="study")

STOPPED = 130  # what a shell reports for a command that Ctrl-C ended


class _Safe:
    """What an interrupted or failed command may say about the work that is on disk already."""

    where: Path | str | None
    again: str

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.where = None
        self.again = "run the same command again to continue"

    def __str__(self) -> str:
        if self.where is None or (isinstance(self.where, Path) and not self.where.exists()):
            return "nothing was lost: no work had been finished"
        return f"finished work is in {self.where}; {self.again}"


safe = _Safe()


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Errors that a user can mend are printed without a traceback; the exit status says which kind it was."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        safe.reset()
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            # One of several speaks: see training.devices.is_first, which brings torch.
            if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
                complain(f"stopped; {safe}.")
            raise typer.Exit(STOPPED) from None
        except VeridicalError as error:
            if (full := _full_disk(error)) is not None:
                complain(full)
                raise typer.Exit(1) from None
            complain(f"error: {error}")
            raise typer.Exit(2) from None
        except Exception as error:
            if (full := _full_disk(error)) is not None:
                complain(full)
                raise typer.Exit(1) from None
            if isinstance(error, OSError) and error.filename is not None:
                complain(f"error: {error.filename}: {error.strerror or error}; {safe}.")
                raise typer.Exit(1) from None
            raise

    return run


def say(text: object = "", *, end: str = "\n", flush: bool = False) -> None:
    """Print, so that no name or note of somebody else's files can steer the terminal."""
    print(printable(str(text)), end=end, flush=flush)


def complain(message: str) -> None:
    sys.stdout.flush()
    print(printable(message), file=sys.stderr, flush=True)


def _full_disk(error: BaseException | None) -> str | None:
    """The message for a full disk, whoever met it, or None when the error is something else."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        # safetensors and Arrow report it in words of their own.
        if full or "no space left on device" in str(error).lower() or "os error 28" in str(error):
            path = getattr(error, "filename", None) or safe.where or "the disk"
            return f"error: no space left on {path}; {safe}. Free some space first."
        error = error.__cause__
    return None


def split_list(text: str, what: str) -> list[str]:
    """Split at the commas that stand outside brackets.

    >>> split_list("l2, lpips(net=vgg, eps=1e-6), 0.8*l2 + 0.2*l1", "losses")
    ['l2', 'lpips(net=vgg, eps=1e-6)', '0.8*l2 + 0.2*l1']
    """
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    parts = [part.strip() for part in parts]
    if not all(parts):
        raise VeridicalError(
            f"the {what} {text!r} have an empty entry. Expected names separated by commas, such as 'a,b'."
        )
    return parts


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"veridical {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Perceptual losses for image restoration: correct, fast, and compared on your own photographs."""


def stdout_console() -> rich.console.Console:
    """Stdout, without wrapping tables to 80 columns when it is a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0)
    for row in rows:
        table.add_row(*(rich.text.Text(cell) for cell in row))
    stdout_console().print(table)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for a page, each line with its end."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (columns, ("---",) * len(columns), *rows))


def print_entry(name: str, build: Callable[..., Any], notes: Sequence[str]) -> None:
    """One entry of a table in full: its docstring and its options with their defaults."""
    say(name)
    say()
    say(inspect.getdoc(build) or "(not documented)")
    for note in notes:
        say(note)
    options = catalog.options_of(build)
    say()
    say("Options (name=default):" if options else "Options: none.")
    for option, parameter in options.items():
        default = "required" if parameter.default is parameter.empty else f"{parameter.default!r}"
        say(f"  {option} = {default}")


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@contextlib.contextmanager
def counter(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """advance(done, all, name): a bar on a terminal, about ten plain lines on stderr elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        shown = -1

        def line(done: int, total: int, name: str) -> None:
            nonlocal shown
            tenth = done * 10 // total
            if total > 10 and tenth > shown:
                shown = tenth
                complain(f"{what}: {done} of {total} {name}".rstrip())

        yield line
        return
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=16),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(what, total=None)

        def bar(done: int, total: int, name: str) -> None:
            bars.update(task, description=f"{what} {name}".rstrip(), completed=done, total=total)

        yield bar


@contextlib.contextmanager
def phases() -> Iterator[Callable[[str, int, int, str], None]]:
    """doing(what, done, all, said): a `counter` for each thing that is done, one after the other."""
    with contextlib.ExitStack() as stack:
        now, advance = "", None

        def doing(what: str, done: int, total: int, said: str = "") -> None:
            nonlocal now, advance
            if what != now or advance is None:
                stack.close()
                now, advance = what, stack.enter_context(counter(what))
            advance(done, total, said)

        yield doing


@contextlib.contextmanager
def download_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress callback of weights.fetch: a bar on a terminal, one line for each source elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:

        def line(name: str, done: int, total: int | None) -> None:
            if done == 0:
                size = f"{total / 1e6:.0f} MB" if total else "size unknown"
                complain(f"fetching the {name} weights ({size})")

        yield line
        return
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("fetching", total=None)

        def bar(name: str, done: int, total: int | None) -> None:
            bars.update(task, description=f"{name} weights", completed=done, total=total)

        yield bar
