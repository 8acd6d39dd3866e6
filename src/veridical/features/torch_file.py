"""Files of torch.save, and NumPy's arrays as pickles, read as data.

They are pickles, and a pickle is a program for a small machine with a stack, which Python's reader would run with all
that is installed. Here is that machine anew, with the instructions of which lists, dicts, text, numbers and tensors
are made. It imports nothing, and calls nothing but the functions below, which make tensors and arrays of the bytes that
are in the file. Source of the instructions: Lib/pickletools.py; of the file formats: torch/serialization.py.
"""

import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from veridical.core.untrusted import open_zip, read_up_to, short, unzip

# The legacy format: pickles of this number, of the version and of the machine, then of the object and of the storages'
# keys; then each storage: its length as int64, its bytes.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001

MOST_BYTES = 64 * 2**30
"""Of a file of tensors."""
_MOST_OBJECTS = 4_000_000  # steps, and items that are copied; a state dict takes about forty for each tensor
_MOST_VIEWS = 8  # so many times the file's bytes may stand in its tensors, which may share memory
_MOST_TEXT = 2**20  # bytes of one text; of numbers in words, 64
_DEEPEST = 200  # marks that are open at once

STORAGES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Float": torch.float32,
        "Double": torch.float64,
        "Byte": torch.uint8,
        "Char": torch.int8,
        "Short": torch.int16,
        "Int": torch.int32,
        "Long": torch.int64,
        "Bool": torch.bool,
    }.items()
}


_BROKEN = (
    ValueError, TypeError, AttributeError, LookupError, RuntimeError, OverflowError, struct.error, zipfile.BadZipFile
)  # fmt: skip


class NotData(ValueError):
    """The file is broken, or asks for what is not data; nothing of it was run. code: the name it asks for, or ""."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class Record:
    """In place of an object of a foreign class: its attributes."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}


class _Foreign:
    """In place of a class or function that is not known: a name, which nobody imports."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Call:
    """A function that the pickle may call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


class _Array:
    """An array of NumPy, which gets its shape and its numbers after it is made."""

    def __init__(self) -> None:
        self.values: np.ndarray | None = None


class _Kind:
    """NumPy's dtype, which gets its order of bytes after it is made."""

    def __init__(self, code: object) -> None:
        self.code, self.order = code, "<"


# ---- files ----


def read_torch(path: Path, *, records: bool = False) -> Any:
    """What torch.save has written, in either format: lists, tuples, dicts, text, numbers and tensors.

    Tensors may share memory; together they are no larger than a few times the file.

    Args:   records: objects of classes that are not known become a `Record`; otherwise they are an error.
    Errors: NotData, a ValueError, when it is broken or asks for anything but data; OSError.
    """
    if path.exists() and not path.is_file():
        raise NotData("it is no regular file")
    with path.open("rb") as stream:
        size = path.stat().st_size
        try:
            zipped = zipfile.is_zipfile(stream)
            stream.seek(0)
            return _read_zip(path, records) if zipped else _read_legacy(stream, size, records)
        except NotData:
            raise
        except _BROKEN as error:
            raise NotData(f"it is broken ({type(error).__name__}: {error})") from error


