"""How far a run agrees with a paper: python -m experiments.agreement RUN TABLE

RUN is any folder that `veridical compare` has written, TABLE a table of papers.toml. Printed as Markdown, for each
metric that both have: how many pairs of rows are in the paper's order, how many of them are more than chance, in its
order or against it, and Spearman's correlation of the means; then each of the paper's claims with the lead that it
rests on.

Intervals are 95 %. That of a lead is of the differences on the same image, by the t-distribution; with several
trainings it is over trainings and images, as everywhere in veridical. That of a correlation is a percentile bootstrap
over images, of the means over the trainings: drawing images again adds noise to an order, so that a high correlation
may lie near the upper end of its interval. Each interval stands by itself: of twenty, one is expected to miss.
"""

import argparse
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments.places import bounds, number
from veridical.comparison.run import Run, read_run
from veridical.comparison.statistics import INPUT, Column, Interval, Values, against_the_rest
from veridical.comparison.wording import decimals, over
from veridical.core.errors import DataError

PAPERS = Path(__file__).parent / "papers.toml"
DRAWS = 2000
ALL = "all"


class Verdict(StrEnum):
    """What the intervals say of a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "open"


@dataclass(frozen=True)
class Claim:
    """pairs: (better, worse), each the first name of a row. by: a metric."""

    says: str
    pairs: tuple[tuple[str, str], ...]
    by: str


@dataclass(frozen=True)
class PaperTable:
    """labels: what the paper calls its rows. names: what each may be called in a run. values: (rows, columns), as
    printed. worst: whether the paper speaks of the worst images too."""

    source: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    values: np.ndarray
    claims: tuple[Claim, ...]
    worst: bool


@dataclass(frozen=True)
class Order:
    """Of the rows that paper and run share, by one metric.

    same, pairs: in the paper's order, of those that differ there. supported, against: pairs whose difference here has
    an interval without 0, in the paper's order and against it. spearman: of the paper's column and our means.
    """

    column: Column
    same: int
    pairs: int
    supported: int
    against: int
    spearman: Interval


@dataclass(frozen=True)
class Judged:
    """A claim beside a run. pair, lead: the pair that decides and by how much its better one leads (positive: as
    claimed). counts: of the pairs that the run has: that hold, are open, do not hold."""

    claim: Claim
    verdict: Verdict
    column: Column
    pair: tuple[str, str]
    lead: Interval
    counts: tuple[int, int, int]


@dataclass(frozen=True)
class Agreement:
    """lacking: rows of the paper that the run has not. unjudged: claims about rows or metrics that it has not."""

    table: PaperTable
    rows: int
    orders: tuple[Order, ...]
    claims: tuple[Judged, ...]
    lacking: tuple[str, ...]
    unjudged: tuple[str, ...]


def read_papers(path: Path = PAPERS) -> dict[str, PaperTable]:
    """The tables by name. Errors: DataError when a row lacks numbers, or a claim names a row that is not there."""
    with path.open("rb") as file:
        found = tomllib.load(file)
    return {name: _table(name, about) for name, about in found.items()}


def _table(name: str, about: Mapping[str, Any]) -> PaperTable:
    columns, rows = tuple(about["columns"]), about["rows"]
    for row in rows:
        if len(row) != 2 + len(columns):
            raise DataError(f"{name}, row {row[0]!r}: expected {len(columns)} numbers, got {len(row) - 2}.")
    labels, names = tuple(row[0] for row in rows), tuple(tuple(row[1]) for row in rows)
    first = [each[0] for each in names if each and each[0] != INPUT]
    claims = []
    for claim in about.get("claims", ()):
        pairs = _pairs(claim["better"], claim["worse"], first)
        unknown = {each for pair in pairs for each in pair} - set(first)
        if unknown or claim["by"] not in columns:
            raise DataError(
                f"{name}, claim {claim['says']!r}: there is no {', '.join(sorted(unknown)) or claim['by']}. "
                f"Expected the first names of rows ({', '.join(first)}) and a metric of {', '.join(columns)}."
            )
        claims.append(Claim(claim["says"], pairs, claim["by"]))
    values = np.array([row[2:] for row in rows], dtype=np.float64)
    return PaperTable(str(about["source"]), columns, labels, names, values, tuple(claims), bool(about.get("worst")))


def _pairs(better: str | list[str], worse: str | list[str], every: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Two lists are taken pair by pair; one name against a list or "all" is paired with each."""
    if isinstance(better, list) and isinstance(worse, list):
        return tuple(zip(better, worse, strict=True))
    ahead, behind = ([each] if isinstance(each, str) else each for each in (better, worse))
    ahead = [each for each in every if each not in behind] if better == ALL else ahead
    behind = [each for each in every if each not in ahead] if worse == ALL else behind
    return tuple((one, other) for one in ahead for other in behind)


