"""A run folder, read and analysed: what the report, in all its forms, is made of.

Reads files only: recipe.toml, comparison.json and the rows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from veridical.comparison.about import check_about
from veridical.comparison.statistics import INPUT, SCHEMA, START, Analysis, Column, analyse, arrange, with_seeds
from veridical.core.errors import DataError
from veridical.core.untrusted import parse_json, read_file
from veridical.metrics import METRICS

MOST_BYTES = 256 * 2**20
"""Of a file of rows."""
MOST_ROWS = 10_000_000
LARGEST = 1e100

_EXPECTED = "Expected a folder written by `veridical compare`, such as runs/x"


@dataclass(frozen=True)
class Entry:
    """One loss of a run that was evaluated, with one of its models where there are several; or a classical method.

    spec: with the automatic weights that were found. series: its colour and symbol, everywhere on the page. cost: of
    restoring a megapixel, see cost.Meter.
    """

    name: str
    slug: str
    spec: str
    series: int
    optimises: tuple[str, ...]
    seconds_per_step: float | None
    classical: bool = False
    cost: dict[str, float] | None = None

    @property
    def trained(self) -> bool:
        """Whether this run has trained it."""
        return not self.classical and self.slug != START

    def optimised(self, column: Column) -> bool:
        """Whether the loss was trained on this very metric."""
        return column.base in self.optimises


@dataclass(frozen=True)
class Run:
    """A run folder, read. about: comparison.json. failed: (loss, reason) of those without a result."""

    folder: Path
    about: dict[str, Any]
    recipe: str
    entries: tuple[Entry, ...]
    failed: tuple[tuple[str, str], ...]
    analysis: Analysis

    def entry(self, name: str) -> Entry:
        return next(e for e in self.entries if e.name == name)

    @property
    def images(self) -> int:
        return len(self.analysis.values.images)

    @property
    def models(self) -> list[dict[str, Any]]:
        """As comparison.json describes them."""
        return list(self.about.get("models") or filter(None, [self.about.get("model")]))

    @property
    def compares_restorers(self) -> bool:
        """Whether it is of more than the losses of one model: of several models, or of classical methods too."""
        return len(self.models) > 1 or any(entry.classical for entry in self.entries)

    @property
    def noun(self) -> str:
        """What is compared, in words."""
        return "restorer" if self.compares_restorers else "loss"

    @property
    def nouns(self) -> str:
        return "restorers" if self.compares_restorers else "losses"


def read_run(run: Path, *, only: str = "") -> Run:
    """Read and analyse a run folder.

    Args:   only: begins the names of the images that count, such as the folder of one test set: "kodak24/".
    Errors: DataError when the folder is not a run, a file is missing or unreadable, or it holds no values.
    """
    if not run.is_dir():
        raise DataError(f"there is no run folder {run}. {_EXPECTED}.")
    about = read_about(run)
    recipe = _text(run / "recipe.toml")
    rows = read_rows(run)
    if only:
        kept = rows.filter(pl.col("image").str.starts_with(only))
        if kept.is_empty():
            some = ", ".join(rows["image"].unique(maintain_order=True).head(3))
            raise DataError(f"the run {run} has no images whose names begin with {only!r}; it has {some}, ...")
        rows = kept
    columns = [column_of(entry, rows) for entry in about["metrics"]]
    entries, failed = [], []
    present = set(rows["loss"].to_list())
    for i, loss in enumerate(about["losses"]):
        name = str(loss["name"])
        if loss.get("status", "done") != "done" or name not in present:
            failed.append((name, str(loss.get("error") or "it has no values in the rows")))
            continue
        optimises = tuple(str(m).partition("(")[0] for m in loss.get("optimises") or ())
        seconds = loss.get("seconds_per_step")
        spec = str(loss.get("fixed_spec") or loss.get("spec", name))
        classical, cost = bool(loss.get("classical")), loss.get("cost")
        entries.append(Entry(name, str(loss["slug"]), spec, i, optimises, seconds, classical, cost))
    untrained = (INPUT, *(e.name for e in entries if not e.trained))
    values = arrange(rows, [e.name for e in entries], columns, untrained=untrained)
    if not (values.trained and values.images and values.columns):
        why = " ".join([*values.left_out, *(f"{name}: {reason}" for name, reason in failed)])
        raise DataError(
            f"the run {run} has no values to compare. Expected rows with at least one loss of comparison.json and "
            f"a finite value for each of its metrics on one image. {why}".rstrip()
        )
    valued = tuple(e for e in entries if e.name in values.losses)
    failed += [(e.name, "no image has a finite value for every metric") for e in entries if e not in valued]
    return Run(run, about, recipe, valued, tuple(failed), analyse(values))


def _text(path: Path) -> str:
    try:
        return read_file(path).decode("utf-8")
    except FileNotFoundError:
        raise DataError(f"{path.parent} has no {path.name}. {_EXPECTED}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}). {_EXPECTED}.") from error


def read_about(run: Path) -> dict[str, Any]:
    """What comparison.json of a run says.

    Errors: DataError when it is missing, damaged, or lacks what a report needs.
    """
    path = run / "comparison.json"
    try:
        about = parse_json(_text(path))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}). Was the run interrupted while writing?") from error
    for key in ("losses", "metrics"):
        if not isinstance(about, dict) or not isinstance(about.get(key), list) or not about[key]:
            raise DataError(f"{path} has no list {key!r}, or an empty one. {_EXPECTED}.")
    for key, needed in (("losses", ("name", "slug")), ("metrics", ("name", "higher_is_better"))):
        for item in about[key]:
            lacking = [n for n in needed if not isinstance(item, dict) or n not in item]
            if lacking:
                raise DataError(f"{path}: an entry of {key!r} has no {lacking[0]!r}. {_EXPECTED}.")
    check_about(about, path)
    return about


def read_rows(run: Path) -> pl.DataFrame:
    """The rows of a run, with the columns of SCHEMA.

    Errors: DataError when they are missing, unreadable or empty.
    """
    parquet, csv = run / "rows.parquet", run / "rows.csv"
    try:
        if parquet.is_file():
            data = read_file(parquet, MOST_BYTES)
            columns = pl.scan_parquet(data).collect_schema().names()
            number = pl.scan_parquet(data).select(pl.len()).collect().item()  # as the file's end says
            if number > MOST_ROWS:
                raise DataError(f"{parquet} says to have {number:,} rows; {MOST_ROWS:,} are read.")
            rows = pl.read_parquet(data, columns=[column for column in SCHEMA if column in columns] or columns[:1])
        elif csv.is_file():
            # Without the types a photograph called 001 would be read as the number 1.
            data = read_file(csv, MOST_BYTES)
            if data.count(b"\n") > MOST_ROWS:
                raise DataError(f"{csv} has more than {MOST_ROWS:,} rows, the most that are read.")
            rows = pl.read_csv(data, schema_overrides=SCHEMA)
        else:
            raise DataError(f"{run} has neither rows.parquet nor rows.csv. {_EXPECTED}, evaluated to the end.")
        rows = with_seeds(rows)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the rows of {run} cannot be read ({error}). Evaluate the run again.") from error
    missing = [c for c in SCHEMA if c not in rows.columns]
    if missing:
        raise DataError(
            f"the rows of {run} lack the column {missing[0]!r}. Expected {', '.join(SCHEMA)}; "
            f"found {', '.join(rows.columns)}."
        )
    if rows.is_empty():
        raise DataError(f"the rows of {run} are empty. Expected one row per image, loss and metric.")
    try:
        rows = rows.select([pl.col(c).cast(t) for c, t in SCHEMA.items()])
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise DataError(f"the rows of {run} are of other types ({error}). Evaluate the run again.") from error
    # No metric has such values, whose squares overflow: they count as not finite.
    too_large = pl.col("value").is_finite() & (pl.col("value").abs() > LARGEST)
    return rows.with_columns(pl.when(too_large).then(float("nan")).otherwise(pl.col("value")).alias("value"))


def column_of(metric: dict[str, Any], rows: pl.DataFrame) -> Column:
    """A metric of comparison.json; the rows call it by its label (with its options) or by its name."""
    name, label = str(metric["name"]), str(metric.get("label") or metric["name"])
    key = label if label in set(rows["metric"].to_list()) else name
    base, bracket, options = (part.strip() for part in label.partition("("))
    return Column(
        name=key,
        label=(METRICS[base].label if base in METRICS else base) + (f" ({options}" if bracket else ""),
        higher_is_better=bool(metric["higher_is_better"]),
        unit=str(metric.get("unit") or ""),
        reference=bool(metric.get("reference", True)),
    )
