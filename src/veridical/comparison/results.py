"""What a comparison leaves on disk: models, results to continue from, and the files that the report reads."""

import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from veridical import __version__
from veridical.comparison.architecture import Pairs
from veridical.comparison.cost import Meter
from veridical.comparison.evaluate import Row, evaluate, evaluate_input, write_rows
from veridical.comparison.folder import are_rows, read_json, write_json
from veridical.comparison.observer import Observer
from veridical.comparison.plan import Classical, Contender, Plan
from veridical.comparison.statistics import INPUT, START
from veridical.core.errors import DataError, NonFiniteLoss, RecipeError
from veridical.core.files import atomic_write, remove_unfinished
from veridical.deconvolution import Method


def remove_unfinished_of(plan: Plan) -> None:
    """Remove the files that a killed process was about to write into the run."""
    places = [plan.folder, *(plan.folder / contender.place for contender in plan.contenders)]
    for place in [*places, *(plan.folder / "images").glob("*")]:
        remove_unfinished(place)


# ---- one training ----

_MODEL = ("model.safetensors", "model.json")


def training_identity(plan: Plan, contender: Contender) -> dict[str, str]:
    """What, besides the settings and the loss's name, must not change when a training goes on."""
    identity = {
        "task": plan.recipe.task,
        "degradation": plan.sources.degradation,
        "model": f"{contender.model.name} {json.dumps(contender.model.options, sort_keys=True)}",
        "photographs": plan.sources.digest,
    }
    identity |= {"init": f"sha256 {plan.start.sha256}"} if plan.start else {}
    identity |= {f"weights of {name}": value for name, value in contender.loss.weight_hashes.items()}
    return identity | ({"file of the loss": contender.file_hash} if contender.file_hash else {})


def _trained_as(plan: Plan, contender: Contender) -> dict[str, str]:
    """Everything that decides the weights of one training."""
    settings = plan.settings(contender.seed).fingerprint()
    return {**training_identity(plan, contender), **settings, "loss": contender.loss.label}


def _evaluated_as(plan: Plan) -> list[str]:
    """Everything else that decides the rows."""
    return [*(one.name for one in plan.metrics), *plan.sizes, plan.sources.digest]


def save_model(plan: Plan, contender: Contender, model: nn.Module) -> None:
    """The final weights, and what `veridical restore` must know to use them."""
    folder = plan.folder / contender.place
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    atomic_write(folder / "model.safetensors", save(tensors))
    about = {
        "model": {"name": contender.model.name, "options": contender.model.options},
        "enlarge": contender.model.enlarge,
        "task": plan.recipe.task,
        "degradation": plan.sources.degradation,
        "loss": contender.spec,
        "loss_fixed": contender.fixed_spec,
        "optimises": list(contender.loss.optimises),
        "steps": plan.recipe.training.steps,
        "seed": contender.seed,
        "init": plan.start.described if plan.start else None,
        "version": __version__,
    }
    write_json(folder / "model.json", about)


def save_result(plan: Plan, contender: Contender) -> None:
    """What became of one training, for a later call to take over."""
    result = {
        "status": contender.status,
        "error": contender.error,
        "fixed_spec": contender.fixed_spec,
        "skipped": contender.skipped,
        "on_nonfinite": plan.recipe.training.on_nonfinite,
        "seconds": contender.seconds,
        "seconds_per_step": contender.seconds_per_step,
        "trained": _trained_as(plan, contender),
        "evaluated": _evaluated_as(plan),
        "rows": contender.rows,
        "cost": contender.cost,
        "files": _hashes(plan, _files_of(plan, contender)),
    }
    write_json(plan.folder / contender.place / "result.json", result)
    plan.store.push(contender.place)


def _files_of(plan: Plan, contender: Contender) -> list[str]:
    return _files(plan, contender.place, [] if contender.turn else [contender.slug])


def _files(plan: Plan, place: Path | None, shown: Sequence[str]) -> list[str]:
    """The names, inside the run, of a training's model and of the images in folders of images/."""
    model = [] if place is None else [(place / name).as_posix() for name in _MODEL]
    return [*model, *(f"images/{slug}/{image}.png" for slug in shown for image in plan.slugs.values())]


