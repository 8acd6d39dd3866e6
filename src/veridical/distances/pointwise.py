"""Position against position."""

import torch
from torch import Tensor

from veridical.core.image import mean_per_image
from veridical.core.options import check_number
from veridical.distances.base import Distance


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference, (N, C, h, w) x 2 -> (N,)."""
    return mean_per_image((prediction - target).abs())


def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference, (N, C, h, w) x 2 -> (N,)."""
    return mean_per_image((prediction - target).square())


def charbonnier(prediction: Tensor, target: Tensor, *, eps: float = 1e-3) -> Tensor:
    """Mean of sqrt(d² + eps²) - eps, (N, C, h, w) x 2 -> (N,).

    Args:   eps: rounding of the corner at d = 0, in units of the map.
    Source: Lai et al. 2017, arXiv:1704.03915. We subtract eps, so that equal maps give 0; they do not.
    """
    return mean_per_image(torch.sqrt((prediction - target).square() + eps**2) - eps)


class L1(Distance):
    """See `l1`."""

    def forward(self, prediction: Tensor, prepared: Tensor) -> Tensor:
        return l1(prediction, prepared)


class L2(Distance):
    """See `l2`."""

    def forward(self, prediction: Tensor, prepared: Tensor) -> Tensor:
        return l2(prediction, prepared)


class Charbonnier(Distance):
    """See `charbonnier`."""

    def __init__(self, *, eps: float = 1e-3) -> None:
        super().__init__()
        check_number("eps of charbonnier", eps, low=1e-8)  # smaller ones vanish in float32, and the gradient with them
        self.eps = eps

    def forward(self, prediction: Tensor, prepared: Tensor) -> Tensor:
        return charbonnier(prediction, prepared, eps=self.eps)
