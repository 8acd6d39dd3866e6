"""FSIM: how alike two images are where they have features, which is where the phases of their waves agree."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from veridical.core.image import at_least_float32, check_pair, in_parts, no_autocast

LEAST_PX = 16
PART_PX = 2**20

# For 0-255.
PHASE_CONSTANT, SLOPE_CONSTANT, COLOUR_CONSTANT = 0.85, 160.0, 200.0
COLOUR_POWER = 0.03

YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))

# Kovesi's log-Gabor filters.
SCALES, ORIENTATIONS = 4, 4
SHORTEST_PX = 6
BANDWIDTH = 0.55
ANGULAR_SIGMA = math.pi / ORIENTATIONS / 1.2
CUTOFF, SHARPNESS = 0.45, 15
NOISE_DEVIATIONS = 2.0
NOISE_RESCALED = 1.7
EPS = 1e-4


def fsim(prediction: Tensor, target: Tensor, *, colour: bool = True) -> Tensor:
    """Feature similarity: phase congruency and slopes, weighted by phase congruency. Higher is better.

    Shapes: (N, 1 or 3, H, W) x 2 in [0, 1], H and W >= 16 -> (N,).
    Range:  [0, 1], 1 for identical images. Where neither image has a feature anywhere, every pixel counts the same.
    Args:   colour: FSIMc, which also compares the I and Q of YIQ; a grey image has none, and the same value either way.
            False compares luma alone: the paper's FSIM.
    Errors: ValueError when the shapes differ, or for other channels or a smaller image.
    Source: Zhang et al. 2011, doi:10.1109/TIP.2011.2109730, and its released FeatureSIM.m with Kovesi's phasecong2,
            also where the ports differ: shrunk by the short side over 256 rounded half up, in windows that MATLAB
            centres, zeros beyond the border; the median is the mean of the two middle values.
    """
    check_pair(prediction, target, "fsim", min_size=LEAST_PX, channels=(1, 3))
    with no_autocast(prediction):
        images = (at_least_float32(image) * 255 for image in (prediction, target))
        return in_parts(lambda x, y: _fsim(x, y, colour), *images, px=PART_PX)


def _fsim(prediction: Tensor, target: Tensor, colour: bool) -> Tensor:
    one, other = (_shrunk(_yiq(image) if image.shape[1] == 3 else image) for image in (prediction, target))
    filters, noise_gain = _log_gabor(one.shape[-2:])
    filters, noise_gain = filters.to(one), noise_gain.to(one)
    phase, its_phase = (_phase_congruency(image[:, 0], filters, noise_gain) for image in (one, other))
    slope, its_slope = (_slopes(image[:, :1])[:, 0] for image in (one, other))
    similarity = _similarity(phase, its_phase, PHASE_CONSTANT) * _similarity(slope, its_slope, SLOPE_CONSTANT)
    if colour and one.shape[1] == 3:
        hue = _similarity(one[:, 1:], other[:, 1:], COLOUR_CONSTANT).prod(1)
        # The real part of the complex power: hue is negative where opposite colours meet.
        similarity = similarity * hue.abs() ** COLOUR_POWER * torch.where(hue < 0, math.cos(math.pi * COLOUR_POWER), 1)
    weight = torch.maximum(phase, its_phase)
    weight = torch.where(weight.sum((1, 2), keepdim=True) > 0, weight, 1)
    return (similarity * weight).sum((1, 2)) / weight.sum((1, 2))


def _similarity(one: Tensor, other: Tensor, constant: float) -> Tensor:
    return (2 * one * other + constant) / (one.square() + other.square() + constant)


def _yiq(image: Tensor) -> Tensor:
    return torch.einsum("oc,nchw->nohw", torch.tensor(YIQ).to(image), image)


def _shrunk(image: Tensor) -> Tensor:
    """The short side comes to about 256: means of FxF pixels, every F-th, with zeros beyond the border."""
    factor = max(1, math.floor(min(image.shape[-2:]) / 256 + 0.5))
    if factor == 1:
        return image
    before = (factor - 1) // 2  # with MATLAB's conv2 "same", window k begins this many pixels before pixel k F
    bottom, right = (max(0, -length % factor - before) for length in image.shape[-2:])
    return F.avg_pool2d(F.pad(image, (before, right, before, bottom)), factor)


def _slopes(image: Tensor) -> Tensor:
    """Magnitude of Scharr's slopes: (N, 1, H, W) -> the same."""
    across = torch.tensor([[3.0, 0.0, -3.0], [10.0, 0.0, -10.0], [3.0, 0.0, -3.0]]).to(image) / 16
    kernels = torch.stack([across, across.T])[:, None]
    return F.conv2d(image, kernels, padding=1).square().sum(1, keepdim=True).sqrt()


