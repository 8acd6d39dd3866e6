"""One recipe, many losses, each from the same initial weights, on the same batches with the same noise.

With several training seeds all of this is done once for each: every loss from the same other initial weights, on the
same other batches. What a random loss draws changes too; the images that are evaluated, and their noise, never do. So
the values are paired, by image and by seed, and one can say whether a lead is more than the luck of one training.

Whatever can be wrong is looked for before the first training step (see plan.py). What is finished is on disk at once
(results.py), so that a run that was stopped, by whatever, goes on where it was when the same command is given again.
"""

import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from veridical.comparison.architecture import initial_model
from veridical.comparison.cost import Meter
from veridical.comparison.evaluate import evaluate
from veridical.comparison.folder import choose_folder
from veridical.comparison.observer import Observer
from veridical.comparison.plan import Contender, Plan, prepare
from veridical.comparison.results import (
    References,
    failure,
    load_result,
    references,
    save_model,
    save_result,
    training_identity,
    write_state,
)
from veridical.comparison.storage import is_url, opened
from veridical.core.errors import NonFiniteLoss, RecipeError, VeridicalError
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
            go on.
    """
    observer = observer if observer and _is_chief() else Observer()
    run = choose_folder(recipe, out)
    if is_url(run) and recipe.training.devices > 1 and on is None:
        raise RecipeError(
            f"a training on several devices of this machine cannot be kept at {run}. Name a folder with --out, or let "
            "a cluster do it: --on ray."
        )
    with opened(run, observer.note) as (folder, store):
        plan = replace(prepare(recipe, folder, observer, leave_out=leave_out), store=store)
        _carry_out(plan, _command(recipe, run), observer, on)
    if not _is_chief():
        raise SystemExit(0)  # the first process has the results and goes on to the report
    return run


def _carry_out(plan: Plan, command: str, observer: Observer, on: str | None) -> None:
    """All of a comparison, once it is checked. command: what repeats it."""
    settings = plan.recipe.training
    observer.begins(
        plan.folder, [title(plan, each) for each in plan.contenders], settings.steps, settings.seeds, len(plan.models)
    )
    kept = {each.place: load_result(plan, each) for each in plan.contenders}
    reference = References([], {})
    keeper = _Keeper(plan, command)
    if _is_chief():
        reference = references(plan, observer)
        keeper.keep(reference)
    cells = _here(plan, kept, observer) if on is None else _there(plan, kept, observer, on)
    for contender in cells:
        if not kept[contender.place] and contender.status == "waiting":
            why = f"left out: {contender.name} failed {failure(plan.trainings[contender.name])}"
            observer.loss_ends(title(plan, contender), "failed", contender.seconds, why)
            continue
        if not kept[contender.place] and _is_chief():
            keeper.keep(reference, sparing=True)
        status = "kept" if kept[contender.place] and contender.status == "done" else contender.status
        observer.loss_ends(title(plan, contender), status, contender.seconds, contender.error)
    if not _is_chief():
        return
    keeper.keep(reference)
    failures = {name: failure(trainings) for name, trainings in plan.trainings.items()}
    if all(failures.values()):
        name, reason = next(iter(failures.items()))
        raise NonFiniteLoss(f"every loss failed, so there is nothing to compare. {name}: {reason}")


class _Keeper:
    """Writes what is finished, at once; where that is much, as often as it is worth, as it is in the trainings' own
    folders already."""

    def __init__(self, plan: Plan, command: str) -> None:
        self.plan, self.command = plan, command
        self._pause, self._last = 0.0, 0.0
        self._stale = True

    def keep(self, reference: References, *, sparing: bool = False) -> None:
        begun = time.perf_counter()
        self._stale |= sparing
        if not self._stale or (sparing and begun < self._last + self._pause):
            return
        write_state(self.plan, reference, self.command)
        self._last = time.perf_counter()
        self._pause = 10 * (self._last - begun)
        self._stale = False


def _here(plan: Plan, kept: Mapping[Path, bool], observer: Observer) -> Iterator[Contender]:
    """Every training in turn, in this process."""
    for contender in plan.contenders:
        if not kept[contender.place] and not failure(plan.trainings[contender.name]):
            observer.loss_begins(title(plan, contender))
            run_one(plan, contender, observer)
        yield contender


def _there(plan: Plan, kept: Mapping[Path, bool], observer: Observer, on: str) -> Iterator[Contender]:
    """Those that are kept, then the others as other machines end them."""
    from veridical.comparison.on_ray import run_cells

    yield from (each for each in plan.contenders if kept[each.place])
    waiting = [each for each in plan.contenders if not kept[each.place]]
    unfinished = yield from run_cells(plan, waiting, observer, on)
    if unfinished:
        listed = "\n".join(f"  {title(plan, each)}: {why}" for each, why in unfinished)
        raise VeridicalError(
            f"{len(unfinished)} of {len(waiting)} trainings are not finished; run the same command again to go on with "
            f"them from their last checkpoints:\n{listed}"
        )


def title(plan: Plan, contender: Contender) -> str:
    """What a training is called while it runs."""
    return contender.name if plan.recipe.training.seeds == 1 else f"{contender.name}, seed {contender.seed}"


def _command(recipe: Recipe, run: Path | str) -> str:
    """What repeats this comparison, in the folder in which it was started."""
    if recipe.model_copy(update={"out": None}) == demo_recipe():
        return "veridical compare --demo"
    if is_url(run):
        return f"veridical compare recipe.toml --out {shlex.quote(str(run))}, with {run}/recipe.toml"
    return f"veridical compare {shlex.quote(str(Path(run) / 'recipe.toml'))}"


def run_one(plan: Plan, contender: Contender, observer: Observer) -> None:
    """Carry out one training and evaluate it, or only evaluate it when just the metrics are new. Sets what became of
    it, and saves that."""
    try:
        if contender.status != "trained":
            _train(plan, contender, observer)
        if _is_chief():
            _evaluate(plan, contender, observer)
            save_result(plan, contender)
    except NonFiniteLoss as error:
        contender.status, contender.error = "failed", str(error)
        if _is_chief():
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
    fixed = own_loss.fixed_label
    contender.fixed_spec = fixed if fixed != own_loss.label else None
    contender.status = "trained"
    if _is_chief():
        save_model(plan, contender, model)
        save_result(plan, contender)


def _evaluate(plan: Plan, contender: Contender, observer: Observer) -> None:
    """Score the model on disk: the one that `veridical restore` will use."""
    model, meter = contender.model.initial(contender.seed), Meter(plan.device)
    model.load_state_dict(load_file(plan.folder / contender.place / "model.safetensors"))
    model.to(plan.device)
    contender.rows = []
    rows_by_image = evaluate(
        model,
        plan.pairs_for(contender.model),
        plan.metrics,
        loss=contender.name,
        slugs=plan.slugs,
        images=None if contender.turn else plan.folder / contender.images,
        device=plan.device,
        meter=meter,
    )
    for number, rows in enumerate(rows_by_image, start=1):
        contender.rows += rows
        observer.doing(f"evaluating {title(plan, contender)}", number, len(plan.pairs))
    contender.cost = meter.cost
    contender.status = "done"
    if not contender.turn:
        plan.store.push(contender.images)


def _is_chief() -> bool:
    """Whether this process writes: the first of those that train together on several devices."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return os.environ.get("LOCAL_RANK", "0") == "0"


__all__ = ["DEMO_LOSSES", "DEMO_SETTINGS", "Observer", "compare", "demo_recipe", "initial_model", "run_one"]
