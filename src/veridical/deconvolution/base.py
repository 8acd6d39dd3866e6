"""What every method is: an observed image and its blur in, an estimate of the sharp image out; and when to stop."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from veridical.core.catalog import Term, options_of
from veridical.core.errors import DataError
from veridical.core.image import where_float64_is
from veridical.core.options import check_choice, check_number, check_whole
from veridical.deconvolution.blur import BORDERS, BlackBox, Observation, check_kernel, observe
from veridical.deconvolution.noise import noise_sigma

Progress = Callable[[int, int], None]  # (iterations so far, at most)

STOPS = ("iterations", "discrepancy")


@dataclass(frozen=True)
class Result:
    """What a method found, and on the way.

    image:      (C, H, W) float32, not clamped.
    iterations: how many it took, for each channel; a single number for a black box, which sees all channels at once.
    residuals:  for each of these, before every iteration, the standard deviation of y - F(x), in the units of the
                image.
    """

    image: Tensor
    iterations: tuple[int, ...]
    residuals: tuple[tuple[float, ...], ...]


class Method(ABC):
    """Estimates a sharp image from a blurred one and its blur, without training.

    A subclass is a frozen dataclass: its fields are its options.
    """

    name: ClassVar[str]
    needs_kernel: ClassVar[bool] = False  # or will any function do
    divides: ClassVar[bool] = False  # by the kernel's Fourier transform, which takes the image for a circular one
    dtype: ClassVar[torch.dtype] = torch.float32

    border: str
    sigma_8bit: float | None

    @property
    def label(self) -> str:
        """The spec that makes this method again: the options that are not the default."""
        options = {
            option: getattr(self, option)
            for option, parameter in options_of(type(self)).items()
            if getattr(self, option) != parameter.default
        }
        return Term(self.name, 1.0, options).label

    def __call__(self, image: Tensor, blur: Tensor | BlackBox) -> Tensor:
        """The restored image alone: `run` says more."""
        return self.run(image, blur).image

    def run(self, image: Tensor, blur: Tensor | BlackBox, *, progress: Progress | None = None) -> Result:
        """Restore one image.

        Shapes: image (C, H, W) -> (C, H, W), float32, on the image's device.
        Range:  nominal [0, 1]; not clamped.
        Args:   blur: the kernel (h, w) of a true convolution, as `Blur.kernel()` of the degradations gives it: it is
                divided by its sum, and its middle is ((h - 1) // 2, (w - 1) // 2). Then each channel is restored by
                itself. Or any function (C, H, W) -> (C, H, W), a black box, which sees all channels at once and has a
                border of its own: `border` is then without effect. progress: called after each iteration of each
                channel with (number so far, number of all).
        Errors: DataError for anything but a floating (C, H, W) tensor, a kernel that cannot be one, is larger than the
                image, or is missing where the method divides by its Fourier transform; and when the estimate grows
                beyond bounds.
        """
        if image.ndim != 3 or not image.is_floating_point() or image.numel() == 0:
            raise DataError(
                f"{self.name} expects one floating-point image (C, H, W) in [0, 1]; got {image.dtype} "
                f"{tuple(image.shape)}. Divide 8-bit images by 255, and restore a batch image by image."
            )
        if isinstance(blur, Tensor):
            check_kernel(blur, image)
        elif self.needs_kernel or not callable(blur):
            raise DataError(
                f"{self.name} needs the kernel of the blur, a tensor (h, w); got {type(blur).__name__}. "
                "landweber, richardson-lucy and levenberg-marquardt take any function."
            )
        observed = (where_float64_is(image) if self.dtype == torch.float64 else image).detach().to(self.dtype)
        # A black box may mix channels, so it has to see them together; a kernel does not.
        planes = [plane[None] for plane in observed] if isinstance(blur, Tensor) else [observed]
        images, iterations, residuals = [], [], []
        for number, plane in enumerate(planes):
            sigma = noise_sigma(plane[None]).mean().item() if self.sigma_8bit is None else self.sigma_8bit / 255
            with torch.no_grad():
                estimate, residual = self.solve(
                    observe(plane, blur, border=self.border, extend=self.divides),
                    sigma,
                    _of_channel(progress, number, len(planes)),
                )
            if not torch.isfinite(estimate).all():
                raise DataError(
                    f"{self.label} diverged: the estimate is not finite. Use fewer iterations or stop=discrepancy, or "
                    "check that the kernel is this image's."
                )
            images.append(estimate)
            iterations.append(len(residual))
            residuals.append(residual)
        return Result(torch.cat(images).to(image.device, torch.float32), tuple(iterations), tuple(residuals))

    @abstractmethod
    def solve(
        self, observation: Observation, sigma: float, progress: Progress | None
    ) -> tuple[Tensor, tuple[float, ...]]:
        """The estimate, cut to the observed image, and the residual before every iteration."""


def _of_channel(progress: Progress | None, number: int, channels: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, most: progress(number * most + done, channels * most)


@dataclass(frozen=True, kw_only=True)
class Iterative(Method):
    """A method that goes from an estimate to a better one, and stops by one of three rules.

    Args:   border: see `BORDERS`. iterations: at most so many. tolerance: stop when an iteration changes the estimate
            by less than this share of its norm; 0 for never. stop: "discrepancy" also stops as soon as the standard
            deviation of y - F(x) is no more than that of the noise; "iterations" does not. sigma_8bit: the noise's
            standard deviation, of 255; None estimates it (Immerkaer).
    """

    border: str = "valid"
    iterations: int = 250
    tolerance: float = 0.0
    stop: str = "discrepancy"
    sigma_8bit: float | None = None

    def __post_init__(self) -> None:
        check_choice(f"border of {self.name}", self.border, BORDERS)
        check_whole(f"iterations of {self.name}", self.iterations, low=1)
        check_number(f"tolerance of {self.name}", self.tolerance, low=0)
        check_choice(f"stop of {self.name}", self.stop, STOPS)
        if self.sigma_8bit is not None:
            check_number(f"sigma_8bit of {self.name}", self.sigma_8bit, low=0)

    def solve(
        self, observation: Observation, sigma: float, progress: Progress | None
    ) -> tuple[Tensor, tuple[float, ...]]:
        update = self.updates(observation, sigma)
        estimate = observation.image.clone()
        residuals: list[float] = []
        for done in range(1, self.iterations + 1):
            blurred = observation.blur(estimate)
            target = observation.filled(blurred)
            residual = observation.spread(target - blurred)
            if self.stop == "discrepancy" and residual <= sigma:
                break
            residuals.append(residual)
            before, estimate = estimate, update(estimate, blurred, target)
            if progress is not None:
                progress(done, self.iterations)
            if self.tolerance and (estimate - before).norm() <= self.tolerance * before.norm():
                break
        return observation.cut(estimate), tuple(residuals)

    @abstractmethod
    def updates(self, observation: Observation, sigma: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """update(x, F(x), y) -> the next x, with all that it needs of this image computed once.

        Where nothing was observed (border=valid), y is F(x).
        """
