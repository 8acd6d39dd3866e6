"""Training curves on disk: training.csv, and the same numbers as TensorBoard events."""

import contextlib
import csv
import io
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from veridical.core.files import atomic_write

_EVENTS = re.compile(r"events\.out\.tfevents\.(\d{1,12})\.")


class TrainingRows:
    """training.csv: step, total, one "term:..." column per term, one "learned:..." column per number that a loss
    which learns gives of its learning, lr, rate (steps per second).

    Each row holds the means since the row before. Rows beyond `start_step`, left by a run that went further
    than its last checkpoint, are dropped when the file is opened.

    Args: note: told, once, when TensorBoard is not installed, or its events cannot be written.
    """

    def __init__(self, folder: Path, *, start_step: int, note: Callable[[str], None]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "training.csv"
        self.last_terms: dict[str, float] = {}
        self._note = note
        self._known = self._drop_rows_beyond(start_step)
        self._events = self._open_events(folder, start_step)

    def add(
        self,
        step: int,
        total: float,
        terms: Mapping[str, float],
        *,
        learned: Mapping[str, float],
        lr: float,
        rate: float,
    ) -> None:
        """Append a row. OSError passes through."""
        row = {
            "step": step,
            "total": total,
            **{f"term:{k}": v for k, v in terms.items()},
            **{f"learned:{k}": v for k, v in learned.items()},
            "lr": lr,
            "rate": rate,
        }
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(row), lineterminator="\n")
        if not self._known:
            writer.writeheader()
        writer.writerow(row)
        with self.path.open("a", encoding="utf-8", newline="") as stream:
            stream.write(text.getvalue())
        self._known = True
        self.last_terms = dict(terms)
        if self._events:
            # "term:l2" is shown in a group of its own, and so is "learned:..."
            tags = {name: name.replace("term:", "terms/", 1).replace("learned:", "learned/", 1) for name in row}
            try:
                self._events.add(step, {tags[name]: value for name, value in row.items() if name != "step"})
            except OSError as error:
                self._lose_events(error)

    def flush(self) -> None:
        """Have the rows on the disk before a checkpoint of their step is. OSError passes through."""
        if self._known:
            with contextlib.suppress(FileNotFoundError), self.path.open("rb+") as stream:
                os.fsync(stream.fileno())

    def _open_events(self, folder: Path, start_step: int) -> "_Events | None":
        try:
            return _Events(folder, start_step)
        except ImportError:
            self._note(
                'TensorBoard is not installed, so no events are written. To have them: pip install "veridical[compare]"'
            )
        except OSError as error:
            self._lose_events(error)
        return None

    def _lose_events(self, error: OSError) -> None:
        """Nothing is lost by it: training.csv has the same numbers."""
        self._events = None
        self._note(
            f"no more events are written for TensorBoard ({error.strerror or error}); training.csv has the same numbers"
        )

    def _drop_rows_beyond(self, start_step: int) -> bool:
        """Whether the file has a header afterwards."""
        if not self.path.exists():
            return False
        header, *lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) or [""]
        names = _fields(header)
        kept, last = [], {}
        for line in lines:  # a kill may cut the last line, and a power cut leave anything in its place
            values = _numbers(line)
            if not line.endswith("\n") or values is None or len(values) != len(names) or values[0] > start_step:
                break
            kept.append(line)
            last = dict(zip(names, values, strict=True))
        if not kept:
            self.path.unlink()
            return False
        if len(kept) != len(lines):
            atomic_write(self.path, "".join([header, *kept]).encode())
        self.last_terms = {k.removeprefix("term:"): v for k, v in last.items() if k.startswith("term:")}
        return True


def _fields(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def _numbers(line: str) -> list[float] | None:
    try:
        return [float(field) for field in _fields(line)] or None
    except ValueError:
        return None


class _Events:
    """A file of TensorBoard events, the last of its folder by name, whatever the clock says: that is the order in which
    TensorBoard reads them. Written from this thread, so that what goes wrong is met here."""

    def __init__(self, folder: Path, start_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self._record = Event, Summary, RecordWriter
        earlier = [int(match[1]) for path in folder.glob("events.out.*") if (match := _EVENTS.match(path.name))]
        number = max([int(time.time()), *(each + 1 for each in earlier)])
        self.path = folder / f"events.out.tfevents.{number:010d}.{socket.gethostname()}.{os.getpid()}"
        # What the files before have of steps that are done again is hidden.
        purge = Event(step=start_step + 1, session_log=SessionLog(status=SessionLog.START))
        self._append(Event(file_version="brain.Event:2"), purge)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        found = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._append(self._event(step=step, summary=self._summary(value=found)))

    def _append(self, *events: Any) -> None:
        data = io.BytesIO()
        for event in events:
            event.wall_time = time.time()
            self._record(data).write(event.SerializeToString())
        with self.path.open("ab") as stream:
            stream.write(data.getvalue())
