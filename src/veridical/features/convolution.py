"""Layers with fixed weights: a convolution with its activation, and max-pooling.

Their weights need no gradient, so that the backward pass needs neither the input nor the output: one bool per
activation and one small index per pooled value are all that a graph keeps.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    slope: float | None = None,
) -> Tensor:
    """Convolve with fixed weights, add the bias, activate.

    Shapes: x (N, C, H, W), weight (D, C / groups, kh, kw), bias (D,) -> (N, D, h, w)
    Args:   slope: none for no activation, 0 for ReLU, else LeakyReLU's factor of negative values.
            Zeros are padded, as F.conv2d does. The gradient reaches x alone, and once: it has no gradient of its own.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        y: Tensor = _Convolution.apply(x, weight, bias, stride, padding, groups, slope)
        return y
    return _activated(F.conv2d(x, weight, bias, stride, padding, groups=groups), slope)


def _activated(y: Tensor, slope: float | None) -> Tensor:
    """In place: nothing else sees the convolution's own output."""
    return y if slope is None else F.leaky_relu_(y, slope) if slope else F.relu_(y)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        padding: int,
        groups: int,
        slope: float | None,
    ) -> Tensor:
        y = F.conv2d(x, weight, bias, stride, padding, groups=groups)
        ctx.save_for_backward(weight, None if slope is None else y > 0)
        ctx.shape, ctx.dtype, ctx.stride, ctx.padding, ctx.groups, ctx.slope = (
            x.shape, x.dtype, stride, padding, groups, slope
        )  # fmt: skip
        return _activated(y, slope)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, positive = ctx.saved_tensors
        if positive is not None:
            gradient = torch.where(positive, gradient, gradient * ctx.slope)
        weight = weight.to(gradient.dtype)
        result = conv2d_input(ctx.shape, weight, gradient, ctx.stride, ctx.padding, groups=ctx.groups)
        return result.to(ctx.dtype), None, None, None, None, None, None


def max_pool(x: Tensor, kernel: int, *, stride: int = 2, ceil: bool = False) -> Tensor:
    """The greatest of each kernel x kernel window; of equal ones the first gets the gradient, as in F.max_pool2d."""
    return F.max_pool2d(x, kernel, stride, ceil_mode=ceil)


def l2_pool(x: Tensor) -> Tensor:
    """Root of the blurred square, at every second position: it has no aliases. (N, C, H, W) -> (N, C, H/2, W/2), up.

    The window is Hanning's of 3 x 3, the outer product of [.25, .5, .25], over zeros at the border: two means of 2 x 2.
    Source: Ding et al. 2020, arXiv:2004.07728, with the 1e-12 of its released code.
    """
    means = F.avg_pool2d(x.square(), 2, stride=1, padding=1)
    return torch.sqrt(F.avg_pool2d(means, 2) + 1e-12)
