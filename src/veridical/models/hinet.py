"""HINet: two U-Nets in a row, in whose deep levels half of the channels are instance-normalised."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veridical.models.base import Restorer, check_options


class HINet(Restorer):
    """HINet: two U-Nets, joined by supervised attention, with half instance normalisation in the deep levels.

    Every block is two 3x3 convolutions with leaky ReLU and a 1x1 shortcut; in a half instance normalisation block the
    first half of the channels behind the first convolution is normalised, and the second half left alone. The second
    U-Net sees the image, the attention of the first, and at every level the first one's features of encoder and
    decoder. At its defaults it has 88,668,806 parameters, as HINet of the paper (88.67 M); with width=32 it is their
    HINet 0.5x.

    The authors' released files load as they are. `hin_levels` is 2 for their GoPro and REDS files
    (hin_position_left 3, hin_position_right 4), and 5 for those of SIDD and Rain13k (0 and 4).

    The mean and the variance of a normalised channel are of the whole image, while training saw crops of 256 px: the
    authors evaluate large images in overlapping crops of 256 px (`veridical restore --tile 256`).

    The convolutions that make the two images start at zero, so that both stages of the untrained network return its
    input: every loss starts from the degraded image. (The authors start from PyTorch's initialisation throughout.)

    Shapes: (N, channels, H, W) -> the same, any H, W >= 1: padded by replication to a multiple of 2**(depth - 1)
            inside, and cropped back. `stages` gives the images of both U-Nets, each of this size.
    Range:  nominal [0, 1]; not clamped.
    Args:   channels: of the image: 1 (grey) or 3 (RGB).
            width: channels of the first level, an even number; each level below has twice as many.
            depth: levels of each U-Net.
            hin_levels: how many levels, from the deepest, are normalised in their encoders.
            slope: of the leaky ReLU.
    Errors: ValueError for impossible options and for inputs of another shape.
    Source: Chen, Lu, Zhang, Chu & Chen 2021, HINet, arXiv:2105.06086; slopes, biases and keys from their released code.
    """

    stage_weights = (1.0, 1.0)

    def __init__(
        self, *, channels: int = 3, width: int = 64, depth: int = 5, hin_levels: int = 2, slope: float = 0.2
    ) -> None:
        super().__init__()
        check_options("hinet", channels=(channels, 1), width=(width, 1), depth=(depth, 2), hin_levels=(hin_levels, 0))
        if width % 2:
            raise ValueError(f"width of hinet must be even, as half of the channels are normalised; got {width}.")
        if hin_levels > depth:
            raise ValueError(f"hin_levels of hinet must be at most its depth, {depth}; got {hin_levels}.")
        self.channels = channels
        self.multiple = 2 ** (depth - 1)
        widths = [width * 2**level for level in range(depth)]
        inputs = [width, *widths]
        self.conv_01 = _conv3x3(channels, width)
        self.conv_02 = _conv3x3(channels, width)

        def encoder(*, fuses: bool) -> nn.ModuleList:
            blocks = []
            for level in range(depth):
                deepest = level == depth - 1
                blocks.append(
                    _Block(
                        inputs[level],
                        widths[level],
                        slope,
                        normalised=level >= depth - hin_levels,
                        halves=not deepest,
                        fuses=fuses and not deepest,
                    )
                )
            return nn.ModuleList(blocks)

        upwards = widths[-2::-1]
        self.down_path_1, self.down_path_2 = encoder(fuses=False), encoder(fuses=True)
        self.up_path_1 = nn.ModuleList(_Up(wide, slope) for wide in upwards)
        self.up_path_2 = nn.ModuleList(_Up(wide, slope) for wide in upwards)
        self.skip_conv_1 = nn.ModuleList(_conv3x3(wide, wide) for wide in upwards)
        self.skip_conv_2 = nn.ModuleList(_conv3x3(wide, wide) for wide in upwards)
        self.sam12 = _SupervisedAttention(width, channels)
        self.cat12 = nn.Conv2d(2 * width, width, kernel_size=1)
        self.last = _conv3x3(width, channels)
        _start_at_zero(self.last)

    def body(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv_01(image)
        encoded: list[Tensor] = []  # from the finest level to the coarsest
        for block in self.down_path_1:
            x, features = block(x)
            encoded.append(features)
        decoded: list[Tensor] = [x]  # the same order
        for up, skip, features in zip(self.up_path_1, self.skip_conv_1, encoded[-2::-1], strict=True):
            decoded.insert(0, up(decoded[0], skip(features)))
        attended, first = self.sam12(decoded[0], image)

        x = self.cat12(torch.cat((self.conv_02(image), attended), dim=1))
        skips: list[Tensor] = []
        for block, *earlier in zip(self.down_path_2, encoded, decoded, strict=True):
            x, features = block(x, *earlier)
            skips.append(features)
        for up, skip, features in zip(self.up_path_2, self.skip_conv_2, skips[-2::-1], strict=True):
            x = up(x, skip(features))
        return first, image + self.last(x)


def _conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1)


def _start_at_zero(convolution: nn.Conv2d) -> None:
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]


class _Block(nn.Module):
    """Two convolutions and a shortcut. -> (for the next level, the features at this one)."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        slope: float,
        *,
        normalised: bool = False,
        halves: bool = False,
        fuses: bool = False,
    ) -> None:
        super().__init__()
        self.slope = slope
        self.identity = nn.Conv2d(channels_in, channels_out, kernel_size=1)
        self.conv_1 = _conv3x3(channels_in, channels_out)
        self.conv_2 = _conv3x3(channels_out, channels_out)
        self.csff_enc = _conv3x3(channels_out, channels_out) if fuses else None
        self.csff_dec = _conv3x3(channels_out, channels_out) if fuses else None
        self.norm = nn.InstanceNorm2d(channels_out // 2, affine=True) if normalised else None
        self.downsample = (
            nn.Conv2d(channels_out, channels_out, kernel_size=4, stride=2, padding=1, bias=False) if halves else None
        )

    def forward(self, x: Tensor, encoded: Tensor | None = None, decoded: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = self.conv_1(x)
        if self.norm is not None:
            first, second = y.chunk(2, dim=1)
            # Each channel a group of its own. InstanceNorm2d's forward refuses images of 1 x 1, which arise here from
            # an input of 16 px; they become the bias.
            first = torch.group_norm(first, self.norm.num_features, self.norm.weight, self.norm.bias, self.norm.eps)
            y = torch.cat((first, second), dim=1)
        y = F.leaky_relu(self.conv_2(F.leaky_relu(y, self.slope)), self.slope) + self.identity(x)
        if self.csff_enc is not None and self.csff_dec is not None:
            y = y + self.csff_enc(encoded) + self.csff_dec(decoded)
        return (y if self.downsample is None else self.downsample(y)), y


class _Up(nn.Module):
    def __init__(self, channels_out: int, slope: float) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2 * channels_out, channels_out, kernel_size=2, stride=2)
        self.conv_block = _Block(2 * channels_out, channels_out, slope)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        y: Tensor = self.conv_block(torch.cat((self.up(x), skip), dim=1))[1]
        return y


class _SupervisedAttention(nn.Module):
    """(features, image) -> (features that the restored image has weighted, the restored image)."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(width, width)
        self.conv2 = _conv3x3(width, channels)
        self.conv3 = _conv3x3(channels, width)
        _start_at_zero(self.conv2)

    def forward(self, features: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        restored = self.conv2(features) + image
        return self.conv1(features) * torch.sigmoid(self.conv3(restored)) + features, restored
