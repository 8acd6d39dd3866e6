"""Which loss is best, by how much, and could it be chance: pure functions on the per-image values of a run.

The aggregate score is equation 7 of the Projected Distribution Loss paper (arXiv:2012.09289):

    score = PSNR / PSNR_max · MS-SSIM / MS-SSIM_max · LPIPS_min / LPIPS

with the extremes taken over the losses of the table. The degraded input is scored too, but sets no extreme.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from scipy import stats

INPUT = "input"  # the row of the degraded image itself
LEVEL = 0.05  # a corrected p below this is called significant
# The columns of the rows of a run, on disk too.
SCHEMA = {"image": pl.String, "loss": pl.String, "metric": pl.String, "value": pl.Float64}

_SMALLEST = 1e-6  # floor of a divisor: a perfect LPIPS of 0 must not divide by zero


@dataclass(frozen=True)
class Column:
    """One metric of the table: its name, how to print it, and which way is better."""

    name: str
    label: str
    higher_is_better: bool
    unit: str = ""
    reference: bool = True

    @property
    def base(self) -> str:
        """The metric without its options.

        >>> Column("psnr(channel=y)", "PSNR-Y", True).base
        'psnr'
        """
        return self.name.partition("(")[0].strip()


@dataclass(frozen=True)
class Interval:
    """A mean or percentile with its confidence interval; low and high are None when it cannot be had."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class PairedTest:
    """Is `loss` worse than the best one, image by image? One-sided paired t-test, Holm-corrected.

    difference: the best one's advantage (positive means the best one is better), with its 95 % t-interval.
    p, corrected: None when the test cannot be made; `reason` then says why.
    """

    loss: str
    difference: Interval
    p: float | None
    corrected: float | None
    reason: str | None = None

    @property
    def significant(self) -> bool:
        return self.corrected is not None and self.corrected < LEVEL


@dataclass(frozen=True)
class Values:
    """The per-image values of a run as one array without gaps.

    losses: row names; INPUT first when the degraded input was evaluated.
    cube:   (losses, images, metrics) float64, finite.
    left_out: sentences on what had to be dropped to make it so.
    """

    losses: tuple[str, ...]
    images: tuple[str, ...]
    columns: tuple[Column, ...]
    cube: np.ndarray
    left_out: tuple[str, ...] = ()

    @property
    def trained(self) -> tuple[str, ...]:
        """The losses without the input row."""
        return tuple(loss for loss in self.losses if loss != INPUT)

    def of(self, loss: str) -> np.ndarray:
        """(images, metrics) of one loss."""
        return self.cube[self.losses.index(loss)]


@dataclass(frozen=True)
class Score:
    """Which metrics make up the aggregate score, and whether that is equation 7 in full."""

    columns: tuple[Column, ...]
    complete: bool
    note: str

    @property
    def formula(self) -> str:
        """
        >>> score_form([Column("psnr", "PSNR", True), Column("lpips", "LPIPS", False)]).formula
        'PSNR / PSNR max · LPIPS min / LPIPS'
        """
        return " · ".join(
            f"{c.label} / {c.label} max" if c.higher_is_better else f"{c.label} min / {c.label}" for c in self.columns
        )


@dataclass(frozen=True)
class MetricSummary:
    """One metric over all losses.

    means:     loss -> mean over images with its 95 % t-interval (the input row too).
    best:      the trained loss with the best mean.
    tests:     the best loss against every other.
    tied:      losses not significantly worse than the best (untestable ones among them).
    worst:     loss -> its value on the worst 5 % of images (5th percentile, 95th when lower is better).
    """

    column: Column
    means: dict[str, Interval]
    best: str
    tests: tuple[PairedTest, ...]
    tied: tuple[str, ...]
    worst: dict[str, Interval]


@dataclass(frozen=True)
class Analysis:
    """Everything a report says in numbers."""

    values: Values
    score: Score
    scores: dict[str, float]
    ranking: tuple[str, ...]
    tests: tuple[PairedTest, ...]
    metrics: tuple[MetricSummary, ...] = field(default=())

    @property
    def winner(self) -> str:
        return self.ranking[0]

    @property
    def runner_up(self) -> str | None:
        return self.ranking[1] if len(self.ranking) > 1 else None

    @property
    def margin(self) -> float | None:
        """The winner's score minus the runner-up's; None when there is no other loss."""
        return self.scores[self.winner] - self.scores[self.ranking[1]] if len(self.ranking) > 1 else None

    @property
    def tied(self) -> tuple[str, ...]:
        """Losses over which the winner's lead was tested and is not significant."""
        return tuple(t.loss for t in self.tests if t.corrected is not None and not t.significant)

    @property
    def untested(self) -> tuple[PairedTest, ...]:
        return tuple(t for t in self.tests if t.corrected is None)


