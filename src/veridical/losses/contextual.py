"""Losses that let each feature of the target find its like anywhere in the prediction."""

from collections.abc import Sequence
from functools import partial

from veridical.core.options import check_number
from veridical.distances import Contextual
from veridical.features.networks import IMAGE
from veridical.losses.base import FeatureLoss
from veridical.losses.perceptual import network_loss

PATCH_PX = 5


def contextual(
    *,
    network: str = "vgg16",
    taps: Sequence[str] | str = "conv4_3",
    tap_weights: Sequence[float] | None = None,
    similarity: str = "dp",
    bandwidth: float = 0.5,
    max_positions: int = 4096,
    redraw: bool = False,
    seed: int = 0,
    normalisation: str = "imagenet",
    clamp: bool = False,
    weights: str | None = None,
) -> FeatureLoss:
    """Contextual loss: every feature of the target must have its like somewhere in the prediction.

    Formula: Σ_taps λ · (log CX(x, x) - log CX(x̂, x)), CX(x̂, x) = mean over j of max over i of CX_ij, i a position of
            x̂ and j one of x; CX_ij = softmax over j of -d_ij / (h · (min over j of d_ij + 1e-5)). dp: d is half of
            1 - cosine of the features less the target's mean of each channel; l2: their squared distance. The paper's
            loss is -log CX(x̂, x); the other term is a constant of the target, for 0 where images are identical.
    Range:  [-c, log n - c] a tap for n positions, c = -log CX(x, x): 0 for photographs with the defaults, so that the
            value is the paper's; up to log n for a flat image. A noisy photograph has about 1.5, a blurred one 2.6.
    Use:    beside a pixel loss, and where prediction and target are not quite aligned: "l1 + 0.01*contextual", as
            CTX-DP and, with similarity=l2, CTX-L2 in the Projected Distribution Loss paper.
            contextual(network=vgg19, taps=("relu3_2", "relu4_2")) is the first paper's.
    Weak:   blind to where things are: alone it shuffles and repeats what it finds. Memory grows with the positions, but
            time with their square, hence max_positions.
    Args:   network: vgg16, vgg19, alexnet or squeezenet1_1. taps: layer names; that of the Projected Distribution Loss
            paper, which says "conv4". tap_weights: one number per tap (1 each).
            similarity: dp or l2. bandwidth: h. max_positions: how many positions are compared at most, spread over
            the map, the same in both images. redraw: others at every step of training; otherwise one draw, of seed.
            normalisation, clamp, weights: as vgg16.
    Source: Mechrez, Talmi, Zelnik-Manor 2018, arXiv:1803.02077; mean subtraction, ½ and the 1e-5 from its released
            code, whose positions are 65² at most, and whose mean is over the whole batch where ours is per image.
    """
    make = partial(
        Contextual, similarity=similarity, bandwidth=bandwidth, max_positions=max_positions, redraw=redraw, seed=seed
    )
    return network_loss(network, taps, tap_weights, lambda tap: make(), normalisation, clamp, weights)


def cobi(
    *,
    network: str = "vgg16",
    taps: Sequence[str] | str = ("relu1_2", "relu2_2", "relu3_2"),
    tap_weights: Sequence[float] | None = (1.0, 1.0, 0.5),
    rgb: float = 0.0,
    spatial: float = 0.1,
    similarity: str = "dp",
    bandwidth: float = 0.5,
    max_positions: int = 4096,
    redraw: bool = False,
    seed: int = 0,
    normalisation: str = "imagenet",
    clamp: bool = False,
    weights: str | None = None,
) -> FeatureLoss:
    """Contextual bilateral loss: as contextual, and what is alike should also be near. For pairs that are misaligned.

    Formula: as contextual, with CX_ij = 0.9 · (that of the features) + 0.1 · (the same of the places (row / h,
            column / w) with squared distance), and 1e-3 in the place of 1e-5.
    Range:  as contextual, summed over the taps; c is about 0.09 a tap for photographs. A prediction can come out below
            0, down to about -0.02, where its features tell the target's apart better than the target's own do.
    Use:    pairs of two cameras or two exposures, which no registration brings together to the pixel; beside a pixel
            loss where they do agree.
    Weak:   as contextual, less free to move things. At the first tap of a 256 px image it looks at 4096 of 65,536
            positions: train on crops, or with redraw=true, so that all have their turn.
    Args:   network, taps, tap_weights: as contextual; the released code's taps are those of VGG19, each after its ReLU,
            with weights 1, 1, 0.5. rgb: weight of a further term on the pixels' 5x5 patches. spatial: the 0.1.
            similarity, bandwidth, max_positions, redraw, seed, normalisation, clamp, weights: as contextual.
    Source: Zhang, Chen, Ng, Koltun 2019, arXiv:1905.05169. The paper adds distances (its equation 3), the released code
            adds similarities: this is the code, but for its sampling, which loses the true place of a sampled position.
    """
    check_number("rgb of cobi", rgb, low=0)
    taps = (taps,) if isinstance(taps, str) else tuple(taps)
    if rgb:
        tap_weights = (*(tap_weights or (1.0,) * len(taps)), rgb)
        taps = (*taps, IMAGE)

    def make(tap: str) -> Contextual:
        return Contextual(
            similarity=similarity,
            spatial=spatial,
            bandwidth=bandwidth,
            eps=1e-3,
            max_positions=max_positions,
            redraw=redraw,
            seed=seed,
            patch_size=PATCH_PX if tap == IMAGE else 1,
        )

    return network_loss(network, taps, tap_weights, make, normalisation, clamp, weights)
