"""CW-SSIM: structural similarity of complex wavelet coefficients, which forgives small shifts and turns."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from veridical.core.colour import luma
from veridical.core.filters import gaussian_window
from veridical.core.image import check_pair, in_float64, in_parts, no_autocast
from veridical.core.options import check_choice
from veridical.measures import steerable

Variant = Literal["steerable", "ricker"]
VARIANTS = ("steerable", "ricker")

WINDOW = 7
FAINTEST = 1e-8  # of full range: coefficients below this are rounding, and alike
PART_PX = 2**22

WIDTHS = 30
RICKER_CONSTANT = 0.01


def cw_ssim(
    prediction: Tensor,
    target: Tensor,
    *,
    variant: Variant = "steerable",
    levels: int = 6,
    orientations: int = 16,
) -> Tensor:
    """Structural similarity of complex wavelet coefficients: small shifts and turns cost little. Higher is better.

    Shapes: (N, 1 or 3, H, W) x 2 in [0, 1] -> (N,), float64; H and W >= 2**(levels + 2), 256 px by default; "ricker"
            takes any size. RGB is taken to BT.601 luma.
    Range:  [0, 1], 1 for identical images. Where neither image has anything in a window, they are alike: constant
            images have 1.
    Args:   variant: "steerable" is the authors' cwssim_index with its example's parameters: the coarsest level of a
            complex steerable pyramid, 7x7 windows, K = 0, a Gaussian weight of a quarter of the height. "ricker" is
            cw_ssim_value of PyPI's pyssim 0.3 to 0.7, another measure under this name, from which the SSIM column of
            MPRNet's rows in the TFMLC paper comes: Ricker wavelets of 30 widths along the rows of an 8-bit grey image,
            joined into one line. (0.7.1 has PyWavelets' transform, which is up to 0.0003 away.)
            levels, orientations: of the pyramid; pyiqa has 4 and 8. Fewer levels look at finer detail.
    Errors: ValueError when the shapes differ, or for other channels or a smaller image; BadOption.
    Source: Sampat et al. 2009, doi:10.1109/TIP.2009.2025923, and its released MATLAB code; github.com/jterrace/pyssim.
    """
    check_choice("variant of cw-ssim", variant, VARIANTS)
    least = least_size(variant, levels)
    check_pair(prediction, target, _who(variant, levels), min_size=least, channels=(1, 3))
    measure = _by_rows if variant == "ricker" else lambda x, y: _by_bands(x, y, levels, orientations)
    with no_autocast(prediction):
        images = (luma(in_float64(image)) * 255 for image in (prediction, target))
        return in_parts(measure, *images, px=PART_PX)


def least_size(variant: str, levels: int) -> int:
    """The least height and width, in px: the coarsest band has to hold a window."""
    return 1 if variant == "ricker" else steerable.least_size(levels)


def _who(variant: str, levels: int) -> str:
    return "cw-ssim" if variant == "ricker" else f"cw-ssim with {levels} levels (fewer levels need less)"


def _by_bands(prediction: Tensor, target: Tensor, levels: int, orientations: int) -> Tensor:
    one, other = (
        steerable.oriented_bands(image, level=levels, orientations=orientations) for image in (prediction, target)
    )
    product = one * other.conj()
    together = torch.hypot(_windowed(product.real), _windowed(product.imag))
    energy = _windowed(one.abs().square() + other.abs().square())
    nothing = (255 * FAINTEST * 4 ** (levels - 1)) ** 2
    similarity = (2 * together + nothing) / (energy + nothing)  # (N, orientations, h, w)
    sigma = one.shape[-2] / 4
    rows, columns = (gaussian_window(length, sigma).to(similarity) for length in similarity.shape[-2:])
    return (similarity * rows[:, None] * columns).sum((2, 3)).mean(1)


def _windowed(band: Tensor) -> Tensor:
    return F.avg_pool2d(band, WINDOW, 1)


def _by_rows(prediction: Tensor, target: Tensor) -> Tensor:
    """pyssim multiplies two fractions, in which the sum of |a b| stands once above and once below: it cancels out."""
    one, other = ((image + 0.5).floor().flatten(1) for image in (prediction, target))  # (N, L)
    length = -(-(one.shape[1] + 10 * WIDTHS) // 4096) * 4096  # no wrapping around, and quick to transform
    spectra = [torch.fft.rfft(line, length) for line in (one, other)]
    together, energy = torch.zeros_like(one), torch.zeros_like(one)
    for width in range(1, WIDTHS + 1):
        wavelet = _ricker(min(10 * width, one.shape[1]), width).to(one)
        response = torch.fft.rfft(wavelet, length)
        begin = (len(wavelet) - 1) // 2
        a, b = (torch.fft.irfft(line * response, length)[:, begin : begin + one.shape[1]] for line in spectra)
        together += a * b
        energy += a.square() + b.square()
    return ((2 * together.abs() + RICKER_CONSTANT) / (energy + RICKER_CONSTANT)).mean(1)


def _ricker(points: int, width: float) -> Tensor:
    """The Mexican hat, of unit energy: (points,) float64."""
    square = ((torch.arange(points, dtype=torch.float64) - (points - 1) / 2) / width).square()
    return 2 / ((3 * width) ** 0.5 * torch.pi**0.25) * (1 - square) * (-square / 2).exp()
