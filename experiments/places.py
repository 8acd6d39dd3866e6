"""Places in a page that are filled from runs, and numbers as they stand there."""

import re
from collections.abc import Callable
from typing import NamedTuple

from veridical.comparison.statistics import Interval
from veridical.core.errors import DataError

END = "<!-- end -->"


class Filled(NamedTuple):
    """filled, missing: the places that were filled in, and those that stayed as they were."""

    text: str
    filled: list[re.Match[str]]
    missing: list[re.Match[str]]


def fill_places(text: str, place: re.Pattern[str], made: Callable[[re.Match[str]], str | None]) -> Filled:
    """The page with what is made of each place, a line that `place` matches, between it and the next END; where that
    is None, what stood there stays.

    Errors: DataError when a place has no end.
    """
    lines: list[str] = []
    filled, missing = [], []
    rest = iter(text.split("\n"))
    for line in rest:
        lines.append(line)
        found = place.match(line)
        if found is None:
            continue
        before = []
        for inside in rest:
            if inside == END:
                break
            if place.match(inside):
                raise DataError(f"{line} has no {END} before {inside}.")
            before.append(inside)
        else:
            raise DataError(f"{line} has no {END}.")
        block = made(found)
        (missing if block is None else filled).append(found)
        lines += before if block is None else ["", *block.rstrip("\n").split("\n"), ""]
        lines.append(END)
    return Filled("\n".join(lines), filled, missing)


def number(value: float, places: int, sign: str = "") -> str:
    """
    >>> number(-0.5, 2), number(0.5, 1, "+")
    ('−0.50', '+0.5')
    """
    return f"{value:{sign}.{places}f}".replace("-", "−")


def bounds(interval: Interval, places: int, sign: str = "") -> str:
    """
    >>> bounds(Interval(0.0, -0.5, 0.5), 1, "+")
    ' (−0.5 to +0.5)'
    """
    if interval.low is None or interval.high is None:
        return " (no interval)"
    return f" ({number(interval.low, places, sign)} to {number(interval.high, places, sign)})"
