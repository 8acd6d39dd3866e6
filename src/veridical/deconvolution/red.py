"""Regularisation by denoising (RED): an image is likely when a denoiser changes it little."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from veridical.core.errors import BadOption
from veridical.core.options import check_number
from veridical.deconvolution.base import Iterative
from veridical.deconvolution.blur import Observation
from veridical.deconvolution.denoisers import Denoiser, denoiser


@dataclass(frozen=True, kw_only=True)
class Red(Iterative):
    """Minimise |F(x) - y|² / (2 sigma²) + lambda / 2 xᵀ(x - f(x)), on 0 to 255, with a denoiser f.

    Args: denoiser: a spec of DENOISERS or any function (C, H, W) -> (C, H, W) on 0 to 255, float32.
          weight: lambda. sigma_8bit: the noise's standard deviation, of 255. By default that of the authors'
          experiments, who knew it: the less noise, the less counts the denoiser. None estimates it.
    """

    needs_kernel: ClassVar[bool] = True

    denoiser: str | Denoiser = "bilateral"
    weight: float = 0.02
    sigma_8bit: float | None = 2**0.5
    stop: str = "iterations"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(f"weight of {self.name}", self.weight, low=1e-9)
        if self.sigma_8bit is not None:
            check_number(f"sigma_8bit of {self.name}", self.sigma_8bit, low=1e-3)
        self.prior()  # so that a mistake in its spec is found now

    def prior(self) -> Denoiser:
        """f, made."""
        if isinstance(self.denoiser, str):
            return denoiser(self.denoiser)
        if not callable(self.denoiser):
            raise BadOption(
                f"denoiser of {self.name} must be a spec such as 'bilateral(sigma_8bit=10)' or a function; "
                f"got {self.denoiser!r}."
            )
        return self.denoiser


def _variance(sigma: float) -> float:
    """sigma², on 0 to 255; an estimate of no noise at all would leave nothing for the denoiser to say."""
    return max(255 * sigma, 1e-3) ** 2


@dataclass(frozen=True, kw_only=True)
class RedFixedPoint(Red):
    """RED by fixed-point iterations: denoise, then solve with the denoised image as the prior. Needs the kernel.

    Formula: X = (conj(H) Y / sigma² + lambda FFT(f(x))) / (|H|² / sigma² + lambda), cut to 0 to 255, from x = y.
    Args:    those of landweber; stop is iterations here. And denoiser: "bilateral", 'dncnn(weights="PATH")' or any
             function (C, H, W) -> (C, H, W) on 0 to 255. weight: lambda. sigma_8bit: by default that of the authors'
             experiments, who knew it: the less noise, the less counts the denoiser. None estimates it.
    Source:  Romano, Elad & Milanfar 2017, The Little Engine that Could, arXiv:1611.02862, section 4.2; constants from
             their code for a uniform blur (google/RED), with TNRD of strength 3.25 as f. They restore Y and leave the
             colours; here each channel is restored by itself.
    """

    name: ClassVar[str] = "red-fixed-point"
    divides: ClassVar[bool] = True

    iterations: int = 200

    def updates(self, observation: Observation, sigma: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        prior, variance = self.prior(), _variance(sigma)
        transfer = observation.kernel.transfer(observation.image)
        divisor = transfer.abs() ** 2 / variance + self.weight

        def update(estimate: Tensor, blurred: Tensor, target: Tensor) -> Tensor:
            del blurred
            denoised = prior(255 * estimate)
            above = transfer.conj() * torch.fft.rfft2(255 * target) / variance + self.weight * torch.fft.rfft2(denoised)
            return torch.fft.irfft2(above / divisor, s=estimate.shape[-2:]).clamp_(0, 255) / 255

        return update


@dataclass(frozen=True, kw_only=True)
class RedSteepestDescent(Red):
    """RED by steepest descent: many small steps, each with one call of the denoiser. Needs the kernel.

    Formula: x -= mu (Fᵀ(F(x) - y) / sigma² + lambda (x - f(x))), mu = 2 / (1 / sigma² + lambda), cut to 0 to 255,
             from x = y.
    Args:    as in red-fixed-point.
    Source:  as red-fixed-point. Their code takes the blur for its own transpose, as their kernels are symmetric; here
             the true transpose is taken.
    """

    name: ClassVar[str] = "red-steepest-descent"

    iterations: int = 1500

    def updates(self, observation: Observation, sigma: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        prior, variance = self.prior(), _variance(sigma)
        step = 2 / (1 / variance + self.weight)
        transpose = observation.kernel.transpose

        def update(estimate: Tensor, blurred: Tensor, target: Tensor) -> Tensor:
            estimate = 255 * estimate
            slope = 255 * transpose(blurred - target) / variance + self.weight * (estimate - prior(estimate))
            return (estimate - step * slope).clamp_(0, 255) / 255

        return update
