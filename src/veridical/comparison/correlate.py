"""Does a metric, or a loss, order images as people do? Its correlation with human scores."""

import csv
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from scipy import optimize, special, stats
from torch import Tensor, nn

from veridical.comparison.evaluate import Measured, build_metrics
from veridical.comparison.run import column_of, read_about, read_rows
from veridical.comparison.score import Pair, by_stem, check_references, score_pairs
from veridical.comparison.statistics import Interval
from veridical.core.errors import DataError, VeridicalError
from veridical.core.files import find_images
from veridical.core.options import check_choice
from veridical.core.untrusted import read_file, short
from veridical.losses import Loss, loss

DRAWS = 1000
LEAST = 4  # fewer points have no correlation worth a number

# The columns of a table of human scores, by the names that published databases give them.
NAMES = {
    "image": ("image", "dist_img", "distorted", "name", "file", "filename", "image_name", "method", "loss"),
    "reference": ("reference", "ref_img", "ref", "reference_image", "ref_name"),
    "score": ("score", "mos", "dmos", "jnd", "human", "mean", "quality"),
}
AMBIGUOUS = ("dmos",)  # LIVE's rises with the damage, KADID-10k's falls
FITS = ("none", "logistic")


@dataclass(frozen=True)
class Human:
    """Human scores.

    names: of images, or of the losses of a run. scores: (n,), higher is better once `sign` multiplies them.
    references: of each image, a name; empty where the table has no such column. column: what it calls the score.
    """

    names: tuple[str, ...]
    scores: np.ndarray
    references: tuple[str, ...]
    column: str
    sign: float


@dataclass(frozen=True)
class Agreement:
    """How far one metric agrees with people; 1 is full agreement, whichever way the metric runs.

    srocc, krocc, plcc: Spearman's, Kendall's (tau-b) and Pearson's correlation, with bootstrap intervals.
    behind: how much lower its srocc is than the best one's, on the same draws; None for the best itself.
    """

    name: str
    srocc: Interval
    krocc: Interval
    plcc: Interval
    behind: Interval | None


@dataclass(frozen=True)
class Correlations:
    """Agreement of each metric, the best first. count: points. groups: what was drawn: references, or points.

    values: rows with the columns name, human and one for each metric. skipped: images without a value, and why.
    """

    agreements: tuple[Agreement, ...]
    count: int
    groups: int
    values: pl.DataFrame
    skipped: tuple[str, ...]


