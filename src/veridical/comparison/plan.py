"""Every check of a comparison, before its first training step."""

import datetime
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from veridical import __version__
from veridical.comparison.architecture import Architecture, Pairs, architectures, fitted, pairs_for, samples_for
from veridical.comparison.evaluate import NEEDS_BLUR, Row, build_metrics, check_size
from veridical.comparison.folder import open_folder, read_before, slugs
from veridical.comparison.observer import Observer
from veridical.comparison.sources import Sources, gather
from veridical.comparison.start import Start, fitting, read_start
from veridical.comparison.statistics import INPUT, START
from veridical.comparison.storage import Store
from veridical.core import catalog
from veridical.core.errors import DataError, RecipeError, VeridicalError, WeightsMissing
from veridical.core.files import atomic_write
from veridical.deconvolution import Method, method
from veridical.degradations import TASKS, degradation
from veridical.features import weights
from veridical.losses import Loss, at_seed, at_task, files, loss, needs
from veridical.metrics import Metric
from veridical.metrics import needs as metric_needs
from veridical.training.data import EvaluationPairs, Samples
from veridical.training.device import choose_device
from veridical.training.recipe import Recipe
from veridical.training.settings import Settings
from veridical.training.stages import stage_weights, target_of

T = TypeVar("T")


@dataclass
class Contender:
    """One training of one model on one loss, and what became of it: "waiting", "trained", "done" or "failed".

    name: of the loss; where the recipe lists models, "model: loss". spec: of the loss; `loss` says what it stands for,
          `own_loss` makes what this training descends. seed: of the training. turn: which of its trainings, from 0.
    fixed_spec: with numbers in place of the automatic weights that were found; None when there were none.
    skipped: steps that were left out, as values were not finite.
    rows: of its evaluation. cost: of restoring a megapixel. file_hash: of the file that a loss of one's own comes from,
          else "".
    """

    name: str
    slug: str
    spec: str
    loss: Loss
    seed: int
    model: Architecture
    turn: int = 0
    file_hash: str = ""
    status: str = "waiting"
    seconds: float = 0.0
    seconds_per_step: float | None = None
    error: str | None = None
    fixed_spec: str | None = None
    skipped: int = 0
    rows: list[Row] = field(default_factory=list)
    cost: dict[str, float] | None = None

    @property
    def loss_name(self) -> str:
        """What the recipe calls its loss."""
        return self.name.removeprefix(f"{self.model.label}: ") if self.model.label else self.name

    @property
    def place(self) -> Path:
        """Its folder inside the run: that of the loss for the first training, and one inside it for each other."""
        return Path(self.slug) / f"seed-{self.seed}" if self.turn else Path(self.slug)

    @property
    def images(self) -> Path:
        """The folder inside the run for what it restores, with the first seed."""
        return Path("images") / self.slug

    def own_loss(self) -> Loss:
        """What this training descends: with draws, and parts that learn, of its own."""
        return loss(at_seed(self.spec, self.turn))


@dataclass(frozen=True)
class Classical:
    """A method without training, in the table beside what is trained. name: its spec."""

    name: str
    slug: str
    method: Method


@dataclass(frozen=True)
class Plan:
    """A comparison that has passed every check and may begin.

    recipe:  with the losses and metrics that are left, and no `out`. device: where images are evaluated.
    models:  each is trained on every loss.
    slugs:   of the evaluation images, by name; sizes: (H, W). start: the model that training starts from, if one is
             named.
    store:   where the run is kept, when that is not its folder. label: what it is called among several.
    """

    recipe: Recipe
    folder: Path
    created: str
    device: torch.device
    models: list[Architecture]
    contenders: list[Contender]
    classical: list[Classical]
    metrics: list[Metric]
    sources: Sources
    slugs: dict[str, str]
    sizes: dict[str, tuple[int, int]]
    notes: list[str]
    start: Start | None = None
    store: Store = field(default_factory=Store)
    label: str = ""

    @property
    def pairs(self) -> EvaluationPairs:
        """The same for every training, so that their values are paired."""
        return self.sources.pairs

    def pairs_for(self, model: Architecture) -> Pairs:
        """The same with degraded images as large as the model takes them."""
        return pairs_for(model, self.sources.pairs)

    @property
    def trainings(self) -> dict[str, list[Contender]]:
        """Those of each loss and model, by their name."""
        found: dict[str, list[Contender]] = {}
        for contender in self.contenders:
            found.setdefault(contender.name, []).append(contender)
        return found

    def settings(self, seed: int) -> Settings:
        """Of one training."""
        return replace(self.recipe.training, seed=seed)

    def samples(self, seed: int, model: Architecture) -> Dataset[tuple[Tensor, Tensor]]:
        """What every loss is trained on with this seed."""
        return samples_for(model, self.sources.samples.with_seed(seed))


