"""Bicubic resizing by whole factors, as MATLAB's `imresize` and every super-resolution benchmark do it."""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from veridical.core.options import check_whole
from veridical.core.resize import resize
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
