"""Networks that tell restored images from sharp ones: what an adversarial loss trains beside the restorer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veridical.core.catalog import lookup
from veridical.core.colour import as_rgb
from veridical.core.image import at_least_float32, no_autocast
from veridical.core.options import check_whole

SLOPE = 0.2  # of the leaky ReLUs
MOMENTUM = 0.1  # of the running statistics: PyTorch's default


@dataclass(frozen=True)
class Layer:
    """A convolution, batch norm and LeakyReLU. cells: not 0 for a dense layer, over the map averaged to so many cells a
    side."""

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    cells: int = 0
    norm: bool = True
    activation: bool = True


@dataclass(frozen=True)
class Kind:
    """layers: width -> layers. min_size: in px, such that a batch norm sees more than one position of one image."""

    layers: Callable[[int], list[Layer]]
    min_size: int


def _srgan(width: int) -> list[Layer]:
    convolutions = [Layer(width * 2 ** (k // 2), stride=1 + k % 2, norm=k > 0) for k in range(8)]
    dense = [Layer(16 * width, cells=6, norm=False), Layer(1, cells=1, norm=False, activation=False)]
    return [*convolutions, *dense]


def _patch(width: int) -> list[Layer]:
    strided = [Layer(width * 2**k, kernel=4, stride=2, norm=k > 0) for k in range(3)]
    return [*strided, Layer(8 * width, kernel=4), Layer(1, kernel=4, norm=False, activation=False)]


KINDS: dict[str, Kind] = {"srgan": Kind(_srgan, min_size=32), "patch": Kind(_patch, min_size=24)}


class Discriminator(nn.Module):
    """Image -> scores: the higher, the more it looks like a sharp image. Raw numbers, without a sigmoid.

    srgan: one score for the image. Eight 3x3 convolutions of 1 to 8 times `width` channels, every second with stride 2;
            dense layers of 16 * width and 1. The paper's is made for crops of 96 px, which leave a map of 6x6 before
            the dense layers; here maps of any other size are averaged to 6x6 cells.
    patch:  a map of scores, each of 70x70 px. 4x4 convolutions of 1, 2, 4, 8 times `width` channels, the first three
            with stride 2, and one to the score. pix2pix shows its own the input beside the output; this sees the
            restored image alone.

    Batch norm behind every convolution but the first and the last; LeakyReLU(0.2). The weights are buffers, so that an
    optimiser of `parameters()` does not reach them; `forward` takes those that are to be trained as an argument.

    Shapes: (N, 1 or 3, H, W), nominal [0, 1], scaled to [-1, 1] -> (N, 1, 1, 1); patch: (N, 1, H/8 - 2, W/8 - 2).
    Args:   kind: a key of KINDS. width: channels of the first convolution; 64 in both papers. seed: of the initial
            weights: Kaiming normal, biases 0, as in ESRGAN's released code.
    Source: SRGAN, Ledig et al. 2017, arXiv:1609.04802, figure 4; pix2pix, Isola et al. 2017, arXiv:1611.07004, 6.1.2.
    """

    def __init__(self, kind: str, *, width: int = 64, seed: int = 0) -> None:
        super().__init__()
        check_whole("width of a discriminator", width, low=1)
        check_whole("seed of a discriminator", seed, low=0)
        chosen = lookup(KINDS, kind, "discriminator")
        self.layers, self.min_size = chosen.layers(width), chosen.min_size
        self.weight_names: list[str] = []
        self.statistic_names: list[str] = []
        generator = torch.Generator().manual_seed(seed)
        c_in = 3
        for k, layer in enumerate(self.layers):
            side = layer.cells or layer.kernel
            shape = (layer.channels, c_in, side, side)
            c_in, std = layer.channels, math.sqrt(2 / math.prod(shape[1:]))
            self._add(self.weight_names, f"weight{k}", std * torch.randn(shape, generator=generator))
            self._add(self.weight_names, f"bias{k}", torch.zeros(c_in))
            if layer.norm:
                self._add(self.weight_names, f"scale{k}", torch.ones(c_in))
                self._add(self.statistic_names, f"mean{k}", torch.zeros(c_in))
                self._add(self.statistic_names, f"variance{k}", torch.ones(c_in))

    def _add(self, names: list[str], name: str, value: Tensor) -> None:
        names.append(name)
        self.register_buffer(name, value)

    def weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.weight_names]

    def statistics(self) -> list[Tensor]:
        """Running means and variances of the batch norms."""
        return [getattr(self, name) for name in self.statistic_names]

    def forward(self, image: Tensor, weights: Sequence[Tensor] | None = None, *, learning: bool = False) -> Tensor:
        """Scores.

        Args: weights: in place of its own, in the same order.
              learning: normalise by the batch, and move the running statistics. Otherwise it normalises by the batch in
              training mode, and by the running statistics in evaluation mode, and moves nothing.
        """
        left = iter(self.weights() if weights is None else weights)
        with no_autocast(image):
            x = 2 * at_least_float32(as_rgb(image)) - 1
            for k, layer in enumerate(self.layers):
                weight, bias = next(left).to(x.dtype), next(left).to(x.dtype)
                if layer.cells:
                    x = F.adaptive_avg_pool2d(x, layer.cells).flatten(1)
                    x = F.linear(x, weight.flatten(1), bias)[:, :, None, None]
                else:
                    x = F.conv2d(x, weight, None if layer.norm else bias, layer.stride, layer.padding)
                if layer.norm:
                    x = self._normalise(x, k, next(left).to(x.dtype), bias, learning=learning)
                if layer.activation:
                    x = F.leaky_relu(x, SLOPE, inplace=True)
        return x

    def _normalise(self, x: Tensor, k: int, scale: Tensor, shift: Tensor, *, learning: bool) -> Tensor:
        by_batch = learning or self.training
        if by_batch and not learning:
            return F.batch_norm(x, None, None, scale, shift, training=True)
        mean, variance = (getattr(self, f"{name}{k}") for name in ("mean", "variance"))
        if not learning:
            mean, variance = mean.to(x.dtype), variance.to(x.dtype)
        return F.batch_norm(x, mean, variance, scale, shift, training=learning, momentum=MOMENTUM)
