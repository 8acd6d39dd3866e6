"""The weights of a sum, searched by the aggregate score: `veridical tune`.

Every trial is a training and an evaluation as a comparison makes them: from the same initial weights, on the same
batches. So the folder is a comparison's, with one loss per trial, and its report says which of them differ by more than
chance.

The score is equation 7 (see statistics.py) with the degraded input in the place of the best of the table:

    score = PSNR / PSNR_input · MS-SSIM / MS-SSIM_input · LPIPS_input / LPIPS

A product of quotients: another reference multiplies every score by one number. So trials are ranked as equation 7 ranks
them over all that will ever be made, while each score stands from the moment it is known.

Weights that are chosen by how well they do on some photographs do too well there. So trials are scored on photographs
held out of the training ones, and those that a comparison evaluates on are not looked at: see sources.py.

tune.json holds the search. Each suggestion is a pure function of (seed, the trials before it), so a search that was
stopped goes on as if it had not been.
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from veridical import __version__
from veridical.comparison import charts
from veridical.comparison.evaluate import Row
from veridical.comparison.folder import choose_folder, read_json, write_json
from veridical.comparison.observer import Observer
from veridical.comparison.plan import Contender, Plan, for_its_task, prepare
from veridical.comparison.results import References, input_rows, load_result, write_state
from veridical.comparison.statistics import INPUT, SCHEMA, Column, Score, aggregate, arrange, score_form
from veridical.comparison.sweep import run_one
from veridical.core import catalog
from veridical.core.errors import NonFiniteLoss, RecipeError, VeridicalError
from veridical.core.files import atomic_write
from veridical.core.lock import locked
from veridical.core.options import check_number, check_whole
from veridical.losses import Loss, WeightedSum
from veridical.training.data import generator_for
from veridical.training.recipe import Recipe

FILE = "tune.json"
PICTURE = "tune.svg"
RANDOM_TRIALS = 10  # before Optuna's model of good and bad weights begins; the weights as given are the first of them
_DIGITS = 3  # of a searched weight: no score can tell more


@dataclass(frozen=True)
class Searched:
    """One weight of the sum: which term's, between which sizes; its sign is that of the weight given."""

    term: str
    given: float
    low: float
    high: float


@dataclass
class Trial:
    """Weights and what they came to.

    number: from 1. weights: all but the first. means: of each metric, over the images. status: "running", "done",
    "failed".
    """

    number: int
    spec: str
    weights: list[float]
    status: str = "running"
    score: float | None = None
    means: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None

    @property
    def slug(self) -> str:
        return f"trial-{self.number:03d}"


@dataclass(frozen=True)
class Search:
    """A search as it stands. formula: of the score. input: the metrics of the degraded images, of score 1."""

    folder: Path
    spec: str
    span: float
    searched: tuple[Searched, ...]
    formula: str
    note: str
    input: dict[str, float]
    trials: list[Trial]

    @property
    def done(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.score is not None]

    @property
    def best(self) -> Trial:
        return max(self.done, key=lambda trial: trial.score or 0.0)


def tune(
    recipe: Recipe,
    out: Path | str | None = None,
    observer: Observer | None = None,
    *,
    trials: int = 20,
    span: float = 100.0,
) -> Search:
    """Search the weights of the recipe's one loss, a sum. Its first weight stays as it is given; each of the others is
    searched from 1/span to span times the given one, evenly in its logarithm, by Optuna's TPE.

    Args:   out: the folder; one that holds this search is continued, to `trials` trials in all.
    Errors: VeridicalError, before any training, for whatever is wrong. NonFiniteLoss when every trial diverged.
            FolderInUse.
    """
    check_whole("the number of trials", trials, low=1)
    check_number("the range of the weights", span, low=1.1)
    catalog.require("optuna", "tune", "a search of weights")
    observer = observer or Observer()
    if recipe.training.processes > 1:
        raise RecipeError("a search trains on one device; set training.devices = 1 and training.nodes = 1.")
    if recipe.training.seeds > 1:
        raise RecipeError("a search trains each trial once; set training.seeds = 1.")
    if len(recipe.losses) != 1:
        raise RecipeError(
            f"a search takes one loss, a sum such as 'l1 + 0.01*lpips'; got {len(recipe.losses)}: "
            f"{', '.join(recipe.losses)}."
        )
    if len(recipe.models or ()) > 1 or recipe.classical:
        raise RecipeError("a search trains one model; leave out models and classical methods.")
    recipe = for_its_task(recipe)
    (spec,) = recipe.losses.values()
    searched = _searched(spec, span)
    chosen = choose_folder(recipe, out)
    if not isinstance(chosen, Path):
        raise RecipeError(f"a search is kept in a folder of this machine, but --out is {chosen}.")
    with locked(chosen, observer.note):
        return _tune(recipe, chosen, observer, trials=trials, span=span, spec=spec, searched=searched)


