"""Measures and metrics against independent implementations."""

import math
import pickle

import numpy as np
import pytest
import torch
from pytorch_msssim import ms_ssim as peer_ms_ssim
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import veridical
from tests.shared import shared_data
from veridical.core.colour import luma_studio
from veridical.core.files import find_images, read_image
from veridical.core.filters import convolve, gaussian_window
from veridical.measures import ms_ssim, psnr, sharpness_q, ssim
from veridical.measures.ssim import PASS_PX, _similarity, halve


def photograph(name: str) -> torch.Tensor:
    return torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """A blurred and noisy photograph and the photograph, (2, 3, 200, 231)."""
    target = torch.cat([photograph("astronaut")[:, :, :200, :231], photograph("coffee")[:, :, 150:350, 100:331]])
    blurred = convolve(target, torch.full((5, 5), 0.04), border="reflect")
    noise = 0.02 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    return (blurred + noise).clamp(0, 1), target


def as_numpy(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).double().numpy()


def test_psnr_agrees_with_scikit_image(pair):
    expected = [peak_signal_noise_ratio(as_numpy(t), as_numpy(p), data_range=1) for p, t in zip(*pair, strict=True)]
    torch.testing.assert_close(psnr(*pair), torch.tensor(expected).float(), atol=1e-4, rtol=0)


def test_psnr_of_a_known_error():
    assert psnr(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.1)).item() == pytest.approx(20, abs=1e-5)


def test_psnr_of_identical_images_is_infinite():
    image = torch.rand(1, 3, 8, 8)
    assert psnr(image, image).item() == math.inf


