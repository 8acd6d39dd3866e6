"""A console on which no name, note or error of somebody else's files can steer the terminal."""

from collections.abc import Iterable
from typing import Any

import rich.console
import rich.segment

from veridical.core.untrusted import printable


class Console(rich.console.Console):
    """rich's, with the control characters in texts written out; its own colours and bars are no texts."""

    def render(self, *arguments: Any, **options: Any) -> Iterable[rich.segment.Segment]:
        for segment in super().render(*arguments, **options):
            if segment.control or segment.text == printable(segment.text):
                yield segment
            else:
                yield rich.segment.Segment(printable(segment.text), segment.style)
