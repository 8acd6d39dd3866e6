"""Numbers of each degradation, against an independent source or a property that fixes them."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from tests.shared import shared_data
from tests.test_degradations import photograph, seeded
from veridical.degradations import BoxBlur, CameraShake, DiscBlur, GaussianBlur, degradation

ndimage = pytest.importorskip("scipy.ndimage")

SCIPY_BORDERS = {"reflect": "mirror", "replicate": "nearest", "circular": "wrap", "zero": "constant"}


@pytest.mark.parametrize("border", SCIPY_BORDERS)
@pytest.mark.parametrize("size", [4, 5])
def test_box_blur_agrees_with_scipy(border, size):
    image = photograph()
    expected = [ndimage.uniform_filter(c, size, mode=SCIPY_BORDERS[border]) for c in image.double().numpy()]
    out = degradation("box-blur", size=size, border=border)(image)
    torch.testing.assert_close(out.double(), torch.from_numpy(np.stack(expected)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("border", SCIPY_BORDERS)
def test_gaussian_blur_agrees_with_scipy(border):
    image = photograph()
    expected = [ndimage.gaussian_filter(c, 1.7, mode=SCIPY_BORDERS[border]) for c in image.double().numpy()]
    out = degradation("gaussian-blur", sigma_px=1.7, border=border)(image)
    torch.testing.assert_close(out.double(), torch.from_numpy(np.stack(expected)), atol=1e-6, rtol=0)


def test_a_gaussian_of_no_width_changes_nothing():
    assert torch.equal(degradation("gaussian-blur(sigma_px=0)")(photograph()), photograph())


@pytest.mark.parametrize("radius_px", [0.3, 0.5, 1, 2.5, 7.2])
def test_disc_covers_its_pixels_in_the_right_proportion(radius_px):
    kernel = DiscBlur(radius_px=radius_px).kernel()
    assert kernel.sum().item() == pytest.approx(1, abs=1e-12)
    radius = max(radius_px, 0.5)
    middle = kernel.shape[0] // 2
    if radius >= 1:
        # A pixel that lies wholly inside weighs 1 / area; 2 % for the 16x16 points that measure the rim.
        assert 1 / kernel[middle, middle].item() == pytest.approx(math.pi * radius**2, rel=0.02)
    for turned in (kernel.flip(0), kernel.flip(1), kernel.T):
        assert torch.equal(turned, kernel)
    # The second moment of a disc is radius² / 4 along each axis, and the width of a pixel adds 1 / 12.
    offset = torch.arange(len(kernel), dtype=torch.float64) - middle
    moment = (kernel.sum(1) * offset**2).sum().item()
    if radius >= 2:
        assert moment == pytest.approx(radius**2 / 4 + 1 / 12, abs=0.06)


def test_a_disc_within_one_pixel_changes_nothing():
    assert torch.equal(degradation("disc-blur(radius_px=0.4)")(photograph()), photograph())


@pytest.mark.parametrize("blur", [BoxBlur(size=4), GaussianBlur(sigma_px=1.2), DiscBlur(), CameraShake(size=9)])
def test_a_blurred_point_is_the_kernel_itself(blur):
    # A convolution, not a correlation: the kernel is not turned over. That is what deconvolution counts on.
    point = torch.zeros(1, 41, 41)
    point[0, 20, 20] = 1
    kernel = blur.kernel(seeded(2))
    height, width = kernel.shape
    top, left = 20 - (height - 1) // 2, 20 - (width - 1) // 2
    seen = blur(point, seeded(2))[0, top : top + height, left : left + width]
    torch.testing.assert_close(seen.double(), kernel, atol=1e-7, rtol=0)


@pytest.mark.parametrize("size", [3, 9, 31])
@pytest.mark.parametrize("intensity", [0, 0.5, 4])
def test_shake_kernels_sum_to_one_and_are_centred(size, intensity):
    offset = torch.arange(size, dtype=torch.float64) - size // 2
    generator = seeded(size)
    for _ in range(10):
        kernel = CameraShake(size=size, intensity=intensity).kernel(generator)
        assert kernel.shape == (size, size)
        assert kernel.min() >= 0
        assert kernel.sum().item() == pytest.approx(1, abs=1e-12)
        assert (kernel.sum(1) * offset).sum().item() == pytest.approx(0, abs=1e-9)
        assert (kernel.sum(0) * offset).sum().item() == pytest.approx(0, abs=1e-9)


def test_a_still_camera_changes_nothing():
    torch.testing.assert_close(degradation("camera-shake(intensity=0)")(photograph(), seeded(0)), photograph())


def test_shake_is_never_cut_by_the_edge_of_its_kernel():
    # At this intensity every path is shrunk to fit: it reaches the outermost pixels, and not beyond.
    shake, generator = CameraShake(size=15, intensity=8), seeded(1)
    for _ in range(20):
        assert shake.path(generator).abs().max().item() == pytest.approx(7)


def test_shake_has_the_spread_and_the_smoothness_of_its_covariance():
    # Over many paths, E[(x(t) - x(t'))²] = 2 s² (1 - k(t - t')): the covariance, whatever the centring.
    shake, generator = CameraShake(size=801, intensity=0.1, smoothness=0.3), seeded(0)
    paths = torch.stack([shake.path(generator) for _ in range(2000)])
    sigma_px = 0.1 * 801 / 8
    length = paths.shape[1]
    for lag in (0.02, 0.1, 0.3, 0.8):
        # The path ends one substep short of t = 1.
        steps = round(lag * length)
        squared = (paths[:, steps:] - paths[:, :-steps]).square().mean().item()
        r = math.sqrt(5) * lag / 0.3
        expected = 2 * sigma_px**2 * (1 - (1 + r + r * r / 3) * math.exp(-r))
        assert squared == pytest.approx(expected, rel=0.05)


def test_shake_spreads_like_measured_hand_shake():
    # Root mean square radius of the eight kernels that Levin et al. measured: 2.5 to 9.4 px, median 4.7.
    def radius_px(kernel):
        y, x = (torch.arange(side, dtype=torch.float64) for side in kernel.shape)
        y, x = y - (kernel.sum(1) * y).sum(), x - (kernel.sum(0) * x).sum()
        return ((kernel.sum(1) * y**2).sum() + (kernel.sum(0) * x**2).sum()).sqrt().item()

    files = sorted(shared_data("kernels/levin").glob("*.npy"))
    measured = np.median([radius_px(torch.from_numpy(np.load(file)).double()) for file in files])
    generator = seeded(0)
    ours = np.median([radius_px(CameraShake().kernel(generator)) for _ in range(200)])
    assert 0.75 < ours / measured < 1.25


def test_noise_has_the_standard_deviation_it_says_and_is_not_clipped():
    out = degradation("gaussian-noise(sigma_8bit=25)")(torch.ones(3, 500, 500), seeded(0))
    assert (out - 1).std().item() * 255 == pytest.approx(25, rel=0.003)
    assert out.max() > 1.2
    channels = (out - 1).flatten(1)
    assert torch.corrcoef(channels).fill_diagonal_(0).abs().max() < 0.02


def test_a_range_of_noise_is_drawn_uniformly_per_image():
    step, generator = degradation("gaussian-noise(sigma_8bit=(0, 15))"), seeded(0)
    sigmas = torch.stack([step(torch.zeros(1, 40, 40), generator).std() * 255 for _ in range(300)])
    assert sigmas.min() < 1
    assert sigmas.max() > 14
    assert sigmas.mean().item() == pytest.approx(7.5, abs=0.8)


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:2:2", "4:4:4"])
def test_jpeg_is_what_pillow_writes(subsampling):
    image = photograph()
    picture = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=35, subsampling=subsampling)
    expected = np.asarray(Image.open(file)).transpose(2, 0, 1)
    out = degradation("jpeg", quality=35, subsampling=subsampling)(image)
    assert np.array_equal((out * 255).round().byte().numpy(), expected)


def test_jpeg_clamps_keeps_grey_grey_and_worsens_with_lower_quality():
    grey = photograph().mean(0, keepdim=True)
    assert degradation("jpeg")(grey * 6 - 3).aminmax() == (0, 1)
    errors = [(degradation("jpeg", quality=q)(grey) - grey).abs().mean() for q in (95, 50, 10)]
    assert errors == sorted(errors)
    assert degradation("jpeg", quality=(5, 95))(grey, seeded(0)).shape == grey.shape


def imresize(image: np.ndarray, factor: float) -> np.ndarray:
    """MATLAB's imresize along the rows of a 2-D array, pixel by pixel and tap by tap."""

    def cubic(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    height = image.shape[0]
    widened = min(1.0, factor)
    out = np.zeros((math.ceil(height * factor), image.shape[1]))
    for i in range(1, len(out) + 1):
        u = i / factor + 0.5 * (1 - 1 / factor)  # 1-based, as MATLAB counts
        taps = math.ceil(4 / widened) + 2
        left = math.floor(u - 2 / widened)
        weights = [widened * cubic(widened * (u - j)) for j in range(left, left + taps)]
        for j, weight in zip(range(left, left + taps), weights, strict=True):
            mirrored = [*range(height), *reversed(range(height))][(j - 1) % (2 * height)]
            out[i - 1] += weight / sum(weights) * image[mirrored]
    return out


@pytest.mark.parametrize("shape", [(24, 32), (25, 31), (3, 2), (1, 1)])
@pytest.mark.parametrize(
    ("spec", "factor"),
    [
        ("bicubic-downscale(scale=2)", 1 / 2),
        ("bicubic-downscale(scale=3)", 1 / 3),
        ("bicubic-downscale", 1 / 4),
        ("bicubic-upscale(scale=3)", 3),
        ("bicubic-upscale", 4),
    ],
)
def test_bicubic_agrees_with_imresize_written_out(shape, spec, factor):
    image = torch.rand(1, *shape, generator=seeded(1))
    expected = imresize(imresize(image[0].double().numpy(), factor).T, factor).T
    np.testing.assert_allclose(degradation(spec)(image)[0].numpy(), expected, atol=2e-6)


def test_bicubic_downscale_agrees_with_pillow_away_from_the_borders():
    # Pillow's bicubic has the same widened kernel, but drops the taps beyond the border where we mirror.
    image = torch.rand(1, 64, 64, generator=seeded(1))
    expected = np.asarray(Image.fromarray(image[0].numpy()).resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(degradation("bicubic-downscale")(image)[0, 2:-2, 2:-2], expected[2:-2, 2:-2], atol=2e-6)


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "grbg", "gbrg"])
def test_mosaic_keeps_one_colour_per_pixel_in_the_named_order(pattern):
    image = photograph(6, 7) + 0.1  # no true zeros
    out = degradation("bayer-mosaic", pattern=pattern)(image)
    for y in range(6):
        for x in range(7):
            kept = "rgb".index(pattern[2 * (y % 2) + x % 2])
            assert out[kept, y, x] == image[kept, y, x]
            assert out[:, y, x].count_nonzero() == 1


def test_mosaic_noise_touches_only_the_samples():
    step = degradation("bayer-mosaic(noise_sigma_8bit=10)")
    out = step(torch.full((3, 100, 100), 0.5), seeded(0))
    sampled = out != 0
    assert torch.equal(sampled.sum(0), torch.ones(100, 100, dtype=torch.long))
    assert (out[sampled] - 0.5).std().item() * 255 == pytest.approx(10, rel=0.03)
