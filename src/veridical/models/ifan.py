"""IFAN: out-of-focus blur removed in features, by small filters that are predicted for every pixel."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veridical.models.base import Restorer, check_options

_TAPS = 3
_SLOPE = 0.1


class IFAN(Restorer):
    """IFAN: iterative filter adaptive network; output = input + correction.

    One encoder makes features at 1/8 of the sides (32, 64, 128 and 128 channels). A second one of the same layers
    estimates how far each place is out of focus (a map of the disparity that a dual-pixel sensor would see), and
    predicts from that and its features, for each place and each channel, `iterations` pairs of filters of 3 values, one
    upright and one level, and a bias. The features are filtered by one pair after the other, with leaky ReLU; a decoder
    with additive skips makes the correction of them, whose last layer too has a leaky ReLU, as in the released code.

    This is the network that restores a single image. What trains it besides in the paper is not here: the disparity
    towards a second view of dual-pixel data, and the network that blurs the target again by the predicted filters.

    At its defaults it has 10,476,996 parameters in RGB, as the released network has. The keys of the authors'
    state_dict load through `convert`, which leaves out the network that blurs again. Weights start as the authors':
    Xavier's uniform, for the filters' predictor 1.5 times as large, biases zero.

    `released=True` is what the released weights were trained with: there the level filter of each pair is the upright
    one again, and the second predicted one goes unused (a slip, as a comment in that code says).

    Shapes: (N, channels, H, W) -> the same, any H, W >= 1: padded by replication to a multiple of 8 inside, and
            cropped back.
    Range:  nominal [0, 1]; not clamped.
    Args:   channels: of the image: 1 (grey, luma) or 3 (RGB).
            width: channels of the first level; those below have twice, four and four times as many.
            iterations: pairs of filters, one after the other; the paper also has 8, 26, 35 and 44.
            released: filter as the released code does.
    Errors: ValueError for options below 1 and for inputs of another shape.
    Source: Lee, Son, Rim, Cho & Lee 2021, Iterative Filter Adaptive Network for Single Image Defocus Deblurring,
            arXiv:2108.13610; layers, initialisation and keys: the released code (codeslake/IFAN).
    """

    KEYS: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^Network\.", ""),
        *((rf"^conv{i + 1}_{j + 1}\.", f"encoder.{i}.{j}.") for i in range(4) for j in range(3)),
        *((rf"^kconv{i + 1}_{j + 1}\.", f"scout.{i}.{j}.") for i in range(4) for j in range(3)),
        (r"^DME\.", "disparity."),
        (r"^conv_DME\.", "see_disparity."),
        (r"^conv4_4\.", "join."),
        (r"^F\.", "predict."),
        (r"^conv_res\.", "rebuild."),
        *((rf"^upconv{i + 1}_u\.", f"enlarge.{2 - i}.") for i in range(3)),
        *((rf"^upconv{i + 1}_{j + 1}\.", f"decoder.{2 - i}.{j}.") for i in range(3) for j in range(2)),
        (r"^out_res\.", "out."),
    )

    def __init__(self, *, channels: int = 3, width: int = 32, iterations: int = 17, released: bool = False) -> None:
        super().__init__()
        check_options("ifan", channels=(channels, 1), width=(width, 1), iterations=(iterations, 1))
        self.channels = channels
        self.iterations = iterations
        self.released = released
        self.multiple = 8
        widths = (width, 2 * width, 4 * width, 4 * width)
        deep = widths[-1]
        self.encoder = _encoder(channels, widths)
        self.scout = _encoder(channels, widths)
        self.disparity = nn.Sequential(
            _layer(deep, deep), _Residual(deep, 2), _Residual(deep, 2), nn.Conv2d(deep, 1, 3, padding=1)
        )
        self.see_disparity = _layer(1, deep)
        self.join = nn.Sequential(_layer(2 * deep, deep), _Residual(deep, 2), _Residual(deep, 2), _layer(deep, deep))
        self.predict = nn.Sequential(
            _layer(deep, deep),
            _Residual(deep, 2),
            _Residual(deep, 2),
            nn.Conv2d(deep, iterations * deep * (2 * _TAPS + 1), 1),
        )
        self.rebuild = nn.Sequential(_layer(deep, deep), _Residual(deep, 3), _layer(deep, deep))
        self.enlarge = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(widths[i + 1], widths[i], 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE))
            for i in (2, 1, 0)
        )
        self.decoder = nn.ModuleList(nn.Sequential(_Residual(widths[i], 1), _Residual(widths[i], 1)) for i in (2, 1, 0))
        self.out = _layer(width, channels)
        # The encoder; disparity 10, its 3x3, join 10, predict 9, the filters, rebuild 8 in px of the coarsest level;
        # the decoder; the last convolution.
        self.radius_px = 38 + 8 * (10 + 1 + 10 + 9 + iterations + 8) + (4 + 2 + 1) * (2 + 4) + 1
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for module in self.predict.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight, gain=1.5)

    def body(self, image: Tensor) -> Tensor:
        x = image
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        features = skips.pop()
        seen = self.scout(image)
        seen = self.join(torch.cat((seen, self.see_disparity(self.disparity(seen))), dim=1))
        x = self.filtered(features, self.predict(seen))
        x = self.rebuild(x)
        for enlarge, blocks in zip(self.enlarge, self.decoder, strict=True):
            x = blocks(enlarge(x) + skips.pop())
        return image + self.out(x)

    def filtered(self, features: Tensor, predicted: Tensor) -> Tensor:
        """Iterative adaptive convolution.

        Shapes: features (N, C, h, w), predicted (N, iterations * 7 * C, h, w): for each iteration an upright and a
                level filter of 3 values for every channel, then for each iteration a bias for every channel
                -> (N, C, h, w)
        """
        width = features.shape[1]
        filters, biases = predicted.split((self.iterations * width * 2 * _TAPS, self.iterations * width), dim=1)
        # (N, iterations, 2, C, 3, h, w) and (N, iterations, C, h, w)
        filters = filters.unflatten(1, (self.iterations, 2, width, _TAPS))
        biases = biases.unflatten(1, (self.iterations, width))
        x = features
        for i in range(self.iterations):
            upright = filters[:, i, 0]
            level = upright if self.released else filters[:, i, 1]
            x = filter_each_place(x, upright, dim=-2)
            x = filter_each_place(x, level, dim=-1)
            x = F.leaky_relu(x + biases[:, i], _SLOPE)
        return x

    @classmethod
    def convert(cls, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' state_dict with our keys, without the network that blurs the target again."""
        return super().convert({key: value for key, value in published.items() if "reblurNet." not in key})


