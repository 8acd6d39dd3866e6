"""PieAPP: the error of patches as people would see it, averaged with the attention that they would give them."""

from collections.abc import Callable

import torch
from torch import Tensor

from veridical.core.colour import as_rgb
from veridical.core.image import check_pair, no_autocast
from veridical.core.options import check_whole

PATCH = 64
STRIDE = 27
AT_ONCE = 32

Judge = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Patches of prediction and target (P, 3, 64, 64), BGR in 0-255 -> error and weight (P,)."""


def pieapp(prediction: Tensor, target: Tensor, judge: Judge, *, stride: int = STRIDE) -> Tensor:
    """Perceptual error learned from people's choices between two distorted images. Lower is better.

    Shapes: (N, 1 or 3, H, W) x 2 in [0, 1], H and W >= 64 -> (N,), float32. A grey image is repeated.
    Range:  open on both sides; about 0 for identical images, though not exactly: that was learned too.
    Args:   judge: see `features.pieapp`. stride: px from patch to patch, 27 ("sparse") or 6 ("dense") in the authors'
            code. What is left over at the right and the bottom is not looked at, as there.
    Errors: ValueError when the shapes differ, or for other channels or a smaller image; BadOption.
    Source: Prashnani et al. 2018, arXiv:1806.02067. The channels go in as blue, green, red, as the authors' code reads
            them with OpenCV, and pyiqa does; piq has red first, which is another number. Few patches at a time: memory
            grows neither with the image nor with the batch.
    """
    check_whole("stride of pieapp", stride, low=1)
    check_pair(prediction, target, "pieapp", min_size=PATCH, channels=(1, 3))
    with no_autocast(prediction):
        return torch.stack([_pieapp(x, y, judge, stride) for x, y in zip(prediction, target, strict=True)])


def _pieapp(prediction: Tensor, target: Tensor, judge: Judge, stride: int) -> Tensor:
    rows, columns = (range(0, length - PATCH + 1, stride) for length in target.shape[-2:])
    places = [(row, column) for row in rows for column in columns]
    error, attention = (torch.zeros((), device=target.device) for _ in range(2))
    for start in range(0, len(places), AT_ONCE):
        some = places[start : start + AT_ONCE]
        errors, weights = judge(*(_patches(image, some) for image in (prediction, target)))
        error, attention = error + (errors * weights).sum(), attention + weights.sum()
    return error / attention


def _patches(image: Tensor, places: list[tuple[int, int]]) -> Tensor:
    """(C, H, W) in [0, 1] -> (P, 3, 64, 64), BGR in 0-255."""
    cut = torch.stack([image[:, row : row + PATCH, column : column + PATCH] for row, column in places])
    return as_rgb(cut.float()).flip(1) * 255
