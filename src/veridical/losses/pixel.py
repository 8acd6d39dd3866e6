"""Losses on the pixels themselves."""

import math

import torch
from torch import Tensor

from veridical.core.image import at_least_float32, mean_per_image, no_autocast
from veridical.core.options import check_number
from veridical.distances import L1, L2, Charbonnier, FeatureDistance
from veridical.features import Laplacian, Pixels
from veridical.losses.base import FeatureLoss, Loss


def l1() -> FeatureLoss:
    """Mean absolute error: robust, sharper than L2, still averages over what it cannot know.

    Range:  [0, inf), in intensity units.
    """
    return FeatureLoss(FeatureDistance(Pixels(), {"pixels": L1()}))


def l2() -> FeatureLoss:
    """Mean squared error: the highest PSNR, and the smoothest images.

    Range:  [0, inf), in squared intensity units.
    """
    return FeatureLoss(FeatureDistance(Pixels(), {"pixels": L2()}))


def charbonnier(*, eps: float = 1e-3) -> FeatureLoss:
    """Smooth L1: mean of sqrt(d² + eps²) - eps.

    Range:  [0, inf), in intensity units.
    Args:   eps: rounding of the corner at d = 0, in intensity units.
    Source: Lai et al. 2017, arXiv:1704.03915. We subtract eps, so that identical images give 0; they do not.
    """
    return FeatureLoss(FeatureDistance(Pixels(), {"pixels": Charbonnier(eps=eps)}))


def edge(*, eps: float = 1e-3) -> FeatureLoss:
    """Charbonnier distance of the Laplacians: edges and texture, blind to slow changes. Add it to a pixel loss.

    Range:  [0, inf), in intensity units.
    Args:   eps: rounding of the corner at d = 0, in intensity units.
    Source: MPRNet, Zamir et al. 2021, arXiv:2102.02808, where its weight beside Charbonnier is 0.05.
    """
    return FeatureLoss(FeatureDistance(Laplacian(), {"laplacian": Charbonnier(eps=eps)}))


class PSNRLoss(Loss):
    """Logarithm of the mean squared error, in dB, zero for identical images: 10 log10((mse + eps) / eps).

    Range:  [0, inf); with the default eps an error of 1 gives 80.
    Args:   eps: added to the mean squared error, so that the logarithm stays finite.
    Source: HINet, Chen et al. 2021, arXiv:2105.06086, whose value is ours plus the constant 10 log10(eps).
    """

    def __init__(self, *, eps: float = 1e-8) -> None:
        super().__init__()
        check_number("eps of psnr", eps, low=1e-20)
        self.eps = eps

    def compare(self, prediction: Tensor, data: Tensor) -> Tensor:
        with no_autocast(prediction):
            error = mean_per_image((at_least_float32(prediction) - at_least_float32(data)).square())
            return 10 / math.log(10) * torch.log1p(error / self.eps)
