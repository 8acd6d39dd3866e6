"""DsDeblur: an encoder-decoder from coarse to fine whose scales share some of their weights."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from veridical.models.base import check_options
from veridical.models.scale_recurrent import (
    TENSORFLOW_KEYS,
    HalvingConv,
    ResidualBlock,
    ScaleRecurrent,
    initialise,
)

_UNITS = 4


class DsDeblur(ScaleRecurrent):
    """DsDeblur: selective sharing of weights between three scales, and blocks with nested skips.

    Three levels of 32, 64 and 128 channels, 3x3 kernels; down by convolutions of stride 2, up by 4x4 transposed ones
    of stride 2, skips by addition, no normalisation; output = scaled image + correction. At each scale it sees the
    image and the result of the coarser scale (at the coarsest: the image twice), through which no gradient passes. The
    first, the strided, the transposed and the last convolutions belong to one scale; the blocks to all. Each level has
    one block down and one up, and each is run twice with the same weights. The nested skips of a block, each of
    its four units fed the sum of its input and of all units before, are the same as four residual units in a row.

    At its defaults it has 3,876,905 parameters in RGB, and for one channel 3,871,715, as the released network has.
    Every scale is a stage, of equal weight.

    The second convolution of every unit and the last of every scale start at zero, so that the untrained network
    returns its input at every scale. With the authors' Xavier initialisation alone forty units grow without a
    normalisation: of an image in [0, 1] it made one of mean 199 at the coarsest scale and 950,000,000 at the finest.

    Images are resized bilinearly between pixel centres. The released code's TensorFlow 1 took every second or fourth
    pixel on the way down (and went half a pixel beside the centres on the way up), which `legacy_resize=True` does:
    released weights want it, and `by_channel=True`, as that network restores each channel of RGB by itself.
    Their TensorFlow variables ("g_net/enc1_1_0/weights") load through `convert`.

    Shapes: (N, channels, H, W) -> the same, any H, W >= 1: padded by replication to a multiple of 4 * 2**(scales - 1)
            inside, and cropped back. stages: from the coarsest scale, of 1/2**(scales - 1) of the sides, to the finest.
    Range:  nominal [0, 1]; not clamped.
    Args:   channels: of the image: 1 (grey, luma) or 3 (RGB).
            width: channels of the first level; the two below have twice and four times as many.
            scales: 3 as published; 1 gives a plain encoder-decoder.
            by_channel: each channel is restored by itself, by a network of one channel.
            legacy_resize: resize between scales as the released code does.
    Errors: ValueError for options below 1 and for inputs of another shape.
    Source: Gao, Tao, Shen & Jia 2019, Dynamic Scene Deblurring with Parameter Selective Sharing and Nested Skip
            Connections (CVPR); layers, padding, initialisation, stopped gradient: the released code
            (firenxygao/deblur).
    """

    KEYS: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^g_net/", ""),
        *((rf"^enc{level}_1_(\d)/", rf"own.\1.enter.{level - 1}/") for level in (1, 2, 3)),
        *((rf"^dec{level}_3_(\d)/", rf"own.\1.enlarge.{2 - level}/") for level in (1, 2)),
        (r"^dec1_0_(\d)/", r"own.\1.out/"),
        *((rf"^enc{level}_2/", f"encoder.{level - 1}/") for level in (1, 2, 3)),
        *((rf"^dec{level}_2/", f"decoder.{3 - level}/") for level in (1, 2, 3)),
        *((f"/d{unit + 1}/", f"/{unit}/") for unit in range(_UNITS)),
        *TENSORFLOW_KEYS,
    )

    def __init__(
        self,
        *,
        channels: int = 3,
        width: int = 32,
        scales: int = 3,
        by_channel: bool = False,
        legacy_resize: bool = False,
    ) -> None:
        check_options("dsdeblur", channels=(channels, 1), width=(width, 1), scales=(scales, 1))
        super().__init__(channels=channels, scales=scales, by_channel=by_channel, legacy_resize=legacy_resize)
        widths = (width, 2 * width, 4 * width)
        self.own = nn.ModuleList(_OwnLayers(self.planes, widths) for _ in range(scales))
        self.encoder = nn.ModuleList(_block(each) for each in widths)
        self.decoder = nn.ModuleList(_block(each) for each in reversed(widths))
        initialise(self)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv2.weight)
            elif isinstance(module, _OwnLayers):
                nn.init.zeros_(module.out.weight)
        # Per level, in its own px: two convolutions a unit, each block twice, down and up; between levels, in px of the
        # finer, stride 2 and its inverse.
        level = 2 * 2 * (2 * _UNITS)
        self.see_through(2 + (1 + 2 + 4) * level + (1 + 2) * (2 + 2))

    def at_scale(self, place: int, seen: Tensor, image: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        own: _OwnLayers = self.own[place]  # type: ignore[assignment]
        x = seen
        skips = []
        for enter, block in zip(own.enter, self.encoder, strict=True):
            x = block(block(F.relu(enter(x))))
            skips.append(x)
        deepest, *finer = self.decoder
        x = deepest(deepest(skips.pop()))
        for enlarge, block in zip(own.enlarge, finer, strict=True):
            x = block(block(F.relu(enlarge(x)) + skips.pop()))
        return image + own.out(x), state


class _OwnLayers(nn.Module):
    """What each scale has for itself: the first convolution, the changes of size, the last convolution."""

    def __init__(self, planes: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.enter = nn.ModuleList(
            [
                nn.Conv2d(2 * planes, widths[0], 3, padding=1),
                *(HalvingConv(widths[i], widths[i + 1], 3) for i in range(2)),
            ]
        )
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(widths[i + 1], widths[i], kernel_size=4, stride=2, padding=1) for i in (1, 0)
        )
        self.out = nn.Conv2d(widths[0], planes, 3, padding=1)


def _block(width: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width, 3) for _ in range(_UNITS)))