def _tune(
    recipe: Recipe,
    folder: Path,
    observer: Observer,
    *,
    trials: int,
    span: float,
    spec: str,
    searched: tuple[Searched, ...],
) -> Search:
    known = _known(folder, span)
    plan = prepare(recipe, folder, observer, leave_out=False, validation=True)
    parts = plan.contenders[0].loss
    inputs = input_rows(plan, observer)
    score, _ = _score(plan, inputs, [])
    search = Search(folder, spec, span, searched, _formula(score.columns), score.note, _means(plan, inputs), known)
    command = f"veridical tune {shlex.quote(str(folder / 'recipe.toml'))} --trials {trials} --range {span:g}"
    plan.contenders.clear()

    numbers = range(1, max(trials, len(search.trials)) + 1)
    observer.begins(folder, [_name(number) for number in numbers], recipe.training.steps)
    for number in numbers:
        if number > len(search.trials):
            weights = _suggested(search, number, recipe.training.seed)
            search.trials.append(Trial(number, _sum(spec, weights), weights))
            _save(search, plan)  # should it be stopped, the same weights are taken up again
        trial = search.trials[number - 1]
        status = _carry_out(plan, trial, parts, search, inputs, observer)
        _save(search, plan)
        write_state(plan, References(list(inputs), {}), command)
        observer.loss_ends(_name(number), status, trial.seconds, trial.error)
        if trial.score is not None:
            observer.scored(trial.spec, trial.score, best=trial is search.best)
    if not search.done:
        raise NonFiniteLoss(f"every trial failed, so there is nothing to choose from. {search.trials[0].error}")
    atomic_write(folder / PICTURE, picture(search).encode())
    return search


def _name(number: int) -> str:
    return f"trial {number}"


# ---- what is searched ----


def _searched(spec: str, span: float) -> tuple[Searched, ...]:
    """Every weight but the first. Errors: RecipeError when there is none, or one that has no size to begin with."""
    first, *others = catalog.parse(spec)
    if not others:
        raise RecipeError(
            f"the loss {spec!r} is not a sum, so it has no weight to search. Try 'l1 + 0.01*{first.name}'."
        )
    found = []
    for term in (first, *others):
        if isinstance(term.weight, catalog.Term) or term.weight == 0:
            raise RecipeError(
                f"the weight of {term.label} in {spec!r} is {term.weight}, but a search begins at a number. For a "
                "first guess, train with 'auto' once: the weight that it finds is printed."
            )
    for term in others:
        assert isinstance(term.weight, float)
        size = abs(term.weight)
        found.append(Searched(term.label, term.weight, _rounded(size / span), _rounded(size * span)))
    return tuple(found)


def _sum(spec: str, weights: Sequence[float]) -> str:
    """The spec with other weights, but for the first.

    >>> _sum("l1 + 0.01*lpips(net=vgg) + -2*ssim", [0.5, -1.0])
    'l1 + 0.5*lpips(net=vgg) + -1*ssim'
    """
    first, *others = catalog.parse(spec)
    changed = [catalog.Term(term.name, weight, term.options) for term, weight in zip(others, weights, strict=True)]
    return " + ".join(map(str, (first, *changed)))


def _weights(spec: str) -> list[float]:
    """All of them: numbers, once `_searched` has passed them."""
    return [term.weight for term in catalog.parse(spec) if isinstance(term.weight, float)]


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _suggested(search: Search, number: int, seed: int) -> list[float]:
    """The weights of the next trial: first those given, then what Optuna makes of the trials before."""
    if number == 1:
        return [each.given for each in search.searched]
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = [f"{place} {each.term}" for place, each in enumerate(search.searched)]
    ranges: dict[str, Any] = {
        name: optuna.distributions.FloatDistribution(each.low, each.high, log=True)
        for name, each in zip(names, search.searched, strict=True)
    }
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=RANDOM_TRIALS, seed=generator_for(seed, "tune", number).initial_seed() % 2**32
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in search.done:
        sizes = {name: abs(weight) for name, weight in zip(names, trial.weights, strict=True)}
        study.add_trial(optuna.trial.create_trial(params=sizes, distributions=ranges, value=trial.score))
    asked = study.ask(ranges).params
    return [
        float(np.copysign(min(max(_rounded(asked[name]), each.low), each.high), each.given))
        for name, each in zip(names, search.searched, strict=True)
    ]


# ---- one trial ----


