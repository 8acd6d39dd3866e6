"""Votes of a preference study: read from a CSV or from rows, checked one by one; what cannot be used is listed."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from veridical.core.errors import DataError
from veridical.core.untrusted import read_file

COLUMNS = ("image", "method_1", "method_2", "result", "rater", "screening", "seconds", "at")
"""The columns of a table of votes; the first four are required, and a file without a header line has just these."""

MOST_BYTES = 256 * 2**20
"""Of the file."""

MOST_VOTES = 2_000_000
MOST_METHODS = 1000
"""The votes are counted in a table of methods by methods."""

MOST_BAD = 0.2
"""More unusable rows than this share, and the file is refused: it is hardly a table of votes."""

_REQUIRED = COLUMNS[:4]
_ALIASES = {
    "image": ("image", "imageid", "img", "scene", "sceneid", "photo", "photograph", "stimulus"),
    "method_1": ("method1", "methoda", "conditiona", "condition1", "left", "a"),
    "method_2": ("method2", "methodb", "conditionb", "condition2", "right", "b"),
    "result": ("result", "vote", "answer", "choice", "preferred", "winner"),
    "rater": ("rater", "raterid", "observer", "observerid", "participant", "participantid", "subject", "subjectid",
              "worker", "workerid", "user", "userid"),
    "screening": ("screening", "screen", "control"),
    "seconds": ("seconds", "time", "duration"),
    "at": ("at", "timestamp", "date"),
}  # fmt: skip
_COLUMN_OF = {alias: column for column, aliases in _ALIASES.items() for alias in aliases}


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used. line: of the file, from 1; of given rows, their number from 1."""

    line: int
    why: str
    text: str


@dataclass(frozen=True)
class Votes:
    """Votes as integers, N of them, screening votes among them.

    methods, images, raters: the names; methods are those of ordinary votes. Numbers sort as numbers.
    image:     (N,) index into images.
    first, second: (N,) index into methods of what was shown left and right; -1 in a screening vote.
    result:    (N,) 1 or 2, the preferred side.
    rater:     (N,) index into raters, -1 where none is named.
    screening: (N,) 0 for an ordinary vote, else the side (1 or 2) that is obviously better.
    bad:       the rows that were left out.
    rows:      how many rows there were, bad ones included.
    """

    methods: tuple[str, ...]
    images: tuple[str, ...]
    raters: tuple[str, ...]
    image: np.ndarray
    first: np.ndarray
    second: np.ndarray
    result: np.ndarray
    rater: np.ndarray
    screening: np.ndarray
    bad: tuple[BadRow, ...]
    rows: int

    def __len__(self) -> int:
        return len(self.result)

    @property
    def ordinary(self) -> np.ndarray:
        """(N,) bool: the votes that are scaled."""
        return self.screening == 0

    @property
    def winner(self) -> np.ndarray:
        """(N,) index of the preferred method."""
        return np.where(self.result == 1, self.first, self.second)

    @property
    def loser(self) -> np.ndarray:
        """(N,) index of the other method."""
        return np.where(self.result == 1, self.second, self.first)

    def keep(self, which: np.ndarray) -> "Votes":
        """The votes for which `which` (N,) is true; the names stay."""
        return replace(
            self,
            **{
                name: getattr(self, name)[which]
                for name in ("image", "first", "second", "result", "rater", "screening")
            },
        )

    def without(self, names: Iterable[str]) -> "Votes":
        """The votes in which none of these methods took part.

        Errors: DataError for a method that has no votes, or when fewer than two methods are left.
        """
        gone = set(names)
        for name in sorted(gone):
            if name not in self.methods:
                raise DataError(f"there is no method {name!r} to leave out. The votes name {_some(self.methods)}.")
        staying = [name for name in self.methods if name not in gone]
        if len(staying) < 2:
            raise DataError(f"without {_some(sorted(gone))} fewer than two methods are left; a scale needs two.")
        number = np.array([staying.index(name) if name in staying else -1 for name in self.methods] + [-1])
        first, second = number[self.first], number[self.second]  # -1, of a screening vote, is the last place
        renamed = replace(self, methods=tuple(staying), first=first, second=second)
        return renamed.keep(~self.ordinary | ((first >= 0) & (second >= 0)))


