"""MDF: discriminators that were trained on one restoration task, used as the features of a loss."""

from collections.abc import Mapping
from typing import Any

from veridical.distances import L2, FeatureDistance
from veridical.features.mdf import RELEASED, MDFNetwork, check_task
from veridical.losses.base import FeatureLoss


def mdf(
    *,
    task: str = "deblur",
    weights: str | None = None,
    taps: str = "released",
    range: str | None = None,
    discriminators: int | None = None,
) -> FeatureLoss:
    """MDF: what discriminators see that were trained to notice one restoration task's errors, from one photograph.

    Formula: Σ_k Σ_l mean (φ_kl(x̂) - φ_kl(x))², φ_kl: layer l of the discriminator of scale k = 1 ... 8.
    Range:  [0, inf), in squared feature units.
    Use:    alone, without a pixel term, for the task that its discriminators were trained on; as the reconstruction
            term beside an adversarial one.
    Weak:   it judges the errors of its own task: other errors may pass. Of errors of one PSNR, the authors'
            super-resolution ones answer to contrast and brightness most and to noise least (docs/evidence), where the
            paper's figure 17 has blur first. Discriminators see 11 px, so it knows texture and edges, not content. Its
            values have no common scale between files: compare λ only within one file. In 500 steps on six tasks it had
            less PSNR than L1, in four a lower LPIPS; another task's discriminators were often as good (docs/mdf.md).
    Args:   task: deblur, defocus, denoise, super-resolve, jpeg or demosaic, which come with veridical (`veridical learn
            show jpeg` says from what they were made); in a recipe its own task, unless another one is named.
            released-sisr and released-jpeg are the authors'; they released none for denoising (that file is a copy of
            super-resolution's).
            weights: file of other discriminators, such as `veridical learn mdf` makes for a degradation of one's own.
            taps: "released" compares what the released code does: head, third body block, tail; "paper" the outputs of
            all four activations, as the paper says.
            range: what the discriminators are fed, "-1..1" or "0..1"; by default what the file declares, else -1..1, on
            which the authors' were trained: most of their BatchNorm statistics fit it better. Their examples feed 0..1.
            discriminators: how many, from the coarsest scale; by default all of the file, at most the paper's 8.
    Source: Mustafa et al. 2022, arXiv:2103.14616, equation 2, averaged over each map as the released code does.
    """
    features = MDFNetwork(task, weights=weights, taps=taps, range=range, discriminators=discriminators)
    return FeatureLoss(FeatureDistance(features, {tap: L2() for tap in features.taps}))


def mdf_needs(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The discriminators that mdf with these options has to find: the authors' own, unless a file is named."""
    task = options.get("task")
    if task is not None:
        check_task(task)
    return (f"mdf-{task}",) if task in RELEASED and not options.get("weights") else ()
