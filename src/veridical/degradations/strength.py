"""Strengths: a number, or a range from which one is drawn for every image."""

import math
from collections.abc import Sequence

import torch

from veridical.core.errors import BadOption
from veridical.core.options import bounds, is_number_in

# A number, or (low, high): then one value is drawn uniformly from that range for every image.
Strength = float | tuple[float, float]


def check_strength(what: str, value: object, *, low: float, high: float = math.inf) -> None:
    """Raise BadOption unless `value` is a finite number in [low, high], or an ordered pair of them."""
    ends: Sequence = value if isinstance(value, (tuple, list)) and len(value) == 2 else (value,)
    if not all(is_number_in(end, low, high) for end in ends):
        raise BadOption(f"{what} must be a number{bounds(low, high)}, or a range (low, high) of them; got {value!r}.")
    if ends[0] > ends[-1]:
        raise BadOption(f"{what} is a range (low, high) with low <= high; got {value!r}. Swap its ends.")


def varies(strength: Strength) -> bool:
    """True when the strength is a range, so that drawing it uses the generator."""
    return not isinstance(strength, (int, float))


def draw(strength: Strength, generator: torch.Generator) -> float:
    """The strength of one image: the number itself (nothing drawn), or a uniform draw from the range."""
    if isinstance(strength, (int, float)):
        return float(strength)
    low, high = strength
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()
