"""Support vector regressions as libsvm writes them: text of a few lines of settings and one line per support vector."""

import math
from pathlib import Path

import torch
from torch import Tensor

from veridical.core.errors import WeightsMissing
from veridical.core.untrusted import read_file

MOST_BYTES = 16 * 2**20
MOST_VECTORS = 100_000
_HEADER = ("svm_type", "kernel_type", "gamma", "nr_class", "total_sv", "rho")
_OPTIONAL = ("probA",)  # the width of the residuals, which a prediction does not need


def read_regression(path: Path, inputs: int) -> dict[str, Tensor]:
    """coefficients (S,), vectors (S, inputs), gamma () and rho () of a regression with an RBF kernel, in float64.

    Its value at x is Σ coefficients exp(-gamma |x - vectors|²) - rho.

    Errors: WeightsMissing for a file that is anything else: of another kind, of other inputs, or cut short.
    """
    try:
        text = read_file(path, MOST_BYTES).decode("ascii")
    except UnicodeDecodeError as error:
        raise _wrong(path, "it is not text") from error
    head, separator, body = text.partition("\nSV\n")
    if not separator:
        raise _wrong(path, "it has no line SV after the settings")
    settings = _settings(path, head)
    if settings["svm_type"] not in ("epsilon_svr", "nu_svr") or settings["kernel_type"] != "rbf":
        raise _wrong(path, f"it is a {settings['svm_type']} with the kernel {settings['kernel_type']}")
    gamma, rho = (_number(path, settings[name], name) for name in ("gamma", "rho"))
    if gamma <= 0 or not settings["total_sv"].isdigit() or len(settings["total_sv"]) > 6:
        raise _wrong(path, f"its gamma is {gamma:g} and its total_sv {settings['total_sv']!r}")
    lines = body.split("\n")
    if len(lines) > MOST_VECTORS:
        raise _wrong(path, f"it has more than {MOST_VECTORS:,} support vectors")
    if lines.pop() != "" or len(lines) != int(settings["total_sv"]):
        raise _wrong(
            path, f"it is cut short or was added to: {len(lines)} support vectors, where it says {settings['total_sv']}"
        )
    rows = [_row(path, number, line, inputs) for number, line in enumerate(lines, start=1)]
    table = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), inputs + 1)
    single = {name: torch.tensor(value, dtype=torch.float64) for name, value in (("gamma", gamma), ("rho", rho))}
    return {"coefficients": table[:, 0].clone(), "vectors": table[:, 1:].clone(), **single}


def _settings(path: Path, head: str) -> dict[str, str]:
    settings: dict[str, str] = {}
    for line in head.split("\n"):
        name, _, value = line.partition(" ")
        if name not in (*_HEADER, *_OPTIONAL) or name in settings or not value.strip():
            raise _wrong(path, f"its settings have the line {line[:60]!r}")
        settings[name] = value.strip()
    missing = [name for name in _HEADER if name not in settings]
    if missing:
        raise _wrong(path, f"its settings lack {missing[0]}")
    return settings


def _row(path: Path, number: int, line: str, inputs: int) -> list[float]:
    """The coefficient and the vector; libsvm leaves out what is 0."""
    what = f"support vector {number}"
    coefficient, *entries = line.split() or [""]
    row = [_number(path, coefficient, what), *[0.0] * inputs]
    last = 0
    for entry in entries:
        index, colon, value = entry.partition(":")
        if not (colon and index.isdigit() and len(index) < 10 and last < int(index) <= inputs):
            raise _wrong(path, f"{what} has {entry[:40]!r}, where indices rise from 1 to {inputs}")
        last = int(index)
        row[last] = _number(path, value, what)
    return row


def _number(path: Path, text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or "_" in text:
        raise _wrong(path, f"{text[:40]!r} in {what} is not a number")
    return value


def _wrong(path: Path, what: str) -> WeightsMissing:
    return WeightsMissing(f"{path} is not a whole support vector regression of libsvm: {what}.")
