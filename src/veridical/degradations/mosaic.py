"""The colour filter array of a camera sensor."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from veridical.core.errors import DataError
from veridical.core.options import check_choice
from veridical.degradations.base import Degradation, normal
from veridical.degradations.strength import Strength, check_strength, draw, varies

PATTERNS = ("rggb", "bggr", "grbg", "gbrg")


@dataclass(frozen=True, kw_only=True)
class BayerMosaic(Degradation):
    """One colour per pixel, as a Bayer sensor records it: three channels, zero where not sampled.

    Args:   pattern: the colours of the top left 2x2 px, row by row: rggb, bggr, grbg or gbrg.
            noise_sigma_8bit: standard deviation of the noise on the recorded samples, in 8-bit levels, or a
            range (low, high) drawn for every image. Where nothing was sampled there is no noise.
    Draws:  noise_sigma_8bit (when a range), then, unless the noise is 0, one value for every pixel.
    Errors: DataError unless the image has 3 channels.
    """

    name: ClassVar[str] = "bayer-mosaic"
    pattern: str = "rggb"
    noise_sigma_8bit: Strength = 0

    def __post_init__(self) -> None:
        check_choice("pattern of bayer-mosaic", self.pattern, PATTERNS)
        check_strength("noise_sigma_8bit of bayer-mosaic", self.noise_sigma_8bit, low=0)

    @property
    def random(self) -> bool:
        return varies(self.noise_sigma_8bit) or self.noise_sigma_8bit != 0

    def apply(self, image: Tensor, generator: torch.Generator) -> Tensor:
        channels, height, width = image.shape
        if channels != 3:
            raise DataError(f"bayer-mosaic expects an RGB image; got {channels} channels.")
        mask = torch.zeros_like(image)
        for place, colour in enumerate(self.pattern):
            mask["rgb".index(colour), place // 2 :: 2, place % 2 :: 2] = 1
        if self.random:
            sigma = draw(self.noise_sigma_8bit, generator) / 255
            image = image + sigma * normal((height, width), generator, image)
        return image * mask
