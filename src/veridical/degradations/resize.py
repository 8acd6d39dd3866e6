"""Bicubic resizing by whole factors, as MATLAB's `imresize` and every super-resolution benchmark do it."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from veridical.core.options import check_whole
from veridical.degradations.base import Degradation


@dataclass(frozen=True, kw_only=True)
class BicubicDownscale(Degradation):
    """Antialiased bicubic downscaling: the cubic kernel widened by the scale, mirrored borders.

    A side that is no multiple of the scale rounds up, as in MATLAB; its last pixel then looks past the
    border. Nothing is rounded to 8 bit, and beside strong edges the result may overshoot [0, 1] a little.

    Args:   scale: how many times smaller, a whole number.
    Source: MATLAB's `imresize(image, 1 / scale)`, the convention of super-resolution papers; the kernel is
            that of Keys 1981 with a = -0.5.
    """

    name: ClassVar[str] = "bicubic-downscale"
    scale: int = 4  # the option is the degradation's own scale

    def __post_init__(self) -> None:
        check_whole("scale of bicubic-downscale", self.scale, low=1)

    def apply(self, image: Tensor, generator: torch.Generator) -> Tensor:
        del generator
        return resize(image, Fraction(1, self.scale))


class BicubicUpscale(Degradation):
    """Bicubic enlargement: after `bicubic-downscale` it lets a same-size network do super-resolution.

    Args:   scale: how many times larger, a whole number. The attribute `scale` is 1 / this.
    Source: MATLAB's `imresize(image, scale)`, mirrored borders; a = -0.5.
    """

    name: ClassVar[str] = "bicubic-upscale"

    def __init__(self, *, scale: int = 4) -> None:
        check_whole("scale of bicubic-upscale", scale, low=1)
        self.factor = scale

    @property
    def label(self) -> str:
        return f"{self.name}(scale={self.factor})"

    @property
    def scale(self) -> int | Fraction:
        return 1 if self.factor == 1 else Fraction(1, self.factor)

    def apply(self, image: Tensor, generator: torch.Generator) -> Tensor:
        del generator
        return resize(image, Fraction(self.factor))


def resize(image: Tensor, factor: Fraction) -> Tensor:
    """Bicubic, antialiased when it shrinks: (C, H, W) -> (C, ceil(H * factor), ceil(W * factor)).

    The top left corners of both grids coincide.
    """
    rows = _resize_rows(image, factor)
    return _resize_rows(rows.transpose(-1, -2), factor).transpose(-1, -2).contiguous()


def _resize_rows(image: Tensor, factor: Fraction) -> Tensor:
    length = image.shape[-2]
    # One output pixel looks at 4 input pixels, or at 4 / factor of them when the kernel is widened.
    shrink = min(1.0, float(factor))
    place = torch.arange(math.ceil(length * factor), dtype=torch.float64)
    centre = (place + 0.5) / float(factor) - 0.5
    taps = math.ceil(4 / shrink) + 1
    first = torch.ceil(centre - 2 / shrink)
    position = first[:, None] + torch.arange(taps)  # (out, taps)
    weight = _cubic((position - centre[:, None]) * shrink)
    weight = (weight / weight.sum(1, keepdim=True)).to(image)
    # Mirrored with the edge pixel repeated, as often as a tiny image needs it.
    index = position.long() % (2 * length)
    index = torch.where(index < length, index, 2 * length - 1 - index).to(image.device)
    out = image.new_zeros((*image.shape[:-2], len(place), image.shape[-1]))
    for tap in range(taps):
        out += weight[:, tap, None] * image[..., index[:, tap], :]
    return out


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5; zero from 2 on."""
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
