"""GMSD: how unevenly the edges of two images differ."""

import torch
import torch.nn.functional as F
from torch import Tensor

from veridical.core.colour import luma
from veridical.core.image import at_least_float32, check_pair, no_autocast

CONSTANT = 170.0  # for 0-255
LEAST_PX = 2


def gmsd(prediction: Tensor, target: Tensor) -> Tensor:
    """Gradient magnitude similarity deviation: the standard deviation, over the image, of how alike the slopes are.

    Lower is better.

    Shapes: (N, 1 or 3, H, W) x 2 in [0, 1], H and W >= 2 -> (N,). RGB is taken to BT.601 luma.
    Range:  [0, 0.5], 0 for identical images; also 0 where the slopes are alike to the same degree everywhere.
    Errors: ValueError when the shapes differ, or for other channels or a smaller image.
    Source: Xue et al. 2014, doi:10.1109/TIP.2013.2293423: halved by 2x2 means, Prewitt slopes, zeros beyond the border,
            deviation over the number of pixels. The authors' code divides by one less: on 256x256 px, by 0.003 % more.
    """
    check_pair(prediction, target, "gmsd", min_size=LEAST_PX, channels=(1, 3))
    with no_autocast(prediction):
        one, other = (_slopes(_halved(luma(at_least_float32(image)) * 255)) for image in (prediction, target))
        similarity = (2 * one * other + CONSTANT) / (one.square() + other.square() + CONSTANT)
        return similarity.flatten(1).std(1, correction=0)


def _halved(image: Tensor) -> Tensor:
    """2x2 mean; an odd side ends with a zero, as in MATLAB's conv2 and every second pixel."""
    return F.avg_pool2d(F.pad(image, (0, image.shape[-1] % 2, 0, image.shape[-2] % 2)), 2)


def _slopes(image: Tensor) -> Tensor:
    """Magnitude of Prewitt's slopes: (N, 1, H, W) -> the same."""
    across = torch.tensor([[1.0, 0.0, -1.0]] * 3).to(image) / 3
    kernels = torch.stack([across, across.T])[:, None]
    return F.conv2d(image, kernels, padding=1).square().sum(1, keepdim=True).sqrt()
