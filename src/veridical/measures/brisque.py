"""BRISQUE: how far an image's contrasts are from those of natural photographs, as people have judged distorted ones."""

from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from veridical.core.image import check_image, no_autocast, where_float64_is
from veridical.core.resize import resize
from veridical.measures.scene_statistics import (
    asymmetric_mean,
    asymmetric_shape,
    gaussian_shape,
    grey_levels,
    moments,
    normalised_contrast,
    strips_of,
)

SCALES = 2
FEATURES = 18 * SCALES
LEAST_PX = 16
# In every public version the contrast of saturated parts is a rounding error, which counts as below or above 0. If it
# counts as neither, as it should, Kodak's photographs change by up to 2; so it is one, of a settled sign.
FLAT = -1e-13
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (-1, 1))  # rows, columns: along, down and the two diagonals

# The least and the greatest of each feature over the images that the regression was trained on: with these its inputs
# are -1 and 1. Per scale: shape and variance of the contrasts, then for each neighbour shape, mean, left and right
# variance of the products. They belong to the authors' MATLAB release and its model; their C++ release has others.
LEAST = (
    *(0.338, 0.017204),
    *(0.236, -0.123884, 0.000155, 0.001122, 0.244, -0.123586, 0.000152, 0.000975),
    *(0.249, -0.135687, 0.000174, 0.000913, 0.258, -0.143408, 0.000179, 0.000888),
    *(0.471, 0.012809),
    *(0.218, -0.094876, 0.000015, 0.001272, 0.222, -0.115772, 0.000016, 0.001374),
    *(0.227, -0.117188, 0.000030, 0.001122, 0.228, -0.122430, 0.000028, 0.001118),
)
GREATEST = (
    *(10.0, 0.806612),
    *(1.642, 0.202930, 0.712298, 0.470257, 1.641, 0.179083, 0.710456, 0.470984),
    *(1.555, 0.100858, 0.684173, 0.534174, 1.561, 0.100486, 0.685696, 0.536508),
    *(3.264, 0.703171),
    *(1.046, 0.187459, 0.442057, 0.408030, 1.042, 0.162604, 0.444362, 0.402430),
    *(0.996, 0.098323, 0.531903, 0.369589, 0.990, 0.098658, 0.530092, 0.370399),
)


def brisque(image: Tensor, regression: Mapping[str, Tensor]) -> Tensor:
    """How unnatural an image looks by the statistics of its contrasts; lower is better. No reference.

    Shapes: (N, 1 or 3, H, W) in [0, 1], H and W >= 16 -> (N,), float64. RGB is taken to BT.601 luma; both are rounded
            to 8 bits, as MATLAB's rgb2gray does.
    Range:  about 0 (natural) to 100 (distorted); a little below and above happens. NaN for an image without contrast.
    Args:   regression: the support vectors, as `features.libsvm.read_regression` gives them.
    Source: Mittal, Moorthy & Bovik 2012, doi:10.1109/TIP.2012.2214050, and its released MATLAB code.
    """
    check_image(image, "brisque", min_size=LEAST_PX, channels=(1, 3))
    image = where_float64_is(image)
    with no_autocast(image):
        scaled = scaled_features(brisque_features(image))
        vectors, coefficients, gamma, rho = (
            regression[name].to(scaled) for name in ("vectors", "coefficients", "gamma", "rho")
        )
        squares = (scaled[:, None] - vectors).square().sum(-1)  # (N, S)
        return (-gamma * squares).exp() @ coefficients - rho


def brisque_features(image: Tensor) -> Tensor:
    """The 36 statistics: (N, 1 or 3, H, W) in [0, 1] -> (N, 36), float64."""
    grey = grey_levels(image)
    features: list[Tensor] = []
    for scale in range(SCALES):
        if scale:
            grey = resize(grey.double(), Fraction(1, 2))
        contrast = torch.cat([normalised_contrast(grey, rows, flat=FLAT) for rows in strips_of(grey)], dim=2)
        features += gaussian_shape(_moments(contrast))
        for shift in NEIGHBOURS:
            shape, left, right = asymmetric_shape(_moments(contrast, shift))
            features += [shape, asymmetric_mean(shape, left, right), left.square(), right.square()]
    return torch.stack(features, dim=1)


def _moments(contrast: Tensor, shift: tuple[int, int] | None = None) -> Tensor:
    """The moments of the contrasts, or of their products with neighbours; beyond the border is the other side."""
    total = contrast.new_zeros(len(contrast), 6)
    for rows in strips_of(contrast):
        values = contrast[:, :, rows]
        if shift:
            others = torch.arange(rows.start - shift[0], rows.stop - shift[0], device=contrast.device)
            values = values * contrast[:, :, others % contrast.shape[-2]].roll(shift[1], -1)
        total += moments(values.flatten(1))
    return total


def scaled_features(features: Tensor) -> Tensor:
    """Each feature's place between its least and its greatest value, from -1 to 1."""
    least, greatest = features.new_tensor(LEAST), features.new_tensor(GREATEST)
    return 2 * (features - least) / (greatest - least) - 1
