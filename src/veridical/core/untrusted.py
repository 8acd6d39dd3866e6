"""What may come from a stranger: files read up to a size, arrays and JSON that cannot take the memory, text that cannot
steer a terminal.

Whatever a file says of its own size is compared with the bytes that are there before anything is made of it. What the
limits are, and which inputs were tried: docs/untrusted.md.
"""

import ast
import errno
import json
import lzma
import math
import os
import re
import reprlib
import stat
import struct
import unicodedata
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

MOST_TEXT_BYTES = 64 * 2**20
"""Of a file of text: a recipe, JSON, a table."""
MOST_ARRAY_BYTES = 4 * 2**30
"""Of the arrays of one .npz file, unpacked."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200
_HEADER_BYTES = 4096  # of a .npy file; NumPy's own are of 128
_KINDS = "fiub"  # numbers and booleans: neither objects, which are pickles, nor records


def read_file(path: Path, most: int = MOST_TEXT_BYTES) -> bytes:
    """The bytes of a regular file.

    Errors: OSError whose strerror is a sentence's end, also for a pipe, a device or a socket (reading one could wait or
            go on for ever) and for a file of more than `most` bytes.
    """
    # Without waiting for whoever would write into a pipe.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as stream:  # noqa: PTH123
        about = os.fstat(handle)
        if stat.S_ISDIR(about.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file but a pipe, a device or a socket", str(path))
        data = stream.read(about.st_size + 1) if about.st_size <= most else None
        if data and len(data) > about.st_size:  # it grows, or does not know its size
            data += read_up_to(stream, most + 1 - len(data))
        if data is None or len(data) > most:
            raise OSError(errno.EFBIG, f"it is larger than {_bytes(most)}, the most that is read", str(path))
        return data


def parse_json(data: bytes | str) -> Any:
    """json.loads, whose every failure is a ValueError: also nesting that is too deep."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def short(value: object) -> str:
    """A value as it stands in a message: its repr, cut where it is long or deep."""
    try:
        return _SHORT.repr(value)
    except (RecursionError, ValueError):  # a whole number of more digits than Python writes
        return f"a {type(value).__name__}"


def printable(text: str) -> str:
    r"""The text with control characters written out, so that none of them steers a terminal; lines and tabs stay.

    >>> printable("l1\x1b]0;title\x07\n"), printable("a\u202eb")
    ('l1\\x1b]0;title\\x07\n', 'a\\u202eb')
    """
    return "".join(each if not _steers(each) else repr(each)[1:-1] for each in text)


def _steers(character: str) -> bool:
    if character in "\n\t" or " " <= character <= "~":
        return False
    kind = unicodedata.category(character)
    turns = "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"  # the direction of writing
    return kind in ("Cc", "Cs") or turns


# ---- arrays of NumPy ----


def read_npy(path: Path, most: int = MOST_ARRAY_BYTES) -> np.ndarray:
    """The array of a .npy file. Errors: ValueError for anything but plain numbers, or a file of another size than it
    says; OSError."""
    return parse_npy(read_file(path, most))


def parse_npy(data: bytes) -> np.ndarray:
    """The array in the bytes of a .npy file; see `read_npy`. NumPy makes room for what the header says before it looks
    at what is there."""
    if data[:6] != b"\x93NUMPY" or len(data) < 10:
        raise ValueError("it is no array of NumPy")
    start, code = (10, "<H") if data[6] == 1 else (12, "<I")
    (length,) = struct.unpack_from(code, data.ljust(12, b"\0"), 8)
    if data[6] not in (1, 2, 3) or length > _HEADER_BYTES or start + length > len(data):
        raise ValueError("its header is damaged")
    try:
        header = ast.literal_eval(data[start : start + length].decode("utf-8").strip())
        kind, shape, turned = np.dtype(header["descr"]), header["shape"], header["fortran_order"]
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError("its header is damaged") from error
    if not isinstance(header["descr"], str) or kind.kind not in _KINDS:
        raise ValueError(f"it holds {short(header['descr'])}, no plain numbers; allow_pickle is never set")
    whole = isinstance(shape, tuple) and all(isinstance(side, int) and 0 <= side < 2**48 for side in shape)
    if not whole or len(shape) > 16 or math.prod(shape) * kind.itemsize != len(data) - start - length:
        raise ValueError(f"it says to have the shape {short(shape)}, which its {_bytes(len(data))} do not hold")
    order = "F" if turned else "C"
    return np.frombuffer(data, kind, offset=start + length).reshape(shape, order=order).copy()  # type: ignore[call-overload]


def read_npz(path: Path, most: int = MOST_ARRAY_BYTES) -> dict[str, np.ndarray]:
    """The arrays of a .npz file. Errors: ValueError for anything but arrays of plain numbers, and for more than `most`
    bytes of them; OSError."""
    with open_zip(path, most) as archive:
        return {each.filename.removesuffix(".npy"): parse_npy(unzip(archive, each)) for each in archive.infolist()}


# ---- zip files ----


def open_zip(path: Path, most: int, *, stored: bool = False) -> zipfile.ZipFile:
    """A zip file that says to unpack to at most `most` bytes.

    Args:   stored: its members may not be compressed, so that it is as large as what it holds.
    Errors: ValueError, OSError.
    """
    if not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, struct.error, OverflowError, OSError, ValueError) as error:
        raise ValueError(f"it is no whole zip file ({error})") from error
    members = archive.infolist()
    total = sum(each.file_size for each in members)
    packed = stored and any(each.compress_type != zipfile.ZIP_STORED for each in members)
    if total > most or packed or (stored and total > path.stat().st_size):
        archive.close()
        raise ValueError(
            "its members are compressed"
            if packed
            else f"it says to unpack to {_bytes(total)}, more than {_bytes(most)}"
        )
    return archive


def unzip(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """One member, no longer than it says. Errors: ValueError."""
    try:
        with archive.open(member) as stream:
            data = read_up_to(stream, member.file_size)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"its member {short(member.filename)} is damaged ({error})") from error
    if len(data) != member.file_size:
        raise ValueError(f"its member {short(member.filename)} is not of the size that it says")
    return data


def read_up_to(stream: IO[bytes], most: int) -> bytes:
    """At most so many bytes, in pieces: room is made for what is there, not for what was said to be."""
    pieces, left = [], most
    while left > 0 and (piece := stream.read(min(left, 2**20))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def unpack(data: bytes, most: int) -> bytes:
    """What zlib's `data` unpack to. Errors: ValueError for damage, and for more than `most` bytes."""
    worker = zlib.decompressobj()
    try:
        unpacked = worker.decompress(data, most + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(unpacked) > most:
        raise ValueError(f"it unpacks to more than {_bytes(most)}")
    return unpacked


def _bytes(number: int) -> str:
    return f"{number / 2**20:,.0f} MiB" if number >= 2**20 else f"{number:,} bytes"


def is_name(text: object) -> bool:
    """Whether it may name one file or folder of ours: small letters, digits and hyphens, as `slugs` makes them."""
    return isinstance(text, str) and re.fullmatch(r"[a-z0-9][a-z0-9-]{0,99}", text) is not None
