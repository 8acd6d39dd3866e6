"""LPIPS: channels normalised to unit length at each position, squared, weighted by what people saw."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.autograd.function import once_differentiable

from veridical.core.image import no_autocast
from veridical.distances.base import Distance

# Inside the square root, so that the gradient stays finite where all channels are 0. The original adds 1e-10 outside,
# whose gradient there is NaN. 1e-10 inside moves a norm of 0.01 by 5e-7 of itself.
EPS = 1e-10


def unit_length(maps: Tensor) -> Tensor:
    """Divide by the length of the channel vector at each position. (N, C, h, w) -> same."""
    return maps * _per_length(maps)


def _per_length(maps: Tensor) -> Tensor:
    return torch.rsqrt(maps.square().sum(1, keepdim=True) + EPS)


def lpips(prediction: Tensor, target_unit: Tensor, weight: Tensor) -> Tensor:
    """mean over positions of Σ_c weight_c (unit(prediction) - target_unit)²_c.

    Shapes: prediction (N, C, h, w); target_unit the same, from `unit_length`; weight (C,) -> (N,)
    Source: Zhang et al. 2018, arXiv:1801.03924, version 0.1 of the released linear layers.
    """
    weight = weight.to(prediction.dtype)
    if torch.is_grad_enabled() and prediction.requires_grad:
        value: Tensor = _LPIPS.apply(prediction, target_unit, weight)
        return value
    return _lpips(prediction, _per_length(prediction), target_unit, weight)


def _lpips(prediction: Tensor, scale: Tensor, target_unit: Tensor, weight: Tensor) -> Tensor:
    squared = _difference(prediction, scale, target_unit).square_()
    return torch.einsum("nchw,c->nhw", squared, weight).mean((1, 2))


def _difference(prediction: Tensor, scale: Tensor, target_unit: Tensor) -> Tensor:
    return torch.addcmul(target_unit, prediction, scale, value=-1)


class _LPIPS(torch.autograd.Function):
    """`_lpips` with a graph. Autograd would go over the large maps twice as often, and keep more of them."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target_unit: Tensor, weight: Tensor) -> Tensor:
        scale = _per_length(prediction)
        ctx.save_for_backward(prediction, scale, target_unit, weight)
        return _lpips(prediction, scale, target_unit, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        prediction, scale, target_unit, weight = ctx.saved_tensors
        with no_autocast(prediction):
            difference = _difference(prediction, scale, target_unit)
            # u = scale * prediction, e = weight * difference: the gradient is a multiple of scale * (e - u (u.e)).
            along = torch.einsum("nchw,c->nhw", prediction * difference, weight)[:, None]
            result = difference.mul_(weight[:, None, None]).addcmul_(prediction, along * scale.square(), value=-1)
            factor = gradient * (-2 / difference[0, 0].numel())
            return result.mul_(scale * factor[:, None, None, None]), None, None


class LPIPS(Distance):
    """See `lpips`; one object per tap, with that tap's released weights."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)

    def prepare(self, target: Tensor) -> Tensor:
        return unit_length(target)

    def forward(self, prediction: Tensor, prepared: Tensor) -> Tensor:
        return lpips(prediction, prepared, self.weight)


class UnitL2(Distance):
    """`lpips` with every weight 1: the squared distance of the directions of the features."""

    def prepare(self, target: Tensor) -> Tensor:
        return unit_length(target)

    def forward(self, prediction: Tensor, prepared: Tensor) -> Tensor:
        return lpips(prediction, prepared, prediction.new_ones(prediction.shape[1]))


def linear_weights(net: str) -> list[Tensor]:
    """The released weights (C,) of each tap for net "alex", "vgg" or "squeeze"; they ship with veridical (BSD-2)."""
    tensors = load_file(Path(__file__).with_name(f"lpips_v0.1_{net}.safetensors"))
    return [tensors[f"lin{k}"] for k in range(len(tensors))]
