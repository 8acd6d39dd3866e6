"""The commands on classical methods: methods, deconvolve, bench deconvolution."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veridical.cli.common import (
    app,
    bench_app,
    complain,
    counted,
    counter,
    guarded,
    markdown_table,
    print_entry,
    print_table,
    safe,
    say,
    split_list,
)
from veridical.core import catalog
from veridical.core.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from veridical.deconvolution import BlackBox

BLUR = "The blur, by name: 'box-blur(size=5)', 'disc-blur(radius_px=3)'; or another degradation, as a black box."
KERNEL = "The blur's kernel, for all images: a .npy array (h, w)."
KERNELS = "A folder of kernels, .npy: of the image's name, or of the number at its end: kernel03.npy for im05_ker03."
FLIP = "The kernels' files are those of a correlation, such as Levin's: turn them by half a circle."


@app.command("methods")
@guarded
def list_methods(
    name: Annotated[str | None, typer.Argument(help="Show this method in full.")] = None,
) -> None:
    """List the restorers without training and the denoisers of RED, or show one method with its options."""
    from veridical.deconvolution import DENOISERS, METHODS

    if name is not None:
        print_entry(name, catalog.lookup(METHODS, name, "method"), [])
        return
    rows = [(name, catalog.summary_of(kind), "yes" if kind.needs_kernel else "no") for name, kind in METHODS.items()]
    print_table("Restorers without training", ("name", "what it is", "needs the kernel"), rows)
    print_table("Denoisers", ("name", "what it is"), [(n, catalog.summary_of(d)) for n, d in DENOISERS.items()])
    say("Restore by one: veridical deconvolve PHOTOGRAPHS --method NAME. Options of one: veridical methods NAME")


@app.command("deconvolve")
@guarded
def deconvolve_photographs(
    inputs: Annotated[list[Path], typer.Argument(help="Photographs, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the results; never the input's.")],
    method: Annotated[str, typer.Option(help="A name of `veridical methods`, with options.")] = "richardson-lucy",
    kernel: Annotated[Path | None, typer.Option(help=KERNEL)] = None,
    kernels: Annotated[Path | None, typer.Option(help=KERNELS)] = None,
    blur: Annotated[str | None, typer.Option(help=BLUR)] = None,
    flip_kernel: Annotated[bool, typer.Option("--flip-kernel", help=FLIP)] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results of an earlier call.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "cpu",
) -> None:
    """Restore photographs whose blur is known, without training.

    Alpha, orientation, 8 or 16 bits, colour profile and grey stay as they are. Results are PNG (TIFF for TIFF). A file
    that cannot be read or restored is reported and skipped; the status is then 1.
    """
    from veridical.comparison.deconvolve import deconvolve
    from veridical.deconvolution import method as method_of

    known = _blurs(kernel, kernels, blur, flip_kernel)
    safe.where, safe.again = out, "run the same command again with --overwrite, or with the files that are left"
    with counter("restoring") as advance:
        result = deconvolve(inputs, out, method_of(method), known, overwrite=overwrite, device=device, progress=advance)
    for _, reason in result.skipped:
        complain(f"skipped: {reason}")
    say(f"restored {counted(len(result.written), 'photograph')} into {out}")
    if result.skipped:
        complain(f"skipped {counted(len(result.skipped), 'file')} that cannot be read or restored")
        raise typer.Exit(1)


@bench_app.command("deconvolution")
@guarded
def bench_deconvolution(
    sharp: Annotated[Path, typer.Argument(help="Sharp images: a file or a folder.")],
    blurred: Annotated[
        Path | None, typer.Argument(help="The same blurred, matched by name. When left out, --blur blurs them.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Separated by commas; all when left out.")] = None,
    metrics: Annotated[str, typer.Option(help="Separated by commas.")] = "psnr,ssim",
    kernel: Annotated[Path | None, typer.Option(help=KERNEL)] = None,
    kernels: Annotated[Path | None, typer.Option(help=KERNELS)] = None,
    blur: Annotated[str | None, typer.Option(help=BLUR)] = None,
    flip_kernel: Annotated[bool, typer.Option("--flip-kernel", help=FLIP)] = False,
    luma: Annotated[bool, typer.Option("--luma", help="Restore and score luma alone.")] = False,
    align: Annotated[int, typer.Option(help="Shift each result by up to so many pixels to fit the truth best.")] = 0,
    border: Annotated[int, typer.Option(help="Pixels cut from every side before scoring.")] = 0,
    count: Annotated[int | None, typer.Option(help="The first so many images alone.")] = None,
    threads: Annotated[int, typer.Option(help="Of torch.")] = 1,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the table here.")] = None,
) -> None:
    """Measure the restorers without training on images whose truth is known: quality, iterations and time."""
    from veridical.benchmark import deconvolution as bench
    from veridical.benchmark.measure import threads as bench_threads
    from veridical.comparison.evaluate import build_metrics
    from veridical.comparison.score import pairs_of
    from veridical.core.files import atomic_write
    from veridical.deconvolution import METHODS
    from veridical.deconvolution import method as method_of

    chosen = {spec: method_of(spec) for spec in (split_list(methods, "methods") if methods else METHODS)}
    known = _blurs(kernel, kernels, blur, flip_kernel)
    degrade = None
    if blurred is None:
        if blur is None:
            raise DataError("without blurred images, --blur says how the sharp ones are to be blurred.")
        from veridical.degradations import degradation

        degrade = degradation(blur)
    pairs = pairs_of(blurred or sharp, sharp if blurred is not None else None)[:count]
    cases = [
        bench.Case(pair.name, pair.reference or pair.image, pair.image if pair.reference else None, one, degrade)
        for pair, one in zip(pairs, known([pair.name for pair in pairs]), strict=True)
    ]
    with bench_threads(threads), counter("measuring") as advance:
        found = bench.measure(
            cases,
            chosen,
            build_metrics(split_list(metrics, "metrics")),
            luma_alone=luma,
            align=align,
            border=border,
            on_image=advance,
        )
    columns, rows = bench.table(found)
    print_table(f"{counted(len(cases), 'image')}, {counted(threads, 'thread')}", columns, rows)
    if markdown is not None:
        atomic_write(markdown, markdown_table(columns, [(f"`{name}`", *rest) for name, *rest in rows]).encode())
        say(f"table: {markdown}")


def _blurs(
    kernel: Path | None, kernels: Path | None, blur: str | None, turned: bool
) -> "Callable[[Sequence[str]], list[Tensor | BlackBox]]":
    """The blurs of images by their names, without the suffix."""
    from veridical.degradations import Blur, degradation
    from veridical.training.kernels import kernels_in

    if sum(given is not None for given in (kernel, kernels, blur)) != 1:
        raise DataError("the blur has to be known: give one of --kernel FILE, --kernels FOLDER and --blur NAME.")
    if blur is not None:
        made = degradation(blur)
        if made.random:
            raise DataError(
                f"{made.label} is drawn anew for every image, so nobody knows the blur of a photograph by it."
            )
        known = made.kernel() if isinstance(made, Blur) else made
        return lambda names: [known for _ in names]

    def read(names: Sequence[str]) -> "list[Tensor | BlackBox]":
        if kernel is not None:
            return [kernels_in(kernel.parent, [kernel.stem], flip=turned)[kernel.stem]] * len(names)
        assert kernels is not None
        by_name = kernels_in(kernels, names, flip=turned)
        return [by_name[name] for name in names]

    return read