def read_human(path: Path, *, score: str | None = None, lower_is_better: bool | None = None) -> Human:
    """A CSV file with a header: a column of names, one of scores, and at best one of references.

    The columns may be called as in KADID-10k (dist_img, ref_img, dmos), TID, or this library's own scale.csv (method,
    jnd). Several scores of one name are averaged.

    Args:   score: the column, when its name is another. lower_is_better: whether a low score is a good one; None: no.
    Errors: DataError when columns are missing or a score is no number, with the line; and for a column "dmos" without
            `lower_is_better`, since databases use that name both ways.
    """
    try:
        lines = list(csv.reader(io.StringIO(read_file(path).decode("utf-8-sig"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the human scores {path} cannot be read: {error}. Expected a CSV file in UTF-8.") from error
    header = [cell.strip().lower() for cell in lines[0]] if lines else []
    name_at, score_at = _column(header, "image"), _column(header, "score", score)
    reference_at = _column(header, "reference")
    if name_at is None or score_at is None:
        raise DataError(
            f"the first line of {path} is {', '.join(header) or 'empty'}. Expected a header with a column of names "
            f"({', '.join(NAMES['image'])}) and one of scores ({', '.join(NAMES['score'])}, or --score COLUMN)."
        )
    found: dict[str, list[float]] = {}
    references: dict[str, str] = {}
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        try:
            name, value = cells[name_at].strip(), float(cells[score_at])
            reference = cells[reference_at].strip() if reference_at is not None else ""
        except (ValueError, IndexError):
            raise DataError(f"line {number} of {path} has no score: {short(','.join(cells))}.") from None
        if not np.isfinite(value):
            raise DataError(f"line {number} of {path}: the score {value} is not finite.")
        found.setdefault(name, []).append(value)
        references[name] = reference
    column = header[score_at]
    if lower_is_better is None and column in AMBIGUOUS:
        raise DataError(
            f"{path} has a column {column!r}. In LIVE a high one is bad, in KADID-10k it is good: say which with "
            "--lower-is-better or --higher-is-better."
        )
    return Human(
        names=tuple(found),
        scores=np.array([np.mean(values) for values in found.values()]),
        references=tuple(references.values()) if reference_at is not None else (),
        column=column,
        sign=-1.0 if lower_is_better else 1.0,
    )


def _column(header: Sequence[str], kind: str, named: str | None = None) -> int | None:
    for name in NAMES[kind] if named is None else (named.lower(),):
        if name in header:
            return header.index(name)
    return None


class LossValue(nn.Module):
    """A loss as a metric: (prediction, target) -> (N,), lower is better, a random one at its one draw of evaluation."""

    reference = True
    higher_is_better = False

    def __init__(self, made: Loss) -> None:
        super().__init__()
        if made.learns:
            raise VeridicalError(f"the loss {made.label!r} learns as it trains: untrained, its value says nothing.")
        self.loss, self.name = made.eval(), f"loss {made.label}"

    @property
    def min_size(self) -> int:
        return self.loss.min_size

    @torch.no_grad()
    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.loss(prediction, target, reduction="none")


def correlate_images(
    folder: Path,
    references: Path | None,
    human: Human,
    metrics: Sequence[str],
    losses: Sequence[str] = (),
    *,
    device: str = "cpu",
    fit: str = "none",
    draws: int = DRAWS,
    seed: int = 0,
    on_image: Callable[[int, int], None] | None = None,
) -> Correlations:
    """Score the images that people have scored, and correlate.

    Args:   folder: of the images; references: of what they are compared with: by the table's column of references, else
            by the same name. Names are paths inside the folders, with or without suffix. metrics, losses: specs.
            draws, seed: of the bootstrap.
    Errors: DataError when a scored image or its reference is missing; as `score` and `correlate`.
    """
    measures: list[Measured] = [*build_metrics(metrics), *(LossValue(loss(spec)) for spec in losses)]
    check_references(measures, references)
    images = _finder(folder)
    originals = _finder(references) if references is not None else None
    pairs = []
    for k, name in enumerate(human.names):
        reference = human.references[k] if human.references else name
        pairs.append(Pair(name, images(name), originals(reference) if originals else None))
    scored = score_pairs(pairs, measures, device=device, on_image=on_image)
    higher = {one.name: one.higher_is_better for one in measures}
    return correlate(scored.rows, higher, human, skipped=scored.skipped, fit=fit, draws=draws, seed=seed)


def _finder(folder: Path) -> Callable[[str], Path]:
    """name -> file, by its path inside the folder, with or without suffix."""
    files = {path.relative_to(folder).as_posix(): path for path in find_images(folder)}
    stems: dict[str, Path] = {}

    def find(name: str) -> Path:
        nonlocal stems
        if name in files:
            return files[name]
        stems = stems or by_stem(folder)
        if name not in stems:
            raise DataError(f"{folder} has no image {name!r}, which the human scores name.")
        return stems[name]

    return find


def correlate_run(folder: Path, human: Human, *, fit: str = "none", draws: int = DRAWS, seed: int = 0) -> Correlations:
    """The losses of a run, each by its mean over the images, against human scores of them: the scale of a study.

    Errors: DataError when the folder holds no comparison, and as `correlate`.
    """
    about, rows = read_about(folder), read_rows(folder)
    higher = {one.name: one.higher_is_better for one in (column_of(entry, rows) for entry in about["metrics"])}
    rows = rows.filter(pl.col("metric").is_in(list(higher)))
    means = rows.group_by("loss", "metric", maintain_order=True).agg(pl.col("value").mean())
    return correlate(means.rename({"loss": "image"}), higher, human, fit=fit, draws=draws, seed=seed)


def correlate(
    rows: pl.DataFrame,
    higher_is_better: Mapping[str, bool],
    human: Human,
    *,
    skipped: Sequence[str] = (),
    fit: str = "none",
    draws: int = DRAWS,
    seed: int = 0,
) -> Correlations:
    """The correlation of each metric with human scores, and who is behind the best.

    The signs of the metrics are turned so that a positive number is agreement. Intervals: 95 %, percentile bootstrap
    over references where the table names more than one (the versions of one photograph are not independent), else over
    points; the same draws for every metric.

    fit:    "logistic" brings the values to the human scale before Pearson's correlation, fitted once on all points.
    rows:   image, metric, value; points without a finite value for every metric are left out, and said.
    Errors: DataError with fewer than four points left, or when all human scores are equal.
    """
    check_choice("fit", fit, FITS)
    metrics = list(dict.fromkeys(rows["metric"]))
    place = {name: k for k, name in enumerate(human.names)}
    values = np.full((len(metrics), len(human.names)), np.nan)
    for image, metric, value in rows.select("image", "metric", "value").iter_rows():
        if image in place:
            values[metrics.index(metric), place[image]] = value
    good = np.isfinite(values).all(0)
    missing = [name for name, fine in zip(human.names, good, strict=True) if not fine]
    reasons = list(skipped)
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        reasons.append(f"{len(missing)} of {len(good)} have no finite value for some metric: {shown}")
    if good.sum() < LEAST:
        raise DataError(f"{int(good.sum())} points have a human score and a value; at least {LEAST} are needed.")
    people = human.sign * human.scores[good]
    if np.ptp(people) == 0:
        raise DataError("all human scores are equal: there is no order to agree with.")
    turned = values[:, good] * np.where([higher_is_better[name] for name in metrics], 1.0, -1.0)[:, None]
    references = np.array(human.references)[good] if human.references else np.arange(len(people)).astype(str)
    groups = [np.flatnonzero(references == name) for name in dict.fromkeys(references)]
    groups = groups if len(groups) > 1 else [np.array([k]) for k in range(len(people))]
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(groups), size=(draws, len(groups)))
    samples = [np.arange(len(people)), *(np.concatenate([groups[g] for g in draw]) for draw in drawn)]
    found = [_of_metric(each, people, samples, fit) for each in turned]
    # A metric that is the same on every point has no correlation, and comes last.
    order = sorted(range(len(metrics)), key=lambda m: -np.nan_to_num(found[m][0][0], nan=-np.inf))
    best = order[0]
    agreements = []
    for m in order:
        srocc, krocc, plcc = (_interval(kind[0], kind[1:]) for kind in found[m])
        gap = found[best][0] - found[m][0]
        behind = _interval(gap[0], gap[1:]) if m != best else None
        agreements.append(Agreement(metrics[m], srocc, krocc, plcc, behind))
    kept = [name for name, fine in zip(human.names, good, strict=True) if fine]
    columns = {"name": kept, "human": human.scores[good]} | {n: values[m, good] for m, n in enumerate(metrics)}
    return Correlations(tuple(agreements), len(people), len(groups), pl.DataFrame(columns), tuple(reasons))


def _of_metric(
    values: np.ndarray, people: np.ndarray, samples: Sequence[np.ndarray], fit: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """SROCC, KROCC and PLCC, each one number for every sample, of which the first is all points."""
    fitted = logistic(values, people) if fit == "logistic" else values
    srocc = np.array([_pearson(stats.rankdata(values[s]), stats.rankdata(people[s])) for s in samples])
    krocc = np.array([stats.kendalltau(values[s], people[s]).statistic for s in samples])
    plcc = np.array([_pearson(fitted[s], people[s]) for s in samples])
    return srocc, krocc, plcc


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    """NaN where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 0 else float("nan")


def _interval(value: float, drawn: np.ndarray) -> Interval:
    """A draw of one point repeated has no correlation, and is not counted."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(float(value))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def logistic(values: np.ndarray, people: np.ndarray) -> np.ndarray:
    """The values on the human scale: the four-parameter logistic curve that fits best.

    (n,) x 2 -> (n,)
    Errors: DataError when no curve can be found.
    Source: VQEG 2000, Final report on the validation of objective models of video quality assessment, section 4.
    """
    scale = values.std() or 1.0
    x = (values - values.mean()) / scale

    def curve(at: np.ndarray, top: float, bottom: float, middle: float, width: float) -> np.ndarray:
        return bottom + (top - bottom) * special.expit((at - middle) / width)

    start = (people.max(), people.min(), 0.0, 1.0)
    bounds = ((-np.inf, -np.inf, -np.inf, 1e-3), np.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optimize.OptimizeWarning)  # of its covariance, which is not asked for
        try:
            found, _ = optimize.curve_fit(curve, x, people, p0=start, bounds=bounds, maxfev=20_000)
        except RuntimeError as error:
            raise DataError(f"no logistic curve fits these values: {error} Leave out --fit.") from error
    return curve(x, *found)
