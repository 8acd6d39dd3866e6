"""Networks as their authors published them: read without running anything, and made a model that our commands take."""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from veridical import __version__
from veridical.comparison.architecture import initial_model
from veridical.comparison.folder import write_json
from veridical.core import catalog
from veridical.core.catalog import Term
from veridical.core.errors import DataError, VeridicalError
from veridical.core.files import atomic_write
from veridical.core.untrusted import read_npz
from veridical.degradations import TASKS
from veridical.features.torch_file import NotData, read_torch
from veridical.features.weights import content_hash
from veridical.models import MODELS, Restorer

# Where training codes put the tensors, the preferred one first: a running average of the weights is what is evaluated.
_WRAPPERS = ("params_ema", "params", "state_dict", "model")
# How long to look for the options that a file fits.
_SEARCH_S = 15.0


@dataclass(frozen=True)
class Adopted:
    """A published network that now lies in `folder` as a model of ours; spec: its name and options."""

    folder: Path
    spec: str
    parameters: int


def adopt(path: Path, model_spec: str, folder: Path, *, task: str | None = None) -> Adopted:
    """Write the network of a published file as a finished model: `folder`/model.json and model.safetensors.

    `veridical restore --run FOLDER`, `train --init FOLDER` and `compare --init FOLDER` take it as they take what a
    training has left.

    Args:   path: as for `read_published`. model_spec: which model it is, such as "mprnet" or
            "dncnn(depth=20, batch_norm=false)". task: what it restores, one of TASKS, to be noted.
    Errors: DataError when the file cannot be read, does not fit the model (with what differs, and the options that fit
            where they are found), or the folder holds a model already; UnknownName; VeridicalError for impossible
            options.
    """
    term = catalog.parse_one(model_spec, "model", "mprnet")
    if task is not None:
        catalog.lookup(TASKS, task, "task")
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file. Name a folder, which is made if it does not exist.")
    taken = next((folder / name for name in ("model.json", "model.safetensors") if (folder / name).exists()), None)
    if taken is not None:
        raise DataError(f"{taken} exists already, and is left as it is. Name another folder.")
    model = initial_model(term.name, term.options, 0)
    published = read_published(path)
    converted = model.convert(published)
    misfits = list(_misfits(model, converted))
    if misfits:
        raise DataError(f"{path} does not fit {term.label}: {_explained(term, model, published, misfits)}")
    model.load_state_dict(converted)
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    defaults = {key: option.default for key, option in catalog.options_of(MODELS[term.name]).items()}
    about = {
        "model": {"name": term.name, "options": {**defaults, **term.options}},
        "task": task,
        "loss": f"what its authors chose ({path.name})",
        "published": {"file": path.name, "sha256": content_hash(published)},
        "version": __version__,
    }
    atomic_write(folder / "model.safetensors", save(tensors))
    write_json(folder / "model.json", about)
    return Adopted(folder, term.label, sum(parameter.numel() for parameter in model.parameters()))


# ---- reading ----


