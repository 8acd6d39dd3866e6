"""Features without a network."""

import torch
from torch import Tensor

from veridical.core.filters import convolve_separable
from veridical.core.image import at_least_float32, no_autocast
from veridical.core.options import check_choice
from veridical.features.base import Features, Maps

GRADIENT_KERNELS = ("difference", "sobel")


class Pixels(Features):
    """The image itself, tap "pixels"."""

    def __init__(self) -> None:
        super().__init__(taps=["pixels"], available=["pixels"], identity="pixels")

    def forward(self, image: Tensor, weights: tuple[Tensor, ...]) -> Maps:  # noqa: ARG002
        return {"pixels": image}


class Laplacian(Features):
    """One level of a Laplacian pyramid, at full size: x - blur(up(down(blur(x)))), tap "laplacian".

    The kernel is the outer product of [.05, .25, .4, .25, .05]; `up` puts zeros between and multiplies by 4;
    borders are replicated. Source: MPRNet's edge loss (Zamir et al. 2021, arXiv:2102.02808) after Jiang et al. 2020.
    """

    window: Tensor

    def __init__(self) -> None:
        super().__init__(taps=["laplacian"], available=["laplacian"], identity="laplacian")
        self.register_buffer("window", torch.tensor([0.05, 0.25, 0.4, 0.25, 0.05]), persistent=False)

    def _blur(self, image: Tensor) -> Tensor:
        return convolve_separable(image, self.window, self.window, border="replicate")

    def forward(self, image: Tensor, weights: tuple[Tensor, ...]) -> Maps:  # noqa: ARG002
        with no_autocast(image):
            image = at_least_float32(image)
            height, width = image.shape[-2:]
            even_rows = (torch.arange(height, device=image.device) % 2 == 0).to(image.dtype)
            even_columns = (torch.arange(width, device=image.device) % 2 == 0).to(image.dtype)
            sparse = self._blur(image) * (4 * even_rows[:, None] * even_columns)
            return {"laplacian": image - self._blur(sparse)}


class Gradients(Features):
    """The slopes of the image in intensity per px, taps "horizontal" and "vertical", where the kernel fits inside.

    "difference": one pixel less the one before it. "sobel": central differences, smoothed across by [1, 2, 1] / 4.
    """

    def __init__(self, kernel: str = "difference") -> None:
        check_choice("kernel of the gradients", kernel, GRADIENT_KERNELS)
        taps = ["horizontal", "vertical"]
        super().__init__(taps=taps, available=taps, identity=("gradients", kernel))
        self.kernel = kernel

    @property
    def min_size(self) -> int:
        return 2 if self.kernel == "difference" else 3

    def forward(self, image: Tensor, weights: tuple[Tensor, ...]) -> Maps:  # noqa: ARG002
        image = at_least_float32(image)
        if self.kernel == "difference":
            return {
                "horizontal": image[..., :, 1:] - image[..., :, :-1],  # (N, C, H, W - 1)
                "vertical": image[..., 1:, :] - image[..., :-1, :],
            }
        rows = (image[..., :-2, :] + 2 * image[..., 1:-1, :] + image[..., 2:, :]) / 8  # smoothed down the columns
        columns = (image[..., :, :-2] + 2 * image[..., :, 1:-1] + image[..., :, 2:]) / 8
        return {
            "horizontal": rows[..., :, 2:] - rows[..., :, :-2],  # (N, C, H - 2, W - 2)
            "vertical": columns[..., 2:, :] - columns[..., :-2, :],
        }
