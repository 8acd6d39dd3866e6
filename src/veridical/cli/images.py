"""The commands on images: restore, export, score, correlate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veridical.cli.common import app, complain, counted, counter, guarded, print_table, safe, say, split_list
from veridical.core.errors import BadOption

if TYPE_CHECKING:
    import polars as pl

    from veridical.comparison.statistics import Interval


@app.command("restore")
@guarded
def restore_photographs(
    inputs: Annotated[list[Path], typer.Argument(help="Photographs, or folders of them.")],
    run: Annotated[str, typer.Option("--run", help="The folder of one loss of a run, such as runs/x/pdl, or its URL.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the results; never the input's.")],
    tile: Annotated[
        str,
        typer.Option(metavar="auto|N", help="Side of a tile, in pixels; more needs more memory. auto: 512 or more."),
    ] = "auto",
    overlap: Annotated[
        str,
        typer.Option(
            metavar="auto|N", help="What neighbouring tiles share, in pixels. auto: as far as the model looks."
        ),
    ] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, bf16 or fp16.")] = "32-true",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results of an earlier call.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Keep results of an earlier call, and go on with the others.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--report", help="A CSV file: source, destination, seconds, status, reason.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Restore photographs with a model that a comparison has trained.

    Any size; alpha, orientation, 8 or 16 bits, colour profile, EXIF, dpi and grey stay as they are. Results are PNG
    (TIFF for TIFF). A file that cannot be read or restored is skipped, and listed at the end; the status is then 1.
    """
    from veridical.comparison.restore import restore

    safe.where, safe.again = out, "each file is whole: go on by the same command with --skip-existing"
    with counter("restoring") as advance:

        def on_image(number: int, total: int, source: Path, reason: str | None) -> None:
            advance(number, total, source.name)
            if reason is not None:
                complain(f"skipped: {reason}")

        result = restore(
            run,
            inputs,
            out,
            tile=_pixels("tile", tile),
            overlap=_pixels("overlap", overlap),
            precision=precision,
            overwrite=overwrite,
            skip_existing=skip_existing,
            device=device,
            report=report,
            on_image=on_image,
            note=complain,
        )
    kept = f"; {counted(len(result.present), 'result')} of an earlier call kept" if result.present else ""
    say(f"restored {counted(len(result.written), 'photograph')} into {out}{kept}")
    if result.skipped:
        complain(f"skipped {counted(len(result.skipped), 'file')} that cannot be read or restored:")
        for source, reason in result.skipped:
            complain(f"  {source}: {reason}")
        raise typer.Exit(1)


def _pixels(option: str, given: str) -> int | None:
    """The number of an option auto|N; None for auto."""
    if given == "auto":
        return None
    if not given.isascii() or not given.isdigit():
        raise BadOption(f"--{option} must be auto or a number of pixels; got {given!r}.")
    return int(given)


