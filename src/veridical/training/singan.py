"""SinGAN's generator and discriminator of one scale, as MDF trains them: five 3x3 convolutions each, 11 px of view."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veridical.features.mdf import KEYS, SLOPE

REACH = 5  # px that five 3x3 convolutions without padding take off every side


class Convolutions(nn.Module):
    """Convolution, BatchNorm and LeakyReLU(0.2), four times; then a last convolution.

    Its parameters have the names of a file of `veridical.features.mdf.read`.

    Shapes: (N, 3, H, W) in [-1, 1] -> (N, outputs, H - 10, W - 10).
    Args:   width: channels between. outputs: of the last convolution. generator: of the initial weights: convolutions
            N(0, 0.02), the scales of BatchNorm N(1, 0.02), biases 0.
    Source: Shaham et al. 2019, arXiv:1905.01164, and its released code.
    """

    def __init__(self, width: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.head = _block(3, width)
        self.body = nn.Sequential(OrderedDict((f"block{k}", _block(width, width)) for k in (1, 2, 3)))
        self.tail = nn.Conv2d(width, outputs, 3)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
                else:
                    parameter.normal_(1.0 if "norm" in name else 0.0, 0.02, generator=generator)

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.tail(self.body(self.head(image)))
        return x


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(inputs, outputs, 3), norm=nn.BatchNorm2d(outputs), act=nn.LeakyReLU(SLOPE, inplace=True)
        )
    )


def discriminator(width: int, generator: torch.Generator) -> Convolutions:
    """How much each 11x11 px look like the seed image: (N, 3, H, W) -> (N, 1, H - 10, W - 10), raw numbers."""
    return Convolutions(width, 1, generator)


class Generator(nn.Module):
    """The image, and what five convolutions add to it: (N, 3, H, W) in [-1, 1] -> (N, 3, H - 10, W - 10).

    Args: span: the most that is added. SinGAN's 1 is half the range; 2 can turn black into white.
    """

    def __init__(self, width: int, generator: torch.Generator, *, span: float = 1.0) -> None:
        super().__init__()
        self.span = span
        self.convolutions = Convolutions(width, 3, generator)

    def forward(self, image: Tensor) -> Tensor:
        return self.span * torch.tanh(self.convolutions(image)) + F.pad(image, (-REACH,) * 4)


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """WGAN-GP: mean over pixels of (|gradient of the scores' sum| - 1)², the length over the colours of a pixel.

    Args:   mix: (N, 1, 1, 1), how much of the real image is in the point where the gradient is taken.
    Source: Gulrajani et al. 2017, arXiv:1704.00028, per pixel as in SinGAN's released code.
    """
    between = (mix * real + (1 - mix) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    # Where the gradient is zero its length has no slope: 0 is the right one there, not NaN.
    return (torch.linalg.vector_norm(gradient, dim=1) - 1).square().mean()


__all__ = ["KEYS", "REACH", "Convolutions", "Generator", "discriminator", "gradient_penalty"]
