"""Losses on the pixels themselves."""

import math

import torch
from torch import Tensor

from veridical.core.image import at_least_float32, mean_per_image, no_autocast
from veridical.core.options import check_number
from veridical.distances import L1, L2, Charbonnier, FeatureDistance
from veridical.features import Gradients, Laplacian, Pixels
from veridical.losses.base import FeatureLoss, Loss


def l1() -> FeatureLoss:
    """Mean absolute error: robust, sharper than L2, still averages over what it cannot know.

    Formula: mean |x̂ - x| over channels and pixels.
    Range:  [0, inf), in intensity units.
    Use:    the pixel term beside a perceptual one: it holds colour, brightness and content in their place, and a few
            wrong pixels do not rule it. Alone where the damage can nearly be undone.
    Weak:   its best answer is the median of all that could have been there, which is blurred where much could: it sees
            neither structure nor texture: a shift of one pixel can cost more than noise. Its gradient has one size
            however small the error, so the learning rate must fall for it to settle.
    Source: against L2 in restoration: Zhao et al. 2017, arXiv:1511.08861.
    """
    return FeatureLoss(FeatureDistance(Pixels(), {"pixels": L1()}))


def l2() -> FeatureLoss:
    """Mean squared error: the highest PSNR, and the smoothest images.

    Formula: mean (x̂ - x)² over channels and pixels; PSNR = -10 log10 of it.
    Range:  [0, inf), in squared intensity units.
    Use:    when PSNR is the goal, and as the term that keeps a perceptual loss near the truth (0.8*l2 + 0.2*lpips).
    Weak:   its best answer is the mean of all that could have been there: blurred. It counts every error of one energy
            alike, a change of brightness as much as noise. One outlier outweighs many small errors. Beside terms in
            other units its value is small, so the weights need care.
    Source: regression to the mean: Delbracio, Talebi, Milanfar 2020, arXiv:2012.09289, section 1.
    """
    return FeatureLoss(FeatureDistance(Pixels(), {"pixels": L2()}))


def charbonnier(*, eps: float = 1e-3) -> FeatureLoss:
    """Smooth L1: mean of sqrt(d² + eps²) - eps.

    Formula: mean (sqrt(d² + eps²) - eps), d = x̂ - x.
    Range:  [0, inf), in intensity units.
    Use:    in place of l1 where training should settle: near the optimum it behaves as L2, far from it as L1.
    Weak:   those of l1: it predicts the median, without structure or texture. With eps far above the errors it is L2.
    Args:   eps: rounding of the corner at d = 0, in intensity units.
    Source: Lai et al. 2017, arXiv:1704.03915. We subtract eps, so that identical images give 0; they do not.
    """
    return FeatureLoss(FeatureDistance(Pixels(), {"pixels": Charbonnier(eps=eps)}))


def edge(*, eps: float = 1e-3) -> FeatureLoss:
    """Charbonnier distance of the Laplacians: edges and texture, blind to slow changes. Add it to a pixel loss.

    Formula: mean (sqrt(d² + eps²) - eps), d = Δx̂ - Δx, Δx = x - blur(up(down(blur(x)))), one level of a Laplacian
            pyramid.
    Range:  [0, inf), in intensity units.
    Use:    beside charbonnier, to weigh edges more: charbonnier + 0.05*edge.
    Weak:   alone it leaves brightness and slow colour free to drift. It compares position by position, so that it
            averages over fine detail it cannot know, as pixel losses do, and noise costs it most of all.
    Args:   eps: rounding of the corner at d = 0, in intensity units.
    Source: MPRNet, Zamir et al. 2021, arXiv:2102.02808, where its weight beside Charbonnier is 0.05.
    """
    return FeatureLoss(FeatureDistance(Laplacian(), {"laplacian": Charbonnier(eps=eps)}))


def gradient(*, kernel: str = "difference") -> FeatureLoss:
    """Mean absolute error of the slopes: edges as strong and as sharp as the truth's. Add it to a pixel loss.

    Formula: mean |∂h x̂ - ∂h x| + mean |∂v x̂ - ∂v x|; ∂h, ∂v: slopes along rows and columns, in intensity per px.
    Range:  [0, inf), in intensity units per px.
    Use:    beside a pixel loss, against edges that come out soft and against ringing: l1 + 0.1*gradient. With auto
            weight where the scale is unknown: l1 + auto(ratio=0.5)*gradient.
    Weak:   alone it does not see brightness and colour: an image plus a constant costs nothing. It compares position
            by position, so an edge that is off by a pixel costs twice, and noise costs it more than blur does.
    Args:   kernel: "difference" (one pixel less the one before) or "sobel" (central, smoothed across the slope: less
            moved by noise, blind to stripes 2 px wide).
    Source: Mathieu, Couprie, LeCun 2016, arXiv:1511.05440, whose gradient difference loss compares |∂x̂| with |∂x|; here
            their signs count too.
    """
    return FeatureLoss(FeatureDistance(Gradients(kernel), {"horizontal": L1(), "vertical": L1()}))


class PSNRLoss(Loss):
    """Logarithm of the mean squared error, in dB, zero for identical images: 10 log10((mse + eps) / eps).

    Formula: 10 log10((mse + eps) / eps), mse = mean (x̂ - x)², for each image.
    Range:  [0, inf); with the default eps an error of 1 gives 80.
    Use:    when PSNR averaged over images is the goal: every image counts by its ratio, easy ones as much as hard.
    Weak:   the blur of L2. Its gradient grows as the error falls (as 1 / sqrt(mse), until eps), so images that are
            nearly right pull hardest, and a loss in dB dwarfs terms in intensity units: HINet weighs it by 0.5.
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
