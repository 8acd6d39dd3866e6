"""NRQM, the measure of Ma et al. for super-resolved images: three groups of statistics, and forests that learned from
people's scores what they mean. And PI, the perceptual index, which is its mean with NIQE."""

import math
from collections.abc import Iterable, Mapping
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from veridical.core.filters import convolve, gaussian_window, slide
from veridical.core.image import check_image, no_autocast, where_float64_is
from veridical.core.patches import tiles
from veridical.core.resize import resize_to
from veridical.measures.niqe import niqe
from veridical.measures.scene_statistics import grey_levels, strips_of
from veridical.measures.steerable import high_residual, oriented_bands

LEAST_PX = 84  # a quarter of it still has 25 tiles of 5x5 px
FOREST_FEATURES = (18, 45, 75)
LEVELS = 3
ORIENTATIONS = 6
STEP_PX, BLOCK_PX = 3, 7
TILE_PX = 5
GUARD_PX = 16
CONTRAST = (0.03 * 255) ** 2
STEEPEST = 11.0  # the shape where none of the table fits
# Which of the 7x7 frequencies lie along the rows, and along the diagonal: the columns of each row.
_ALONG = ((0, range(1, 7)), (1, range(2, 7)), (2, range(4, 7)), (3, range(5, 7)))
_DIAGONAL = ((1, (1,)), (2, (2, 3)), (3, (2, 3, 4)), (4, range(3, 7)), (5, range(4, 7)), (6, range(4, 7)))


def nrqm(image: Tensor, model: Mapping[str, Tensor]) -> Tensor:
    """The quality that people would give a super-resolved image, by three forests on its statistics; higher is better.

    No reference. It was learned from 50 people's scores of 1620 images, of nine methods of before 2017.

    Shapes: (N, 1 or 3, H, W) in [0, 1], H and W >= 84 -> (N,), float64. RGB is taken to BT.601 luma; both are rounded
            to 8 bits, as MATLAB's rgb2gray does.
    Range:  about 0 to 10, the people's scale. NaN for a flat image.
    Args:   model: the forests and their weights, as `features.forest.read_forests` gives them.
    Source: Ma, Yang, Yang & Yang 2017, doi:10.1016/j.cviu.2016.12.009, and its released MATLAB code.
    """
    check_image(image, "nrqm", min_size=LEAST_PX, channels=(1, 3))
    image = where_float64_is(image)
    with no_autocast(image):
        groups = nrqm_features(image)
        # A forest is walked node by node, on a few dozen numbers for each image: that is work for the host.
        values = [_forest(group.cpu(), model, number) for number, group in enumerate(groups)]
        value = torch.stack([torch.ones_like(values[0]), *values], dim=1) @ model["linear"]
        return torch.where(groups[0].isnan().any(1), torch.nan, value.to(groups[0]))