def read_published(path: Path) -> dict[str, Tensor]:
    """The tensors of a published network, by their authors' keys.

    .safetensors; .npz (of arrays); and whatever torch.save has written (.pth, .pt, .ckpt, .tar), read as data:
    nothing of it is run. The tensors may lie in a "state_dict", "params", "params_ema" (taken where there are both) or
    "model". A leading "module." is left out.

    Errors: DataError when there is no such file, it is broken, it holds more than tensors, or it would have to be run.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}. Check the path.")
    if path.suffix == ".safetensors":
        try:
            found: Any = load_file(path)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} cannot be read as safetensors: {error}") from error
    elif path.suffix == ".npz":
        try:
            found = {key: torch.from_numpy(values) for key, values in read_npz(path).items()}
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path} cannot be read as arrays of NumPy: {error}") from error
    else:
        found = _read_torch(path)
    tensors = _unwrapped(path, found)
    # On their own, since some files hold views of one large storage.
    return {key.removeprefix("module."): tensor.detach().clone() for key, tensor in tensors.items()}


def _read_torch(path: Path) -> Any:
    try:
        return read_torch(path)
    except NotData as error:
        if error.code:
            raise DataError(
                f"{path} was not read, and nothing of it was run: it asks for {error.code}, which is code. A file of "
                "torch.save can run whatever its author likes, so tensors alone are read here. Ask for a file of the "
                "state_dict; or, if you trust this one, write it anew where its code is installed: "
                'torch.save(torch.load(FILE, weights_only=False)["state_dict"], NEW).'
            ) from error
        raise DataError(f"{path} cannot be read as a file of torch.save: {error}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a file of torch.save: {error}") from error


def _unwrapped(path: Path, found: Any) -> dict[str, Tensor]:
    """The dict of tensors inside of what was read."""
    while isinstance(found, Mapping):
        inner = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping):
        raise DataError(f"{path} holds a {type(found).__name__}; expected tensors by name. {_EXPECTED}")
    others = [key for key, value in found.items() if not isinstance(value, Tensor)]
    if others or not found:
        listed = ", ".join(map(repr, list(found)[:8])) + (", ..." if len(found) > 8 else "")
        raise DataError(f"{path} holds more than tensors, or none: its keys are {listed or 'none'}. {_EXPECTED}")
    return {str(key): value for key, value in found.items()}


_EXPECTED = f"They may be the file itself or lie under one of {', '.join(_WRAPPERS)}."


# ---- fitting ----


@dataclass(frozen=True)
class _Misfit:
    """One tensor that differs: its shape in the file and in the model; None where it is not there."""

    key: str
    theirs: tuple[int, ...] | None
    ours: tuple[int, ...] | None


def _misfits(model: Restorer, converted: Mapping[str, Tensor]) -> Iterator[_Misfit]:
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in converted.items()}
    for key in expected | given:
        # Files of PyTorch before 0.4.1 do not count batches; loading adds the counters.
        if given.get(key) != expected.get(key) and not (key not in given and key.endswith(".num_batches_tracked")):
            yield _Misfit(key, given.get(key), expected.get(key))


def _explained(term: Term, model: Restorer, published: Mapping[str, Tensor], misfits: list[_Misfit]) -> str:
    if not model.convert(published).keys() & model.state_dict().keys():
        theirs, ours = (", ".join(list(keys)[:3]) for keys in (published, model.state_dict()))
        return f"none of its tensors has a name of {term.name}'s. It has {theirs}, ...; the model {ours}, ..."
    missing = [each.key for each in misfits if each.theirs is None]
    unexpected = [each.key for each in misfits if each.ours is None]
    misshapen = [
        f"{each.key} is {each.theirs} in the file and {each.ours} in the model"
        for each in misfits
        if each.theirs is not None and each.ours is not None
    ]
    kinds = (("missing in it", missing), ("unknown to the model", unexpected), ("of another shape", misshapen))
    said = "; ".join(
        f"{len(keys)} {kind}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}" for kind, keys in kinds if keys
    )
    fitting = _fitting(term, published, len(misfits))
    if fitting is not None:
        advice = f"It fits {str(fitting)!r}: name that as the model."
    else:
        options = ", ".join(
            f"{key}={option.default!r}" for key, option in catalog.options_of(MODELS[term.name]).items()
        )
        advice = (
            f"Either it is of another model, or made with other options; those of {term.name} and their defaults are "
            f"{options}."
        )
    return f"{said}. {advice}"


def _fitting(term: Term, published: Mapping[str, Tensor], misfits: int) -> Term | None:
    """The same model with other options, if a few that the file fits are found in a few seconds.

    One option after another is set to that side of a switch, or that number of those in the file's shapes and keys,
    which leaves the fewest tensors that differ. The models are made on the meta device, without memory.
    """
    sizes = {size for tensor in published.values() for size in tensor.shape[:2] if size <= 512}
    counts = {int(index) + 1 for key in published for index in re.findall(r"\d+", key) if int(index) < 64}
    layers = sum(tensor.ndim == 4 for tensor in published.values())
    numbers = sorted({1, 2, 3, 4, layers} | sizes | counts)
    options = {key: option.default for key, option in catalog.options_of(MODELS[term.name]).items()}
    options |= term.options
    choices: dict[str, list[Any]] = {key: [True, False] for key, value in options.items() if isinstance(value, bool)}
    choices["channels"] = [1, 3]
    choices |= {key: numbers for key, value in options.items() if isinstance(value, int) and key not in choices}
    deadline = time.monotonic() + _SEARCH_S
    best, before = dict(term.options), misfits + 1
    while 0 < misfits < before:
        before = misfits
        for option, values in choices.items():
            for value in values:
                if time.monotonic() > deadline:
                    return None
                tried = Term(term.name, options=best | {option: value})
                left = _count_misfits(tried, published)
                if left is not None and left < misfits:
                    best, misfits = dict(tried.options), left
            if misfits == 0:
                return Term(term.name, options=best)
    return None


def _count_misfits(term: Term, published: Mapping[str, Tensor]) -> int | None:
    """How many tensors differ; None where there is no such model."""
    try:
        with torch.device("meta"):
            model = initial_model(term.name, term.options, 0)
        return sum(1 for _ in _misfits(model, model.convert(published)))
    except (VeridicalError, NotImplementedError, RuntimeError):
        return None