def prepare(
    recipe: Recipe,
    folder: Path,
    observer: Observer,
    *,
    leave_out: bool,
    validation: bool = False,
    begin: bool = True,
    sources: Sources | None = None,
) -> Plan:
    """Look for whatever can be wrong, then write recipe.toml into the folder.

    Args:   leave_out: leave out losses whose weights cannot be had, with a note; otherwise that is an error.
            validation: evaluate on photographs held out of the training ones; see sources.gather.
            begin: False in a folder that another process has begun, with these checks: nothing is written.
            sources: of another part of the same recipe, which have been read already.
    Errors: VeridicalError for whatever is wrong with names, options, files, sizes, weights or the device.
    """
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        observer.note(text)

    settings = recipe.training
    device = choose_device(settings.device, count=settings.devices)
    task = catalog.lookup(TASKS, recipe.task, "task")
    recipe = for_its_task(recipe)
    spec = recipe.degradation or task.degradation
    damage = degradation(spec) if spec else None
    start = None if recipe.init is None else read_start(recipe.init)
    if start is not None:
        recipe = fitting(recipe, start)
    models = architectures(recipe, task.model, start)
    classical = _build_classical(recipe)
    for spec in recipe.losses.values():
        needs(spec)  # finds unknown names before anything is fetched
    missing = _fetch(recipe, observer)
    before = read_before(folder)
    losses = _build_losses(recipe, missing, note, leave_out=leave_out)
    chosen = "metrics" in recipe.model_fields_set
    metrics = _build_metrics(recipe, missing, note, may_drop=not chosen)
    if not (recipe.data.train or recipe.data.pairs) and not leave_out:
        note("the recipe names no photographs (data.train or data.pairs), so the demo's are used")
    sources = sources or gather(recipe, damage, observer, note, validation=validation)
    metrics = _fit_metrics(sources.pairs, metrics, note, chosen=chosen)
    models = [fitted(each, sources.samples.scale) for each in models]
    contenders = _contenders(models, losses, recipe.training.seed)
    names = [*(each.name for each in contenders), *(each.name for each in classical)]
    own_slugs = slugs(names, {str(each["name"]): str(each["slug"]) for each in before.get("losses") or []})
    for contender in contenders:
        contender.slug = own_slugs[contender.name]
    classical = [replace(each, slug=own_slugs[each.name]) for each in classical]
    if begin:
        _try_out(models, losses, sources.samples, recipe.training)
    if classical and (unknown := next((pair.name for pair in sources.pairs if pair.kernel is None), None)):
        raise RecipeError(f"the blur of {unknown!r} is not known, which {classical[0].name} needs. {NEEDS_BLUR}")
    if begin:
        open_folder(recipe, folder, observer.note)  # what happened to the folder is no part of the run
    if (before.get("dataset") or {}).get("digest", sources.digest) != sources.digest:
        raise RecipeError(
            f"{folder} holds a comparison on other photographs: some were added, removed or changed since. "
            "Name another folder with --out."
        )
    began = (before.get("init") or {}).get("sha256")
    if before and began != (start.sha256 if start else None):
        raise RecipeError(
            f"{folder} holds a comparison that started from other weights: sha256 {began}, now "
            f"{start.sha256 if start else None}: {recipe.init} has changed since. Name another folder with --out."
        )
    for each in _about_parts(settings, models, losses):
        note(each)
    if settings.seeds == 2:
        note("2 training seeds hardly tell how much trainings differ; prefer --seeds 3 or more")
    resolved = recipe.model_copy(
        update={
            "losses": {each.name: each.spec for each in losses},
            "metrics": tuple(one.name for one in metrics),
            "out": None,  # a copy of this recipe must not lead back into this folder
        }
    )
    if begin:
        atomic_write(folder / "recipe.toml", (_provenance(losses, start) + resolved.to_toml()).encode())
    sizes = {item.name: sources.pairs.size(item) for item in sources.pairs.items}
    return Plan(
        recipe=resolved,
        folder=folder,
        created=str(before.get("created") or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")),
        device=device,
        models=models,
        classical=classical,
        contenders=_with_every_seed(contenders, settings.seeds),
        metrics=metrics,
        sources=sources,
        slugs=slugs(sizes),
        sizes=sizes,
        notes=notes,
        start=start,
    )


def _about_parts(settings: Settings, models: Sequence[Architecture], losses: Sequence["_BuiltLoss"]) -> list[str]:
    """What sees but a part of a batch, where it is shared by devices or taken in parts."""
    count, batch_norm = settings.images_at_once, any(model.batch_norm for model in models)
    notes = []
    if count == 1 and batch_norm:
        notes.append("a batch of 1 makes batch normalisation weak; prefer --batch-size 4 or more")
    if count == settings.batch_size:
        return notes
    seen = f"{count} of the {settings.batch_size} images of a batch at a time (training.devices, training.accumulate)"
    if batch_norm:
        notes.append(f"batch normalisation sees {seen}")
    coupled = [each.name for each in losses if each.loss.coupled]
    return [*notes, f"{', '.join(coupled)}: its discriminator sees {seen}"] if coupled else notes


def _with_every_seed(first: Sequence[Contender], seeds: int) -> list[Contender]:
    """The trainings of all losses with the first seed, then with the next: what is stopped holds whole comparisons."""
    return [replace(each, seed=each.seed + turn, turn=turn, rows=[]) for turn in range(seeds) for each in first]


def for_its_task(recipe: Recipe) -> Recipe:
    """The recipe whose losses say for which task they were learned, where they left that to the recipe."""
    task = catalog.lookup(TASKS, recipe.task, "task")
    losses = {name: at_task(spec, task.learned) for name, spec in recipe.losses.items()}
    return recipe if losses == recipe.losses else recipe.model_copy(update={"losses": losses})


def _provenance(losses: Sequence["_BuiltLoss"], start: Start | None) -> str:
    """What a recipe alone does not fix, as comments at its top."""
    hashes = {name: value for each in losses for name, value in each.loss.weight_hashes.items()}
    lines = [f"# veridical {__version__}, torch {torch.__version__}"]
    lines += [f"# weights of {name}: sha256 {value}" for name, value in sorted(hashes.items())]
    lines += [f"# training starts from {start.folder}: sha256 {start.sha256}"] if start else []
    return "\n".join(" ".join(line.split()) for line in lines) + "\n"  # a folder's name may have a line's end


# ---- what is compared ----


@dataclass(frozen=True)
class _BuiltLoss:
    """A loss of the recipe. file_hash: as Contender's."""

    name: str
    spec: str
    loss: Loss
    file_hash: str


def _contenders(models: Sequence[Architecture], losses: Sequence[_BuiltLoss], seed: int) -> list[Contender]:
    """The first training of every model on every loss, without a slug yet."""
    return [
        Contender(
            f"{model.label}: {each.name}" if model.label else each.name,
            "",
            each.spec,
            each.loss,
            seed,
            model,
            file_hash=each.file_hash,
        )
        for model in models
        for each in losses
    ]


def _build_classical(recipe: Recipe) -> list[Classical]:
    return [Classical(spec, "", _making(f"method {spec!r}", partial(method, spec))) for spec in recipe.classical]


def _making(what: str, make: Callable[[], T]) -> T:
    """make(), with an impossible option reported as the user's error and not as ours."""
    try:
        return make()
    except VeridicalError:
        raise
    except (TypeError, ValueError) as error:
        raise VeridicalError(f"the {what} cannot be made: {error}") from error


# ---- losses and metrics, and the weights that they need ----


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
) -> list[_BuiltLoss]:
    """Every loss, built and fit for the crop."""
    absent = {name: [n for n in needs(spec) if n in missing] for name, spec in recipe.losses.items()}
    lacking = {name: networks for name, networks in absent.items() if networks}
    if lacking and not leave_out:
        named = ", ".join(f"{name} ({', '.join(networks)})" for name, networks in lacking.items())
        reasons = "\n".join(dict.fromkeys(missing[n] for networks in lacking.values() for n in networks))
        raise WeightsMissing(f"these losses need weights that cannot be had: {named}. Leave them out, or:\n{reasons}")
    for network in dict.fromkeys(n for networks in lacking.values() for n in networks):
        out = ", ".join(name for name, networks in lacking.items() if network in networks)
        note(f"the {network} weights could not be had (try: veridical weights fetch {network}); left out: {out}")
    found: list[_BuiltLoss] = []
    crop = recipe.training.crop
    for name, spec in recipe.losses.items():
        if name == INPUT:
            raise RecipeError(f"a loss cannot be named {INPUT!r}: that is the degraded image's own row.")
        if name == START:
            raise RecipeError(f"a loss cannot be named {START!r}: that row is the model that training starts from.")
        if name in lacking:
            continue
        built = _making(f"loss {spec!r}", lambda spec=spec: loss(spec))  # type: ignore[misc]
        if built.min_size > crop:
            raise RecipeError(
                f"the loss {name!r} needs images of at least {built.min_size}x{built.min_size} px, but the training "
                f"crop is {crop}. Set --crop {built.min_size} or more, or choose another loss."
            )
        found.append(_BuiltLoss(name, spec, built, _file_hash(spec)))
    if not found:
        raise WeightsMissing("none of the losses is left to compare:\n" + "\n".join(missing.values()))
    return found


