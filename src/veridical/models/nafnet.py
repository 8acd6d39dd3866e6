"""NAFNet: a U-Net of blocks without activation functions."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veridical.models.base import Restorer, check_options


class NAFNet(Restorer):
    """NAFNet: a U-Net whose blocks multiply halves of their channels where others have activation functions.

    Its authors' networks, whose weights load as they are:
      GoPro (motion blur)   nafnet                                        width 32, the default: 17,111,907 parameters
      GoPro                 nafnet(width=64)                              67,888,835
      SIDD (camera noise)   nafnet(width=32, encoder_blocks=(2,2,4,8), middle_blocks=12, decoder_blocks=(2,2,2,2))
      SIDD                  the same with width=64                        115,982,915
      REDS (blur and JPEG)  nafnet(width=64)                              as GoPro's

    The channel attention averages over the whole image, but these networks were trained on crops of 256 px. For
    GoPro and REDS the authors therefore test with averages over windows of 384 px (1.5 times the crop) around each
    pixel ("NAFNetLocal", TLC): `local=384`; in training it changes nothing.

    Shapes: (N, channels, H, W) -> the same, any H, W >= 1: padded by zeros to a multiple of 16 (2 ** levels) inside,
            and cut back; borders are padded by zeros in every layer.
    Range:  nominal [0, 1]; not clamped.
    Args:   channels: of the image: 1 (grey) or 3 (RGB).
            width: channels at the full size; each level below has twice as many.
            encoder_blocks: blocks on every level on the way down.
            middle_blocks: blocks at the coarsest size.
            decoder_blocks: blocks on every level on the way up, the coarsest first.
            local: side in px of the windows of the channel attention in evaluation, a multiple of 2 ** levels; 0 for
                the whole image.
    Errors: ValueError for impossible options and for inputs of another shape.
    Source: Chen, Chu, Zhang & Sun 2022, Simple Baselines for Image Restoration, arXiv:2204.04676; the windows: Chu,
            Chen, Chen & Lu 2022, arXiv:2112.04491; key names, numbers of blocks and the size of the windows from
            megvii-research/NAFNet.
    """

    padding = "constant"

    def __init__(
        self,
        *,
        channels: int = 3,
        width: int = 32,
        encoder_blocks: Sequence[int] = (1, 1, 1, 28),
        middle_blocks: int = 1,
        decoder_blocks: Sequence[int] = (1, 1, 1, 1),
        local: int = 0,
    ) -> None:
        super().__init__()
        check_options(
            "nafnet", channels=(channels, 1), width=(width, 1), middle_blocks=(middle_blocks, 1), local=(local, 0)
        )
        for option, numbers in (("encoder_blocks", encoder_blocks), ("decoder_blocks", decoder_blocks)):
            if isinstance(numbers, str | int) or not numbers or not all(isinstance(n, int) and n >= 1 for n in numbers):
                raise ValueError(
                    f"{option} of nafnet must be whole numbers of at least 1, such as (1, 1, 1, 28); got {numbers!r}."
                )
        if len(encoder_blocks) != len(decoder_blocks):
            raise ValueError(
                f"encoder_blocks and decoder_blocks of nafnet must have one number for each level; got "
                f"{len(encoder_blocks)} and {len(decoder_blocks)}."
            )
        levels = len(encoder_blocks)
        if local % 2**levels:
            raise ValueError(f"local of nafnet must be a multiple of {2**levels} with {levels} levels; got {local}.")
        self.channels = channels
        self.multiple = 2**levels
        # With windows too: each block's attention looks up to `local` px farther than the one before.
        self.radius_px = None
        self.intro = nn.Conv2d(channels, width, kernel_size=3, padding=1)
        self.encoders = nn.ModuleList(
            _blocks(number, width * 2**level, local // 2**level) for level, number in enumerate(encoder_blocks)
        )
        self.downs = nn.ModuleList(
            nn.Conv2d(width * 2**level, 2 * width * 2**level, kernel_size=2, stride=2) for level in range(levels)
        )
        self.middle_blks = _blocks(middle_blocks, width * 2**levels, local // 2**levels)
        upwards = range(levels - 1, -1, -1)
        self.ups = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2 * width * 2**level, 4 * width * 2**level, kernel_size=1, bias=False), nn.PixelShuffle(2)
            )
            for level in upwards
        )
        self.decoders = nn.ModuleList(
            _blocks(number, width * 2**level, local // 2**level)
            for level, number in zip(upwards, decoder_blocks, strict=True)
        )
        self.ending = nn.Conv2d(width, channels, kernel_size=3, padding=1)

    def body(self, image: Tensor) -> Tensor:
        x = self.intro(image)
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle_blks(x)  # (N, 2**levels * width, h, w)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder(up(x) + skips.pop())
        return image + self.ending(x)


class _Block(nn.Module):
    """Two residual halves: a depthwise convolution with channel attention, and a pointwise network.

    beta and gamma start at zero, so that an untrained block changes nothing.
    """

    def __init__(self, width: int, local: int) -> None:
        super().__init__()
        self.norm1 = _LayerNorm(width)
        self.conv1 = nn.Conv2d(width, 2 * width, kernel_size=1)
        self.conv2 = nn.Conv2d(2 * width, 2 * width, kernel_size=3, padding=1, groups=2 * width)
        self.sca = nn.Sequential(_Mean(local), nn.Conv2d(width, width, kernel_size=1))
        self.conv3 = nn.Conv2d(width, width, kernel_size=1)
        self.norm2 = _LayerNorm(width)
        self.conv4 = nn.Conv2d(width, 2 * width, kernel_size=1)
        self.conv5 = nn.Conv2d(width, width, kernel_size=1)
        self.beta = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        x = _gate(self.conv2(self.conv1(self.norm1(image))))
        x = image + self.beta * self.conv3(x * self.sca(x))
        return x + self.gamma * self.conv5(_gate(self.conv4(self.norm2(x))))


def _blocks(number: int, width: int, local: int) -> nn.Sequential:
    return nn.Sequential(*(_Block(width, local) for _ in range(number)))


def _gate(x: Tensor) -> Tensor:
    """(N, 2 C, h, w) -> (N, C, h, w): the product of its halves."""
    first, second = x.chunk(2, dim=1)
    return first * second


class _LayerNorm(nn.Module):
    """Every pixel normalised over its channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)  # (N, h, w, C)
        return F.layer_norm(pixels, self.weight.shape, self.weight, self.bias, eps=1e-6).permute(0, 3, 1, 2)


class _Mean(nn.Module):
    """The mean of each channel: over the image, or in evaluation over a window around each pixel.

    Near a border the window is the last whole one, as in the released code.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if self.training or self.side == 0 or self.side >= max(height, width):
            return x.mean(dim=(-2, -1), keepdim=True)
        means = _running_mean(_running_mean(x, self.side).transpose(-1, -2), self.side).transpose(-1, -2)
        below, right = height - means.shape[-2], width - means.shape[-1]
        return F.pad(means, (right // 2, right - right // 2, below // 2, below - below // 2), mode="replicate")


def _running_mean(x: Tensor, side: int) -> Tensor:
    """The means of every `side` neighbours along the last axis: (..., n) -> (..., n - side + 1); all if n is less."""
    side = min(side, x.shape[-1])
    # Sums lose what bfloat16 cannot hold.
    sums = F.pad(x.cumsum(-1, dtype=torch.promote_types(x.dtype, torch.float32)), (1, 0))
    return ((sums[..., side:] - sums[..., :-side]) / side).to(x.dtype)
