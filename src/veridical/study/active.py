"""Which pair to ask next: the one whose answer is expected to say most about the scale.

A full design asks every pair equally often, also those of which everybody knows the answer by now. After one round of
it, active selection asks where the answer is open and helps the whole scale. Two measures of what an answer is worth:

- variance: by how much it is expected to lower the variance of the scale, summed over the methods (A-optimal design).
  It saves votes where methods lie far apart, and costs few where they lie close.
- information: the mutual information between answer and scale (Ye and Doermann, "Active sampling for subjective image
  quality assessment", CVPR 2014; Mikhailiuk et al., "Active sampling for pairwise comparisons" (ASAP),
  arXiv:2004.05691). It finds the order sooner, and the distances later.

Both look at Laplace's posterior of the Thurstone model of `scaling.py`; ASAP's comes from message passing. A pair is
drawn by the fourth power of its worth. To take the worthiest each time, as those papers do, turns away from a pair that
chance has driven apart, and so stretches the scale where methods lie close; it also asks all raters who are there at
once the same. What is saved, and where nothing is, `veridical study simulate` measures.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import stats
from scipy.special import entr, log_ndtr, ndtr

from veridical.core.errors import BadOption
from veridical.study.scaling import SIGMA, fit, share, uncertainty

PRIOR_JND = 1.0
"""Standard deviation of the prior for choosing pairs: how far apart methods usually are. The scale itself has a weaker
one; with it a few votes would steer the choice too much."""

POWER = 4.0
"""A pair is drawn in proportion to its worth to this power: 0 is a random design, infinity takes the worthiest."""

_WIDTH = math.sqrt(math.pi * math.log(2) / 2)  # of the bell that stands for the entropy of Φ(x), in units of x
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


class Design(StrEnum):
    """How pairs are chosen."""

    FULL = "full"  # all pairs equally often: each round asks every pair once, in random order
    VARIANCE = "variance"
    INFORMATION = "information"


def expected_gain(
    wins: np.ndarray, design: Design = Design.VARIANCE, *, q: np.ndarray | None = None, prior_jnd: float = PRIOR_JND
) -> np.ndarray:
    """What the next answer to each pair is expected to be worth.

    With d = q_i - q_j, normal with mean m and variance v in the posterior of covariance C:
    variance:    the fall of trace(C), w |C a|² / (1 + w v), where a = e_i - e_j and w = E[φ² / (Φ (1 - Φ)) / σ²] is the
                 Fisher information of an answer, at d / σ, expected by Gauss-Hermite quadrature of nine nodes. JND².
    information: h(Φ(m / √(σ² + v))) - E[h(Φ(d / σ))], h being the binary entropy, in bits, 0 to 1. The second term is
                 within 0.01 bits by h(Φ(x)) ≈ exp(-x² / (π ln 2)), whose mean has a closed form (Houlsby et al. 2011,
                 arXiv:1112.5745, section 4).
    Shapes: wins (..., M, M): how often row was preferred to column; q (..., M): their scale, where it is known already
            -> (..., M, M), symmetric, 0 on the diagonal
    """
    wins = np.asarray(wins, dtype=np.float64)
    q = fit(wins, prior_jnd=prior_jnd) if q is None else q
    covariance = uncertainty(wins, q, prior_jnd=prior_jnd)
    mean = (q[..., :, None] - q[..., None, :]) / SIGMA
    variance = np.maximum(_of_differences(covariance), 0) / SIGMA**2
    if design is Design.INFORMATION:
        p = ndtr(mean / np.sqrt(1 + variance))
        wide = variance + _WIDTH**2
        gain = (entr(p) + entr(1 - p)) / math.log(2) - _WIDTH / np.sqrt(wide) * np.exp(-(mean**2) / (2 * wide))
    else:
        at = mean[..., None] + np.sqrt(variance)[..., None] * _NODES
        # φ² / (Φ(x) Φ(-x)) from logarithms, for Φ may underflow
        worth = np.exp(-(at**2) - math.log(2 * math.pi) - log_ndtr(at) - log_ndtr(-at)) @ _WEIGHTS / SIGMA**2
        gain = worth * _of_differences(covariance @ covariance) / (1 + worth * variance * SIGMA**2)
    return np.where(np.eye(q.shape[-1], dtype=bool), 0.0, gain)


def _of_differences(covariance: np.ndarray) -> np.ndarray:
    """(..., M, M): aᵀ C a for a = e_i - e_j."""
    own = np.diagonal(covariance, axis1=-2, axis2=-1)
    return own[..., :, None] + own[..., None, :] - 2 * covariance


def next_pair(
    wins: np.ndarray,
    *,
    allowed: np.ndarray | None = None,
    rng: np.random.Generator,
    design: Design = Design.VARIANCE,
) -> tuple[int, int]:
    """The pair to ask next: one that nobody was asked, else one drawn by what its answer is worth. Takes a millisecond.

    When several people answer at once, count a vote that is on its way as half a win for either side.
    Args:   wins: (M, M), how often row was preferred to column so far; not negative.
            allowed: (M, M) bool, the pairs that may be asked (either order); all when left out.
            rng: draws the pair. design: what an answer is worth; not FULL.
    Returns: (i, j) with i < j. Which one stands left is the caller's to draw.
    Errors: BadOption for fewer than two methods, counts that are no square of finite numbers, or nothing allowed.
    """
    wins = np.asarray(wins, dtype=np.float64)
    if design is Design.FULL:
        raise BadOption("a full design needs no votes to go by; expected the design variance or information.")
    if wins.ndim != 2 or wins.shape[0] != wins.shape[1] or len(wins) < 2:
        raise BadOption(f"wins must be (M, M) for two or more methods, but got the shape {wins.shape}.")
    if not (np.isfinite(wins) & (wins >= 0)).all():
        raise BadOption("wins must be counts: finite and not negative.")
    may = np.triu(np.ones(wins.shape, dtype=bool), 1)
    if allowed is not None:
        allowed = np.asarray(allowed, dtype=bool)
        if allowed.shape != wins.shape:
            raise BadOption(f"allowed must have the shape of wins, {wins.shape}, but got {allowed.shape}.")
        may &= allowed | allowed.T
    if not may.any():
        raise BadOption("no pair is allowed: there is none to ask.")
    unasked = may & (wins + wins.T == 0)
    worth = unasked.astype(np.float64) if unasked.any() else np.where(may, expected_gain(wins, design), 0.0)
    i, j = _draw(worth[None], rng)
    return int(i[0]), int(j[0])


def _draw(worth: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """From each of (S, M, M) a pair with i < j, in proportion to its worth to the power of POWER: (S,), (S,)."""
    first, second = np.triu_indices(worth.shape[-1], 1)
    flat = worth[:, first, second]
    with np.errstate(divide="ignore"):
        logs = POWER * np.log(np.maximum(flat, 0))
    chosen = (logs + random.gumbel(size=flat.shape)).argmax(1)  # Gumbel's way to draw by logarithms
    return first[chosen], second[chosen]


# What it saves


@dataclass(frozen=True)
class Course:
    """How one design fares as votes come in: means over the repeats at K checkpoints, each (K,).

    votes:   asked so far.
    rmse:    root mean square error of the scale in JND; scale and truth have mean 0.
    order:   Spearman's rank correlation with the truth, -1 to 1.
    stretch: slope of the scale over the truth: 1 is right, above it distances come out too long.
    """

    design: Design
    votes: np.ndarray
    rmse: np.ndarray
    order: np.ndarray
    stretch: np.ndarray


@dataclass(frozen=True)
class Saving:
    """What a design needs to be as good as a full one with per_pair votes on each pair.

    measure: "rmse" or "order". level: what the full design reaches. full, needed: votes; needed is None when the level
    is not reached within the simulated votes.
    """

    design: Design
    measure: str
    per_pair: int
    level: float
    full: int
    needed: float | None

    @property
    def saved(self) -> float | None:
        """The share of the votes that is saved, up to 1; negative when more are needed."""
        return None if self.needed is None else 1 - self.needed / self.full


def normal_truths(methods: int, spread_jnd: float, repeats: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Made-up scales, normal with this standard deviation, and the probabilities that Thurstone's model gives.

    Returns: preferred (repeats, M, M), truth (repeats, M) in JND.
    """
    truth = np.random.default_rng(seed).normal(0, spread_jnd, (repeats, methods))
    return share(truth[:, :, None] - truth[:, None, :]), truth


