"""The blur as an operator, and what is assumed of the scene outside the photograph."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from veridical.core.errors import DataError
from veridical.core.filters import pad

BlackBox = Callable[[Tensor], Tensor]

# How the scene goes on outside the photograph. "valid" assumes nothing: the observed pixels are those of a larger
# scene, which is estimated as far as it was blurred into them.
BORDERS = ("valid", "circular", "reflect", "replicate", "zero")


def check_kernel(kernel: Tensor, image: Tensor) -> None:
    """Errors: DataError unless the kernel is a floating (h, w) with a positive sum, no larger than the image."""
    if kernel.ndim != 2 or not kernel.is_floating_point() or kernel.numel() == 0:
        raise DataError(
            f"a kernel is a floating-point tensor (h, w) that sums to 1; got {kernel.dtype} {tuple(kernel.shape)}."
        )
    if not torch.isfinite(kernel).all() or kernel.sum() <= 0:
        raise DataError(f"a kernel is finite and sums to 1; this one sums to {kernel.sum().item():g}.")
    if kernel.shape[0] > image.shape[-2] or kernel.shape[1] > image.shape[-1]:
        raise DataError(
            f"the kernel of {tuple(kernel.shape)} is larger than the image of {tuple(image.shape[-2:])}. "
            "Cut the zeros around the kernel, or use the whole photograph."
        )


class KernelBlur:
    """Convolution of every channel with one kernel that is divided by its sum, by Fourier transforms.

    Shapes: (C, H, W) -> (C, H, W).
    Args:   kernel: (h, w), a true convolution whose middle is ((h - 1) // 2, (w - 1) // 2), as the degradations have
            it. border: circular, reflect (repeats no edge pixel), replicate or zero: the sharp image outside.
    """

    def __init__(self, kernel: Tensor, *, border: str = "circular") -> None:
        self.kernel = kernel.detach().cpu().double()
        self.kernel = self.kernel / self.kernel.sum()
        self.border = border
        self._known: tuple[object, Tensor] | None = None

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        if self.border == "circular":
            return self._multiplied(image)
        above, left = self.kernel.shape[0] // 2, self.kernel.shape[1] // 2
        wide = pad(image[None], (left, left, above, above), self.border)[0]
        # Zeros behind it, up to a size that is quick to transform: what wraps around is cut away.
        more = [_quick(length) - length for length in wide.shape[-2:]]
        wide = F.pad(wide, (0, more[1], 0, more[0]))
        return self._multiplied(wide)[..., above : above + height, left : left + width]

    def transpose(self, image: Tensor) -> Tensor:
        """The adjoint: <blur(a), b> = <a, blur.transpose(b)>."""
        if self.border == "circular":
            return self._multiplied(image, conjugate=True)
        with torch.enable_grad():
            return torch.autograd.functional.vjp(self, torch.zeros_like(image), image)[1]

    def transfer(self, image: Tensor) -> Tensor:
        """The kernel's real Fourier transform on the grid of a (circular) image: complex (H, W // 2 + 1)."""
        key = (image.shape[-2:], image.dtype, image.device)
        if self._known is None or self._known[0] != key:
            height, width = self.kernel.shape
            spread = torch.zeros(image.shape[-2:], dtype=torch.float64)
            spread[:height, :width] = self.kernel
            spread = spread.roll((-((height - 1) // 2), -((width - 1) // 2)), (0, 1))
            complex_type = torch.complex128 if image.dtype == torch.float64 else torch.complex64
            self._known = key, torch.fft.rfft2(spread).to(complex_type).to(image.device)
        return self._known[1]

    def _multiplied(self, image: Tensor, *, conjugate: bool = False) -> Tensor:
        transfer = self.transfer(image)
        product = torch.fft.rfft2(image) * (transfer.conj() if conjugate else transfer)
        return torch.fft.irfft2(product, s=image.shape[-2:])


@dataclass(frozen=True)
class Observation:
    """The observed image, on the grid on which it is restored, and what blurred it.

    image: (C, H', W'), the observed image with what was laid around it; blur: an operator on that grid.
    top, left, height, width: where in it the observed pixels are. unknown: the rest was not observed, so y is F(x)
                              there.
    """

    image: Tensor
    blur: BlackBox
    top: int
    left: int
    height: int
    width: int
    unknown: bool

    def cut(self, image: Tensor) -> Tensor:
        """What was observed of an image on the grid."""
        return image[..., self.top : self.top + self.height, self.left : self.left + self.width]

    @property
    def observed(self) -> Tensor:
        return self.cut(self.image)

    def filled(self, blurred: Tensor) -> Tensor:
        """y: what was observed, and outside it F(x), when that is unknown."""
        if not self.unknown:
            return self.image
        filled = blurred.clone()
        self.cut(filled).copy_(self.observed)
        return filled

    def spread(self, residual: Tensor) -> float:
        """The standard deviation, about zero, of a residual where there was something to observe."""
        return self.cut(residual).square().mean().sqrt().item()

    @property
    def kernel(self) -> KernelBlur:
        """The blur, of a method that needs its kernel."""
        assert isinstance(self.blur, KernelBlur)
        return self.blur


def observe(image: Tensor, blur: Tensor | BlackBox, *, border: str, extend: bool) -> Observation:
    """Lay around an image what a border asks for.

    Args:   blur: a kernel, or a black box, which is left as it is.
            extend: the method divides by a Fourier transform, which is circular: so reflect, replicate and zero
            extend the observed image by their rule, by the size of the kernel, in place of a blur that extends the
            sharp one.
    """
    height, width = image.shape[-2:]
    if not isinstance(blur, Tensor):
        return Observation(image, blur, 0, 0, height, width, unknown=False)
    if border == "circular" or (border != "valid" and not extend):
        return Observation(image, KernelBlur(blur, border=border), 0, 0, height, width, unknown=False)
    # The blur of the observed pixels reaches half a kernel beyond them on each side.
    above, left = blur.shape
    below = _quick(height + 2 * above) - height - above
    right = _quick(width + 2 * left) - width - left
    if border == "valid":
        wide = _joined(_joined(image, above, below, -2), left, right, -1)
    else:
        try:
            wide = pad(image[None], (left, right, above, below), border)[0]
        except ValueError as error:
            raise DataError(f"{error} Or use border='valid'.") from error
    return Observation(wide, KernelBlur(blur), above, left, height, width, unknown=border == "valid")


def _joined(image: Tensor, before: int, after: int, axis: int) -> Tensor:
    """An axis made longer at both ends, so that its last line goes over smoothly into its first."""
    first, last = image.narrow(axis, 0, 1), image.narrow(axis, image.shape[axis] - 1, 1)
    count = before + after
    shape = [1] * image.ndim
    shape[axis] = count
    share = (torch.arange(1, count + 1, dtype=image.dtype, device=image.device) / (count + 1)).view(shape)
    between = last * (1 - share) + first * share
    return torch.cat([between.narrow(axis, after, before), image, between.narrow(axis, 0, after)], axis)


def _quick(length: int) -> int:
    """The next length of small prime factors, which is quick to transform.

    >>> _quick(255 + 38), _quick(512)
    (294, 512)
    """
    while True:
        rest = length
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1