@app.command("export")
@guarded
def export_trained(
    run: Annotated[str, typer.Option("--run", help="The folder of one loss of a run, such as runs/x/pdl, or its URL.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: model.onnx or model.pt2.")],
    format: Annotated[
        str | None, typer.Option("--format", help="onnx or torch (torch.export); by the suffix when left out.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="For images of this size alone; any size when left out.")
    ] = None,
    opset: Annotated[int | None, typer.Option(help="Of ONNX; torch's own choice when left out.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of an earlier call.")] = False,
) -> None:
    """Export a trained model to ONNX or torch.export, and check that the file gives the same image.

    The file takes "image", (N, C, H, W) in [0, 1], and gives "restored", not clamped. It is read back (by onnxruntime,
    or torch.export.load) and compared with the model before it is written.
    """
    from veridical.comparison.export import TOLERANCE, export_model

    fixed = None
    if size is not None:
        height, cross, width = size.partition("x")
        if not cross or not all(side.isascii() and side.isdigit() and int(side) > 0 for side in (height, width)):
            raise BadOption(f"--size must be HEIGHTxWIDTH, such as 720x1280; got {size!r}.")
        fixed = (int(height), int(width))
    exported = export_model(run, out, format=format, size=fixed, opset=opset, overwrite=overwrite)
    say(f"exported to {out}: {exported.bytes / 1e6:.1f} MB")
    bound = ", ".join(f"{dimension} at {length}" for dimension, length in exported.fixed.items())
    say(f"free: {', '.join(exported.dynamic) or 'nothing'}; fixed: {bound or 'nothing'}")
    shapes = " and ".join("x".join(map(str, shape)) for shape in exported.checked)
    say(
        f"checked on {shapes}: it differs from the model by at most {exported.largest_difference:.1g} "
        f"(allowed: {TOLERANCE:g})"
    )


@app.command("score")
@guarded
def score_images(
    out: Annotated[Path, typer.Argument(help="Restored images: a file or a folder.")],
    reference: Annotated[
        Path | None, typer.Argument(help="Their references, matched by name; not needed by sharpness-q.")
    ] = None,
    metrics: Annotated[str, typer.Option(help="Separated by commas.")] = "psnr,ssim,ms-ssim,lpips,sharpness-q",
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the value of every image here, as it comes.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "cpu",
) -> None:
    """Score images on disk against their references.

    Means with their 95 % interval, and every image when they are few. A file that cannot be read or has another size
    than its reference is reported and skipped; the status is then 1.
    """
    from veridical.comparison.score import score, unfinished

    labels = split_list(metrics, "metrics")
    if csv is not None:
        safe.where, safe.again = unfinished(csv), "each line is whole"
    with counter("scoring") as advance:
        scored = score(
            out, reference, labels, device=device, on_image=lambda n, total: advance(n, total, ""), table=csv
        )
    _print_scores(f"{out} against {reference}" if reference else f"{out}", scored.rows, everything=csv)
    for reason in scored.skipped:
        complain(f"skipped: {reason}")
    if scored.skipped:
        complain(f"skipped {counted(len(scored.skipped), 'image')}; the means are of the others alone")
        raise typer.Exit(1)


MOST_LINES = 100  # of single images on a terminal
FEW = 10  # points or references: four in the right order are so in every resample


def _print_scores(title: str, rows: "pl.DataFrame", *, everything: Path | None) -> None:
    import numpy as np

    from veridical.comparison.statistics import Interval, t_interval

    names = list(dict.fromkeys(rows["metric"]))
    table = rows.pivot(on="metric", index="image", values="value")
    lines = [(str(row["image"]), *(f"{row[name]:.4f}" for name in names)) for row in table.iter_rows(named=True)]
    left_out = len(lines) > MOST_LINES
    if len(lines) > 1:
        values = [table[name].to_numpy() for name in names]
        # Equal images have an infinite PSNR, and then the mean is infinite and has no interval.
        means = [t_interval(each) if np.isfinite(each).all() else Interval(float(each.mean())) for each in values]
        lines = [
            *([] if left_out else lines),
            ("mean", *(f"{mean.value:.4f}" for mean in means)),
            ("95 % interval", *("-" if mean.low is None else f"{mean.low:.4f} .. {mean.high:.4f}" for mean in means)),
        ]
    print_table(title, ("image", *names), lines)
    if everything is not None:
        say(f"every value: {everything}")
    elif left_out:
        say(f"the values of {table.height} images are not shown: --csv FILE keeps them")


@app.command("correlate")
@guarded
def correlate_with_people(
    images: Annotated[Path, typer.Argument(help="The images that were scored, or the folder of a comparison.")],
    human: Annotated[Path, typer.Option(help="CSV: image (or loss), score, and reference where names differ.")],
    reference: Annotated[Path | None, typer.Argument(help="The folder of their references.")] = None,
    score: Annotated[str | None, typer.Option(help="The column of the scores, if not score, mos, jnd, ...")] = None,
    lower_is_better: Annotated[
        bool | None, typer.Option("--lower-is-better/--higher-is-better", help="Which way the human scores run.")
    ] = None,
    metrics: Annotated[str, typer.Option(help="Separated by commas.")] = "psnr,ssim,ms-ssim,lpips,dists",
    losses: Annotated[str | None, typer.Option(help="Losses to judge as metrics, separated by commas.")] = None,
    fit: Annotated[str, typer.Option(help="none, or logistic: before Pearson's correlation.")] = "none",
    draws: Annotated[int, typer.Option(help="Of the bootstrap.")] = 1000,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the human score and every value here.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "cpu",
) -> None:
    """How far metrics and losses agree with human scores: Spearman, Kendall and Pearson, with 95 % intervals.

    1 is full agreement, whichever way a metric runs. With the folder of a comparison and the scale.csv of its study,
    the losses are the points.
    """
    from veridical.comparison.correlate import correlate_images, correlate_run, read_human
    from veridical.core.files import atomic_write

    people = read_human(human, score=score, lower_is_better=lower_is_better)
    if (images / "comparison.json").is_file():
        found = correlate_run(images, people, fit=fit, draws=draws)
    else:
        with counter("scoring") as advance:
            found = correlate_images(
                images,
                reference,
                people,
                split_list(metrics, "metrics"),
                split_list(losses, "losses") if losses else (),
                device=device,
                fit=fit,
                draws=draws,
                on_image=lambda n, total: advance(n, total, ""),
            )
    for reason in found.skipped:
        complain(f"left out: {reason}")

    def shown(interval: "Interval | None") -> str:
        if interval is None:
            return "-"
        return f"{interval.value:.3f}" + (
            f" [{interval.low:.3f}, {interval.high:.3f}]" if interval.low is not None else ""
        )

    rows = [(a.name, shown(a.srocc), shown(a.krocc), shown(a.plcc), shown(a.behind)) for a in found.agreements]
    columns = ("metric", "SROCC", "KROCC", "PLCC", "SROCC behind the best")
    drawn = "references" if found.groups < found.count else "points"
    print_table(f"{found.count} points; intervals by {draws} draws of {found.groups} {drawn}", columns, rows)
    if found.groups < FEW:
        say(f"Only {found.groups} {drawn} to draw from: the intervals say little. Prefer {FEW} or more.")
    if csv is not None:
        atomic_write(csv, found.values.write_csv().encode())
        say(f"every value: {csv}")