def _hashes(plan: Plan, files: Sequence[str]) -> dict[str, str]:
    """The sha256 of those that are there."""
    return {name: _sha256(plan.folder / name) for name in files if (plan.folder / name).is_file()}


def _damaged(plan: Plan, files: Sequence[str], hashes: object) -> list[str]:
    """Which files are no longer what they were; a model that was deleted is none: its rows stand."""
    if not isinstance(hashes, dict):  # of an earlier version
        return []
    found = []
    for name in files:
        path = plan.folder / name
        if path.is_file():
            found += [name] if hashes.get(name, "") != _sha256(path) else []
        elif path.suffix == ".png" and plan.store.url is None:  # from a storage, images are not copied until needed
            found.append(name)
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_result(
    plan: Plan, contender: Contender, note: Callable[[str], None] = lambda text: None, *, look: bool = True
) -> bool:
    """Take over what an earlier call left of this training. True when nothing is left to do for it.

    Args:   note: told of files that are damaged, and made again. look: for such files; every image is read for it.
    Errors: RecipeError when it was trained in another way.
    """
    path = plan.folder / contender.place / "result.json"
    result = read_json(path)
    if not result:
        return False
    if not _is_result(result):
        raise DataError(f"{path} is not what a training leaves. Delete {path.parent} to train it again.")
    then, now = dict(result["trained"]), _trained_as(plan, contender)
    differing = [
        f"{key} was {then.get(key, 'not set')}, now {now.get(key, 'not set')}"
        for key in dict.fromkeys([*then, *now])
        if then.get(key) != now.get(key)
    ]
    if differing:
        raise RecipeError(
            f"{path.parent} holds {contender.name!r} trained in another way: {'; '.join(differing)}. "
            "Name another folder with --out, or delete that one to train it again."
        )
    contender.seconds, contender.seconds_per_step = result["seconds"], result["seconds_per_step"]
    contender.fixed_spec, contender.cost = result.get("fixed_spec"), result.get("cost")
    contender.skipped = result.get("skipped", 0)
    contender.status, contender.error, contender.rows = result["status"], result["error"], result["rows"]
    may_skip = plan.recipe.training.on_nonfinite == "skip" and result.get("on_nonfinite") != "skip"
    if contender.status == "failed" and may_skip:
        contender.status, contender.error = "waiting", None  # from its last checkpoint, leaving out what it failed at
    if contender.status == "done" and result["evaluated"] != _evaluated_as(plan):
        contender.status, contender.rows = "trained", []
    damaged: list[str] = []
    if look and contender.status == "done":
        damaged = _damaged(plan, _files_of(plan, contender), result.get("files"))
    elif look and contender.status == "trained":
        damaged = _damaged(plan, _files(plan, contender.place, []), result.get("files"))
    if damaged:
        note(f"damaged since they were written, and made again: {', '.join(damaged)}")
        contender.status, contender.rows = "trained", []
    whole = (path.parent / "model.safetensors").is_file() and not any(Path(name).name in _MODEL for name in damaged)
    if contender.status == "trained" and not whole:
        contender.status = "waiting"  # the last checkpoint, if it is left, has the same weights
    return contender.status in ("done", "failed")


def _is_result(result: dict[str, Any]) -> bool:
    """Whether a file of JSON is what `save_result` wrote: it may come from anybody."""
    seconds = (result.get("seconds"), result.get("seconds_per_step") or 0.0)
    return (
        result.get("status") in ("waiting", "trained", "done", "failed")
        and all(isinstance(result.get(key), str | None) for key in ("error", "fixed_spec"))
        and all(isinstance(each, float | int) and math.isfinite(each) for each in seconds)
        and isinstance(result.get("trained"), dict)
        and isinstance(result.get("evaluated"), list)
        and isinstance(result.get("cost"), dict | None)
        and are_rows(result.get("rows"))
    )


# ---- what the report reads ----


