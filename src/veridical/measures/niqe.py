"""NIQE: how far the statistics of an image's contrasts are from those of sharp natural photographs. No opinions."""

from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from veridical.core.image import check_image, no_autocast, where_float64_is
from veridical.core.patches import tiles
from veridical.core.resize import resize
from veridical.measures.brisque import NEIGHBOURS
from veridical.measures.scene_statistics import (
    asymmetric_shape,
    grey_levels,
    moments,
    normalised_contrast,
    strips_of,
)

BLOCK_PX = 96
LEAST_PX = 2 * BLOCK_PX  # of a square image; two blocks side by side will do
FEATURES = 36
SHAPE_OF_NOTHING = 0.2  # the first of the table: what MATLAB's min finds among NaN


def niqe(image: Tensor, pristine: Mapping[str, Tensor]) -> Tensor:
    """Distance of the statistics of an image's blocks from those of sharp natural photographs; lower is better.

    Each whole block of 96x96 px has 18 features at full and 18 at half size. The value is the Mahalanobis distance of
    their mean from the model's, with the mean of both covariances. No reference, and no votes were used.

    Shapes: (N, 1 or 3, H, W) in [0, 1], H and W >= 96, with at least two whole blocks -> (N,), float64. RGB is taken to
            BT.601 luma; both are rounded to 8 bits, as MATLAB's rgb2gray does. A remainder right and below of the last
            whole block is left out.
    Range:  [0, inf); photographs have 2 to 5. Not comparable between images of very different size: the fewer blocks,
            the less is known of their covariance. NaN where fewer than two blocks have contrast.
    Args:   pristine: mu_pris_param (1, 36) and cov_pris_param (36, 36), the model of natural photographs.
    Errors: ValueError for images with fewer than two whole blocks, of which there is no covariance.
    Source: Mittal, Soundararajan & Bovik 2013, doi:10.1109/LSP.2012.2227726, and its released MATLAB code.
    """
    check_image(image, "niqe", min_size=BLOCK_PX, channels=(1, 3))
    rows, columns = (length // BLOCK_PX for length in image.shape[-2:])
    if rows * columns < 2:
        raise ValueError(
            f"niqe needs at least two whole blocks of {BLOCK_PX}x{BLOCK_PX} px, so {BLOCK_PX}x{2 * BLOCK_PX}, but got "
            f"{image.shape[-2]}x{image.shape[-1]}: of one block there is no covariance."
        )
    image = where_float64_is(image)
    with no_autocast(image):
        features = niqe_features(image)  # (N, blocks, 36)
        whole = ~features.isnan().any(-1, keepdim=True)
        count = whole.sum(1)  # (N, 1)
        mean = torch.where(whole, features, 0.0).sum(1) / count
        centred = torch.where(whole, features - mean[:, None], 0.0)
        covariance = centred.mT @ centred / (count - 1)[..., None]
        expected, spread = (pristine[name].to(features) for name in ("mu_pris_param", "cov_pris_param"))
        known = count[:, 0] >= 2
        covariance = torch.where(known[:, None, None], covariance, 0.0)
        # As MATLAB has it: the mean over each feature's own numbers, the covariance over blocks that have all of them.
        difference = expected.reshape(1, -1) - features.nanmean(1)
        squares = difference[:, None] @ torch.linalg.pinv((spread + covariance) / 2) @ difference[..., None]
        return torch.where(known, squares[:, 0, 0].sqrt(), torch.nan)


def niqe_features(image: Tensor) -> Tensor:
    """The 36 statistics of every block: (N, 1 or 3, H, W) in [0, 1] -> (N, blocks, 36), float64."""
    height, width = (length // BLOCK_PX * BLOCK_PX for length in image.shape[-2:])
    grey = grey_levels(image[:, :, :height, :width])
    half = resize(grey.double(), Fraction(1, 2))
    return torch.cat([_of_blocks(grey, BLOCK_PX), _of_blocks(half, BLOCK_PX // 2)], dim=-1)


def _of_blocks(grey: Tensor, size: int) -> Tensor:
    """(N, 1, H, W) -> (N, blocks, 18)."""
    strips = strips_of(grey, step=size)
    return torch.cat(
        [_statistics(tiles(normalised_contrast(grey, rows, border="replicate"), size)) for rows in strips], 1
    )


def _statistics(blocks: Tensor) -> Tensor:
    """(N, blocks, 1, size, size) -> (N, blocks, 18)."""
    each = blocks.flatten(0, 2)  # (N * blocks, size, size)
    shape, left, right = _fit(each)
    features = [shape, (left + right) / 2]
    for shift in NEIGHBOURS:
        shape, left, right = _fit(each * each.roll(shift, (-2, -1)))
        mean = (right - left) * (torch.lgamma(2 / shape) - torch.lgamma(1 / shape)).exp()
        features += [shape, mean, left, right]
    return torch.stack(features, dim=-1).unflatten(0, blocks.shape[:2])


def _fit(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape, left and right scale of the asymmetric generalised Gaussian: (B, size, size) -> (B,) x 3."""
    shape, left, right = asymmetric_shape(moments(values.flatten(1)))
    shape = torch.where(shape.isnan(), SHAPE_OF_NOTHING, shape)
    scale = ((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2).exp()
    return shape, left * scale, right * scale
