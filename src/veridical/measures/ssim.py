"""Structural similarity, at one scale and at several."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from veridical.core.filters import convolve_separable, gaussian_window
from veridical.core.image import at_least_float32, check_pair, no_autocast
from veridical.core.options import check_choice, check_number, check_whole

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
K1, K2 = 0.01, 0.03


class Statistics(NamedTuple):
    """One image's local mean and mean square, each (N, C, h, w), beside the image and the window they are of."""

    image: Tensor
    window: Tensor
    mean: Tensor
    mean_square: Tensor


def statistics(image: Tensor, window: Tensor) -> Statistics:
    mean, mean_square = _local(torch.cat([image, image.square()], dim=1), window).chunk(2, dim=1)
    return Statistics(image, window, mean, mean_square)


def _local(image: Tensor, window: Tensor) -> Tensor:
    return convolve_separable(image, window, window, border="valid")


def _luminance_and_contrast(prediction: Tensor, target: Statistics) -> tuple[Tensor, Tensor]:
    """The two factors of SSIM averaged over positions: (SSIM, contrast-structure), each (N, C)."""
    stack = torch.cat([prediction, prediction.square(), prediction * target.image], dim=1)
    mean_p, square_p, product = _local(stack, target.window).chunk(3, dim=1)
    mean_t = target.mean
    variance_p = square_p - mean_p.square()
    variance_t = target.mean_square - mean_t.square()
    covariance = product - mean_p * mean_t
    contrast = (2 * covariance + K2**2) / (variance_p + variance_t + K2**2)
    luminance = (2 * mean_p * mean_t + K1**2) / (mean_p.square() + mean_t.square() + K1**2)
    return (luminance * contrast).mean((2, 3)), contrast.mean((2, 3))


def ssim(prediction: Tensor, target: Tensor | Statistics, *, window_size: int = 11, sigma_px: float = 1.5) -> Tensor:
    """Structural similarity with a Gaussian window, averaged over positions and channels; higher is better.

    Shapes: (N, C, H, W) x 2, H and W >= window_size -> (N,). `target` may be what `describe`
            made of it once.
    Range:  [-1, 1], 1 for identical images. Images in [0, 1] (L = 1, K1 = 0.01, K2 = 0.03).
    Errors: ValueError when the shapes differ or the image is smaller than the window.
    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861, without the reference code's downsampling. Positions where
            the window does not fit are left out, as in scikit-image. Computed in float32 or wider, autocast or not.
    """
    if isinstance(target, Tensor):
        check_pair(prediction, target, "ssim", min_size=window_size)
        target = describe(target, window_for(target, window_size, sigma_px))
    else:
        check_pair(prediction, target.image, "ssim", min_size=len(target.window))
    with no_autocast(prediction):
        return _luminance_and_contrast(at_least_float32(prediction), target)[0].mean(1)


def window_for(image: Tensor, window_size: int, sigma_px: float) -> Tensor:
    """The Gaussian window on the image's device. A loss keeps it as a buffer, since making it costs a copy."""
    return gaussian_window(window_size, sigma_px).to(at_least_float32(image))


def describe(image: Tensor, window: Tensor) -> Statistics:
    """`Statistics` of an image that takes part in an SSIM, in float32 or wider."""
    with no_autocast(image):
        return statistics(at_least_float32(image), window)


def check_window(who: str, window_size: int, sigma_px: float) -> None:
    """Raise BadOption for a window that cannot be."""
    check_whole(f"window_size of {who}", window_size, low=1)
    check_number(f"sigma_px of {who}", sigma_px, low=0.01)


def least_size(scales: int, window_size: int) -> int:
    """The least height and width for which the window fits at the coarsest scale."""
    return (window_size - 1) * 2 ** (scales - 1) + 1


def halve(image: Tensor) -> Tensor:
    """2x2 mean; an odd side is padded by zeros on both sides, as the reference implementations do."""
    return F.avg_pool2d(image, 2, padding=(image.shape[-2] % 2, image.shape[-1] % 2))


def pyramid(image: Tensor, scales: int, window: Tensor) -> list[Statistics]:
    """`Statistics` at each scale, finest first, in float32 or wider."""
    with no_autocast(image):
        levels = [statistics(at_least_float32(image), window)]
        for _ in range(scales - 1):
            levels.append(statistics(halve(levels[-1].image), window))
        return levels


def ms_ssim(
    prediction: Tensor,
    target: Tensor | list[Statistics],
    *,
    scales: int = 5,
    window_size: int = 11,
    sigma_px: float = 1.5,
    negative: Literal["zero", "soft"] = "zero",
) -> Tensor:
    """Multi-scale structural similarity; higher is better.

    Shapes: (N, C, H, W) x 2 -> (N,); least size (window_size - 1) * 2**(scales - 1) + 1, which is 161 px by default.
            `target` may be its `pyramid`, computed once.
    Range:  [0, 1], 1 for identical images in [0, 1].
    Args:   scales: 1 to 5; fewer than 5 renormalise the published weights of the scales kept.
            negative: a negative contrast term has no real power. "zero" clips it, as every public version does; its
            gradient then vanishes (x against 1 - x learns nothing). "soft" bends it smoothly towards 0 from 0.01 down,
            which keeps the gradient's direction: losses use it.
    Errors: ValueError when the shapes differ or the image is too small, naming the least size.
    Source: Wang, Simoncelli, Bovik 2003, doi:10.1109/ACSSC.2003.1292216. Product per channel, then the mean.
    """
    check_choice("negative of ms-ssim", negative, ("zero", "soft"))
    check_whole("scales of ms-ssim", scales, low=1, high=len(SCALE_WEIGHTS))
    who = f"ms-ssim with {scales} scales (fewer scales need less)"
    if isinstance(target, Tensor):
        check_pair(prediction, target, who, min_size=least_size(scales, window_size))
        target = pyramid(target, scales, window_for(target, window_size, sigma_px))
    else:
        check_pair(prediction, target[0].image, who, min_size=least_size(scales, len(target[0].window)))
    floor = _soft_floor if negative == "soft" else F.relu
    with no_autocast(prediction):
        level = at_least_float32(prediction)
        total = sum(SCALE_WEIGHTS[:scales])
        product = torch.ones((), dtype=level.dtype, device=level.device)
        for k in range(scales):
            full, contrast = _luminance_and_contrast(level, target[k])
            factor = full if k == scales - 1 else contrast
            product = product * floor(factor) ** (SCALE_WEIGHTS[k] / total)
            if k < scales - 1:
                level = halve(level)
        return product.mean(1)


def _soft_floor(x: Tensor, knee: float = 0.01) -> Tensor:
    """x above the knee; knee² / (2 knee - x) below: positive, increasing, with one derivative at the knee."""
    below = knee**2 / (2 * knee - x.clamp(max=knee))
    return torch.where(x > knee, x, below)
