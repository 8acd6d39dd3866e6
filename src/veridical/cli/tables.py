"""The commands that list what there is by name: losses, metrics, degradations, models."""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import rich.console
import rich.table
import rich.text
import typer

from veridical.cli.common import app, guarded, markdown_table, print_entry, print_table, say, stdout_console
from veridical.comparison.terminal import Console
from veridical.core import catalog
from veridical.core.files import atomic_write

if TYPE_CHECKING:
    from veridical.losses.reference import Reference
    from veridical.models import Restorer


@app.command("losses")
@guarded
def list_losses(
    name: Annotated[str | None, typer.Argument(help="Show this loss in full.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page of all losses, docs/losses.md.")] = False,
    pages: Annotated[Path | None, typer.Option(help="Write a page of each loss into this folder, docs/losses.")] = None,
) -> None:
    """List the losses, or show one: its formula, when to use it, where it is weak, its options, what it costs."""
    from veridical.losses import LOSSES, reference

    if markdown:
        say(reference.markdown(), end="")
        return
    if pages is not None:
        for each in LOSSES:
            atomic_write(pages / f"{each}.md", reference.page(each).encode())
        say(f"{len(LOSSES)} pages: {pages}")
        return
    if name is not None:
        _print_loss(reference.reference(name), LOSSES[name].kernel())
        return
    rows = [
        (name, entry.summary, ", ".join(entry.needs({})) or "-", ", ".join(entry.optimises) or "-")
        for name, entry in LOSSES.items()
    ]
    print_table("Losses", ("name", "what it is", "needs weights", "optimises"), rows)
    say("Sums are losses too: '0.8*l2 + 0.2*lpips(net=vgg)', 'l1 + auto*lpips'. Options of one: veridical losses NAME")


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
    console = Console(width=min(stdout_console().width, 100) if sys.stdout.isatty() else 80, highlight=False)
    console.print(rich.text.Text(known.name, style="bold"))
    for paragraph in filter(None, [known.summary, *known.text.split("\n")]):
        console.print(rich.text.Text(paragraph))
        console.print()
    console.print(grid)


@app.command("metrics")
@guarded
def list_metrics(
    name: Annotated[str | None, typer.Argument(help="Show this metric in full.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of docs/metrics.md.")] = False,
) -> None:
    """List the metrics, or show one with its options."""
    from veridical.metrics import ALIASES, METRICS

    if name is not None:
        entry = catalog.lookup(METRICS, ALIASES.get(name, name), "metric")
        print_entry(name, entry.build, ["", f"Source: {entry.source}."])
        others = "'rgb', 'y': the luma on which super-resolution papers measure, 'luma': full range"
        say(f"  channel = {entry.channel!r}  (of {others})")
        say(f"  border = {entry.border}  (pixels left out on every side)")
        return
    rows = [
        (
            name,
            "higher" if entry.higher_is_better else "lower",
            entry.unit or "-",
            entry.range,
            "yes" if entry.reference else "no",
            ", ".join(entry.needs({})) or "-",
            entry.source,
        )
        for name, entry in METRICS.items()
    ]
    columns = ("name", "better when", "unit", "range", "needs the truth", "needs weights", "source")
    if markdown:
        say(markdown_table(columns, [(f"`{name}`", *rest) for name, *rest in rows]), end="")
        return
    print_table("Metrics", columns, rows)
    say("Options as in papers: 'psnr(channel=y, border=4)'. Options of one: veridical metrics NAME")


@app.command("degradations")
@guarded
def list_degradations(
    name: Annotated[str | None, typer.Argument(help="Show this degradation in full.")] = None,
) -> None:
    """List the degradations and the tasks, or show one degradation with its options."""
    from veridical.degradations import DEGRADATIONS, TASKS

    if name is not None:
        print_entry(name, catalog.lookup(DEGRADATIONS, name, "degradation"), [])
        return
    print_table("Degradations", ("name", "what it does"), [(n, catalog.summary_of(d)) for n, d in DEGRADATIONS.items()])
    rows = [
        (name, task.summary, task.degradation or "real pairs", task.model, "luma" if task.channels == 1 else "RGB")
        for name, task in TASKS.items()
    ]
    print_table("Tasks", ("name", "what is mended", "degradation", "model", "channels"), rows)
    say("Steps follow one another: 'camera-shake + jpeg(quality=20)'. Options of one: veridical degradations NAME")


@app.command("models")
@guarded
def list_models(
    name: Annotated[str | None, typer.Argument(help="Show this model in full.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of docs/models.md.")] = False,
) -> None:
    """List the models, or show one with its options."""
    from veridical.models import MODELS

    if name is not None:
        print_entry(name, catalog.lookup(MODELS, name, "model"), [])
        return
    if markdown:
        columns = ("model", "what it is", "parameters", "published", "scale", "stages", "radius", "source")
        say(markdown_table(columns, list(_published_models())), end="")
        return
    rows = [(name, catalog.summary_of(model), _parameters(_on_no_device(name))) for name, model in MODELS.items()]
    print_table("Models", ("name", "what it is", "parameters"), rows)
    say("Options of one: veridical models NAME")


def _published_models() -> Iterator[tuple[str, ...]]:
    """A line for each model at its defaults, and one for each further network of it that was published."""
    from veridical.models import MODELS
    from veridical.models.published_counts import CONFIGURATIONS

    for name, build in MODELS.items():
        published = {each.spec: each for each in CONFIGURATIONS if each.spec.partition("(")[0] == name}
        for spec in (name, *(spec for spec in published if spec != name)):
            model = _on_no_device(spec)
            known = published.get(spec)
            radius = "whole image" if model.radius_px is None else f"{model.radius_px} px"
            yield (
                f"`{spec}`",
                catalog.summary_of(build) if spec == name else "",
                _parameters(model),
                f"{known.published or '-'} ({known.origin})" if known else "-",
                str(model.scale),
                str(len(model.stage_weights)),
                radius,
                _source(build) if spec == name else "",
            )


def _on_no_device(spec: str) -> "Restorer":
    """A model whose weights take no memory and no time: for its sizes."""
    import torch

    from veridical.models import MODELS

    term = catalog.parse_one(spec, "model", "unet(levels=2)")
    with torch.device("meta"):
        return MODELS[term.name](**term.options)


def _parameters(model: "Restorer") -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()):,}"


def _source(build: object) -> str:
    """The paper that a docstring names last, without what else it says of it."""
    text = " ".join((inspect.getdoc(build) or "").partition("Source: ")[2].split())
    return text.partition(";")[0].rstrip(".")
