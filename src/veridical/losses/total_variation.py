"""Smoothness as a loss."""

import torch
from torch import Tensor

from veridical.core.image import at_least_float32, mean_per_image, no_autocast
from veridical.core.options import check_flag, check_number
from veridical.losses.base import Loss


class TVLoss(Loss):
    """How much less smooth than the target: TV(prediction) - TV(target). Only beside a pixel loss: l1 + 0.01*tv.

    TV needs no reference; TV(target) is a constant that makes the loss 0 at the target: the gradient is that of TV
    itself, which leads to flat images.

    Formula: TV(x̂) - TV(x); TV(x) = mean |∂h x| + mean |∂v x|, or mean (sqrt((∂h x)² + (∂v x)² + eps²) - eps); ∂h, ∂v:
            differences of neighbours along rows and columns.
    Range:  [-TV(target), inf), in intensity units per px.
    Use:    a small weight against noise, checkerboards and speckles that another term leaves behind, where fine texture
            matters less: perceptual and adversarial terms invent them.
    Weak:   its optimum is a flat image: it removes texture as it does noise, and with a large weight makes patches of
            one colour (staircases). It does not look at the target at all.
    Args:   isotropic: the length of the slope in place of the sum of its two parts: turning an edge costs nothing.
            eps: rounding of the corner at no slope, in intensity units per px; of the isotropic form only.
    Source: Rudin, Osher, Fatemi 1992, "Nonlinear total variation based noise removal algorithms" (isotropic); as a term
            in restoration: Johnson, Alahi, Fei-Fei 2016, arXiv:1603.08155.
    """

    reference = False
    min_size = 2

    def __init__(self, *, isotropic: bool = False, eps: float = 1e-3) -> None:
        super().__init__()
        check_flag("isotropic of tv", isotropic)
        check_number("eps of tv", eps, low=1e-8)  # smaller ones vanish in float32, and the gradient with them
        self.isotropic, self.eps = isotropic, eps

    def prepare_target(self, target: Tensor) -> Tensor:
        return self._variation(target)

    def compare(self, prediction: Tensor, data: Tensor) -> Tensor:
        return self._variation(prediction) - data

    def _variation(self, image: Tensor) -> Tensor:
        """(N, C, H, W) -> (N,)."""
        with no_autocast(image):
            image = at_least_float32(image)
            along_rows = image[..., :, 1:] - image[..., :, :-1]  # (N, C, H, W - 1)
            along_columns = image[..., 1:, :] - image[..., :-1, :]
            if not self.isotropic:
                return mean_per_image(along_rows.abs()) + mean_per_image(along_columns.abs())
            both = along_rows[..., :-1, :].square() + along_columns[..., :, :-1].square()
            return mean_per_image(torch.sqrt(both + self.eps**2) - self.eps)
