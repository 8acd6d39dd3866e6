"""Sharpness Q of Zhu and Milanfar: how strong and how coherent the gradients are, patch by patch."""

from typing import Literal

import torch
from torch import Tensor

from veridical.core.colour import luma
from veridical.core.filters import pad
from veridical.core.image import at_least_float32, check_image, no_autocast
from veridical.core.options import check_choice
from veridical.core.patches import tiles

PATCH = 8
# tau = sqrt((1 - k) / (1 + k)), k = delta^(1 / (N² - 1)), delta = 0.001, N = 8
THRESHOLD = {"singular": 0.23403, "released": 0.22787}
EPS = 1e-14  # keeps each square root from 0, where its gradient is infinite and comes back as NaN (0 * inf)
Variant = Literal["singular", "released"]


def sharpness_q(image: Tensor, *, variant: Variant = "singular") -> Tensor:
    """Mean over 8x8 patches of s1 * R where the patch is anisotropic (R > tau), else 0; higher is sharper.

    s1 >= s2 are the singular values of the patch's 64 x 2 matrix of gradients and R = (s1 - s2) / (s1 + s2).
    No reference: Q rewards ringing as much as detail, and has no upper bound. White noise lowers it.

    Shapes: (N, 1 or 3, H, W) in [0, 1], H and W >= 8 -> (N,). RGB is taken to BT.601 luma. A remainder right and below
            of the last whole patch is left out.
    Range:  [0, inf); Kodak's photographs have 0.115 on average, and 0.066 after a 5x5 box blur.
    Args:   variant: "singular" follows the paper: MATLAB's `gradient` inside each patch. "released" follows the
            released TensorFlow code: eigenvalues of GᵀG in the place of s (so twice the degree in intensity), Sobel / 8
            with reflected borders, tau = 0.22787. A weight that suits one does not suit the other.
    Source: Zhu & Milanfar 2010, doi:10.1109/TIP.2010.2052820; as a loss: Aurangabadkar et al. 2024. The gradient is
            finite on flat and on isotropic patches (0 where a patch does not count).
    """
    check_choice("variant of sharpness-q", variant, THRESHOLD)
    check_image(image, "sharpness-q", min_size=PATCH, channels=(1, 3))
    with no_autocast(image):
        grey = luma(at_least_float32(image))
        horizontal, vertical = _gradients(grey) if variant == "singular" else _sobel(grey)
        strong, weak = _principal(horizontal, vertical)  # (N, P), squared singular values
        if variant == "singular":
            s1, s2 = torch.sqrt(strong + EPS), torch.sqrt(weak + EPS)
        else:
            s1, s2 = strong, weak
        counts = (strong > 1e-10) & ((s1 - s2) > THRESHOLD[variant] * (s1 + s2))
        quality = s1 * (s1 - s2) / (s1 + s2 + EPS)
        return torch.where(counts, quality, 0.0).mean(1)


def _principal(horizontal: Tensor, vertical: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues of each patch's GᵀG, as sums of squares along its two principal directions.

    The determinant would cancel on smooth patches, and its error comes back in the gradient a thousandfold. The
    directions carry no gradient: the derivative of an eigenvalue is vᵀ dA v, with v as it is.

    Shapes: (N, P, 1, 8, 8) x 2 -> (N, P) x 2
    """
    with torch.no_grad():
        a, b, c = (
            (g * h).sum((2, 3, 4), keepdim=True)
            for g, h in ((horizontal, horizontal), (vertical, vertical), (horizontal, vertical))
        )
        angle = 0.5 * torch.atan2(2 * c, a - b)
        cosine, sine = torch.cos(angle), torch.sin(angle)
    along = cosine * horizontal + sine * vertical
    across = cosine * vertical - sine * horizontal
    return along.square().sum((2, 3, 4)), across.square().sum((2, 3, 4))


def _gradients(grey: Tensor) -> tuple[Tensor, Tensor]:
    """MATLAB's `gradient` inside each patch: central differences, one-sided at the patch's border."""
    patches = tiles(grey, PATCH)
    return _difference(patches, 4), _difference(patches, 3)


def _difference(patches: Tensor, axis: int) -> Tensor:
    middle = (patches.narrow(axis, 2, PATCH - 2) - patches.narrow(axis, 0, PATCH - 2)) / 2
    first = patches.narrow(axis, 1, 1) - patches.narrow(axis, 0, 1)
    last = patches.narrow(axis, PATCH - 1, 1) - patches.narrow(axis, PATCH - 2, 1)
    return torch.cat([first, middle, last], dim=axis)


def _sobel(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel / 8 with reflected borders, by slices: a kernel would be copied to the device at every step."""
    padded = pad(grey, (1, 1, 1, 1), "reflect")
    return tiles(_sobel_rows(padded), PATCH), tiles(_sobel_rows(padded.mT).mT, PATCH)


def _sobel_rows(padded: Tensor) -> Tensor:
    step = padded[..., 2:] - padded[..., :-2]
    return (step[..., :-2, :] + 2 * step[..., 1:-1, :] + step[..., 2:, :]) / 8
