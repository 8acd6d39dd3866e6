"""Style: second-order statistics of features."""

from collections.abc import Sequence

from veridical.distances import Gram
from veridical.losses.base import FeatureLoss
from veridical.losses.perceptual import VGG16_TAPS, network_loss


def style(
    *,
    network: str = "vgg16",
    taps: Sequence[str] | str = VGG16_TAPS,
    tap_weights: Sequence[float] | None = None,
    normalisation: str = "imagenet",
    clamp: bool = False,
    weights: str | None = None,
) -> FeatureLoss:
    """Style loss: squared difference of the features' Gram matrices, which say what occurs together, not where.

    Formula: Σ_taps λ · Σ_cd (G_cd(x̂) - G_cd(x))², G_cd = Σ over positions of φ_c φ_d / (C h w), of C channels, h x w.
    Range:  [0, inf), in feature units to the fourth. About 2 for a noisy or blurred photograph, 0.05 for one shifted
            by a pixel, where vgg16 has 8 and 3.
    Use:    beside a pixel loss and a perceptual loss, for texture of the right kind.
    Weak:   nothing holds content in its place: alone it makes textures. It grows with the fourth power of contrast, so
            that λ depends on the photographs.
    Args:   network: vgg16, vgg19, alexnet or squeezenet1_1. taps: layer names; those of Johnson et al. tap_weights: one
            number per tap (1 each). normalisation, clamp, weights: as vgg16.
    Source: Johnson et al. 2016, arXiv:1603.08155. Gatys, Ecker, Bethge 2016, whose Gram matrix is not divided,
            divide the square by 4 C² (h w)²: a quarter of this at each tap; their taps are relu1_1 ... relu5_1 of
            VGG19, each with λ = 1/5. Code that takes the mean over the matrix has this / C².
    """
    return network_loss(network, taps, tap_weights, lambda tap: Gram(), normalisation, clamp, weights)
