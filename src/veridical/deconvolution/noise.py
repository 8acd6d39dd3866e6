"""How strong the noise of an image is, from the image alone."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from veridical.core.image import at_least_float32, check_image

_MASK = ((1.0, -2.0, 1.0), (-2.0, 4.0, -2.0), (1.0, -2.0, 1.0))


def noise_sigma(image: Tensor) -> Tensor:
    """Immerkaer's estimate of the standard deviation of white noise, in the units of the image.

    Formula: sqrt(pi / 2) / (6 (H - 2) (W - 2)) * sum |image * M|, with M = [1 -2 1; -2 4 -2; 1 -2 1], where M fits
             inside: it does not see slopes, only fine texture and noise. So the estimate is high for sharp images
             with texture, which blurred ones are not.
    Shapes:  (N, C, H, W) -> (N,), the mean over channels. H, W >= 3.
    Source:  Immerkaer 1996, Fast Noise Variance Estimation, doi:10.1006/cviu.1996.0060.
    """
    check_image(image, "noise_sigma", min_size=3)
    image = at_least_float32(image)
    mask = torch.tensor(_MASK, dtype=image.dtype, device=image.device).expand(image.shape[1], 1, 3, 3)
    return math.sqrt(math.pi / 2) / 6 * F.conv2d(image, mask, groups=image.shape[1]).abs().mean((1, 2, 3))


def noise_to_signal(image: Tensor, sigma: float) -> float:
    """sigma² / var(image), of all its pixels; a flat image counts as one of a millionth of the range."""
    return sigma**2 / max(image.var(unbiased=False).item(), 1e-12)
