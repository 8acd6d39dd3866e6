"""One recipe, many losses, each from the same initial weights, on the same batches with the same noise.

With several training seeds all of this is done once for each: every loss from the same other initial weights, on the
same other batches. What a random loss draws changes too; the images that are evaluated, and their noise, never do. So
the values are paired, by image and by seed, and one can say whether a lead is more than the luck of one training.

Whatever can be wrong is looked for before the first training step (see plan.py). What is finished is on disk at once
(results.py), so that a run that was stopped, by whatever, goes on where it was when the same command is given again.
"""

import contextlib
import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from veridical.comparison.architecture import initial_model
from veridical.comparison.cost import Meter
from veridical.comparison.evaluate import evaluate_together
from veridical.comparison.folder import choose_folder
from veridical.comparison.observer import Observer
from veridical.comparison.plan import Contender, Plan, prepare
from veridical.comparison.results import (
    References,
    failure,
    load_result,
    references,
    remove_unfinished_of,
    save_model,
    save_result,
    training_identity,
    write_state,
)
from veridical.comparison.storage import as_path, is_url, opened
from veridical.core.errors import NonFiniteLoss, RecipeError, VeridicalError
from veridical.core.lock import locked
from veridical.losses import files
from veridical.training.devices import check_same, first_alone, group, is_first, join
from veridical.training.loop import train
from veridical.training.recipe import Recipe, load_recipe

# The demo's losses. "sharpness-q" alone would sharpen without end, and "pdl" alone sees no places: both lean on L1.
DEMO_LOSSES: dict[str, str] = {
    "l2": "l2",
    "l1": "l1",
    "ms-ssim-l1": "ms-ssim-l1(scales=3)",
    "spl-a": "spl-a",
    "l1 + 0.01*sharpness-q": "l1 + 0.01*sharpness-q",
    "vgg16": "vgg16",
    "l1 + 0.003*pdl": "l1 + 0.003*pdl",
    "0.8*l2 + 0.2*lpips": "0.8*l2 + 0.2*lpips",
}
DEMO_SETTINGS: tuple[str, ...] = (
    "task=deblur",
    "degradation=box-blur(size=5)",
    f"losses={{{', '.join(f'{json.dumps(name)} = {json.dumps(spec)}' for name, spec in DEMO_LOSSES.items())}}}",
    "model.name=unet(levels=1, convs=3)",
    "model.width=16",
    "training.steps=500",
    "training.batch_size=4",
    "training.crop=64",
    "training.lr=2e-3",
    "training.log_every=10",
    "training.checkpoint_every=250",
)