def filter_each_place(x: Tensor, filters: Tensor, dim: int) -> Tensor:
    """Each value and its neighbours along `dim`, weighted by its own filter; borders are replicated.

    Shapes: x (N, C, h, w), filters (N, C, 3, h, w) -> (N, C, h, w)
    """
    length = x.shape[dim]
    # As F.pad replicates, whose gradient Inductor refuses behind a convolution (torch 2.13) and CUDA sums in any order.
    padded = torch.cat((x.narrow(dim, 0, 1), x, x.narrow(dim, length - 1, 1)), dim=dim)
    return torch.stack([padded.narrow(dim, tap, length) * filters[:, :, tap] for tap in range(_TAPS)]).sum(dim=0)


class _Residual(nn.Module):
    """leaky_relu(x + convolutions(x)), `steps` times; and x once more where there are several."""

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.stem = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(_SLOPE), nn.Conv2d(width, width, 3, padding=1)
            )
            for _ in range(steps)
        )

    def forward(self, x: Tensor) -> Tensor:
        entered = x
        for step in self.stem:
            x = F.leaky_relu(x + step(x), _SLOPE)
        return x + entered if len(self.stem) > 1 else x


def _layer(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1), nn.LeakyReLU(_SLOPE))


def _encoder(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Four levels of three layers, the first of each but the first with stride 2."""
    inputs = (channels, *widths)
    return nn.Sequential(
        *(
            nn.Sequential(_layer(inputs[i], width, stride=2 if i else 1), _layer(width, width), _layer(width, width))
            for i, width in enumerate(widths)
        )
    )
