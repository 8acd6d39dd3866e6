"""The least time that a loss could take on this machine, from its arithmetic and from its traffic to memory.

    attainable = max(2 · multiply-adds / (rate of a large matrix product or convolution), bytes / (bandwidth of a copy))

The work is counted on a plain form of the loss, forward and backward to the prediction. Multiply-adds are those of
convolutions and matrix products, done directly: Winograd's trick needs fewer, so that a loss may be faster than this.
Bytes: each image read once and the gradient written once, and each map that a convolution, a matrix product, a pooling,
a sort or a Fourier transform makes, forward and backward, written once and read once. Everything else counts as free,
as if it were fused into those. Maps that stay in a cache cost less than that, so small images may beat this too.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from veridical.benchmark.measure import Call, Images

# aten's names of what makes a map.
_MAKERS = (
    "convolution", "mm", "bmm", "addmm", "baddbmm", "max_pool2d", "avg_pool2d", "_adaptive_avg_pool2d", "sort",
    "_fft_r2c", "_fft_c2c", "_fft_c2r",
)  # fmt: skip


@dataclass(frozen=True)
class Rates:
    """What this machine does at its best, in one process with the threads given: flop and bytes per second."""

    matmul: float
    convolution: float
    bandwidth: float


@dataclass(frozen=True)
class Work:
    """What a loss has to do. flop: two for each multiply-add."""

    flop: int
    bytes: int

    def attainable(self, rates: Rates) -> float:
        """Seconds.

        >>> Work(flop=2 * 10**9, bytes=10**6).attainable(Rates(1e9, 1e9, 1e9))
        2.0
        """
        return max(self.flop / max(rates.matmul, rates.convolution), self.bytes / rates.bandwidth)


def measure_rates(device: torch.device, *, side: int = 2048, repeats: int = 5) -> Rates:
    """The best of a few runs of each."""
    a, b, c = (torch.rand(side, side, device=device) for _ in range(3))
    channels, pixels = 64, max(8, side // 16)
    image = torch.rand(4, channels, pixels, pixels, device=device).contiguous(memory_format=torch.channels_last)
    weight = torch.rand(channels, channels, 3, 3, device=device)
    source = torch.rand(16 * side * side, device=device)  # 256 MiB by default: no cache holds it
    copy = torch.empty_like(source)
    return Rates(
        matmul=2 * side**3 / _best(lambda: torch.mm(a, b, out=c), repeats, device),
        convolution=2 * 9 * channels * image.numel()
        / _best(lambda: F.conv2d(image, weight, padding=1), repeats, device),
        bandwidth=2 * source.numel() * source.element_size() / _best(lambda: copy.copy_(source), repeats, device),
    )  # fmt: skip


def _best(run: Callable[[], Any], repeats: int, device: torch.device) -> float:
    taken = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            taken.append(time.perf_counter() - start)
    return min(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of the maps that are made inside it, each written once and read once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__.startswith(_MAKERS):
            made = [each for each in (out if isinstance(out, tuple | list) else [out]) if isinstance(each, Tensor)]
            self.bytes += sum(2 * each.numel() * each.element_size() for each in made)
        return out


def count(plain: Call, images: Images) -> tuple[Work, tuple[Tensor, Tensor | None]]:
    """Run one step of a plain form: what it had to do, and what came out of it."""
    with FlopCounterMode(display=False) as flops, _Traffic() as traffic:
        found = images.run(plain)
    return Work(flops.get_total_flops(), traffic.bytes + images.bytes), found
