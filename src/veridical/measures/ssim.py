"""Structural similarity, at one scale and at several."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from veridical.core.filters import gaussian_window, slide, unslide
from veridical.core.image import at_least_float32, check_pair, no_autocast
from veridical.core.options import check_choice, check_number, check_whole

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
K1, K2 = 0.01, 0.03
# How many pixels of each map are looked at together on a CPU: so many stay in its caches.
PASS_PX = 2 * 256 * 256


def _similarity(prediction: Tensor, target: Tensor, window: Tensor, *, luminance: bool) -> Tensor:
    """SSIM averaged over positions, or without `luminance` its contrast factor: (N, C, H, W) x 2 -> (N, C)."""
    if torch.is_grad_enabled() and (prediction.requires_grad or target.requires_grad):
        values: Tensor = _Similarity.apply(prediction, target, window, luminance)
        return values
    return _by_planes(prediction, target, window, luminance, ())[0]


class _Similarity(torch.autograd.Function):
    """The gradient is taken in the forward pass, while what it needs is at hand: each value depends on one plane alone,
    so that what comes from above only multiplies it."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor, window: Tensor, luminance: bool) -> Tensor:
        signs = [sign for sign, needed in zip((1, -1), ctx.needs_input_grad[:2], strict=True) if needed]
        values, gradients = _by_planes(prediction, target, window, luminance, signs)
        ctx.save_for_backward(*gradients)
        height, width = prediction.shape[-2:]
        ctx.scale = 2 / ((height - len(window) + 1) * (width - len(window) + 1))
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = iter(ctx.saved_tensors)
        upstream = ctx.scale * upstream[:, :, None, None]
        of_images = [next(gradients) * upstream if needed else None for needed in ctx.needs_input_grad[:2]]
        return (*of_images, None, None)


