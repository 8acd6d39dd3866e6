"""The command `veridical`: parses and calls. Nothing imports it, and it is the only one that calls the report."""

import contextlib
import errno
import functools
import inspect
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

from veridical import __version__
from veridical.core import catalog
from veridical.core.errors import VeridicalError

if TYPE_CHECKING:
    from veridical.comparison.report import Run
    from veridical.comparison.tune import Search
    from veridical.losses.reference import Reference
    from veridical.training.recipe import Recipe

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

STOPPED = 130  # what a shell reports for a command that Ctrl-C ended


class _Safe:
    """What an interrupted or failed command may say about the work that is on disk already."""

    where: Path | None
    again: str

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.where = None
        self.again = "run the same command again to continue"

    def __str__(self) -> str:
        if self.where is None or not self.where.exists():
            return "nothing was lost: no work had been finished"
        return f"finished work is in {self.where}; {self.again}"


_safe = _Safe()


def _guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Errors that a user can mend are printed without a traceback; the exit status says which kind it was."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        _safe.reset()
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            _complain(f"stopped; {_safe}.")
            raise typer.Exit(STOPPED) from None
        except VeridicalError as error:
            if (full := _full_disk(error)) is not None:
                _complain(full)
                raise typer.Exit(1) from None
            _complain(f"error: {error}")
            raise typer.Exit(2) from None
        except Exception as error:
            if (full := _full_disk(error)) is not None:
                _complain(full)
                raise typer.Exit(1) from None
            if isinstance(error, OSError) and error.filename is not None:
                _complain(f"error: {error.filename}: {error.strerror or error}; {_safe}.")
                raise typer.Exit(1) from None
            raise

    return run


def _complain(message: str) -> None:
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)


def _full_disk(error: BaseException | None) -> str | None:
    """The message for a full disk, whoever met it, or None when the error is something else."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        # safetensors and Arrow report it in words of their own.
        if full or "no space left on device" in str(error).lower() or "os error 28" in str(error):
            path = getattr(error, "filename", None) or _safe.where or "the disk"
            return f"error: no space left on {path}; {_safe}. Free some space first."
        error = error.__cause__
    return None


def _split(text: str, what: str) -> list[str]:
    """Split at the commas that stand outside brackets.

    >>> _split("l2, lpips(net=vgg, eps=1e-6), 0.8*l2 + 0.2*l1", "losses")
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
        print(f"veridical {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Perceptual losses for image restoration: correct, fast, and compared on your own photographs."""


# ---- tables of names ----


def _console() -> rich.console.Console:
    """Stdout, without wrapping tables to 80 columns when it is a file or a pipe."""
    return rich.console.Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0)
    for row in rows:
        table.add_row(*(rich.text.Text(cell) for cell in row))
    _console().print(table)


def _print_entry(name: str, build: Callable[..., Any], notes: Sequence[str]) -> None:
    """One entry of a table in full: its docstring and its options with their defaults."""
    print(name)
    print()
    print(inspect.getdoc(build) or "(not documented)")
    for note in notes:
        print(note)
    options = catalog.options_of(build)
    print()
    print("Options (name=default):" if options else "Options: none.")
    for option, parameter in options.items():
        default = "required" if parameter.default is parameter.empty else f"{parameter.default!r}"
        print(f"  {option} = {default}")


@app.command("losses")
@_guarded
def list_losses(
    name: Annotated[str | None, typer.Argument(help="Show this loss in full.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page of all losses, docs/losses.md.")] = False,
) -> None:
    """List the losses, or show one: its formula, when to use it, where it is weak, its options, what it costs."""
    from veridical.losses import LOSSES, reference

    if markdown:
        print(reference.markdown(), end="")
        return
    if name is not None:
        _print_loss(reference.reference(name), LOSSES[name].kernel())
        return
    rows = [
        (name, entry.summary, ", ".join(entry.needs({})) or "-", ", ".join(entry.optimises) or "-")
        for name, entry in LOSSES.items()
    ]
    _print_table("Losses", ("name", "what it is", "needs weights", "optimises"), rows)
    print(
        "Sums are losses too: '0.8*l2 + 0.2*lpips(net=vgg)', 'l1 + auto*lpips'. Options of one: veridical losses NAME"
    )


def _print_loss(known: "Reference", kernel: str) -> None:
    """A loss in full, in two columns that fit 80 characters."""
    from veridical.losses import reference

    options = ", ".join(f"{option}={default}" for option, default in known.options.items())
    facts = {
        "Formula": known.formula,
        "Range": known.range,
        "Use": known.use,
        "Weak": known.weak,
        "Options": options or "none",
        "": known.args,
        "Needs": known.needs,
        "Optimises": ", ".join(known.optimises),
        "Cost": reference.cost(known) + (f" ({reference.measured_on()})" if known.cost is not None else ""),
        "Computed by": kernel,
        "Source": known.source,
    }
    grid = rich.table.Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in facts.items():
        if text:
            grid.add_row(label, rich.text.Text(text))
    console = rich.console.Console(width=min(_console().width, 100) if sys.stdout.isatty() else 80, highlight=False)
    console.print(rich.text.Text(known.name, style="bold"))
    for paragraph in filter(None, [known.summary, *known.text.split("\n")]):
        console.print(rich.text.Text(paragraph))
        console.print()
    console.print(grid)


