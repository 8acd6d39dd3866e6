"""SRN-Deblur: one encoder-decoder, the same at every scale, from coarse to fine."""

from typing import ClassVar

import torch
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

_KERNEL_SIZE = 5


class SRN(ScaleRecurrent):
    """SRN-Deblur: an encoder-decoder with 5x5 kernels, the same weights at every scale, from coarse to fine.

    Three levels of 32, 64 and 128 channels with three residual blocks each, down and up; down by convolutions of stride
    2, up by 4x4 transposed ones of stride 2, skips by addition, no normalisation, and no input residual: the output
    is the image itself, so that an untrained network returns nothing like its input. At each scale it sees the image
    and the result of the coarser scale (at the coarsest: the image twice), through which no gradient passes. With
    `lstm`, the coarsest features pass through a convolutional LSTM, whose state goes from scale to scale, and the
    gradient with it.

    At its defaults it has 6,881,251 parameters in RGB (6,876,449 for one channel), with the LSTM 8,061,411. Every scale
    is a stage; the authors' loss is the sum over the scales of the mean squared error there, with targets resized as
    the images are.

    Not as in the released code: images are resized bilinearly between pixel centres. Its TensorFlow 1 took every
    second or fourth pixel on the way down (and went half a pixel beside the centres on the way up), which
    `legacy_resize=True` does: released weights want it. They come in three kinds: RGB; grey, for each channel of RGB by
    itself (`by_channel=True`); and with the LSTM, by channel too. Their TensorFlow variables ("g_net/enc1_1/weights")
    load through `convert`.

    Shapes: (N, channels, H, W) -> the same, any H, W >= 1: padded by replication to a multiple of 4 * 2**(scales - 1)
            inside, and cropped back. stages: from the coarsest scale, of 1/2**(scales - 1) of the sides, to the finest.
    Range:  nominal [0, 1]; not clamped.
    Args:   channels: of the image: 1 (grey, luma) or 3 (RGB).
            width: channels of the first level; the two below have twice and four times as many.
            blocks: residual blocks of each level, down and up.
            scales: 3 as published; 1 gives a plain encoder-decoder.
            lstm: with a convolutional LSTM between the encoder and the decoder.
            by_channel: each channel is restored by itself, by a network of one channel.
            legacy_resize: resize between scales as the released code does.
    Errors: ValueError for options below 1 and for inputs of another shape.
    Source: Tao, Gao, Shen, Wang & Jia 2018, Scale-recurrent Network for Deep Image Deblurring, arXiv:1802.01770;
            kernels, padding, initialisation, stopped gradient: the released code (jiangsutx/SRN-Deblur).
    """

    KEYS: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^g_net/", ""),
        *((rf"^enc{level}_1/", f"enter.{level - 1}/") for level in (1, 2, 3)),
        *((rf"^enc{level}_{i + 2}/", f"encoder.{level - 1}.{i}/") for level in (1, 2, 3) for i in range(3)),
        *((rf"^dec{level}_{3 - i}/", f"decoder.{3 - level}.{i}/") for level in (1, 2, 3) for i in range(3)),
        *((rf"^dec{level}_4/", f"enlarge.{2 - level}/") for level in (1, 2)),
        (r"^dec1_0/", "out/"),
        (r"^convLSTM/LSTM_conv/", "lstm.gates/"),
        *TENSORFLOW_KEYS,
    )

    def __init__(
        self,
        *,
        channels: int = 3,
        width: int = 32,
        blocks: int = 3,
        scales: int = 3,
        lstm: bool = False,
        by_channel: bool = False,
        legacy_resize: bool = False,
    ) -> None:
        check_options("srn", channels=(channels, 1), width=(width, 1), blocks=(blocks, 1), scales=(scales, 1))
        super().__init__(channels=channels, scales=scales, by_channel=by_channel, legacy_resize=legacy_resize)
        widths = (width, 2 * width, 4 * width)
        self.enter = nn.ModuleList(
            [
                nn.Conv2d(2 * self.planes, width, _KERNEL_SIZE, padding=_KERNEL_SIZE // 2),
                *(HalvingConv(widths[i], widths[i + 1], _KERNEL_SIZE) for i in range(2)),
            ]
        )
        self.encoder = nn.ModuleList(_blocks(each, blocks) for each in widths)
        self.lstm = ConvLSTMCell(widths[2], kernel_size=3) if lstm else None
        self.decoder = nn.ModuleList(_blocks(each, blocks) for each in reversed(widths))
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(widths[i + 1], widths[i], kernel_size=4, stride=2, padding=1) for i in (1, 0)
        )
        self.out = nn.Conv2d(width, self.planes, _KERNEL_SIZE, padding=_KERNEL_SIZE // 2)
        initialise(self)
        if self.lstm is not None:
            nn.init.trunc_normal_(self.lstm.gates.weight, std=1e-3, a=-2e-3, b=2e-3)
        # Per level down and up, in its own px: the blocks; between levels, in px of the finer: stride 2 looks 3 px far,
        # its inverse 2.
        level = 2 * 2 * blocks * (_KERNEL_SIZE // 2)
        between = (1 + 2) * (3 + 2)
        self.see_through(2 * (_KERNEL_SIZE // 2) + (1 + 2 + 4) * level + between + (4 if lstm else 0))

    def at_scale(self, place: int, seen: Tensor, image: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        del place, image  # the same weights at every scale, and no input residual
        x = seen
        skips = []
        for enter, blocks in zip(self.enter, self.encoder, strict=True):
            x = blocks(F.relu(enter(x)))
            skips.append(x)
        x = skips.pop()
        if self.lstm is not None:
            x, state = self.lstm(x, state)
        deepest, *finer = self.decoder
        x = deepest(x)
        for enlarge, blocks in zip(self.enlarge, finer, strict=True):
            x = blocks(F.relu(enlarge(x)) + skips.pop())
        return self.out(x), state


def _blocks(width: int, number: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width, _KERNEL_SIZE) for _ in range(number)))


class ConvLSTMCell(nn.Module):
    """A convolutional LSTM: all four gates from one convolution of the input and the last output.

    In the order of the released code: input gate, new input, forget gate, output gate. 1 is added to the forget gate.

    Shapes: x (N, width, h, w), state (N, 2 * width, h, w), the cell and the output, or None for zeros
            -> output (N, width, h, w), state (N, 2 * width, h, w)
    """

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(2 * width, 4 * width, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        cell, output = torch.zeros_like(x).repeat(1, 2, 1, 1).chunk(2, 1) if state is None else state.chunk(2, dim=1)
        take, new, keep, give = self.gates(torch.cat((x, output), dim=1)).chunk(4, dim=1)
        cell = cell * torch.sigmoid(keep + 1) + torch.sigmoid(take) * torch.tanh(new)
        output = torch.tanh(cell) * torch.sigmoid(give)
        return output, torch.cat((cell, output), dim=1)
