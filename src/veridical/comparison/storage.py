"""Run folders on a storage that several machines reach: s3://bucket/run, gs://bucket/run, whatever fsspec knows.

The run is worked on in a local folder, as any other, and what is finished there is copied to the storage: each
checkpoint when it is whole, each result, image and table when it is written. The storage is what counts. A machine
that goes on with a run begins by copying from it, so what is lost with another was made after its last checkpoint.

The stores meant here write a file whole or not at all. A checkpoint is several files, of which state.json comes last
and has the hashes of the others.
"""

import contextlib
import json
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from veridical.core import catalog
from veridical.core.errors import DataError, MissingExtra, RecipeError, VeridicalError
from veridical.core.lock import this_process
from veridical.training.checkpoint import StorageError

# Left where they are until a training goes on; and until somebody looks at the images.
OF_TRAINING = ("checkpoints", "events.out.*")
PICTURES = ("*.png",)
_OWNER = ".owner.json"
_BEAT_SECONDS = 10.0
_BEATS_MISSED = 3  # after so many another process may take the run over


def is_url(run: str | Path) -> bool:
    """Whether it names a folder on a storage, and not one of this machine.

    >>> is_url("s3://bucket/run"), is_url("runs/x"), is_url("file:///data/run")
    (True, False, False)
    """
    text = str(run)
    return "://" in text and not text.startswith("file://")


def as_path(run: str | Path) -> Path:
    """The path of a folder of this machine, which may be written as file://."""
    return Path(str(run).removeprefix("file://"))


class Store:
    """Where a run is kept: here, the folder that it is worked on in, so that there is nothing to copy."""

    url: str | None = None

    def pull(self, place: str | Path = "", *, without: Sequence[str] = ()) -> None:
        """Copy what the storage holds below a place inside the run. without: patterns of names of files and folders."""

    def push(self, place: str | Path = "") -> None:
        """Make the storage hold what stands below a place inside the run."""