@dataclass
class References:
    """The rows that need no training: of the degraded images, of the model that training starts from, and of the
    classical methods. costs: of restoring a megapixel, by name. errors: why a method failed, by name."""

    rows: list[Row]
    costs: dict[str, dict[str, float] | None]
    errors: dict[str, str] = field(default_factory=dict)


def references(plan: Plan, observer: Observer) -> References:
    """Computed once per run and set of metrics."""
    found = References(input_rows(plan, observer), {})
    if plan.start:
        model = plan.models[0]
        start = model.initial(plan.recipe.training.seed).to(plan.device)
        _add(found, plan, observer, START, START, start, plan.pairs_for(model))
    for each in plan.classical:
        try:
            _add(found, plan, observer, each.name, each.slug, each.method, plan.pairs)
        except (DataError, NonFiniteLoss) as error:  # the others, and the trainings, go on
            found.errors[each.name] = str(error)
            observer.note(f"{each.name} failed: {error}")
    return found


def _add(
    found: References, plan: Plan, observer: Observer, name: str, slug: str, restorer: nn.Module | Method, pairs: Pairs
) -> None:
    """Evaluate what is not trained, unless its folder of images holds the rows already."""
    images = plan.folder / "images" / slug
    kept = read_json(images / "rows.json")
    shown = _files(plan, None, [slug])
    # Not of which start: the run is of one, see plan.prepare.
    known = kept.get("evaluated") == _evaluated_as(plan) and are_rows(kept.get("rows"))
    if not known or _damaged(plan, shown, kept.get("files")):
        rows: list[Row] = []
        meter = Meter(plan.device)
        rows_by_image = evaluate(
            restorer,
            pairs,
            plan.metrics,
            loss=name,
            slugs=plan.slugs,
            images=images,
            device=plan.device,
            meter=meter,
        )
        for number, of_one in enumerate(rows_by_image, start=1):
            rows += of_one
            what = "where training starts" if name == START else name
            observer.doing(f"evaluating {what}", number, len(pairs))
        kept = {"evaluated": _evaluated_as(plan), "rows": rows, "cost": meter.cost, "files": _hashes(plan, shown)}
        write_json(images / "rows.json", kept)
        plan.store.push(f"images/{slug}")
    found.rows += kept["rows"]
    found.costs[name] = kept.get("cost")


def input_rows(plan: Plan, observer: Observer) -> list[Row]:
    """The rows of the degraded images, computed once per run and set of metrics."""
    images = plan.folder / "images"
    kept = read_json(images / INPUT / "rows.json")
    shown = _files(plan, None, [INPUT, "truth"])
    known = kept.get("evaluated") == _evaluated_as(plan) and are_rows(kept.get("rows"))
    if known and not _damaged(plan, shown, kept.get("files")):
        return list(kept["rows"])
    observer.doing("scoring the degraded images", 0, 1)
    rows = evaluate_input(plan.pairs, plan.metrics, slugs=plan.slugs, images=images, device=plan.device)
    about = {"evaluated": _evaluated_as(plan), "rows": rows, "files": _hashes(plan, shown)}
    write_json(images / INPUT / "rows.json", about)
    for slug in (INPUT, "truth"):
        plan.store.push(f"images/{slug}")
    observer.doing("scoring the degraded images", 1, 1)
    return rows


