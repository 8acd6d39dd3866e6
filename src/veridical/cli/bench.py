"""The commands `veridical bench ...`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from veridical.cli.common import bench_app, complain, counted, counter, guarded, print_table, say, split_list


@bench_app.command("losses")
@guarded
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
        only=tuple(split_list(only, "cases")) if only else (),
        size=read_size(size) if size else None,
        seconds=seconds,
        repeats=repeats,
        threads=threads,
        device=str(choose_device(device)),
        random_weights=random_weights,
    )
    with counter("measuring") as advance:
        if costs is not None:
            found = measure_costs(settings, advance)
            atomic_write(costs, (json.dumps(found, indent=1) + "\n").encode())
            say(f"what {len(found['relative_to_l2'])} losses cost: {costs}")
            return
        result = measure(settings, advance)
    paths = report.write(result, out)
    for title, rows in report.sections(result):
        print_table(title, report.COLUMNS, report.table(rows))
    for note in report.notes(result):
        say(f"- {note}")
    say(f"measurements: {', '.join(map(str, paths))}")


@bench_app.command("metrics")
@guarded
def bench_metrics(
    images: Annotated[Path, typer.Argument(help="Degraded or restored images: a file or a folder.")],
    reference: Annotated[Path, typer.Argument(help="Their references, matched by name.")],
    only: Annotated[str | None, typer.Option(help="Metrics, separated by commas; all when left out.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the table here, as a page.")] = None,
) -> None:
    """Do our metrics give what other libraries give? The largest difference of each, on your own images."""
    from veridical.benchmark import agreement
    from veridical.comparison.score import pairs_of
    from veridical.core.files import atomic_write

    pairs = pairs_of(images, reference)
    with counter("comparing") as advance:
        found = agreement.agree(
            pairs, f"{counted(len(pairs), 'pair')} of {images.parent.name}/{images.name}",
            split_list(only, "metrics") if only else (), advance,
        )  # fmt: skip
    print_table("Agreement", agreement.COLUMNS, agreement.table(found))
    for name, why in found.missing.items():
        complain(f"left out: {name}: {why}")
    if markdown is not None:
        atomic_write(markdown, agreement.markdown(found).encode())
        say(f"table: {markdown}")


@bench_app.command("migration")
@guarded
def bench_migration(
    images: Annotated[Path, typer.Argument(help="Degraded or restored photographs: a folder.")],
    reference: Annotated[Path, typer.Argument(help="Their references, matched by name.")],
    only: Annotated[str | None, typer.Option(help="Peers, separated by commas; all when left out.")] = None,
    take: Annotated[int, typer.Option(help="So many pairs, evenly over all.")] = 2,
    out: Annotated[Path, typer.Option(help="The folder of the pages.")] = Path("docs/migration"),
) -> None:
    """Execute the calls of docs/migration, theirs and ours, and write what came out into each page.

    Peers that are not installed, or cannot be imported, are named, and their pages stay as they are.
    """
    from veridical.benchmark import migration
    from veridical.comparison.score import pairs_of

    pairs = pairs_of(images, reference)
    with counter("executing") as advance:
        found, absent = migration.migrate(
            pairs, f"{images.parent.name}/{images.name}", split_list(only, "peers") if only else (),
            take=take, progress=advance,
        )  # fmt: skip
    for name, measured in found.items():
        say(f"{name}: {migration.write(measured, out, name)}")
        for text, why in measured.missing.items():
            complain(f"{name}: not measured: {text}: {why}")
    for name, why in absent.items():
        complain(f"left out: {name}: {why}")
