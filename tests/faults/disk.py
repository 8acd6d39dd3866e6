"""Every operation that a process carries out on the files of one folder, and a death in the middle of any of them."""

import builtins
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC


class Disk:
    """Counts what changes the disk: opening for writing, each write, fsync, mkdir, rename, unlink, rmdir, truncate.

    Args: at: the operation, from 1, before which the process kills itself; with `half`, in the first write from there:
          after half of its bytes have gone to the file. log: a file outside of the folder, for a line per operation.
    """

    def __init__(self, root: Path, at: int = 0, *, half: bool = False, log: Path | None = None) -> None:
        self.root, self.at, self.half, self.count = str(root), at, half, 0
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if log else None

    def watch(self) -> "Disk":
        """From now on, until the process ends: there is no way back."""
        sys.addaudithook(self._heard)
        fsync, opened = os.fsync, io.open

        def flushed(handle: int) -> None:
            self._before("fsync", _named(handle))
            fsync(handle)

        def open_(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            stream = opened(file, mode, *rest, **options)
            if isinstance(file, int) or not set(mode) & set("wax+") or not self._inside(os.fspath(file)):
                return stream
            return _Written(stream, lambda data: self._writes(stream, data, os.fspath(file)))

        os.fsync = flushed
        io.open = builtins.open = open_  # type: ignore[assignment] # pathlib asks io for it
        return self

    def _heard(self, event: str, told: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = told
            if not isinstance(path, int) and flags & _WRITES:
                self._before("open", path)
        elif event in ("os.mkdir", "os.remove", "os.rmdir"):
            path = _joined(told[0], told[-1])
            if event != "os.mkdir" or not os.path.lexists(path):
                self._before(event, path)
        elif event == "os.rename":
            self._before(event, _joined(told[1], told[3]))
        elif event == "os.truncate":
            self._before(event, _named(told[0]) if isinstance(told[0], int) else told[0])

    def _inside(self, path: Any) -> bool:
        return str(Path(os.fsdecode(path)).absolute()).startswith(self.root)

    def _before(self, what: str, path: Any) -> bool:
        """Note an operation; die before it if it is the one. Whether half of it is to be done, if it is a write."""
        if not self._inside(path):
            return False
        self.count += 1
        if self._log is not None:
            os.write(self._log, f"{what} {os.path.relpath(os.fsdecode(path), self.root)}\n".encode())
        if self.count == self.at and not self.half:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.half and self.count >= self.at > 0

    def _writes(self, stream: Any, data: Any, path: Any) -> None:
        if self._before("write", path):
            stream.write(data[: len(data) // 2])
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)


class _Written:
    """A file opened for writing."""

    def __init__(self, stream: Any, before: Callable[[Any], None]) -> None:
        self._stream, self._before = stream, before

    def write(self, data: Any) -> int:
        self._before(data)
        return int(self._stream.write(data))

    def __enter__(self) -> "_Written":
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _named(handle: int) -> str:
    return str(Path(f"/proc/self/fd/{handle}").readlink())


def _joined(path: Any, folder: int) -> str:
    """The path that an operation names relative to an open folder (-1: none)."""
    return os.fsdecode(path) if folder == -1 else f"{_named(folder)}/{os.fsdecode(path)}"
