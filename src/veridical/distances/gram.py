"""Which features occur together, wherever they stand."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from veridical.core.product import product
from veridical.distances.base import Distance


def gram(maps: Tensor) -> Tensor:
    """Mean over positions of the products of each two channels, over C: (N, C, h, w) -> (N, C, C)."""
    points = maps.flatten(2).mT.contiguous()
    if torch.is_grad_enabled() and points.requires_grad:
        matrix: Tensor = _Gram.apply(points)
        return matrix
    return _gram(points)


def _gram(points: Tensor) -> Tensor:
    return product(points.mT, points.mT) / points[0].numel()


class _Gram(torch.autograd.Function):
    """(N, n, C) -> (N, C, C). Its gradient is one product; autograd would make one for each of the two factors."""

    @staticmethod
    def forward(ctx: Any, points: Tensor) -> Tensor:
        ctx.save_for_backward(points)
        return _gram(points)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (points,) = ctx.saved_tensors
        return product(points, (gradient + gradient.mT) / points[0].numel())


class Gram(Distance):
    """Squared Frobenius distance of the two Gram matrices, Σ over both channels; the target's is made once."""

    def prepare(self, target: Tensor) -> Tensor:
        return gram(target)

    def forward(self, prediction: Tensor, prepared: Tensor) -> Tensor:
        return (gram(prediction) - prepared).square().sum((1, 2))