def _by_planes(
    prediction: Tensor, target: Tensor, window: Tensor, luminance: bool, signs: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    """`_planes` of all (N, C): values (N, C), and a gradient (N, C, H, W) for each sign: 1 by x̂, -1 by x."""
    shape = prediction.shape
    by_device = prediction.device.type != "cpu" or torch.compiler.is_compiling()
    size = shape[0] * shape[1] if by_device else max(1, PASS_PX // (shape[2] * shape[3]))
    parts = zip(prediction.flatten(0, 1).split(size), target.flatten(0, 1).split(size), strict=True)
    values, *gradients = zip(*(_planes(p, t, window, luminance, signs) for p, t in parts), strict=True)
    return torch.cat(values).reshape(shape[:2]), [torch.cat(gradient).reshape(shape) for gradient in gradients]


def _planes(
    prediction: Tensor, target: Tensor, window: Tensor, luminance: bool, signs: Sequence[int]
) -> tuple[Tensor, ...]:
    """Values (P,) of planes (P, H, W) x 2 and, for each sign, half the gradient of their sum over positions (P, H, W).

    With s = x̂ + x and d = x̂ - x, SSIM is the product of two fractions (a - b + c) / (a + b + c): a, b are the squared
    means of s, d in the luminance and their variances in the contrast. So four windowed maps are enough, and identical
    images give exactly 1.
    """
    s, d = prediction + target, prediction - target
    maps = torch.stack([s, d, s.square(), d.square()])
    mean_s, mean_d, square_s, square_d = slide(slide(maps, window, -2), window, -1)
    mean_s2, mean_d2 = mean_s.square(), mean_d.square()
    contrast, below = _fraction(square_s.sub_(mean_s2), square_d.sub_(mean_d2), 2 * K2**2)
    if luminance:
        light, below_light = _fraction(mean_s2, mean_d2, 2 * K1**2)
        values = (light * contrast).mean((1, 2))
    else:
        values = contrast.mean((1, 2))
    if not signs:
        return (values,)

    # A fraction f has the derivatives (1 - f) / (a + b + c) by a and -(1 + f) / (a + b + c) by b.
    scale = light / below if luminance else below.reciprocal_()
    by_square_s, by_square_d = (1 - contrast).mul_(scale), (-1 - contrast).mul_(scale)
    by_mean_s, by_mean_d = by_square_s.neg(), by_square_d.neg()
    if luminance:
        scale = contrast.div_(below_light)
        by_mean_s.addcmul_(1 - light, scale)
        by_mean_d.addcmul_(-1 - light, scale)
    by_mean_s.mul_(mean_s)
    by_mean_d.mul_(mean_d)
    gradients = []
    for sign in signs:
        maps = torch.stack([torch.add(by_mean_s, by_mean_d, alpha=sign), by_square_s, by_square_d])
        by_map, by_s, by_d = unslide(unslide(maps, window, -1), window, -2)
        gradients.append(by_map.addcmul_(s, by_s).addcmul_(d, by_d, value=sign))
    return values, *gradients


def _fraction(a: Tensor, b: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """(a - b + c) / (a + b + c), and what stands below the line."""
    below = (a + b).add_(c)
    return (a - b).add_(c).div_(below), below


def ssim(
    prediction: Tensor,
    target: Tensor,
    *,
    window_size: int = 11,
    sigma_px: float = 1.5,
    window: Tensor | None = None,
) -> Tensor:
    """Structural similarity with a Gaussian window, averaged over positions and channels; higher is better.

    Shapes: (N, C, H, W) x 2, H and W >= window_size -> (N,)
    Range:  [-1, 1], 1 for identical images. Images in [0, 1] (L = 1, K1 = 0.01, K2 = 0.03).
    Args:   window: weights (window_size,) in the place of window_size and sigma_px. A loss keeps them as a buffer,
            since making them costs a copy to the device.
    Errors: ValueError when the shapes differ or the image is smaller than the window.
    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861, without the reference code's downsampling. Positions where
            the window does not fit are left out, as in scikit-image. Computed in float32 or wider, autocast or not. The
            gradient has no gradient of its own.
    """
    window = gaussian_window(window_size, sigma_px) if window is None else window
    check_pair(prediction, target, "ssim", min_size=len(window))
    with no_autocast(prediction):
        prediction, target = at_least_float32(prediction), at_least_float32(target)
        return _similarity(prediction, target, window.to(prediction), luminance=True).mean(1)


def check_window(who: str, window_size: int, sigma_px: float) -> None:
    """Raise BadOption for a window that cannot be."""
    check_whole(f"window_size of {who}", window_size, low=1)
    check_number(f"sigma_px of {who}", sigma_px, low=0.01)


def least_size(scales: int, window_size: int) -> int:
    """The least height and width for which the window fits at the coarsest scale."""
    return (window_size - 1) * 2 ** (scales - 1) + 1


def halve(image: Tensor) -> Tensor:
    """2x2 mean; an odd side begins with a zero, as in the reference implementations. On a CPU an eighth of the time of
    F.avg_pool2d."""
    image = F.pad(image, (image.shape[-1] % 2, 0, image.shape[-2] % 2, 0))
    pairs = image[..., ::2, :] + image[..., 1::2, :]
    return (pairs[..., ::2] + pairs[..., 1::2]) / 4


def ms_ssim(
    prediction: Tensor,
    target: Tensor,
    *,
    scales: int = 5,
    window_size: int = 11,
    sigma_px: float = 1.5,
    window: Tensor | None = None,
    negative: Literal["zero", "soft"] = "zero",
) -> Tensor:
    """Multi-scale structural similarity; higher is better.

    Shapes: (N, C, H, W) x 2 -> (N,); least size (window_size - 1) * 2**(scales - 1) + 1, which is 161 px by default.
    Range:  [0, 1], 1 for identical images in [0, 1].
    Args:   scales: 1 to 5; fewer than 5 renormalise the published weights of the scales kept.
            window: as for `ssim`.
            negative: a negative contrast term has no real power. "zero" clips it, as every public version does; its
            gradient then vanishes (x against 1 - x learns nothing). "soft" bends it smoothly towards 0 from 0.01 down,
            which keeps the gradient's direction: losses use it.
    Errors: ValueError when the shapes differ or the image is too small, naming the least size.
    Source: Wang, Simoncelli, Bovik 2003, doi:10.1109/ACSSC.2003.1292216. Product per channel, then the mean.
    """
    check_choice("negative of ms-ssim", negative, ("zero", "soft"))
    check_whole("scales of ms-ssim", scales, low=1, high=len(SCALE_WEIGHTS))
    window = gaussian_window(window_size, sigma_px) if window is None else window
    who = f"ms-ssim with {scales} scales (fewer scales need less)"
    check_pair(prediction, target, who, min_size=least_size(scales, len(window)))
    floor = _soft_floor if negative == "soft" else F.relu
    with no_autocast(prediction):
        prediction, target = at_least_float32(prediction), at_least_float32(target)
        window = window.to(prediction)
        total = sum(SCALE_WEIGHTS[:scales])
        product = torch.ones((), dtype=prediction.dtype, device=prediction.device)
        for k in range(scales):
            if k > 0:
                prediction, target = halve(prediction), halve(target)
            factor = _similarity(prediction, target, window, luminance=k == scales - 1)
            product = product * floor(factor) ** (SCALE_WEIGHTS[k] / total)
        return product.mean(1)


def _soft_floor(x: Tensor, knee: float = 0.01) -> Tensor:
    """x above the knee; knee² / (2 knee - x) below: positive, increasing, with one derivative at the knee."""
    below = knee**2 / (2 * knee - x.clamp(max=knee))
    return torch.where(x > knee, x, below)
