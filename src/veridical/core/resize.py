"""Bicubic resizing as MATLAB's `imresize` does it."""

import math
from fractions import Fraction

import torch
from torch import Tensor


def resize(image: Tensor, factor: Fraction) -> Tensor:
    """Bicubic, antialiased when it shrinks: (..., H, W) -> (..., ceil(H * factor), ceil(W * factor)).

    The top left corners of both grids coincide.
    """
    return _resize(image, factor, factor)


def resize_to(image: Tensor, height: int, width: int) -> Tensor:
    """`resize` to a given size, with a factor of its own for each side: (..., H, W) -> (..., height, width)."""
    return _resize(image, Fraction(height, image.shape[-2]), Fraction(width, image.shape[-1]))


def _resize(image: Tensor, down: Fraction, across: Fraction) -> Tensor:
    rows = _resize_rows(image, down)
    return _resize_rows(rows.transpose(-1, -2), across).transpose(-1, -2).contiguous()


def _resize_rows(image: Tensor, factor: Fraction) -> Tensor:
    length = image.shape[-2]
    # One output pixel looks at 4 input pixels, or at 4 / factor of them when the kernel is widened.
    shrink = min(1.0, float(factor))
    place = torch.arange(math.ceil(length * factor), dtype=torch.float64)
    centre = (place + 0.5) / float(factor) - 0.5
    taps = math.ceil(4 / shrink) + 1
    first = torch.ceil(centre - 2 / shrink)
    position = first[:, None] + torch.arange(taps)  # (out, taps)
    weight = _cubic((position - centre[:, None]) * shrink)
    weight = (weight / weight.sum(1, keepdim=True)).to(image)
    # Mirrored with the edge pixel repeated, as often as a tiny image needs it.
    index = position.long() % (2 * length)
    index = torch.where(index < length, index, 2 * length - 1 - index).to(image.device)
    out = image.new_zeros((*image.shape[:-2], len(place), image.shape[-1]))
    for tap in range(taps):
        out += weight[:, tap, None] * image[..., index[:, tap], :]
    return out


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5; zero from 2 on."""
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