def _read_zip(path: Path, records: bool) -> Any:
    with open_zip(path, MOST_BYTES, stored=True) as archive:
        members = {each.filename: each for each in archive.infolist()}
        names = [name for name in members if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise NotData("it is a zip file, but not one of torch.save")
        folder = names[0].removesuffix("data.pkl")
        order = members.get(f"{folder}byteorder")
        if order is not None and unzip(archive, order) != b"little":
            raise NotData("it was written on a big-endian machine")
        kept: dict[str, Tensor] = {}

        def storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
            if key not in kept:
                data = unzip(archive, members[f"{folder}data/{key}"])
                if len(data) != count * dtype.itemsize:
                    raise NotData(f"its tensor {short(key)} has {len(data)} bytes, not {short(count)} numbers")
                kept[key] = _numbers(data, dtype)
            if kept[key].dtype != dtype or len(kept[key]) != count:
                raise NotData(f"its tensor {short(key)} is of two kinds")
            return kept[key]

        reader = Reader(unzip(archive, members[names[0]]), path.stat().st_size, storage, records=records)
        return reader.read()


def _read_legacy(stream: IO[bytes], size: int, records: bool) -> Any:
    # Its pickles stand before its numbers; where the one ends only reading it tells.
    data = read_up_to(stream, min(size, MOST_BYTES))
    at = 0
    storages: dict[str, Tensor] = {}  # their numbers come after the object that they are part of
    left = size

    def storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
        nonlocal left
        if key not in storages:
            left -= count * dtype.itemsize
            if count < 0 or left < 0:
                raise NotData(f"its tensor {short(key)} would have {short(count)} numbers: more than the file")
            storages[key] = torch.zeros(count, dtype=dtype)
        if storages[key].dtype != dtype or len(storages[key]) != count:
            raise NotData(f"its tensor {short(key)} is of two kinds")
        return storages[key]

    found = []
    for number in range(5):
        reader = Reader(data, size, storage if number == 3 else None, records=records and number == 3, start=at)
        found.append(reader.read())
        at = reader.at
        if number == 1 and found != [LEGACY_MAGIC, LEGACY_VERSION]:
            raise NotData("it is not a file of torch.save")
    _, _, machine, result, keys = found
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise NotData("it was written on a big-endian machine")
    for key in keys if isinstance(keys, list) else ():
        tensor = storages[str(key)]
        (count,) = struct.unpack_from("<q", data, at)
        at += 8
        held = data[at : at + len(tensor) * tensor.itemsize]
        if count != len(tensor) or len(held) != len(tensor) * tensor.itemsize:
            raise NotData(f"its tensor {short(key)} is not whole")
        if held:
            tensor.copy_(_numbers(held, tensor.dtype))
        at += len(held)
    return result


def _numbers(data: bytes, dtype: torch.dtype) -> Tensor:
    if dtype == torch.bool:  # a byte that is neither 0 nor 1 would be a truth of its own
        return torch.frombuffer(bytearray(data), dtype=torch.uint8) != 0 if data else torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


# ---- the machine ----


class Reader:
    """One pickle. start: where it begins in `data`; `at` is where it ends, once it is read.

    Args:   size: bytes of the whole file. storage: (dtype, key, count) -> a tensor of a row of numbers; None: there are
            no tensors. records: see `read_torch`.
            arrays: arrays of NumPy may be in it, in place of tensors.
    """

    def __init__(
        self,
        data: bytes,
        size: int,
        storage: Callable[[torch.dtype, str, int], Tensor] | None = None,
        *,
        records: bool = False,
        arrays: bool = False,
        start: int = 0,
    ) -> None:
        self.data, self.at, self.storage, self.records = data, start, storage, records
        self.left = _MOST_VIEWS * size + 2**20
        self.objects = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.known = _arrays() if arrays else self._tensors()

    def _tensors(self) -> dict[tuple[str, str], Any]:
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): _Call(
                lambda pairs=(): {_key(key): value for key, value in self._own(pairs)}
            ),
            ("builtins", "set"): _Call(lambda items=(): {_key(each) for each in self._own(items)}),
            ("__builtin__", "set"): _Call(lambda items=(): {_key(each) for each in self._own(items)}),
            ("_codecs", "encode"): _Call(self._encoded),  # bytes, as the second version of the language writes them
            ("torch", "Size"): _Call(lambda sizes=(): tuple(self._own(sizes))),
            ("torch", "device"): _Call(lambda kind, number="": f"{kind}{number}"),
            ("torch._utils", "_rebuild_tensor_v2"): _Call(self._tensor),
            ("torch._utils", "_rebuild_parameter"): _Call(lambda tensor, *_: tensor),
        }
        known |= {(module, name): dtype for name, dtype in STORAGES.items() for module in ("torch", "torch.cuda")}
        return known | {("torch", str(dtype).removeprefix("torch.")): dtype for dtype in STORAGES.values()}

    def _tensor(self, storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
        """What torch._utils._rebuild_tensor_v2 makes; never larger than the row of numbers that it is a view of."""
        if not isinstance(storage, Tensor) or not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise NotData("the pickle makes a tensor of something else")
        whole = all(isinstance(each, int) and 0 <= each < 2**48 for each in (offset, *size, *stride))
        if not whole or len(size) != len(stride) or len(size) > 16 or math.prod(size) > len(storage):
            raise NotData(f"the pickle makes a tensor of the shape {short(size)} of {len(storage)} numbers")
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= len(storage):
            raise NotData(f"the pickle makes a tensor of more than its {len(storage)} numbers")
        self.left -= math.prod(size) * storage.itemsize
        if self.left < 0:
            raise NotData("its tensors are many times larger than the file")
        return torch.as_strided(storage, size, stride, offset if math.prod(size) else 0)

    def _encoded(self, text: str, _code: object) -> bytes:
        self._count(len(text) // 64)  # one text may be copied again and again
        return text.encode("latin-1")

    def _own(self, items: Any) -> list[Any]:
        """A copy of a list or tuple of the pickle's. It counts, as one list may be copied again and again."""
        if not isinstance(items, list | tuple):
            raise NotData("the pickle makes a collection of something else")
        self._count(len(items))
        return list(items)

    def _count(self, number: int) -> None:
        self.objects += number
        if self.objects > _MOST_OBJECTS:
            raise NotData("the pickle makes more objects than any file of tensors")

    def read(self) -> Any:
        """The object. Errors: NotData; what a broken pickle makes Python raise (IndexError, TypeError, ...)."""
        while True:
            code = self._take(1)
            if code == b".":
                return self._finished(self.stack.pop())
            try:
                step = _STEPS[code]
            except KeyError:
                raise NotData(f"the pickle has the instruction {code!r}, which makes no data") from None
            self._count(1)
            if len(self.marks) > _DEEPEST:
                raise NotData("the pickle is nested too deeply")
            step(self)

    @staticmethod
    def _finished(value: Any) -> Any:
        return value.values if isinstance(value, _Array) else value

    # what instructions do

    def _take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        if count < 0 or len(piece) < count:
            raise NotData("the pickle ends too early")
        self.at += count
        return piece

    def _number(self, code: str) -> Any:
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _line(self, most: int = 64) -> str:
        end = self.data.find(b"\n", self.at, self.at + most + 1)
        if end < 0:
            raise NotData("the pickle ends too early")
        return self._take(end + 1 - self.at)[:-1].decode("utf-8")

    def _text(self, code: str) -> str:
        count = self._number(code)
        if count > _MOST_TEXT:
            raise NotData("the pickle holds a text of millions of letters")
        return self._take(count).decode("utf-8")

    def _until_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _pairs(self) -> Iterator[tuple[Any, Any]]:
        items = self._until_mark()
        keys = [_key(key) for key in items[::2]]
        return zip(keys, map(self._finished, items[1::2]), strict=True)

    def _global(self, module: object, name: object) -> Any:
        found = self.known.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if found is not None:
            return found
        code = f"{module}.{name}"
        if not self.records:
            raise NotData(f"the pickle asks for {short(code)[1:-1]}, which is code", code)
        return _Foreign(code)

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Call):
            _refuse(function)
        if not isinstance(arguments, tuple):
            raise NotData("the pickle calls a function with something else than arguments")
        self.stack.append(function.function(*arguments))

    def _new(self) -> None:
        _, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, _Foreign):
            _refuse(kind)
        self.stack.append(Record())

    def _build(self) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, Record) and isinstance(state, dict):
            self._count(len(state))
            built.attributes.update({str(key): value for key, value in state.items()})
        elif isinstance(built, _Kind) and isinstance(state, tuple):
            built.order = str(state[1])
        elif isinstance(built, _Array) and isinstance(state, tuple):
            built.values = _array(*state)
        elif not isinstance(built, dict):  # an OrderedDict's attributes are left out
            raise NotData("the pickle sets attributes of something that has none")

    def _refer(self) -> None:
        kind, *details = self.stack.pop()
        if kind == "module":  # legacy files carry the source of each class, for a warning
            self.stack.append(details[0])
            return
        if kind != "storage" or self.storage is None:
            raise NotData(f"the pickle refers to {short(kind)}; only tensors are read")
        dtype, key, _, count, *view = details
        if not isinstance(dtype, torch.dtype) or not isinstance(count, int) or (view and view[0] is not None):
            raise NotData(f"the pickle holds a tensor of an unknown kind: {short(dtype)}")
        self.stack.append(self.storage(dtype, str(key), count))

    def _keep(self, place: int) -> None:
        if not 0 <= place < _MOST_OBJECTS:
            raise NotData("the pickle remembers more objects than any file of tensors")
        self.memo[place] = self.stack[-1]

    def _mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise NotData("the pickle adds to something that is no list")
        target.extend(map(self._finished, items))

    def _add(self) -> None:
        items, target = [_key(each) for each in self._until_mark()], self.stack[-1]
        if not isinstance(target, set):
            raise NotData("the pickle adds to something that is no set")
        target.update(items)

    def _set_items(self, pairs: Iterator[tuple[Any, Any]]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise NotData("the pickle sets a key of something that is no dict")
        target.update(pairs)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items(iter([(_key(key), self._finished(value))]))

    def _tuple(self, count: int) -> None:
        if count > len(self.stack):
            raise NotData("the pickle takes from an empty stack")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        self.stack.append(tuple(items))

    def _global_of_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self._global(module, name))


