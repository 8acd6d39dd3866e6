"""Statistics of natural scenes, from which no-reference measures of naturalness are made: contrast normalised by its
surroundings, and the shape of its distribution."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from veridical.core.colour import luma
from veridical.core.filters import gaussian_window, slide

WINDOW = 7
MARGIN = WINDOW // 2
SIGMA_PX = 7 / 6
HALF = 1e-4  # of a level: half of one rounds up, though in float32 it comes out a little less
NOTHING = 1e-9  # of a level; one pixel of the window that is one level off makes 1e-4
STRIP_PX = 1 << 18
"""Pixels of a batch that are worked on at once: 24 megapixels must not need a dozen copies of themselves."""


def grey_levels(image: Tensor) -> Tensor:
    """BT.601 luma in 0-255, rounded to whole levels as MATLAB's rgb2gray does: (N, 1 or 3, H, W) -> (N, 1, H, W).

    In float32, which holds whole levels exactly.
    """
    strips = [image[:, :, rows] for rows in strips_of(image)]
    return torch.cat([(luma(strip.double()) * 255 + (0.5 + HALF)).floor().float() for strip in strips], dim=2)


def strips_of(image: Tensor, step: int = 1) -> Iterator[slice]:
    """The rows of (N, C, H, W), a few at a time: strips of about `STRIP_PX` pixels, of a multiple of `step` rows."""
    count, _, height, width = image.shape
    rows = max(1, STRIP_PX // (count * width * step)) * step
    return (slice(start, min(start + rows, height)) for start in range(0, height, rows))


def normalised_contrast(grey: Tensor, rows: slice | None = None, *, border: str = "zero", flat: float = 0.0) -> Tensor:
    """(x - mean) / (deviation + 1) with the local mean and deviation in a 7x7 Gaussian window: MSCN coefficients.

    Shapes: (N, 1, H, W) in 0-255 -> (N, 1, rows, W), float64.
    Args:   rows: those that are wanted, by default all. border: "zero", as MATLAB's filter2, or "replicate".
            flat: the difference where all of the window is one value. The fits below count signs, so that -1e-13 is
            not 0 to them.
    """
    rows = slice(0, grey.shape[-2]) if rows is None else rows
    above, below = max(0, MARGIN - rows.start), max(0, rows.stop + MARGIN - grey.shape[-2])
    part = grey[:, :, rows.start - MARGIN + above : rows.stop + MARGIN - below].double()
    padded = F.pad(part, (MARGIN, MARGIN, above, below), mode="constant" if border == "zero" else "replicate")
    taps = gaussian_window(WINDOW, SIGMA_PX)
    mean, square = (slide(slide(image, taps, -1), taps, -2) for image in (padded, padded.square()))
    difference = padded[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN] - mean
    # There rounding leaves 1e-14 of a sign that depends on the order of adding up, and so on the device.
    difference = torch.where(difference.abs() < NOTHING, flat, difference)
    return difference / ((square - mean.square()).abs().sqrt() + 1)


def moments(values: Tensor) -> Tensor:
    """What the fits below need of samples, and what may be added up over parts of them: (N, M) -> (N, 6), float64.

    How many there are; how many are below 0, and above; the sums of the squares of those; the sum of the magnitudes.
    """
    below, above = values < 0, values > 0
    squares = values.square()
    sums = [torch.where(side, squares, 0.0).sum(1) for side in (below, above)]
    count = torch.full_like(sums[0], values.shape[1])
    return torch.stack([count, below.sum(1), above.sum(1), *sums, values.abs().sum(1)], dim=1)


def gaussian_shape(found: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and variance of the generalised Gaussian of mean 0 with these `moments`: (N, 6) -> (N,) x 2."""
    count, _, _, left, right, magnitude = found.unbind(1)
    square = (left + right) / count
    return _nearest(square / (magnitude / count).square(), power=-1), square


def asymmetric_shape(found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape, left and right deviation of the asymmetric generalised Gaussian of these `moments`: (N, 6) -> (N,) x 3.

    NaN where nothing is on a side.
    """
    count, below, above, left_sum, right_sum, magnitude = found.unbind(1)
    left, right = (left_sum / below).sqrt(), (right_sum / above).sqrt()
    gamma = left / right
    ratio = (magnitude / count).square() / ((left_sum + right_sum) / count)
    shape = _nearest(ratio * (gamma**3 + 1) * (gamma + 1) / (gamma.square() + 1).square(), power=1)
    return shape, left, right


def asymmetric_mean(shape: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The mean of that distribution."""
    inverse = 1 / shape
    scale = torch.lgamma(2 * inverse) - (torch.lgamma(inverse) + torch.lgamma(3 * inverse)) / 2
    return (right - left) * scale.exp()


def _nearest(ratio: Tensor, *, power: int) -> Tensor:
    """The shape whose ratio (E|x|)² / E x², to this power, comes nearest: one of 0.2, 0.201, ... 10, as the authors'
    code has it. NaN stays NaN.

    (N,) -> (N,)
    """
    shapes = torch.arange(200, 10_001, dtype=ratio.dtype, device=ratio.device) / 1000
    inverse = 1 / shapes
    table = (power * (2 * torch.lgamma(2 * inverse) - torch.lgamma(inverse) - torch.lgamma(3 * inverse))).exp()
    # It rises with the shape to the power 1 and falls to -1: with the power's sign it rises.
    rising, wanted = power * table, power * ratio
    upper = torch.searchsorted(rising, wanted).clamp(1, len(shapes) - 1)
    found = torch.where(wanted - rising[upper - 1] <= rising[upper] - wanted, upper - 1, upper)
    return torch.where(ratio.isfinite(), shapes[found], torch.nan)
