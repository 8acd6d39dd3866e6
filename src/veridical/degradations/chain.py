"""Several degradations, one after the other."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from veridical.core.errors import BadOption
from veridical.degradations.base import Degradation


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