def _carry_out(plan: Plan, trial: Trial, parts: Loss, search: Search, inputs: Sequence[Row], observer: Observer) -> str:
    """Train and evaluate what is left of a trial, and score it. -> what became of it, as Observer.loss_ends has it."""
    before = [other for other in search.done if other.spec == trial.spec and other.number < trial.number]
    if before:
        trial.status, trial.score, trial.means = before[0].status, before[0].score, before[0].means
        return "kept"
    # What is said of a loss needs no network of its own: the parts of one sum stand for those of every trial.
    described = WeightedSum(list(zip(_weights(trial.spec), parts.parts, strict=True)))
    contender = Contender(trial.spec, trial.slug, trial.spec, described, plan.recipe.training.seed, plan.models[0])
    plan.contenders.append(contender)
    kept = load_result(plan, contender)
    if not kept:
        observer.loss_begins(_name(trial.number))
        run_one(plan, contender, observer)
        if contender.status == "failed" and not (plan.folder / trial.slug / "result.json").is_file():
            raise VeridicalError(str(contender.error))  # for want of memory: the same command tries it again
    trial.status, trial.seconds, trial.error = contender.status, contender.seconds, contender.error
    if contender.status == "done":
        trial.means = _means(plan, contender.rows)
        _, trial.score = _score(plan, inputs, contender.rows)
    return "kept" if kept and trial.status == "done" else trial.status


def _columns(plan: Plan) -> list[Column]:
    return [Column(m.name, m.label, m.higher_is_better, m.unit, m.reference) for m in plan.metrics]


def _means(plan: Plan, rows: Sequence[Row]) -> dict[str, float]:
    """Each metric's mean over the images on which it is finite."""
    found = {}
    for one in plan.metrics:
        values = [float(row["value"]) for row in rows if row["metric"] == one.name]
        if finite := [value for value in values if np.isfinite(value)]:
            found[one.name] = float(np.mean(finite))
    return found


def _score(plan: Plan, inputs: Sequence[Row], rows: Sequence[Row]) -> tuple[Score, float | None]:
    """Which metrics are in the score, and the score of these rows; None when they hold no image to score."""
    name = str(rows[0]["loss"]) if rows else INPUT
    values = arrange(pl.DataFrame([*inputs, *rows], schema=SCHEMA), [name] if rows else [], _columns(plan))
    score = score_form(values.columns)
    if not {INPUT, name} <= set(values.losses):
        return score, None
    used = [values.columns.index(column) for column in score.columns]
    ours, reference = (values.of(row)[:, used].mean(axis=0) for row in (name, INPUT))
    return score, float(aggregate(ours, reference, [column.higher_is_better for column in score.columns]))


def _formula(columns: Sequence[Column]) -> str:
    return " · ".join(
        f"{c.label} / {c.label} of the input" if c.higher_is_better else f"{c.label} of the input / {c.label}"
        for c in columns
    )


# ---- what is kept ----


def _known(folder: Path, span: float) -> list[Trial]:
    """The trials that an earlier call has left. Errors: RecipeError when the folder holds something else."""
    about = read_json(folder / FILE)
    if not about:  # a damaged file is made again: the trials follow from the seed, and what they came to is beside it
        if not (folder / FILE).exists() and (folder / "comparison.json").exists():
            raise RecipeError(f"{folder} holds a comparison, not a search. Name another folder with --out.")
        return []
    if not isinstance(about.get("range"), float | int):
        raise RecipeError(f"{folder / FILE} is not what a search leaves. Name another --out.")
    if about["range"] != span:
        raise RecipeError(
            f"{folder} holds a search over a range of {about['range']:g}, now {span:g}. Name another folder with "
            f"--out, or give --range {about['range']:g} to continue that one."
        )
    known = {each.name for each in fields(Trial)}
    try:
        return [Trial(**{key: value for key, value in each.items() if key in known}) for each in about["trials"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise RecipeError(f"{folder / FILE} is not what a search leaves ({error!r}). Name another --out.") from error


def _save(search: Search, plan: Plan) -> None:
    best = search.best if search.done else None
    about = {
        "version": __version__,
        "loss": search.spec,
        "range": search.span,
        "seed": plan.recipe.training.seed,
        "score": {"formula": search.formula, "note": search.note},
        "photographs": plan.sources.described,
        "searched": [asdict(each) for each in search.searched],
        "input": search.input,
        "best": None if best is None else {"spec": best.spec, "score": best.score, "trial": best.number},
        "trials": [asdict(trial) for trial in search.trials],
    }
    write_json(search.folder / FILE, about)


def picture(search: Search) -> str:
    """Score against each weight, a dot for each trial, as SVG."""
    panels = [
        charts.dots(
            [(abs(trial.weights[k]), trial.score or 0.0, trial.spec) for trial in search.done],
            best=search.done.index(search.best),
            width=360,
            height=300,
        )
        for k in range(len(search.searched))
    ]
    names = [each.term for each in search.searched]
    return charts.environment().get_template("tune.svg").render(panels=list(zip(names, panels, strict=True)))
