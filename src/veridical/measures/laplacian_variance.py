"""Sharpness as the variance of the Laplacian, the focus measure that everyone prints."""

import torch
from torch import Tensor

from veridical.core.filters import pad
from veridical.core.image import check_image, no_autocast, where_float64_is
from veridical.measures.scene_statistics import grey_levels, strips_of

LEAST_PX = 2


def laplacian_variance(image: Tensor) -> Tensor:
    """Variance of the Laplacian of the luma in 0-255; higher is sharper. No reference.

    Noise raises it as much as detail does, and it depends on the scene: compare it within one scene only.

    Shapes: (N, 1 or 3, H, W) in [0, 1], H and W >= 2 -> (N,), float64. RGB is taken to BT.601 luma; both are rounded to
            8 bits. The kernel is 0 1 0 / 1 -4 1 / 0 1 0 and the border is mirrored without its edge pixel:
            OpenCV's `Laplacian(grey, CV_64F).var()`.
    Range:  [0, 1040400], in squared levels of 255; Kodak's photographs have 400 to 4700. 0 for a flat image.
    Source: Pech-Pacheco et al. 2000, doi:10.1109/ICPR.2000.903548.
    """
    check_image(image, "laplacian-variance", min_size=LEAST_PX, channels=(1, 3))
    image = where_float64_is(image)
    with no_autocast(image):
        grey = pad(grey_levels(image), (1, 1, 1, 1), "reflect")
        # Sums of whole numbers below 2^21: exact in float64 for any image that fits in memory.
        total, square = (torch.zeros(len(grey), dtype=torch.float64, device=grey.device) for _ in range(2))
        for rows in strips_of(image):
            part = grey[:, :, rows.start : rows.stop + 2].double()
            centre = part[:, :, 1:-1, 1:-1]
            change = (
                part[:, :, 2:, 1:-1] + part[:, :, :-2, 1:-1] + part[:, :, 1:-1, 2:] + part[:, :, 1:-1, :-2] - 4 * centre
            )
            total += change.sum((1, 2, 3))
            square += change.square().sum((1, 2, 3))
        count = image[0, 0].numel()
        return (square - total.square() / count) / count