@app.command("metrics")
@_guarded
def list_metrics(name: Annotated[str | None, typer.Argument(help="Show this metric in full.")] = None) -> None:
    """List the metrics, or show one with its options."""
    from veridical.metrics import METRICS

    if name is not None:
        entry = catalog.lookup(METRICS, name, "metric")
        _print_entry(name, entry.build, [])
        print("  channel = 'rgb'  (or 'y': the luma on which super-resolution papers measure, or 'luma': full range)")
        print("  border = 0  (pixels left out on every side)")
        return
    rows = [
        (
            name,
            "higher" if entry.higher_is_better else "lower",
            entry.unit or "-",
            entry.range,
            "yes" if entry.reference else "no",
            ", ".join(entry.needs({})) or "-",
        )
        for name, entry in METRICS.items()
    ]
    columns = ("name", "better when", "unit", "range", "needs the truth", "needs weights")
    _print_table("Metrics", columns, rows)
    print("Options as in papers: 'psnr(channel=y, border=4)'. Options of one: veridical metrics NAME")


@app.command("degradations")
@_guarded
def list_degradations(
    name: Annotated[str | None, typer.Argument(help="Show this degradation in full.")] = None,
) -> None:
    """List the degradations and the tasks, or show one degradation with its options."""
    from veridical.degradations import DEGRADATIONS, TASKS

    if name is not None:
        _print_entry(name, catalog.lookup(DEGRADATIONS, name, "degradation"), [])
        return
    _print_table(
        "Degradations", ("name", "what it does"), [(n, catalog.summary_of(d)) for n, d in DEGRADATIONS.items()]
    )
    rows = [(name, task.summary, task.degradation, task.model) for name, task in TASKS.items()]
    _print_table("Tasks", ("name", "what is mended", "degradation", "model"), rows)
    print("Steps follow one another: 'camera-shake + jpeg(quality=20)'. Options of one: veridical degradations NAME")


@app.command("models")
@_guarded
def list_models(name: Annotated[str | None, typer.Argument(help="Show this model in full.")] = None) -> None:
    """List the models, or show one with its options."""
    from veridical.models import MODELS

    if name is not None:
        _print_entry(name, catalog.lookup(MODELS, name, "model"), [])
        return
    _print_table(
        "Models", ("name", "what it is"), [(name, catalog.summary_of(model)) for name, model in MODELS.items()]
    )
    print("Options of one: veridical models NAME")


# ---- weights ----


@weights_app.command("list")
@_guarded
def weights_list() -> None:
    """Which pretrained networks are known, and where each lies on this machine."""
    from veridical.features import mdf, weights

    rows = [
        (row.name, row.status, str(row.found or "-"), "\n".join(row.sources) or weights.FILES[row.name].remedy)
        for row in (*weights.listing(), *mdf.shipped())
    ]
    _print_table("Pretrained networks", ("name", "status", "file", "sources"), rows)
    print("Looked for in $VERIDICAL_WEIGHTS, then in the cache. Get one with: veridical weights fetch NAME")


@weights_app.command("fetch")
@_guarded
def weights_fetch(names: Annotated[list[str] | None, typer.Argument(help="All when left out.")] = None) -> None:
    """Download pretrained networks, and check them by their hash; those that nobody offers for download are left out
    unless named."""
    from veridical.features import weights

    known = [name for name, file in weights.FILES.items() if file.sources]
    for name in names or known:
        catalog.lookup(weights.FILES, name, "pretrained network")
    failed = []
    for name in names or known:
        try:
            with _download_bar() as progress:
                path = weights.fetch(name, progress=progress)
            print(f"{name}: {path}")
        except VeridicalError as error:
            failed.append(name)
            _complain(f"error: {error}")
    if failed:
        _complain(f"{len(failed)} of {len(names or known)} could not be fetched: {', '.join(failed)}")
        raise typer.Exit(2)


@weights_app.command("verify")
@_guarded
def weights_verify(names: Annotated[list[str] | None, typer.Argument(help="All when left out.")] = None) -> None:
    """Read the files that would be used, and compare them with the published hashes. Status 2 when one is broken, or a
    named one is missing."""
    from veridical.features import mdf, weights

    shipped = {f"mdf-{task}": task for task in mdf.TASKS}
    found = [
        mdf.verify(shipped[name]) if name in shipped else weights.verify(name)
        for name in names or (*weights.FILES, *shipped)
    ]
    rows = [(row.name, row.status, str(row.found or "-"), row.detail) for row in found]
    _print_table("Pretrained networks", ("name", "status", "file", "detail"), rows)
    if any(row.status == "broken" or (row.status == "missing" and names) for row in found):
        raise typer.Exit(2)


