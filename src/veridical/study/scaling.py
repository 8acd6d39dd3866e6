"""Pairwise votes -> a scale in JND, with intervals and tests: Thurstone's Case V by maximum likelihood.

    P(i is preferred to j) = Φ((q_i - q_j) / 1.4826)

so that a difference of 1 JND is seen by 75 % of people. The votes of raters who fail a pair with an obvious answer are
left out, as in the study of MDF (Mustafa et al. 2022, section 4.3), which scales by the method of Perez-Ortiz and
Mantiuk ("A practical guide and software for analysing pairwise comparison experiments", arXiv:1712.03686).
Everything works on counts, wins[i, j] = how often i was preferred to j, and on many such matrices at once.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import sparse, stats
from scipy.special import log_ndtr, ndtr

from veridical.comparison.statistics import LEVEL, holm
from veridical.core.errors import BadOption, DataError
from veridical.study.votes import BadRow, Votes

SIGMA = 1.4826
"""Standard deviation, in JND, of the difference of two impressions: Φ(1 / 1.4826) = 0.75."""

PRIOR_JND = 5.0
"""Standard deviation of the weak prior around the mean of the scale. It keeps unanimous pairs finite, and shrinks a
scale of 25 votes a pair by less than one part in a hundred."""

FEWEST_RATERS = 8
"""With fewer there are no quartiles to speak of, and no rater is called an outlier."""

FENCE = 1.5
"""An outlier lies this many interquartile ranges below the first quartile of the raters' agreement."""

_LOG_ROOT_TWO_PI = 0.5 * math.log(2 * math.pi)
_BATCH = 125  # resamples that are fitted together


class Unit(StrEnum):
    """What is drawn with replacement in the bootstrap: what would differ if the study were made again."""

    RATER = "rater"
    IMAGE = "image"
    VOTE = "vote"


@dataclass(frozen=True)
class Settings:
    """How votes become a scale.

    draws:  resamples of the bootstrap, 500 or more.
    seed:   the same seed gives the same intervals.
    prior_jnd: standard deviation of the prior in JND; positive.
    mistakes: how many screening pairs a rater may get wrong before all their votes are left out.
    drop_outliers: leave out raters who agree far less than others with the rest; otherwise they are only named.
    zero:   what is 0 on the scale: "mean", "lowest", or the name of a method.
    Errors: BadOption for an impossible value.
    """

    draws: int = 1000
    seed: int = 0
    prior_jnd: float = PRIOR_JND
    mistakes: int = 0
    drop_outliers: bool = False
    zero: str = "mean"

    def __post_init__(self) -> None:
        if self.draws < 500:
            raise BadOption(f"draws must be 500 or more for a 95 % interval, but got {self.draws}.")
        if not 0 < self.prior_jnd < math.inf:
            raise BadOption(f"prior_jnd must be a positive number of JND, such as 5, but got {self.prior_jnd}.")
        if self.mistakes < 0:
            raise BadOption(f"mistakes must be 0 or more, but got {self.mistakes}.")


@dataclass(frozen=True)
class Placed:
    """One method on the scale. low, high: the 95 % percentile interval. votes: that it took part in."""

    method: str
    jnd: float
    low: float
    high: float
    votes: int


@dataclass(frozen=True)
class Difference:
    """Is one method better than another? A two-sided z-test with the covariance of the bootstrap, Holm-corrected.

    jnd:   q_better - q_worse, not negative. share: the votes that this predicts for the better one.
    votes: on this very pair.
    """

    better: str
    worse: str
    jnd: float
    share: float
    votes: int
    z: float
    p: float
    corrected: float

    @property
    def supported(self) -> bool:
        return self.corrected < LEVEL


@dataclass(frozen=True)
class Rater:
    """One rater.

    votes:      ordinary ones. screening, mistakes: pairs with an obvious answer, and how many were answered wrongly.
    likelihood: mean log-likelihood (natural logarithm) of their votes under the scale of all others' votes; None when
                nobody could judge.
    agreement:  the same as a z-score: minus what the others' scale expects, over its standard deviation.
    outlier:    passed the screening, and agreement lies more than 1.5 interquartile ranges below the first quartile.
    kept:       their votes are in the scale. why: why not.
    """

    name: str
    votes: int
    screening: int
    mistakes: int
    likelihood: float | None
    agreement: float | None
    outlier: bool
    kept: bool
    why: str = ""


