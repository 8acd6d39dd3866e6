"""Methods that use the blur as a black box: they call it, and never look inside.

Their trick is to turn images by half a circle: flip(F(flip(x))) blurs by the turned kernel, which is the transposed
blur. That holds where F is a convolution; on another filter it is a direction that often works.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from veridical.core.options import check_number
from veridical.deconvolution.base import Iterative
from veridical.deconvolution.blur import Observation
from veridical.deconvolution.noise import noise_to_signal


def flip(image: Tensor) -> Tensor:
    """Turned by half a circle."""
    return image.flip(-2, -1)


@dataclass(frozen=True, kw_only=True)
class Landweber(Iterative):
    """Accelerated Landweber-like iterations (aL), for any blur: adds the residual, blurred by the turned blur.

    Formula: e = flip(y - F(x)); x += flip((F(x + e) - F(x - e)) / 2), from x = y. For a linear F that is x += Fᵀ(y -
             F(x)).
    Weak:    without noise it needs hundreds of iterations; with noise it has to be stopped, which is what `stop` is
             for.
    Args:    border: how the scene goes on outside the photograph: valid (not known, so estimated as far as it was
             blurred into the picture), circular, reflect (repeats no edge pixel), replicate or zero. A black box has
             its own.
             iterations: at most so many. stop: discrepancy ends as soon as the standard deviation of y - F(x) is
             that of the noise, where going on would only fit noise; iterations does not. tolerance: end, too, when an
             iteration changes the estimate by less than this share of its norm; 0 for never. sigma_8bit: the noise's
             standard deviation, of 255; None estimates it from the image (Immerkaer).
    Source:  Belyaev & Fayolle 2022, Black-box image deblurring and defiltering, doi:10.1016/j.image.2022.116833; their
             code (fayolle/bbDeblur_py) runs 500 iterations. 250 at most are those of the paper on sharpness Q as a
             loss; that the residual stops them is ours.
    """

    name: ClassVar[str] = "landweber"

    def updates(self, observation: Observation, sigma: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        del sigma
        blur = observation.blur

        def update(estimate: Tensor, blurred: Tensor, target: Tensor) -> Tensor:
            error = flip(target - blurred)
            return estimate + flip(blur(estimate + error) - blur(estimate - error)) / 2

        return update


@dataclass(frozen=True, kw_only=True)
class RichardsonLucy(Iterative):
    """Modified Richardson-Lucy iterations (mRL), for any blur: one ratio divides and one multiplies.

    Formula: x /= |flip(F(flip(F(x) / |y|)))|; then x *= flip(F(flip(y / |F(x)|))), from x = y.
    Weak:    as landweber; and images with much black, where ratios mean little.
    Args:    those of landweber, and floor: what divides is at least this, in units of the image: a quarter of an
             8-bit level. The code of the source adds 1e-16, and is thrown off by a pixel of pure black.
    Source:  Belyaev & Fayolle 2022, as landweber; their code runs 500 iterations.
    """

    name: ClassVar[str] = "richardson-lucy"

    floor: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("floor of richardson-lucy", self.floor, low=1e-16, high=1)

    def updates(self, observation: Observation, sigma: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        del sigma
        blur = observation.blur

        def turned(above: Tensor, below: Tensor) -> Tensor:
            return flip(blur(flip(above / below.abs().clamp(min=self.floor))))

        def update(estimate: Tensor, blurred: Tensor, target: Tensor) -> Tensor:
            estimate = estimate / turned(blurred, target).abs().clamp(min=self.floor)
            blurred = blur(estimate)
            return estimate * turned(observation.filled(blurred), blurred)

        return update


@dataclass(frozen=True, kw_only=True)
class LevenbergMarquardt(Iterative):
    """Modified Levenberg-Marquardt iterations (mLM), for any blur: Wiener steps by a transform that is read off F(x).

    Formula: H = FFT(F(x)) / FFT(x); x += IFFT(conj(H) FFT(y - F(x)) / (|H|² + a)), from x = y.
    Weak:    with noise it overshoots after a few iterations, where `stop` ends it; with another border than circular
             or valid, H is only near the truth.
    Args:    those of landweber, and damping: a; None takes regularisation * sigma² / var(y).
             regularisation: 100 as in the source. 1000 takes more, smaller steps, and is better on Levin's photographs.
    Source:  Belyaev & Fayolle 2022, as landweber; their code runs 100 iterations.
    """

    name: ClassVar[str] = "levenberg-marquardt"
    dtype: ClassVar[torch.dtype] = torch.float64

    damping: float | None = None
    regularisation: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.damping is not None:
            check_number("damping of levenberg-marquardt", self.damping, low=0)
        check_number("regularisation of levenberg-marquardt", self.regularisation, low=0)

    def updates(self, observation: Observation, sigma: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        ratio = self.regularisation * noise_to_signal(observation.observed, sigma)
        damping = ratio if self.damping is None else self.damping

        def update(estimate: Tensor, blurred: Tensor, target: Tensor) -> Tensor:
            transfer = torch.fft.rfft2(blurred) / (torch.fft.rfft2(estimate) + 1e-7)
            divisor = transfer.abs() ** 2 + damping
            step = transfer.conj() * torch.fft.rfft2(target - blurred) / divisor.clamp(min=1e-30)
            return estimate + torch.fft.irfft2(step, s=estimate.shape[-2:])

        return update
