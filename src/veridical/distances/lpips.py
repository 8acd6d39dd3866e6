"""LPIPS: channels normalised to unit length at each position, squared, weighted by what people saw."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from veridical.distances.base import Distance

# Inside the square root, so that the gradient stays finite where all channels are 0. The original adds 1e-10 outside,
# whose gradient there is NaN. 1e-10 inside moves a norm of 0.01 by 5e-7 of itself.
EPS = 1e-10


def unit_length(maps: Tensor) -> Tensor:
    """Divide by the length of the channel vector at each position. (N, C, h, w) -> same."""
    return maps * torch.rsqrt(maps.square().sum(1, keepdim=True) + EPS)


def lpips(prediction: Tensor, target_unit: Tensor, weight: Tensor) -> Tensor:
    """mean over positions of Σ_c weight_c (unit(prediction) - target_unit)²_c.

    Shapes: prediction (N, C, h, w); target_unit the same, from `unit_length`; weight (C,) -> (N,)
    Source: Zhang et al. 2018, arXiv:1801.03924, version 0.1 of the released linear layers.
    """
    squared = (unit_length(prediction) - target_unit).square()
    return torch.einsum("nchw,c->nhw", squared, weight.to(squared.dtype)).mean((1, 2))


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


def linear_weights(net: str) -> list[Tensor]:
    """The released weights (C,) of each tap for net "alex", "vgg" or "squeeze"; they ship with veridical (BSD-2)."""
    tensors = load_file(Path(__file__).with_name(f"lpips_v0.1_{net}.safetensors"))
    return [tensors[f"lin{k}"] for k in range(len(tensors))]
