"""Blurs whose kernel does not move: box, Gaussian, and the disc of a lens out of focus."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from veridical.core.errors import DataError
from veridical.core.filters import BORDERS, convolve, convolve_separable, gaussian_window
from veridical.core.options import check_choice, check_whole
from veridical.degradations.base import Degradation
from veridical.degradations.strength import Strength, check_strength, draw, varies

# A blur keeps the size of its image, so the borders that keep it.
BLUR_BORDERS = tuple(border for border in BORDERS if border != "valid")


class Blur(Degradation):
    """A convolution of every channel with one kernel that sums to 1."""

    border: str

    def kernel(self, generator: torch.Generator | None = None) -> Tensor:
        """The kernel of the next image, float64 (h, w), sum 1; advances the generator as a call would."""
        return self.draw_kernel(self._generator(generator))

    @abstractmethod
    def draw_kernel(self, generator: torch.Generator) -> Tensor:
        """`kernel` after its checks."""

    def apply(self, image: Tensor, generator: torch.Generator) -> Tensor:
        kernel = self.draw_kernel(generator)
        self.check_room(image, max(kernel.shape))
        # `convolve` correlates; a blur is a convolution, which deconvolution has to undo: hence the flip.
        return convolve(image[None], kernel.flip(0, 1), border=self.border)[0]

    def check_room(self, image: Tensor, taps: int) -> None:
        """DataError when the image is too small for a border that mirrors or wraps it."""
        least = taps // 2 + {"reflect": 1, "circular": 0}.get(self.border, -taps)
        if min(image.shape[-2:]) < least:
            raise DataError(
                f"{self.label} with border={self.border} needs an image of at least {least}x{least} px; got "
                f"{image.shape[-2]}x{image.shape[-1]}. Use border=replicate, or leave the image out."
            )


@dataclass(frozen=True, kw_only=True)
class BoxBlur(Blur):
    """Mean over a square: the 5x5 average blur of the sharpness paper.

    Args:   size: side of the square in px; an even one reaches one px further left and up.
            border: reflect (repeats no edge px, OpenCV's reflect-101), replicate, circular or zero.
    Source: Zhu & Milanfar's Q as a loss (the sharpness paper): 5x5, reflect-101.
    """

    name: ClassVar[str] = "box-blur"
    size: int = 5
    border: str = "reflect"

    def __post_init__(self) -> None:
        check_whole("size of box-blur", self.size, low=1)
        check_choice("border of box-blur", self.border, BLUR_BORDERS)

    def draw_kernel(self, generator: torch.Generator) -> Tensor:
        del generator
        return torch.full((self.size, self.size), 1 / self.size**2, dtype=torch.float64)

    def apply(self, image: Tensor, generator: torch.Generator) -> Tensor:
        del generator
        self.check_room(image, self.size)
        taps = torch.full((self.size,), 1 / self.size, dtype=torch.float64)
        return convolve_separable(image[None], taps, taps, border=self.border)[0]


@dataclass(frozen=True, kw_only=True)
class GaussianBlur(Blur):
    """Convolution with a Gaussian.

    Args:   sigma_px: standard deviation in px, or a range (low, high) drawn for every image.
            size: taps of the window, odd; by default int(4 sigma + 0.5) to each side of the centre, as SciPy.
            border: reflect (repeats no edge px), replicate, circular or zero.
    """

    name: ClassVar[str] = "gaussian-blur"
    sigma_px: Strength = 1.6
    size: int | None = None
    border: str = "reflect"

    def __post_init__(self) -> None:
        check_strength("sigma_px of gaussian-blur", self.sigma_px, low=0)
        if self.size is not None:
            check_whole("size of gaussian-blur", self.size, low=1, odd=True)
        check_choice("border of gaussian-blur", self.border, BLUR_BORDERS)

    @property
    def random(self) -> bool:
        return varies(self.sigma_px)

    def _window(self, generator: torch.Generator) -> Tensor:
        sigma_px = draw(self.sigma_px, generator)
        size = self.size or 2 * int(4 * sigma_px + 0.5) + 1
        # A Gaussian of no width is a single tap; the formula would divide by zero.
        return gaussian_window(size, max(sigma_px, 1e-6))

    def draw_kernel(self, generator: torch.Generator) -> Tensor:
        window = self._window(generator)
        return torch.outer(window, window)

    def apply(self, image: Tensor, generator: torch.Generator) -> Tensor:
        window = self._window(generator)
        self.check_room(image, len(window))
        return convolve_separable(image[None], window, window, border=self.border)[0]


@dataclass(frozen=True, kw_only=True)
class DiscBlur(Blur):
    """A lens out of focus: a uniform disc whose rim covers its pixels in part.

    Args:   radius_px: radius of the circle of confusion in px (0 to 100), or a range (low, high) drawn for
            every image. Up to 0.5 px the disc lies within one pixel and nothing changes.
            border: reflect (repeats no edge px), replicate, circular or zero.
    """

    name: ClassVar[str] = "disc-blur"
    radius_px: Strength = 2.5
    border: str = "reflect"

    def __post_init__(self) -> None:
        check_strength("radius_px of disc-blur", self.radius_px, low=0, high=100)
        check_choice("border of disc-blur", self.border, BLUR_BORDERS)

    @property
    def random(self) -> bool:
        return varies(self.radius_px)

    def draw_kernel(self, generator: torch.Generator) -> Tensor:
        return _disc(max(draw(self.radius_px, generator), 0.5))


def _disc(radius_px: float, samples: int = 16) -> Tensor:
    """How much of each pixel lies within the disc, measured on samples² points a pixel; sums to 1."""
    reach = math.ceil(radius_px - 0.5)
    fine = (torch.arange((2 * reach + 1) * samples, dtype=torch.float64) + 0.5) / samples - (reach + 0.5)
    inside = (fine[:, None] ** 2 + fine[None, :] ** 2 <= radius_px**2).double()
    coverage = inside.unfold(0, samples, samples).unfold(1, samples, samples).sum((-2, -1))
    return coverage / coverage.sum()
