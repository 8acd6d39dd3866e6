"""Sensor noise."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from veridical.degradations.base import Degradation, normal
from veridical.degradations.strength import Strength, check_strength, draw


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Degradation):
    """White Gaussian noise, the same in every channel and at every brightness, and not clipped.

    Args:   sigma_8bit: standard deviation in 8-bit levels (25 means 25/255), or a range (low, high) drawn for
            every image.
    Draws:  sigma_8bit (when a range), then one value for every channel and pixel.
    """

    name: ClassVar[str] = "gaussian-noise"
    sigma_8bit: Strength = 25

    def __post_init__(self) -> None:
        check_strength("sigma_8bit of gaussian-noise", self.sigma_8bit, low=0)

    @property
    def random(self) -> bool:
        return True

    def apply(self, image: Tensor, generator: torch.Generator) -> Tensor:
        sigma = draw(self.sigma_8bit, generator) / 255
        return image + sigma * normal(tuple(image.shape), generator, image)
