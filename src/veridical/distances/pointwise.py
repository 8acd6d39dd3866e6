"""Position against position."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from veridical.core.image import mean_per_image
from veridical.core.options import check_number
from veridical.distances.base import Distance

Value = Callable[[Tensor], Tensor]
Slope = Callable[[Tensor, Tensor], Tensor]


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference, (N, C, h, w) x 2 -> (N,)."""
    return _mean(prediction, target, torch.abs, lambda d, scale: torch.sign(d) * scale)


def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference, (N, C, h, w) x 2 -> (N,)."""
    return _mean(prediction, target, torch.square, lambda d, scale: d * (2 * scale))


def charbonnier(prediction: Tensor, target: Tensor, *, eps: float = 1e-3) -> Tensor:
    """Mean of sqrt(d² + eps²) - eps, (N, C, h, w) x 2 -> (N,).

    Args:   eps: rounding of the corner at d = 0, in units of the map.
    Source: Lai et al. 2017, arXiv:1704.03915. We subtract eps, so that equal maps give 0; they do not.
    """

    def value(d: Tensor) -> Tensor:
        return torch.sqrt(d.square() + eps**2) - eps

    def slope(d: Tensor, scale: Tensor) -> Tensor:
        return d * torch.rsqrt(d.square() + eps**2) * scale

    return _mean(prediction, target, value, slope)


def _mean(prediction: Tensor, target: Tensor, value: Value, slope: Slope) -> Tensor:
    """Mean of value(prediction - target), (N, ...) x 2 -> (N,). slope(d, scale): value's derivative, times scale."""
    if torch.is_grad_enabled() and prediction.requires_grad:
        result: Tensor = _Mean.apply(prediction, target, value, slope)
        return result
    return mean_per_image(value(prediction - target))  # torch.compile refuses a Function that needs no gradient


class _Mean(torch.autograd.Function):
    """`_mean` with a graph.

    The difference is all that is kept for the backward pass. Written operation by operation, autograd would keep more,
    and go over a large map five times as long.
    """

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor, value: Value, slope: Slope) -> Tensor:
        difference = prediction - target
        ctx.save_for_backward(difference)
        ctx.slope = slope
        return mean_per_image(value(difference))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (difference,) = ctx.saved_tensors
        scale = gradient / difference[0].numel()
        return ctx.slope(difference, scale.view(-1, *[1] * (difference.ndim - 1))), None, None, None


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
