"""Linear filters on images: windows, borders, convolution per channel."""

import torch
import torch.nn.functional as F
from torch import Tensor

from veridical.core.catalog import unknown

# Our border names -> torch's. "reflect" repeats no edge pixel (OpenCV's reflect-101); "valid" pads nothing.
BORDERS = {
    "reflect": "reflect",
    "replicate": "replicate",
    "circular": "circular",
    "zero": "constant",
    "valid": None,
}


def gaussian_window(size: int, sigma_px: float) -> Tensor:
    """A sampled Gaussian of `size` taps that sums to 1, float64 (size,).

    >>> gaussian_window(3, 1.0).sum().item()
    1.0
    """
    offsets = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    window = torch.exp(-0.5 * (offsets / sigma_px) ** 2)
    return window / window.sum()


def pad(image: Tensor, amounts: tuple[int, int, int, int], border: str) -> Tensor:
    """Pad (N, C, H, W) by (left, right, top, bottom) with a named border rule.

    Errors: ValueError when a reflected border would be wider than the image.
    """
    if border not in BORDERS:
        raise unknown("border", border, BORDERS)
    mode = BORDERS[border]
    if mode is None or not any(amounts):
        return image
    height, width = image.shape[-2:]
    limit = {"reflect": 1, "circular": 0}.get(border)
    if limit is not None and (max(amounts[:2]) > width - limit or max(amounts[2:]) > height - limit):
        raise ValueError(
            f"a {border} border of {amounts} px needs a larger image than {height}x{width}; use border='replicate'."
        )
    return F.pad(image, amounts, mode=mode)


def convolve(image: Tensor, kernel: Tensor, *, border: str = "reflect") -> Tensor:
    """Correlate every channel of (N, C, H, W) with one (h, w) kernel.

    Same size out, except for border="valid", which keeps only the positions where the kernel fits inside.
    Even kernels put their extra tap left and top, as OpenCV's `filter2D` does.
    """
    height, width = kernel.shape
    image = pad(image, (width // 2, (width - 1) // 2, height // 2, (height - 1) // 2), border)
    channels = image.shape[1]
    weight = kernel.to(image).expand(channels, 1, height, width)
    return F.conv2d(image, weight, groups=channels)


def convolve_separable(image: Tensor, column: Tensor, row: Tensor, *, border: str = "reflect") -> Tensor:
    """`convolve` with outer(column, row), in two cheap passes."""
    return convolve(convolve(image, row[None, :], border=border), column[:, None], border=border)
