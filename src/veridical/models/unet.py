"""The U-Net of the sharpness paper."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veridical.models.base import Restorer, check_options


class UNet(Restorer):
    """U-Net with five convolutions a level and an input residual: output = input + correction.

    Every block is `convs` times (3x3 convolution without bias, batch norm, GELU). Down by max-pooling, up by
    a 2x2 transposed convolution of stride 2, skips by concatenation, out by a 1x1 convolution without bias.
    At its defaults, with one channel, it has 4,891,216 parameters.

    The last convolution starts at zero, so that the untrained network returns its input: every loss starts
    from the degraded image, and from the same one. (The paper says nothing about it.)

    Shapes: (N, channels, H, W) -> the same, any H, W >= 1: padded by replication to a multiple of 2**levels
            inside, and cropped back.
    Range:  nominal [0, 1]; not clamped.
    Args:   channels: of the image: 1 (luma, as in the paper) or 3 (RGB).
            width: channels of the first block; each level below has twice as many.
            levels: how often the resolution is halved.
            convs: convolutions in every block.
    Errors: ValueError for options below 1 and for inputs of another shape.
    Source: the sharpness paper: 16/32/64/128, bridge of 256.
    """

    def __init__(self, *, channels: int = 3, width: int = 16, levels: int = 4, convs: int = 5) -> None:
        super().__init__()
        check_options("unet", channels=(channels, 1), width=(width, 1), levels=(levels, 1), convs=(convs, 1))
        self.channels = channels
        self.multiple = 2**levels
        # Every level twice, down and up, each of its convolutions looking 2**level px further; and the coarsest grid.
        self.radius_px = convs * (2 * (2**levels - 1) + 2**levels) + 2**levels - 1
        widths = [width * 2**level for level in range(levels + 1)]
        inputs = [channels, *widths]
        self.down = nn.ModuleList(_block(inputs[i], widths[i], convs) for i in range(levels))
        self.bridge = _block(inputs[levels], widths[levels], convs)
        upwards = range(levels - 1, -1, -1)
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(widths[i + 1], widths[i], kernel_size=2, stride=2) for i in upwards
        )
        self.up = nn.ModuleList(_block(2 * widths[i], widths[i], convs) for i in upwards)
        self.out = nn.Conv2d(width, channels, kernel_size=1, bias=False)
        nn.init.zeros_(self.out.weight)

    def body(self, image: Tensor) -> Tensor:
        x = image
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bridge(x)
        for enlarge, block in zip(self.enlarge, self.up, strict=True):
            x = block(torch.cat((enlarge(x), skips.pop()), dim=1))  # (N, 2 * width of the level, h, w)
        return image + self.out(x)


def _block(channels_in: int, channels_out: int, convs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(convs):
        layers += [
            nn.Conv2d(channels_out if i else channels_in, channels_out, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.GELU(),
        ]
    return nn.Sequential(*layers)
