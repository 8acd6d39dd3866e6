"""The discriminators that MDF's authors released, as safetensors.

They are Python pickles of whole modules, which `torch.load` would run, and would want the authors' code for besides.
`torch_file` reads them as data: an object of a class that is not known becomes a record of its attributes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from veridical.core.errors import WeightsMissing
from veridical.core.options import check_choice
from veridical.features import weights as files
from veridical.features.mdf import RANGES, fold
from veridical.features.torch_file import Record, read_torch

_MOST_TENSORS = 10_000  # modules that hold each other would be walked for ever


def convert(path: Path, to: Path | None = None, *, range: str = "-1..1") -> tuple[Path, str]:
    """Read a released `Ds_*.pth` and write it as safetensors. -> the file, and what it turned out to be.

    Args:   to: the file to write. By default one that is known by its contents goes into our cache, where `mdf` finds
            it; another one beside `path`.
            range: the input range to note in the file. The released ones were trained on -1..1.
    Errors: WeightsMissing when it is no such file, or asks for anything but data.
    """
    check_choice("range", range, RANGES)
    tensors = read(path)
    count = len(fold(tensors, str(path)))
    known = _known(tensors)
    if to is None:
        to = files.kept(known) if known else path.with_suffix(".safetensors")
    if to.suffix != ".safetensors":
        raise WeightsMissing(f"{to} should end in .safetensors.")
    chosen = tensors
    if known:  # what the released code leaves unused is left out, so that its hash is the known one
        chosen = {key: tensors[key] for key in files.FILES[known].shapes}
    notes = {"range": range, "source": path.name, "sha256": files.content_hash(chosen)}
    files.write(to, chosen, notes)
    return to, f"the file of {known}" if known else f"{count} discriminators, not the released ones"


def _known(tensors: dict[str, Tensor]) -> str | None:
    """The name of the weights that these are, by their contents."""
    for name, file in files.FILES.items():
        found = {key: tensors[key] for key in file.shapes if key in tensors}
        if len(found) == len(file.shapes) and files.content_hash(found) == file.sha256:
            return name
    return None


def read(path: Path) -> dict[str, Tensor]:
    """{INDEX.LAYER...: tensor} from a pickled list of modules, in either format of torch.save.

    Errors: WeightsMissing when it is no such file, or asks for anything but data.
    """
    try:
        modules = read_torch(path, records=True)
    except OSError as error:
        raise WeightsMissing(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise WeightsMissing(f"{path} was not converted: {error}") from error
    if not isinstance(modules, list) or not modules or not all(isinstance(m, Record) for m in modules):
        raise WeightsMissing(f"{path} is not a list of modules, as the released files of MDF are.")
    found: dict[str, Tensor] = {}
    for index, module in enumerate(modules):
        for number, (name, tensor) in enumerate(_tensors(module)):
            if number >= _MOST_TENSORS:
                raise WeightsMissing(f"{path} was not converted: a module of it has more than {_MOST_TENSORS} tensors")
            found[f"{index}.{name}"] = tensor.contiguous()
    return found


def _tensors(module: Any, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a recorded module, by the names that a state dict gives them."""
    if not isinstance(module, Record) or depth > 8:
        return
    for kind in ("_parameters", "_buffers"):
        for name, tensor in _dict(module, kind).items():
            if isinstance(tensor, Tensor):
                yield name, tensor
    for name, child in _dict(module, "_modules").items():
        for key, tensor in _tensors(child, depth + 1):
            yield f"{name}.{key}", tensor


def _dict(module: Record, name: str) -> dict[Any, Any]:
    value = module.attributes.get(name)
    return value if isinstance(value, dict) else {}
