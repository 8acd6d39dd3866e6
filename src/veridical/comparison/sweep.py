"""One recipe, many losses, each from the same initial weights, on the same batches with the same noise.

With several training seeds all of this is done once for each: every loss from the same other initial weights, on the
same other batches. What a random loss draws changes too; the images that are evaluated, and their noise, never do. So
the values are paired, by image and by seed, and one can say whether a lead is more than the luck of one training.

Whatever can be wrong is looked for before the first training step (see plan.py). What is finished is on disk at once
(results.py), so that a run that was stopped, by whatever, goes on where it was when the same command is given again.
"""

import dataclasses
import json
import os
import shlex
from collections.abc import Sequence
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
from veridical.core.errors import NonFiniteLoss
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
    recipe: Recipe, out: Path | None = None, observer: Observer | None = None, *, leave_out: bool = False
) -> Path:
    """Train a model per loss and seed and evaluate each; returns the run folder, which the report reads.

    Args:   out: the run folder; else the recipe's `out`, else runs/<task>-<time>. A folder that holds a run of the same
            recipe is continued: what is finished stays, what is not goes on from its last checkpoint. Losses and
            seeds may be added.
            leave_out: leave out losses whose weights cannot be had, with a note (the demo); otherwise that is an error.
    Errors: VeridicalError, before any training, for whatever is wrong with names, options, files, sizes or weights.
            NonFiniteLoss when every loss diverged; one that does, with any seed, is recorded as failed and the others
            go on.
    """
    observer = observer if observer and _is_chief() else Observer()
    plan = prepare(recipe, choose_folder(recipe, out), observer, leave_out=leave_out)
    command = _command(recipe, plan.folder)
    titles = [_title(plan, each) for each in plan.contenders]
    observer.begins(plan.folder, titles, recipe.training.steps, recipe.training.seeds, len(plan.models))
    kept = [load_result(plan, contender) for contender in plan.contenders]
    reference = References([], {})
    if _is_chief():
        reference = references(plan, observer)
        write_state(plan, reference, command)
    for contender, was_kept in zip(plan.contenders, kept, strict=True):
        title = _title(plan, contender)
        if not was_kept and (reason := failure(plan.trainings[contender.name])):
            observer.loss_ends(title, "failed", contender.seconds, f"left out: {contender.name} failed {reason}")
            continue
        if not was_kept:
            observer.loss_begins(title)
            run_one(plan, contender, observer)
            if _is_chief():
                write_state(plan, reference, command)
        status = "kept" if was_kept and contender.status == "done" else contender.status
        observer.loss_ends(title, status, contender.seconds, contender.error)
    if not _is_chief():
        raise SystemExit(0)  # the first process has the results and goes on to the report
    failures = {name: failure(trainings) for name, trainings in plan.trainings.items()}
    if all(failures.values()):
        name, reason = next(iter(failures.items()))
        raise NonFiniteLoss(f"every loss failed, so there is nothing to compare. {name}: {reason}")
    return plan.folder


def _title(plan: Plan, contender: Contender) -> str:
    """What a training is called while it runs."""
    return contender.name if plan.recipe.training.seeds == 1 else f"{contender.name}, seed {contender.seed}"


def _command(recipe: Recipe, folder: Path) -> str:
    """What repeats this comparison, in the folder in which it was started."""
    if recipe.model_copy(update={"out": None}) == demo_recipe():
        return "veridical compare --demo"
    return f"veridical compare {shlex.quote(str(folder / 'recipe.toml'))}"


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
    settings = dataclasses.replace(settings, log_every=min(settings.log_every, -(-settings.steps // 20)))
    model, own_loss = contender.model.initial(contender.seed), contender.own_loss()
    result = train(
        model,
        own_loss,
        plan.samples(contender.seed, contender.model),
        settings,
        plan.folder / contender.place,
        observer=observer,
        fingerprint=training_identity(plan, contender),
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
        images=None if contender.turn else plan.folder / "images" / contender.slug,
        device=plan.device,
        meter=meter,
    )
    for number, rows in enumerate(rows_by_image, start=1):
        contender.rows += rows
        observer.doing(f"evaluating {_title(plan, contender)}", number, len(plan.pairs))
    contender.cost = meter.cost
    contender.status = "done"


def _is_chief() -> bool:
    """Whether this process writes: the first of those that train together on several devices."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return os.environ.get("LOCAL_RANK", "0") == "0"


__all__ = ["DEMO_LOSSES", "DEMO_SETTINGS", "Observer", "compare", "demo_recipe", "initial_model", "run_one"]
