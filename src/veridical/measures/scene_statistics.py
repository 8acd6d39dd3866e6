"""Statistics of natural scenes, from which no-reference measures of naturalness are made: contrast normalised by its
surroundings, and the shape of its distribution."""

import torch
import torch.nn.functional as F
from torch import Tensor

from veridical.core.filters import gaussian_window, slide

WINDOW = 7
SIGMA_PX = 7 / 6


def normalised_contrast(grey: Tensor, *, border: str = "zero") -> Tensor:
    """(x - mean) / (deviation + 1) with the local mean and deviation in a 7x7 Gaussian window: MSCN coefficients.

    Shapes: (N, 1, H, W) in 0-255 -> the same.
    Args:   border: "zero", as MATLAB's filter2, or "replicate".
    """
    taps = gaussian_window(WINDOW, SIGMA_PX)
    margin = WINDOW // 2
    padded = F.pad(grey, (margin,) * 4, mode="constant" if border == "zero" else "replicate")
    mean, square = (slide(slide(image, taps, -1), taps, -2) for image in (padded, padded.square()))
    return (grey - mean) / ((square - mean.square()).abs().sqrt() + 1)


def gaussian_shape(values: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and variance of the generalised Gaussian of mean 0 with these values' moments: (N, M) -> (N,) x 2."""
    square = values.square().mean(1)
    ratio = square / values.abs().mean(1).square()
    return _nearest(ratio, power=-1), square


def asymmetric_shape(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape, left and right deviation of the asymmetric generalised Gaussian: (N, M) -> (N,) x 3."""
    left, right = (_one_sided(side) for side in (-values, values))
    gamma = left / right
    ratio = values.abs().mean(1).square() / values.square().mean(1)
    shape = _nearest(ratio * (gamma**3 + 1) * (gamma + 1) / (gamma.square() + 1).square(), power=1)
    return shape, left, right


def asymmetric_mean(shape: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The mean of that distribution."""
    inverse = 1 / shape
    scale = torch.lgamma(2 * inverse) - (torch.lgamma(inverse) + torch.lgamma(3 * inverse)) / 2
    return (right - left) * scale.exp()


def _one_sided(values: Tensor) -> Tensor:
    """The root of the mean square of what is above 0."""
    above = values > 0
    return (torch.where(above, values, 0.0).square().sum(1) / above.sum(1)).sqrt()


def _nearest(ratio: Tensor, *, power: int) -> Tensor:
    """The shape whose ratio (E|x|)² / E x², to this power, comes nearest: one of 0.2, 0.201, ... 10, as the authors'
    code has it. NaN stays NaN.

    (N,) -> (N,)
    """
    shapes = torch.arange(200, 10_001, dtype=ratio.dtype, device=ratio.device) / 1000
    inverse = 1 / shapes
    table = (power * (2 * torch.lgamma(2 * inverse) - torch.lgamma(inverse) - torch.lgamma(3 * inverse))).exp()
    found = shapes[(table - ratio[:, None]).abs().argmin(1)]
    return torch.where(ratio.isfinite(), found, torch.nan)
