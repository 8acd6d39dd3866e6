"""A small network, learned on top of a frozen one, that makes its features see a degradation."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veridical.core.errors import BadOption, WeightsMissing
from veridical.core.image import at_least_float32, no_autocast
from veridical.core.options import check_choice, check_whole
from veridical.core.untrusted import parse_json
from veridical.features import weights as files
from veridical.features.base import Features, Maps
from veridical.features.clip import TOWERS, CLIPNetwork
from veridical.features.frozen import FrozenFeatures
from veridical.features.networks import FrozenNetwork

KINDS = ("flattened", "token-wise")
FORMAT = "veridical adapter 1"
EPS = 1e-5  # nn.BatchNorm1d's


@dataclass(frozen=True)
class Base:
    """Which frozen features an adapter is for.

    Attributes: network: a CLIP tower ("vit-b-16") or a network of `FrozenNetwork` ("vgg16"). tap: "block3", "relu3_3".
                options: the further ones of `CLIPNetwork` (tokens, size, normalisation) or `FrozenNetwork`
                (normalisation, clamp). sha256: of its weights, or "" as long as they are not known.
    """

    network: str
    tap: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""

    def build(self, *, weights: str | Path | None = None) -> Features:
        """The features. weights: a file or folder to read the network from.

        Errors: WeightsMissing when its weights are not those that the adapter was trained on.
        """
        features: Features
        if self.network in TOWERS:
            block = self.tap.removeprefix("block")
            if not block.isdecimal():
                raise BadOption(f"the tap of a CLIP tower is block0, block1, ...; got {self.tap!r}.")
            features = CLIPNetwork(self.network, block=int(block), weights=weights, **self.options)
        else:
            features = FrozenNetwork(self.network, taps=(self.tap,), weights=weights, **self.options)
        (found,) = features.weight_hashes.values()
        if self.sha256 not in ("", found):
            raise WeightsMissing(
                f"the adapter was trained on {self.network} weights {self.sha256[:12]}..., but the ones found are "
                f"{found[:12]}.... Give the right ones with weights=PATH."
            )
        return features


class Adapter(nn.Module):
    """Three linear layers, BatchNorm and ReLU between them, on the tokens (positions) of a feature map. Trainable.

    Shapes: maps (N, C, h, w) -> flattened: all tokens as one vector, (N, width, 1, 1); token-wise: each by itself,
            (N, width, h, w).
    Args:   base: the features that it is for. kind: "flattened" (the paper's: 157 M numbers on ViT-B/16) or
            "token-wise" (3 M). channels: C. positions: h w, which a flattened one is tied to. width: of each layer.
            pool: first average the map to pool x pool positions, so that a flattened one fits any size of image;
            0 for none.
    Source: Chang et al. 2023, Task-Adaptive Feature Matching Loss for Image Deblurring, ICIP.
    """

    def __init__(
        self, base: Base, *, kind: str, channels: int, positions: int = 1, width: int = 1024, pool: int = 0
    ) -> None:
        super().__init__()
        check_choice("kind of adapter", kind, KINDS)
        for what, value in (("channels", channels), ("positions", positions), ("width", width)):
            check_whole(f"{what} of an adapter", value, low=1)
        check_whole("pool of an adapter", pool, low=0)
        self.base, self.kind, self.channels, self.positions, self.width, self.pool = (
            base, kind, channels, positions, width, pool
        )  # fmt: skip
        inputs = channels * (positions if kind == "flattened" else 1)
        self.layers = nn.Sequential(
            nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Linear(width, width),
        )  # fmt: skip

    @classmethod
    def fitting(cls, base: Base, features: Features, *, size: int, **options: Any) -> "Adapter":
        """An untrained one whose channels and positions fit what `features` make of an image of size x size px.

        Args: options: kind, width, pool.
        """
        (tap,) = features.taps
        with torch.no_grad():
            maps = features(torch.zeros(1, 3, size, size), features.draw())[tap]
        (sha256,) = features.weight_hashes.values()
        known = Base(base.network, base.tap, base.options, sha256)
        positions = options["pool"] ** 2 if options.get("pool") else math.prod(maps.shape[2:])
        return cls(known, channels=maps.shape[1], positions=positions, **options)

    def forward(self, maps: Tensor) -> Tensor:
        return adapt(maps, self.layers, kind=self.kind, pool=self.pool)

    def save(self, path: Path, *, learned: Mapping[str, Any] | None = None) -> None:
        """One .safetensors file that needs no other information. learned: how it was trained, noted beside."""
        notes = {"format": FORMAT, "settings": json.dumps(self.settings)}
        if learned is not None:
            notes["learned"] = json.dumps(learned)
        files.write(path, self.state_dict(), notes)

    @property
    def settings(self) -> dict[str, Any]:
        own = ("kind", "channels", "positions", "width", "pool")
        return {"base": asdict(self.base), **{name: getattr(self, name) for name in own}}

    @classmethod
    def load(cls, path: str | Path) -> "Adapter":
        """The adapter in a file that `save` wrote.

        Errors: WeightsMissing when the file is missing, broken, of another version, or something else.
        """
        loaded = files.read(path, "the adapter")
        settings = settings_of(loaded.notes, loaded.origin)
        try:
            base = Base(**settings.pop("base"))
            with torch.device("meta"):  # no memory for what the settings say before the tensors agree with them
                adapter = cls(base, **settings)
            own = {key: tensor.dtype for key, tensor in adapter.state_dict().items()}
            adapter.load_state_dict(
                {key: loaded.tensors[key].to(dtype) for key, dtype in own.items() if key in loaded.tensors}, assign=True
            )
        except (TypeError, KeyError, RuntimeError, BadOption) as error:
            reason = str(error).strip().replace("\n", " ")
            raise WeightsMissing(f"{path} is not whole, or was made by hand: {reason}") from error
        if not all(math.isfinite(float(value.double().sum())) for value in adapter.state_dict().values()):
            raise WeightsMissing(f"{path} is broken: it has numbers that are not finite.")
        return adapter


def settings_of(notes: Mapping[str, str], origin: str) -> dict[str, Any]:
    """What an adapter's file says of itself."""
    if notes.get("format") != FORMAT:
        found = notes.get("format", "no note of its format")
        raise WeightsMissing(f"{origin} is no adapter that this version reads: expected {FORMAT!r}, found {found!r}.")
    try:
        settings = parse_json(notes["settings"])
    except (KeyError, ValueError) as error:
        raise WeightsMissing(f"{origin} is no adapter: its settings cannot be read ({error}).") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("base"), dict):
        raise WeightsMissing(f"{origin} is no adapter: its settings are no table with a base.")
    return settings