def arrange(rows: pl.DataFrame, losses: Sequence[str], columns: Sequence[Column]) -> Values:
    """The rows (image, loss, metric, value) as one array without gaps.

    Dropped, each with a sentence in `left_out`: metrics without a single finite value, losses without one
    image on which every metric is finite, then images on which any remaining loss lacks a finite value: a
    paired comparison needs the same images for all.
    """
    images = list(dict.fromkeys(rows["image"].to_list()))
    present = set(rows["loss"].to_list())
    names = [name for name in (INPUT, *losses) if name in present]
    cube = np.full((len(names), len(images), len(columns)), np.nan)
    place = {name: i for i, name in enumerate(names)}
    at = {image: j for j, image in enumerate(images)}
    of = {column.name: k for k, column in enumerate(columns)}
    for image, loss, metric, value in rows.select(list(SCHEMA)).iter_rows():
        if loss in place and metric in of and value is not None:
            cube[place[loss], at[image], of[metric]] = value

    left_out = []
    finite = np.isfinite(cube)
    keep = finite.any(axis=(0, 1))
    left_out += [f"{columns[k].label}: no value could be computed." for k in np.flatnonzero(~keep).tolist()]
    cube, finite, columns = cube[..., keep], finite[..., keep], [columns[k] for k in np.flatnonzero(keep).tolist()]

    whole = finite.all(axis=2)  # (losses, images)
    if columns:
        for i in np.flatnonzero(~whole.any(axis=1)):
            left_out.append(f"{names[i]}: no image has a finite value for every metric.")
        kept = np.flatnonzero(whole.any(axis=1))
        cube, whole, names = cube[kept], whole[kept], [names[i] for i in kept]
    good = whole.all(axis=0)
    if not good.all():
        bad = [images[j] for j in np.flatnonzero(~good)]
        shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        left_out.append(
            f"{len(bad)} of {len(images)} images left out of every mean ({shown}): "
            "a value is missing or not finite for at least one row of the table."
        )
    return Values(
        losses=tuple(names),
        images=tuple(images[j] for j in np.flatnonzero(good)),
        columns=tuple(columns),
        cube=cube[:, good],
        left_out=tuple(left_out),
    )


def score_form(columns: Sequence[Column]) -> Score:
    """Equation 7 with those of its metrics that the table has.

    SSIM stands in for a missing MS-SSIM. With none of the three the score is the table's first metric alone.
    """
    first: dict[str, Column] = {}
    for column in columns:
        first.setdefault(column.base, column)
    structure = first.get("ms-ssim") or first.get("ssim")
    used = tuple(c for c in (first.get("psnr"), structure, first.get("lpips")) if c is not None)
    complete = len(used) == 3 and "ms-ssim" in first
    if complete:
        note = "Equation 7 of the PDL paper in full."
    elif not used:
        used = (columns[0],)
        note = f"None of PSNR, MS-SSIM and LPIPS was measured, so the score is {used[0].label} alone."
    else:
        missing = [
            label for name, label in (("psnr", "PSNR"), ("ms-ssim", "MS-SSIM"), ("lpips", "LPIPS")) if name not in first
        ]
        note = f"Equation 7 of the PDL paper without {_and(missing)}, which {_was(missing)} not measured"
        note += "; SSIM stands in for MS-SSIM." if structure and structure.base == "ssim" else "."
    return Score(used, complete, note)


def aggregate(values: np.ndarray, best: np.ndarray, higher_is_better: Sequence[bool]) -> np.ndarray:
    """Product over the last axis of value / best (higher is better) or best / value (lower is better).

    Shapes: values (..., K), best (K,) -> (...)
    Range:  1 when every value is the best one; a negative value counts as 0.
    Source: equation 7 of arXiv:2012.09289.

    >>> row = np.array([29.54, 0.953, 0.208])  # Table 6 of the paper, "input"
    >>> round(float(aggregate(row, np.array([31.77, 0.974, 0.103]), [True, True, False])), 2)
    0.45
    """
    values = np.asarray(values, dtype=np.float64)
    best = np.asarray(best, dtype=np.float64)
    rising = np.maximum(values, 0) / np.maximum(best, _SMALLEST)
    falling = np.maximum(best, _SMALLEST) / np.maximum(values, _SMALLEST)
    return np.where(np.asarray(higher_is_better), rising, falling).prod(axis=-1)


