"""Training curves on disk: training.csv, and the same numbers as TensorBoard events."""

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from veridical.core.files import atomic_write


class TrainingRows:
    """training.csv: step, total, one "term:..." column per term, one "learned:..." column per number that a loss
    which learns gives of its learning, lr, rate (steps per second).

    Each row holds the means since the row before. Rows beyond `start_step`, left by a run that went further
    than its last checkpoint, are dropped when the file is opened.

    Args: note: told, once, when TensorBoard is not installed.
    """

    def __init__(self, folder: Path, *, start_step: int, note: Callable[[str], None]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "training.csv"
        self.last_terms: dict[str, float] = {}
        self._known = self._drop_rows_beyond(start_step)
        self._events = _event_writer(folder, start_step, note)

    def __enter__(self) -> "TrainingRows":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events:
            self._events.close()

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
            for name, value in row.items():
                if name != "step":
                    # "term:l2" is shown in a group of its own, and so is "learned:..."
                    tag = name.replace("term:", "terms/", 1).replace("learned:", "learned/", 1)
                    self._events.add_scalar(tag, value, step)
            self._events.flush()

    def _drop_rows_beyond(self, start_step: int) -> bool:
        """Whether the file has a header afterwards."""
        if not self.path.exists():
            return False
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines[1:] if line.endswith("\n")]  # a kill may cut the last line
        kept = [line for line in whole if int(line.partition(",")[0]) <= start_step]
        if not kept:
            self.path.unlink()
            return False
        if len(kept) + 1 != len(lines):
            atomic_write(self.path, "".join([lines[0], *kept]).encode())
        last = next(csv.DictReader([lines[0], kept[-1]]))
        self.last_terms = {k.removeprefix("term:"): float(v) for k, v in last.items() if k.startswith("term:")}
        return True


def _event_writer(folder: Path, start_step: int, note: Callable[[str], None]) -> Any:
    """A TensorBoard writer that hides events of steps to be done again, or None without TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        note('TensorBoard is not installed, so no events are written. To have them: pip install "veridical[compare]"')
        return None
    return SummaryWriter(log_dir=str(folder), purge_step=start_step + 1)