@dataclass(frozen=True)
class Scale:
    """A scale of M methods, the best first.

    wins:        (M, M) how often row was preferred to column, in the order of `placed`.
    covariance:  (M, M) of the resampled scales, JND², in the same order.
    differences: all M(M-1)/2 pairs, the better first.
    unit, units: what was resampled, and how many there are.
    misfit:      root mean square of (observed - predicted) share over the pairs, weighted by votes, 0 to 1.
    notes:       sentences on what to know before believing it.
    """

    placed: tuple[Placed, ...]
    wins: np.ndarray
    covariance: np.ndarray
    differences: tuple[Difference, ...]
    raters: tuple[Rater, ...]
    unit: Unit
    units: int
    misfit: float
    bad: tuple[BadRow, ...]
    rows: int
    images: int
    settings: Settings
    notes: tuple[str, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(each.method for each in self.placed)

    @property
    def votes(self) -> int:
        return int(self.wins.sum())


# The model


def share(jnd: np.ndarray | float) -> np.ndarray:
    """The share of people, 0 to 1, who prefer what is `jnd` better.

    >>> [round(float(share(jnd)), 3) for jnd in (0.0, 1.0, 2.4)]
    [0.5, 0.75, 0.947]
    """
    return ndtr(np.asarray(jnd) / SIGMA)


def fit(wins: np.ndarray, *, prior_jnd: float = PRIOR_JND, start: np.ndarray | None = None) -> np.ndarray:
    """The most likely scale under a normal prior, by Newton's method in log space.

    The log-posterior Σ wins_ij log Φ((q_i - q_j) / 1.4826) - Σ q_i² / (2 prior²) is strictly concave: there is one
    maximum, it is finite, and its mean is 0.
    Shapes: wins (..., M, M), not negative, diagonal ignored; start (M,) or (..., M) -> (..., M) in JND
    Source: Thurstone, "A law of comparative judgment", Psychological Review 34, 1927; log Φ by scipy.special.log_ndtr.

    >>> wins = np.array([[0, 75], [25, 0]])
    >>> q = fit(wins, prior_jnd=1e4)
    >>> round(float(q[0] - q[1]), 3)
    1.0
    """
    wins = np.asarray(wins, dtype=np.float64)
    q = np.zeros(wins.shape[:-1]) if start is None else np.broadcast_to(start, wins.shape[:-1]).copy()
    distance, logs, value = _posterior(wins, q, prior_jnd)
    for _ in range(100):
        gradient, precision = _slopes(wins, q, distance, logs, prior_jnd)
        step = np.linalg.solve(precision, gradient[..., None])[..., 0]
        length = np.ones(q.shape[:-1])
        for _ in range(40):  # a full step can overshoot far from the maximum; half of it, and half again, cannot
            new = q + length[..., None] * step
            new_distance, new_logs, new_value = _posterior(wins, new, prior_jnd)
            worse = new_value < value - 1e-12 * (1 + np.abs(value))
            if not worse.any():
                break
            length = np.where(worse, length / 2, length)
        moved = np.abs(new - q).max(initial=0.0)
        q, distance, logs, value = new, new_distance, new_logs, new_value
        if moved < 1e-9:
            break
    return q


def uncertainty(wins: np.ndarray, q: np.ndarray, *, prior_jnd: float = PRIOR_JND) -> np.ndarray:
    """Laplace's covariance of a fitted scale, less its mean: the inverse of the log-posterior's curvature at the top.

    Shapes: wins (..., M, M), q (..., M) -> (..., M, M) in JND²
    """
    wins = np.asarray(wins, dtype=np.float64)
    distance, logs, _ = _posterior(wins, q, prior_jnd)
    # votes say nothing of the mean, whose variance is the prior's
    return np.linalg.inv(_slopes(wins, q, distance, logs, prior_jnd)[1]) - prior_jnd**2 / q.shape[-1]


def _posterior(wins: np.ndarray, q: np.ndarray, prior_jnd: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(q_i - q_j) / SIGMA and its log Φ, both (..., M, M), and the log-posterior (...)."""
    distance = (q[..., :, None] - q[..., None, :]) / SIGMA
    logs = log_ndtr(distance)
    return distance, logs, (wins * logs).sum((-2, -1)) - (q * q).sum(-1) / (2 * prior_jnd**2)


def _slopes(
    wins: np.ndarray, q: np.ndarray, distance: np.ndarray, logs: np.ndarray, prior_jnd: float
) -> tuple[np.ndarray, np.ndarray]:
    """The gradient (..., M) of the log-posterior and its negative Hessian (..., M, M)."""
    # φ/Φ, from logarithms: both underflow for a distance below -38
    mills = np.exp(-0.5 * distance * distance - _LOG_ROOT_TWO_PI - logs)
    pull = wins * mills / SIGMA
    gradient = pull.sum(-1) - pull.sum(-2) - q / prior_jnd**2
    bend = wins * mills * (distance + mills) / SIGMA**2
    bend = bend + np.swapaxes(bend, -1, -2)
    size = q.shape[-1]
    precision = -bend
    precision[..., range(size), range(size)] = bend.sum(-1) - np.diagonal(bend, axis1=-2, axis2=-1) + prior_jnd**-2
    return gradient, precision


# Votes


def count(votes: Votes) -> np.ndarray:
    """(M, M): how often row was preferred to column, screening votes left out."""
    return count_by(votes, np.zeros(len(votes), dtype=np.int64), 1)[0]


def count_by(votes: Votes, group: np.ndarray, groups: int) -> np.ndarray:
    """(groups, M, M): wins in each group. group: (N,) 0 to groups - 1, one for each vote."""
    size = len(votes.methods)
    use = votes.ordinary
    flat = (group[use] * size + votes.winner[use]) * size + votes.loser[use]
    return np.bincount(flat, minlength=groups * size * size).reshape(groups, size, size)


def check_connected(wins: np.ndarray, methods: Sequence[str]) -> None:
    """Errors: DataError that names the groups of methods which no vote joins, for they have no common scale."""
    number, group = sparse.csgraph.connected_components(wins + wins.T > 0, directed=False)
    if number > 1:
        parts = [", ".join(m for m, g in zip(methods, group, strict=True) if g == k) for k in range(number)]
        raise DataError(
            f"the methods fall into {number} groups that were never compared with each other: "
            + "; ".join(f"({part})" for part in parts)
            + ". A common scale needs votes between the groups, or scale each on its own."
        )


def judge_raters(votes: Votes, settings: Settings) -> tuple[Rater, ...]:
    """Who failed the screening, and who agrees far less with the others than raters do.

    Screening: more wrong answers than settings.mistakes to pairs with an obvious answer. MDF's study dropped a task of
    nine or ten pairs for one such mistake.
    Agreement: each rater's votes under the scale of all other raters who passed. Perez-Ortiz and Mantiuk (section 5)
    take the log-likelihood, and how many interquartile ranges it lies below the first quartile: beyond 1.5 a rater is
    suspect. Their raters saw all pairs; where one has 9 votes and another 90 the log-likelihood says mostly that, so
    it is compared here with its own expectation and standard deviation under the same scale.
    """
    named = votes.keep(votes.rater >= 0)
    wins = count_by(named, named.rater, len(votes.raters))
    asked = np.bincount(votes.rater[~votes.ordinary], minlength=len(votes.raters))
    wrong = votes.screening != votes.result
    mistakes = np.bincount(votes.rater[~votes.ordinary & wrong], minlength=len(votes.raters))
    passed = mistakes <= settings.mistakes
    likelihood, agreement = _agreement(wins, count(votes), passed, settings.prior_jnd)
    outlier = _below_the_fence(np.where(passed, agreement, np.nan))
    found = []
    for k, name in enumerate(votes.raters):
        why = ""
        if not passed[k]:
            why = f"{mistakes[k]} of {asked[k]} screening pairs wrong"
        elif outlier[k] and settings.drop_outliers:
            why = "agrees far less with the others than raters do"
        said = [None if math.isnan(values[k]) else float(values[k]) for values in (likelihood, agreement)]
        number = int(wins[k].sum())
        found.append(
            Rater(name, number, int(asked[k]), int(mistakes[k]), said[0], said[1], bool(outlier[k]), not why, why)
        )
    return tuple(found)


def _agreement(
    wins: np.ndarray, everything: np.ndarray, passed: np.ndarray, prior_jnd: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean log-likelihood and z-score of each rater's wins (R, M, M) under the scale of the others; NaN without votes
    or without others."""
    total = everything - wins[~passed].sum(0)
    others = total - wins * passed[:, None, None]
    q = fit(others, prior_jnd=prior_jnd, start=fit(total, prior_jnd=prior_jnd))
    log_p = log_ndtr((q[:, :, None] - q[:, None, :]) / SIGMA)
    p = np.exp(log_p)
    pairs = wins + np.swapaxes(wins, 1, 2)
    log_q = np.swapaxes(log_p, 1, 2)
    found = (wins * log_p).sum((1, 2))
    expected = (pairs * p * log_p).sum((1, 2))
    # seen from either side a pair has the same variance, so that the sum over (i, j) is twice that of the votes
    variance = (pairs * p * np.swapaxes(p, 1, 2) * (log_p - log_q) ** 2).sum((1, 2)) / 2
    votes = wins.sum((1, 2))
    judged = (votes > 0) & (others.sum((1, 2)) > 0)
    mean = np.divide(found, votes, out=np.full(len(wins), np.nan), where=judged)
    spread = np.sqrt(variance)
    z = np.divide(found - expected, spread, out=np.full(len(wins), np.nan), where=judged & (spread > 1e-9))
    return mean, z


def _below_the_fence(agreement: np.ndarray) -> np.ndarray:
    known = agreement[np.isfinite(agreement)]
    if len(known) < FEWEST_RATERS:
        return np.zeros(len(agreement), dtype=bool)
    low, high = np.percentile(known, [25, 75])
    return agreement < low - FENCE * (high - low)  # NaN is not below


# The scale


def scale(
    votes: Votes, settings: Settings | None = None, *, on_draw: Callable[[int, int], None] | None = None
) -> Scale:
    """Screen the raters, scale the methods, resample for intervals, test every difference.

    Resampled are raters where every vote names one, otherwise images, and votes where there is one image alone: votes
    of one rater, or on one image, are not independent of each other.
    Args:   on_draw: called with (resamples done, all).
    Errors: DataError when no vote is left, or the methods fall into groups that were never compared; BadOption for a
            zero that is no method.
    """
    settings = settings or Settings()
    raters = judge_raters(votes, settings) if votes.raters else ()
    notes = _about_rows(votes)
    kept = np.array([each.kept for each in raters] + [True])  # the last place, -1, is of votes without a rater
    used = votes.keep(kept[votes.rater] & votes.ordinary)
    if len(used) == 0:
        raise DataError(
            f"no vote is left to scale: all {len(raters)} raters failed the screening. Allow more mistakes, or check "
            "that the column screening names the side that is obviously better."
        )
    wins = count(used)
    check_connected(wins, votes.methods)
    q = fit(wins, prior_jnd=settings.prior_jnd)
    zero = _zero(settings.zero, votes.methods, q)
    unit, number, resamples = _resampler(used, np.random.default_rng(settings.seed))
    drawn, apart = [], 0
    for done in range(0, settings.draws, _BATCH):
        several = resamples(min(_BATCH, settings.draws - done))
        apart += sum(
            sparse.csgraph.connected_components(each + each.T > 0, directed=False, return_labels=False) > 1
            for each in several
        )
        drawn.append(fit(several, prior_jnd=settings.prior_jnd, start=q))
        if on_draw is not None:
            on_draw(done + len(several), settings.draws)
    samples = np.concatenate(drawn)
    covariance = np.cov(samples, rowvar=False)
    placed_samples = samples - samples @ zero[:, None]
    low, high = np.percentile(placed_samples, [2.5, 97.5], axis=0)
    jnd = q - q @ zero
    order = np.argsort(-q, kind="stable")
    pairs = wins + wins.T
    if apart:
        notes.append(
            f"In {apart} of {settings.draws} resamples the methods fell into groups that were not compared: the "
            "intervals lean on the prior. More votes between distant methods would help."
        )
    if number < 10:
        notes.append(f"Only {number} {unit}s to resample: intervals and tests are rough. Prefer 10 or more.")
    if votes.raters and unit is not Unit.RATER:
        why = "Some votes name no rater" if (used.rater < 0).any() else "All votes are of one rater"
        notes.append(f"{why}, so {unit}s were resampled: the intervals do not hold for other people.")
    return Scale(
        placed=tuple(
            Placed(votes.methods[k], float(jnd[k]), float(low[k]), float(high[k]), int(pairs[k].sum())) for k in order
        ),
        wins=wins[np.ix_(order, order)],
        covariance=covariance[np.ix_(order, order)],
        differences=differences(
            [votes.methods[k] for k in order], q[order], covariance[np.ix_(order, order)], pairs[np.ix_(order, order)]
        ),
        raters=raters,
        unit=unit,
        units=number,
        misfit=_misfit(wins, q),
        bad=votes.bad,
        rows=votes.rows,
        images=len(np.unique(used.image)),
        settings=settings,
        notes=tuple(notes),
    )


def differences(
    methods: Sequence[str], q: np.ndarray, covariance: np.ndarray, pairs: np.ndarray
) -> tuple[Difference, ...]:
    """Every pair's two-sided z-test, z = (q_i - q_j) / √(C_ii + C_jj - 2 C_ij), Holm-corrected over all pairs.

    Intervals that overlap do not mean that a difference is chance: the two errors of a pair are correlated.
    Args:   methods: M names, the best first. q: (M,) falling. covariance: (M, M). pairs: (M, M) votes.
    """
    found = []
    for i, j in itertools.combinations(range(len(methods)), 2):
        spread = math.sqrt(max(covariance[i, i] + covariance[j, j] - 2 * covariance[i, j], 0.0))
        apart = float(q[i] - q[j])
        z = apart / spread if spread > 0 else math.copysign(math.inf, apart) if apart else 0.0
        found.append((i, j, apart, z, float(2 * stats.norm.sf(abs(z)))))
    corrected = holm([p for *_, p in found])
    return tuple(
        Difference(methods[i], methods[j], apart, float(share(apart)), int(pairs[i, j]), z, p, float(after or 0.0))
        for (i, j, apart, z, p), after in zip(found, corrected, strict=True)
    )


def _resampler(used: Votes, random: np.random.Generator) -> tuple[Unit, int, Callable[[int], np.ndarray]]:
    """What is resampled, of how many, and a function: how many draws -> their counts (draws, M, M)."""
    size = len(used.methods)
    groups = [(Unit.RATER, used.rater)] if (used.rater >= 0).all() else []
    groups = [(unit, group) for unit, group in [*groups, (Unit.IMAGE, used.image)] if np.ptp(group) > 0]
    if not groups:
        number, counts = len(used), count(used).ravel()
        often = counts / number
        return Unit.VOTE, number, lambda draws: random.multinomial(number, often, draws).reshape(-1, size, size)
    unit, group = groups[0]
    names, place = np.unique(group, return_inverse=True)
    number = len(names)
    tensor = count_by(used, place, number).reshape(number, -1).astype(np.float64)
    often = np.full(number, 1 / number)
    return unit, number, lambda draws: (random.multinomial(number, often, draws) @ tensor).reshape(-1, size, size)


def _zero(zero: str, methods: Sequence[str], q: np.ndarray) -> np.ndarray:
    """(M,) weights whose product with a scale is its zero."""
    if zero in methods:
        return np.eye(len(q))[list(methods).index(zero)]
    if zero == "lowest":
        return np.eye(len(q))[int(q.argmin())]
    if zero == "mean":
        return np.full(len(q), 1 / len(q))
    raise BadOption(f"zero must be 'mean', 'lowest' or one of {', '.join(methods)}, but got {zero!r}.")


def _misfit(wins: np.ndarray, q: np.ndarray) -> float:
    pairs = wins + wins.T
    seen = pairs > 0
    off = wins[seen] / pairs[seen] - share(q[:, None] - q[None, :])[seen]
    return float(np.sqrt(np.average(off**2, weights=pairs[seen])))


def _about_rows(votes: Votes) -> list[str]:
    notes = []
    if votes.bad:
        notes.append(f"{len(votes.bad):,} of {votes.rows:,} rows could not be used; bad_rows.csv lists them.")
    themselves = [row.why for row in votes.bad if row.why.endswith("is compared with itself")]
    for why in sorted(set(themselves)):
        number = themselves.count(why)
        name = why.removeprefix("method ").removesuffix(" is compared with itself")
        if number >= 5 and name in votes.methods:  # it may have been left out since
            notes.append(
                f"{name} is compared with itself in {number} rows: have two methods been given one number? Its place "
                "would then be a mixture of both."
            )
    return notes
