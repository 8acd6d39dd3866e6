"""The discriminators that MDF's authors released, as safetensors.

They are Python pickles of whole modules. A pickle is a program: `torch.load` would run it, and wants the authors' code
besides. Here it is read as data. What the pickle calls a class becomes an empty record, nothing of it is imported, and
nothing but the making of tensors, OrderedDicts and sets may be called.
"""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from veridical.core.errors import WeightsMissing
from veridical.core.options import check_choice
from veridical.features import weights as files
from veridical.features.mdf import RANGES, fold

# The legacy format of torch.save: pickles of this number, of the version and of the machine, then of the object and of
# the storages' keys; then each storage: its length as int64, its bytes. (torch/serialization.py)
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
DTYPES = {
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
}


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
        modules = _load(path)
    except OSError as error:
        raise WeightsMissing(f"{path} cannot be read: {error}") from error
    except (pickle.UnpicklingError, zipfile.BadZipFile, struct.error) as error:
        raise WeightsMissing(f"{path} was not converted: {error}") from error
    except Exception as error:  # a broken pickle can fail in any way; nothing of it has been run
        raise WeightsMissing(f"{path} was not converted: it is broken ({type(error).__name__}: {error})") from error
    if not isinstance(modules, list) or not modules or not all(isinstance(m, _Record) for m in modules):
        raise WeightsMissing(f"{path} is not a list of modules, as the released files of MDF are.")
    return {
        f"{index}.{name}": tensor.contiguous()
        for index, module in enumerate(modules)
        for name, tensor in _tensors(module)
    }


def _tensors(module: Any, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a recorded module, by the names that a state dict gives them."""
    if not isinstance(module, _Record) or depth > 8:
        return
    for kind in ("_parameters", "_buffers"):
        for name, tensor in _dict(module, kind).items():
            if isinstance(tensor, Tensor):
                yield name, tensor
    for name, child in _dict(module, "_modules").items():
        for key, tensor in _tensors(child, depth + 1):
            yield f"{name}.{key}", tensor


def _dict(module: Any, name: str) -> dict[Any, Any]:
    value = vars(module).get(name)
    return value if isinstance(value, dict) else {}


class _Uncallable(type):
    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise pickle.UnpicklingError(f"the pickle calls {cls.__name__}, which is not data; nothing of it was run")


class _Record(metaclass=_Uncallable):
    """In place of an object of a foreign class: its attributes. Unpickling makes it without calling the class."""


class _DataOnly(pickle.Unpickler):
    """Reads lists, dicts, numbers, strings, tensors, and foreign objects as records."""

    def __init__(self, stream: IO[bytes], storage: Callable[[torch.dtype, str, int], Tensor] | None = None) -> None:
        super().__init__(stream, encoding="utf-8")
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.cuda") and name in DTYPES:
            return DTYPES[name]
        # Functions are made anew, since a pickle can also set the attributes of what it has found.
        allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("builtins", "set"): set,
            ("__builtin__", "set"): set,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: _tensor(*arguments),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        return allowed.get((module, name)) or _Uncallable(f"{module}.{name}", (_Record,), {})

    def persistent_load(self, pid: Any) -> Any:
        kind, *details = pid
        if kind == "module":  # legacy files carry the source of each class, for a warning
            return details[0]
        if kind != "storage" or self.storage is None:
            raise pickle.UnpicklingError(f"the pickle refers to {kind!r}; only tensors are read")
        dtype, key, _, count, *view = details
        if not isinstance(dtype, torch.dtype) or (view and view[0] is not None):
            raise pickle.UnpicklingError(f"the pickle holds a tensor of an unknown kind: {dtype!r}")
        return self.storage(dtype, str(key), int(count))


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """What torch._utils._rebuild_tensor_v2 makes; as_strided checks the bounds."""
    if not isinstance(storage, Tensor) or math.prod(size) > storage.numel():
        raise pickle.UnpicklingError("the pickle makes a tensor of something else")
    return torch.as_strided(storage, size, stride, offset)


def _load(path: Path) -> Any:
    with path.open("rb") as stream:
        if zipfile.is_zipfile(stream):
            return _load_zip(stream)
        stream.seek(0)
        return _load_legacy(stream, path.stat().st_size)


def _load_zip(stream: IO[bytes]) -> Any:
    with zipfile.ZipFile(stream) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise pickle.UnpicklingError("it is a zip file, but not one of torch.save")
        folder = names[0].removesuffix("data.pkl")
        cache: dict[str, Tensor] = {}

        def storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
            if key not in cache:
                data = archive.read(f"{folder}data/{key}")
                if len(data) != count * dtype.itemsize:
                    raise pickle.UnpicklingError(f"its tensor {key} has {len(data)} bytes, not {count} numbers")
                cache[key] = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
            return cache[key]

        return _DataOnly(io.BytesIO(archive.read(names[0])), storage).load()


def _load_legacy(stream: IO[bytes], size: int) -> Any:
    if _DataOnly(stream).load() != LEGACY_MAGIC or _DataOnly(stream).load() != LEGACY_VERSION:
        raise pickle.UnpicklingError("it is not a file of torch.save")
    if _DataOnly(stream).load().get("little_endian") is not True:
        raise pickle.UnpicklingError("it was written on a big-endian machine")
    storages: dict[str, Tensor] = {}  # their numbers come after the object that they are part of

    def storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
        if not 0 <= count * dtype.itemsize <= size:
            raise pickle.UnpicklingError(f"its tensor {key} would have {count} numbers: more than the file")
        return storages.setdefault(key, torch.empty(count, dtype=dtype))

    result = _DataOnly(stream, storage).load()
    for key in _DataOnly(stream).load():
        tensor = storages[str(key)]
        (count,) = struct.unpack("<q", stream.read(8))
        data = stream.read(count * tensor.itemsize) if count == tensor.numel() else b""
        if len(data) != tensor.numel() * tensor.itemsize:
            raise pickle.UnpicklingError(f"its tensor {key} is not whole")
        if data:
            tensor.copy_(torch.frombuffer(bytearray(data), dtype=tensor.dtype))
    return result
