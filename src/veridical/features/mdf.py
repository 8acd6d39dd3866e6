"""MDF's discriminators: small networks that were each trained to notice a restoration's errors at one scale."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from veridical.core.colour import as_rgb
from veridical.core.errors import WeightsMissing
from veridical.core.image import at_least_float32
from veridical.core.options import check_choice, check_whole
from veridical.features import weights as files
from veridical.features.base import Maps
from veridical.features.convolution import convolution
from veridical.features.frozen import FrozenFeatures

LAYERS = ("head", "body1", "body2", "body3", "tail")
KEYS = ("head", "body.block1", "body.block2", "body.block3", "tail")  # the layers' names in a file
TAPS = {"released": ("head", "body3", "tail"), "paper": ("head", "body1", "body2", "body3")}
RANGES = {"-1..1": (2.0, -1.0), "0..1": (1.0, 0.0)}  # x -> scale x + shift, for an image in [0, 1]
TASKS = ("sisr", "jpeg")

SLOPE = 0.2
EPS = 1e-5  # nn.BatchNorm2d's

Convolution = tuple[Tensor, Tensor]
"""Weight (D, C, 3, 3) and bias (D,)."""


@dataclass(frozen=True)
class Discriminators:
    """What a file holds.

    Attributes: layers: of each discriminator, coarsest first, its five convolutions with BatchNorm folded in.
                range: the input range that the file declares, a key of RANGES, or None. sha256, origin: of the file.
    """

    layers: list[list[Convolution]]
    range: str | None
    sha256: str
    origin: str


def read(task: str, path: str | Path | None = None) -> Discriminators:
    """The released discriminators of a task, or those in a file.

    A file has the keys `INDEX.LAYER.conv.weight` and `.bias` for the layers head, body.block1, body.block2 and
    body.block3, `INDEX.tail.weight` and `.bias`; and `INDEX.LAYER.norm.*` (weight, bias, running_mean, running_var)
    where BatchNorm is not yet folded into the convolution. Its note `range` is the input range, "-1..1" or "0..1".

    Errors: WeightsMissing when there is no file, or it holds something else.
    """
    loaded = files.read(path, "the discriminators of mdf") if path is not None else files.load(f"mdf-{task}")
    declared = loaded.notes.get("range")
    if declared is not None and declared not in RANGES:
        raise WeightsMissing(f"{loaded.origin} declares the range {declared!r}; expected one of {', '.join(RANGES)}.")
    return Discriminators(fold(loaded.tensors, loaded.origin), declared, loaded.sha256, loaded.origin)


def fold(tensors: Mapping[str, Tensor], origin: str) -> list[list[Convolution]]:
    """The five convolutions of each discriminator, BatchNorm's evaluation folded into them. origin: for errors."""
    indices = {int(match[1]) for key in tensors if (match := re.match(r"(\d+)\.head\.", key))}
    if indices != set(range(len(indices))) or not indices:
        has = ", ".join(list(tensors)[:3]) or "nothing"
        raise WeightsMissing(
            f"{origin} holds no discriminators of mdf: expected keys 0.head.conv.weight, ...; it has: {has}."
        )
    return [_fold_one(tensors, str(index), origin) for index in range(len(indices))]


def _fold_one(tensors: Mapping[str, Tensor], index: str, origin: str) -> list[Convolution]:
    def get(key: str, *shape: int) -> Tensor:
        tensor = tensors.get(key)
        if tensor is None or tuple(tensor.shape) != shape:
            found = "is missing" if tensor is None else f"has the shape {tuple(tensor.shape)}"
            raise WeightsMissing(f"{origin} is not whole: {key!r} {found}; expected the shape {shape}.")
        return tensor.double()  # folding rounds once, at the end

    inputs, width = 3, len(tensors.get(f"{index}.head.conv.bias", ()))
    layers = []
    for key in KEYS[:-1]:
        weight = get(f"{index}.{key}.conv.weight", width, inputs, 3, 3)
        bias = get(f"{index}.{key}.conv.bias", width)
        norm = f"{index}.{key}.norm"
        if f"{norm}.weight" in tensors:
            scale, shift = get(f"{norm}.weight", width), get(f"{norm}.bias", width)
            mean, variance = get(f"{norm}.running_mean", width), get(f"{norm}.running_var", width)
            scale = scale / torch.sqrt(variance + EPS)
            weight, bias = weight * scale[:, None, None, None], (bias - mean) * scale + shift
        layers.append((weight, bias))
        inputs = width
    layers.append((get(f"{index}.tail.weight", 1, width, 3, 3), get(f"{index}.tail.bias", 1)))
    if not all(math.isfinite(float(tensor.sum())) for layer in layers for tensor in layer):
        raise WeightsMissing(f"{origin} is broken: discriminator {index} has weights that are not finite.")
    return layers