def test_ssim_agrees_with_scikit_image(pair):
    """The same window: Gaussian, sigma 1.5, cut at 3.5 sigma, which is 11 px."""
    expected = [
        structural_similarity(
            as_numpy(p), as_numpy(t), data_range=1, channel_axis=2,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
        for p, t in zip(*pair, strict=True)
    ]  # fmt: skip
    torch.testing.assert_close(ssim(*pair), torch.tensor(expected).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("border", [slice(None), slice(None, -1)])
def test_ms_ssim_agrees_with_pytorch_msssim(pair, border):
    """At even and odd sizes; pytorch-msssim 1.0.0, whose window and weights are the same."""
    prediction, target = (image[:, :, border, border] for image in pair)
    expected = peer_ms_ssim(prediction, target, data_range=1, size_average=False)
    torch.testing.assert_close(ms_ssim(prediction, target), expected, atol=1e-4, rtol=0)


def test_soft_floor_changes_no_ordinary_ms_ssim(pair):
    torch.testing.assert_close(ms_ssim(*pair, negative="soft"), ms_ssim(*pair), atol=1e-6, rtol=0)


def plain_ssim(prediction: torch.Tensor, target: torch.Tensor, *, luminance: bool) -> torch.Tensor:
    """SSIM or its contrast term, (N, C), as papers write it: five maps in a two-dimensional window, and autograd."""
    window = gaussian_window(11, 1.5).to(prediction)
    kernel = torch.outer(window, window).expand(prediction.shape[1], 1, 11, 11)

    def local(image):
        return torch.nn.functional.conv2d(image, kernel, groups=image.shape[1])

    mean_p, mean_t = local(prediction), local(target)
    variances = local(prediction**2) - mean_p**2 + local(target**2) - mean_t**2
    covariance = local(prediction * target) - mean_p * mean_t
    contrast = (2 * covariance + 0.03**2) / (variances + 0.03**2)
    light = (2 * mean_p * mean_t + 0.01**2) / (mean_p**2 + mean_t**2 + 0.01**2)
    return (light * contrast if luminance else contrast).mean((2, 3))


@pytest.mark.parametrize("luminance", [True, False])
def test_ssim_and_its_hand_written_gradients_equal_the_plain_form(pair, luminance):
    """With several passes over the planes, of both images, in float64, with an upstream gradient per plane."""
    upstream = torch.rand(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for function in (_similarity, plain_ssim):
        images = [image.double().requires_grad_() for image in pair]
        window = (gaussian_window(11, 1.5),) if function is _similarity else ()
        values = function(*images, *window, luminance=luminance)
        values.backward(upstream)
        results.append([values, *(image.grad for image in images)])
    assert pair[0].numel() > 2 * PASS_PX
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-14)


def test_gradient_of_ssim_in_float32_is_as_exact_as_the_plain_form(pair):
    """In float32 and float64, by the greatest error; the maps of squares cancel in both forms."""
    gradients = []
    for precision, function in ((torch.float64, plain_ssim), (torch.float32, plain_ssim), (torch.float32, None)):
        prediction, target = (image.to(precision, copy=True) for image in pair)
        prediction.requires_grad_()
        values = function(prediction, target, luminance=True).mean(1) if function else ssim(prediction, target)
        values.sum().backward()
        gradients.append(prediction.grad.double())
    exact, plain, ours = gradients
    assert (ours - exact).abs().max() <= (plain - exact).abs().max()


@pytest.mark.parametrize(("height", "width"), [(12, 10), (13, 10), (11, 17)])
def test_halving_is_average_pooling(height, width):
    image = torch.rand(1, 2, height, width, dtype=torch.float64)
    expected = torch.nn.functional.avg_pool2d(image, 2, padding=(height % 2, width % 2))
    torch.testing.assert_close(halve(image), expected)


def test_ssim_stays_in_range_in_bfloat16():
    """Torchmetrics, piq and pytorch-msssim leave [-1, 1] here."""
    flat = torch.full((1, 1, 32, 32), 0.9).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ssim(flat, flat).item() == pytest.approx(1, abs=1e-6)


def numpy_sharpness_q(grey: np.ndarray) -> float:
    """Directly from the definition: np.gradient and np.linalg.svd patch by patch."""
    k = 0.001 ** (1 / 63)
    tau = math.sqrt((1 - k) / (1 + k))
    total, count = 0.0, 0
    for row in range(0, grey.shape[0] - 7, 8):
        for column in range(0, grey.shape[1] - 7, 8):
            vertical, horizontal = np.gradient(grey[row : row + 8, column : column + 8])
            s1, s2 = np.linalg.svd(np.stack([horizontal.ravel(), vertical.ravel()], axis=1), compute_uv=False)
            coherence = (s1 - s2) / (s1 + s2) if s1 + s2 > 0 else 0
            total += s1 * coherence if coherence > tau else 0
            count += 1
    return total / count


def test_sharpness_q_agrees_with_the_definition(pair):
    weights = np.array([0.299, 0.587, 0.114])
    expected = [numpy_sharpness_q(as_numpy(image) @ weights) for image in pair[0]]
    torch.testing.assert_close(sharpness_q(pair[0]), torch.tensor(expected).float(), atol=2e-6, rtol=1e-4)


def test_released_variant_of_sharpness_q_agrees_with_its_definition(pair):
    """Sobel / 8 with reflected borders, eigenvalues of GᵀG, tau = 0.22787; directly with SciPy and NumPy."""
    from scipy.ndimage import sobel

    grey = as_numpy(pair[0][0]) @ np.array([0.299, 0.587, 0.114])
    horizontal, vertical = (sobel(grey, axis=axis, mode="mirror") / 8 for axis in (1, 0))
    values = []
    for row in range(0, grey.shape[0] - 7, 8):
        for column in range(0, grey.shape[1] - 7, 8):
            part = np.s_[row : row + 8, column : column + 8]
            g = np.stack([horizontal[part].ravel(), vertical[part].ravel()], axis=1)
            s2, s1 = np.linalg.eigvalsh(g.T @ g)
            coherence = (s1 - s2) / (s1 + s2) if s1 + s2 > 0 else 0
            values.append(s1 * coherence if coherence > 0.22787 else 0)
    assert sharpness_q(pair[0][:1], variant="released").item() == pytest.approx(np.mean(values), rel=1e-4)


@pytest.mark.parametrize("variant", ["singular", "released"])
def test_gradient_of_sharpness_q_is_finite_where_patches_are_flat_or_isotropic(variant):
    checkerboard = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    stripes = (torch.arange(16) % 4 < 2).float().expand(16, 16)
    for image in (torch.full((16, 16), 0.5), checkerboard.float(), stripes, torch.eye(16)):
        image = image[None, None].clone().requires_grad_()
        sharpness_q(image, variant=variant).sum().backward()
        assert torch.isfinite(image.grad).all()


@pytest.mark.parametrize("variant", ["singular", "released"])
def test_gradient_of_sharpness_q_is_exact_on_smooth_ramps(variant):
    """Where the small singular value is nearly 0 a determinant cancels, and its gradient explodes in float32."""
    axis = torch.arange(16, dtype=torch.float64)
    ramp = 0.01 * axis + 0.006 * axis[:, None]
    for noise in (1e-6, 1e-5, 1e-4, 1e-3):
        image = ramp + noise * torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        image = image[None, None].float()
        gradients = []
        for precision in (torch.float32, torch.float64):
            leaf = image.to(precision, copy=True).detach().requires_grad_()
            sharpness_q(leaf, variant=variant).sum().backward()
            gradients.append(leaf.grad.double())
        # At a noise of 1e-6, rounding to float32 is itself a fifteenth of the noise.
        torch.testing.assert_close(*gradients, rtol=0, atol=0.2 * gradients[1].abs().max().item())


def test_sharpness_q_of_kodak_is_what_was_measured_before():
    """FACTS: 0.115 sharp and 0.066 after a 5x5 box blur, mean over the 24 photographs."""
    sharp, blurred = [], []
    for path in find_images(shared_data("test/kodak24")):
        image = read_image(path).pixels[None]
        sharp.append(sharpness_q(image).item())
        blurred.append(sharpness_q(convolve(image, torch.full((5, 5), 0.04))).item())
    assert np.mean(sharp) == pytest.approx(0.115, abs=0.0015)
    assert np.mean(blurred) == pytest.approx(0.066, abs=0.0015)


def test_y_channel_and_border_are_applied_as_papers_do(pair):
    prediction, target = pair
    cut = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    expected = psnr(luma_studio(prediction)[cut], luma_studio(target)[cut])
    assert torch.equal(veridical.metric("psnr(channel=y, border=4)")(prediction, target), expected)
    assert veridical.metric("psnr", channel="y", border=4).name == "psnr(channel=y, border=4)"


def test_metrics_state_what_they_are(network_file, regression_file, pristine_file, forest_file):
    options = {
        "lpips": {"weights": network_file("alexnet")},
        "pieapp": {"weights": network_file("pieapp")},
        "brisque": {"weights": regression_file},
        "niqe": {"weights": pristine_file},
        "nrqm": {"weights": forest_file},
        "pi": {"niqe_weights": pristine_file, "nrqm_weights": forest_file},
    }
    lower = ("gmsd", "lpips", "dists", "pieapp", "brisque", "niqe", "pi")
    for name, entry in veridical.METRICS.items():
        metric = veridical.metric(name, **{key: str(path) for key, path in options.get(name, {}).items()})
        image = torch.rand(3, 3, metric.min_size, metric.min_size)
        values = metric(image, image)
        assert values.shape == (3,)
        assert values.dtype == torch.float32
        assert not values.requires_grad
        assert entry.summary
        assert metric.higher_is_better == (name not in lower)


def test_better_images_score_better(pair, network_file):
    prediction, target = pair
    middle = (prediction + target) / 2
    for name, entry in veridical.METRICS.items():
        if not entry.reference or name == "pieapp":  # whose weights are random here
            continue
        options = {"weights": str(network_file("alexnet"))} if name == "lpips" else {}
        metric = veridical.metric("cw-ssim(levels=5)" if name == "cw-ssim" else name, **options)
        better, worse = metric(middle, target), metric(prediction, target)
        assert ((better > worse) if entry.higher_is_better else (better < worse)).all(), name


def test_a_metric_that_cannot_be_made_is_an_error_that_helps():
    with pytest.raises(veridical.VeridicalError, match="Did you mean 'psnr'"):
        veridical.metric("psrn")
    with pytest.raises(veridical.VeridicalError, match="Did you mean 'border'"):
        veridical.metric("psnr", boarder=4)
    with pytest.raises(veridical.VeridicalError, match="channel of psnr must be one of"):
        veridical.metric("psnr(channel=Cb)")
    with pytest.raises(ValueError, match="compares with a target"):
        veridical.metric("psnr")(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="at least 161x161"):
        veridical.metric("ms-ssim")(torch.rand(1, 3, 160, 200), torch.rand(1, 3, 160, 200))


def test_metrics_can_be_pickled(pair):
    for name in ("psnr", "ssim", "ms-ssim", "sharpness-q"):
        metric = veridical.metric(name)
        assert torch.equal(pickle.loads(pickle.dumps(metric))(*pair), metric(*pair))


def test_a_metric_refuses_a_target_of_another_kind(pair):
    with pytest.raises(TypeError, match="floating-point"):
        veridical.metric("psnr")(pair[0], (pair[1] * 255).byte())


@pytest.mark.parametrize("spec", ["psnr(border=2.7)", "psnr(border=-1)", "ms-ssim(scales=0)", "sharpness-q(variant=x)"])
def test_an_impossible_option_is_refused_when_the_metric_is_made(spec):
    with pytest.raises(veridical.VeridicalError):
        veridical.metric(spec)


def test_no_reference_metric_needs_no_target(pair):
    assert torch.equal(veridical.metric("sharpness-q")(pair[0]), sharpness_q(pair[0]))