def read_arrays(data: bytes) -> Any:
    """What a pickle of dicts, text, numbers and arrays of NumPy holds. Errors: NotData."""
    try:
        return Reader(data, len(data), arrays=True).read()
    except NotData:
        raise
    except _BROKEN as error:
        raise NotData(f"it is broken ({type(error).__name__}: {error})") from error


def _refuse(what: Any) -> NoReturn:
    name = what.name if isinstance(what, _Foreign) else f"a {type(what).__name__}"
    raise NotData(f"the pickle calls {short(name)[1:-1]}, which is not data; nothing of it was run", name)


def _key(key: Any) -> Any:
    """Of a dict: what is hashed at once. A tuple of tuples of tuples could take for ever."""
    if not isinstance(key, str | int | float | bytes | None):
        raise NotData(f"the pickle has a {type(key).__name__} as a key")
    return key


def _arrays() -> dict[tuple[str, str], Any]:
    known: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): _Call(lambda code, *_: _Kind(code)),
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        known[module, "_reconstruct"] = _Call(_reconstruct)
    return known


def _reconstruct(kind: object, _shape: object, _code: object) -> _Array:
    if kind is not np.ndarray:
        raise NotData(f"the pickle asks for an array of type {type(kind).__name__}; only numpy.ndarray is allowed")
    return _Array()