def demo_recipe(overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of `veridical compare --demo`: photographs inside two wheels, a small U-Net, eight losses."""
    return load_recipe(None, [*DEMO_SETTINGS, *overrides])


def compare(
    recipe: Recipe,
    out: Path | str | None = None,
    observer: Observer | None = None,
    *,
    leave_out: bool = False,
    on: str | None = None,
) -> Path | str:
    """Train a model per loss and seed and evaluate each; returns the run folder, which the report reads.

    Args:   out: the run folder, or the URL of one on a storage; else the recipe's `out`, else runs/<task>-<time>. One
            that holds a run of the same recipe is continued: what is finished stays, what is not goes on from its last
            checkpoint. Losses and seeds may be added.
            leave_out: leave out losses whose weights cannot be had, with a note (the demo); otherwise that is an error.
            on: machines that share the trainings: "ray" (a cluster that is there, else this machine) or the address of
            a cluster, "ray://host:10001". The trainings and the rows are the same as without.
    Errors: VeridicalError, before any training, for whatever is wrong with names, options, files, sizes or weights.
            NonFiniteLoss when every loss diverged; one that does, with any seed, is recorded as failed and the others
            go on. FolderInUse when another process works in the folder.
    """
    run = choose_folder(recipe, out)
    _compare([("", recipe, run)], observer, leave_out=leave_out, on=on)
    return run


def compare_tasks(
    recipes: Mapping[str, Recipe],
    out: Path | str,
    observer: Observer | None = None,
    *,
    leave_out: bool = False,
    on: str | None = None,
) -> dict[str, Path | str]:
    """Several comparisons, one for each task, as one grid: all of them are checked before the first training, and on a
    cluster their trainings go on beside each other. Returns the run folder of each.

    Args:   recipes: by the names of their folders inside `out`. Others as for `compare`.
    Errors: as for `compare`.
    """
    runs = {name: f"{out}/{name}" if is_url(out) else as_path(out) / name for name in recipes}
    _compare([(name, recipe, runs[name]) for name, recipe in recipes.items()], observer, leave_out=leave_out, on=on)
    return runs


def _compare(
    asked: Sequence[tuple[str, Recipe, Path | str]], observer: Observer | None, *, leave_out: bool, on: str | None
) -> None:
    if on is None:
        for _, recipe, _ in asked:
            join(recipe.training)
    observer = observer if observer and is_first() else Observer()
    with contextlib.ExitStack() as stack:
        comparisons = []
        for label, recipe, run in asked:
            if on and recipe.training.nodes > 1:
                raise RecipeError(
                    f"training.nodes is {recipe.training.nodes}, but a task of a cluster is on one machine. Set it to "
                    "1, or leave out --on and start the processes with torchrun or srun."
                )
            if is_url(run) and recipe.training.processes > 1 and on is None:
                raise RecipeError(
                    f"a training on several devices of this machine cannot be kept at {run}. Name a folder with --out, "
                    "or let a cluster do it: --on ray."
                )
            if is_first() and not is_url(run):
                stack.enter_context(locked(as_path(run), observer.note))
            folder, store = stack.enter_context(opened(run, observer.note))
            with first_alone():
                plan = replace(prepare(recipe, folder, observer, leave_out=leave_out), store=store, label=label)
            if len(asked) > 1 or on:
                plan.sources.forget()  # else the photographs of all tasks would be in memory
            comparisons.append(_Comparison(plan, _command(recipe, run), observer))
        _carry_out(comparisons, observer, on)
    if not is_first():
        raise SystemExit(0)  # the first process has the results and goes on to the report


def _carry_out(comparisons: Sequence["_Comparison"], observer: Observer, on: str | None) -> None:
    """All that is left of checked comparisons."""
    for each in comparisons:
        each.begin(observer)
    cells = [(each, contender) for each in comparisons for contender in each.plan.contenders]
    ended = _here(cells, observer) if on is None else _there(cells, observer, on)
    try:
        for comparison, contender in ended:
            comparison.ended(contender, observer)
    finally:
        for each in comparisons:
            each.keep()
    for each in comparisons:
        failures = {name: failure(trainings) for name, trainings in each.plan.trainings.items()}
        if all(failures.values()):
            name, reason = next(iter(failures.items()))
            raise NonFiniteLoss(f"every loss failed, so there is nothing to compare. {name}: {reason}")


class _Comparison:
    """One comparison while it is carried out. kept: the trainings, by place, of which nothing is left to do."""

    def __init__(self, plan: Plan, command: str, observer: Observer) -> None:
        self.plan, self.command = plan, command
        with first_alone():  # it clears away what the others are not to see
            if is_first():
                remove_unfinished_of(plan)
            self.kept = {each.place: load_result(plan, each, observer.note) for each in plan.contenders}
        check_same(f"results in {plan.folder}", " ".join(each.status for each in plan.contenders))
        self._references = References([], {})
        self._stale = False
        self._next = 0.0

    def begin(self, observer: Observer) -> None:
        """Evaluate what needs no training."""
        settings, titles = self.plan.recipe.training, [title(self.plan, each) for each in self.plan.contenders]
        observer.begins(self.plan.folder, titles, settings.steps, settings.seeds, len(self.plan.models))
        if is_first():
            self._references = references(self.plan, observer)
        self._stale = True
        self.keep()

    def ended(self, contender: Contender, observer: Observer) -> None:
        """Write down what became of a training, and tell."""
        name, status, error = title(self.plan, contender), contender.status, contender.error
        if self.kept[contender.place]:
            status = "kept" if status == "done" else status
        elif status == "waiting":
            status = "failed"
            error = f"left out: {contender.name} failed {failure(self.plan.trainings[contender.name])}"
        else:
            self._stale = True
            if time.perf_counter() >= self._next:
                self.keep()
        observer.loss_ends(name, status, contender.seconds, error)

    def keep(self) -> None:
        """Write what is finished. Where that takes long, `ended` does it more rarely: it is in the trainings' own
        folders already."""
        if not self._stale or not is_first():
            return
        begun = time.perf_counter()
        write_state(self.plan, self._references, self.command)
        self._next = time.perf_counter() + 10 * (time.perf_counter() - begun)
        self._stale = False


_Cell = tuple[_Comparison, Contender]


def _here(cells: Sequence[_Cell], observer: Observer) -> Iterator[_Cell]:
    """Every training in turn, in this process."""
    for comparison, contender in cells:
        plan = comparison.plan
        if not comparison.kept[contender.place] and not failure(plan.trainings[contender.name]):
            observer.loss_begins(title(plan, contender))
            run_one(plan, contender, observer)
        yield comparison, contender


def _there(cells: Sequence[_Cell], observer: Observer, on: str) -> Iterator[_Cell]:
    """Those that are kept, then the others as other machines end them."""
    from veridical.comparison.on_ray import run_cells

    yield from ((each, contender) for each, contender in cells if each.kept[contender.place])
    waiting = [(each, contender) for each, contender in cells if not each.kept[contender.place]]
    unfinished = yield from run_cells(waiting, observer, on)
    if unfinished:
        listed = "\n".join(f"  {title(each.plan, contender)}: {why}" for (each, contender), why in unfinished)
        raise VeridicalError(
            f"{len(unfinished)} of {len(waiting)} trainings are not finished; run the same command again to go on with "
            f"them from their last checkpoints:\n{listed}"
        )


def title(plan: Plan, contender: Contender) -> str:
    """What a training is called while it runs."""
    name = contender.name if plan.recipe.training.seeds == 1 else f"{contender.name}, seed {contender.seed}"
    return f"{plan.label}: {name}" if plan.label else name


def _command(recipe: Recipe, run: Path | str) -> str:
    """What repeats this comparison, in the folder in which it was started."""
    if recipe.model_copy(update={"out": None}) == demo_recipe():
        return "veridical compare --demo"
    code = " --allow-code" if any(map(files, recipe.losses.values())) else ""
    if is_url(run):
        return f"veridical compare recipe.toml --out {shlex.quote(str(run))}{code}, with {run}/recipe.toml"
    return f"veridical compare {shlex.quote(str(Path(run) / 'recipe.toml'))}{code}"


def run_one(plan: Plan, contender: Contender, observer: Observer) -> None:
    """Carry out one training and evaluate it, or only evaluate it when just the metrics are new. Sets what became of
    it, and saves that."""
    try:
        if contender.status != "trained":
            _train(plan, contender, observer)
        if is_first() or group().size > 1:
            _evaluate(plan, contender, observer)
        if is_first():
            save_result(plan, contender)
    except NonFiniteLoss as error:
        contender.status, contender.error = "failed", str(error)
        if is_first():
            save_result(plan, contender)
    except torch.OutOfMemoryError:
        # Not saved: the same command tries again, as another program may have held the memory.
        contender.status = "failed"
        contender.error = (
            "the device has too little memory for this loss. Free some and run the same command again, or "
            "try a smaller training.batch_size or training.crop."
        )
        torch.cuda.empty_cache()


def _train(plan: Plan, contender: Contender, observer: Observer) -> None:
    settings = plan.settings(contender.seed)
    # A short trial, too, gets a curve.
    settings = replace(settings, log_every=min(settings.log_every, -(-settings.steps // 20)))
    model, own_loss = contender.model.initial(contender.seed), contender.own_loss()
    plan.store.pull(contender.place)
    result = train(
        model,
        own_loss,
        plan.samples(contender.seed, contender.model),
        settings,
        plan.folder / contender.place,
        observer=observer,
        fingerprint=training_identity(plan, contender),
        on_checkpoint=lambda: plan.store.push(contender.place),
    )
    contender.seconds = result.seconds
    contender.seconds_per_step = result.seconds / max(result.steps, 1)
    contender.skipped = result.skipped
    fixed = own_loss.fixed_label
    contender.fixed_spec = fixed if fixed != own_loss.label else None
    contender.status = "trained"
    if is_first():
        save_model(plan, contender, model)
        save_result(plan, contender)


def _evaluate(plan: Plan, contender: Contender, observer: Observer) -> None:
    """Score the model on disk: the one that `veridical restore` will use."""
    model, meter = contender.model.initial(contender.seed), Meter(plan.device)
    if is_first():
        model.load_state_dict(load_file(plan.folder / contender.place / "model.safetensors"))
    group().spread(model.state_dict().values())
    model.to(plan.device)
    contender.rows = evaluate_together(
        model,
        plan.pairs_for(contender.model),
        plan.metrics,
        loss=contender.name,
        slugs=plan.slugs,
        images=None if contender.turn else plan.folder / contender.images,
        device=plan.device,
        meter=meter,
        progress=lambda done: observer.doing(f"evaluating {title(plan, contender)}", done, len(plan.pairs)),
    )
    contender.cost = meter.cost
    contender.status = "done"
    if not contender.turn:
        plan.store.push(contender.images)


__all__ = [
    "DEMO_LOSSES",
    "DEMO_SETTINGS",
    "Observer",
    "compare",
    "compare_tasks",
    "demo_recipe",
    "initial_model",
    "run_one",
]
