"""Which loss is best, by how much, and could it be chance: pure functions on the per-image values of a run.

The aggregate score is equation 7 of the Projected Distribution Loss paper (arXiv:2012.09289):

    score = PSNR / PSNR_max · MS-SSIM / MS-SSIM_max · LPIPS_min / LPIPS

with the extremes taken over the losses of the table. The degraded input is scored too, but sets no extreme.

What a test speaks for. With one training seed it is over images: these trained models, on other images. With several
seeds each loss has a value for every seed and image; both are taken as drawn at random, and the test speaks for other
trainings and other images:

    value[s, i] = mean + seed[s] + image[i] + rest[s, i]

Its variances come from the mean squares of the two-way analysis of variance with one value per cell, and the degrees of
freedom of the mean's standard error from Satterthwaite, "An approximate distribution of estimates of variance
components", Biometrics Bulletin 2 (1946) 110-114. Source of the model and its estimates: Searle, Casella and McCulloch,
"Variance Components" (Wiley, 1992), chapter 4.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

INPUT = "input"  # the row of the degraded image itself
START = "init"  # the row of the model that training starts from
LEVEL = 0.05  # a corrected p below this is called significant
# The columns of the rows of a run, on disk too. seed: of the training; runs from before there were several have none.
SCHEMA = {"image": pl.String, "loss": pl.String, "seed": pl.Int64, "metric": pl.String, "value": pl.Float64}

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
class VarianceSplit:
    """How much of what varies comes with the training seed, with the image, and with neither (their interaction, which
    one value per cell cannot tell from noise): standard deviations, in the unit of the metric.

    clipped: "seed" or "image" where the estimate of the variance was negative, as it may be for a small one: 0 then.
    """

    seed: float
    image: float
    rest: float
    clipped: tuple[str, ...] = ()

    @property
    def shares(self) -> tuple[float, float, float]:
        """Of seed, image and rest in the variance of one value: each in [0, 1], together 1; zeros when nothing varies.

        >>> VarianceSplit(1.0, 3.0, 0.0).shares
        (0.1, 0.9, 0.0)
        """
        seed, image, rest = (each**2 for each in (self.seed, self.image, self.rest))
        total = seed + image + rest
        return (seed / total, image / total, rest / total) if total else (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class PairedTest:
    """Is `loss` worse than the best one? Of the differences on the same image, and with the same training seed.

    difference: the best one's advantage (positive means the best one is better), with its 95 % interval.
    p, corrected: one-sided, as is and Holm-corrected. With one seed the paired t-test over images; with several the
                  test of seeds and images, see `Crossed`. None when the test cannot be made; `reason` then says why.
    wilcoxon, wilcoxon_corrected: of the signed-rank test over images, see `wilcoxon_p`; of the mean over the seeds, so
                  that it speaks for these trainings alone. None as above.
    effect:       Cohen's d_z, the mean difference over the standard deviation of the differences (Lakens, Frontiers in
                  Psychology 4 (2013) 863): by how many of these the best one is ahead on an image of its own. With
                  several seeds, on an image and a training. None when the differences do not vary.
    split:        of the differences' variance; None with one seed.
    """

    loss: str
    difference: Interval
    p: float | None
    corrected: float | None
    reason: str | None = None
    wilcoxon: float | None = None
    wilcoxon_corrected: float | None = None
    effect: float | None = None
    split: VarianceSplit | None = None

    @property
    def significant(self) -> bool:
        return self.corrected is not None and self.corrected < LEVEL


@dataclass(frozen=True)
class WinMatrix:
    """Who beats whom, of L losses.

    share:       (L, L): the share of images on which the row is better than the column, by the mean over the training
                 seeds; on some they may be equal. NaN on the diagonal.
    p_corrected: (L, L): one-sided p that the row's mean is better, by the test of `PairedTest`, Holm-corrected over all
                 ordered pairs. NaN where there is no test.
    """

    losses: tuple[str, ...]
    share: np.ndarray
    p_corrected: np.ndarray


@dataclass(frozen=True)
class Values:
    """The values of a run as arrays without gaps.

    losses:  row names; INPUT first when the degraded input was evaluated.
    cube:    (losses, images, metrics) float64, finite; the mean over the training seeds.
    left_out: sentences on what had to be dropped to make it so.
    seeds:   of training.
    by_seed: (losses, seeds, images, metrics); what no training changes is repeated.
    untrained: the rows that no training seed of the run decides: the same for every seed.
    """

    losses: tuple[str, ...]
    images: tuple[str, ...]
    columns: tuple[Column, ...]
    cube: np.ndarray
    left_out: tuple[str, ...]
    seeds: tuple[int, ...]
    by_seed: np.ndarray
    untrained: tuple[str, ...] = (INPUT, START)

    @property
    def trained(self) -> tuple[str, ...]:
        """The losses without the input row."""
        return tuple(loss for loss in self.losses if loss != INPUT)

    def of(self, loss: str) -> np.ndarray:
        """(images, metrics) of one loss, the mean over the training seeds."""
        return self.cube[self.losses.index(loss)]

    def seeds_of(self, loss: str) -> np.ndarray:
        """(seeds, images, metrics) of one loss; one seed for what no training changes."""
        found = self.by_seed[self.losses.index(loss)]
        return found[:1] if loss in self.untrained else found


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

    means:     loss -> mean over images with its 95 % t-interval (the input row too); with several training seeds over
               seeds and images, see `Crossed`.
    best:      the trained loss with the best mean.
    tests:     the best loss against every other.
    tied:      losses not significantly worse than the best (untestable ones among them).
    worst:     loss -> its value on the worst 5 % of images (5th percentile, 95th when lower is better), of every
               training.
    wins:      of the trained losses against each other.
    splits:    loss -> where its variance comes from; empty with one training seed.
    """

    column: Column
    means: dict[str, Interval]
    best: str
    tests: tuple[PairedTest, ...]
    tied: tuple[str, ...]
    worst: dict[str, Interval]
    wins: WinMatrix
    splits: dict[str, VarianceSplit]