def read_methods(path: Path) -> tuple[str, ...]:
    """Names of methods, one per line, numbered from 1. Errors: DataError when there are none, or one comes twice."""
    names = tuple(line.strip() for line in _text(path).splitlines() if line.strip())
    if len(names) < 2:
        raise DataError(f"{path} names {len(names)} methods. Expected two or more, one per line, numbered from 1.")
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path} names {name!r} twice. Expected a name of its own for every method.")
    return names


def read_votes(path: Path, *, methods: Sequence[str] | None = None) -> Votes:
    """Read a CSV of votes: comma, semicolon or tab; with a header line in any order of columns, or without.

    A header is known by its names, in any spelling: "Image ID,Method 1,Method 2,Result" or "image,method_1,...".
    Without one a row has four cells: image, method 1, method 2, result (1 or 2, the preferred one).
    Args:   methods: the names of the methods that the file numbers from 1.
    Errors: DataError when the file cannot be read, a required column is missing, no row can be used, or more than a
            fifth of them cannot. Fewer are listed in `bad` with their line and the reason.
    """
    text = _text(path)
    lines = text.splitlines()
    start = next((line for line in lines if line.strip()), "")
    delimiter = max(",;\t", key=start.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header: list[str] | None = None
    rows: list[tuple[int, str, Mapping[str, str] | str]] = []
    if text.count("\n") > MOST_VOTES:
        raise DataError(f"{path} has more than {MOST_VOTES:,} lines, the most that are read.")
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not rows and header is None and (header := _header(cells, path)) is not None:
                continue
            raw = delimiter.join(cells)
            expected = header or list(_REQUIRED)
            if len(cells) != len(expected):
                of = "the header" if header else "a file without a header line"
                why = f"it has {len(cells)} cells, where {of} has {len(expected)}"
                rows.append((reader.line_num, raw, why))
            else:
                rows.append((reader.line_num, raw, dict(zip(expected, cells, strict=True))))
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as CSV: line {reader.line_num}: {error}.") from error
    return _collect(rows, methods, str(path))


def votes_from_rows(rows: Iterable[Mapping[str, object]], *, methods: Sequence[str] | None = None) -> Votes:
    """The same from dicts with the keys of COLUMNS, such as a study's own export; missing keys count as empty.

    Errors: DataError as for read_votes.
    """
    listed = []
    for number, row in enumerate(rows, 1):
        cells = {column: "" if row.get(column) is None else str(row[column]) for column in COLUMNS}
        listed.append((number, ",".join(cells.values()), cells))
    return _collect(listed, methods, "the study")


def _text(path: Path) -> str:
    try:
        return read_file(Path(path), MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}: it is not text in UTF-8 ({error.reason}). Save it as UTF-8.") from error


def _header(cells: Sequence[str], path: Path) -> list[str] | None:
    """The columns that a first line names ("" for one that is not known), or None when it is a row of votes."""
    named = [_COLUMN_OF.get(re.sub(r"[^a-z0-9]", "", cell.lower()), "") for cell in cells]
    if "image" not in named and "result" not in named:
        return None
    if len(cells) == len(_REQUIRED) and cells[-1].strip() in ("1", "2"):
        return None  # a vote on an image called "photo" or a method called "a"
    for column in COLUMNS:
        if named.count(column) > 1:
            raise DataError(f"{path}: the header {', '.join(cells)} names the column {column!r} twice.")
    lacking = [column for column in _REQUIRED if column not in named]
    if lacking:
        raise DataError(
            f"{path}: the header {', '.join(cells)} has no column {lacking[0]!r}. Expected {', '.join(_REQUIRED)}, in "
            f"any order, and if known {', '.join(COLUMNS[4:])}."
        )
    return named


def _collect(
    rows: Sequence[tuple[int, str, Mapping[str, str] | str]], methods: Sequence[str] | None, what: str
) -> Votes:
    """Votes of rows (line, text, cells); cells that are a string say why the row is bad already."""
    good: list[dict[str, str]] = []
    bad: list[BadRow] = []
    for line, text, cells in rows:
        if isinstance(cells, str):
            bad.append(BadRow(line, cells, text))
            continue
        row = {column: cells.get(column, "").strip() for column in COLUMNS}
        why = _fault(row, methods)
        if why is None:
            good.append(row)
        else:
            bad.append(BadRow(line, why, text))
    if not rows:
        raise DataError(f"{what} has no votes.")
    if len(bad) > MOST_BAD * len(rows):
        raise DataError(
            f"{what} is hardly a table of votes: {len(bad)} of {len(rows)} rows cannot be used. Line {bad[0].line}: "
            f"{bad[0].why}. Expected {', '.join(_REQUIRED)} (1 or 2, the preferred one), in this order or with a "
            "header line."
        )
    ordinary = [row for row in good if not row["screening"]]
    if not ordinary:
        raise DataError(f"{what} has screening votes alone: there is nothing to scale yet.")
    present = {_named(row[side], methods) for row in ordinary for side in ("method_1", "method_2")}
    names = [name for name in methods if name in present] if methods else sorted(present, key=_natural)
    if len(names) > MOST_METHODS:
        raise DataError(f"{what} names {len(names):,} methods; up to {MOST_METHODS} can be scaled. Are they images?")
    images = sorted({row["image"] for row in good}, key=_natural)
    raters = sorted({row["rater"] for row in good if row["rater"]}, key=_natural)
    method_of = {name: k for k, name in enumerate(names)}
    image_of, rater_of = ({name: k for k, name in enumerate(each)} for each in (images, raters))

    def sides(side: str) -> np.ndarray:
        return _array(-1 if row["screening"] else method_of[_named(row[side], methods)] for row in good)

    return Votes(
        methods=tuple(names),
        images=tuple(images),
        raters=tuple(raters),
        image=_array(image_of[row["image"]] for row in good),
        first=sides("method_1"),
        second=sides("method_2"),
        result=_array(int(row["result"]) for row in good),
        rater=_array(rater_of.get(row["rater"], -1) for row in good),
        screening=_array(int(row["screening"] or 0) for row in good),
        bad=tuple(bad),
        rows=len(rows),
    )


def _array(values: Iterable[int]) -> np.ndarray:
    return np.fromiter(values, dtype=np.int64)


def _fault(row: Mapping[str, str], methods: Sequence[str] | None) -> str | None:
    """Why a row is no vote, or None."""
    for column in _REQUIRED:
        if not row[column]:
            return f"{column} is empty"
    if row["result"] not in ("1", "2"):
        return f"result is {row['result']!r}, where 1 or 2 is expected"
    if row["screening"] not in ("", "1", "2"):
        return f"screening is {row['screening']!r}, where nothing, 1 or 2 is expected"
    if row["screening"]:
        return None if row["rater"] else "a screening vote names no rater"
    for side in ("method_1", "method_2"):
        if methods is not None and _named(row[side], methods) not in methods:
            return f"{side} is {row[side]!r}, where a number from 1 to {len(methods)} or a listed name is expected"
    if _named(row["method_1"], methods) == _named(row["method_2"], methods):
        return f"method {_named(row['method_1'], methods)} is compared with itself"
    return None


def _named(cell: str, methods: Sequence[str] | None) -> str:
    """The method that a cell means: a number from 1 stands for a listed name."""
    if (
        methods is not None
        and cell not in methods
        and re.fullmatch("[0-9]{1,9}", cell)
        and 1 <= int(cell) <= len(methods)
    ):
        return methods[int(cell) - 1]
    return cell


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts the numbers inside names as numbers: of two, the longer one is the greater."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((len(part.lstrip("0")), part.lstrip("0")) if k % 2 else (0, part) for k, part in enumerate(parts))


def _some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
