"""The commands that train and compare: compare, train, tune, estimate, report, probe."""

import functools
import inspect
import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veridical.cli.common import (
    app,
    complain,
    counted,
    counter,
    guarded,
    print_table,
    safe,
    say,
    split_list,
    stdout_console,
)
from veridical.core import catalog
from veridical.core.errors import VeridicalError

if TYPE_CHECKING:
    from veridical.comparison.report import Run
    from veridical.comparison.tune import Search
    from veridical.training.recipe import Recipe


@app.command("probe")
@guarded
def probe_losses(
    losses: Annotated[
        str | None, typer.Option(help="Separated by commas: 'l1,ssim,0.8*l2 + 0.2*lpips'; all. See: veridical losses.")
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
    cards: Annotated[Path | None, typer.Option(help="Write one small picture of each loss here, too.")] = None,
) -> None:
    """Show what a loss sees: its value for blur, noise, JPEG and others at equal PSNR, and the image it leads to."""
    from veridical.comparison import probe_card, probe_page
    from veridical.comparison.probe import NothingToProbe, Settings, probe
    from veridical.losses.reference import FAMILIES, family_specs, pictured_specs

    if (losses is None) == (family is None):
        raise VeridicalError("name the losses to probe: either --losses 'l1,ssim' or --family NAME.")
    try:
        psnr_db = tuple(float(each) for each in split_list(psnr, "PSNRs"))
    except ValueError:
        raise VeridicalError(
            f"--psnr must be numbers of dB separated by commas, such as 24,28,32; got {psnr!r}."
        ) from None
    settings = Settings(
        image=image, crop=crop, psnr_db=psnr_db, start=start, steps=steps, lr=lr, seed=seed, device=device
    )
    if losses is not None:
        specs = pictured_specs() if losses == "all" else split_list(losses, "losses")
        wanted = {"losses": ("What the losses see", specs, out)}
    else:
        names = list(FAMILIES) if family == "all" else [str(family)]
        chosen = {name: catalog.lookup(FAMILIES, name, "family of losses") for name in names}
        wanted = {
            name: (each.title, family_specs(name), out / name if family == "all" else out)
            for name, each in chosen.items()
        }
    for name, (title, specs, folder) in wanted.items():
        try:
            with counter(f"probing {name}") as advance:
                about = probe(specs, folder, settings, progress=advance)
        except NothingToProbe as error:
            if family != "all":
                raise
            complain(f"left out: {name}: {error}")
            continue
        for left in about["left_out"]:
            complain(f"left out: {left['name']}: {left['reason']}")
        for note in about["notes"]:
            complain(f"note: {note}")
        page = probe_page.write_page(folder)
        db = f"{about['settings']['psnr_db'][probe_page.middle(about)]:g} dB"
        print_table(f"{title}: what each makes of {db} of error, over its mean", *probe_page.table(about))
        if steps:
            print_table(f"descended for {counted(steps, 'step')}", *probe_page.outcomes(about))
        say(f"page: {page}")
        if markdown is not None:
            say(f"markdown: {probe_page.write_markdown(folder, markdown, name, title)}")
        if cards is not None:
            say(f"{counted(len(probe_card.write_cards(folder, cards)), 'picture')}: {cards}")


@dataclass(frozen=True)
class _Asked:
    """What a command that trains was asked for. values: keys of the recipe, None where not given."""

    recipe: Path | None
    scale: str
    values: dict[str, object]
    settings: list[str]
    out: str | None
    demo: bool
    allow_code: bool

    def chosen(self, losses: list[str] | None, **values: object) -> tuple["Recipe", Path | str]:
        """The recipe with these losses and the values of other keys, None where not given; the folder of the run."""
        values = {**self.values, "losses": losses, **values}
        recipe = _chosen_recipe(
            self.recipe, values, self.settings, demo=self.demo, scale=self.scale, allow_code=self.allow_code
        )
        return recipe, _chosen_folder(recipe, self.out)


def _training_options(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe: a TOML file, or a name of: veridical recipes. Options win over it.")
    ] = None,
    scale: Annotated[
        str, typer.Option(help="Of the recipe: full, or small, which ends on two cores without a GPU.")
    ] = "full",
    task: Annotated[str | None, typer.Option(help="See: veridical degradations.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of sharp photographs to train on, or a set of real pairs, such as gopro:FOLDER."),
    ] = None,
    evaluate: Annotated[Path | None, typer.Option(help="The same to evaluate on.")] = None,
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
        str | None,
        typer.Option(help="Start from the model of one loss of a run, such as runs/x/l1; the model is then that one."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="In place of the task's own: 'unet(levels=3)'.")] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the model's first layers.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps for each loss.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Crops in a step.")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of a training crop, in pixels.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate at the start.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the initial weights, the crops and the noise; of several, the first.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.")] = None,
    devices: Annotated[
        int | None, typer.Option(help="How many of them, each with an equal share of every batch; needs --out.")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Parts of a batch that a device takes one after the other: less memory.")
    ] = None,
    on_nonfinite: Annotated[
        str | None, typer.Option(help="What to do with a step that comes to NaN or infinity: stop, or skip it.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe; repeatable.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="The run folder, or the URL of one, s3://bucket/run; the same command with the same folder continues."
        ),
    ] = None,
    allow_code: Annotated[
        bool,
        typer.Option("--allow-code", help="Run the files of losses that the recipe's file names: my_file.py:MyLoss."),
    ] = False,
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
        "metrics": None if metrics is None else split_list(metrics, "metrics"),
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
        "training.devices": devices,
        "training.accumulate": accumulate,
        "training.on_nonfinite": on_nonfinite,
    }
    return _Asked(recipe, scale, values, settings or [], out, demo, allow_code)


