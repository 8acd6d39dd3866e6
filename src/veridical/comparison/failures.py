"""Where each loss fails: the images to look at before trusting its mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from veridical.comparison.statistics import Column, Values

_JUDGES = ("lpips", "dists", "pieapp", "ms-ssim", "ssim", "psnr")  # which metric picks: the first that was measured


class Kind(StrEnum):
    """Why an image is shown: the loss is furthest behind the best other one, or at its own worst."""

    BEHIND = "furthest behind"
    WORST = "worst image"


@dataclass(frozen=True)
class Failure:
    """One image on which one loss fails. rival: the best other loss on it, None without another. values: by the metric
    that picked it."""

    loss: str
    image: str
    kinds: tuple[Kind, ...]
    value: float
    rival: str | None
    rival_value: float | None


def judge(columns: Sequence[Column]) -> Column:
    """The metric that picks the images: a distance to the truth that sees what people see, if one was measured."""
    return next((c for base in _JUDGES for c in columns if c.base == base), columns[0])


def failures(values: Values, column: Column, losses: Sequence[str]) -> list[Failure]:
    """Of each of the losses, in their order, the image on which it is furthest behind the best other one and the image
    with its worst value; one entry when that is the same image. A loss that is the best on every image has no first.

    Values are means over the training seeds. Of images that are equally bad, the first.
    """
    k = values.columns.index(column)
    sign = 1.0 if column.higher_is_better else -1.0
    found = []
    for loss in losses:
        own = sign * values.of(loss)[:, k]
        others = [other for other in losses if other != loss]
        theirs = np.stack([sign * values.of(other)[:, k] for other in others]) if others else None
        picks: dict[int, list[Kind]] = {}
        if theirs is not None:
            lead = theirs.max(axis=0) - own
            if lead.max() > 0:
                picks.setdefault(int(lead.argmax()), []).append(Kind.BEHIND)
        picks.setdefault(int(own.argmin()), []).append(Kind.WORST)
        for j, kinds in picks.items():
            rival = None if theirs is None else int(theirs[:, j].argmax())
            found.append(
                Failure(
                    loss,
                    values.images[j],
                    tuple(kinds),
                    sign * float(own[j]),
                    None if rival is None else others[rival],
                    None if theirs is None or rival is None else sign * float(theirs[rival, j]),
                )
            )
    return found