def write_state(plan: Plan, references: References, command: str) -> None:
    """comparison.json and the rows of all trainings that are finished. command: what repeats the comparison.

    A loss counts as done when its first training is; the statistics leave out the seeds that another has not yet."""
    settings = plan.recipe.training
    trainings = plan.trainings
    done = [each for each in plan.contenders if each.status == "done" and not left_out(each, trainings[each.name])]
    rows = [{**row, "seed": settings.seed} for row in references.rows]
    rows += [{**row, "seed": contender.seed} for contender in done for row in contender.rows]
    write_rows(plan.folder, rows)
    about = {
        "version": __version__,
        "created": plan.created,
        "command": command,
        "machine": _machine(plan.device),
        "task": plan.recipe.task,
        "degradation": plan.sources.degradation,
        "dataset": {**plan.sources.described, "digest": plan.sources.digest},
        "model": plan.models[0].described,
        "models": [model.described for model in plan.models],
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "crop": settings.crop,
        "seeds": list(range(settings.seed, settings.seed + settings.seeds)),
        "init": plan.start.described if plan.start else None,
        "losses": [
            *_about_start(plan, references),
            *map(_about_loss, trainings.values()),
            *(_about_method(each, references) for each in plan.classical),
        ],
        "metrics": [
            {
                "name": one.name.partition("(")[0],
                "label": one.name,
                "higher_is_better": one.higher_is_better,
                "unit": one.unit,
                "range": one.range,
                "reference": one.reference,
            }
            for one in plan.metrics
        ],
        "notes": [*plan.notes, *_about_skipped(done), *_about_unfinished(plan)],
        "images": [
            {"name": name, "slug": plan.slugs[name], "width": width, "height": height}
            for name, (height, width) in plan.sizes.items()
        ],
    }
    write_json(plan.folder / "comparison.json", about)
    for name in ("recipe.toml", "rows.parquet", "rows.csv", "comparison.json"):
        plan.store.push(name)


def _about_start(plan: Plan, references: References) -> list[dict[str, Any]]:
    """The model that training starts from, as one of the losses: it is judged as they are."""
    if plan.start is None or START not in references.costs:
        return []
    about = {"name": START, "slug": START, "spec": plan.start.loss, "optimises": list(plan.start.optimises)}
    return [{**about, "status": "done", "error": None, "weight_hashes": {}, "cost": references.costs[START]}]


def _about_method(each: Classical, references: References) -> dict[str, Any]:
    """A classical method, as one of the losses."""
    about = {"name": each.name, "slug": each.slug, "spec": each.name, "classical": True, "optimises": []}
    error = references.errors.get(each.name)
    about |= {"status": "failed" if error else "done", "error": error, "weight_hashes": {}}
    return {**about, "cost": references.costs.get(each.name)}


def _about_loss(trainings: Sequence[Contender]) -> dict[str, Any]:
    first = trainings[0]
    failed = failure(trainings)
    status = "failed" if failed else first.status if first.status == "done" else "waiting"
    per_step = [each.seconds_per_step for each in trainings if each.seconds_per_step is not None]
    return {
        "name": first.name,
        "slug": first.slug,
        "spec": first.spec,
        "model": first.model.label or None,
        "fixed_spec": first.fixed_spec,
        "optimises": list(first.loss.optimises),
        "seconds": sum(each.seconds for each in trainings),
        "seconds_per_step": sum(per_step) / len(per_step) if per_step else None,
        "status": status,
        "error": failed if status != "waiting" else "not finished yet: run the same command again.",
        "seeds": [each.seed for each in trainings if each.status == "done"],
        "cost": first.cost,
        "weight_hashes": first.loss.weight_hashes,
    }


def failure(trainings: Sequence[Contender]) -> str | None:
    """Why a loss failed: a loss one of whose trainings failed has, as to count the others alone would flatter it."""
    failed = next((each for each in trainings if each.status == "failed"), None)
    if failed is None or len(trainings) == 1:
        return failed.error if failed else None
    return f"with training seed {failed.seed}, and a loss counts with all of its seeds or not at all: {failed.error}"


def left_out(contender: Contender, trainings: Sequence[Contender]) -> bool:
    """Whether a training does not count, as one of `trainings`, those of the same loss, with an earlier seed has
    failed."""
    return any(each.status == "failed" for each in trainings[: contender.turn])


def _about_skipped(done: Sequence[Contender]) -> list[str]:
    return [
        f"{each.name}, seed {each.seed}: {each.skipped} training step(s) were left out, as values were not finite"
        for each in done
        if each.skipped
    ]


def _about_unfinished(plan: Plan) -> list[str]:
    """What is missing of losses that count already."""
    begun = [each for each in plan.trainings.values() if each[0].status == "done" and not failure(each)]
    missing = sum(each.status != "done" for trainings in begun for each in trainings)
    return [f"{missing} trainings with further seeds are not finished: run the same command again."] if missing else []


def _machine(device: torch.device) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", information.read_text(errors="replace"), re.MULTILINE)
        cpu = found[1] if found else cpu
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "device": name,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