def _file_hash(spec: str) -> str:
    """The hash of the files of losses such as "my_file.py:MyLoss": the name stays when what it computes changes."""
    contents = b"".join(path.read_bytes() for path in files(spec))
    return hashlib.sha256(contents).hexdigest() if contents else ""


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
    return build_metrics(specs)


def _fit_metrics(
    pairs: EvaluationPairs, metrics: list[Metric], note: Callable[[str], None], *, chosen: bool
) -> list[Metric]:
    """Make metrics and image sizes fit: images give way to a metric, unless none would be left; a metric of the
    default list gives way when it would cost more than a quarter of the images."""
    shortest = {item.name: min(pairs.size(item)) for item in pairs.items}
    for one in [] if chosen else list(metrics):
        too_small = sum(side < one.min_size for side in shortest.values())
        if too_small > len(shortest) / 4:
            note(
                f"the metric {one.name} was left out: it needs images of at least {one.min_size} px, but {too_small} "
                f"of the {len(shortest)} evaluation images are smaller"
            )
            metrics.remove(one)
    if not metrics:
        raise DataError(
            "no metric is left that can be computed. Evaluate on larger images, or name metrics with --metrics."
        )
    largest = max(metrics, key=lambda one: one.min_size)
    small = [name for name, side in shortest.items() if side < largest.min_size]
    if len(small) == len(shortest):
        check_size(small[0], *pairs.size(pairs.items[0]), metrics)
    if small:
        named = ", ".join(small[:5]) + (", ..." if len(small) > 5 else "")
        count = f"{len(small)} of {len(shortest)} evaluation images"
        note(f"{count} left out, as {largest.name} needs {largest.min_size} px: {named}")
        pairs.items = [item for item in pairs.items if item.name not in small]
    return metrics


