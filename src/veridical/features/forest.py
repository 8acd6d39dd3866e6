"""Regression forests as MATLAB's randomforest-matlab writes them: a .mat file of matrices, one column for each tree."""

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from veridical.core.catalog import require
from veridical.core.errors import WeightsMissing
from veridical.core.untrusted import read_file, unpack

# Their names -> ours. Nodes and features are counted from 1; a daughter 0 makes a leaf.
_FIELDS = {"lDau": "left", "rDau": "right", "upper": "threshold", "avnode": "value", "mbest": "feature"}
MOST_BYTES = 512 * 2**20
"""Of the file, and of what it unpacks to."""
_COMPRESSED = 15  # miCOMPRESSED
_WHOLE = ("left", "right", "feature")


def read_forests(path: Path, inputs: tuple[int, ...]) -> dict[str, Tensor]:
    """The forests of NRQM and the weights of their sum: a struct `model` with the cell array `rf` and `linear`.

    For forest k of T trees with up to M nodes: k.left, k.right, k.feature (T, M), int32, and k.threshold, k.value
    (T, M), float64; linear (1 + forests,), float64.

    Args:   inputs: how many features each forest looks at.
    Errors: WeightsMissing for a file that is anything else, or in which a tree could be walked for ever; MissingExtra
            without SciPy, which reads the file.
    """
    matlab = require("scipy.io.matlab", "compare", "a .mat file")
    try:
        data = read_file(path, MOST_BYTES)
        _check_size(data)
        model = matlab.loadmat(io.BytesIO(data), variable_names=["model"])["model"][0, 0]
        forests = [cell[0, 0] for cell in model["rf"].ravel()]
        linear = np.asarray(model["linear"], np.float64).ravel()
        found = {"linear": torch.from_numpy(linear)}
        if len(forests) != len(inputs) or len(linear) != 1 + len(inputs):
            raise ValueError(f"{len(forests)} forests and {len(linear)} weights, expected {len(inputs)} and one more")
        for number, (forest, width) in enumerate(zip(forests, inputs, strict=True)):
            found |= {f"{number}.{name}": values for name, values in _forest(forest, width).items()}
    except NotImplementedError as error:  # the format of MATLAB 7.3 is another one
        raise _wrong(path, "it is of MATLAB 7.3; load it there and save it with -v7") from error
    except (WeightsMissing, MemoryError):
        raise
    except Exception as error:  # SciPy trusts what a file says, and fails on a broken one in any way
        raise _wrong(path, str(error)) from error
    return found


def _check_size(data: bytes) -> None:
    """ValueError unless the parts of a file of MATLAB 5 are as long as they say, and unpack to what is read."""
    if data[126:128] not in (b"IM", b"MI"):
        raise ValueError("it is no file of MATLAB 5")
    order: Literal["little", "big"] = "little" if data[126:128] == b"IM" else "big"
    at, left = 128, MOST_BYTES
    while at + 8 <= len(data):
        kind, size = (int.from_bytes(data[place : place + 4], order) for place in (at, at + 4))
        if at + 8 + size > len(data):
            raise ValueError("it is cut short")
        if kind == _COMPRESSED:
            left -= len(unpack(data[at + 8 : at + 8 + size], left))
        at += 8 + size


def _forest(forest: Any, width: int) -> dict[str, Tensor]:
    if "coef" in (forest.dtype.names or ()) and np.any(forest["coef"]):
        raise ValueError("a forest has a correction of its bias, which is not known here")
    trees = {ours: np.asarray(forest[theirs]) for theirs, ours in _FIELDS.items()}
    if len({values.shape for values in trees.values()}) != 1 or trees["left"].ndim != 2 or not trees["left"].size:
        raise ValueError(f"the matrices of a forest have the shapes {[values.shape for values in trees.values()]}")
    # The columns are as long as the largest tree could have been.
    used = np.flatnonzero((trees["left"] > 0).any(axis=1)).max(initial=0) + 1
    last = int(max(trees["left"].max(), trees["right"].max(), used))
    trees = {name: values[:last].T for name, values in trees.items()}
    left, right = trees["left"].astype(np.int64), trees["right"].astype(np.int64)
    parent = np.arange(1, left.shape[1] + 1)
    leaf = (left == 0) & (right == 0)
    if not (leaf | ((left > parent) & (right > parent))).all() or max(left.max(), right.max()) > left.shape[1]:
        raise ValueError("a node of a forest has a daughter that does not come after it")
    feature = trees["feature"][~leaf]
    if feature.size and not (feature.min() >= 1 and feature.max() <= width):
        raise ValueError(f"a forest looks at features {feature.min()} to {feature.max()}, expected 1 to {width}")
    if not all(np.isfinite(trees[name]).all() for name in ("threshold", "value")):
        raise ValueError("a forest has a threshold or a value that is not a number")
    kinds = {name: np.int32 if name in _WHOLE else np.float64 for name in trees}
    return {name: torch.from_numpy(np.ascontiguousarray(values, kinds[name])) for name, values in trees.items()}


def _wrong(path: Path, what: str) -> WeightsMissing:
    return WeightsMissing(f"{path} is not a whole model of NRQM: {what}.")
