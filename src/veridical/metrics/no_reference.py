"""Builders of the metrics that look at one image alone; the table is in `metrics/__init__.py`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from veridical.core.options import check_choice
from veridical.features import weights as files
from veridical.measures import brisque, sharpness_q
from veridical.measures.brisque import LEAST_PX
from veridical.measures.sharpness_q import PATCH, THRESHOLD, Variant


class OfImage(nn.Module):
    """A pure function of one image, with the least size that it needs: the target is not looked at."""

    def __init__(self, function: Callable[..., Tensor], min_size: int) -> None:
        super().__init__()
        self.function, self.min_size = function, min_size

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:  # noqa: ARG002
        return self.function(prediction)


def build_sharpness_q(*, variant: Variant = "singular") -> nn.Module:
    """Sharpness of the image alone, no reference; rewards ringing too. Zhu & Milanfar 2010."""
    check_choice("variant of sharpness-q", variant, THRESHOLD)
    return OfImage(partial(sharpness_q, variant=variant), PATCH)


def build_brisque(*, weights: str | None = None) -> nn.Module:
    """Unnaturalness of the image alone, by statistics of its contrasts; no reference. Mittal et al. 2012."""
    return OfImage(partial(brisque, regression=files.load("brisque", path=weights).tensors), LEAST_PX)


def brisque_needs(options: Mapping[str, Any]) -> tuple[str, ...]:
    return () if options.get("weights") else ("brisque",)
