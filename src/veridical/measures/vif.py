"""VIF: how much of what the reference tells an eye can still be told from the other image."""

import math
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from veridical.core.colour import luma
from veridical.core.filters import gaussian_window, slide
from veridical.core.image import check_pair, in_float64, in_parts, no_autocast
from veridical.core.options import check_choice

Variant = Literal["wavelet", "pixel"]
LEAST_PX = {"wavelet": 65, "pixel": 41}
PART_PX = 2**20

BLOCK = 3
WAVELET_NOISE, PIXEL_NOISE = 0.4, 2.0  # variance of what the eye adds, for 0-255
WAVELET_FAINTEST, PIXEL_FAINTEST = 1e-15, 1e-10  # variances below this are none

# Of the filters sp5 of Simoncelli's matlabPyrTools, those that VIF looks through, by their upper left corners with the
# middle row: the low passes, even both ways, with the middle column too; and one band, even down and odd across. The
# other band is the same one turned.
LOW = (
    (0.00341614, -0.01551246, -0.03848215),
    (-0.01551246, 0.05586982, 0.15925570),
    (-0.03848215, 0.15925570, 0.40304148),
)
LOWER = (
    (0.00170808, -0.00489834, -0.00775624, -0.01888864, -0.01924108),
    (-0.00489834, -0.01046562, -0.01322234, 0.00821200, 0.02005976),
    (-0.00775624, -0.01322234, 0.02793492, 0.06554076, 0.07962786),
    (-0.01888864, 0.00821200, 0.06554076, 0.12852666, 0.16339236),
    (-0.01924108, 0.02005976, 0.07962786, 0.16339236, 0.20193080),
)
BAND = (
    (0.00277643, -0.00986904, -0.01021852),
    (0.00496194, -0.00893064, -0.03075356),
    (0.01026699, 0.01189859, -0.08226445),
    (0.01455399, 0.02755155, -0.11732297),
)


def vif(prediction: Tensor, target: Tensor, *, variant: Variant = "wavelet") -> Tensor:
    """Visual information fidelity: the share of the target's information that is left. Higher is better.

    Shapes: (N, 1 or 3, H, W) x 2 in [0, 1], H and W >= 65 ("pixel": 41) -> (N,), float64. RGB is taken to BT.601 luma.
    Range:  [0, inf), 1 for identical images; above 1 for a prediction of more contrast. NaN for a target without any
            contrast, which has no information to be left.
    Args:   variant: "wavelet" is the paper's, as its authors' vifvec computes it: two orientations at four levels of a
            steerable pyramid, vectors of 3x3. "pixel" is their shortcut vifp_mscale, four scales of the image itself;
            piq, torchmetrics and sewar call it VIF. They are two scales of numbers.
    Errors: ValueError when the shapes differ, or for other channels or a smaller image; BadOption.
    Source: Sheikh & Bovik 2006, doi:10.1109/TIP.2005.859378, and its released MATLAB code.
    """
    check_choice("variant of vif", variant, LEAST_PX)
    check_pair(prediction, target, f"vif ({variant})", min_size=LEAST_PX[variant], channels=(1, 3))
    with no_autocast(prediction):
        images = (luma(in_float64(image)) * 255 for image in (prediction, target))
        return in_parts(_wavelet if variant == "wavelet" else _pixel, *images, px=PART_PX)


def _channel(
    covariance: Tensor, variance: Tensor, of_prediction: Tensor, *, count: int, faintest: float
) -> tuple[Tensor, Tensor]:
    """The least squares fit prediction = gain * target + error: gain >= 0 and the error's variance, which matters only
    where there is a gain. The three are sums over `count` pixels."""
    gain = covariance / (variance + faintest)
    error = (of_prediction - gain * covariance) / count
    nothing = (variance < faintest) | (of_prediction < faintest) | (gain < 0)
    return torch.where(nothing, 0.0, gain), error.clamp(min=faintest)


# ---- the paper's ----


def _wavelet(prediction: Tensor, target: Tensor) -> Tensor:
    kept, told = (target.new_zeros(len(target)) for _ in range(2))
    bands = [_bands(image) for image in (prediction, target)]
    for level, (ours, theirs) in enumerate(zip(*bands, strict=True)):
        for band in range(2):
            left, whole = _information(ours[:, [band]], theirs[:, [band]], window=2 ** (4 - level) + 1)
            kept, told = kept + left, told + whole
    return kept / told


def _bands(image: Tensor) -> list[Tensor]:
    """Two orientations at four levels, finest first: (N, 1, H, W) -> (N, 2, h, w) each."""
    across = _kernel(BAND, odd=True)
    image = _filtered(image, _kernel(LOW, odd=False))
    out = []
    for _ in range(4):
        out.append(torch.cat([_filtered(image, across), _filtered(image, across.T)], dim=1))
        image = _filtered(image, _kernel(LOWER, odd=False), stride=2)
    return out


