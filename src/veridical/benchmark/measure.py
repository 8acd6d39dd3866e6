"""Time and memory of one call, whoever wrote it."""

import contextlib
import ctypes
import gc
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import Tensor

Call = Callable[[Tensor, Tensor], Tensor]  # (prediction, target) -> one number, or one for each image

MAX_ROUNDS = 200


@dataclass(frozen=True)
class Images:
    """What every contestant is given. with_gradient: forward and backward to the prediction; else without a graph."""

    prediction: Tensor
    target: Tensor
    with_gradient: bool

    @property
    def bytes(self) -> int:
        """What every loss has to read, and write, at the least: both images, and the gradient."""
        return self.prediction.numel() * self.prediction.element_size() * (3 if self.with_gradient else 2)

    def run(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """One whole step: the value, and the gradient where there is one."""
        if not self.with_gradient:
            with torch.no_grad():
                return call(self.prediction, self.target).mean(), None
        leaf = self.prediction.detach().requires_grad_()
        value = call(leaf, self.target).mean()
        value.backward()
        return value.detach(), leaf.grad


@dataclass(frozen=True)
class Times:
    """Seconds: the median, the quartiles, and how many calls they are of."""

    median: float
    low: float
    high: float
    calls: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Times":
        low, _, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
        return cls(median(seconds), low, high, len(seconds))


def interleaved(
    calls: Mapping[str, Call], images: Images, *, seconds: float, repeats: int = 3, clock=time.perf_counter
) -> dict[str, Times]:
    """Each call's times, one call of each in turn, so that whatever else the machine does meets all alike.

    Args: seconds: stop after this time, though not before `repeats` rounds. The first one in a round rotates.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        begun = clock()
        for round_ in range(MAX_ROUNDS):
            if round_ >= repeats and clock() - begun > seconds:
                break
            for name in order[round_ % len(order) :] + order[: round_ % len(order)]:
                # The target is a new tensor each time, as in training: nothing can be kept of it from the last call.
                fresh = Images(images.prediction.clone(), images.target.clone(), images.with_gradient)
                _wait(images.prediction)
                start = clock()
                fresh.run(calls[name])
                _wait(images.prediction)
                taken[name].append(clock() - start)
    finally:
        if collecting:
            gc.enable()
    return {name: Times.of(seconds_) for name, seconds_ in taken.items()}


@dataclass(frozen=True)
class Memory:
    """The most that a step took at once, beyond what was held before it: the inputs, the weights. In bytes.

    Attributes: tensors: as torch's allocator has it. process: by how much the process grew, with what NumPy, oneDNN and
                others take by themselves; coarser, since what was released may be kept. None where Linux does not tell.
    """

    tensors: int
    process: int | None


def peak_memory(call: Call, images: Images) -> Memory:
    """Of one step. On a CPU torch's profiler records every allocation and release of torch's allocator, whichever
    library asked for it; we replay them."""
    images = Images(images.prediction.clone(), images.target.clone(), images.with_gradient)
    gc.collect()
    if images.prediction.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        images.run(call)
        _wait(images.prediction)
        return Memory(torch.cuda.max_memory_allocated() - before, None)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what malloc keeps back would be taken from there, and not be noticed
    profiler = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    )
    with _silent(), profiler as profile:
        resident = _reset_resident()
        images.run(call)
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


def _wait(image: Tensor) -> None:
    """GPUs work on after a call has returned."""
    if image.device.type == "cuda":
        torch.cuda.synchronize(image.device)
    elif image.device.type == "mps":
        torch.mps.synchronize()
