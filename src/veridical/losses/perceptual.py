"""Losses that look through a pretrained network."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from veridical.core.catalog import lookup
from veridical.core.errors import BadOption
from veridical.distances import DISTANCES, Distance, FeatureDistance, Wasserstein, lpips_distance
from veridical.distances.wasserstein import Reduction
from veridical.features import FrozenNetwork
from veridical.features.networks import PLANS
from veridical.losses.base import FeatureLoss


def _network_loss(
    network: str,
    taps: Sequence[str] | str,
    tap_weights: Sequence[float] | None,
    make: Callable[[], Distance],
    normalisation: str,
    clamp: bool,
    weights: str | None,
) -> FeatureLoss:
    """One distance at each tap, λ from tap_weights."""
    taps = (taps,) if isinstance(taps, str) else tuple(taps)
    if len(set(taps)) != len(taps):
        raise BadOption(f"{network}: a tap is named twice in {taps}.")
    if tap_weights is not None and (not isinstance(tap_weights, Sequence) or len(tap_weights) != len(taps)):
        raise BadOption(
            f"{network}: tap_weights must be {len(taps)} numbers, one for each of {taps}; got {tap_weights!r}."
        )
    features = FrozenNetwork(network, taps=taps, normalisation=normalisation, clamp=clamp, weights=weights)
    lambdas = dict(zip(taps, tap_weights, strict=True)) if tap_weights is not None else None
    return FeatureLoss(FeatureDistance(features, {tap: make() for tap in taps}, weights=lambdas))


def network_needs(network: str) -> Callable[[Mapping[str, Any]], tuple[str, ...]]:
    """options -> the weights to find: those of `network`, or of the option of that name; none when a file is named."""

    def needs(options: Mapping[str, Any]) -> tuple[str, ...]:
        name = str(options.get("network", network))
        lookup(PLANS, name, "network")
        return () if options.get("weights") else (name,)

    return needs


def vgg16(
    *,
    taps: Sequence[str] | str = ("relu1_2", "relu2_2", "relu3_3", "relu4_3"),
    tap_weights: Sequence[float] | None = None,
    distance: str = "l2",
    normalisation: str = "imagenet",
    clamp: bool = False,
    weights: str | None = None,
) -> FeatureLoss:
    """VGG16 perceptual loss: mean squared difference of the features at four depths. More detail, also invented detail.

    Range:  [0, inf), in squared feature units for distance=l2, else in feature units.
    Args:   taps: layer names, conv1_1 ... pool5. tap_weights: one number per tap (1 each).
            distance: l1, l2, charbonnier or wasserstein. normalisation: "imagenet", or "none" for raw [0, 1], which
            reproduces the VGG rows of the Stochastic Perceptual Loss comparison. clamp: clip inputs to [0, 1].
            weights: file to read VGG16 from.
    Source: Johnson et al. 2016, arXiv:1603.08155.
    """
    make = lookup(DISTANCES, distance, "distance")
    return _network_loss("vgg16", taps, tap_weights, make, normalisation, clamp, weights)


def vgg19(
    *,
    taps: Sequence[str] | str = ("relu1_2", "relu2_2", "relu3_4", "relu4_4"),
    tap_weights: Sequence[float] | None = None,
    distance: str = "l2",
    normalisation: str = "imagenet",
    clamp: bool = False,
    weights: str | None = None,
) -> FeatureLoss:
    """VGG19 perceptual loss; `vgg19(taps=conv5_4, distance=l1)` is ESRGAN's.

    Range:  [0, inf), in squared feature units for distance=l2, else in feature units.
    Args:   as vgg16; taps: layer names, conv1_1 ... pool5, by default the last ReLU of the first four blocks, as for
            VGG16. weights: file to read VGG19 from.
    Source: Ledig et al. 2017, arXiv:1609.04802; Wang et al. 2018, arXiv:1809.00219.
    """
    make = lookup(DISTANCES, distance, "distance")
    return _network_loss("vgg19", taps, tap_weights, make, normalisation, clamp, weights)


def lpips(*, net: str = "alex", clamp: bool = False, weights: str | None = None) -> FeatureLoss:
    """LPIPS 0.1: learned perceptual distance. Alone it leaves grid patterns; add it to a pixel loss.

    Range:  [0, inf), about 1 for unrelated images.
    Args:   net: alex, vgg or squeeze. clamp: clip inputs to [0, 1] first, as the Stochastic Perceptual Loss comparison
            does (the gradient of overshoot is then 0). weights: file to read the backbone from.
    Source: Zhang et al. 2018, arXiv:1801.03924. Inputs here are [0, 1]; the original wants [-1, 1].
    """
    return FeatureLoss(lpips_distance(net, clamp=clamp, weights=weights))


def pdl(
    *,
    network: str = "vgg16",
    taps: Sequence[str] | str = "conv4_3",
    order: float = 1.0,
    positions: Reduction = "mean",
    projections: Reduction = "mean",
    normalisation: str = "imagenet",
    clamp: bool = False,
    weights: str | None = None,
) -> FeatureLoss:
    """Projected Distribution Loss: Wasserstein distance of each VGG feature's values, wherever they stand.

    Texture of the right kind in place of blur. It does not hold content in its place: use it with a pixel loss, as the
    paper does, such as "l1 + 0.003*pdl" (the paper tries weights from 0.001 to 0.02). This is the second term of the
    paper's equation 5, with the projection Id.

    Range:  [0, inf), in feature units.
    Args:   network: vgg16, vgg19 or alexnet. taps: layer names; the paper says "conv4", which we take for conv4_3
            before its ReLU.
            order: p of the distance. positions, projections: "mean" or "sum"; see `distances.wasserstein`.
            normalisation, clamp, weights: as vgg16.
    Source: Delbracio, Talebi, Milanfar 2020, arXiv:2012.09289.
    """
    make = partial(Wasserstein, order=order, positions=positions, projections=projections)
    return _network_loss(network, taps, None, make, normalisation, clamp, weights)
