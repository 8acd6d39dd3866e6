"""`veridical` in a process of its own, and what it left compared with what an undisturbed one leaves."""

import csv
import gc
import json
import mmap
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from tests.photographs import QUICK, write_photographs

STEPS, CHECKPOINT_EVERY = 6, 3
ONE, TWO = "spl-a", "spl-a, l1 + 0.01*tv"  # losses; spl-a draws anew in each step
TIMEOUT_S = 300.0

# Of files of JSON: what depends on how long something took, or on when it began.
_OF_TIME = {"created", "seconds", "seconds_per_step", "cost"}


@dataclass(frozen=True)
class Ended:
    """code: the exit status, below 0 the signal. steps: of training that were begun."""

    code: int
    output: str
    steps: int


class Bench:
    """A folder to work in: photographs, the run that is put to the test, and one that nothing disturbed."""

    def __init__(self, folder: Path, losses: str, place: Path | None = None) -> None:
        """losses: compared, with two seeds each. place: where runs lie, if not in `folder`."""
        self.folder = folder
        self.run = (place or folder) / "run"
        self.whole = folder / "whole"
        self.data = write_photographs(folder / "photos")
        self.argv = ["compare", "--data", str(self.data), "--losses", losses, "--seeds", "2"]
        settings = (*QUICK, f"training.steps={STEPS}", f"training.checkpoint_every={CHECKPOINT_EVERY}")
        self.argv += [word for each in (*settings, "training.ema=0.9") for word in ("--set", each)]
        self.argv += ["--out", str(self.run)]

    def compare(self, before: Callable[[], object] = lambda: None) -> Ended:
        return run(self.argv, self.folder / "log.txt", before)

    def make_whole(self) -> Ended:
        """The undisturbed run."""
        self.clear()
        ended = self.compare()
        assert ended.code == 0, ended.output
        shutil.copytree(self.run, self.whole)
        self.clear()
        return ended

    def start(self, before: Callable[[], object] = lambda: None) -> "Process":
        return start(self.argv, self.folder / "log.txt", before)

    def clear(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)

    def differences(self, *but: str) -> list[str]:
        """By what the run differs from the undisturbed one, but for some files: nothing, where all is well."""
        return different(self.run, self.whole, but)


def run(argv: Sequence[str], log: Path, before: Callable[[], object] = lambda: None) -> Ended:
    """Carry out a command in a forked process. before: called there first."""
    process = start(argv, log, before)
    return process.wait()


@dataclass
class Process:
    pid: int
    log: Path
    counted: mmap.mmap

    def reaches(self, steps: int) -> bool:
        """Wait until so many steps were begun. False where it ends before."""
        while self.steps < steps:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return False
            time.sleep(0.002)
        return True

    @property
    def steps(self) -> int:
        return int.from_bytes(self.counted[:8], "little")

    def wait(self) -> Ended:
        """Until it ends; after TIMEOUT_S it is killed, which counts as an end by SIGALRM."""
        until = time.monotonic() + TIMEOUT_S
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return Ended(os.waitstatus_to_exitcode(status), self.log.read_text(errors="replace"), self.steps)
            time.sleep(0.005)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return Ended(-signal.SIGALRM, self.log.read_text(errors="replace") + "\n(timed out)", self.steps)


def start(argv: Sequence[str], log: Path, before: Callable[[], object] = lambda: None) -> Process:
    counted = mmap.mmap(-1, 8)
    log.parent.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid:
        return Process(pid, log, counted)
    code = 70
    try:
        code = _command(argv, log, before, counted)
    finally:
        os._exit(code)


def _command(argv: Sequence[str], log: Path, before: Callable[[], object], counted: mmap.mmap) -> int:
    import traceback

    from veridical.cli import main
    from veridical.training import loop

    signal.signal(signal.SIGINT, signal.default_int_handler)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(handle, stream)
    rate = loop.learning_rate

    def counting(settings: Any, step: int) -> float:
        counted[:8] = (int.from_bytes(counted[:8], "little") + 1).to_bytes(8, "little")
        return rate(settings, step)

    loop.learning_rate = counting  # called once in each step
    sys.argv = ["veridical", *argv]
    try:
        before()
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def import_everything(folder: Path) -> None:
    """What a command imports on its way, and what it makes of templates, so that those forked from here need not.
    folder: for the templates."""
    import cv2  # noqa: F401
    import jinja2
    import lightning_fabric  # noqa: F401
    import polars  # noqa: F401
    import scipy.stats  # noqa: F401
    from tensorboard.compat.proto import event_pb2, summary_pb2  # noqa: F401
    from tensorboard.summary.writer import record_writer  # noqa: F401

    import veridical.cli
    import veridical.comparison.progress
    import veridical.comparison.report
    import veridical.comparison.sweep
    import veridical.training.learn_mdf  # noqa: F401
    from veridical.comparison import charts

    charts.Environment = partial(jinja2.Environment, bytecode_cache=jinja2.FileSystemBytecodeCache(str(folder)))
    Image.init()
    gc.freeze()  # collecting what is here already would take a forked process most of its time


# ---- what is the same ----


def different(run: Path, whole: Path, but: Sequence[str] = ()) -> list[str]:
    """Names of files, with what is wrong: left over, missing, or other than in the undisturbed run."""
    ours, theirs = _files(run), _files(whole)
    found = [f"{name}: left over" for name in sorted(ours.keys() - theirs.keys())]
    found += [f"{name}: missing" for name in sorted(theirs.keys() - ours.keys())]
    for name in sorted(ours.keys() & theirs.keys()):
        if name not in but and _essence(ours[name]) != _essence(theirs[name]):
            found.append(f"{name}: other content")
    return found


def _files(run: Path) -> dict[str, Path]:
    """All but the events of TensorBoard, of which a run has as many as it was taken up."""
    files = (path for path in run.rglob("*") if path.is_file() and not path.name.startswith("events.out."))
    return {path.relative_to(run).as_posix(): path for path in files}


def _essence(path: Path) -> object:
    """What must be the same of a file, bit by bit."""
    if path.suffix == ".json":
        return _without_time(json.loads(path.read_bytes()))
    if path.name == "training.csv":
        with path.open(newline="") as stream:
            return [{key: value for key, value in row.items() if key != "rate"} for row in csv.DictReader(stream)]
    if path.name == "report.html":  # whose numbers are those of the other files, and of time
        text = path.read_text(encoding="utf-8")
        return text.rstrip().endswith("</html>"), re.sub(r"[\d.,:]+", "#", text)
    return path.read_bytes()


def _without_time(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_time(each) for key, each in value.items() if key not in _OF_TIME}
    return [_without_time(each) for each in value] if isinstance(value, list) else value