def perceptual_index(image: Tensor, pristine: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> Tensor:
    """PI = ((10 - NRQM) + NIQE) / 2; lower is better. No reference.

    Shapes: (N, 1 or 3, H, W) in [0, 1], H and W >= 96 with two whole blocks, see `niqe` -> (N,), float64.
    Range:  about 0 to 10 and above. NaN where either of them is.
    Args:   pristine: see `niqe`. model: see `nrqm`.
    Source: Blau et al. 2018, arXiv:1809.07517 (the PIRM challenge), where it is measured on MATLAB's Y, 4 px cut away.
    """
    return ((10 - nrqm(image, model)) + niqe(image, pristine)) / 2


def nrqm_features(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The statistics of the block frequencies (N, 18), of the oriented bands (N, 45) and of the tiles (N, 75), float64.

    Args: image: (N, 1 or 3, H, W) in [0, 1]. NaN in the first for a flat image.
    """
    grey = grey_levels(image).double()
    levels = [grey / 255]
    taps = gaussian_window(3, 0.5)
    for _ in range(LEVELS - 1):
        levels.append(convolve(levels[-1], torch.outer(taps, taps), border="zero")[:, :, 1::2, 1::2])
    frequencies = torch.cat([frequency_features(level) for level in levels], dim=1)
    flat = grey.amax((1, 2, 3)) == grey.amin((1, 2, 3))
    frequencies = torch.where(flat[:, None], torch.nan, frequencies)
    return frequencies, band_features(grey), torch.cat([tile_features(level) for level in levels], dim=1)


# --- block frequencies


def frequency_features(grey: Tensor) -> Tensor:
    """Of the DCT of every 7x7 block, three pixels apart: shape, variation, and how the latter depends on orientation.

    Of each the mean over the tenth of the blocks with the least shape, or the greatest of the others, and over all.

    Shapes: (N, 1, H, W) in [0, 1] -> (N, 6)
    """
    height, width = grey.shape[-2:]
    margin = (BLOCK_PX - STEP_PX) // 2
    padded = F.pad(grey, (margin, margin + -width % STEP_PX, margin, margin + -height % STEP_PX))
    parts = []
    for rows in strips_of(grey[:, :, ::STEP_PX]):  # rows of blocks
        part = padded[:, :, rows.start * STEP_PX : rows.stop * STEP_PX + 2 * margin]
        parts.append(_of_blocks(part.unfold(2, BLOCK_PX, STEP_PX).unfold(3, BLOCK_PX, STEP_PX).flatten(1, 3)))
    shape, variation, orientation = torch.cat(parts, dim=-1).sort(dim=-1).values
    count = shape.shape[1]
    least, greatest = math.ceil(count * 0.1), int(count * 0.9) - 1
    features = [shape[:, :least], shape]
    features += [variation[:, greatest:], variation, orientation[:, greatest:], orientation]
    return torch.stack([values.mean(1) for values in features], dim=1)


def _of_blocks(blocks: Tensor) -> Tensor:
    """(N, P, 7, 7) -> shape, variation and orientation, (3, N, P)."""
    place = torch.arange(BLOCK_PX, dtype=blocks.dtype, device=blocks.device)
    cosines = (math.pi / BLOCK_PX * (place[:, None]) * (place + 0.5)).cos() * math.sqrt(2 / BLOCK_PX)
    cosines[0] = 1 / math.sqrt(BLOCK_PX)
    waves = (cosines @ blocks @ cosines.T).flatten(2)  # all but the mean:
    along, diagonal = (_places(rows) for rows in (_ALONG, _DIAGONAL))
    across = [BLOCK_PX * (k % BLOCK_PX) + k // BLOCK_PX for k in along]
    turns = [_variation(waves[..., places], 1e-8) for places in (along, diagonal, across)]
    return torch.stack([_shape(waves[..., 1:]), _variation(waves[..., 1:], 1e-7), torch.stack(turns, dim=-1).var(-1)])


def _places(rows: Iterable[tuple[int, Iterable[int]]]) -> list[int]:
    return [BLOCK_PX * row + column for row, columns in rows for column in columns]


def _variation(values: Tensor, eps: float) -> Tensor:
    """Deviation of the magnitudes over their mean: (..., M) -> (...)."""
    return values.abs().std(-1) / (values.abs().mean(-1) + eps)


def _shape(values: Tensor) -> Tensor:
    """The shape of the generalised Gaussian with these values' variance and mean magnitude: (..., M) -> (...).

    As the authors search for it: of a table in steps of 0.001 the last whose ratio is not below the values', else 11.
    """
    deviation = values - values.mean(-1, keepdim=True)
    ratio = values.var(-1) / (deviation.abs().mean(-1).square() + 1e-7)
    shapes = torch.arange(30, 10_001, dtype=values.dtype, device=values.device) / 1000
    inverse = 1 / shapes
    falling = (torch.lgamma(inverse) + torch.lgamma(3 * inverse) - 2 * torch.lgamma(2 * inverse)).exp()
    count = torch.searchsorted(-falling, -ratio, right=True)  # how many are not below
    inside = (count > 0) & (count < len(shapes))
    return torch.where(inside, shapes[(count - 1).clamp(min=0)], STEEPEST)


# --- oriented bands


def band_features(grey: Tensor) -> Tensor:
    """Of two octaves with six orientations each, divided by what is around them: the shape of each band and of both
    octaves of an orientation; how like the bands are to the finest detail, and the fine ones to each other.

    Shapes: (N, 1, H, W) in 0-255 -> (N, 45)
    """
    bands = [oriented_bands(grey, level=level, orientations=ORIENTATIONS, real=True) for level in (1, 2)]
    even = [_normalised(bands[0], bands[1], number) for number in range(ORIENTATIONS)]
    coarse = [_normalised(bands[1], None, number) for number in range(ORIENTATIONS)]
    features = [_shape(band.flatten(1)) for band in (*even, *coarse)]
    features += [_shape(torch.cat([a.flatten(1), b.flatten(1)], dim=1)) for a, b in zip(even, coarse, strict=True)]
    detail = high_residual(grey)[:, 0]
    for octave in bands:
        for band in octave.unbind(1):
            features.append(_likeness(resize_to(band, *detail.shape[-2:]), detail))
    features += [_likeness(even[i], even[k]) for i, k in combinations(range(ORIENTATIONS), 2)]
    return torch.stack(features, dim=1)


def _normalised(octave: Tensor, coarser: Tensor | None, number: int) -> Tensor:
    """One band over the size of its neighbourhood, without a border: (N, 6, h, w) -> (N, h', w').

    A neighbourhood is the 3x3 values, those of the other orientations, and that of the coarser octave. Its size is
    taken in units of its covariance over the image.
    """
    height, width = octave.shape[-2:]
    around = [octave[:, number, 1 + y : height - 1 + y, 1 + x : width - 1 + x] for y in (-1, 0, 1) for x in (-1, 0, 1)]
    # The authors' test for a coarser octave leaves out the last orientation.
    if coarser is not None and number < ORIENTATIONS - 1:
        twice = [2 * length for length in coarser.shape[-2:]]
        around.append(resize_to(coarser[:, number], *twice)[:, 1 : height - 1, 1 : width - 1])
    degrees = len(around)
    inner = octave[:, :, 1:-1, 1:-1]
    around += [inner[:, other] for other in range(ORIENTATIONS) if other != number]

    def part(rows: slice) -> Tensor:  # all of it would be fifteen copies of the image
        return torch.stack([band[:, rows] for band in around], dim=1).flatten(2)

    strips = list(strips_of(inner[:, :1]))
    covariance = inner.new_zeros(len(inner), len(around), len(around))
    for rows in strips:
        values = part(rows)
        covariance += values @ values.mT / inner[0, 0].numel()
    inverse = torch.linalg.pinv(covariance)
    sizes = []
    for rows in strips:
        values = part(rows)
        sizes.append(((inverse @ values) * values).sum(1) / degrees)
    size = torch.cat(sizes, dim=1).clamp(min=0).sqrt().unflatten(1, inner.shape[-2:])
    centred = inner[:, number] - inner[:, number].mean((1, 2), keepdim=True)
    normal = torch.where(size > 0, centred / size, 0.0)
    guard = GUARD_PX if coarser is not None else GUARD_PX // 2
    normal = normal[:, guard:-guard, guard:-guard]
    return normal - normal.mean((1, 2), keepdim=True)


def _likeness(first: Tensor, second: Tensor) -> Tensor:
    """SSIM's contrast and structure, for values of 255: (N, h, w) x 2 -> (N,)."""
    taps = gaussian_window(11, 1.5)
    total = first.new_zeros(len(first))
    for rows in strips_of(first[:, None, : 1 - len(taps)]):
        a, b = (image[:, rows.start : rows.stop + len(taps) - 1] for image in (first, second))
        mean_a, mean_b, square_a, square_b, product = (
            slide(slide(image, taps, -1), taps, -2) for image in (a, b, a.square(), b.square(), a * b)
        )
        above = 2 * (product - mean_a * mean_b) + CONTRAST
        below = square_a - mean_a.square() + square_b - mean_b.square() + CONTRAST
        total += (above / below).sum((1, 2))
    return total / ((first.shape[-2] - len(taps) + 1) * (first.shape[-1] - len(taps) + 1))


# --- tiles


def tile_features(grey: Tensor) -> Tensor:
    """The singular values of all tiles of 5x5 px, each a row of 25; below and right of the image is 0.

    Shapes: (N, 1, H, W) in [0, 1] -> (N, 25)
    """
    padded = F.pad(grey, (0, -grey.shape[-1] % TILE_PX, 0, -grey.shape[-2] % TILE_PX))
    return torch.linalg.svdvals(tiles(padded, TILE_PX).flatten(2))


# --- forests


def _forest(features: Tensor, model: Mapping[str, Tensor], number: int) -> Tensor:
    """The mean over a forest's trees of the value of the leaf that features (N, F) lead to: (N,)."""
    left, right, place = (model[f"{number}.{name}"].long() for name in ("left", "right", "feature"))
    threshold, value = (model[f"{number}.{name}"] for name in ("threshold", "value"))
    trees = torch.arange(len(left)).expand(len(features), -1)
    images = torch.arange(len(features))[:, None]
    node = torch.zeros_like(trees)
    while bool((left[trees, node] > 0).any()):
        goes_left = features[images, place[trees, node] - 1] <= threshold[trees, node]
        child = torch.where(goes_left, left[trees, node], right[trees, node])
        node = torch.where(child > 0, child - 1, node)
    return value[trees, node].mean(1)
