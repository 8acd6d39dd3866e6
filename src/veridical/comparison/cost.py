"""What restoring an image costs: seconds and memory, measured while a comparison evaluates."""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from veridical.core.memory import peak_memory


class Meter:
    """Watches a restorer at work on one image after the other: memory on the first, which also warms up, time on the
    others."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._first_seconds = 0.0
        self._bytes_per_pixel: float | None = None
        self._seconds: list[float] = []

    def run(self, restore: Callable[[], Tensor]) -> Tensor:
        """restore() -> (C, H, W), whose pixels count."""
        found: list[Tensor] = []
        begun = time.perf_counter()
        if self._bytes_per_pixel is None:
            memory = peak_memory(lambda: found.append(restore()), self.device)
            self._bytes_per_pixel = memory.tensors / _pixels(found[0])
            self._first_seconds = (time.perf_counter() - begun) / _pixels(found[0])
            return found[0]
        result = restore()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._seconds.append((time.perf_counter() - begun) / _pixels(result))
        return result

    @property
    def cost(self) -> dict[str, float] | None:
        """Of a megapixel of the result: median seconds, and peak memory beyond inputs and weights in megabytes."""
        if self._bytes_per_pixel is None:
            return None
        seconds = median(self._seconds) if self._seconds else self._first_seconds
        return {"seconds_per_megapixel": 1e6 * seconds, "megabytes_per_megapixel": self._bytes_per_pixel}


def _pixels(image: Tensor) -> int:
    return image.shape[-2] * image.shape[-1]
