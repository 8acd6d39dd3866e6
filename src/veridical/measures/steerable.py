"""The complex steerable pyramid: an image in bands of one octave and one orientation each, made in the Fourier domain.

Level 1 is the finest. The real parts of all bands, with the two residuals, are the (real) steerable pyramid: together
they hold the image without loss. Every function gives what `buildSCFpyr` of the authors' matlabPyrTools gives, but for
its table of 256 steps, in whose place stands the formula: the same within 1e-5 of the largest value.

Source: Simoncelli & Freeman 1995, doi:10.1109/ICIP.1995.537667; Portilla & Simoncelli 2000,
doi:10.1023/A:1026553619983.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from veridical.core.image import at_least_float32, check_image, no_autocast
from veridical.core.options import check_whole


def least_size(level: int) -> int:
    """The least height and width, in px, of an image with so many levels: the last one still has 8 px."""
    return int(2 ** (level + 2))


def oriented_bands(image: Tensor, *, level: int, orientations: int, real: bool = False) -> Tensor:
    """The bands of one level, analytic: the real part is even or odd, the imaginary part its Hilbert transform.

    Shapes: (N, 1, H, W), H and W >= 2**(level + 2) -> (N, orientations, h, w), complex; h is H halved level - 1 times,
            each time rounded up.
    Range:  that of the image times about 4**(level - 1): nothing is divided when the grid gets coarser.
    Args:   level: from 1, the octave below the sampling limit. orientations: at least 2. Band k responds to waves whose
            normal points k * 180° / orientations from the right, downwards. real: give the real parts alone.
    Errors: ValueError for a smaller image or another number of channels; BadOption.
    """
    check_whole("level of the steerable pyramid", level, low=1)
    check_whole("orientations of the steerable pyramid", orientations, low=2)
    who = f"the steerable pyramid with {level} levels"
    check_image(image, who, min_size=least_size(level), channels=(1,))
    with no_autocast(image):
        image = at_least_float32(image)
        size = (_halved(image.shape[-2], level - 1), _halved(image.shape[-1], level - 1))
        octaves, angle = _plane(image.shape[-2:], size)
        below_and_above = _low(octaves + level - 1) * _high(octaves + level)
        order = orientations - 1
        # The squares of the real bands' angular parts, cos(angle)**(2 * order), add up to one over all orientations.
        scale = 2**orientations * math.factorial(order) / math.sqrt(orientations * math.factorial(2 * order))
        spectrum = _cropped(torch.fft.fft2(image), size) * (-1j) ** order
        # One orientation at a time: complex numbers of all of them are many copies of a large image.
        bands = (image if real else spectrum).new_empty(len(image), orientations, *size)
        for number in range(orientations):
            turned = (angle - math.pi / orientations * number).cos().clamp(min=0)  # half of the plane: analytic
            mask = scale * below_and_above * turned**order
            band = torch.fft.ifft2(spectrum[:, 0] * mask.to(image))
            bands[:, number] = band.real if real else band
        return bands


def high_residual(image: Tensor) -> Tensor:
    """What is finer than level 1: the corners of the Fourier plane. (N, 1, H, W) -> the same."""
    return _residual(image, image.shape[-2:], lambda octaves: _high(octaves))


def low_residual(image: Tensor, *, levels: int) -> Tensor:
    """What is coarser than so many levels: (N, 1, H, W), H and W >= 2**(levels + 2) -> (N, 1, h, w), halved `levels`
    times, in the range of the image times 4**levels."""
    check_image(image, f"the steerable pyramid with {levels} levels", min_size=least_size(levels), channels=(1,))
    size = (_halved(image.shape[-2], levels), _halved(image.shape[-1], levels))
    return _residual(image, size, lambda octaves: _low(octaves + levels))


def _residual(image: Tensor, size: tuple[int, ...], mask: Callable[[Tensor], Tensor]) -> Tensor:
    check_image(image, "the steerable pyramid", channels=(1,))
    with no_autocast(image):
        image = at_least_float32(image)
        octaves, _ = _plane(image.shape[-2:], size)
        return torch.fft.ifft2(_cropped(torch.fft.fft2(image), size) * mask(octaves).to(image)).real


def _halved(length: int, times: int) -> int:
    return -(-length // 2**times)


def _plane(full: tuple[int, ...], size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Of each frequency that a grid of `size` can hold, (h, w) float64 in the order of an FFT: log2 of its length, in
    units of the full grid's sampling limit (-inf for the mean), and its angle, clockwise from the right."""
    rows, columns = (_kept(small).double() * 2 / large for large, small in zip(full, size, strict=True))
    return torch.hypot(rows[:, None], columns).log2(), torch.atan2(rows[:, None], columns)


def _cropped(spectrum: Tensor, size: tuple[int, ...]) -> Tensor:
    """The low frequencies that a coarser grid can hold: (..., H, W) -> (..., h, w)."""
    rows, columns = (_kept(length).to(spectrum.device) for length in size)
    return spectrum[..., rows % spectrum.shape[-2], :][..., columns % spectrum.shape[-1]]


def _kept(length: int) -> Tensor:
    """0, 1, ... -2, -1: the frequencies of a grid in the order of an FFT."""
    return torch.fft.ifftshift(torch.arange(length) - length // 2)


def _high(octaves: Tensor) -> Tensor:
    """Rises from 0, an octave below, to 1 at 0; its square and that of `_low` add up to one."""
    return (math.pi / 2 * octaves.clamp(-1, 0)).cos()


def _low(octaves: Tensor) -> Tensor:
    return (math.pi / 2 * octaves.clamp(-1, 0)).sin().neg()
