"""RRDBNet: the generator of ESRGAN and Real-ESRGAN."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veridical.models.base import Restorer, check_options
from veridical.models.upsampling import check_scale

RESIDUAL = 0.2  # what a dense block, and a block of three of them, adds is scaled by this


class RRDBNet(Restorer):
    """RRDBNet: residual blocks of three dense blocks each, no batch norm, enlarged by nearest neighbours.

    The generator of ESRGAN: 16,697,987 parameters at its defaults. It always enlarges its features four times; scale 2
    and scale 1 first fold 2x2 or 4x4 pixels into channels, as BasicSR and Real-ESRGAN do.

    The published weights load in all three spellings: ESRGAN's of today (RRDB_trunk.0.RDB1.conv1), its first
    (model.1.sub.0.RDB1.conv1.0) and BasicSR's and Real-ESRGAN's (body.0.rdb1.conv1). Real-ESRGAN's anime file has
    6 blocks.

    Shapes: (N, channels, H, W) -> (N, channels, scale * H, scale * W), any H, W >= 1: padded by replication to a
            multiple of 4 / scale inside, and cut back; borders are padded by zeros in every layer.
    Range:  nominal [0, 1]; not clamped.
    Args:   channels: of the image: 1 (grey) or 3 (RGB).
            scale: 1, 2 or 4.
            width: channels of every layer.
            blocks: residual blocks of three dense blocks of five convolutions.
            growth: channels that each convolution of a dense block adds.
    Errors: ValueError for impossible options and for inputs of another shape.
    Source: Wang et al. 2018, ESRGAN, arXiv:1809.00219; initial weights (He's times 0.1 in the dense blocks) and key
            names from xinntao/ESRGAN and XPixelGroup/BasicSR.
    """

    KEYS = (
        (r"^body\.", "trunk."),
        (r"^RRDB_trunk\.(\d+)\.RDB(\d)\.", r"trunk.\1.rdb\2."),
        (r"^trunk_conv\.", "conv_body."),
        (r"^upconv(\d)\.", r"conv_up\1."),
        (r"^HRconv\.", "conv_hr."),
        # The first files of 2018: one nested sequence.
        (r"^model\.0\.", "conv_first."),
        (r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"trunk.\1.rdb\2.conv\3."),
        (r"^model\.1\.sub\.\d+\.(weight|bias)$", r"conv_body.\1"),
        (r"^model\.3\.", "conv_up1."),
        (r"^model\.6\.", "conv_up2."),
        (r"^model\.8\.", "conv_hr."),
        (r"^model\.10\.", "conv_last."),
    )

    def __init__(
        self, *, channels: int = 3, scale: int = 4, width: int = 64, blocks: int = 23, growth: int = 32
    ) -> None:
        super().__init__()
        check_options("rrdbnet", channels=(channels, 1), width=(width, 1), blocks=(blocks, 1), growth=(growth, 1))
        check_scale("rrdbnet", scale, (1, 2, 4))
        self.channels = channels
        self.scale = scale
        self.multiple = 4 // scale
        self.radius_px = _radius_px(scale, 1 + 15 * blocks + 1)
        self.conv_first = nn.Conv2d(channels * self.multiple**2, width, kernel_size=3, padding=1)
        self.trunk = nn.Sequential(*(_Residual(width, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.conv_up1 = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.conv_up2 = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.conv_hr = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.conv_last = nn.Conv2d(width, channels, kernel_size=3, padding=1)

    def body(self, image: Tensor) -> Tensor:
        first = self.conv_first(F.pixel_unshuffle(image, self.multiple))
        x = first + self.conv_body(self.trunk(first))  # (N, width, h, w): h = H / multiple
        for enlarge in (self.conv_up1, self.conv_up2):
            x = _lrelu(enlarge(F.interpolate(x, scale_factor=2, mode="nearest")))
        return self.conv_last(_lrelu(self.conv_hr(x)))


class _Residual(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = _Dense(width, growth)
        self.rdb2 = _Dense(width, growth)
        self.rdb3 = _Dense(width, growth)

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL * self.rdb3(self.rdb2(self.rdb1(x)))


class _Dense(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, growth, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(width + growth, growth, kernel_size=3, padding=1)
        self.conv3 = nn.Conv2d(width + 2 * growth, growth, kernel_size=3, padding=1)
        self.conv4 = nn.Conv2d(width + 3 * growth, growth, kernel_size=3, padding=1)
        self.conv5 = nn.Conv2d(width + 4 * growth, width, kernel_size=3, padding=1)
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            nn.init.kaiming_normal_(layer.weight)
            layer.weight.data *= 0.1
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        found = x  # x and what every convolution added, side by side
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            found = torch.cat((found, _lrelu(layer(found))), dim=1)
        return x + RESIDUAL * self.conv5(found)


def _lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, negative_slope=0.2)


def _radius_px(scale: int, radius: int) -> int:
    """How far a pixel of the result looks in px of the input, if the features look `radius` of their own px far."""
    folded = 4 // scale  # px of the input in one of the features
    farthest = 0
    for place in range(4):  # of the result's pixel in the features' pixel 0
        low, high = place - 3, place + 3  # conv_last, conv_hr, conv_up2
        low, high = low // 2 - 1, high // 2 + 1  # conv_up1
        low, high = folded * (low // 2 - radius), folded * (high // 2 + radius) + folded - 1
        farthest = max(farthest, place // scale - low, high - place // scale)
    return farthest
