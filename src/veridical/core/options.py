"""What the options of anything that a name can make may be: checked where they are set, not at the first image."""

import math
from collections.abc import Collection, Mapping

from veridical.core.catalog import nearest
from veridical.core.errors import BadOption
from veridical.core.untrusted import short

MOST_OPTION = 8192


def check_number(what: str, value: object, *, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise BadOption unless `value` is a finite number in [low, high]."""
    if not is_number_in(value, low, high):
        raise BadOption(f"{what} must be a number{bounds(low, high)}; got {short(value)}.")


def check_whole(what: str, value: object, *, low: int, high: float = math.inf, odd: bool = False) -> None:
    """Raise BadOption unless `value` is a whole number in [low, high] (and odd, when asked)."""
    whole = isinstance(value, int) and is_number_in(value, low, high)
    if not whole or (odd and value % 2 == 0):  # type: ignore[operator] # whole, so an int
        kind = "an odd whole number" if odd else "a whole number"
        raise BadOption(f"{what} must be {kind}{bounds(low, high)}; got {short(value)}.")


def check_flag(what: str, value: object) -> None:
    """Raise BadOption unless `value` is True or False: the word "no" would count as true."""
    if not isinstance(value, bool):
        raise BadOption(f"{what} must be true or false; got {value!r}.")


def check_choice(what: str, value: object, known: Collection[str]) -> None:
    """Raise BadOption, suggesting the nearest, unless `value` is one of the known words."""
    if value not in known:
        close = nearest(str(value), known)
        hint = f" Did you mean {close!r}?" if close else ""
        raise BadOption(f"{what} must be one of {', '.join(known)}; got {value!r}.{hint}")


def check_sizes(what: str, options: Mapping[str, object]) -> None:
    """Raise BadOption for an option that no network has: a number beyond MOST_OPTION, or a list of more than 64. A
    number of layers alone could take the memory, before any weight of theirs is made."""
    for name, value in options.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        beyond = (isinstance(each, int | float) and not -MOST_OPTION <= each <= MOST_OPTION for each in numbers)
        if len(numbers) > 64 or any(beyond):
            raise BadOption(f"{name} of {what} is {short(value)}; numbers up to {MOST_OPTION} are possible.")


def is_number_in(value: object, low: float, high: float) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value) and low <= value <= high
    except OverflowError:  # a whole number that no float holds
        return False


def bounds(low: float, high: float) -> str:
    """Such as " of at least 1" or " from 1 to 5"; nothing when there is no bound."""
    if low == -math.inf:
        return ""
    return f" of at least {low:g}" if high == math.inf else f" from {low:g} to {high:g}"
