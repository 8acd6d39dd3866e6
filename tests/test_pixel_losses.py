"""The values of gradient, tv and focal-frequency, against NumPy and other libraries."""

import numpy as np
import pytest
import torch
from scipy import ndimage

import veridical
from veridical.core.errors import VeridicalError


@pytest.fixture(params=[(24, 32), (25, 31)], ids=["even", "odd"])
def images(request) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(2, 3, *request.param, generator=generator, dtype=torch.float64)
    return target + 0.1 * torch.randn(target.shape, generator=generator, dtype=torch.float64), target


# gradient


def test_gradient_is_the_mean_difference_of_the_slopes(images):
    error = (images[0] - images[1]).numpy()  # the slopes are linear
    expected = np.abs(np.diff(error, axis=3)).mean() + np.abs(np.diff(error, axis=2)).mean()
    assert veridical.loss("gradient")(*images).item() == pytest.approx(expected, rel=1e-12)


def test_gradient_by_sobel_is_that_of_scipy(images):
    planes = (images[0] - images[1]).flatten(0, 1).numpy()
    slopes = [[np.abs(ndimage.sobel(plane, axis)[1:-1, 1:-1] / 8).mean() for plane in planes] for axis in (0, 1)]
    expected = np.mean(slopes, axis=1).sum()
    assert veridical.loss("gradient(kernel=sobel)")(*images).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kernel", ["difference", "sobel"])
def test_a_ramp_has_the_slope_that_it_has(kernel):
    """0.01 per px along rows and 0.03 along columns, against nothing."""
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(9.0), indexing="ij")
    ramp = (0.01 * x + 0.03 * y).expand(1, 3, 8, 9)
    found = veridical.loss("gradient", kernel=kernel)(ramp, torch.zeros_like(ramp))
    assert found.item() == pytest.approx(0.04, rel=1e-4)


def test_gradient_does_not_see_a_constant(images):
    prediction, target = images
    loss = veridical.loss("gradient")
    assert loss(prediction + 0.3, target).item() == pytest.approx(loss(prediction, target).item(), rel=1e-12)


# tv


def _isotropic(image: np.ndarray, eps: float) -> float:
    rows, columns = np.diff(image, axis=3)[:, :, :-1], np.diff(image, axis=2)[..., :-1]
    return float((np.sqrt(rows**2 + columns**2 + eps**2) - eps).mean())


def test_tv_is_the_mean_size_of_the_slopes(images):
    ours, theirs = (
        np.abs(np.diff(i.numpy(), axis=3)).mean() + np.abs(np.diff(i.numpy(), axis=2)).mean() for i in images
    )
    assert veridical.loss("tv")(*images).item() == pytest.approx(ours - theirs, rel=1e-12)
    ours, theirs = (_isotropic(i.numpy(), 0.01) for i in images)
    assert veridical.loss("tv(isotropic=true, eps=0.01)")(*images).item() == pytest.approx(ours - theirs, rel=1e-9)


def test_tv_is_that_of_kornia(images):
    kornia = pytest.importorskip("kornia")
    for image in images:
        expected = kornia.losses.total_variation(image, reduction="mean").mean()
        found = veridical.loss("tv")(image, torch.zeros_like(image))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_noise_raises_tv_and_flatness_lowers_it():
    flat = torch.full((1, 3, 16, 16), 0.5)
    noisy = flat + 0.1 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    for spec in ("tv", "tv(isotropic=true)"):
        assert veridical.loss(spec)(noisy, flat) > 0
        assert veridical.loss(spec)(flat, noisy) < 0