@dataclass(frozen=True)
class Analysis:
    """Everything a report says in numbers. tests, wins and splits: of the aggregate score per image (and seed)."""

    values: Values
    score: Score
    scores: dict[str, float]
    ranking: tuple[str, ...]
    tests: tuple[PairedTest, ...]
    wins: WinMatrix
    splits: dict[str, VarianceSplit]
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


def with_seeds(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with a column of training seeds: 0 where there was none."""
    if "seed" not in rows.columns:
        return rows.with_columns(pl.lit(0, pl.Int64).alias("seed"))
    return rows.with_columns(pl.col("seed").fill_null(0))


def arrange(
    rows: pl.DataFrame,
    losses: Sequence[str],
    columns: Sequence[Column],
    *,
    untrained: Sequence[str] = (INPUT, START),
) -> Values:
    """The rows (image, loss, seed, metric, value) as arrays without gaps. Rows without a seed are of one training; the
    names in `untrained` are of none.

    Dropped, each with a sentence in `left_out`: metrics without a single finite value, training seeds with which not
    every loss was trained, losses without one image on which every metric is finite, then images on which any
    remaining loss lacks a finite value: a paired comparison needs the same images and the same seeds for all.
    """
    rows = with_seeds(rows)
    images = list(dict.fromkeys(rows["image"].to_list()))
    present = set(rows["loss"].to_list())
    names = [name for name in (INPUT, *losses) if name in present]
    seeds, left_out = _common_seeds(rows, [name for name in names if name not in untrained])
    by_seed = np.full((len(names), len(seeds), len(images), len(columns)), np.nan)
    place = {name: i for i, name in enumerate(names)}
    turn = {seed: s for s, seed in enumerate(seeds)}
    at = {image: j for j, image in enumerate(images)}
    of = {column.name: k for k, column in enumerate(columns)}
    for image, loss, seed, metric, value in rows.select(list(SCHEMA)).iter_rows():
        if loss in place and metric in of and value is not None:
            if loss in untrained:
                by_seed[place[loss], :, at[image], of[metric]] = value
            elif seed in turn:
                by_seed[place[loss], turn[seed], at[image], of[metric]] = value

    finite = np.isfinite(by_seed)
    keep = finite.any(axis=(0, 1, 2))
    left_out += [f"{columns[k].label}: no value could be computed." for k in np.flatnonzero(~keep).tolist()]
    by_seed, finite = by_seed[..., keep], finite[..., keep]
    columns = [columns[k] for k in np.flatnonzero(keep).tolist()]

    whole = finite.all(axis=(1, 3))  # (losses, images)
    if columns:
        for i in np.flatnonzero(~whole.any(axis=1)):
            left_out.append(f"{names[i]}: no image has a finite value for every metric.")
        kept = np.flatnonzero(whole.any(axis=1))
        by_seed, whole, names = by_seed[kept], whole[kept], [names[i] for i in kept]
    good = whole.all(axis=0)
    if not good.all():
        bad = [images[j] for j in np.flatnonzero(~good)]
        shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        left_out.append(
            f"{len(bad)} of {len(images)} images left out of every mean ({shown}): "
            "a value is missing or not finite for at least one row of the table."
        )
    by_seed = by_seed[:, :, good]
    return Values(
        losses=tuple(names),
        images=tuple(images[j] for j in np.flatnonzero(good)),
        columns=tuple(columns),
        cube=by_seed.mean(axis=1),
        left_out=tuple(left_out),
        seeds=tuple(seeds),
        by_seed=by_seed,
        untrained=tuple(untrained),
    )


def _common_seeds(rows: pl.DataFrame, trained: Sequence[str]) -> tuple[list[int], list[str]]:
    """The seeds with which every loss was trained, and a sentence for each other one. Without a common one, all."""
    found = {loss: set(rows.filter(pl.col("loss") == loss)["seed"].to_list()) for loss in trained}
    every = sorted(set().union(*found.values())) or [0]
    common = [seed for seed in every if all(seed in seeds for seeds in found.values())]
    if not common:
        return every, []
    said = []
    for seed in every:
        if seed not in common:
            without = ", ".join(loss for loss, seeds in found.items() if seed not in seeds)
            said.append(f"training seed {seed} left out of every mean: there are no values of {without} with it.")
    return common, said


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
    half = _stats().t.ppf(0.5 + confidence / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(mean, mean - float(half), mean + float(half))


def paired_p(better: np.ndarray, worse: np.ndarray) -> float | None:
    """One-sided p of the paired t-test that mean(better - worse) > 0; None when it cannot be tested.

    It cannot with fewer than two images, nor when the difference is the same on every image.
    """
    return _superior(np.asarray(better)[None], np.asarray(worse)[None])


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


def wilcoxon_p(difference: np.ndarray) -> float | None:
    """One-sided p of Wilcoxon's signed-rank test that (n,) differences lie above 0; None when all are 0.

    It asks less than a t-test: no normal distribution, and no image that counts for more as its difference is large. It
    asks that differences lie evenly around their median. Exact up to 50 images; beyond, or with equal differences
    among more than 13, by the normal approximation with SciPy's corrections for ties and continuity. Where there is no
    difference at all, the ranks are split evenly between both sides.
    Source: Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7 (2006) 1-30, section 3.1.3.

    >>> wilcoxon_p(np.array([0.1, 0.2, 0.4, 0.8, 1.6]))  # one of the 2^5 ways to choose signs
    0.03125
    """
    difference = np.asarray(difference, dtype=np.float64)
    if not difference.any():
        return None
    return float(_stats().wilcoxon(difference, zero_method="zsplit", alternative="greater").pvalue)


@dataclass(frozen=True)
class Crossed:
    """Mean and variances of values (S seeds, I images) when seeds and images are both drawn at random.

    mean:    over all.
    se:      its standard error: se^2 = (MS_seed + MS_image - MS_rest) / (S I), that is
             seed^2 / S + image^2 / I + rest^2 / (S I), of the mean squares of the two-way analysis of variance.
    degrees: of freedom of se, by Satterthwaite: the square of that sum over the sum of the squared terms, each over
             its own degrees of freedom S - 1, I - 1 and (S - 1) (I - 1).
    split:   the standard deviations. A negative estimate of a variance is 0, and its mean square is left out of se and
             degrees: without a seed effect se is that of a t-test over the images' means over the seeds.

    Simulated where there is no difference, with 6 to 100 images and any mixture of the three variances, the one-sided
    test at 5 % finds one in 1.5 to 6 % of the cases with 3 or 5 seeds, and in 1 to 8 % with 2, which are too few to
    tell how much seeds vary. A t-test over all values as one sample finds one in up to 45 %. The 95 % intervals hold
    the mean in 93 to 96 % with 3 seeds and 12 images.

    Source: see the head of this file.
    """

    mean: float
    se: float
    degrees: float
    split: VarianceSplit

    def interval(self, *, confidence: float = 0.95) -> Interval:
        half = float(_stats().t.ppf(0.5 + confidence / 2, self.degrees)) * self.se
        return Interval(self.mean, self.mean - half, self.mean + half)

    @property
    def p(self) -> float:
        """One-sided, that the mean is above 0."""
        return float(_stats().t.sf(self.mean / self.se, self.degrees))


def crossed(values: np.ndarray) -> Crossed:
    """The two-way split of (S, I) values; at least two seeds and two images."""
    values = np.asarray(values, dtype=np.float64)
    seeds, images = values.shape
    squares = _mean_squares(values)
    ms_seed, ms_image, ms_rest = (float(each) for each in squares)
    se, degrees = _standard_error(*squares, seeds, images)
    return Crossed(
        mean=float(values.mean()),
        se=float(se),
        degrees=float(degrees),
        split=VarianceSplit(
            seed=float(np.sqrt(max(ms_seed - ms_rest, 0.0) / images)),
            image=float(np.sqrt(max(ms_image - ms_rest, 0.0) / seeds)),
            rest=float(np.sqrt(ms_rest)),
            clipped=tuple(name for name, square in (("seed", ms_seed), ("image", ms_image)) if square < ms_rest),
        ),
    )


def _mean_squares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of seeds, images and rest, of (..., S, I) values: each (...)."""
    seeds, images = values.shape[-2:]
    mean = values.mean(axis=(-2, -1), keepdims=True)
    of_seed, of_image = values.mean(axis=-1, keepdims=True), values.mean(axis=-2, keepdims=True)
    rest = values - of_seed - of_image + mean
    return (
        images * ((of_seed - mean) ** 2).sum(axis=(-2, -1)) / (seeds - 1),
        seeds * ((of_image - mean) ** 2).sum(axis=(-2, -1)) / (images - 1),
        (rest**2).sum(axis=(-2, -1)) / ((seeds - 1) * (images - 1)),
    )


def _standard_error(
    ms_seed: np.ndarray, ms_image: np.ndarray, ms_rest: np.ndarray, seeds: int, images: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of the mean, and its degrees of freedom; see `Crossed`."""
    free_seed, free_image, free_rest = seeds - 1, images - 1, (seeds - 1) * (images - 1)
    of_seed, of_image = ms_seed >= ms_rest, ms_image >= ms_rest
    # MS_rest is in each mean square, so it counts too often by one less than there are of them.
    rest = (1 - of_seed.astype(int) - of_image) * ms_rest
    total = of_seed * ms_seed + of_image * ms_image + rest
    spread = of_seed * ms_seed**2 / free_seed + of_image * ms_image**2 / free_image + rest**2 / free_rest
    degrees = np.where(spread > 0, total**2 / np.where(spread > 0, spread, 1.0), float(free_rest))
    return np.sqrt(total / (seeds * images)), degrees


def mean_interval(values: np.ndarray) -> Interval:
    """The mean of (S, I) values with its 95 % interval: over images with one seed, else over seeds and images."""
    if len(values) == 1:
        return t_interval(values[0])
    if values.shape[1] == 1:  # nothing says how images differ
        return Interval(float(values.mean()))
    return crossed(values).interval()


def _superior(better: np.ndarray, worse: np.ndarray) -> float | None:
    """One-sided p that mean(better - worse) > 0, of (S, I) values; None when it cannot be tested."""
    return _superior_to_each(better, np.asarray(worse)[None])[0]


def _superior_to_each(better: np.ndarray, others: np.ndarray) -> list[float | None]:
    """The same of (S, I) values over each of (L, S, I): all at once, as a grid of hundreds of losses has tens of
    thousands of pairs."""
    better, others = np.asarray(better, dtype=np.float64), np.asarray(others, dtype=np.float64)
    seeds, images = better.shape
    if images < 2:
        return [None] * len(others)
    difference = better - others
    scale = np.maximum(np.abs(better).max(), np.abs(others).max(axis=(1, 2)))
    varies = difference.std(axis=(1, 2), ddof=1) > 1e-12 * scale  # else it is the same everywhere, but for rounding
    found: list[float | None] = [None] * len(others)
    difference = difference[varies]
    if seeds == 1:
        se, degrees = difference[:, 0].std(axis=1, ddof=1) / np.sqrt(images), np.asarray(images - 1)
    else:
        se, degrees = _standard_error(*_mean_squares(difference), seeds, images)
    p_values = _stats().t.sf(difference.mean(axis=(1, 2)) / se, degrees)
    for place, p in zip(np.flatnonzero(varies), p_values, strict=True):
        found[place] = float(p)
    return found


def against_the_rest(values: dict[str, np.ndarray], best: str) -> tuple[PairedTest, ...]:
    """`best` against every other. values: loss -> (S, I), higher is better, same seeds and images in the same order;
    (1, I) for what no training changes."""
    others = [loss for loss in values if loss != best]
    pairs = {loss: _alike(values[best], values[loss]) for loss in others}
    p_values = [_superior(*pairs[loss]) for loss in others]
    ranked = [
        None if p is None else wilcoxon_p(np.subtract(*pairs[loss]).mean(axis=0))
        for loss, p in zip(others, p_values, strict=True)
    ]
    tests = []
    for loss, p, corrected, rank, rank_corrected in zip(
        others, p_values, holm(p_values), ranked, holm(ranked), strict=True
    ):
        ours, theirs = pairs[loss]
        difference = ours - theirs
        reason = effect = None
        split = crossed(difference).split if min(difference.shape) > 1 else None
        if p is None:
            reason = "only one image" if difference.shape[1] < 2 else "the difference is the same on every image"
        elif split is None:
            effect = float(difference.mean() / difference.std(ddof=1))
        else:
            effect = float(difference.mean() / np.sqrt(split.seed**2 + split.image**2 + split.rest**2))
        tests.append(
            PairedTest(
                loss, mean_interval(difference), p, corrected, reason, rank, rank_corrected, effect=effect, split=split
            )
        )
    return tuple(tests)


def _alike(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with as many seeds: the values that no training changes are repeated."""
    shape = (max(len(one), len(other)), one.shape[1])
    return np.broadcast_to(one, shape), np.broadcast_to(other, shape)


def win_matrix(values: dict[str, np.ndarray]) -> WinMatrix:
    """Every loss against every other. values: as for `against_the_rest`."""
    losses = tuple(values)
    count = len(losses)
    share, corrected = np.full((2, count, count), np.nan)
    p_values: list[float | None] = [None] * count**2  # of the row over the column; no test on the diagonal
    means = np.stack([values[loss].mean(axis=0) for loss in losses])  # (L, I)
    many = max(len(values[loss]) for loss in losses)
    everyone = np.stack([np.broadcast_to(values[loss], (many, means.shape[1])) for loss in losses])  # (L, S, I)
    once = np.array([len(values[loss]) == 1 for loss in losses])
    for i in range(count):
        share[i] = (means[i] > means).mean(axis=1)
        # Two that no training changes are compared over images alone.
        for others, seeds in ((~once, many), (once, 1 if once[i] else many)):
            chosen = [j for j in np.flatnonzero(others).tolist() if j != i]
            for j, p in zip(chosen, _superior_to_each(everyone[i, :seeds], everyone[chosen, :seeds]), strict=True):
                p_values[i * count + j] = p
    np.fill_diagonal(share, np.nan)
    corrected[:] = np.array([np.nan if p is None else p for p in holm(p_values)]).reshape(count, count)
    return WinMatrix(losses, share, corrected)


def variance_splits(values: dict[str, np.ndarray]) -> dict[str, VarianceSplit]:
    """Of each loss that was trained with several seeds and has several images. values: loss -> (S, I)."""
    return {loss: crossed(each).split for loss, each in values.items() if min(each.shape) > 1}


def percentile_interval(
    values: np.ndarray, percentile: float, *, draws: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """A percentile of (I,) or (S, I) values with its percentile-bootstrap interval; one image has no interval.

    With several seeds the percentile is of all values, and seeds and images are drawn again independently of each
    other (the pigeonhole bootstrap: Owen, Annals of Applied Statistics 1 (2007) 386-411). So few seeds vary too little
    when drawn again: the interval is short by up to a factor of sqrt((S - 1) / S) where seeds decide.

    Args: percentile: 0 to 100. draws: bootstrap resamples. seed: the same seed gives the same interval.
    """
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    seeds, images = values.shape
    value = float(np.percentile(values, percentile))
    if images < 2:
        return Interval(value)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(images, size=(draws, images))
    trained = rng.integers(seeds, size=(draws, seeds))
    resampled = np.concatenate(
        [
            np.percentile(values[trained[part, :, None], drawn[part, None, :]], percentile, axis=(1, 2))
            for part in _parts(draws, values.size)
        ]
    )
    tail = 50 * (1 - confidence)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def _parts(draws: int, size: int) -> Iterator[slice]:
    """So many resamples of so many values at a time that memory stays below 100 MB."""
    at_once = max(1, 4_000_000 // size)
    return (slice(start, start + at_once) for start in range(0, draws, at_once))


def summarise(values: Values, k: int) -> MetricSummary:
    """The k-th metric: means, the best loss, who is not significantly worse, and the worst 5 % of images."""
    column = values.columns[k]
    sign = 1.0 if column.higher_is_better else -1.0
    per_loss = {loss: values.seeds_of(loss)[..., k] for loss in values.losses}
    trained = {loss: sign * per_loss[loss] for loss in values.trained}
    best = max(trained, key=lambda loss: sign * values.of(loss)[:, k].mean())
    tests = against_the_rest(trained, best)
    return MetricSummary(
        column=column,
        means={loss: mean_interval(v) for loss, v in per_loss.items()},
        best=best,
        tests=tests,
        tied=tuple(t.loss for t in tests if not t.significant),
        worst={loss: percentile_interval(v, 5 if column.higher_is_better else 95) for loss, v in per_loss.items()},
        wins=win_matrix(trained),
        splits=variance_splits(trained),
    )


def analyse(values: Values) -> Analysis:
    """Scores, winner and tests of a run.

    The winner has the highest score of the mean values. The test compares per-image scores (each image's values over
    the same extremes; with several training seeds, of each training) of the winner with those of every other loss.
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
    per_image = {loss: aggregate(values.seeds_of(loss)[..., used], best, higher) for loss in ranking}
    return Analysis(
        values=values,
        score=score,
        scores=scores,
        ranking=ranking,
        tests=against_the_rest(per_image, ranking[0]),
        wins=win_matrix(per_image),
        splits=variance_splits(per_image),
        metrics=tuple(summarise(values, k) for k in range(len(values.columns))),
    )


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _was(words: Sequence[str]) -> str:
    return "was" if len(words) == 1 else "were"


def _stats() -> Any:
    """scipy.stats, which takes a second or two to import: a process that only trains need not wait for it."""
    from scipy import stats

    return stats
