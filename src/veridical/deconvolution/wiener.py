"""The Wiener filter: one division by the kernel's Fourier transform, held back by the noise."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from veridical.core.options import check_choice, check_number, check_whole
from veridical.deconvolution.base import Method, Progress
from veridical.deconvolution.blur import BORDERS, Observation
from veridical.deconvolution.noise import noise_to_signal


@dataclass(frozen=True, kw_only=True)
class Wiener(Method):
    """Wiener filter: divides by the kernel's Fourier transform, held back by a noise-to-signal ratio. Needs the kernel.

    Formula: X = conj(H) Y / (|H|² + r), with Fourier transforms in capitals and H that of the kernel.
    Args:    nsr: r, a ratio of powers; None takes regularisation * sigma² / var(y). With 0 it is the inverse filter,
             which makes noise, and the rounding to 8 bits, as large as the smallest |H| is small. regularisation:
             photographs have far less power at high frequencies than a constant assumes, so r = sigma² / var(y)
             leaves too much noise: the factor is the one of levenberg-marquardt, which is best here, too
             (docs/deconvolution.md). border: see `BORDERS`. passes: with border=valid, how often the filter is
             applied, each time to an image that is, outside the photograph, what the last estimate gives there; 1 is
             the plain filter on smoothly closed borders. sigma_8bit: the noise's standard deviation, of 255; None
             estimates it (Immerkaer).
    Source:  Wiener 1949; the constant ratio as in Gonzalez & Woods, Digital Image Processing.
    """

    name: ClassVar[str] = "wiener"
    needs_kernel: ClassVar[bool] = True
    divides: ClassVar[bool] = True
    dtype: ClassVar[torch.dtype] = torch.float64

    nsr: float | None = None
    regularisation: float = 100.0
    border: str = "valid"
    passes: int = 10
    sigma_8bit: float | None = None

    def __post_init__(self) -> None:
        for option, value in (("nsr", self.nsr), ("sigma_8bit", self.sigma_8bit)):
            if value is not None:
                check_number(f"{option} of wiener", value, low=0)
        check_number("regularisation of wiener", self.regularisation, low=0)
        check_choice("border of wiener", self.border, BORDERS)
        check_whole("passes of wiener", self.passes, low=1)

    def solve(
        self, observation: Observation, sigma: float, progress: Progress | None
    ) -> tuple[Tensor, tuple[float, ...]]:
        nsr = self.regularisation * noise_to_signal(observation.observed, sigma) if self.nsr is None else self.nsr
        estimate = observation.image
        transfer = observation.kernel.transfer(estimate)
        power = transfer.abs() ** 2
        inverse = transfer.conj() / (power + nsr)
        # The inverse filter: what the blur removed altogether stays removed.
        inverse = torch.where(power + nsr > 0, inverse, 0)
        passes = self.passes if observation.unknown else 1
        residuals: list[float] = []
        for done in range(1, passes + 1):
            blurred = observation.blur(estimate)
            target = observation.filled(blurred) if residuals else observation.image
            residuals.append(observation.spread(target - blurred))
            estimate = torch.fft.irfft2(inverse * torch.fft.rfft2(target), s=target.shape[-2:])
            if progress is not None:
                progress(done, passes)
        return observation.cut(estimate), tuple(residuals)