class Mirror(Store):
    """A run on a storage, and the local folder in which it is worked on.

    Errors: MissingExtra when fsspec, or what it needs for this kind of storage, is not installed. Every copy raises
            StorageError that names the URL and the cause.
    """

    def __init__(self, url: str, folder: Path) -> None:
        fsspec = catalog.require("fsspec", "remote", f"a run at {url}")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url.rstrip("/"), use_listings_cache=False)
        except ImportError as error:
            raise MissingExtra(
                f"a run at {url} needs a package that is not installed ({error}). Install it with: "
                'pip install "veridical[remote]" for s3://, pip install gcsfs for gs://'
            ) from error
        except ValueError as error:
            raise RecipeError(f"{url} names no storage that fsspec knows: {error}.") from error
        self.url, self.folder = url.rstrip("/"), folder
        # Size and time of each local file when it was last as in the storage.
        self._held: dict[str, tuple[int, int]] = {}
        self._lost: str | None = None

    def pull(self, place: str | Path = "", *, without: Sequence[str] = ()) -> None:
        for name in self._names(place):
            if any(fnmatch(part, pattern) for part in PurePosixPath(name).parts for pattern in without):
                continue
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
            with self._speaking("read", name):
                self._fs.get_file(self._at(name), str(temporary))
            temporary.replace(path)
            self._held[name] = _stamp(path)

    def push(self, place: str | Path = "") -> None:
        if self._lost:
            raise StorageError(self._lost)
        start = self.folder / place
        found = [start] if start.is_file() else sorted(path for path in start.rglob("*") if path.is_file())
        here = {path.relative_to(self.folder).as_posix(): path for path in found if not _hidden(path, self.folder)}
        # What says that other files are whole comes after them.
        for name in sorted(here, key=lambda name: (name.endswith((".json", ".toml")), name)):
            stamp = _stamp(here[name])
            if self._held.get(name) != stamp:
                with self._speaking("write", name):
                    self._fs.put_file(str(here[name]), self._at(name))
                self._held[name] = stamp
        below = PurePosixPath(place.as_posix() if isinstance(place, Path) else place)
        for name in [each for each in self._held if each not in here and PurePosixPath(each).is_relative_to(below)]:
            with self._speaking("remove", name), contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._at(name))
            del self._held[name]

    def _names(self, place: str | Path) -> list[str]:
        """What the storage holds below a place, as paths inside the run."""
        where = self._at(str(place))
        with self._speaking("read", str(place)):
            found = self._fs.find(where)
        names = [path[len(self._root) :].lstrip("/") for path in found]
        for name in names:
            if ".." in PurePosixPath(name).parts or name.startswith("/"):
                raise DataError(f"{self.url} holds {name!r}, a name that leads out of the run. Remove it there.")
        return sorted(name for name in names if not any(part.startswith(".") for part in PurePosixPath(name).parts))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name not in ("", ".") else self._root

    @contextlib.contextmanager
    def _speaking(self, what: str, name: str) -> Iterator[None]:
        try:
            yield
        except VeridicalError:
            raise
        except Exception as error:  # each storage has errors of its own
            raise StorageError(
                f"cannot {what} {self.url}/{name}: {type(error).__name__}: {error}. What was finished is there; what "
                f"came after it is in {self.folder}. Mend the storage or the access to it, and run the same command."
            ) from error

    # ---- one process at a time ----

    @contextlib.contextmanager
    def owned(self, note: Callable[[str], None]) -> Iterator[None]:
        """Hold the run: no other process may work on it. A storage has no locks, so the owner writes a sign of life,
        and who finds one waits for the next. Clocks do not matter.

        Errors: RecipeError that names the owner.
        """
        mine = {"id": uuid.uuid4().hex, "owner": _owner(), "beat": 0}
        self._take(mine, note)
        over = threading.Event()
        beating = threading.Thread(target=self._beat, args=(mine, over), daemon=True)
        beating.start()
        try:
            yield
        finally:
            over.set()
            beating.join()
            with contextlib.suppress(Exception):  # a sign that stays is found to be old
                if not self._lost:
                    self._fs.rm_file(self._at(_OWNER))

    def _take(self, mine: dict[str, Any], note: Callable[[str], None]) -> None:
        with self._speaking("write", _OWNER):
            if self._created(mine):
                return
            found = self._sign()
            seconds = _BEAT_SECONDS * _BEATS_MISSED
            note(f"{self.url} has an owner, {found.get('owner')}; waiting {seconds:g} s for a sign of life")
            waited = time.monotonic() + seconds
            while time.monotonic() < waited:
                time.sleep(_BEAT_SECONDS / 5)
                now = self._sign()
                if now and now != found:
                    raise RecipeError(
                        f"another process works on {self.url}: {now.get('owner')}. Wait until it has ended, or stop "
                        "it; or name another --out."
                    )
            self._fs.pipe_file(self._at(_OWNER), json.dumps(mine).encode())
            note(f"there was none: taking over {self.url}")

    def _created(self, mine: dict[str, Any]) -> bool:
        """Whether the sign was written where there was none."""
        with contextlib.suppress(FileExistsError):
            self._fs.pipe_file(self._at(_OWNER), json.dumps(mine).encode(), mode="create")
        return bool(self._sign().get("id") == mine["id"])

    def _sign(self) -> dict[str, Any]:
        try:
            found = json.loads(self._fs.cat_file(self._at(_OWNER)))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _beat(self, mine: dict[str, Any], over: threading.Event) -> None:
        while not over.wait(_BEAT_SECONDS):
            try:
                found = self._sign()
                if found and found.get("id") != mine["id"]:
                    self._lost = (
                        f"{self.url} was taken over by {found.get('owner')}, as this process gave no sign of life."
                    )
                    return
                mine["beat"] += 1
                self._fs.pipe_file(self._at(_OWNER), json.dumps(mine).encode())
            except Exception:  # a beat may be missed; what copies tells of a storage that is away
                continue


@contextlib.contextmanager
def opened(run: str | Path, note: Callable[[str], None]) -> Iterator[tuple[Path, Store]]:
    """The folder to work on a run in, and where it is kept. One on a storage is taken over, and its local folder stays
    only where something failed."""
    if not is_url(run):
        yield as_path(run), Store()
        return
    folder = Path(tempfile.mkdtemp(prefix="veridical-run-"))
    mirror = Mirror(str(run), folder)
    with mirror.owned(note):
        mirror.pull(without=(*OF_TRAINING, *PICTURES))
        yield folder, mirror
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def to_read(run: str | Path) -> Iterator[tuple[Path, Store]]:
    """The folder of a run to read, without what only going on with it needs; and where it is kept."""
    if not is_url(run):
        yield as_path(run), Store()
        return
    with tempfile.TemporaryDirectory(prefix="veridical-run-") as folder:
        mirror = Mirror(str(run), Path(folder))
        mirror.pull(without=OF_TRAINING)
        if not any(Path(folder).iterdir()):
            raise DataError(f"there is nothing at {run}. Expected the URL of a run, such as s3://bucket/run.")
        yield Path(folder), mirror


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _owner() -> str:
    return "process {pid} on {host}, since {since}: {command}".format_map(this_process())