def test_isotropic_tv_of_a_slope_does_not_depend_on_its_direction():
    """A ramp along a side, and one of the same slope along the diagonal."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 65, dtype=torch.float64)] * 2, indexing="ij")
    ratios = {}
    for spec in ("tv", "tv(isotropic=true, eps=1e-6)"):
        loss = veridical.loss(spec)
        slopes = [(0.3 * (a * x + b * y)).expand(1, 1, 65, 65) for a, b in ((1, 0), (2**-0.5, 2**-0.5))]
        straight, slanted = (loss(image, torch.zeros_like(image)).item() for image in slopes)
        ratios[spec] = slanted / straight
    assert ratios["tv"] == pytest.approx(2**0.5, rel=1e-6)
    assert ratios["tv(isotropic=true, eps=1e-6)"] == pytest.approx(1, rel=1e-3)


# focal-frequency


def _focal(
    prediction: np.ndarray, target: np.ndarray, alpha: float = 1.0, patches: int = 1, log: bool = False
) -> float:
    """Jiang et al. 2021, equations 5 to 9, patch by patch, image by image and channel by channel."""
    values = []
    rows, columns = prediction.shape[2] // patches, prediction.shape[3] // patches
    for image, other in zip(
        prediction.reshape(-1, *prediction.shape[2:]), target.reshape(-1, *target.shape[2:]), strict=True
    ):
        for i in range(patches):
            for j in range(patches):
                part = (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
                error = np.abs(np.fft.fft2(image[part], norm="ortho") - np.fft.fft2(other[part], norm="ortho"))
                weights = np.log(error**alpha + 1) if log else error**alpha
                values.append(np.mean(weights / weights.max() * error**2))
    return float(np.mean(values))


@pytest.mark.parametrize("alpha", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("log", [False, True])
def test_focal_frequency_is_the_papers(images, alpha, log):
    expected = _focal(*(i.numpy() for i in images), alpha=alpha, log=log)
    loss = veridical.loss("focal-frequency", alpha=alpha, log_matrix=log)
    assert loss(*images).item() == pytest.approx(expected, rel=1e-9)


def test_focal_frequency_of_patches_is_the_papers_where_they_come_out_even(images):
    prediction, target = (image[..., :24, :28] for image in images)
    expected = _focal(prediction.numpy(), target.numpy(), patches=4)
    assert veridical.loss("focal-frequency", patch_factor=4)(prediction, target).item() == pytest.approx(
        expected, rel=1e-9
    )


def test_focal_frequency_of_patches_sees_every_pixel():
    target = torch.zeros(1, 1, 23, 29)
    image = target.clone().requires_grad_()
    loss = veridical.loss("focal-frequency(alpha=0, patch_factor=3)")
    loss(image + 1, target).backward()
    assert (image.grad > 0).all()


def test_focal_frequency_without_focus_is_l2(images):
    """Parseval: the orthonormal transform keeps squares."""
    focal, plain = veridical.loss("focal-frequency(alpha=0)"), veridical.loss("l2")
    torch.testing.assert_close(focal(*images), plain(*images), rtol=1e-12, atol=0)
    found = []
    for loss in (focal, plain):
        image = images[0].clone().requires_grad_()
        loss(image, images[1]).backward()
        found.append(image.grad)
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-16)


def test_the_weights_of_focal_frequency_are_constants_to_its_gradient():
    """Two waves, one of half the amplitude: alpha 1 weighs it by a half, so its gradient is a quarter of the other's,
    where l2's would be a half; a gradient through the weights would be 1.5 times that."""
    x = torch.arange(32, dtype=torch.float64)
    strong, weak = (torch.cos(2 * torch.pi * k * x / 32).expand(1, 1, 32, 32) for k in (3, 5))
    image = (0.2 * strong + 0.1 * weak).requires_grad_()
    veridical.loss("focal-frequency")(image, torch.zeros_like(image)).backward()
    along = [(image.grad * wave).sum().item() for wave in (strong, weak)]
    assert along[1] / along[0] == pytest.approx(0.25, rel=1e-9)
    # d mean (w e²) / d e = 2 w e / n
    expected = (2 * 0.2 * strong / strong.numel() * strong).sum().item()
    assert along[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "spec",
    [
        "gradient(kernel=prewitt)", "tv(isotropic=1)", "tv(eps=0)", "focal-frequency(alpha=-1)",
        "focal-frequency(patch_factor=0)", "focal-frequency(patch_factor=1.5)", "focal-frequency(log_matrix=no)",
    ],
)  # fmt: skip
def test_an_impossible_option_is_refused(spec):
    with pytest.raises(VeridicalError):
        veridical.loss(spec)
