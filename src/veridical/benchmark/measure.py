"""Time and memory of one call, whoever wrote it."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from torch import Tensor

from veridical.core.memory import Memory
from veridical.core.memory import peak_memory as peak_of

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


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for torch, 0 for as many as it has; afterwards as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory(call: Call, images: Images) -> Memory:
    """Of one step."""
    images = Images(images.prediction.clone(), images.target.clone(), images.with_gradient)
    return peak_of(lambda: images.run(call), images.prediction.device)


def _wait(image: Tensor) -> None:
    """GPUs work on after a call has returned."""
    if image.device.type == "cuda":
        torch.cuda.synchronize(image.device)
    elif image.device.type == "mps":
        torch.mps.synchronize()
