"""What every degradation is: a sharp image in, a degraded one out, all chance in a generator handed in."""

from abc import ABC, abstractmethod
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from veridical.core.catalog import Term, options_of
from veridical.core.errors import DataError


class Degradation(ABC):
    """Turns one sharp image into a degraded one.

    A subclass is a frozen dataclass: its fields are its options, the first of them its strength.
    """

    name: ClassVar[str]

    @property
    def label(self) -> str:
        """The spec that makes this degradation again: its first option always, others when not the default.

        It leads to the same degradation as long as the defaults stay what they are in this version.
        """
        options = {}
        for place, (option, parameter) in enumerate(options_of(type(self)).items()):
            value = getattr(self, option)
            if place == 0 or value != parameter.default:
                options[option] = value
        return Term(self.name, 1.0, options).label

    @property
    def scale(self) -> int | Fraction:
        """By how much the image shrinks: H_out = ceil(H / scale). A fraction below 1 where it grows."""
        return 1

    @property
    def random(self) -> bool:
        """True when the result depends on the generator."""
        return False

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Degrade one image.

        Shapes: image (C, H, W) -> (C, ceil(H / scale), ceil(W / scale)), float32, on the image's device.
        Range:  nominal [0, 1] in; out is not clamped (noise, bicubic ringing), except by `jpeg`.
        Args:   generator: a CPU generator; the result depends on the image, the options and its state, and on
                nothing else. It may be left out when `random` is False.
        Errors: DataError for anything but a floating (C, H, W) tensor, or too small an image; ValueError for
                a random degradation without a generator.
        """
        if image.ndim != 3 or not image.is_floating_point() or image.numel() == 0:
            raise DataError(
                f"{self.name} expects one floating-point image (C, H, W) in [0, 1]; got {image.dtype} "
                f"{tuple(image.shape)}. Divide 8-bit images by 255, and degrade a batch image by image."
            )
        return self.apply(image.to(torch.float32), self._generator(generator))

    def _generator(self, generator: torch.Generator | None) -> torch.Generator:
        if generator is None:
            if self.random:
                raise ValueError(
                    f"{self.label} is random: give it a generator, such as torch.Generator().manual_seed(0)."
                )
            return torch.Generator()
        if generator.device.type != "cpu":
            raise ValueError(
                f"{self.name} draws on the CPU, so that a seed means the same on every machine; "
                f"got a generator on {generator.device}."
            )
        return generator

    @abstractmethod
    def apply(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """`__call__` after its checks: float32 (C, H, W) -> float32."""


def normal(shape: tuple[int, ...], generator: torch.Generator, image: Tensor) -> Tensor:
    """Standard normal float32 draws, made on the CPU and moved to the image's device."""
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(image.device)
