"""Any features with any distance: the grid in which most losses of the table are a cell."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from veridical.core.catalog import lookup
from veridical.core.errors import BadOption
from veridical.distances import DISTANCES, LPIPS_NETWORKS, Contextual, Distance, FeatureDistance
from veridical.features import Features, FrozenNetwork, StochasticNetwork
from veridical.features.adapter import AdaptedFeatures, Adapter
from veridical.features.mdf import MDFNetwork
from veridical.features.pixels import Pixels
from veridical.losses.base import FeatureLoss
from veridical.losses.clip import tfmlc_needs
from veridical.losses.mdf import mdf_needs
from veridical.losses.perceptual import VGG16_TAPS, VGG19_TAPS

NETWORKS: dict[str, tuple[str, ...]] = {**dict(LPIPS_NETWORKS.values()), "vgg16": VGG16_TAPS, "vgg19": VGG19_TAPS}
"""Pretrained networks -> the taps that are looked at unless others are named."""


def _mdf(*, task: str, weights: str | None, **_: Any) -> Features:
    if not task and not weights:
        raise BadOption("features=mdf needs the task that its discriminators were trained on, as in task=jpeg.")
    return MDFNetwork(task, weights=weights) if task else MDFNetwork(weights=weights)


def _adapter(*, adapter: str, weights: str | None, **_: Any) -> Features:
    if not adapter:
        raise BadOption("features=adapter needs the file of an adapter, as in adapter=blur.safetensors.")
    return AdaptedFeatures(Adapter.load(adapter), weights=weights)


FEATURES: dict[str, Callable[..., Features]] = {
    "pixels": lambda **_: Pixels(),
    **{
        name: lambda *, weights, name=name, taps=taps, **_: FrozenNetwork(name, taps=taps, weights=weights)
        for name, taps in NETWORKS.items()
    },
    "random": lambda *, seed, **_: StochasticNetwork(seed=seed),
    "mdf": _mdf,
    "adapter": _adapter,
}


def feature(
    *,
    features: str = "vgg16",
    distance: str = "l1",
    taps: Sequence[str] | str = (),
    task: str = "",
    adapter: str = "",
    max_positions: int = 4096,
    seed: int = 0,
    weights: str | None = None,
) -> FeatureLoss:
    """Any features with any distance, for what no other loss of the table joins, and to compare the two apart.

    Formula: Σ_k d(φ_k(x̂), φ_k(x)), φ_k: the features at tap k, all with weight 1; d: the distance.
    Range:  [0, inf) but for contextual, in the units of the distance.
    Use:    "l1 + auto*feature(features=random, distance=wasserstein)": with `auto` all cells of the grid pull equally
            hard at the start. docs/finding.md has the grid, measured.
    Weak:   units differ from cell to cell by orders of magnitude, so that a λ found for one means nothing for another.
            Of pixels, wasserstein sees three histograms and unit-l2 colour without brightness: neither stands alone.
    Args:   features: pixels, vgg16, vgg19, alexnet, squeezenet1_1, random (the network of spl-d), mdf or adapter.
            distance: l1, l2, charbonnier, unit-l2 (each position's channels scaled to unit length), wasserstein,
            contextual or gram.
            taps: layer names; by default those of vgg16 and lpips, all blocks of random, head, third body block and
            tail of mdf. task: of mdf. adapter: file of `veridical learn adapter`. max_positions: of contextual.
            seed: of random, and of contextual's positions. weights: file to read the network from.
    Source: the sum of which docs/architecture.md says that it holds the library.
    """
    seen = lookup(FEATURES, features, "features")(task=task, adapter=adapter, seed=seed, weights=weights)
    kind = lookup(DISTANCES, distance, "distance")
    taps = (taps,) if isinstance(taps, str) else tuple(taps)
    if taps:
        seen.take_taps(taps)

    def make() -> Distance:
        return Contextual(max_positions=max_positions, seed=seed) if kind is Contextual else kind()

    return FeatureLoss(FeatureDistance(seen, {tap: make() for tap in seen.taps}))


def feature_needs(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The pretrained weights that these options have to find."""
    name = str(options.get("features", "vgg16"))
    lookup(FEATURES, name, "features")
    if name == "adapter":
        return tfmlc_needs(options)
    if name == "mdf" and options.get("task"):
        return mdf_needs(options)
    return (name,) if name in NETWORKS and not options.get("weights") else ()
