"""One recipe, many losses, each from the same initial weights, on the same batches with the same noise.

Whatever can be wrong is looked for before the first training step. What is finished is on disk at once, so that a run
that was stopped, by whatever, goes on where it was when the same command is given again.
"""

import dataclasses
import datetime
import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save
from torch import nn

from veridical import __version__
from veridical.comparison.evaluate import (
    Row,
    build_metrics,
    check_size,
    evaluate,
    evaluate_input,
    write_rows,
)
from veridical.comparison.restore import choose_device
from veridical.comparison.statistics import INPUT
from veridical.core import catalog
from veridical.core.errors import (
    DataError,
    NonFiniteLoss,
    RecipeError,
    VeridicalError,
    WeightsMissing,
)
from veridical.core.files import atomic_write
from veridical.degradations import TASKS, Degradation, degradation
from veridical.features import weights
from veridical.losses import Loss, loss, needs
from veridical.metrics import Metric
from veridical.metrics import needs as metric_needs
from veridical.models import MODELS
from veridical.training.data import (
    EvaluationPairs,
    Pair,
    PairSamples,
    Photograph,
    Samples,
    TrainingSamples,
    evaluation_pairs,
    evaluation_photographs,
    hold_out,
    hold_out_pairs,
    pairs_in,
    photographs_in,
)
from veridical.training.loop import Silent, train
from veridical.training.photographs import demo_photographs
from veridical.training.recipe import Recipe, load_recipe

T = TypeVar("T")

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

# What may change when a run is continued: it does not change what any one loss arrives at.
_MAY_CHANGE = {
    "out",
    "metrics",
    "training.device",
    "training.devices",
    "training.workers",
    "training.log_every",
}
_MAY_CHANGE |= {"training.checkpoint_every"}
_RESERVED_SLUGS = (INPUT, "truth", "images")


