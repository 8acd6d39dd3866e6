"""Losses that look through a pretrained network."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from veridical.core.catalog import lookup
from veridical.core.errors import BadOption
from veridical.distances import DISTANCES, Distance, FeatureDistance, Wasserstein, lpips_distance
from veridical.distances.wasserstein import Projection, Reduction
from veridical.features import FrozenNetwork
from veridical.features.networks import PLANS
from veridical.losses.base import FeatureLoss

VGG16_TAPS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
VGG19_TAPS = ("relu1_2", "relu2_2", "relu3_4", "relu4_4")
"""The last ReLU of the first four blocks: those of Johnson et al."""


def network_loss(
    network: str,
    taps: Sequence[str] | str,
    tap_weights: Sequence[float] | None,
    make: Callable[[str], Distance],
    normalisation: str,
    clamp: bool,
    weights: str | None,
) -> FeatureLoss:
    """make(tap) at each tap of a network, λ from tap_weights."""
    taps = (taps,) if isinstance(taps, str) else tuple(taps)
    if len(set(taps)) != len(taps):
        raise BadOption(f"{network}: a tap is named twice in {taps}.")
    if tap_weights is not None and (not isinstance(tap_weights, Sequence) or len(tap_weights) != len(taps)):
        raise BadOption(
            f"{network}: tap_weights must be {len(taps)} numbers, one for each of {taps}; got {tap_weights!r}."
        )
    features = FrozenNetwork(network, taps=taps, normalisation=normalisation, clamp=clamp, weights=weights)
    lambdas = dict(zip(taps, tap_weights, strict=True)) if tap_weights is not None else None
    return FeatureLoss(FeatureDistance(features, {tap: make(tap) for tap in taps}, weights=lambdas))


def network_needs(network: str) -> Callable[[Mapping[str, Any]], tuple[str, ...]]:
    """options -> the weights to find: those of `network`, or of the option of that name; none when a file is named."""

    def needs(options: Mapping[str, Any]) -> tuple[str, ...]:
        name = str(options.get("network", network))
        lookup(PLANS, name, "network")
        return () if options.get("weights") else (name,)

    return needs


def vgg16(
    *,
    taps: Sequence[str] | str = VGG16_TAPS,
    tap_weights: Sequence[float] | None = None,
    distance: str = "l2",
    normalisation: str = "imagenet",
    clamp: bool = False,
    weights: str | None = None,
) -> FeatureLoss:
    """VGG16 perceptual loss: mean squared difference of the features at four depths. More detail, also invented detail.

    Formula: Σ_k λ_k mean (φ_k(x̂) - φ_k(x))², φ_k: the features at tap k, λ_k from tap_weights.
    Range:  [0, inf), in squared feature units for distance=l2, else in feature units.
    Use:    to bring back texture that pixel losses smooth away: 0.8*l2 + 0.2*vgg16. It sees structure over many px.
    Weak:   it compares position by position, so that it still averages; pushed further it makes grid patterns and other
            artefacts. Different images can have the same features, so it needs a pixel term: alone it lost 5 dB against
            L2 on a 5x5 box blur. Its features are of ImageNet's classes. Heavy in time and memory. Values of the taps
            differ tenfold and more, so tap_weights matter.
    Args:   taps: layer names, conv1_1 ... pool5. tap_weights: one number per tap (1 each).
            distance: l1, l2, charbonnier, wasserstein, contextual or gram. normalisation: "imagenet", or "none" for
            raw [0, 1], which reproduces the VGG rows of the Stochastic Perceptual Loss comparison. clamp: clip inputs
            to [0, 1]. weights: file to read VGG16 from.
    Source: Johnson et al. 2016, arXiv:1603.08155.
    """
    kind = lookup(DISTANCES, distance, "distance")
    return network_loss("vgg16", taps, tap_weights, lambda tap: kind(), normalisation, clamp, weights)


def vgg19(
    *,
    taps: Sequence[str] | str = VGG19_TAPS,
    tap_weights: Sequence[float] | None = None,
    distance: str = "l2",
    normalisation: str = "imagenet",
    clamp: bool = False,
    weights: str | None = None,
) -> FeatureLoss:
    """VGG19 perceptual loss; `vgg19(taps=conv5_4, distance=l1)` is ESRGAN's.

    Formula: Σ_k λ_k mean (φ_k(x̂) - φ_k(x))², φ_k: the features at tap k, λ_k from tap_weights.
    Range:  [0, inf), in squared feature units for distance=l2, else in feature units.
    Use:    to follow SRGAN and ESRGAN, whose perceptual terms it is; else vgg16 does the same for less.
    Weak:   those of vgg16. Deep taps such as conv5_4 hold little of colour and fine detail: they need a pixel term.
    Args:   as vgg16; taps: layer names, conv1_1 ... pool5, by default the last ReLU of the first four blocks, as for
            VGG16. weights: file to read VGG19 from.
    Source: Ledig et al. 2017, arXiv:1609.04802; Wang et al. 2018, arXiv:1809.00219.
    """
    kind = lookup(DISTANCES, distance, "distance")
    return network_loss("vgg19", taps, tap_weights, lambda tap: kind(), normalisation, clamp, weights)


def lpips(*, net: str = "alex", linear: bool = True, clamp: bool = False, weights: str | None = None) -> FeatureLoss:
    """LPIPS 0.1: learned perceptual distance. Alone it leaves grid patterns; add it to a pixel loss.

    Formula: Σ_k mean over positions of Σ_c w_kc (u_k(x̂) - u_k(x))²_c, u_k = φ_k / |φ_k| over the channels, w learned
            from what people judged similar.
    Range:  [0, inf), about 1 for unrelated images.
    Use:    when the result should look right to people: 0.8*l2 + 0.2*lpips had the best LPIPS under camera shake with
            noise. Also as a metric; then trust it less for a model that was trained on it.
    Weak:   unit length hides the strength of features, so that other images reach the same value: alone it had the
            lowest PSNR of all twelve losses (23.4 dB to L2's 32.0 on a 5x5 box blur), and grids, most with net=alex,
            whose first layer steps by 4 px. Blind to overshoot with clamp.
    Args:   net: alex, vgg or squeeze. linear: with the learned w; without, every w is 1, which makes it about ten
            times as large. clamp: clip inputs to [0, 1] first, as the Stochastic Perceptual Loss comparison does (the
            gradient of overshoot is then 0). weights: file to read the backbone from.
    Source: Zhang et al. 2018, arXiv:1801.03924. Inputs here are [0, 1]; the original wants [-1, 1].
    """
    return FeatureLoss(lpips_distance(net, linear=linear, clamp=clamp, weights=weights))


def pdl(
    *,
    network: str = "vgg16",
    taps: Sequence[str] | str = "conv4_3",
    tap_weights: Sequence[float] | None = None,
    order: float = 1.0,
    projection: Projection = "id",
    k: int = 1,
    redraw: bool = False,
    eps: float = 0.01,
    seed: int = 0,
    positions: Reduction = "mean",
    projections: Reduction = "mean",
    normalisation: str = "imagenet",
    clamp: bool = False,
    weights: str | None = None,
) -> FeatureLoss:
    """Projected Distribution Loss: Wasserstein distance of each VGG feature's values, wherever they stand.

    Formula: Σ_taps λ · mean over directions w and ranks i of |sort(Wφ(x̂))_i - sort(Wφ(x))_i|^p, the sort over the
            positions of one image, each direction by itself. The rows of W are unit vectors over the channels.
    Range:  [0, inf), in feature units to the power p. About 2.5 for a photograph under a 5x5 box blur, with the
            defaults.
    Use:    beside l1, with a weight from 0.001 to 0.02: texture and grain for little PSNR. Under camera shake with
            noise l1 + 0.01*pdl took a fifth off L1's LPIPS for 0.17 dB. projection=rsp, order=2, redraw=true is the
            sliced Wasserstein loss; the paper found no projection better than id.
    Weak:   alone it keeps nothing in its place. It compares one feature at a time (projection=id), not how they occur
            together. Its sort sees the whole crop: the crop's size decides how local it is, and λ depends on the
            reductions.
    Args:   network: vgg16, vgg19, alexnet or squeezenet1_1. taps: layer names; the paper says "conv4", which we take
            for conv4_3 before its ReLU. tap_weights: one number per tap (1 each).
            order: p of the distance, which is W_p to the power p.
            projection: id (each channel), r2p (two random channels, Gaussian coefficients), rpp (one channel e_i and a
            little of all others, e_i + eps·g) or rsp (any direction). k: directions per channel, for all but id.
            redraw: new directions at every step of training; otherwise one draw, of seed. eps: of rpp; with 512
            channels 0.01 turns e_i by about 13 degrees.
            positions, projections: "mean" or "sum". Equation 3 sums over ranks where equation 2 averages, and
            equation 5 sums over directions where the text says "averaging": its λ may belong to any of them.
            normalisation, clamp, weights: as vgg16.
    Source: Delbracio, Talebi, Milanfar 2020, arXiv:2012.09289: the second term of equation 5.
    """
    make = partial(
        Wasserstein,
        order=order,
        projection=projection,
        k=k,
        redraw=redraw,
        eps=eps,
        seed=seed,
        positions=positions,
        projections=projections,
    )
    return network_loss(network, taps, tap_weights, lambda tap: make(), normalisation, clamp, weights)
