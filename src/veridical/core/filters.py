"""Linear filters on images: windows, borders, convolution per channel."""

from typing import Any

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
    height, width = len(column), len(row)
    image = slide(pad(image, (width // 2, (width - 1) // 2, 0, 0), border), row, -1)
    return slide(pad(image, (0, 0, height // 2, (height - 1) // 2), border), column, -2)


def slide(image: Tensor, taps: Tensor, axis: int) -> Tensor:
    """Correlate the rows (axis -1) or columns (-2) of (..., H, W) with taps, at the positions where they fit inside.

    On a CPU by adding shifted images, which stay in its caches: torch's convolution with one channel per group is
    several times as slow there, unless the number of channels suits it.
    """
    if not _adds_shifted(image):
        return _convolve_along(image, taps, axis, padding=0)
    if torch.is_grad_enabled() and image.requires_grad:
        shifted: Tensor = _Shifted.apply(image, taps, axis, False)
        return shifted
    first, *others = taps.to(image).unbind()
    size = image.shape[axis] - len(others)
    total = image.narrow(axis, 0, size) * first
    for k, tap in enumerate(others, 1):
        total.addcmul_(image.narrow(axis, k, size), tap)
    return total


def unslide(values: Tensor, taps: Tensor, axis: int) -> Tensor:
    """The transpose of `slide`, which its gradient is: spreads each value over the positions that it was made of."""
    if not _adds_shifted(values):
        return _convolve_along(values, taps.flip(0), axis, padding=len(taps) - 1)
    if torch.is_grad_enabled() and values.requires_grad:
        shifted: Tensor = _Shifted.apply(values, taps, axis, True)
        return shifted
    shape = list(values.shape)
    shape[axis] += len(taps) - 1
    total = values.new_zeros(shape)
    for k, tap in enumerate(taps.to(values).unbind()):
        total.narrow(axis, k, values.shape[axis]).addcmul_(values, tap)
    return total


def _adds_shifted(image: Tensor) -> bool:
    # In 16 bits a running sum would lose digits; a convolution sums in 32.
    return image.device.type == "cpu" and image.dtype in (torch.float32, torch.float64)


class _Shifted(torch.autograd.Function):
    """`slide` or, transposed, `unslide`: each is the other's gradient. Autograd's own would fill an image per tap."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, taps: Tensor, axis: int, transposed: bool) -> Tensor:
        ctx.save_for_backward(taps)
        ctx.axis, ctx.transposed = axis, transposed
        return (unslide if transposed else slide)(image, taps, axis)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (taps,) = ctx.saved_tensors
        return (slide if ctx.transposed else unslide)(gradient, taps, ctx.axis), None, None, None


def _convolve_along(image: Tensor, taps: Tensor, axis: int, *, padding: int) -> Tensor:
    """Every plane is a channel of one image: for one channel per group a GPU has a kernel, in full float32."""
    planes = image.reshape(1, -1, *image.shape[-2:])
    shape, around = ((len(taps), 1), (padding, 0)) if axis == -2 else ((1, len(taps)), (0, padding))
    weight = taps.to(image).reshape(shape).expand(planes.shape[1], 1, *shape)
    result = F.conv2d(planes, weight, padding=around, groups=planes.shape[1])
    return result.reshape(*image.shape[:-2], *result.shape[-2:])
