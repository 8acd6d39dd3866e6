"""Several degradations, one after the other."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from veridical.core.errors import BadOption
from veridical.degradations.base import Degradation
from veridical.degradations.blur import Blur
from veridical.degradations.noise import GaussianNoise
from veridical.degradations.resize import BicubicUpscale


class Chain(Degradation):
    """Steps in order, drawing from one generator in that order; `+` in a spec reads as "then".

    Shapes: (C, H, W) -> (C, ceil(H / scale), ceil(W / scale)) with scale the product of the steps' scales. A
            step that shrinks rounds an odd size up; when a later one enlarges, the surplus is cut off below
            and right.
    """

    name: ClassVar[str] = "chain"

    def __init__(self, steps: Sequence[Degradation]) -> None:
        if not steps:
            raise BadOption("a chain of degradations needs at least one step; got none.")
        self.steps = tuple(steps)

    @property
    def label(self) -> str:
        return " + ".join(step.label for step in self.steps)

    @property
    def scale(self) -> int | Fraction:
        scale = math.prod((Fraction(step.scale) for step in self.steps), start=Fraction(1))
        return scale.numerator if scale.denominator == 1 else scale

    @property
    def random(self) -> bool:
        return any(step.random for step in self.steps)

    def apply(self, image: Tensor, generator: torch.Generator) -> Tensor:
        height, width = (math.ceil(side / self.scale) for side in image.shape[-2:])
        for step in self.steps:
            image = step(image, generator)
        return image[:, :height, :width].contiguous()


def enlarged(degradation: Degradation) -> Degradation:
    """The degradation, followed by bicubic enlargement to the size that it began with: what a model that keeps the size
    is fed. Itself where it keeps the size too.

    Errors: BadOption for a degradation that does not shrink by a whole number.
    """
    scale = degradation.scale
    if scale == 1:
        return degradation
    if not isinstance(scale, int):
        raise BadOption(f"{degradation.label!r} shrinks by {scale}, but only a whole number can be enlarged again.")
    steps = degradation.steps if isinstance(degradation, Chain) else (degradation,)
    return Chain([*steps, BicubicUpscale(scale=scale)])


def blur_of(degradation: object) -> Blur | None:
    """The blur whose kernel says all of a degradation but its noise: the degradation, or the first step of a chain
    that goes on with noise alone. None for any other; a kernel does not tell how JPEG or a resize changed the image.

    Its next kernel is that of the next image when the generator is in the same state: it draws first.
    """
    steps = degradation.steps if isinstance(degradation, Chain) else (degradation,)
    first, *later = steps
    return first if isinstance(first, Blur) and all(isinstance(step, GaussianNoise) for step in later) else None