class MDFNetwork(FrozenFeatures):
    """K frozen discriminators on the image in full size: five 3x3 convolutions without padding each, 11 px of view.

    BatchNorm and the input's range are folded into the convolutions. Each discriminator runs by itself, channels last:
    on a CPU that is faster than one grouped convolution over all of them, and no memory is spent on joining maps.

    Shapes: (N, 1 or 3, H, W), nominal [0, 1] -> map LAYER_INDEX: (N, width, H - 2 l, W - 2 l) after layer l = 1 ... 5
            of head, body1, body2, body3 (after LeakyReLU(0.2)) and tail (width 1, without activation).
    Args:   task: "sisr" or "jpeg", the released discriminators. weights: a file to read instead; see `read`.
            taps: "released" (head, third body block, tail), or "paper" (after every activation).
            range: what the discriminators are fed, "-1..1" or "0..1"; by default what the file declares, else "-1..1".
            discriminators: how many, from the coarsest.
    Source: Mustafa et al. 2022, arXiv:2103.14616.
    """

    def __init__(
        self,
        task: str = "sisr",
        *,
        weights: str | Path | None = None,
        taps: str = "released",
        range: str | None = None,
        discriminators: int = 8,
    ) -> None:
        check_choice("task of mdf", task, TASKS)
        check_choice("taps of mdf", taps, TAPS)
        if range is not None:
            check_choice("range of mdf", range, RANGES)
        check_whole("discriminators of mdf", discriminators, low=1)
        found = read(task, weights)
        check_whole(f"discriminators of mdf in {found.origin}", discriminators, low=1, high=len(found.layers))
        self.range = range or found.range or "-1..1"
        self.count = discriminators
        super().__init__(
            taps=[f"{layer}_{k}" for k, _ in enumerate(found.layers[:discriminators]) for layer in TAPS[taps]],
            available=[f"{layer}_{k}" for k, _ in enumerate(found.layers[:discriminators]) for layer in LAYERS],
            identity=("mdf", found.sha256, self.range, discriminators),
        )
        self._freeze("mdf" if weights is not None else f"mdf-{task}", found.sha256)
        scale, shift = RANGES[self.range]
        for k, layers in enumerate(found.layers[:discriminators]):
            weight, bias = layers[0]
            layers[0] = (scale * weight, bias + shift * weight.sum((1, 2, 3)))
            for layer, (weight, bias) in zip(LAYERS, layers, strict=True):
                weight = weight.float().contiguous(memory_format=torch.channels_last)
                self.register_buffer(f"{layer}_{k}_weight", weight, persistent=False)
                self.register_buffer(f"{layer}_{k}_bias", bias.float(), persistent=False)

    @property
    def min_size(self) -> int:
        return 1 + 2 * max(1 + LAYERS.index(tap.partition("_")[0]) for tap in self.taps)

    def draw(self) -> tuple[Tensor, ...]:
        return tuple(self.buffers())

    def forward(self, image: Tensor, weights: tuple[Tensor, ...]) -> Maps:
        image = as_rgb(at_least_float32(image)).contiguous(memory_format=torch.channels_last)
        parameters = (weight.to(image.dtype) for weight in weights)
        maps: Maps = {}
        for k in range(self.count):
            convolutions = [(next(parameters), next(parameters)) for _ in LAYERS]
            x = image
            for layer, (weight, bias) in zip(LAYERS, convolutions, strict=True):
                x = convolution(x, weight, bias, slope=None if layer == "tail" else SLOPE)
                if f"{layer}_{k}" in self.taps:
                    maps[f"{layer}_{k}"] = x
                if not any(f"{later}_{k}" in self.taps for later in LAYERS[LAYERS.index(layer) + 1 :]):
                    break
        return maps