def _trains(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of training besides its own; it gets what they say as its first argument. One of its
    own takes the place of one of the same name."""
    _, *own = inspect.signature(command).parameters.values()
    first, *others = (
        each
        for each in inspect.signature(_training_options).parameters.values()
        if each.name not in {mine.name for mine in own}
    )
    parameters = [first, *own, *others]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        asked = _training_options(**{each.name: given.pop(each.name) for each in (first, *others)})
        command(asked, **given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


@app.command("compare")
@guarded
@_trains
def compare_losses(
    asked: _Asked,
    losses: Annotated[
        str | None, typer.Option(help="Separated by commas: 'l2,spl-a,0.8*l2 + 0.2*lpips'. See: veridical losses.")
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(help="Separated by commas; each is trained with each loss: 'unet,nafnet'. See: veridical models."),
    ] = None,
    classical: Annotated[
        str | None,
        typer.Option(help="Methods without training, beside them: 'wiener,landweber'."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            help="Trainings of each loss, from other weights on other crops: is a lead more than the luck of one? Best "
            "3 or more; 1 when left out. May be raised later in the same folder."
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Separated by commas, in place of --task: a comparison for each, in a folder of its own in --out."
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            help="Share the trainings among machines: 'ray', or 'ray://HOST:PORT' of a cluster. See docs/scale.md."
        ),
    ] = None,
) -> None:
    """Train one model per loss on your photographs, all else being equal, and say which loss to use."""
    from veridical.comparison.progress import display
    from veridical.comparison.sweep import compare, compare_tasks
    from veridical.degradations import TASKS

    names = None if losses is None else split_list(losses, "losses")
    values: dict[str, object] = {
        "models": None if models is None else split_list(models, "models"),
        "classical": None if classical is None else split_list(classical, "classical methods"),
        "training.seeds": seeds,
    }
    if tasks is None:
        recipe, folder = asked.chosen(names, **values)
        with display() as observer:
            compare(recipe, folder, observer, leave_out=asked.demo, on=on)
        _print_result(folder)
        return
    if asked.values["task"] is not None or asked.out is None:
        raise VeridicalError(
            "--tasks takes the place of --task, and needs --out, a folder for the folders of its tasks."
        )
    recipes = {
        task: asked.chosen(names, **values, task=task)[0]
        for task in split_list(tasks, "tasks")
        if catalog.lookup(TASKS, task, "task")
    }
    if own := next((each.degradation for each in recipes.values() if each.degradation), None):
        raise VeridicalError(f"the degradation {own} would be that of all tasks. Leave it out, or --tasks.")
    with display() as observer:
        runs = compare_tasks(recipes, asked.out, observer, leave_out=asked.demo, on=on)
    _print_tasks({name: _print_result(run, name) for name, run in runs.items()})


def _print_tasks(runs: Mapping[str, "Run"]) -> None:
    """Losses beside tasks: is there one for all?"""
    from veridical.comparison import report

    print_table("score by task, * highest", *report.by_task(runs))


@app.command("train")
@guarded
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

    losses = None if loss is None else split_list(loss, "losses")
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
    model = f"{folder}/{read.entry(*recipe.losses).slug}"
    say(f"model: {model}")
    say(f"  restore photographs with it: veridical restore PHOTOGRAPHS --run {shlex.quote(model)} --out FOLDER")
    say(f"  go on from it with another loss: veridical train --init {shlex.quote(model)} --loss LOSS ...")


def _chosen_recipe(
    recipe: Path | None,
    values: Mapping[str, object],
    settings: Sequence[str] | None,
    *,
    demo: bool,
    scale: str = "full",
    allow_code: bool = False,
) -> "Recipe":
    """The recipe at its scale with the options of a command, None where not given, and then its --set."""
    from veridical.comparison.sweep import demo_recipe
    from veridical.training.recipe import load_recipe
    from veridical.training.recipes import about, is_name, read_values

    overrides = [f"{key}={_toml(value)}" for key, value in values.items() if value is not None]
    overrides += settings or []
    if demo and recipe is not None:
        raise VeridicalError(f"--demo is a recipe of its own; leave out either it or {recipe}.")
    if recipe is None and scale != "full":
        raise VeridicalError(f"--scale {scale} is of a recipe, but none was named. See: veridical recipes.")
    if demo:
        return demo_recipe(overrides)
    written = {} if recipe is None else _without_other_models(read_values(recipe, scale), values)
    chosen = load_recipe(written, overrides, file=recipe, allow_code=allow_code)
    if scale == "full" and not (chosen.data.train or chosen.data.pairs):
        if recipe is None:
            raise VeridicalError(
                "no photographs were named. Expected --data FOLDER or --pairs BLURRED SHARP, or a set of real pairs as "
                "its authors ship it, --data gopro:FOLDER; to try it without any, --demo."
            )
        if is_name(recipe):
            raise VeridicalError(
                f"no photographs were named. Expected --data FOLDER. The data of the recipe {recipe}: "
                f"{about(str(recipe)).data}. With --scale small, photographs that are at hand will do."
            )
    return chosen


def _without_other_models(written: dict[str, Any], given: Mapping[str, object]) -> dict[str, Any]:
    """The recipe less the models that it names in another way than an option does, which wins."""
    if given.get("models") is not None and isinstance(written.get("model"), dict):
        written["model"] = {key: value for key, value in written["model"].items() if key not in ("name", "width")}
    if given.get("model.name") is not None:
        written.pop("models", None)
    return written


def _chosen_folder(recipe: "Recipe", out: Path | str | None) -> Path | str:
    """The run folder; told to `safe`, so that whoever stops the command hears where the work is."""
    from veridical.comparison.folder import choose_folder

    folder = choose_folder(recipe, out)
    safe.where = folder
    if out is None and recipe.out is None:
        safe.again = f"run the same command again with --out {folder} to continue"
    return folder


@app.command("tune")
@guarded
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
    allow_code: Annotated[
        bool,
        typer.Option("--allow-code", help="Run the files of losses that the recipe's file names: my_file.py:MyLoss."),
    ] = False,
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
        "metrics": None if metrics is None else split_list(metrics, "metrics"),
        "training.steps": steps,
        "training.seed": seed,
        "training.device": device,
    }
    chosen = _chosen_recipe(recipe, values, settings, demo=demo, allow_code=allow_code)
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
    say()
    print_table(f"score = {search.formula}", ("trial", "loss", "score", *names), rows)
    for trial in search.trials:
        if trial.status == "failed":
            complain(f"trial {trial.number}, {trial.spec}, failed: {trial.error}")
    first, best = search.trials[0], search.best
    began = f"{first.score:.4f}" if first.score is not None else "none"
    say(f"best of {len(search.done)}, with a score of {best.score:.4f} (the weights given: {began}):")
    say(f"  {best.spec}")
    say(f"score against weights: {search.folder / PICTURE}")
    say(f"report: {report.write_report(report.read_run(search.folder))}")


@app.command("estimate")
@guarded
@_trains
def estimate_cost(
    asked: _Asked,
    losses: Annotated[
        str | None, typer.Option(help="Separated by commas, each of them measured. See: veridical losses.")
    ] = None,
    models: Annotated[str | None, typer.Option(help="Separated by commas, each measured with each loss.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings of each loss.")] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            metavar="LOSSESxTASKSxSEEDS",
            help="The comparison to forecast: 100x5x3. The measured losses stand for all, each as often as another. "
            "The recipe's own when left out.",
        ),
    ] = None,
    workers: Annotated[str, typer.Option(help="Devices that train at once, separated by commas.")] = "1,8,64",
    speed: Annotated[
        str,
        typer.Option(
            help="An assumption of yours: how many times as fast as the device here one of theirs is; several, "
            "separated by commas. Batches, photographs and files are not sped up."
        ),
    ] = "1",
    storage_mb_s: Annotated[
        float | None,
        typer.Option(
            "--storage-mb-s",
            help="An assumption: what the storage that all share moves in a second; no limit when left out.",
        ),
    ] = None,
    cpus_per_worker: Annotated[
        int | None,
        typer.Option(help="An assumption: cores that make batches for each worker; training.workers of them."),
    ] = None,
    lost_every: Annotated[
        float | None, typer.Option(help="An assumption: a worker is lost after so many hours, on average.")
    ] = None,
    photographs: Annotated[
        int | None, typer.Option(help="Forecast for so many photographs to train on, of the sizes of those measured.")
    ] = None,
    images: Annotated[int | None, typer.Option(help="The same of images to evaluate on.")] = None,
    rounds: Annotated[int, typer.Option(help="Steps of each loss that are timed.")] = 10,
    measured: Annotated[
        Path | None, typer.Option(help="An estimate.json: forecast from what it measured, and measure nothing.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The folder for estimate.json; it is measured on the storage that this folder is on.")
    ] = Path("estimate"),
) -> None:
    """Measure what a comparison costs here, and forecast what it takes on other machines: time, disk, the bottleneck.

    Each part is measured by itself: steps of every loss, batches, photographs, checkpoints, evaluation. A simulation
    puts them together. What is assumed of the other machines is printed as such.
    """
    import tempfile

    from veridical.comparison import estimate, estimate_tables
    from veridical.comparison.forecast import Assumed, Grid, forecast, read_grid
    from veridical.comparison.progress import display
    from veridical.core.files import atomic_write

    numbers = [_numbers(text, what) for text, what in ((workers, "workers"), (speed, "speed"))]
    assumed = [
        Assumed(
            workers=int(count),
            speed=times,
            storage=math.inf if storage_mb_s is None else storage_mb_s * 1e6,
            cpus=cpus_per_worker,
            lost_every_hours=math.inf if lost_every is None else lost_every,
        )
        for times in numbers[1]
        for count in numbers[0]
    ]
    wanted = None if grid is None else read_grid(grid)
    if measured is not None:
        found = estimate.read_measured(measured)
    else:
        values = asked.values | {
            "losses": None if losses is None else split_list(losses, "losses"),
            "models": None if models is None else split_list(models, "models"),
            "training.seeds": seeds,
        }
        recipe = _chosen_recipe(asked.recipe, values, asked.settings, demo=asked.demo, scale=asked.scale)
        out.mkdir(parents=True, exist_ok=True)
        with display() as observer, tempfile.TemporaryDirectory(dir=out) as scratch:
            found = estimate.measure(recipe, Path(scratch), observer, rounds=rounds, leave_out=asked.demo)
    wanted = wanted or Grid(len(found.steps), 1, int(found.recipe["seeds"]))
    meant = found.of_more(photographs=photographs, images=images)
    forecasts = [forecast(meant, wanted, each) for each in assumed]
    path = out / "estimate.json"
    written = {"measured": found.as_dict(), "forecasts": [each.as_dict() for each in forecasts]}
    atomic_write(path, (json.dumps(written, indent=1) + "\n").encode())
    for title, columns, rows in estimate_tables.tables(meant, forecasts):
        print_table(title, columns, rows)
    for note in estimate_tables.notes(forecasts):
        print(f"- {note}")
    print(f"measurements and forecasts: {path}")


def _numbers(text: str, what: str) -> list[float]:
    try:
        numbers = [float(each) for each in split_list(text, what)]
        if what == "workers" and not all(number >= 1 and number.is_integer() for number in numbers):
            raise ValueError
    except ValueError:
        raise VeridicalError(f"--{what} must be numbers separated by commas, such as 1,8,64; got {text!r}.") from None
    return numbers


def _toml(value: object) -> str:
    """A TOML value. Paths and strings are quoted as JSON, which TOML reads."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(each) for each in value)}]"
    return json.dumps(str(value)) if isinstance(value, str | Path) else repr(value)


def _print_result(run: Path | str, task: str = "") -> "Run":
    """The table, the verdict and where the report is: what a comparison is for. task: of several."""
    from veridical.comparison import report
    from veridical.comparison.storage import to_read

    with to_read(run) as (folder, store):
        read = report.read_run(folder)
        path: Path | str = report.write_report(read)
        store.push("report.html")
    say(f"\n{task}" if task else "")
    _print_verdict(read)
    say(f"report: {path if store.url is None else f'{store.url}/report.html'}")
    return read


def _print_verdict(read: "Run") -> None:
    """The table and what it says, in words."""
    from veridical.comparison import report

    console = stdout_console()
    console.print(report.table(read, bold=console.is_terminal))
    console.print()
    say(report.verdict(read))


@app.command("report")
@guarded
def rebuild_report(
    run: Annotated[
        str, typer.Argument(help="The folder of a comparison, such as runs/x, or of those of several tasks; or a URL.")
    ],
    only: Annotated[
        str, typer.Option(help="Print the table of the images whose names begin so: 'kodak24/'. No page is written.")
    ] = "",
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table as Markdown, with intervals. No page is written.")
    ] = False,
) -> None:
    """Build report.html of a run again, from its files alone, and print its table."""
    from veridical.comparison import report
    from veridical.comparison.storage import is_url, to_read

    if not is_url(run) and (inside := report.runs_in(Path(run))):
        _print_tasks({each.name: _print_result(each, each.name) for each in inside})
        return
    if not markdown and not only:
        _print_result(run)
        return
    with to_read(run) as (folder, _):
        read = report.read_run(folder, only=only)
    if markdown:
        say(report.markdown(read), end="")
    else:
        _print_verdict(read)
