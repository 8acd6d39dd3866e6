"""The perception-distortion plane: which metrics span it, what they are, and how sure each loss's place is.

Source: Blau and Michaeli, "The Perception-Distortion Tradeoff", CVPR 2018 (arXiv:1711.06077): no restorer can be the
best in both the mean distance to the truth (distortion) and the distance between the distributions of restored and of
natural images (perception). The second needs many images and is rarely measured; they, too, put a score without
reference in its place.
"""

import numpy as np

from veridical.comparison.statistics import Column, Interval, mean_interval

# Trained to say what people see: not on the axis of distortion. In the order in which they are preferred on the other.
_NATURAL = ("niqe", "pi", "brisque", "nrqm")
_DISTANCES = ("lpips", "dists", "pieapp")
MOST_CHOICES = 4  # of metrics on one axis, so that the page stays small


def axes(columns: tuple[Column, ...]) -> tuple[list[Column], list[Column]]:
    """The metrics for the horizontal axis (distortion) and for the vertical (perception), the best choice first.

    Where all metrics are of one kind they share both axes; both lists are empty with fewer than two metrics.
    """
    if len(columns) < 2:
        return [], []
    ranks = {base: rank for rank, base in enumerate((*_NATURAL, *_DISTANCES))}
    looks = [c for c in columns if c.base in ranks or not c.reference]
    looks.sort(key=lambda c: ranks.get(c.base, len(ranks)))
    distortion = sorted((c for c in columns if c not in looks), key=lambda c: c.base != "psnr")
    if not looks:  # the metric that is furthest from PSNR in kind
        looks = sorted(distortion[1:], key=lambda c: (c.base != "ms-ssim", c.base != "ssim"))
        distortion = distortion[:1]
    elif not distortion:
        distortion, looks = looks[1:], looks[:1]
    return distortion[:MOST_CHOICES], looks[:MOST_CHOICES]


def meaning(column: Column) -> str:
    """What the vertical axis is, said honestly."""
    if column.base in _NATURAL:
        return (
            f"{column.label} judges each restored image alone, by how natural it looks. The perception of Blau and "
            "Michaeli is a distance between the distributions of restored and of natural images; the mean of a score "
            "without reference stands in for it."
        )
    if column.base in _DISTANCES:
        return (
            f"{column.label} is a perceptual distance to the truth, image by image. It is no distance between "
            "distributions, as the perception of Blau and Michaeli is: strictly, both axes are distortions. Add niqe "
            "or brisque to the metrics for an axis without the truth."
        )
    if not column.reference:
        return f"{column.label} looks at the image alone and rewards sharpness, which is not all of perception."
    return (
        "No perceptual metric was measured: both axes are distortions. Add lpips, niqe or brisque to the metrics for "
        "the plane of perception and distortion."
    )


def within_image_intervals(values: np.ndarray) -> list[Interval | None]:
    """The mean of each loss with a 95 % interval that leaves out what makes an image hard, or a seed bad, for all.

    Losses are compared on the same images, so how images differ says nothing about which loss is better. From each
    value the mean over the losses of the same image and seed is taken, the interval is computed of what is left, and it
    is widened by sqrt(L / (L - 1)), since the mean that was taken holds a part of the loss itself. Two of them then
    read like those of independent samples: means 1.4 half widths apart differ at 5 % (for two losses exactly; not
    corrected).

    Shapes: values (L, S, I), S training seeds -> L intervals; all None with one loss or one image.
    Source: Morey, "Confidence intervals from normalized data", Tutorials in Quantitative Methods for Psychology 4
            (2008) 61-64, correcting Cousineau (2005); with several seeds of `statistics.mean_interval`.
    """
    losses, _, images = values.shape
    if losses < 2 or images < 2:
        return [None] * losses
    left = values - values.mean(axis=0) + values.mean()
    widened = values.mean(axis=(1, 2), keepdims=True)
    widened = widened + np.sqrt(losses / (losses - 1)) * (left - widened)
    return [mean_interval(each) for each in widened]
