"""Peak signal-to-noise ratio."""

import torch
from torch import Tensor

from veridical.core.image import at_least_float32, check_pair, mean_per_image


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """10 log10(1 / mean squared difference), in dB, for images in [0, 1]; higher is better.

    Shapes: (N, C, H, W) x 2 -> (N,)
    Range:  [0, inf) for images in [0, 1]; identical images give inf.
    """
    check_pair(prediction, target, "psnr")
    error = mean_per_image((at_least_float32(prediction) - at_least_float32(target)).square())
    return -10 * torch.log10(error)