def replayed_truth(wins: np.ndarray, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Real votes to be drawn from: each pair's observed share, which no model made, and the scale of all votes.

    Args:   wins: (M, M). A pair without votes gets what the scale predicts.
    Returns: preferred (repeats, M, M), truth (repeats, M) in JND.
    """
    q = fit(wins)
    pairs = wins + wins.T
    preferred = np.where(pairs > 0, wins / np.maximum(pairs, 1), share(q[:, None] - q[None, :]))
    return np.broadcast_to(preferred, (repeats, *wins.shape)), np.broadcast_to(q, (repeats, len(q)))


def simulate(
    preferred: np.ndarray,
    truth: np.ndarray,
    design: Design,
    *,
    per_pair: int,
    seed: int = 0,
    on_vote: Callable[[int, int], None] | None = None,
) -> Course:
    """Ask pairs by a design, draw each answer, and see how the scale of `scaling.fit` nears the truth.

    All repeats go on together. There is a checkpoint each time that as many votes are in as half the pairs.
    Shapes: preferred (S, M, M): the probability that row is preferred to column; truth (S, M) in JND.
    Args:   per_pair: ends after as many votes as a full design needs for this many on each pair.
            on_vote: called with (votes so far, all).
    """
    repeats, size = truth.shape
    random = np.random.default_rng(seed)
    first, second = np.triu_indices(size, 1)
    pairs = len(first)
    total = per_pair * pairs
    wins = np.zeros((repeats, size, size))
    every, q = np.arange(repeats), np.zeros((repeats, size))
    truth = truth - truth.mean(1, keepdims=True)
    course: list[tuple[int, float, float, float]] = []
    for vote in range(total):
        if design is Design.FULL or vote < pairs:  # every design begins with a round of all pairs
            if vote % pairs == 0:
                turn = random.permuted(np.broadcast_to(np.arange(pairs), (repeats, pairs)), axis=1)
            i, j = first[turn[:, vote % pairs]], second[turn[:, vote % pairs]]
        else:
            q = fit(wins, prior_jnd=PRIOR_JND, start=q)
            i, j = _draw(expected_gain(wins, design, q=q), random)
        yes = random.random(repeats) < preferred[every, i, j]
        wins[every, np.where(yes, i, j), np.where(yes, j, i)] += 1
        if (vote + 1) * 2 // pairs > vote * 2 // pairs:
            course.append((vote + 1, *_compare(fit(wins), truth)))
        if on_vote is not None:
            on_vote(vote + 1, total)
    return Course(design, *(np.array(column) for column in zip(*course, strict=True)))


def _compare(q: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """rmse, order and stretch of (S, M) scales, means over S."""
    rmse = np.sqrt(((q - truth) ** 2).mean(1)).mean()
    ranks = [stats.rankdata(each, axis=1) - (q.shape[1] + 1) / 2 for each in (q, truth)]
    size = np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))
    order = (ranks[0] * ranks[1]).sum(1) / np.where(size > 0, size, 1)  # methods that are all tied have no order: 0
    stretch = (q * truth).sum() / (truth * truth).sum()
    return float(rmse), float(order.mean()), float(stretch)


def savings(full: Course, other: Course, per_pair: int, *, pairs: int) -> tuple[Saving, Saving]:
    """What `other` needs to be as good as the full design with per_pair votes on each pair: by rmse, and by order.

    From the first checkpoint after which it is as good and stays so, on a straight line from the one before.
    """
    found = []
    for measure, sign in (("rmse", -1), ("order", 1)):
        level = float(np.interp(per_pair * pairs, full.votes, getattr(full, measure)))
        ahead = sign * (getattr(other, measure) - level)
        behind = np.flatnonzero(ahead < 0)
        k = int(behind[-1]) + 1 if len(behind) else 0
        needed = None
        if k < len(ahead):
            needed = float(other.votes[k])
            if k > 0:
                needed -= ahead[k] / (ahead[k] - ahead[k - 1]) * float(other.votes[k] - other.votes[k - 1])
        found.append(Saving(other.design, measure, per_pair, level, per_pair * pairs, needed))
    return found[0], found[1]