@weights_app.command("convert-mdf")
@_guarded
def weights_convert_mdf(
    file: Annotated[Path, typer.Argument(help="Such as Ds_SISR.pth or Ds_JPEG.pth of github.com/gfxdisp/mdf.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .safetensors file. By default where mdf finds it, or beside FILE."),
    ] = None,
    range: Annotated[str, typer.Option(help="The input range to note in it: -1..1 or 0..1.")] = "-1..1",
) -> None:
    """Convert discriminators that MDF's authors released: pickles, which are read as data; nothing in them is run."""
    from veridical.features.mdf_convert import convert

    path, what = convert(file, out, range=range)
    print(f"{file.name} is {what}: {path}")


@contextlib.contextmanager
def _download_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress callback of weights.fetch: a bar on a terminal, one line for each source elsewhere."""
    console = rich.console.Console(stderr=True)
    if not console.is_terminal:

        def line(name: str, done: int, total: int | None) -> None:
            if done == 0:
                size = f"{total / 1e6:.0f} MB" if total else "size unknown"
                _complain(f"fetching the {name} weights ({size})")

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


# ---- what a loss sees ----


@app.command("probe")
@_guarded
def probe_losses(
    losses: Annotated[
        str | None, typer.Option(help="Separated by commas: 'l1,ssim,0.8*l2 + 0.2*lpips'. See: veridical losses.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="The losses of one family, or of all, one after the other: 'pixel', 'all'.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="A sharp photograph; one that is at hand when left out.")] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder for probe.html, its numbers and pictures.")
    ] = Path("probe"),
    steps: Annotated[int, typer.Option(help="Of descending each loss on the pixels; 0 leaves that out.")] = 150,
    crop: Annotated[int, typer.Option(help="Side of the part of the image that is used, in pixels.")] = 192,
    psnr: Annotated[str, typer.Option(help="Of the distortions, in dB, separated by commas.")] = "24,28,32",
    start: Annotated[str, typer.Option(help="The degradation to descend from.")] = "gaussian-blur(sigma_px=2)",
    lr: Annotated[float, typer.Option(help="Learning rate of descending, in intensity.")] = 0.02,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "cpu",
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write a page of Markdown with its pictures here, too.")
    ] = None,
) -> None:
    """Show what a loss sees: its value for blur, noise, JPEG and others at equal PSNR, and the image it leads to."""
    from veridical.comparison import probe_page
    from veridical.comparison.probe import NothingToProbe, Settings, probe
    from veridical.losses.reference import FAMILIES, family_specs

    if (losses is None) == (family is None):
        raise VeridicalError("name the losses to probe: either --losses 'l1,ssim' or --family NAME.")
    try:
        psnr_db = tuple(float(each) for each in _split(psnr, "PSNRs"))
    except ValueError:
        raise VeridicalError(
            f"--psnr must be numbers of dB separated by commas, such as 24,28,32; got {psnr!r}."
        ) from None
    settings = Settings(
        image=image, crop=crop, psnr_db=psnr_db, start=start, steps=steps, lr=lr, seed=seed, device=device
    )
    if losses is not None:
        wanted = {"losses": ("What the losses see", _split(losses, "losses"), out)}
    else:
        names = list(FAMILIES) if family == "all" else [str(family)]
        chosen = {name: catalog.lookup(FAMILIES, name, "family of losses") for name in names}
        wanted = {
            name: (each.title, family_specs(name), out / name if family == "all" else out)
            for name, each in chosen.items()
        }
    for name, (title, specs, folder) in wanted.items():
        try:
            with _counter(f"probing {name}") as advance:
                about = probe(specs, folder, settings, progress=advance)
        except NothingToProbe as error:
            if family != "all":
                raise
            _complain(f"left out: {name}: {error}")
            continue
        for left in about["left_out"]:
            _complain(f"left out: {left['name']}: {left['reason']}")
        for note in about["notes"]:
            _complain(f"note: {note}")
        page = probe_page.write_page(folder)
        db = f"{about['settings']['psnr_db'][probe_page.middle(about)]:g} dB"
        _print_table(f"{title}: what each makes of {db} of error, over its mean", *probe_page.table(about))
        if steps:
            _print_table(f"descended for {_count(steps, 'step')}", *probe_page.outcomes(about))
        print(f"page: {page}")
        if markdown is not None:
            print(f"markdown: {probe_page.write_markdown(folder, markdown, name, title)}")


# ---- making a loss ----


@learn_app.command("mdf")
@_guarded
def learn_mdf_loss(
    images: Annotated[
        list[str],
        typer.Option("--image", help="A sharp photograph, or one of the demo's by name: china. Repeatable."),
    ],
    task: Annotated[str, typer.Option(help="What is mended: a name of `veridical degradations`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file for the loss: jpeg.safetensors.")],
    degradation: Annotated[
        str | None, typer.Option(help="In place of the task's: 'jpeg(quality=(20, 40))', 'camera-shake + jpeg'.")
    ] = None,
    quality: Annotated[
        str, typer.Option(help="fast: minutes on a CPU. paper: 3000 iterations of 3 + 3 steps on the whole image.")
    ] = "fast",
    scales: Annotated[int, typer.Option(help="How many discriminators.")] = 8,
    ratio: Annotated[float, typer.Option(help="Of the sizes of two scales.")] = 2.0,
    max_px: Annotated[int, typer.Option(help="A larger photograph is first shrunk to this longer side.")] = 1024,
    inputs: Annotated[
        str, typer.Option(help="What a scale degrades: chained, the result of the one before; seed, the seed image.")
    ] = "chained",
    span: Annotated[
        float | None, typer.Option(help="The most that a generator adds to a pixel of -1..1: 1, and 2 for demosaic.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Of each scale, in place of the quality's.")] = None,
    seed: Annotated[int, typer.Option(help="Of the networks, the windows and the degradation.")] = 0,
    half: Annotated[bool, typer.Option("--half", help="Write float16: half the size.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Train MDF's discriminators for a degradation, from one photograph; the loss `mdf` takes the file."""
    from veridical.comparison.progress import display_scales
    from veridical.training.learn_mdf import learn_mdf
    from veridical.training.learned_file import run_folder
    from veridical.training.seeds import seed_image

    seeds = [seed_image(image) for image in images]
    _safe.where = run_folder(out)
    with display_scales() as watcher:
        learned = learn_mdf(
            seeds,
            out,
            task=task,
            degradation_spec=degradation,
            quality=quality,
            scales=scales,
            ratio=ratio,
            max_px=max_px,
            inputs=inputs,
            span=span,
            iterations=iterations,
            seed=seed,
            half=half,
            device=device,
            watcher=watcher,
        )
    rows = [
        (
            str(number),
            f"{each.size[0]}x{each.size[1]}",
            str(each.width),
            str(each.iterations),
            f"{each.gap:.3f}",
            f"{each.input_psnr_db:.1f}",
            f"{each.psnr_db:.1f}",
        )
        for number, each in enumerate(learned.scales, start=1)
    ]
    columns = ("scale", "px", "channels", "iterations", "critic gap", "input dB", "output dB")
    _print_table(f"{task}, {learned.seconds:.0f} s", columns, rows)
    print(f"log, and what each scale saw: {learned.run}")
    print(f"discriminators: {learned.path} (sha256 {learned.sha256[:12]}...)")
    print(f"use them: veridical compare --task {task} --losses 'l1,mdf(weights={learned.path})'")


