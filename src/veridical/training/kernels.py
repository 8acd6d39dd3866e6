"""The measured blur kernels of real pairs, for restorers that are told the blur."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from veridical.core.errors import DataError
from veridical.core.untrusted import read_npy

MOST_BYTES = 64 * 2**20
"""Of a kernel's file."""


def kernels_in(folder: Path, names: Sequence[str], *, flip: bool = False) -> dict[str, Tensor]:
    """The kernel of each pair, by the pair's name: float64 (h, w), sums to 1, of a true convolution.

    A pair takes the .npy file of its own name, else the one whose name ends with the same number as its own:
    im05_ker03 takes kernel03.npy. No pickle is read.

    Args:   names: of the pairs, all of which must find a kernel.
            flip: the files hold kernels of a correlation, as those of Levin et al. 2009 are measured to do (for the
            kernels that are centred, 1/10 of the squared error): they are turned by half a circle.
    Errors: DataError for a pair with no kernel or two, and for a file that holds no kernel.
    """
    files = sorted(folder.glob("*.npy"))
    if not files:
        raise DataError(f"no kernels in {folder}: expected a folder of .npy files, such as kernel03.npy.")
    by_name = {file.stem: file for file in files}
    chosen = {}
    for name in names:
        own = by_name.get(name) or by_name.get(Path(name).name)
        number = _last_number(name)
        numbered = [file for file in files if number is not None and _last_number(file.stem) == number]
        if own is None and len(numbered) != 1:
            found = ", ".join(file.name for file in numbered) or "none"
            raise DataError(
                f"{folder} must hold one kernel of the pair {name!r}: {Path(name).name}.npy, or one whose name ends "
                f"with the same number, as kernel03.npy does for im05_ker03. Found: {found}."
            )
        chosen[name] = own or numbered[0]
    read = {file: _read(file).flip(0, 1) if flip else _read(file) for file in dict.fromkeys(chosen.values())}
    return {name: read[file] for name, file in chosen.items()}


def _last_number(name: str) -> int | None:
    found = re.search(r"(\d+)$", name)
    return int(found[1]) if found else None


def _read(file: Path) -> Tensor:
    try:
        values = read_npy(file, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read the kernel {file}: {error}. Expected one array of numbers of shape (h, w)."
        ) from error
    if values.ndim != 2 or values.dtype.kind not in "fiu" or values.size == 0:
        raise DataError(f"{file} must hold one array of numbers of shape (h, w), the kernel of a blur.")
    kernel = torch.from_numpy(values.astype(np.float64))
    if not kernel.isfinite().all() or kernel.sum() <= 0:
        raise DataError(f"the kernel {file} must be of finite numbers with a sum above 0; it sums to {kernel.sum():g}.")
    return kernel / kernel.sum()