def t_interval(values: np.ndarray, *, confidence: float = 0.95) -> Interval:
    """The mean of (n,) values with its two-sided t-interval; one value has no interval."""
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean)
    half = stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(mean, mean - float(half), mean + float(half))


def paired_p(better: np.ndarray, worse: np.ndarray) -> float | None:
    """One-sided p of the paired t-test that mean(better - worse) > 0; None when it cannot be tested.

    It cannot with fewer than two images, nor when the difference is the same on every image.
    """
    difference = np.asarray(better, dtype=np.float64) - np.asarray(worse, dtype=np.float64)
    scale = max(float(np.abs(better).max()), float(np.abs(worse).max()))
    if len(difference) < 2 or difference.std(ddof=1) <= 1e-12 * scale:
        return None
    t = difference.mean() / (difference.std(ddof=1) / np.sqrt(len(difference)))
    return float(stats.t.sf(t, len(difference) - 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction. A None (no test was made) stays None and is not counted.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    made = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(made):
        highest = max(highest, min(1.0, p * (len(made) - rank)))
        corrected[i] = highest
    return corrected


def against_the_rest(values: dict[str, np.ndarray], best: str) -> tuple[PairedTest, ...]:
    """`best` against every other. values: loss -> (n,), higher is better, same images in the same order."""
    others = [loss for loss in values if loss != best]
    p_values = [paired_p(values[best], values[loss]) for loss in others]
    tests = []
    for loss, p, corrected in zip(others, p_values, holm(p_values), strict=True):
        reason = None
        if p is None:
            one = len(values[best]) < 2
            reason = "only one image" if one else "the difference is the same on every image"
        tests.append(PairedTest(loss, t_interval(values[best] - values[loss]), p, corrected, reason))
    return tuple(tests)


def percentile_interval(
    values: np.ndarray, percentile: float, *, draws: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """A percentile of (n,) values with its percentile-bootstrap interval; one value has no interval.

    Args: percentile: 0 to 100. draws: bootstrap resamples. seed: the same seed gives the same interval.
    """
    values = np.asarray(values, dtype=np.float64)
    value = float(np.percentile(values, percentile))
    if len(values) < 2:
        return Interval(value)
    drawn = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    resampled = np.percentile(values[drawn], percentile, axis=1)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def summarise(values: Values, k: int) -> MetricSummary:
    """The k-th metric: means, the best loss, who is not significantly worse, and the worst 5 % of images."""
    column = values.columns[k]
    sign = 1.0 if column.higher_is_better else -1.0
    per_loss = {loss: values.of(loss)[:, k] for loss in values.losses}
    trained = {loss: sign * per_loss[loss] for loss in values.trained}
    best = max(trained, key=lambda loss: trained[loss].mean())
    tests = against_the_rest(trained, best)
    return MetricSummary(
        column=column,
        means={loss: t_interval(v) for loss, v in per_loss.items()},
        best=best,
        tests=tests,
        tied=tuple(t.loss for t in tests if not t.significant),
        worst={loss: percentile_interval(v, 5 if column.higher_is_better else 95) for loss, v in per_loss.items()},
    )


def analyse(values: Values) -> Analysis:
    """Scores, winner and tests of a run.

    The winner has the highest score of the mean values. The test compares per-image scores (each image's
    values over the same extremes) of the winner with those of every other loss.
    values: at least one trained loss, one image and one metric.
    """
    score = score_form(values.columns)
    used = [values.columns.index(c) for c in score.columns]
    higher = [c.higher_is_better for c in score.columns]
    means = {loss: values.of(loss)[:, used].mean(axis=0) for loss in values.losses}
    trained = np.stack([means[loss] for loss in values.trained])
    best = np.where(higher, trained.max(axis=0), trained.min(axis=0))
    scores = {loss: float(aggregate(mean, best, higher)) for loss, mean in means.items()}
    ranking = tuple(sorted(values.trained, key=lambda loss: -scores[loss]))
    per_image = {loss: aggregate(values.of(loss)[:, used], best, higher) for loss in ranking}
    return Analysis(
        values=values,
        score=score,
        scores=scores,
        ranking=ranking,
        tests=against_the_rest(per_image, ranking[0]),
        metrics=tuple(summarise(values, k) for k in range(len(values.columns))),
    )


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _was(words: Sequence[str]) -> str:
    return "was" if len(words) == 1 else "were"