def agree(run: Run, table: PaperTable, *, draws: int = DRAWS, seed: int = 0) -> Agreement:
    """A run beside a paper's table.

    Errors: DataError when they share no two rows, or no metric.
    """
    values = run.analysis.values
    called = {INPUT: {INPUT}} | {each.name: {each.name, each.spec} for each in run.entries}
    place = {}  # of the paper's row -> what the run calls it
    for k, names in enumerate(table.names):
        found = [name for name in values.losses if called.get(name, {name}) & set(names)]
        found.sort(key=lambda name: name not in names)  # by name before by spec: "init" has the spec of its own loss
        if found:
            place[k] = found[0]
    ours = {table.names[k][0]: name for k, name in place.items()}
    # The degraded input is no competitor.
    ranked = [k for k, name in place.items() if name != INPUT]
    columns = {c: next((each for each in values.columns if each.base == c), None) for c in table.columns}
    shared = {c: column for c, column in columns.items() if column is not None}
    if len(ranked) < 2 or not shared:
        raise DataError(
            f"{run.folder} and the table ({table.source}) share {len(ranked)} rows and {len(shared)} metrics; at least "
            f"two and one are needed. The run has {', '.join(values.trained)}; the table {', '.join(table.labels)}."
        )
    orders = []
    for name, column in shared.items():
        theirs = table.values[ranked, table.columns.index(name)]
        orders.append(_order(values, column, [place[k] for k in ranked], theirs, draws, seed))
    claims, unjudged = [], []
    for claim in table.claims:
        pairs = [(one, other) for one, other in claim.pairs if one in ours and other in ours]
        column = columns[claim.by]
        if column is None or not pairs:
            unjudged.append(claim.says)
        else:
            claims.append(_judge(values, column, claim, [(ours[one], ours[other]) for one, other in pairs]))
    lacking = [label for k, label in enumerate(table.labels) if table.names[k] and k not in place]
    return Agreement(table, len(ranked), tuple(orders), tuple(claims), tuple(lacking), tuple(unjudged))


def _lead(values: Values, column: Column, better: str, worse: str) -> Interval:
    """By how much the one is better than the other, on the same image and with the same seed."""
    k, sign = values.columns.index(column), 1.0 if column.higher_is_better else -1.0
    pair = {name: sign * values.seeds_of(name)[..., k] for name in (better, worse)}
    return against_the_rest(pair, better)[0].difference


def _says(lead: Interval) -> Verdict:
    if lead.low is None or lead.high is None or lead.low <= 0 <= lead.high:
        return Verdict.OPEN
    return Verdict.HOLDS if lead.low > 0 else Verdict.FAILS


def _order(values: Values, column: Column, names: Sequence[str], theirs: np.ndarray, draws: int, seed: int) -> Order:
    k = values.columns.index(column)
    per_image = np.stack([values.of(name)[:, k] for name in names])  # (L, I)
    means = per_image.mean(axis=1)
    same = supported = against = pairs = 0
    for i, j in combinations(range(len(names)), 2):
        if theirs[i] == theirs[j]:
            continue
        pairs += 1
        same += bool((theirs[i] - theirs[j]) * (means[i] - means[j]) > 0)
        ahead, behind = (i, j) if (theirs[i] > theirs[j]) == column.higher_is_better else (j, i)
        said = _says(_lead(values, column, names[ahead], names[behind]))
        supported += said is Verdict.HOLDS
        against += said is Verdict.FAILS
    images = per_image.shape[1]
    weights = np.random.default_rng(seed).multinomial(images, [1 / images] * images, size=draws) / images
    drawn = spearman(weights @ per_image.T, theirs)
    drawn = drawn[np.isfinite(drawn)]
    value = float(spearman(means[None], theirs)[0])
    if images < 2 or not len(drawn):
        return Order(column, same, pairs, supported, against, Interval(value))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Order(column, same, pairs, supported, against, Interval(value, float(low), float(high)))


