"""XYDeblur: one encoder, and one decoder that is applied twice, to the features and to them rotated."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from veridical.models.base import Restorer, check_options


class XYDeblur(Restorer):
    """XYDeblur: one decoder for the features as they are and for the same features turned by 90 degrees.

    output = input + what it makes of the first + what it makes of the second, turned back. Three levels of 32, 64 and
    128 channels with six residual blocks each, 3x3 kernels; down by convolutions of stride 2, up by 4x4 transposed
    ones of stride 2; skips by concatenation and a 1x1 convolution; no normalisation.

    At its defaults it has 4,918,627 parameters in RGB, as the released network has. That also returns the two
    corrections, which its loss does not see: here the sum is the only stage. The keys of the authors' state_dict load
    through `convert`. Weights start as PyTorch's layers do, as in the released code.

    Shapes: (N, channels, H, W) -> the same, any H, W >= 1: padded by replication to a multiple of 4 inside, and
            cropped back.
    Range:  nominal [0, 1]; not clamped.
    Args:   channels: of the image: 1 (grey, luma) or 3 (RGB).
            width: channels of the first level; the two below have twice and four times as many.
            blocks: residual blocks of each level, down and up.
    Errors: ValueError for options below 1 and for inputs of another shape.
    Source: Ji, Lee, Kim, Hong, Baek, Jung & Ko 2022, XYDeblur: Divide and Conquer for Single Image Deblurring (CVPR);
            layers and keys: the released code (Seowon-Ji/XYDeblur).
    """

    KEYS: ClassVar[tuple[tuple[str, str], ...]] = (
        *((rf"^Encoder{level}\.layers\.", f"encoder.{level - 1}.") for level in (1, 2, 3)),
        *((rf"^Decoder1_{place}\.layers\.", f"decoder.{place - 1}.") for place in (1, 2, 3)),
        *((rf"^Convs1_{place}\.", f"fuse.{place - 1}.") for place in (1, 2)),
        (r"^Decoder1_4\.main\.0\.", "out."),
        # A residual block: convolution, ReLU, convolution; a layer: convolution, ReLU.
        (r"\.main\.0\.main\.0\.", ".0."),
        (r"\.main\.1\.main\.0\.", ".2."),
        (r"\.main\.0\.", ".0."),
    )

    def __init__(self, *, channels: int = 3, width: int = 32, blocks: int = 6) -> None:
        super().__init__()
        check_options("xydeblur", channels=(channels, 1), width=(width, 1), blocks=(blocks, 1))
        self.channels = channels
        self.multiple = 4
        # In px of the level: its blocks, down and up; in px of the finer: stride 2 (1) and its inverse (2); both
        # ends. And turned, the first pixel of a block of 4 comes last: 3 px.
        self.radius_px = (1 + 2 + 4) * 4 * blocks + (1 + 2) * (1 + 2) + 2 + 3
        widths = (width, 2 * width, 4 * width)
        first = nn.Conv2d(channels, width, 3, padding=1)
        down = (nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1) for i in range(2))
        self.encoder = nn.ModuleList(
            nn.Sequential(nn.Sequential(enter, nn.ReLU()), *_blocks(each, blocks))
            for enter, each in zip((first, *down), widths, strict=True)
        )
        up = (nn.ConvTranspose2d(widths[i + 1], widths[i], 4, stride=2, padding=1) for i in (1, 0))
        self.decoder = nn.ModuleList(
            [
                *(
                    nn.Sequential(*_blocks(each, blocks), nn.Sequential(enlarge, nn.ReLU()))
                    for enlarge, each in zip(up, (widths[2], widths[1]), strict=True)
                ),
                nn.Sequential(*_blocks(width, blocks)),
            ]
        )
        self.fuse = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * each, each, 1), nn.ReLU()) for each in (widths[1], widths[0])
        )
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def body(self, image: Tensor) -> Tensor:
        features = []
        x = image
        for level in self.encoder:
            x = level(x)
            features.append(x)
        turned = self.decode([torch.rot90(each, 1, (-2, -1)) for each in features])
        return image + self.decode(features) + torch.rot90(turned, -1, (-2, -1))

    def decode(self, features: list[Tensor]) -> Tensor:
        """(N, width, h, w), (N, 2 * width, h / 2, w / 2) and (N, 4 * width, h / 4, w / 4) -> (N, channels, h, w)."""
        finest, middle, x = features
        x = self.fuse[0](torch.cat((self.decoder[0](x), middle), dim=1))
        x = self.fuse[1](torch.cat((self.decoder[1](x), finest), dim=1))
        return self.out(self.decoder[2](x))


class _Block(nn.Sequential):
    """x + convolution(relu(convolution(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _blocks(width: int, number: int) -> list[nn.Module]:
    return [_Block(width) for _ in range(number)]
