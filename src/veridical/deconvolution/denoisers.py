"""Denoisers for RED: functions (C, H, W) -> (C, H, W) on 0 to 255, float32."""

import functools
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from veridical.core.catalog import call, lookup, parse_one
from veridical.core.errors import DataError
from veridical.core.options import check_number, check_whole
from veridical.models import DnCNN

Denoiser = Callable[[Tensor], Tensor]


class Bilateral:
    """Bilateral filter: the mean of near pixels that look alike.

    Formula: sum k n / sum k over the neighbours n of a pixel p with k = exp(-distance² / (2 sigma_px²) - (n - p)² /
             (2 sigma²)), within a disc.
    Shapes:  (C, H, W) -> the same, each channel by itself; borders are mirrored and repeat no edge pixel.
    Args:    sigma_8bit: how different pixels may be, of 255: twice the strength (3.25) that RED's authors ask of a
             denoiser. sigma_px: how far they may be. size: side of the window in px, odd.
    Source:  Tomasi & Manduchi 1998, doi:10.1109/ICCV.1998.710815; the disc as OpenCV's bilateralFilter.
    """

    def __init__(self, *, sigma_8bit: float = 6.5, sigma_px: float = 1.5, size: int = 5) -> None:
        check_number("sigma_8bit of bilateral", sigma_8bit, low=1e-3)
        check_number("sigma_px of bilateral", sigma_px, low=1e-3)
        check_whole("size of bilateral", size, low=1, odd=True)
        self.sigma_8bit, self.sigma_px, self.radius = sigma_8bit, sigma_px, size // 2

    def __call__(self, image: Tensor) -> Tensor:
        radius, (height, width) = self.radius, image.shape[-2:]
        wide = F.pad(image[None], (radius,) * 4, mode="reflect" if min(height, width) > radius else "replicate")[0]
        total, weight = image.clone(), torch.ones_like(image)
        for down in range(-radius, radius + 1):
            for right in range(-radius, radius + 1):
                distance = math.hypot(down, right)
                if distance == 0 or distance > radius:
                    continue
                near = wide[..., radius + down :, radius + right :][..., :height, :width]
                similar = (near - image).square_().mul_(-0.5 / self.sigma_8bit**2)
                k = similar.sub_(0.5 * (distance / self.sigma_px) ** 2).exp_()
                weight += k
                total.addcmul_(k, near)
        return total / weight


class DnCNNDenoiser:
    """DnCNN with its authors' weights, for grey images and one noise level.

    RED asks for a weaker denoiser (its authors: 3.25 of 255) than those are trained for (25). So a share of what the
    network takes away is taken away: f(x) = x + (sigma_8bit / trained_8bit) (net(x) - x). RED's authors scale the
    image instead, f(x) = net(s x) / s with s = trained / wanted, which TNRD bears and DnCNN does not
    (docs/deconvolution.md).

    Args:   weights: the path of a safetensors file with the keys model.0.weight, model.0.bias, model.2.weight, ...
            sigma_8bit: the strength that is wanted; trained_8bit: the one of the weights.
    Errors: DataError when the file cannot be read, or holds another network.
    """

    def __init__(self, *, weights: str, sigma_8bit: float = 3.25, trained_8bit: float = 25.0) -> None:
        check_number("trained_8bit of dncnn", trained_8bit, low=1e-3)
        check_number("sigma_8bit of dncnn", sigma_8bit, low=0, high=trained_8bit)
        self.share = sigma_8bit / trained_8bit
        path = Path(weights).expanduser()
        try:
            tensors = load_file(path)
            first = tensors["model.0.weight"]
            net = DnCNN(
                channels=first.shape[1],
                depth=sum(key.endswith(".weight") for key in tensors),
                width=first.shape[0],
                batch_norm=False,
            )
            net.load_state_dict(tensors)
        except Exception as error:
            raise DataError(
                f"{path} cannot be read as the weights of a DnCNN whose batch norm is folded into its convolutions "
                f"(model.0.weight, model.0.bias, ...): {error}"
            ) from error
        if net.channels != 1:
            raise DataError(
                f"{path} is for images of {net.channels} channels; RED restores each channel by itself, so it "
                "needs the weights for grey images."
            )
        self.net = net.eval().requires_grad_(False)

    def __call__(self, image: Tensor) -> Tensor:
        self.net.to(image.device)
        clean = 255 * self.net(image[:, None] / 255)[:, 0]
        return image + self.share * (clean - image)


# name -> class; its keyword arguments are the options.
DENOISERS: dict[str, Callable[..., Denoiser]] = {"bilateral": Bilateral, "dncnn": DnCNNDenoiser}


@functools.lru_cache(maxsize=4)
def denoiser(spec: str) -> Denoiser:
    """The denoiser that a spec names: "bilateral", "bilateral(sigma_8bit=10)", "dncnn(weights=PATH)".

    Errors: UnknownName for a name or an option that does not exist (suggests the nearest), BadOption, DataError.
    """
    term = parse_one(spec, "denoiser", "bilateral")
    build = lookup(DENOISERS, term.name, "denoiser")
    options = dict(term.options)
    if term.name == "dncnn" and "weights" not in options:
        raise DataError("dncnn needs the file of its weights: 'dncnn(weights=/path/to/dncnn_gray_25.safetensors)'.")
    return call(build, options, term.name)