def _log_gabor(size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Transfer functions (ORIENTATIONS, SCALES, H, W), float64 in the order of an FFT; and by how much white noise is
    larger in the sum of an orientation's scales than in its finest one, in power (ORIENTATIONS,)."""
    rows, columns = (_frequencies(length) for length in size)
    radius = torch.hypot(rows[:, None], columns)
    angle = torch.atan2(-rows[:, None], columns)
    within = 1 / (1 + (radius / CUTOFF) ** (2 * SHARPNESS))
    radius[0, 0] = 1
    centres = 1 / (SHORTEST_PX * 2.0 ** torch.arange(SCALES, dtype=torch.float64))[:, None, None]
    radial = (-(radius / centres).log().square() / (2 * math.log(BANDWIDTH) ** 2)).exp() * within
    radial[:, 0, 0] = 0
    turned = angle - math.pi / ORIENTATIONS * torch.arange(ORIENTATIONS, dtype=torch.float64)[:, None, None]
    apart = torch.atan2(turned.sin(), turned.cos())
    filters = (-apart.square() / (2 * ANGULAR_SIGMA**2)).exp()[:, None] * radial
    summed = torch.fft.ifft2(filters.sum(1)).real.square().sum((1, 2)) * size[0] * size[1]
    return filters, summed / filters[:, 0].square().sum((1, 2))


def _frequencies(length: int) -> Tensor:
    """Cycles per pixel in the order of an FFT, as Kovesi counts them: an odd length reaches 0.5 on both sides."""
    return torch.fft.ifftshift(torch.arange(length, dtype=torch.float64) - length // 2) / (length - length % 2)


def _phase_congruency(image: Tensor, filters: Tensor, noise_gain: Tensor) -> Tensor:
    """Kovesi's PC_2: (N, H, W) -> (N, H, W) in [0, 1]."""
    spectrum = torch.fft.fft2(image)[:, None]
    energy, amplitude = torch.zeros_like(image), torch.zeros_like(image)
    for transfer, gain in zip(filters, noise_gain, strict=True):
        responses = torch.fft.ifft2(spectrum * transfer)  # (N, SCALES, H, W): even + i odd
        sizes = responses.abs()
        total = responses.sum(1, keepdim=True)
        mean = total / (total.abs() + EPS)
        along = responses * mean.conj()  # real: with the mean phase; imaginary: across it
        found = (along.real - along.imag.abs()).sum(1)
        # If the finest scale's energy is noise, its median says how much noise there is (Rayleigh).
        power = _median(sizes[:, 0].square().flatten(1)) / math.log(2) * gain
        noise = power.sqrt() * (math.sqrt(math.pi / 2) + NOISE_DEVIATIONS * math.sqrt(2 - math.pi / 2))
        energy += (found - noise[:, None, None] / NOISE_RESCALED).clamp(min=0)
        amplitude += sizes.sum(1)
    return energy / amplitude.clamp(min=torch.finfo(amplitude.dtype).tiny)


def _median(values: Tensor) -> Tensor:
    """The mean of the two middle values where their number is even: (N, M) -> (N,)."""
    middle = ((values.shape[1] + 1) // 2, values.shape[1] // 2 + 1)  # counted from 1; the same where it is odd
    lower, upper = (values.kthvalue(k, dim=1).values for k in middle)
    return (lower + upper) / 2
