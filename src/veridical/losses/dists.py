"""DISTS as a loss."""

from veridical.distances import dists_distance
from veridical.losses.base import FeatureLoss


def dists(*, clamp: bool = False, weights: str | None = None) -> FeatureLoss:
    """DISTS: learned distance of texture and structure; forgives a texture that is not the same, but of its kind.

    Formula: Σ_kc α_kc (1 - S1_kc) + β_kc (1 - S2_kc) over taps k (the image, relu1_2 ... relu5_3 of a VGG16 with L2
            pooling) and channels c; S1 = (2 m m' + 1e-6) / (m² + m'² + 1e-6) of the means over the image, S2 the same
            of covariance and variances; α and β learned, Σ α + β = 1.
    Range:  [0, 1.13): the α sum to 0.876, the β to 0.124, and 1 - S2 may reach 2.
    Use:    when grain and texture should look right without being the same pixel by pixel; beside a pixel loss. As a
            metric it takes resampled grass for grass, where LPIPS does not.
    Weak:   it compares means and covariances over the whole image: what is where, it sees by the covariance alone, and
            on large crops a local fault weighs little.
    Args:   clamp: clip inputs to [0, 1] first. weights: file to read VGG16 from.
    Source: Ding, Ma, Wang, Simoncelli 2020, arXiv:2004.07728, with the weights of its package DISTS-pytorch 0.1.
    """
    return FeatureLoss(dists_distance(clamp=clamp, weights=weights))
