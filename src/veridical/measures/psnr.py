"""Peak signal-to-noise ratio."""

import torch
import torch.nn.functional as F
from torch import Tensor

from veridical.core.image import at_least_float32, check_pair

# How many values of an image are looked at together on a CPU: the differences of so many stay in its caches.
PASS = 2**18


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """10 log10(1 / mean squared difference), in dB, for images in [0, 1]; higher is better.

    Shapes: (N, C, H, W) x 2 -> (N,)
    Range:  [0, inf) for images in [0, 1]; identical images give inf.
    """
    check_pair(prediction, target, "psnr")
    prediction, target = (at_least_float32(image).flatten(1) for image in (prediction, target))
    count = prediction.shape[1]
    size = PASS if prediction.device.type == "cpu" else count
    parts = zip(prediction.split(size, dim=1), target.split(size, dim=1), strict=True)
    # Not the norm of the difference: torch adds its squares one after the other, which is off by 1e-4 dB.
    squares = [F.mse_loss(p, t, reduction="none").sum(1) for p, t in parts]
    return -10 * torch.log10(torch.stack(squares).sum(0) / count)