@learn_app.command("seed")
@_guarded
def learn_seed(
    kind: Annotated[str, typer.Option(help="pink-noise, contrast-rings or pyramid-permutation.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The image: seed.png.")],
    image: Annotated[
        str | None, typer.Option(help="What is permuted: a photograph, or one of the demo's by name: china.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side in px; 512 when left out, and of a permuted photograph its own shape.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise and of the permutation.")] = 0,
) -> None:
    """Make an image to learn mdf from, in place of a photograph: those of the paper's figure 7."""
    from veridical.core.files import write_image
    from veridical.training.seeds import made_image, seed_image

    photograph = seed_image(image)[1] if image is not None else None
    made = made_image(kind, size=size, seed=seed, photograph=photograph)
    write_image(out, made)
    print(f"{made.shape[2]}x{made.shape[1]} px of {kind}: {out}")


@learn_app.command("show")
@_guarded
def learn_show(
    file: Annotated[str, typer.Argument(help="A file that was learned, or a task whose discriminators ship: jpeg.")],
) -> None:
    """What a learned file says of itself: discriminators for mdf, or an adapter for tfmlc."""
    from veridical.features.learned import learned_notes

    _print_table("Learned", ("what", ""), list(learned_notes(file).items()))


@learn_app.command("adapter")
@_guarded
def learn_an_adapter(
    data: Annotated[
        list[Path],
        typer.Option(help="A folder of photographs, a video, or a folder of videos; repeatable.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The adapter: a .safetensors file.")],
    features: Annotated[
        str, typer.Option(help="What it adapts: clip-vit-b16, clip-vit-b32, clip-vit-l14, vgg16, vgg19, alexnet, ...")
    ] = "clip-vit-b16",
    block: Annotated[
        str | None, typer.Option(help="Of the tower, from 0 (3 when left out); or a layer, such as relu3_3.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="What to order by strength. See: veridical degradations.")] = None,
    weak: Annotated[str | None, typer.Option(help="In place of the task's: 'jpeg(quality=60)'.")] = None,
    strong: Annotated[str | None, typer.Option(help="In place of the task's: 'jpeg(quality=15)'.")] = None,
    validate: Annotated[
        list[Path] | None,
        typer.Option(help="Others to validate on; by default some of the data are held out. Repeatable."),
    ] = None,
    frames: Annotated[bool, typer.Option("--frames", help="The images of a folder are the frames of a clip.")] = False,
    linear_light: Annotated[
        bool, typer.Option("--linear-light", help="Average frames as light adds up, not as the file's numbers.")
    ] = False,
    motion: Annotated[float, typer.Option(help="Of the frames of a window of video, in pixels.")] = 25.0,
    least_frames: Annotated[int, typer.Option(help="Of a window of video.")] = 15,
    every: Annotated[
        int | None, typer.Option(help="Begin a window every so many frames; by default where the last one ended.")
    ] = None,
    triplets: Annotated[int, typer.Option(help="How many to learn from.")] = 1024,
    validation_triplets: Annotated[int, typer.Option(help="How many to validate on.")] = 256,
    crop: Annotated[int | None, typer.Option(help="Their side in pixels; 224 for CLIP, else 96.")] = None,
    kind: Annotated[str, typer.Option(help="flattened: all positions as one vector; token-wise: each by itself.")] = (
        "flattened"
    ),
    pool: Annotated[int, typer.Option(help="Average the map to this many positions a side first; 0 for none.")] = 0,
    width: Annotated[int, typer.Option(help="Of each of the three layers.")] = 1024,
    epochs: Annotated[int, typer.Option(help="At most.")] = 300,
    batch_size: Annotated[int, typer.Option(help="Triplets in a step.")] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam at the start.")] = 1e-4,
    margin: Annotated[float, typer.Option(help="Of the triplet loss.")] = 1.0,
    plateau: Annotated[int, typer.Option(help="Epochs without gain after which the rate falls to a tenth.")] = 10,
    patience: Annotated[int, typer.Option(help="Epochs without gain after which it stops.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the crops, the degradations, the adapter and its batches.")] = 0,
    weights: Annotated[Path | None, typer.Option(help="File or folder of the features' network.")] = None,
    memory_gb: Annotated[float, typer.Option(help="For the features; beyond it they are kept in a file.")] = 4.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Teach an adapter on frozen features to order images by how strongly they are degraded: the loss tfmlc.

    The same command goes on where it was stopped. Its log and a picture of some triplets are in the folder beside the
    file, with .run in place of .safetensors.
    """
    from veridical.training import learn_adapter as learning
    from veridical.training.learned_file import check_out, run_folder
    from veridical.training.triplets import triplets_from

    settings = learning.Settings(
        kind=kind, width=width, pool=pool, epochs=epochs, batch_size=batch_size, lr=lr, margin=margin,
        plateau=plateau, patience=patience, seed=seed, device=device, memory_gb=memory_gb,
    )  # fmt: skip
    base = learning.base_named(features, block)
    check_out(out)
    run = run_folder(out)
    _safe.where = run
    with _phases() as doing:

        class Shown(learning.Watcher):
            def note(self, text: str) -> None:
                _complain(f"note: {text}")

            def doing(self, what: str, done: int, total: int, said: str = "") -> None:
                doing(what, done, total, said)

        watcher = Shown()
        learn, held = triplets_from(
            data, validate or (), crop=crop or learning.default_crop(base), count=triplets,
            validation_count=validation_triplets, seed=seed, task=task, weak=weak, strong=strong, frames=frames,
            linear_light=linear_light, shift_px=motion, least=least_frames, every=every,
            doing=watcher.doing, note=watcher.note,
        )  # fmt: skip
        found = learning.learn_adapter(
            base, learn, held, out, settings, weights=weights, task=task or "", watcher=watcher
        )
    rows = [
        (name, f"{each.same:.1%}", f"{each.across:.1%}", f"{each.ratio:.2f}")
        for name, each in (
            (f"the frozen features of {base.network} {base.tap}", found.frozen),
            ("with the adapter, untrained", found.before),
            (f"with the adapter, after epoch {found.best_epoch} of {found.epochs}", found.after),
        )
    ]
    columns = ("distance through", "of the same picture", "across pictures", "strong / weak, median")
    _print_table(f"weak nearer to sharp than strong, of {_count(len(held), 'validation triplet')}", columns, rows)
    print(
        f"{found.parameters} numbers; {found.features_s:.0f} s for the features ({found.features_mb:.0f} MB), "
        f"{found.seconds:.0f} s for the epochs; log and picture: {run}"
    )
    print(f"adapter: {out}; as a loss: tfmlc(adapter='{out}')")


@contextlib.contextmanager
def _phases() -> Iterator[Callable[[str, int, int, str], None]]:
    """doing(what, done, all, said): a `_counter` for each thing that is done, one after the other."""
    with contextlib.ExitStack() as stack:
        now, advance = "", None

        def doing(what: str, done: int, total: int, said: str = "") -> None:
            nonlocal now, advance
            if what != now or advance is None:
                stack.close()
                now, advance = what, stack.enter_context(_counter(what))
            advance(done, total, said)

        yield doing


# ---- the comparison ----


@dataclass(frozen=True)
class _Asked:
    """What a command that trains was asked for. values: keys of the recipe, None where not given."""

    recipe: Path | None
    values: dict[str, object]
    settings: list[str]
    out: Path | None
    demo: bool

    def chosen(self, losses: list[str] | None) -> tuple["Recipe", Path]:
        """The recipe with these losses, and the folder of the run."""
        values = {**self.values, "losses": losses}
        recipe = _chosen_recipe(self.recipe, values, self.settings, demo=self.demo)
        return recipe, _chosen_folder(recipe, self.out)


def _training_options(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe (TOML). Options win over it.")] = None,
    task: Annotated[str | None, typer.Option(help="See: veridical degradations.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of sharp photographs to train on.")] = None,
    evaluate: Annotated[Path | None, typer.Option(help="Folder of sharp photographs to evaluate on.")] = None,
    pairs: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="BLURRED SHARP", help="Two folders of real pairs to train on, of the same names."),
    ] = None,
    evaluate_pairs: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="BLURRED SHARP", help="Two folders of real pairs to evaluate on."),
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="Separated by commas. See: veridical metrics.")] = None,
    degradation: Annotated[str | None, typer.Option(help="In place of the task's own: 'box-blur(size=5)'.")] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Start from the model of one loss of a run, such as runs/x/l1; the model is then that one."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="In place of the task's own: 'unet(levels=3)'.")] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the model's first layers.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps for each loss.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Crops in a step.")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of a training crop, in pixels.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate at the start.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the initial weights, the crops, the noise and the losses.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; the same command with the same folder continues.")
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="A training of minutes, on photographs that are at hand.")
    ] = False,
) -> _Asked:
    """The options of every command that trains."""
    values: dict[str, object] = {
        "task": task,
        "data.train": data,
        "data.evaluate": evaluate,
        "data.pairs": pairs,
        "data.pairs_evaluate": evaluate_pairs,
        "metrics": None if metrics is None else _split(metrics, "metrics"),
        "degradation": degradation,
        "init": init,
        "model.name": model,
        "model.width": width,
        "training.steps": steps,
        "training.batch_size": batch_size,
        "training.crop": crop,
        "training.lr": lr,
        "training.seed": seed,
        "training.device": device,
    }
    return _Asked(recipe, values, settings or [], out, demo)


def _trains(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of training besides its own; it gets what they say as its first argument."""
    first, *others = inspect.signature(_training_options).parameters.values()
    _, *own = inspect.signature(command).parameters.values()
    parameters = [first, *own, *others]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        asked = _training_options(**{each.name: given.pop(each.name) for each in (first, *others)})
        command(asked, **given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


@app.command("compare")
@_guarded
@_trains
def compare_losses(
    asked: _Asked,
    losses: Annotated[
        str | None, typer.Option(help="Separated by commas: 'l2,spl-a,0.8*l2 + 0.2*lpips'. See: veridical losses.")
    ] = None,
) -> None:
    """Train one model per loss on your photographs, all else being equal, and say which loss to use."""
    from veridical.comparison.progress import display
    from veridical.comparison.sweep import compare

    recipe, folder = asked.chosen(None if losses is None else _split(losses, "losses"))
    with display() as observer:
        compare(recipe, folder, observer, leave_out=asked.demo)
    _print_result(folder)


@app.command("train")
@_guarded
@_trains
def train_one(
    asked: _Asked,
    loss: Annotated[
        str | None, typer.Option(help="One, such as 'charbonnier + 0.05*edge'. See: veridical losses.")
    ] = None,
) -> None:
    """Train a model on one loss, from random weights or (--init) from another run's; leaves the folder of a comparison
    of one."""
    from veridical.comparison.progress import display
    from veridical.comparison.sweep import compare

    losses = None if loss is None else _split(loss, "losses")
    if loss is None and asked.recipe is None:
        raise VeridicalError("no loss was named. Expected --loss, such as --loss l1. See: veridical losses.")
    recipe, folder = asked.chosen(losses)
    if len(recipe.losses) != 1:
        raise VeridicalError(
            f"one loss is trained at a time, but {len(recipe.losses)} are named: {', '.join(recipe.losses)}. Expected "
            "--loss with one; to train several and compare them: veridical compare."
        )
    with display() as observer:
        compare(recipe, folder, observer, leave_out=asked.demo)
    read = _print_result(folder)
    model = read.folder / read.entry(*recipe.losses).slug
    print(f"model: {model}")
    print(f"  restore photographs with it: veridical restore PHOTOGRAPHS --run {shlex.quote(str(model))} --out FOLDER")
    print(f"  go on from it with another loss: veridical train --init {shlex.quote(str(model))} --loss LOSS ...")


def _chosen_recipe(
    recipe: Path | None, values: Mapping[str, object], settings: Sequence[str] | None, *, demo: bool
) -> "Recipe":
    """The recipe with the options of a command, None where not given, and then its --set."""
    from veridical.comparison.sweep import demo_recipe
    from veridical.training.recipe import load_recipe

    overrides = [f"{key}={_toml(value)}" for key, value in values.items() if value is not None]
    overrides += settings or []
    if demo and recipe is not None:
        raise VeridicalError(f"--demo is a recipe of its own; leave out either it or {recipe}.")
    chosen = demo_recipe(overrides) if demo else load_recipe(recipe, overrides)
    if not demo and recipe is None and not (chosen.data.train or chosen.data.pairs):
        raise VeridicalError(
            "no photographs were named. Expected --data FOLDER or --pairs BLURRED SHARP; to try it without any, --demo."
        )
    return chosen


def _chosen_folder(recipe: "Recipe", out: Path | None) -> Path:
    """The run folder; told to `_safe`, so that whoever stops the command hears where the work is."""
    from veridical.comparison.folder import choose_folder

    folder = choose_folder(recipe, out)
    _safe.where = folder
    if out is None and recipe.out is None:
        _safe.again = f"run the same command again with --out {folder} to continue"
    return folder


@app.command("tune")
@_guarded
def tune_weights(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe (TOML) with one loss. Options win over it.")] = None,
    losses: Annotated[
        str | None, typer.Option(help="A sum, with weights to begin at: 'l1 + 0.01*lpips + 0.003*pdl'.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="See: veridical degradations.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of sharp photographs to train on.")] = None,
    evaluate: Annotated[
        Path | None, typer.Option(help="Folder of photographs that a comparison evaluates on: not looked at.")
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="Separated by commas. See: veridical metrics.")] = None,
    trials: Annotated[int, typer.Option(help="How many weights to try, with those of an earlier call.")] = 20,
    span: Annotated[
        float, typer.Option("--range", help="Each weight is searched from 1/RANGE to RANGE times the one given.")
    ] = 100.0,
    steps: Annotated[int | None, typer.Option(help="Training steps for each trial.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the trainings and of the search.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder; the same command with the same folder continues.")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Small trainings, on photographs that are at hand.")] = False,
) -> None:
    """Search the weights of a sum of losses by the aggregate score, one training for each trial.

    The first term's weight stays. Trials are scored on photographs held out of those trained on, never on those that a
    comparison evaluates on: compare the loss that is found with others afterwards.
    """
    from veridical.comparison.progress import display
    from veridical.comparison.tune import tune

    values: dict[str, object] = {
        "task": task,
        "data.train": data,
        "data.evaluate": evaluate,
        "losses": None if losses is None else [losses],
        "metrics": None if metrics is None else _split(metrics, "metrics"),
        "training.steps": steps,
        "training.seed": seed,
        "training.device": device,
    }
    chosen = _chosen_recipe(recipe, values, settings, demo=demo)
    folder = _chosen_folder(chosen, out)
    with display() as observer:
        search = tune(chosen, folder, observer, trials=trials, span=span)
    _print_search(search)


def _print_search(search: "Search") -> None:
    """The trials from the best down, the best as a line to paste, and where the pictures are."""
    from veridical.comparison import report
    from veridical.comparison.tune import PICTURE

    names = list(search.input)

    def cells(means: Mapping[str, float]) -> list[str]:
        return [f"{means[name]:.4f}" if name in means else "-" for name in names]

    rows = [("-", "degraded input", "1.0000", *cells(search.input))]
    rows += [
        (str(trial.number), trial.spec, f"{trial.score:.4f}", *cells(trial.means))
        for trial in sorted(search.done, key=lambda trial: -(trial.score or 0.0))
    ]
    print()
    _print_table(f"score = {search.formula}", ("trial", "loss", "score", *names), rows)
    for trial in search.trials:
        if trial.status == "failed":
            _complain(f"trial {trial.number}, {trial.spec}, failed: {trial.error}")
    first, best = search.trials[0], search.best
    began = f"{first.score:.4f}" if first.score is not None else "none"
    print(f"best of {len(search.done)}, with a score of {best.score:.4f} (the weights given: {began}):")
    print(f"  {best.spec}")
    print(f"score against weights: {search.folder / PICTURE}")
    print(f"report: {report.write_report(report.read_run(search.folder))}")


def _toml(value: object) -> str:
    """A TOML value. Paths and strings are quoted as JSON, which TOML reads."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(each) for each in value)}]"
    return json.dumps(str(value)) if isinstance(value, str | Path) else repr(value)


def _print_result(run: Path) -> "Run":
    """The table, the verdict and where the report is: what a comparison is for."""
    from veridical.comparison import report

    read = report.read_run(run)
    path = report.write_report(read)
    console = _console()
    console.print()
    console.print(report.table(read, bold=console.is_terminal))
    console.print()
    if read.analysis.runner_up is not None:
        print(report.verdict(read))
    print(f"report: {path}")
    return read


# ---- using what a run has made ----


@app.command("report")
@_guarded
def rebuild_report(
    run: Annotated[Path, typer.Argument(help="The folder of a comparison, such as runs/x.")],
    only: Annotated[
        str, typer.Option(help="Print the table of the images whose names begin so: 'kodak24/'. No page is written.")
    ] = "",
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table as Markdown, with intervals. No page is written.")
    ] = False,
) -> None:
    """Build report.html of a run again, from its files alone, and print its table."""
    from veridical.comparison import report

    if markdown:
        print(report.markdown(report.read_run(run, only=only)), end="")
    elif only:
        read = report.read_run(run, only=only)
        _console().print(report.table(read, bold=_console().is_terminal))
        print(report.verdict(read))
    else:
        _print_result(run)


@app.command("restore")
@_guarded
def restore_photographs(
    inputs: Annotated[list[Path], typer.Argument(help="Photographs, or folders of them.")],
    run: Annotated[Path, typer.Option("--run", help="The folder of one loss of a run, such as runs/x/pdl.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the results; never the input's.")],
    tile: Annotated[int, typer.Option(help="Side of a tile, in pixels; more needs more memory.")] = 512,
    overlap: Annotated[int, typer.Option(help="What neighbouring tiles share, in pixels.")] = 64,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results of an earlier call.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Restore photographs with a model that a comparison has trained.

    Any size; alpha, orientation, 8 or 16 bits, colour profile and grey stay as they are. Results are PNG (TIFF for
    TIFF). A file that cannot be read is reported and skipped; the status is then 1.
    """
    from veridical.comparison.restore import restore

    _safe.where, _safe.again = out, "run the same command again with --overwrite, or with the files that are left"
    with _counter("restoring") as advance:

        def on_image(number: int, total: int, source: Path, reason: str | None) -> None:
            advance(number, total, source.name)
            if reason is not None:
                _complain(f"skipped: {reason}")

        result = restore(
            run, inputs, out, tile=tile, overlap=overlap, overwrite=overwrite, device=device, on_image=on_image
        )
    print(f"restored {_count(len(result.written), 'photograph')} into {out}")
    if result.skipped:
        _complain(f"skipped {_count(len(result.skipped), 'file')} that cannot be read")
        raise typer.Exit(1)


@app.command("score")
@_guarded
def score_images(
    out: Annotated[Path, typer.Argument(help="Restored images: a file or a folder.")],
    reference: Annotated[
        Path | None, typer.Argument(help="Their references, matched by name; not needed by sharpness-q.")
    ] = None,
    metrics: Annotated[str, typer.Option(help="Separated by commas.")] = "psnr,ssim,ms-ssim,lpips,sharpness-q",
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the value of every image here, too.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "cpu",
) -> None:
    """Score images on disk against their references."""
    import polars as pl

    from veridical.comparison.score import score
    from veridical.core.files import atomic_write

    labels = _split(metrics, "metrics")
    with _counter("scoring") as advance:
        rows = score(out, reference, labels, device=device, on_image=lambda n, total: advance(n, total, ""))
    if csv is not None:
        atomic_write(csv, rows.write_csv().encode())
    names = list(dict.fromkeys(rows["metric"]))
    table = rows.pivot(on="metric", index="image", values="value")
    means = rows.group_by("metric").agg(pl.col("value").mean())
    mean = dict(zip(means["metric"], means["value"], strict=True))
    lines = [(str(row["image"]), *(f"{row[name]:.4f}" for name in names)) for row in table.iter_rows(named=True)]
    if len(lines) > 1:
        lines.append(("mean", *(f"{mean[name]:.4f}" for name in names)))
    _print_table(f"{out} against {reference}" if reference else f"{out}", ("image", *names), lines)
    if csv is not None:
        print(f"every value: {csv}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@contextlib.contextmanager
def _counter(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """advance(done, all, name): a bar on a terminal, about ten plain lines on stderr elsewhere."""
    console = rich.console.Console(stderr=True)
    if not console.is_terminal:
        shown = -1

        def line(done: int, total: int, name: str) -> None:
            nonlocal shown
            tenth = done * 10 // total
            if total > 10 and tenth > shown:
                shown = tenth
                _complain(f"{what}: {done} of {total} {name}".rstrip())

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


# ---- measuring ourselves ----


@bench_app.command("losses")
@_guarded
def bench_losses(
    only: Annotated[
        str | None, typer.Option(help="Separated by commas: 'ssim,lpips(net=vgg),metric psnr'. All when left out.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Of the images, in place of each case's own: 4x3x256x256.")] = None,
    seconds: Annotated[float, typer.Option(help="For the timing of one case.")] = 6.0,
    repeats: Annotated[int, typer.Option(help="Calls of each at the least, whatever the seconds.")] = 3,
    threads: Annotated[int, typer.Option(help="Of torch; 0 for its default.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "cpu",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Networks with random weights: the times are the same.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The folder for performance.md, .json and .svg.")] = Path("bench"),
    costs: Annotated[
        Path | None, typer.Option(help="Instead: write here what each loss costs as a multiple of l2.")
    ] = None,
) -> None:
    """Measure the losses and metrics beside other libraries: time, memory, and whether they compute the same.

    Peers that are not installed (pip install "veridical[bench]") or cannot be imported are named and left out.
    """
    from veridical.benchmark import report
    from veridical.benchmark.run import Settings, measure, measure_costs, read_size
    from veridical.core.files import atomic_write
    from veridical.training.device import choose_device

    settings = Settings(
        only=tuple(_split(only, "cases")) if only else (),
        size=read_size(size) if size else None,
        seconds=seconds,
        repeats=repeats,
        threads=threads,
        device=str(choose_device(device)),
        random_weights=random_weights,
    )
    with _counter("measuring") as advance:
        if costs is not None:
            found = measure_costs(settings, advance)
            atomic_write(costs, (json.dumps(found, indent=1) + "\n").encode())
            print(f"what {len(found['relative_to_l2'])} losses cost: {costs}")
            return
        result = measure(settings, advance)
    paths = report.write(result, out)
    for title, rows in report.sections(result):
        _print_table(title, report.COLUMNS, report.table(rows))
    for note in report.notes(result):
        print(f"- {note}")
    print(f"measurements: {', '.join(map(str, paths))}")


def main() -> None:
    """The entry point of the command."""
    app()
