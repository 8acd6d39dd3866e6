"""Camera shake: the path of a hand-held camera while the shutter is open, and the blur that it leaves."""

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from veridical.core.options import check_choice, check_number, check_whole
from veridical.degradations.blur import BLUR_BORDERS, Blur
from veridical.degradations.strength import Strength, check_strength, draw

KNOTS = 128  # points of the path that are drawn; between them it is a straight line
SUBSTEPS = 16  # points laid on each of those lines: well under a pixel apart at every sensible size


@dataclass(frozen=True, kw_only=True)
class CameraShake(Blur):
    """Hand shake during the exposure: a random smooth path, one per image, moving the whole frame alike.

    Both coordinates of the path are independent Gaussian processes over the exposure t in [0, 1] with
    covariance s² (1 + r + r²/3) exp(-r), r = sqrt(5) |t - t'| / smoothness: Matérn of order 5/2, the formula
    that the source prints (and calls 3/2). Time is spread over the pixels that the path touches by bilinear
    weights, so it is accumulated below the pixel. The kernel's centroid is the middle pixel: the image is
    blurred, not displaced.

    Args:   size: side of the kernel in px, odd. A path that would leave it is shrunk until it fits.
            intensity: how far the hand strays, or a range (low, high) drawn for every image: s is
            intensity * size / 8 px, so that 1 is the source's quarter of the half-width; 0 blurs nothing.
            The default range spreads as far as the hand-held kernels that Levin et al. 2009 measured.
            smoothness: how long the hand keeps its direction, as a fraction of the exposure, 0.02 to 10.
            Small values tremble, large ones give straight smears.
            border: reflect (repeats no edge px), replicate, circular or zero.
    Draws:  intensity (when a range), then the row and the column of each knot.
    Source: Schuler, Hirsch, Harmeling & Schölkopf 2016, Learning to Deblur, arXiv:1406.7444.
    """

    name: ClassVar[str] = "camera-shake"
    size: int = 31
    intensity: Strength = (0.5, 2.0)
    smoothness: float = 0.3
    border: str = "reflect"

    def __post_init__(self) -> None:
        check_whole("size of camera-shake", self.size, low=3, odd=True)
        check_strength("intensity of camera-shake", self.intensity, low=0)
        check_number("smoothness of camera-shake", self.smoothness, low=0.02, high=10)
        check_choice("border of camera-shake", self.border, BLUR_BORDERS)

    @property
    def random(self) -> bool:
        return True

    def path(self, generator: torch.Generator) -> Tensor:
        """Where the image stands at equal steps of time: (T, 2) px (down, right), of mean 0, float64."""
        sigma_px = draw(self.intensity, generator) * self.size / 8
        drawn = torch.randn((KNOTS, 2), generator=generator, dtype=torch.float64)
        knots = sigma_px * (_root_of_covariance(float(self.smoothness)) @ drawn)
        share = (torch.arange(SUBSTEPS, dtype=torch.float64) / SUBSTEPS)[None, :, None]
        path = (knots[:-1, None] * (1 - share) + knots[1:, None] * share).reshape(-1, 2)
        path = path - path.mean(0)
        reach = (self.size - 1) / 2
        farthest = path.abs().max().item()
        return path * (reach / farthest) if farthest > reach else path

    def draw_kernel(self, generator: torch.Generator) -> Tensor:
        position = self.path(generator) + (self.size - 1) / 2
        corner = position.floor().clamp(0, self.size - 2)
        share = position - corner
        row, column = corner.long().unbind(-1)
        kernel = torch.zeros(self.size * self.size, dtype=torch.float64)
        for down in (0, 1):
            for right in (0, 1):
                weight_down = share[:, 0] if down else 1 - share[:, 0]
                weight_right = share[:, 1] if right else 1 - share[:, 1]
                kernel.index_add_(0, (row + down) * self.size + column + right, weight_down * weight_right)
        return (kernel / kernel.sum()).reshape(self.size, self.size)


@functools.lru_cache(maxsize=8)
def _root_of_covariance(smoothness: float) -> Tensor:
    """The Cholesky factor of the Matérn covariance at KNOTS equal times in [0, 1], float64."""
    time = torch.linspace(0, 1, KNOTS, dtype=torch.float64)
    r = 5**0.5 * (time[:, None] - time[None, :]).abs() / smoothness
    covariance = (1 + r + r**2 / 3) * torch.exp(-r)
    # So smooth a process is nearly singular at neighbouring times: a millionth of a pixel² keeps it positive.
    return torch.linalg.cholesky(covariance + 1e-8 * torch.eye(KNOTS, dtype=torch.float64))
