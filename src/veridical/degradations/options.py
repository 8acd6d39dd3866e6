"""What the options of a degradation may be, and strengths that are drawn anew for every image."""

import math
from collections.abc import Sequence

import torch

from veridical.core.errors import VeridicalError

# A number, or (low, high): then one value is drawn uniformly from that range for every image.
Strength = float | tuple[float, float]


class BadOption(VeridicalError, ValueError):
    """An option of a degradation that is impossible; the message says what was expected and what came."""


def check_number(what: str, value: object, *, low: float, high: float = math.inf) -> None:
    """Raise BadOption unless `value` is a finite number in [low, high]."""
    if not _is_number_in(value, low, high):
        raise BadOption(f"{what} must be a number {_bounds(low, high)}; got {value!r}.")


def check_strength(what: str, value: object, *, low: float, high: float = math.inf) -> None:
    """Raise BadOption unless `value` is a finite number in [low, high], or an ordered pair of them."""
    ends: Sequence = value if isinstance(value, (tuple, list)) and len(value) == 2 else (value,)
    if not all(_is_number_in(end, low, high) for end in ends):
        bounds = _bounds(low, high)
        raise BadOption(f"{what} must be a number {bounds}, or a range (low, high) of them; got {value!r}.")
    if ends[0] > ends[-1]:
        raise BadOption(f"{what} is a range (low, high) with low <= high; got {value!r}. Swap its ends.")


def check_whole(what: str, value: object, *, low: int, odd: bool = False) -> None:
    """Raise BadOption unless `value` is a whole number of at least `low` (and odd, when asked)."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (odd and value % 2 == 0):
        kind = "an odd whole number" if odd else "a whole number"
        raise BadOption(f"{what} must be {kind} of at least {low}; got {value!r}.")


def check_choice(what: str, value: object, known: Sequence[str]) -> None:
    """Raise BadOption unless `value` is one of the known words."""
    if value not in known:
        raise BadOption(f"{what} must be one of {', '.join(known)}; got {value!r}.")


def varies(strength: Strength) -> bool:
    """True when the strength is a range, so that drawing it uses the generator."""
    return not isinstance(strength, (int, float))


def draw(strength: Strength, generator: torch.Generator) -> float:
    """The strength of one image: the number itself (nothing drawn), or a uniform draw from the range."""
    if isinstance(strength, (int, float)):
        return float(strength)
    low, high = strength
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def _is_number_in(value: object, low: float, high: float) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return math.isfinite(value) and low <= value <= high


def _bounds(low: float, high: float) -> str:
    return f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
