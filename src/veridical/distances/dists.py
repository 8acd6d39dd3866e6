"""DISTS: of each channel, how much its mean (texture) and its course (structure) differ."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.autograd.function import once_differentiable

from veridical.distances.base import Distance
from veridical.distances.feature_distance import FeatureDistance
from veridical.features.networks import IMAGE, FrozenNetwork

TAPS = (IMAGE, "relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
CHANNELS = (3, 64, 128, 256, 512, 512)
EPS = 1e-6


def statistics(x: Tensor, y: Tensor, mean_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of x, variance of x and variance of x - y over positions: (N, C, h, w) x 2, (N, C) -> (N, C) x 3."""
    mean = x.mean((2, 3), keepdim=True)
    variance = (x - mean).square_().mean((2, 3))
    apart = (x - y).sub_(mean - mean_y[..., None, None]).square_().mean((2, 3))
    return mean.flatten(1), variance, apart


class _Statistics(torch.autograd.Function):
    """`statistics`, whose three gradients make one pass over the map: operation by operation it would be a dozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, mean_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance, apart = statistics(x, y, mean_y)
        ctx.save_for_backward(x, y, mean, mean_y)
        return mean, variance, apart

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        x, y, mean, mean_y = ctx.saved_tensors
        to_mean, to_variance, to_apart = (g / x[0, 0].numel() for g in upstream)
        constant = to_mean - 2 * (to_variance * mean + to_apart * (mean - mean_y))
        slope = 2 * (to_variance + to_apart)
        gradient = torch.addcmul(constant[..., None, None], x, slope[..., None, None])
        return gradient.addcmul_(y, to_apart[..., None, None], value=-2), None, None


class _Known(NamedTuple):
    """What is known of a target: its map, and the mean and variance of each channel, (N, C)."""

    maps: Tensor
    mean: Tensor
    variance: Tensor


class DISTS(Distance):
    """Σ_c α_c (1 - S1_c) + β_c (1 - S2_c), one object per tap, with that tap's released weights (C,).

    S1 = (2 m_x m_y + ε) / (m_x² + m_y² + ε) of the means, S2 = (2 c_xy + ε) / (v_x + v_y + ε) of covariance and
    variances, ε = 1e-6. So 1 - S1 = (m_x - m_y)² / (...) and 1 - S2 = variance of (x - y) / (...), and in this form
    nothing cancels.
    """

    alpha: Tensor
    beta: Tensor

    def __init__(self, alpha: Tensor, beta: Tensor) -> None:
        super().__init__()
        self.register_buffer("alpha", alpha, persistent=False)
        self.register_buffer("beta", beta, persistent=False)

    def prepare(self, target: Tensor) -> _Known:
        mean = target.mean((2, 3), keepdim=True)
        return _Known(target, mean.flatten(1), (target - mean).square_().mean((2, 3)))

    def forward(self, prediction: Tensor, prepared: _Known) -> Tensor:
        needs_gradient = torch.is_grad_enabled() and prediction.requires_grad
        of = _Statistics.apply if needs_gradient else statistics
        mean, variance, apart = of(prediction, prepared.maps, prepared.mean)
        texture = (mean - prepared.mean).square() / (mean.square() + prepared.mean.square() + EPS)
        structure = apart / (variance + prepared.variance + EPS)
        return texture @ self.alpha.to(texture.dtype) + structure @ self.beta.to(texture.dtype)


def dists_weights() -> list[tuple[Tensor, Tensor]]:
    """The released α and β (C,) of each of TAPS, which sum to 1; they ship with veridical (MIT)."""
    tensors = load_file(Path(__file__).with_name("dists_v0.1.safetensors"))
    return list(zip(tensors["alpha"].split(CHANNELS), tensors["beta"].split(CHANNELS), strict=True))


def dists_distance(*, clamp: bool = False, weights: str | None = None) -> FeatureDistance:
    """DISTS as a FeatureDistance; both the loss and the metric are this one.

    Args: clamp: clip inputs to [0, 1]. weights: file to read VGG16 from.
    """
    features = FrozenNetwork("vgg16", taps=TAPS, pool="l2", clamp=clamp, weights=weights)
    return FeatureDistance(features, {tap: DISTS(*pair) for tap, pair in zip(TAPS, dists_weights(), strict=True)})


def dists_needs(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The weights that DISTS with these options has to find: none when a file is named."""
    return () if options.get("weights") else ("vgg16",)
