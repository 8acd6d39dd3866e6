"""The images that MDF's discriminators learn from: one photograph, or one of the three that are made (figure 7).

The paper says in a sentence each what the made ones are (Mustafa et al. 2022, arXiv:2103.14616, section 5); what it
leaves open is chosen here, and said at each. It found them worse than photographs for super-resolution, and that what
counts more is the degradation.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from veridical.core.catalog import nearest, unknown
from veridical.core.errors import DataError, UnknownName
from veridical.core.files import IMAGE_SUFFIXES, read_image
from veridical.core.filters import convolve_separable
from veridical.core.options import check_whole
from veridical.training.data import generator_for
from veridical.training.photographs import EVALUATE, TRAIN, demo_photograph

KINDS = ("pink-noise", "contrast-rings", "pyramid-permutation")
SIZE_PX = 512
BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
COARSEST_PX = 8  # a level shorter than this is not halved again
PERIOD_PX = 32  # of the rings: a discriminator, which sees 11 px, sees one edge at a time


def seed_image(text: str) -> tuple[str, Tensor]:
    """A photograph by its path, or by the name that the demo knows it by -> name, (3, H, W) in [0, 1].

    A demo's photograph, such as "astronaut", comes whole, in its full size. A file is named without its folder.
    Errors: UnknownName for what is neither, with the nearest name; DataError for a file that cannot be read;
            MissingExtra when the demo's photographs are not installed.
    """
    path, demo = Path(text), TRAIN | EVALUATE
    if text in demo:
        return text, demo_photograph(text)
    if path.exists() or path.suffix.lower() in IMAGE_SUFFIXES or path.name != text:
        return path.name, read_image(path).pixels
    close = nearest(text, demo)
    hint = f"Did you mean {close!r}? " if close else ""
    raise UnknownName(
        f"{text!r} is neither an image file nor a photograph of the demo. {hint}"
        f"Known: {', '.join(sorted(demo))}; or the path of an image."
    )


def made_image(kind: str, *, size: int | None = None, seed: int = 0, photograph: Tensor | None = None) -> Tensor:
    """One of KINDS by its name: (3, size, size) in [0, 1].

    Args:   size: in px; by default SIZE_PX, and of a permuted photograph its own shape.
            seed: of the noise and of the permutation. photograph: (3, H, W), whose middle is permuted.
    Errors: UnknownName; DataError for a permutation without a photograph or of one smaller than size, and for a
            photograph that nothing is made of.
    """
    if kind not in KINDS:
        raise unknown("kind of seed image", kind, KINDS)
    if size is not None:
        check_whole("the size of a seed image", size, low=16)
    if photograph is not None and kind != "pyramid-permutation":
        raise DataError(f"{kind} is not made of a photograph: leave --image out.")
    if kind == "pink-noise":
        return pink_noise(size or SIZE_PX, seed)
    if kind == "contrast-rings":
        return contrast_rings(size or SIZE_PX)
    if photograph is None:
        raise DataError("a pyramid permutation is made of a photograph: name one with --image.")
    height, width = photograph.shape[1:]
    if size is not None:
        if size > min(height, width):
            raise DataError(f"the photograph is {height}x{width} px, too small for a seed image of {size} px.")
        top, left = (height - size) // 2, (width - size) // 2
        photograph = photograph[:, top : top + size, left : left + size]
    return pyramid_permutation(photograph, seed)


def pink_noise(size: int, seed: int) -> Tensor:
    """Noise whose power falls with 1/f², as that of photographs does: (3, size, size).

    Each channel has its own noise, all are stretched together so that the whole range is used, and no value is clipped:
    the spectrum is exact. It repeats at its borders.
    """
    white = torch.randn(3, size, size, generator=generator_for(seed, "pink-noise"), dtype=torch.float64)
    down, across = torch.fft.fftfreq(size, dtype=white.dtype), torch.fft.rfftfreq(size, dtype=white.dtype)
    frequency = torch.hypot(down[:, None], across[None])
    frequency[0, 0] = math.inf  # no mean
    noise = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(size, size))
    return ((noise - noise.min()) / (noise.max() - noise.min())).float()


def contrast_rings(size: int) -> Tensor:
    """Grey rings around the middle, PERIOD_PX for a bright and a dark one, with edges 1 px wide: (3, size, size).

    Around 0.5; their contrast grows in proportion to the radius, from 0 in the middle to 1 at the nearest border and
    beyond.
    """
    offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    radius = torch.hypot(offset[:, None], offset[None])
    wave = (torch.sin(2 * math.pi * radius / PERIOD_PX) * PERIOD_PX / math.pi).clamp(-1, 1)
    contrast = (radius / (size / 2)).clamp(max=1)
    return (0.5 + 0.5 * contrast * wave).float().expand(3, -1, -1).clone()


def pyramid_permutation(photograph: Tensor, seed: int) -> Tensor:
    """The photograph with the pixels of each level of its Laplacian pyramid in random order: (3, H, W) -> the same.

    A pixel keeps its colours. What leaves [0, 1] is clipped.
    """
    levels = []
    for number, level in enumerate(laplacian_pyramid(photograph)):
        order = torch.randperm(level[0].numel(), generator=generator_for(seed, "pyramid-permutation", number))
        levels.append(level.flatten(1)[:, order].reshape(level.shape))
    return collapse(levels).clamp(0, 1)


def laplacian_pyramid(image: Tensor) -> list[Tensor]:
    """(3, H, W) -> the differences between an image and its half, finest first, and what is left: (3, h, w) each.

    Halved by the binomial filter of five taps, doubled by linear interpolation.
    Source: Burt & Adelson 1983, The Laplacian pyramid as a compact image code.
    """
    levels = []
    while min(image.shape[1:]) >= COARSEST_PX:
        taps = torch.tensor(BINOMIAL)
        half = convolve_separable(image[None], taps, taps)[0, :, ::2, ::2]
        levels.append(image - _doubled(half, image))
        image = half
    return [*levels, image]


def collapse(levels: list[Tensor]) -> Tensor:
    """The image of a Laplacian pyramid."""
    *finer, image = levels
    for level in reversed(finer):
        image = level + _doubled(image, level)
    return image


def _doubled(half: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(half[None], like.shape[1:], mode="bilinear", align_corners=False)[0]
