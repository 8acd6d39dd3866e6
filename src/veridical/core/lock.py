"""One process at a time in a folder, by a lock that the system lets go of when its owner ends, by whatever.

The lock is on the file FILE in the folder. What the file says of the owner is for people; nothing is decided by it, so
that a clock that jumps, or a process number that is used again, changes nothing.
"""

import contextlib
import errno
import json
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from veridical.core.errors import FolderInUse

FILE = ".lock"

_BUSY = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_ABOUT_BYTES = 4096
_TRIES = 1000  # each fails only where another process has let go in between
_held: set[int] = set()


@contextlib.contextmanager
def locked(folder: Path, note: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold `folder`, which is made when missing, and removed again where nothing has come into it.

    Processes that this one forks do not hold it: a killed owner's data loaders keep nobody out. Where the folder cannot
    be written to, it is not locked: whoever writes there first says what is wrong.

    Args:   note: told where the file system has no locks (some of networks), so that nothing is locked.
    Errors: FolderInUse, at once, naming the owner.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    handle = _acquire(folder, note or (lambda text: None))
    try:
        yield
    finally:
        if handle is not None:
            _release(folder / FILE, handle)
            with contextlib.suppress(OSError):  # something has come into it
                for each in made:
                    each.rmdir()


def this_process() -> dict[str, object]:
    """What an owner tells of itself."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:1000],
    }


def _acquire(folder: Path, note: Callable[[str], None]) -> int | None:
    path = folder / FILE
    for _ in range(_TRIES):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Not through a link: a folder from elsewhere could lead the line below to any file.
            handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except FileNotFoundError:  # its owner has just removed the folder
            continue
        except OSError:
            return None
        try:
            _lock(handle)
        except OSError as error:
            about = _read(handle)
            os.close(handle)
            if error.errno in _BUSY:
                raise FolderInUse(_in_use(folder, about)) from None
            note(f"{path} cannot be locked ({error.strerror}): see to it yourself that no other process uses {folder}.")
            return None
        if _is_still(path, handle):
            _held.add(handle)
            _sign(handle)
            return handle
        os.close(handle)  # of an owner that removed it before we had it
    return None


def _sign(handle: int) -> None:
    """Write into the file who holds it."""
    about = this_process()
    with contextlib.suppress(OSError):  # on a full disk the lock holds without a name
        os.truncate(handle, 0)
        os.write(handle, json.dumps(about).encode())


def _release(path: Path, handle: int) -> None:
    """The file goes first, while it is held: whoever has it open finds that it is no longer the one in the folder."""
    with contextlib.suppress(OSError):  # Windows lets nobody remove an open file, and the folder may be gone
        path.unlink()
    _held.discard(handle)
    os.close(handle)


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        os.lseek(handle, _ABOUT_BYTES, os.SEEK_SET)  # beyond what others want to read
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        os.lseek(handle, 0, os.SEEK_SET)
else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _let_go() -> None:
        while _held:
            os.close(_held.pop())

    os.register_at_fork(after_in_child=_let_go)


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except OSError:
        return False


def _read(handle: int) -> dict[str, object]:
    """What the owner wrote of itself; nothing when it cannot be read."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        about = json.loads(os.read(handle, _ABOUT_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def _in_use(folder: Path, about: dict[str, object]) -> str:
    who = "another process"
    if "pid" in about:
        there = f" on {about.get('host')}" if about.get("host") != socket.gethostname() else ""
        who = f"process {about['pid']}{there}, since {about.get('since')}: {about.get('command')}"
    return f"{folder} is in use by {who}. Wait until that has ended, or stop it; or name another folder."
