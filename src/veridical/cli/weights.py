"""The commands `veridical weights ...`."""

from pathlib import Path
from typing import Annotated

import typer

from veridical.cli.common import complain, download_bar, guarded, print_table, say, weights_app
from veridical.core import catalog
from veridical.core.errors import VeridicalError


@weights_app.command("list")
@guarded
def weights_list() -> None:
    """Which pretrained networks are known, and where each lies on this machine."""
    from veridical.features import mdf, weights

    rows = [
        (row.name, row.status, str(row.found or "-"), "\n".join(row.sources) or weights.FILES[row.name].remedy)
        for row in (*weights.listing(), *mdf.shipped())
    ]
    print_table("Pretrained networks", ("name", "status", "file", "sources"), rows)
    say("Looked for in $VERIDICAL_WEIGHTS, then in the cache. Get one with: veridical weights fetch NAME")


@weights_app.command("fetch")
@guarded
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
            with download_bar() as progress:
                path = weights.fetch(name, progress=progress)
            say(f"{name}: {path}")
        except VeridicalError as error:
            failed.append(name)
            complain(f"error: {error}")
    if failed:
        complain(f"{len(failed)} of {len(names or known)} could not be fetched: {', '.join(failed)}")
        raise typer.Exit(2)


@weights_app.command("verify")
@guarded
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
    print_table("Pretrained networks", ("name", "status", "file", "detail"), rows)
    if any(row.status == "broken" or (row.status == "missing" and names) for row in found):
        raise typer.Exit(2)


@weights_app.command("adopt")
@guarded
def weights_adopt(
    file: Annotated[
        Path, typer.Argument(help="A published network: .pth, .pt, .ckpt, .safetensors, or .npz of NumPy arrays.")
    ],
    model: Annotated[
        str, typer.Option("--model", help="Which network it is, with its options, such as 'dncnn(depth=20)'.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the model; made when missing.")],
    task: Annotated[str | None, typer.Option(help="What it restores, to be noted: deblur, denoise, ...")] = None,
) -> None:
    """Make a restorer that its authors published usable here: to restore with, and to train from.

    The file is read as tensors; nothing in it is run. Their names become ours, and every one must fit the model.
    """
    from veridical.comparison.published import adopt

    adopted = adopt(file, model, out, task=task)
    say(f"{file.name} is a {adopted.spec} of {adopted.parameters:,} parameters, now in {adopted.folder}. Next:")
    say(f"  veridical restore PHOTOGRAPHS --run {adopted.folder} --out restored")
    say(f"  veridical compare --losses l1,lpips --init {adopted.folder}{f' --task {task}' if task else ''}")


@weights_app.command("convert-mdf")
@guarded
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
    say(f"{file.name} is {what}: {path}")