def _array(_version: int, shape: tuple[int, ...], kind: _Kind, turned: bool, data: bytes) -> np.ndarray:
    if not isinstance(kind, _Kind) or not isinstance(data, bytes):
        raise NotData("the pickle makes an array of something else")
    dtype = np.dtype(f"{'<' if kind.order in '|=' else kind.order}{kind.code}")
    whole = isinstance(shape, tuple) and all(isinstance(side, int) and 0 <= side < 2**48 for side in shape)
    if dtype.kind not in "fiub" or not whole or math.prod(shape) * dtype.itemsize != len(data):
        raise NotData(f"the pickle makes an array of the shape {short(shape)} of {len(data)} bytes")
    order = "F" if turned else "C"
    return np.frombuffer(data, dtype).reshape(shape, order=order).copy()  # type: ignore[call-overload]


def _push(make: Callable[[Reader], Any]) -> Callable[[Reader], None]:
    def step(reader: Reader) -> None:
        value = make(reader)  # which may begin another stack
        reader.stack.append(value)

    return step


def _bytes_of(code: str) -> Callable[[Reader], bytes]:
    return lambda reader: reader._take(reader._number(code))


def _boolean(reader: Reader) -> bool | int:
    line = reader._line()
    return line == "01" if line in ("00", "01") else int(line)


