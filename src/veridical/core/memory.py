"""The most memory that a computation holds at once."""

import contextlib
import ctypes
import gc
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Memory:
    """The most that a call took at once, beyond what was held before it: its inputs, weights. In bytes.

    Attributes: tensors: as torch's allocator has it. process: by how much the process grew, with what NumPy, oneDNN and
                others take by themselves; coarser, since what was released may be kept. None where Linux does not tell.
    """

    tensors: int
    process: int | None


def peak_memory(run: Callable[[], object], device: torch.device) -> Memory:
    """Of one call. On a CPU torch's profiler records every allocation and release of torch's allocator, whichever
    library asked for it; we replay them."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return Memory(torch.cuda.max_memory_allocated(device) - before, None)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what malloc keeps back would be taken from there, and not be noticed
    profiler = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    )
    with _silent(), profiler as profile:
        resident = _reset_resident()
        run()
        grown = _status_bytes("VmHWM") - resident if resident is not None else None
    held = most = 0
    recorded = profile.profiler.kineto_results.events()
    for event in recorded:
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return Memory(most, None if grown is None else max(0, grown))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps what the profiler writes to the terminal by itself, past Python, from there."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _reset_resident() -> int | None:
    """Let Linux's high-water mark of the process begin anew; what it holds now, in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status_bytes("VmRSS")
    except OSError:
        return None


def _status_bytes(key: str) -> int:
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(match[1]) if match else 0
