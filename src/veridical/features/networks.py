"""The frozen classification networks: VGG16, VGG19, AlexNet, SqueezeNet 1.1, with torchvision's weights."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from veridical.core.catalog import lookup
from veridical.core.colour import as_rgb
from veridical.core.image import at_least_float32
from veridical.core.options import check_flag
from veridical.features import weights as files
from veridical.features.base import Maps
from veridical.features.convolution import convolution, l2_pool, max_pool
from veridical.features.frozen import FrozenFeatures

# What a layer does to (x, next), where next() hands out the weights in order.
Apply = Callable[[Tensor, Callable[[], Tensor]], Tensor]


@dataclass(frozen=True)
class Layer:
    name: str
    apply: Apply
    size: Callable[[int], int]  # what it makes of a height or width
    keys: tuple[str, ...] = ()  # torchvision's keys of its weights, in the order that `apply` asks for them
    with_relu: Apply | None = None  # this layer and the ReLU after it in one step, for when no tap lies between


def _conv(name: str, index: int, *, kernel: int = 3, stride: int = 1, padding: int = 1) -> Layer:
    def apply(x: Tensor, parameter: Callable[[], Tensor], slope: float | None = None) -> Tensor:
        return convolution(x, parameter(), parameter(), stride=stride, padding=padding, slope=slope)

    keys = (f"features.{index}.weight", f"features.{index}.bias")
    size = lambda n: (n + 2 * padding - kernel) // stride + 1  # noqa: E731
    return Layer(name, apply, size, keys, with_relu=partial(apply, slope=0.0))


def _relu(name: str) -> Layer:
    return Layer(name, lambda x, parameter: F.relu(x), lambda n: n)


def _pool(name: str, kernel: int, *, ceil: bool = False) -> Layer:
    def size(n: int) -> int:
        return -(-(n - kernel) // 2) + 1 if ceil else (n - kernel) // 2 + 1

    return Layer(name, lambda x, parameter: max_pool(x, kernel, ceil=ceil), size)


def _l2_pool(name: str) -> Layer:
    return Layer(name, lambda x, parameter: l2_pool(x), lambda n: (n + 1) // 2)


# What takes the place of a plan's pooling layers: none for "max", which is what the networks were trained with.
POOLS: dict[str, Callable[[str], Layer] | None] = {"max": None, "l2": _l2_pool}


def _fire(name: str, index: int) -> Layer:
    """Squeeze 1x1 -> ReLU -> [expand 1x1, expand 3x3] -> ReLU, side by side."""

    def apply(x: Tensor, parameter: Callable[[], Tensor]) -> Tensor:
        x = convolution(x, parameter(), parameter(), slope=0.0)
        narrow = convolution(x, parameter(), parameter(), slope=0.0)
        wide = convolution(x, parameter(), parameter(), padding=1, slope=0.0)
        return torch.cat([narrow, wide], dim=1)

    parts = ("squeeze", "expand1x1", "expand3x3")
    keys = tuple(f"features.{index}.{part}.{kind}" for part in parts for kind in ("weight", "bias"))
    return Layer(name, apply, lambda n: n, keys)


def _vgg(convs_per_block: Sequence[int]) -> list[Layer]:
    layers: list[Layer] = []
    for block, count in enumerate(convs_per_block, start=1):
        for i in range(1, count + 1):
            layers.append(_conv(f"conv{block}_{i}", len(layers)))
            layers.append(_relu(f"relu{block}_{i}"))
        layers.append(_pool(f"pool{block}", 2))
    return layers


PLANS: dict[str, list[Layer]] = {
    "vgg16": _vgg([2, 2, 3, 3, 3]),
    "vgg19": _vgg([2, 2, 4, 4, 4]),
    "alexnet": [
        _conv("conv1", 0, kernel=11, stride=4, padding=2), _relu("relu1"), _pool("pool1", 3),
        _conv("conv2", 3, kernel=5, padding=2), _relu("relu2"), _pool("pool2", 3),
        _conv("conv3", 6), _relu("relu3"),
        _conv("conv4", 8), _relu("relu4"),
        _conv("conv5", 10), _relu("relu5"),
    ],
    "squeezenet1_1": [
        _conv("conv1", 0, stride=2, padding=0), _relu("relu1"), _pool("pool1", 3, ceil=True),
        _fire("fire2", 3), _fire("fire3", 4), _pool("pool2", 3, ceil=True),
        _fire("fire4", 6), _fire("fire5", 7), _pool("pool3", 3, ceil=True),
        _fire("fire6", 9), _fire("fire7", 10), _fire("fire8", 11), _fire("fire9", 12),
    ],
}  # fmt: skip

IMAGE = "image"
"""The tap that every network has: its input."""

# Mean and standard deviation of ImageNet's RGB in [0, 1]. LPIPS's "scaling layer" on 2x - 1 is the same map.
NORMALISATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]] | None] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": None,
}


class FrozenNetwork(FrozenFeatures):
    """A pretrained network up to its deepest tap. It can not be trained, and no checkpoint carries it.

    Its weights are buffers outside the state_dict; the state carries their hash alone, so that a run resumed with other
    weights is noticed.

    Shapes: (N, 1 or 3, H, W), nominal [0, 1] (a Y image is repeated to RGB) -> maps by layer name; for VGG: conv1_1,
            relu1_1, ..., pool5; for AlexNet conv1 ... relu5; for SqueezeNet relu1, fire2 ... fire9. "image" is what
            goes in, as RGB, before it is normalised.
    Args:   name: a key of PLANS. taps: layer names. normalisation: "imagenet", or "none" for raw [0, 1] input.
            clamp: clip the input to [0, 1] first; the gradient of overshoot is then zero.
            pool: "max", or "l2" for DISTS's pooling without aliases in place of each max-pool.
            weights: file to read instead of the known places (see `veridical weights list`).
    Source: torchvision's networks and weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        *,
        taps: Iterable[str],
        normalisation: str = "imagenet",
        clamp: bool = False,
        pool: str = "max",
        weights: str | Path | None = None,
    ) -> None:
        plan = lookup(PLANS, name, "network")
        lookup(POOLS, pool, "pooling")
        check_flag("clamp", clamp)
        loaded = files.load(name, path=weights)
        super().__init__(
            taps=taps,
            available=[IMAGE, *(layer.name for layer in plan)],
            identity=(name, loaded.sha256, normalisation, clamp, pool),
        )
        self.clamp, self.pool = clamp, pool
        if name not in ("vgg16", "vgg19"):
            self.pass_px *= 4  # the first layer of the others makes the maps small
        self._freeze(name, loaded.sha256)
        self.keys = [key for layer in plan for key in layer.keys]
        for key in self.keys:
            self.register_buffer(key.replace(".", "_"), loaded.tensors[key], persistent=False)
        statistics = lookup(NORMALISATIONS, normalisation, "normalisation")
        self.normalised = statistics is not None
        mean, std = statistics or ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def _layers(self) -> list[Layer]:
        plan = PLANS[self.name][: self.available.index(self.taps[-1])]  # one less than in `available`, for the image
        pool = POOLS[self.pool]
        return (
            plan if pool is None else [pool(layer.name) if layer.name.startswith("pool") else layer for layer in plan]
        )

    @property
    def min_size(self) -> int:
        def deepest(size: int) -> int:
            for layer in self._layers():
                size = layer.size(size)
                if size < 1:
                    break
            return size

        return next(size for size in range(1, 1024) if deepest(size) >= 1)

    def draw(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, key.replace(".", "_")) for key in self.keys)

    def forward(self, image: Tensor, weights: tuple[Tensor, ...]) -> Maps:
        x = as_rgb(at_least_float32(image))
        if self.clamp:
            x = x.clamp(0, 1)
        maps: Maps = {IMAGE: x} if IMAGE in self.taps else {}
        if self.normalised:
            x = (x - self.mean) / self.std
        dtype = x.dtype
        remaining = iter(weights)
        layers = iter(self._layers())
        for layer in layers:
            apply = layer.apply
            if layer.with_relu and layer.name not in self.taps:  # then it is not the last one: its ReLU follows
                apply, layer = layer.with_relu, next(layers)
            x = apply(x, lambda: next(remaining).to(dtype))
            if layer.name in self.taps:
                maps[layer.name] = x
        return maps
