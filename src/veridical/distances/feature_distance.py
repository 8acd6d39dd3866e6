"""The heart of the library: L(x̂, x) = Σ_k λ_k · d_k(φ_k(x̂), φ_k(x)), one number per image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from veridical.core.catalog import lookup
from veridical.core.image import at_least_float32, no_autocast
from veridical.core.options import check_flag, check_number
from veridical.distances.base import Distance
from veridical.distances.lpips import LPIPS, linear_weights
from veridical.features.base import Features, Maps
from veridical.features.networks import FrozenNetwork


@dataclass(frozen=True)
class Seen:
    """A target as the features saw it: the weights of that look, and what each tap's distance prepared."""

    draw: tuple[Tensor, ...]
    prepared: dict[str, Any]


class FeatureDistance(nn.Module):
    """Features × distances, summed over taps.

    Args: features: what is looked through; it must have the taps named below.
          distances: how the maps at each tap are compared. weights: λ of each tap, 1 where not named.
    """

    features: Features

    def __init__(
        self,
        features: Features,
        distances: Mapping[str, Distance],
        *,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        features.add_taps(distances)
        self.features = features
        self.distances = nn.ModuleDict(distances)
        self.weights = dict.fromkeys(distances, 1.0)
        for tap, weight in (weights or {}).items():
            lookup(distances, tap, "tap with a weight")
            check_number(f"the weight of tap {tap}", weight)
            self.weights[tap] = float(weight)

    @property
    def random(self) -> bool:
        """Whether each look at a target in training mode draws anew."""
        return self.features.random or any(distance.random for _, distance in self._distances())

    def see(self, target: Tensor) -> Seen:
        """Look at a target once, without a graph."""
        with torch.no_grad():
            draw = self.features.draw()
            return Seen(draw, self.prepare_maps(self.features(target, draw)))

    def _distances(self) -> Iterator[tuple[str, Distance]]:
        for tap, distance in self.distances.items():
            assert isinstance(distance, Distance)
            yield tap, distance

    def prepare_maps(self, maps: Maps) -> dict[str, Any]:
        """What the distances need of a target's maps."""
        with torch.no_grad(), no_autocast(next(iter(maps.values()))):
            return {tap: distance.prepare(at_least_float32(maps[tap])) for tap, distance in self._distances()}

    def compare_maps(self, maps: Maps, prepared: Mapping[str, Any]) -> Tensor:
        """Σ_k λ_k d_k, (N,)."""
        with no_autocast(next(iter(maps.values()))):
            values = [
                self.weights[tap] * distance(at_least_float32(maps[tap]), prepared[tap])
                for tap, distance in self._distances()
            ]
            return torch.stack(values).sum(0)

    def forward(self, prediction: Tensor, seen: Seen) -> Tensor:
        """(N, C, H, W) against a `see`n target -> (N,)."""
        return self.compare_maps(self.features(prediction, seen.draw), seen.prepared)


LPIPS_NETWORKS = {
    "alex": ("alexnet", ("relu1", "relu2", "relu3", "relu4", "relu5")),
    "vgg": ("vgg16", ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")),
    "squeeze": ("squeezenet1_1", ("relu1", "fire3", "fire5", "fire6", "fire7", "fire8", "fire9")),
}


def lpips_distance(
    net: str, *, linear: bool = True, clamp: bool = False, weights: str | None = None
) -> FeatureDistance:
    """LPIPS 0.1 as a FeatureDistance; both the loss and the metric are this one.

    Args: net: a key of LPIPS_NETWORKS. linear: with the learned weights; without, all are 1. clamp: clip inputs to
          [0, 1]. weights: file of the backbone.
    """
    name, taps = lookup(LPIPS_NETWORKS, net, "LPIPS network")
    check_flag("linear of lpips", linear)
    features = FrozenNetwork(name, taps=taps, clamp=clamp, weights=weights)
    learned = linear_weights(net)
    used = learned if linear else [torch.ones_like(weight) for weight in learned]
    return FeatureDistance(features, dict(zip(taps, map(LPIPS, used), strict=True)))


def lpips_needs(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The weights that LPIPS with these options has to find: none when a file is named."""
    name, _ = lookup(LPIPS_NETWORKS, str(options.get("net", "alex")), "LPIPS network")
    return () if options.get("weights") else (name,)