def _kernel(corner: tuple[tuple[float, ...], ...], *, odd: bool) -> Tensor:
    """The whole filter from its upper left corner, centre included but for an odd one's: (h, w)."""
    left = torch.tensor(corner, dtype=torch.float64)
    left = torch.cat([left, left[:-1].flip(0)])
    middle = left.new_zeros(len(left), 1) if odd else left[:, -1:]
    side = left if odd else left[:, :-1]
    return torch.cat([side, middle, (-side if odd else side).flip(1)], dim=1)


def _filtered(image: Tensor, kernel: Tensor, *, stride: int = 1) -> Tensor:
    """Correlated row by row: in float64 torch's convolution takes several times as long on a CPU."""
    margin, height = len(kernel) // 2, image.shape[-2]
    image = F.pad(image, (margin,) * 4, mode="reflect")
    rows = (slide(image[..., k : k + height : stride, :], taps, -1) for k, taps in enumerate(kernel))
    return reduce(torch.add, (row[..., ::stride] for row in rows))


def _information(prediction: Tensor, target: Tensor, *, window: int) -> tuple[Tensor, Tensor]:
    """Bits of one band, (N, 1, h, w), that are left, and bits there were: (N,) each."""
    height, width = (length // BLOCK * BLOCK for length in target.shape[-2:])
    x, y = target[..., :height, :width], prediction[..., :height, :width]
    mean_x, mean_y, xy, xx, yy = (_around_blocks(each, window) for each in (x, y, x * y, x.square(), y.square()))
    count = window**2
    covariance = count * (xy - mean_x * mean_y)
    variance, of_prediction = (count * (s - m.square()).clamp(min=0) for s, m in ((xx, mean_x), (yy, mean_y)))
    gain, error = _channel(covariance, variance, of_prediction, count=count, faintest=WAVELET_FAINTEST)

    # The target's 3x3 vectors are a Gaussian of this covariance times a local strength.
    overlapping = F.unfold(x, BLOCK)  # (N, 9, positions)
    centred = overlapping - overlapping.mean(2, keepdim=True)
    spread, directions = torch.linalg.eigh(centred @ centred.transpose(1, 2) / centred.shape[2])
    there = spread > WAVELET_FAINTEST
    along = directions.transpose(1, 2) @ F.unfold(x, BLOCK, stride=BLOCK)
    strength = along.square() * torch.where(there, 1 / spread, 0.0)[..., None]
    strength = strength.mean(1).reshape(gain.shape)

    margin = math.ceil((window - 1) / 2 / BLOCK)  # blocks whose window reaches beyond the border
    gain, error, strength = (each[:, 0, margin:-margin, margin:-margin, None] for each in (gain, error, strength))
    variances = strength * torch.where(there, spread, 0.0)[:, None, None]  # (N, h, w, 9)
    left = (1 + gain.square() * variances / (error + WAVELET_NOISE)).log2().sum((1, 2, 3))
    return left, (1 + variances / WAVELET_NOISE).log2().sum((1, 2, 3))


def _around_blocks(values: Tensor, window: int) -> Tensor:
    """The mean in a window around the centre of each 3x3 block."""
    margin = window // 2
    padded = F.pad(values, (margin,) * 4, mode="reflect")
    return F.avg_pool2d(padded[..., BLOCK // 2 :, BLOCK // 2 :], window, BLOCK)


# ---- the shortcut ----


def _pixel(prediction: Tensor, target: Tensor) -> Tensor:
    kept, told = (target.new_zeros(len(target)) for _ in range(2))
    for scale in range(4):
        size = 2 ** (4 - scale) + 1
        taps = gaussian_window(size, size / 5)
        if scale:
            prediction, target = (_smoothed(image, taps)[..., ::2, ::2] for image in (prediction, target))
        x, y = target, prediction
        mean_x, mean_y, xy, xx, yy = (_smoothed(each, taps) for each in (x, y, x * y, x.square(), y.square()))
        variance, of_prediction = ((s - m.square()).clamp(min=0) for s, m in ((xx, mean_x), (yy, mean_y)))
        gain, error = _channel(xy - mean_x * mean_y, variance, of_prediction, count=1, faintest=PIXEL_FAINTEST)
        variance = torch.where(variance < PIXEL_FAINTEST, 0.0, variance)
        kept = kept + (1 + gain.square() * variance / (error + PIXEL_NOISE)).log().sum((1, 2, 3))
        told = told + (1 + variance / PIXEL_NOISE).log().sum((1, 2, 3))
    return kept / told


def _smoothed(image: Tensor, taps: Tensor) -> Tensor:
    return slide(slide(image, taps, -1), taps, -2)