@torch.no_grad()
def _try_out(
    models: Sequence[Architecture], losses: Sequence[_BuiltLoss], samples: Samples, settings: Settings
) -> None:
    """One sample through every model and every loss, so that nothing that can only be seen in use comes up in hours."""
    for one in models:
        model = one.initial(0).eval()
        degraded, sharp = (image[None] for image in samples_for(one, samples)[0])
        try:
            stages = model.stages(degraded)
        except (ValueError, RuntimeError) as error:
            raise RecipeError(
                f"the model {one.called} cannot restore a crop of shape {tuple(degraded.shape)}: {error}"
            ) from error
        if stages[-1].shape != sharp.shape:
            raise RecipeError(
                f"the model {one.called} makes an image of shape {tuple(stages[-1].shape)} of a crop of "
                f"shape {tuple(degraded.shape)}, but the sharp one has {tuple(sharp.shape)}."
            )
        counted = [stage for stage, weight in zip(stages, stage_weights(model, settings.stages), strict=True) if weight]
        smallest = min(counted, key=lambda stage: stage.shape[-1])
        for each in losses:
            _try_loss(each, one, smallest, target_of(smallest, sharp), settings.crop)


def _try_loss(each: _BuiltLoss, one: Architecture, stage: Tensor, target: Tensor, crop: int) -> None:
    side = min(stage.shape[-2:])
    if side < each.loss.min_size:
        least = -(-each.loss.min_size * crop // side)
        raise RecipeError(
            f"the loss {each.name!r} needs images of at least {each.loss.min_size} px, but a stage of the model "
            f"{one.called} makes one of {side} px of a crop of {crop}. Set --crop {least} or more, or "
            "training.stages = 'last'."
        )
    each.loss.eval()
    try:
        for part in each.loss.parts:  # a sum may have weights that are not found yet
            part(stage, target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"the loss {each.name!r} cannot be used here: {error}") from error
    each.loss.train()