def spearman(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row of (D, L) with (L,) -> (D,); equal values share their ranks, and a row of
    equal values has none (NaN).

    >>> spearman(np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]), np.array([10.0, 20.0, 30.0]))
    array([ 1., -1.])
    """
    a, b = (stats.rankdata(each, axis=-1) for each in (ours, theirs))
    a, b = a - a.mean(axis=-1, keepdims=True), b - b.mean()
    size = np.sqrt((a**2).sum(axis=-1) * (b**2).sum())
    return np.divide(a @ b, size, out=np.full(len(a), np.nan), where=size > 0)


def _judge(values: Values, column: Column, claim: Claim, pairs: Sequence[tuple[str, str]]) -> Judged:
    """Holds when each pair does, does not hold when one does not."""
    leads = {pair: _lead(values, column, *pair) for pair in pairs}
    said = {pair: _says(lead) for pair, lead in leads.items()}
    counts = [
        sum(each is verdict for each in said.values()) for verdict in (Verdict.HOLDS, Verdict.OPEN, Verdict.FAILS)
    ]
    verdict = Verdict.FAILS if counts[2] else Verdict.OPEN if counts[1] else Verdict.HOLDS
    # The pair that decides: of those with the verdict, the one whose better row is farthest behind.
    deciding = min((pair for pair in pairs if said[pair] is verdict), key=lambda pair: leads[pair].value)
    return Judged(claim, verdict, column, deciding, leads[deciding], (counts[0], counts[1], counts[2]))


def markdown(run: Run, found: Agreement) -> str:
    """The order and the claims as two tables."""
    values = run.analysis.values
    lines = [
        f"{found.rows} rows beside {found.table.source}; {over(run)}.",
        "",
        "| by | pairs in the paper's order | more than chance: in its order, against it | Spearman |",
        "|---|---|---|---|",
    ]
    for order in found.orders:
        spearman_said = number(order.spearman.value, 2) + bounds(order.spearman, 2)
        lines.append(
            f"| {order.column.label} | {order.same} of {order.pairs} | {order.supported}, {order.against} | "
            f"{spearman_said} |"
        )
    if found.claims:
        lines += ["", "| the paper's claim | lead here, positive as claimed | |", "|---|---|---|"]
    for judged in found.claims:
        k = values.columns.index(judged.column)
        places = decimals(judged.column, [float(each) for each in values.cube[..., k].mean(axis=1)])
        unit = f" {judged.column.unit}" if judged.column.unit else ""
        lead = f"{number(judged.lead.value, places, '+')}{unit}{bounds(judged.lead, places, '+')}"
        which = ""
        if sum(judged.counts) > 1:
            holds, still, fails = judged.counts
            which = f"; of {sum(judged.counts)} pairs {holds} hold, {still} open, {fails} do not"
        if sum(judged.counts) < len(judged.claim.pairs):
            which += (
                f"; the run lacks {len(judged.claim.pairs) - sum(judged.counts)} of {len(judged.claim.pairs)} pairs"
            )
        lines.append(f"| {judged.claim.says} | {_code(judged.pair[0])} over {_code(judged.pair[1])}: {lead}{which} | "
                     f"{judged.verdict} |")  # fmt: skip
    if found.lacking:
        lines += ["", f"Rows of the paper that the run lacks: {', '.join(found.lacking)}."]
    if found.unjudged:
        lines += ["", f"Not judged, as rows or metrics are missing: {'; '.join(found.unjudged)}."]
    return "\n".join(lines) + "\n"


def _code(name: str) -> str:
    return f"`{name}`".replace("|", "\\|")


def main() -> None:
    papers = read_papers()
    parser = argparse.ArgumentParser(
        prog="python -m experiments.agreement", description="A run beside a paper's table."
    )
    parser.add_argument("run", type=Path, help="a folder that veridical compare has written")
    parser.add_argument("table", choices=[name for name, each in papers.items() if any(each.names)])
    parser.add_argument("--only", default="", help="images whose names begin so, such as kodak24/")
    asked = parser.parse_args()
    run = read_run(asked.run, only=asked.only)
    print(markdown(run, agree(run, papers[asked.table])), end="")


if __name__ == "__main__":
    main()