def adapt(maps: Tensor, layers: Any, *, kind: str, pool: int) -> Tensor:
    """`layers`, which map (K, inputs) to (K, width), on the tokens of maps (N, C, h, w)."""
    if pool:
        maps = F.adaptive_avg_pool2d(maps, pool)
    tokens = maps.flatten(2).transpose(1, 2)  # (N, h w, C)
    if kind == "flattened":
        return layers(tokens.flatten(1))[:, :, None, None]
    adapted = layers(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])  # (N, h w, width)
    return adapted.transpose(1, 2).unflatten(2, maps.shape[2:])


class AdaptedFeatures(FrozenFeatures):
    """Frozen features and an adapter on top, frozen too: BatchNorm as in evaluation, folded into the linear layers.

    Shapes: (N, 1 or 3, H, W), nominal [0, 1] -> tap "adapted": as `Adapter`.
    Args:   adapter: a trained one, which is copied. weights: file or folder of the base's weights.
    """

    def __init__(self, adapter: Adapter, *, weights: str | Path | None = None) -> None:
        base = adapter.base.build(weights=weights)
        sha256 = files.content_hash(adapter.state_dict())
        super().__init__(taps=["adapted"], available=["adapted"], identity=("adapted", base.identity, sha256))
        self.base = base
        self.kind, self.pool, self.inputs = adapter.kind, adapter.pool, adapter.layers[0].in_features
        self._freeze("adapter", sha256)
        self.weight_hashes = {**base.weight_hashes, "adapter": sha256}
        for k, (weight, bias) in enumerate(_folded(adapter.layers)):
            self.register_buffer(f"weight{k}", weight, persistent=False)
            self.register_buffer(f"bias{k}", bias, persistent=False)

    @property
    def min_size(self) -> int:
        return self.base.min_size

    def draw(self) -> tuple[Tensor, ...]:
        return (*self.base.draw(), *self.buffers(recurse=False))

    def forward(self, image: Tensor, weights: tuple[Tensor, ...]) -> Maps:
        *of_base, w0, b0, w1, b1, w2, b2 = weights
        (maps,) = self.base(image, tuple(of_base)).values()

        def layers(x: Tensor) -> Tensor:
            if x.shape[1] != self.inputs:
                raise ValueError(
                    f"the adapter was trained on {self.inputs} numbers an image, but this size of image gives "
                    f"{x.shape[1]}: resize the images, or train one with pool."
                )
            x = F.relu(F.linear(x, w0.to(x.dtype), b0.to(x.dtype)))
            x = F.relu(F.linear(x, w1.to(x.dtype), b1.to(x.dtype)))
            return F.linear(x, w2.to(x.dtype), b2.to(x.dtype))

        with no_autocast(maps):  # three layers cost little, and what is compared afterwards is a small difference
            return {"adapted": adapt(at_least_float32(maps), layers, kind=self.kind, pool=self.pool)}


def _folded(layers: Any) -> list[tuple[Tensor, Tensor]]:
    """The three linear layers, each with the BatchNorm after it."""
    folded = []
    with torch.no_grad():
        for k in (0, 3, 6):
            linear = layers[k]
            weight, bias = linear.weight.double(), linear.bias.double()
            if k < 6:
                norm = layers[k + 1]
                scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + EPS)
                weight, bias = weight * scale[:, None], (bias - norm.running_mean) * scale + norm.bias
            folded.append((weight.float(), bias.float()))
    return folded