def demo_recipe(overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of `veridical compare --demo`: photographs inside two wheels, a small U-Net, eight losses."""
    return load_recipe(None, [*DEMO_SETTINGS, *overrides])


class Observer(Silent):
    """Hears what a comparison does; a subclass shows it. Each method may be left as it is."""

    def note(self, text: str) -> None:
        """Something that the user should know: a loss left out, photographs skipped."""

    def started(self, total_steps: int, start_step: int) -> None:
        """The loop of one training begins, after `start_step` steps of an earlier call."""

    def step(self, step: int, total: float, terms: dict[str, float], rate: float) -> None:
        """A step is done; total and terms are means since the last logged row, rate is in steps per second."""

    def doing(self, what: str, done: int, total: int) -> None:
        """Progress of something before or between the trainings; it ends with done == total."""

    def fetching(self, name: str, done: int, total: int | None) -> None:
        """Progress of a download, in bytes."""

    def begins(self, folder: Path, losses: Sequence[str], steps: int) -> None:
        """All checks have passed."""

    def loss_begins(self, name: str) -> None:
        """The training of one loss begins, or goes on."""

    def loss_ends(self, name: str, status: str, seconds: float, error: str | None) -> None:
        """One loss is trained and evaluated ("done"), was so already ("kept"), or has failed ("failed")."""


@dataclass
class Contender:
    """One loss of the comparison and what became of it. rows: of its evaluation."""

    name: str
    slug: str
    spec: str
    loss: Loss
    status: str = "waiting"
    seconds: float = 0.0
    seconds_per_step: float | None = None
    error: str | None = None
    rows: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """A comparison that has passed every check and may begin."""

    recipe: Recipe
    folder: Path
    created: str
    degradation: str
    model_name: str
    model_options: dict[str, Any]
    parameters: int
    contenders: list[Contender]
    metrics: list[Metric]
    samples: Samples
    pairs: EvaluationPairs
    slugs: dict[str, str]
    sizes: dict[str, tuple[int, int]]
    dataset: dict[str, str]
    digest: str
    notes: list[str]

    @property
    def device(self) -> torch.device:
        """Where images are evaluated."""
        return torch.device(choose_device(self.recipe.training.device))


def compare(
    recipe: Recipe, out: Path | None = None, observer: Observer | None = None, *, leave_out: bool = False
) -> Path:
    """Train a model once per loss and evaluate each; returns the run folder, which the report reads.

    Args:   out: the run folder; else the recipe's `out`, else runs/<task>-<time>. A folder that holds a run of the same
            recipe is continued: what is finished stays, what is not goes on from its last checkpoint.
            leave_out: leave out losses whose weights cannot be had, with a note (the demo); otherwise that is an error.
    Errors: VeridicalError, before any training, for whatever is wrong with names, options, files, sizes or weights.
            NonFiniteLoss when every loss diverged; one that does is recorded as failed and the others go on.
    """
    observer = observer if observer and _is_chief() else Observer()
    plan = _prepare(recipe, out, observer, leave_out=leave_out)
    observer.begins(plan.folder, [each.name for each in plan.contenders], recipe.training.steps)
    kept = {contender.name for contender in plan.contenders if _load_result(plan, contender)}
    input_rows: list[Row] = []
    if _is_chief():
        input_rows = _input_rows(plan, observer)
        _write_state(plan, input_rows)
    for contender in plan.contenders:
        if contender.name not in kept:
            observer.loss_begins(contender.name)
            _run(plan, contender, observer)
            if _is_chief():
                _save_result(plan, contender)
                _write_state(plan, input_rows)
        status = "kept" if contender.name in kept and contender.status == "done" else contender.status
        observer.loss_ends(contender.name, status, contender.seconds, contender.error)
    if not _is_chief():
        raise SystemExit(0)  # the first process has the results and goes on to the report
    if all(contender.status == "failed" for contender in plan.contenders):
        raise NonFiniteLoss(
            f"every loss failed, so there is nothing to compare. {plan.contenders[0].name}: {plan.contenders[0].error}"
        )
    return plan.folder


# ---- every check, before any training ----


def _prepare(recipe: Recipe, out: Path | None, observer: Observer, *, leave_out: bool) -> Plan:
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        observer.note(text)

    settings = recipe.training
    task = catalog.lookup(TASKS, recipe.task, "task")
    damage = degradation(recipe.degradation or task.degradation)
    model_name, model_options, model = _build_model(recipe, task.model)
    for spec in recipe.losses.values():
        needs(spec)  # finds unknown names before anything is fetched
    missing = _fetch(recipe, observer)
    contenders = _build_losses(recipe, missing, note, leave_out=leave_out)
    chosen = "metrics" in recipe.model_fields_set
    metrics = _build_metrics(recipe, missing, note, may_drop=not chosen)
    samples, pairs, dataset, label = _data(recipe, damage, observer, note)
    metrics = _fit_metrics(pairs, metrics, note, chosen=chosen)
    _try_out(model, contenders, samples)
    folder = _open_folder(recipe, out)
    before = _read_json(folder / "comparison.json")
    digest = _digest(samples, pairs)
    if before.get("dataset", {}).get("digest", digest) != digest:
        raise RecipeError(
            f"{folder} holds a comparison on other photographs: some were added, removed or changed since. "
            "Name another folder with --out."
        )
    _keep_slugs(contenders, before)
    sizes = {item.name: pairs.store.size(item.sharp) for item in pairs.items}
    plan = Plan(
        recipe=recipe,
        folder=folder,
        created=str(before.get("created") or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")),
        degradation=label,
        model_name=model_name,
        model_options=model_options,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        contenders=contenders,
        metrics=metrics,
        samples=samples,
        pairs=pairs,
        slugs=_slugs(list(sizes)),
        sizes=sizes,
        dataset=dataset,
        digest=digest,
        notes=notes,
    )
    if settings.batch_size == 1 and any("BatchNorm" in type(part).__name__ for part in model.modules()):
        note("a batch of 1 makes batch normalisation weak; prefer --batch-size 4 or more")
    atomic_write(folder / "recipe.toml", recipe.to_toml().encode())
    return plan


def _build_model(recipe: Recipe, default: str) -> tuple[str, dict[str, Any], nn.Module]:
    """Name, options, and the model of the recipe with its initial weights: the same for every loss."""
    spec = recipe.model.name or default
    terms = catalog.parse(spec, "model")
    if len(terms) != 1 or terms[0].weight != 1:
        raise RecipeError(f"the model {spec!r} is a sum. Expected one name with its options, such as 'unet(levels=3)'.")
    name, options = terms[0].name, dict(terms[0].options)
    options["channels"] = recipe.model.channels
    if recipe.model.width is not None:
        options["width"] = recipe.model.width
    model = initial_model(name, options, recipe.training.seed)
    # With every default, so that the weights find their model again when a default changes.
    defaults = {key: parameter.default for key, parameter in catalog.options_of(MODELS[name]).items()}
    return name, {**defaults, **options}, model


def initial_model(name: str, options: Mapping[str, Any], seed: int) -> nn.Module:
    """A model whose initial weights are a function of (name, options, seed), whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _making(
            f"model {name!r}",
            lambda: catalog.call(catalog.lookup(MODELS, name, "model"), options, f"model {name!r}"),
        )


def _making(what: str, make: Callable[[], T]) -> T:
    """make(), with an impossible option reported as the user's error and not as ours."""
    try:
        return make()
    except VeridicalError:
        raise
    except (TypeError, ValueError) as error:
        raise VeridicalError(f"the {what} cannot be made: {error}") from error


def _fetch(recipe: Recipe, observer: Observer) -> dict[str, str]:
    """Try for every pretrained network that is needed, once. -> name -> why it cannot be had."""
    names = [name for spec in recipe.losses.values() for name in needs(spec)]
    names += [name for spec in recipe.metrics for name in metric_needs(spec)]
    missing = {}
    for name in dict.fromkeys(names):
        if weights.available(name) is None:
            try:
                weights.fetch(name, progress=observer.fetching)
            except WeightsMissing as error:
                missing[name] = str(error)
    return missing


def _build_losses(
    recipe: Recipe, missing: Mapping[str, str], note: Callable[[str], None], *, leave_out: bool
) -> list[Contender]:
    """Every loss, built and fit for the crop."""
    contenders: list[Contender] = []
    absent = {name: [n for n in needs(spec) if n in missing] for name, spec in recipe.losses.items()}
    lacking = {name: networks for name, networks in absent.items() if networks}
    if lacking and not leave_out:
        named = ", ".join(f"{name} ({', '.join(networks)})" for name, networks in lacking.items())
        reasons = "\n".join(dict.fromkeys(missing[n] for networks in lacking.values() for n in networks))
        raise WeightsMissing(f"these losses need weights that cannot be had: {named}. Leave them out, or:\n{reasons}")
    for network in dict.fromkeys(n for networks in lacking.values() for n in networks):
        out = ", ".join(name for name, networks in lacking.items() if network in networks)
        note(f"the {network} weights could not be had (try: veridical weights fetch {network}); left out: {out}")
    slugs = _slugs(list(recipe.losses))
    crop = recipe.training.crop
    for name, spec in recipe.losses.items():
        if name == INPUT:
            raise RecipeError(f"a loss cannot be named {INPUT!r}: that is the degraded image's own row.")
        if name in lacking:
            continue
        built = _making(f"loss {spec!r}", lambda spec=spec: loss(spec))  # type: ignore[misc]
        if built.min_size > crop:
            raise RecipeError(
                f"the loss {name!r} needs images of at least {built.min_size}x{built.min_size} px, but the training "
                f"crop is {crop}. Set --crop {built.min_size} or more, or choose another loss."
            )
        contenders.append(Contender(name, slugs[name], spec, built))
    if not contenders:
        raise WeightsMissing("none of the losses is left to compare:\n" + "\n".join(missing.values()))
    return contenders


def _build_metrics(
    recipe: Recipe, missing: Mapping[str, str], note: Callable[[str], None], *, may_drop: bool
) -> list[Metric]:
    """The metrics whose weights are here. One that was asked for and cannot be had is an error."""
    specs = []
    for spec in recipe.metrics:
        lacking = [name for name in metric_needs(spec) if name in missing]
        if not lacking:
            specs.append(spec)
        elif may_drop:
            note(
                f"the metric {spec} was left out: the {lacking[0]} weights could not be had "
                f"(try: veridical weights fetch {lacking[0]})"
            )
        else:
            raise WeightsMissing(f"the metric {spec!r} cannot be computed: {missing[lacking[0]]}")
    metrics, dropped = build_metrics(specs, may_drop=may_drop)
    for text in dropped:
        note(text)
    return metrics


def _data(
    recipe: Recipe, damage: Degradation, observer: Observer, note: Callable[[str], None]
) -> tuple[Samples, EvaluationPairs, dict[str, str], str]:
    """Training samples, evaluation pairs, how to describe both, and the degradation's label."""
    data, settings, channels = recipe.data, recipe.training, recipe.model.channels
    described: dict[str, str] = {}
    label = damage.label
    real: list[Pair] | None = None
    photographs: list[Photograph] = []
    held: list[Photograph] | None = None
    held_pairs: list[Pair] | None = None
    own = data.evaluate or data.pairs_evaluate
    if data.pairs:
        label = "real pairs"
        real = pairs_in(Path(data.pairs[0]), Path(data.pairs[1]))
        described["train"] = f"{data.pairs[0]} and {data.pairs[1]}"
        if not own:
            real, held_pairs = hold_out_pairs(real)
            note(_held_out(len(held_pairs), "pair", [pair.name for pair in held_pairs]))
    elif data.train:
        photographs = photographs_in(Path(data.train))
        described["train"] = data.train
        if not own:
            photographs, held = hold_out(photographs)
            note(_held_out(len(held), "photograph", [photo.name for photo in held]))
    else:
        shipped, shown = demo_photographs()
        photographs = [Photograph(*each) for each in shipped]
        described["train"] = "the demo's"
        if not own:
            held = [Photograph(*each) for each in shown]
    where = f"held out of {described['train']}"
    if data.evaluate:
        held, where = photographs_in(Path(data.evaluate)), data.evaluate
    elif data.pairs_evaluate:
        held_pairs = pairs_in(Path(data.pairs_evaluate[0]), Path(data.pairs_evaluate[1]))
        where = f"{data.pairs_evaluate[0]} and {data.pairs_evaluate[1]}"
    # Never train on what is evaluated, should one folder hold the other.
    judged = {_file(p) for p in (held or [])} | {_file(p.sharp) for p in (held_pairs or [])}
    judged.discard(None)
    before = len(photographs) + len(real or [])
    photographs = [p for p in photographs if _file(p) not in judged]
    real = None if real is None else [p for p in real if _file(p.sharp) not in judged]
    overlap = before - len(photographs) - len(real or [])
    if overlap:
        note(f"{overlap} of the training photographs are evaluated on, so they are not trained on")
        if not photographs and not real:
            raise DataError(
                f"every photograph of {described['train']} is evaluated on, so none is left to train on. "
                "Leave --evaluate out, and some are held out, or name another folder."
            )

    def reading(done: int, total: int) -> None:
        observer.doing("reading the training photographs", done, total)

    seed, crop = settings.seed, settings.crop
    samples: Samples
    if real is not None:
        samples = PairSamples(real, crop=crop, seed=seed, channels=channels, progress=reading)
    else:
        samples = TrainingSamples(photographs, damage, crop=crop, seed=seed, channels=channels, progress=reading)
    if held_pairs is not None:
        pairs = evaluation_pairs(held_pairs, channels=channels)
    else:
        pairs = evaluation_photographs(held or [], damage, seed=seed, channels=channels)
    noun = "pairs" if real is not None else "photographs"
    described["train"] = f"{len(samples.items)} {noun}, {described['train']}"
    noun = "pairs" if held_pairs is not None else "photographs"
    described["evaluate"] = f"{len(pairs)} {noun}, {where}"
    for skipped, what, total in (
        (samples.skipped, "training", len(samples.items) + len(samples.skipped)),
        (pairs.skipped, "evaluation", len(pairs) + len(pairs.skipped)),
    ):
        if skipped:
            reasons = "; ".join(each.reason for each in skipped[:3])
            more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
            note(f"{len(skipped)} of {total} {what} photographs were skipped: {reasons}{more}")
    return samples, pairs, described, label


def _held_out(count: int, noun: str, names: Sequence[str]) -> str:
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    some = f"1 {noun} is" if count == 1 else f"{count} {noun}s are"
    return f"no evaluation data was named, so {some} held out: {listed}"


def _file(photograph: Photograph) -> Path | None:
    return photograph.source.resolve() if isinstance(photograph.source, Path) else None


def _fit_metrics(
    pairs: EvaluationPairs, metrics: list[Metric], note: Callable[[str], None], *, chosen: bool
) -> list[Metric]:
    """Make metrics and image sizes fit: a metric of the default list gives way to the images; images give way to a
    metric that was asked for, unless none would be left."""
    shortest = {item.name: min(pairs.store.size(item.sharp)) for item in pairs.items}
    if not chosen:
        for one in [one for one in metrics if one.min_size > min(shortest.values())]:
            name = min(shortest, key=lambda name: shortest[name])
            note(
                f"the metric {one.name} was left out: it needs images of at least {one.min_size} px, but {name} has "
                f"a side of {shortest[name]}"
            )
            metrics = [other for other in metrics if other is not one]
    least = max((one.min_size for one in metrics), default=1)
    small = [name for name, side in shortest.items() if side < least]
    if len(small) == len(shortest):
        check_size(small[0], *pairs.store.size(pairs.items[0].sharp), metrics)
    if small:
        largest = next(one.name for one in metrics if one.min_size == least)
        named = ", ".join(small[:5]) + (", ..." if len(small) > 5 else "")
        note(f"{len(small)} evaluation images are left out, as {largest} needs {least} px: {named}")
        pairs.items = [item for item in pairs.items if item.name not in small]
    if not metrics:
        raise DataError(
            "no metric is left that can be computed. Evaluate on larger images, or name metrics with --metrics."
        )
    return metrics


@torch.no_grad()
def _try_out(model: nn.Module, contenders: Sequence[Contender], samples: Samples) -> None:
    """One sample through the model and every loss, so that nothing that can only be seen in use comes up in hours."""
    degraded, sharp = (image[None] for image in samples[0])
    model.eval()
    try:
        prediction = model(degraded)
    except (ValueError, RuntimeError) as error:
        raise RecipeError(f"the model cannot restore a crop of shape {tuple(degraded.shape)}: {error}") from error
    for contender in contenders:
        contender.loss.eval()
        try:
            contender.loss(prediction, sharp)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RecipeError(f"the loss {contender.name!r} cannot be used here: {error}") from error
        contender.loss.train()


# ---- the folder ----


def default_folder(recipe: Recipe) -> Path:
    """runs/<task>-<time>, for a run whose folder nobody named."""
    if recipe.training.devices > 1:
        raise RecipeError("training on several devices needs --out: every process must know the folder.")
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")  # local time, for a reader
    return Path("runs") / f"{recipe.task}-{stamp}"


def _open_folder(recipe: Recipe, out: Path | None) -> Path:
    """The run folder, made if missing, that may be written to and holds no other run."""
    if out is None:
        out = Path(recipe.out) if recipe.out is not None else default_folder(recipe)
    if out.exists() and not out.is_dir():
        raise RecipeError(f"--out {out} is a file. Name a folder, which is made if it does not exist.")
    if (out / "recipe.toml").is_file():
        _same_run(recipe, load_recipe(out / "recipe.toml"), out)
    elif out.is_dir() and any(out.iterdir()):
        raise RecipeError(f"--out {out} is not empty and holds no comparison. Name another folder with --out.")
    try:
        atomic_write(out / ".writable", b"")
        (out / ".writable").unlink(missing_ok=True)
    except PermissionError as error:
        raise RecipeError(
            f"the folder {out} cannot be written to: {error.strerror}. Name another with --out."
        ) from error
    return out


def _same_run(now: Recipe, before: Recipe, out: Path) -> None:
    """Raise RecipeError naming what differs, unless `now` continues `before`. Losses may be added."""
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    added = {f"losses.{name}" for name in now.losses if name not in before.losses}
    differing = [
        f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
        for key in dict.fromkeys([*old, *new])
        if key not in _MAY_CHANGE and key not in added and old.get(key) != new.get(key)
    ]
    if differing:
        raise RecipeError(
            f"{out} holds another comparison: {'; '.join(differing)}. Name another folder with --out, or give the same "
            f"recipe to continue that one: veridical compare {out / 'recipe.toml'} --out {out}"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key == "metrics" and not prefix:
            continue
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _slugs(names: Sequence[str]) -> dict[str, str]:
    """A distinct folder name for each.

    >>> _slugs(["0.8*l2 + 0.2*l1", "0.8 l2 0.2 l1", "input"])
    {'0.8*l2 + 0.2*l1': '0-8-l2-0-2-l1', '0.8 l2 0.2 l1': '0-8-l2-0-2-l1-2', 'input': 'input-2'}
    """
    taken = set(_RESERVED_SLUGS)
    slugs = {}
    for name in names:
        stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60].strip("-") or "x"
        slug, number = stem, 2
        while slug in taken:
            slug, number = f"{stem}-{number}", number + 1
        taken.add(slug)
        slugs[name] = slug
    return slugs


def _keep_slugs(contenders: Sequence[Contender], before: Mapping[str, Any]) -> None:
    """A loss that was added to a run must not take another's folder."""
    old = {str(each["name"]): str(each["slug"]) for each in before.get("losses", [])}
    for contender in contenders:
        if contender.name in old:
            contender.slug = old[contender.name]
    taken = set(old.values())
    for contender in contenders:
        if contender.name not in old:
            stem, number = contender.slug, 2
            while contender.slug in taken:
                contender.slug, number = f"{stem}-{number}", number + 1
            taken.add(contender.slug)


def _digest(samples: Samples, pairs: EvaluationPairs) -> str:
    """A hash over the names and file sizes of all photographs, in order."""
    digest = hashlib.sha256()
    for items in (samples.items, pairs.items):
        for item in items:
            for photograph in (item.degraded, item.sharp):
                source = photograph.source
                size = source.stat().st_size if isinstance(source, Path) else tuple(source.shape)
                digest.update(f"{photograph.name} {size}\n".encode())
        digest.update(b"--\n")
    return digest.hexdigest()


# ---- one loss ----


def _run(plan: Plan, contender: Contender, observer: Observer) -> None:
    """Train and evaluate one loss, or only evaluate it when just the metrics are new. Sets what became of it."""
    folder = plan.folder / contender.slug
    settings = plan.recipe.training
    model = initial_model(plan.model_name, plan.model_options, settings.seed)
    weights_file = folder / "model.safetensors"
    try:
        if contender.status == "trained" and weights_file.is_file():
            model.load_state_dict(load_file(weights_file))
            model.to(plan.device)
        else:
            # A short trial, too, gets a curve.
            settings = dataclasses.replace(settings, log_every=min(settings.log_every, -(-settings.steps // 20)))
            result = train(
                model,
                contender.loss,
                plan.samples,
                settings,
                folder,
                observer=observer,
                fingerprint=_identity(plan),
            )
            contender.seconds = result.seconds
            contender.seconds_per_step = result.seconds / max(result.steps, 1)
            if not _is_chief():
                return
            _save_model(plan, contender, model)
            contender.status = "trained"
            _save_result(plan, contender)
        contender.rows = []
        rows_by_image = evaluate(
            model,
            plan.pairs,
            plan.metrics,
            loss=contender.name,
            slugs=plan.slugs,
            images=plan.folder / "images" / contender.slug,
            device=plan.device,
        )
        for number, rows in enumerate(rows_by_image, start=1):
            contender.rows += rows
            observer.doing(f"evaluating {contender.name}", number, len(plan.pairs))
        contender.status = "done"
    except NonFiniteLoss as error:
        contender.status, contender.error = "failed", str(error)
    except torch.cuda.OutOfMemoryError:
        contender.status = "failed"
        contender.error = "the device has too little memory for this loss: try a smaller training.batch_size or crop."
        torch.cuda.empty_cache()


def _identity(plan: Plan) -> dict[str, str]:
    """What, besides the settings and the loss, must not change when a training goes on."""
    return {
        "task": plan.recipe.task,
        "degradation": plan.degradation,
        "model": f"{plan.model_name} {json.dumps(plan.model_options, sort_keys=True)}",
        "photographs": plan.digest,
    }


def _trained_as(plan: Plan, contender: Contender) -> dict[str, str]:
    """Everything that decides the weights of one loss."""
    hashes = {f"weights of {name}": value for name, value in contender.loss.weight_hashes.items()}
    return {**_identity(plan), **plan.recipe.training.fingerprint(), "loss": contender.loss.label, **hashes}


def _evaluated_as(plan: Plan) -> list[str]:
    """Everything else that decides the rows."""
    return [*(one.name for one in plan.metrics), plan.digest]


def _save_model(plan: Plan, contender: Contender, model: nn.Module) -> None:
    folder = plan.folder / contender.slug
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    about = {
        "model": {"name": plan.model_name, "options": plan.model_options},
        "task": plan.recipe.task,
        "degradation": plan.degradation,
        "loss": contender.spec,
        "steps": plan.recipe.training.steps,
        "version": __version__,
    }
    atomic_write(folder / "model.safetensors", save(tensors))
    atomic_write(folder / "model.json", _json(about))


def _save_result(plan: Plan, contender: Contender) -> None:
    result = {
        "status": contender.status,
        "error": contender.error,
        "seconds": contender.seconds,
        "seconds_per_step": contender.seconds_per_step,
        "trained": _trained_as(plan, contender),
        "evaluated": _evaluated_as(plan),
        "rows": contender.rows,
    }
    atomic_write(plan.folder / contender.slug / "result.json", _json(result))


def _load_result(plan: Plan, contender: Contender) -> bool:
    """Take over what an earlier call left of this loss. True when nothing is left to do for it."""
    path = plan.folder / contender.slug / "result.json"
    result = _read_json(path)
    if not result:
        return False
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
    contender.status, contender.error, contender.rows = result["status"], result["error"], result["rows"]
    if contender.status == "done" and result["evaluated"] != _evaluated_as(plan):
        contender.status, contender.rows = "trained", []
    return contender.status in ("done", "failed")


# ---- what the report reads ----


def _input_rows(plan: Plan, observer: Observer) -> list[Row]:
    """The rows of the degraded images, computed once per run and set of metrics."""
    images = plan.folder / "images"
    kept = _read_json(images / INPUT / "rows.json")
    if kept.get("evaluated") == _evaluated_as(plan):
        return list(kept["rows"])
    observer.doing("scoring the degraded images", 0, 1)
    rows = evaluate_input(plan.pairs, plan.metrics, slugs=plan.slugs, images=images, device=plan.device)
    atomic_write(images / INPUT / "rows.json", _json({"evaluated": _evaluated_as(plan), "rows": rows}))
    observer.doing("scoring the degraded images", 1, 1)
    return rows


def _write_state(plan: Plan, input_rows: Sequence[Row]) -> None:
    """comparison.json and the rows of all losses that are finished."""
    settings = plan.recipe.training
    done = [contender for contender in plan.contenders if contender.status == "done"]
    write_rows(plan.folder, [*input_rows, *(row for contender in done for row in contender.rows)])
    about = {
        "version": __version__,
        "created": plan.created,
        "machine": _machine(plan.device),
        "task": plan.recipe.task,
        "degradation": plan.degradation,
        "dataset": {**plan.dataset, "digest": plan.digest},
        "model": {"name": plan.model_name, "options": plan.model_options, "parameters": plan.parameters},
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "crop": settings.crop,
        "losses": [
            {
                "name": contender.name,
                "slug": contender.slug,
                "spec": contender.spec,
                "optimises": list(contender.loss.optimises),
                "seconds": contender.seconds,
                "seconds_per_step": contender.seconds_per_step,
                "status": contender.status if contender.status in ("done", "failed") else "waiting",
                "error": contender.error
                or (None if contender.status == "done" else "not finished yet: run the same command again."),
                "weight_hashes": contender.loss.weight_hashes,
            }
            for contender in plan.contenders
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
        "notes": plan.notes,
        "images": [
            {"name": name, "slug": plan.slugs[name], "width": width, "height": height}
            for name, (height, width) in plan.sizes.items()
        ],
    }
    atomic_write(plan.folder / "comparison.json", _json(about))


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


def _is_chief() -> bool:
    """Whether this process writes: the first of those that train together on several devices."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode()


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or an empty one when the file is missing or damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
