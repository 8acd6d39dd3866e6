"""Ways to spoil an image, each as strong as a stated PSNR: what a loss makes of errors of the same energy."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from veridical.core.errors import VeridicalError
from veridical.degradations import GaussianBlur, GaussianNoise, Jpeg
from veridical.measures import psnr

CLOSE_DB = 0.001
"""How near to the PSNR that was asked for the search ends."""

_STEPS = 60  # bisection halves any range to nothing in fewer


class OutOfReach(VeridicalError):
    """No strength of the distortion gives that PSNR on that image."""


@dataclass(frozen=True)
class Distortion:
    """One way to spoil an image.

    apply: (3, H, W) in [0, 1], strength -> distorted; the PSNR falls as the strength grows from 0 to `most`.
    said: strength -> words. whole: strengths are whole numbers only.
    """

    name: str
    text: str
    apply: Callable[[Tensor, float, int], Tensor]
    most: float
    said: Callable[[float], str]
    whole: bool = False


@dataclass(frozen=True)
class Distorted:
    """image: (3, H, W) in [0, 1], as a file could hold it, but not rounded. said: how strong, in words."""

    image: Tensor
    psnr_db: float
    said: str


def distort(distortion: Distortion, image: Tensor, psnr_db: float, *, seed: int = 0) -> Distorted:
    """Spoil an image (3, H, W) so that its PSNR is `psnr_db` within CLOSE_DB, after clamping to [0, 1].

    Where the strength has steps, as JPEG's quality has, the weakest that is too strong is taken and its error scaled.
    Errors: OutOfReach when even the strongest leaves a higher PSNR.
    """

    def at(strength: float) -> Tensor:
        return distortion.apply(image, strength, seed).clamp(0, 1)

    if distortion.whole:
        return _scaled(distortion, image, psnr_db, at)
    low, high = 0.0, distortion.most
    strongest = _psnr_db(at(high), image)
    if strongest > psnr_db + CLOSE_DB:
        raise _out_of_reach(distortion, psnr_db, strongest)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        spoilt = at(middle)
        reached = _psnr_db(spoilt, image)
        if abs(reached - psnr_db) <= CLOSE_DB:
            break
        low, high = (middle, high) if reached > psnr_db else (low, middle)
    else:
        raise OutOfReach(f"{distortion.name} jumps over {psnr_db:g} dB on this image: it reaches {reached:.2f} dB.")
    return Distorted(spoilt, reached, distortion.said(middle))


def _scaled(distortion: Distortion, image: Tensor, psnr_db: float, at: Callable[[float], Tensor]) -> Distorted:
    reached = math.inf
    for strength in range(1, round(distortion.most) + 1):
        spoilt = at(strength)
        reached = min(reached, _psnr_db(spoilt, image))
        if reached <= psnr_db:
            factor = 10 ** ((reached - psnr_db) / 20)
            spoilt = image + factor * (spoilt - image)
            return Distorted(spoilt, _psnr_db(spoilt, image), f"{distortion.said(strength)}, error × {factor:.2f}")
    raise _out_of_reach(distortion, psnr_db, reached)


def _out_of_reach(distortion: Distortion, psnr_db: float, strongest: float) -> OutOfReach:
    return OutOfReach(
        f"{distortion.name} does not reach {psnr_db:g} dB: at its strongest it leaves {strongest:.1f} dB."
    )


def _psnr_db(spoilt: Tensor, image: Tensor) -> float:
    return psnr(spoilt[None].double(), image[None].double()).item()


def _blur(image: Tensor, strength: float, seed: int) -> Tensor:  # noqa: ARG001
    return GaussianBlur(sigma_px=strength, border="replicate")(image)


def _noise(image: Tensor, strength: float, seed: int) -> Tensor:
    return GaussianNoise(sigma_8bit=strength)(image, torch.Generator().manual_seed(seed))


def _jpeg(image: Tensor, strength: float, seed: int) -> Tensor:  # noqa: ARG001
    return Jpeg(quality=round(101 - strength))(image)


def _ringing(image: Tensor, strength: float, seed: int) -> Tensor:  # noqa: ARG001
    return image + strength * (image - GaussianBlur(sigma_px=1.5, border="replicate")(image))


def _wave(image: Tensor, strength: float, seed: int) -> Tensor:  # noqa: ARG001
    across = torch.arange(image.shape[-1], dtype=image.dtype) * (2 * math.pi / 8)
    return image + strength * torch.sin(across)


def _shift(image: Tensor, strength: float, seed: int) -> Tensor:  # noqa: ARG001
    """To the right and down by the same part of a pixel, exactly: the mirrored image is periodic, so its Fourier series
    is moved. Interpolation would blur, which is another distortion."""
    mirrored = torch.cat([image, image.flip(-1)], -1)
    mirrored = torch.cat([mirrored, mirrored.flip(-2)], -2)
    height, width = mirrored.shape[-2:]
    turns = torch.fft.fftfreq(height)[:, None] + torch.fft.rfftfreq(width)
    moved = torch.fft.rfft2(mirrored) * torch.exp(-2j * math.pi * strength * turns)
    return torch.fft.irfft2(moved, s=(height, width))[..., : image.shape[-2], : image.shape[-1]]


def _contrast(image: Tensor, strength: float, seed: int) -> Tensor:  # noqa: ARG001
    return image + strength * (image.mean() - image)


def _brightness(image: Tensor, strength: float, seed: int) -> Tensor:  # noqa: ARG001
    return image + strength


DISTORTIONS: dict[str, Distortion] = {
    each.name: each
    for each in (
        Distortion("blur", "Gaussian blur", _blur, 30, lambda s: f"σ {s:.2f} px"),
        Distortion("noise", "white Gaussian noise", _noise, 255, lambda s: f"σ {s:.1f}/255"),
        Distortion("jpeg", "JPEG compression", _jpeg, 100, lambda s: f"quality {101 - round(s)}", whole=True),
        Distortion("ringing", "sharpened too much", _ringing, 50, lambda s: f"image + {s:.2f} (image - blurred)"),
        Distortion("wave", "a sinusoid of 8 px added", _wave, 2, lambda s: f"amplitude {s:.3f}"),
        Distortion("shift", "moved right and down", _shift, 16, lambda s: f"{s:.2f} px"),
        Distortion("contrast", "less contrast", _contrast, 1, lambda s: f"contrast × {1 - s:.2f}"),
        Distortion("brightness", "brighter", _brightness, 1, lambda s: f"+ {s:.3f}"),
    )
}