def _whole(reader: Reader) -> int:
    count = reader._number("<B")
    if count > 64:
        raise NotData("the pickle holds a number of hundreds of digits")
    return int.from_bytes(reader._take(count), "little", signed=True)


# instruction -> what it does
_STEPS: dict[bytes, Callable[[Reader], Any]] = {
    b"\x80": lambda reader: reader._take(1),  # the version of the language
    b"\x95": lambda reader: reader._take(8),  # how much comes at once
    b"(": Reader._mark,
    b"0": lambda reader: reader.stack.pop(),
    b"1": Reader._until_mark,
    b"2": _push(lambda reader: reader.stack[-1]),
    b"N": _push(lambda reader: None),
    b"\x88": _push(lambda reader: True),
    b"\x89": _push(lambda reader: False),
    b"I": _push(_boolean),
    b"L": _push(lambda reader: int(reader._line().removesuffix("L"))),
    b"J": _push(lambda reader: reader._number("<i")),
    b"K": _push(lambda reader: reader._number("<B")),
    b"M": _push(lambda reader: reader._number("<H")),
    b"\x8a": _push(_whole),
    b"F": _push(lambda reader: float(reader._line())),
    b"G": _push(lambda reader: reader._number(">d")),
    b"V": _push(lambda reader: reader._line(_MOST_TEXT).encode("ascii", "replace").decode("unicode_escape")),
    b"X": _push(lambda reader: reader._text("<I")),
    b"\x8c": _push(lambda reader: reader._text("<B")),
    b"\x8d": _push(lambda reader: reader._text("<Q")),
    b"T": _push(lambda reader: reader._text("<I")),
    b"U": _push(lambda reader: reader._text("<B")),
    b"B": _push(_bytes_of("<I")),
    b"C": _push(_bytes_of("<B")),
    b"\x8e": _push(_bytes_of("<Q")),
    b"}": _push(lambda reader: {}),
    b"]": _push(lambda reader: []),
    b")": _push(lambda reader: ()),
    b"\x8f": _push(lambda reader: set()),
    b"a": lambda reader: reader._extend([reader.stack.pop()]),
    b"e": lambda reader: reader._extend(reader._until_mark()),
    b"s": Reader._set_item,
    b"u": lambda reader: reader._set_items(reader._pairs()),
    b"\x90": Reader._add,
    b"t": _push(lambda reader: tuple(reader._until_mark())),
    b"\x85": lambda reader: reader._tuple(1),
    b"\x86": lambda reader: reader._tuple(2),
    b"\x87": lambda reader: reader._tuple(3),
    b"l": _push(lambda reader: list(map(Reader._finished, reader._until_mark()))),
    b"d": _push(lambda reader: dict(reader._pairs())),
    b"p": lambda reader: reader._keep(int(reader._line())),
    b"q": lambda reader: reader._keep(reader._number("<B")),
    b"r": lambda reader: reader._keep(reader._number("<I")),
    b"\x94": lambda reader: reader._keep(len(reader.memo)),
    b"g": _push(lambda reader: reader.memo[int(reader._line())]),
    b"h": _push(lambda reader: reader.memo[reader._number("<B")]),
    b"j": _push(lambda reader: reader.memo[reader._number("<I")]),
    b"c": _push(lambda reader: reader._global(reader._line(256), reader._line(256))),
    b"\x93": Reader._global_of_stack,
    b"R": Reader._reduce,
    b"\x81": Reader._new,
    b"b": Reader._build,
    b"Q": Reader._refer,
}
