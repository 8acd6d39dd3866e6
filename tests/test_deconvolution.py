"""Restorers without training: against plain NumPy, against known answers, and on real photographs."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner, Result

from tests.photographs import photograph, write_photographs
from tests.shared import shared_data
from veridical.benchmark.deconvolution import aligned
from veridical.cli import app
from veridical.core.colour import luma
from veridical.core.errors import BadOption, DataError, UnknownName
from veridical.core.files import read_image
from veridical.deconvolution import (
    BORDERS,
    METHODS,
    Bilateral,
    DnCNNDenoiser,
    KernelBlur,
    RedFixedPoint,
    method,
    noise_sigma,
)
from veridical.deconvolution.blur import observe
from veridical.degradations import BoxBlur, CameraShake, degradation
from veridical.measures import psnr

BLACK_BOX = ("landweber", "richardson-lucy", "levenberg-marquardt")
NEEDS_KERNEL = tuple(name for name in METHODS if name not in BLACK_BOX)
FEW = {name: {} if name == "wiener" else {"iterations": 3} for name in METHODS}
# How many iterations each is given for the plain blurs below; the slow ones need no more to be told from doing nothing.
ENOUGH = {"landweber": 100, "richardson-lucy": 60, "levenberg-marquardt": 10, "red-fixed-point": 20}
ENOUGH |= {"red-steepest-descent": 60}


def scene(channels: int = 1, height: int = 60, width: int = 72) -> Tensor:
    """Waves with edges, (C, H, W) in [0.05, 0.95], never black."""
    image = torch.from_numpy(photograph(3, height, width)).permute(2, 0, 1)[:channels].float()
    return 0.05 + 0.9 * image / 255


def lopsided(height: int = 5, width: int = 7) -> Tensor:
    """A kernel without any symmetry, whose transform has no zeros: most of the light stays near its middle."""
    kernel = 0.1 * torch.rand(height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel[(height - 1) // 2, (width - 1) // 2] += 2
    kernel[0, 0] += 0.8
    return kernel / kernel.sum()


def circular_blur(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The definition, by a loop over the kernel: out[i] = sum_m k[m] x[i - (m - middle)]."""
    total = np.zeros_like(image)
    for down in range(kernel.shape[0]):
        for right in range(kernel.shape[1]):
            shift = (down - (kernel.shape[0] - 1) // 2, right - (kernel.shape[1] - 1) // 2)
            total += kernel[down, right] * np.roll(image, shift, (-2, -1))
    return total


def restored(name: str, image: Tensor, blur, **options) -> Tensor:
    return method(name, **({"iterations": ENOUGH[name]} if name in ENOUGH else {}), **options)(image, blur)


# The blur


@pytest.mark.parametrize("shape", [(5, 7), (4, 6), (1, 3)])
def test_a_circular_blur_is_the_convolution_by_definition(shape):
    image, kernel = scene(), lopsided(*shape)
    expected = circular_blur(image.double().numpy(), kernel.numpy())
    np.testing.assert_allclose(KernelBlur(kernel)(image.double()).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("border", [border for border in BORDERS if border != "valid"])
@pytest.mark.parametrize("spec", ["box-blur(size=5)", "box-blur(size=4)", "camera-shake(size=9)"])
def test_a_kernel_blurs_as_the_degradation_that_it_comes_from(border, spec):
    blur = degradation(spec, border=border)
    kernel = blur.kernel(torch.Generator().manual_seed(1))
    expected = blur(scene(3), torch.Generator().manual_seed(1))
    torch.testing.assert_close(KernelBlur(kernel, border=border)(scene(3)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("border", [border for border in BORDERS if border != "valid"])
def test_the_transpose_of_a_blur_is_its_adjoint(border):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 20, 17, generator=generator, dtype=torch.float64)
    blur = KernelBlur(lopsided(), border=border)
    assert (blur(a) * b).sum().item() == pytest.approx((a * blur.transpose(b)).sum().item(), rel=1e-10)


def test_a_kernel_is_divided_by_its_sum():
    image, kernel = scene(), lopsided()
    torch.testing.assert_close(KernelBlur(255 * kernel)(image), KernelBlur(kernel)(image))


# Noise


def test_the_noise_of_a_slope_is_found():
    slope = torch.linspace(0, 1, 200).expand(1, 1, 200, 200)
    noise = 0.02 * torch.randn(slope.shape, generator=torch.Generator().manual_seed(0))
    assert noise_sigma(slope).item() == pytest.approx(0, abs=1e-6)
    assert noise_sigma(slope + noise).item() == pytest.approx(0.02, rel=0.03)


def test_the_noise_is_immerkaers_formula():
    image = np.random.default_rng(0).random((9, 12))
    total = sum(
        abs(
            4 * image[i, j]
            - 2 * (image[i - 1, j] + image[i + 1, j] + image[i, j - 1] + image[i, j + 1])
            + (image[i - 1, j - 1] + image[i - 1, j + 1] + image[i + 1, j - 1] + image[i + 1, j + 1])
        )
        for i in range(1, 8)
        for j in range(1, 11)
    )
    expected = np.sqrt(np.pi / 2) / (6 * 7 * 10) * total
    assert noise_sigma(torch.from_numpy(image)[None, None]).item() == pytest.approx(expected)


# One step of each method, beside NumPy


def blurred_scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An observed image, its kernel, and the kernel's transform, float64."""
    kernel = lopsided().numpy()
    observed = circular_blur(scene()[0].double().numpy(), kernel)
    spread = np.zeros_like(observed)
    spread[: kernel.shape[0], : kernel.shape[1]] = kernel
    return observed, kernel, np.fft.fft2(np.roll(spread, (-2, -3), (0, 1)))


def one_step(name: str, observed: np.ndarray, kernel: np.ndarray, **options) -> np.ndarray:
    made = method(name, iterations=1, border="circular", stop="iterations", **options)
    return made(torch.from_numpy(observed)[None], torch.from_numpy(kernel))[0].double().numpy()


def turn(image: np.ndarray) -> np.ndarray:
    return image[::-1, ::-1]


def test_wiener_is_the_filter_of_the_book():
    y, kernel, transfer = blurred_scene()
    expected = np.fft.ifft2(np.conj(transfer) * np.fft.fft2(y) / (np.abs(transfer) ** 2 + 0.01)).real
    found = method("wiener", nsr=0.01, border="circular")(torch.from_numpy(y)[None], torch.from_numpy(kernel))
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)


def test_the_ratio_of_wiener_is_a_hundred_times_the_noise_to_the_signal():
    y, kernel, transfer = blurred_scene()
    ratio = 100 * (2 / 255) ** 2 / y.var()
    expected = np.fft.ifft2(np.conj(transfer) * np.fft.fft2(y) / (np.abs(transfer) ** 2 + ratio)).real
    found = method("wiener", sigma_8bit=2, border="circular")(torch.from_numpy(y)[None], torch.from_numpy(kernel))
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)


def test_a_step_of_landweber_is_the_formula_and_the_true_transpose():
    y, kernel, transfer = blurred_scene()
    error = turn(y - circular_blur(y, kernel))
    expected = y + turn(circular_blur(y + error, kernel) - circular_blur(y - error, kernel)) / 2
    found = one_step("landweber", y, kernel)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    spectrum = np.conj(transfer) * np.fft.fft2(y - circular_blur(y, kernel))
    np.testing.assert_allclose(found, y + np.fft.ifft2(spectrum).real, atol=1e-6)


def test_a_step_of_richardson_lucy_is_the_formula():
    y, kernel, _ = blurred_scene()
    first = y / np.abs(turn(circular_blur(turn(circular_blur(y, kernel) / np.abs(y)), kernel)))
    expected = first * turn(circular_blur(turn(y / np.abs(circular_blur(first, kernel))), kernel))
    np.testing.assert_allclose(one_step("richardson-lucy", y, kernel), expected, atol=1e-5)


def test_a_step_of_levenberg_marquardt_is_the_formula():
    y, kernel, _ = blurred_scene()
    read_off = np.fft.fft2(circular_blur(y, kernel)) / (np.fft.fft2(y) + 1e-7)
    damping = 100 * (1 / 255) ** 2 / y.var()
    above = np.conj(read_off) * np.fft.fft2(y - circular_blur(y, kernel))
    expected = y + np.fft.ifft2(above / (np.abs(read_off) ** 2 + damping)).real
    np.testing.assert_allclose(one_step("levenberg-marquardt", y, kernel, sigma_8bit=1), expected, atol=1e-6)


def halfway(image: Tensor) -> Tensor:
    """A denoiser that is easily written down: half of the way to the mean."""
    return (image + image.mean()) / 2


def test_a_step_of_red_by_fixed_point_is_the_formula():
    y, kernel, transfer = blurred_scene()
    y255, variance = 255 * y, 3.0**2
    above = np.conj(transfer) * np.fft.fft2(y255) / variance + 0.05 * np.fft.fft2((y255 + y255.mean()) / 2)
    expected = np.fft.ifft2(above / (np.abs(transfer) ** 2 / variance + 0.05)).real.clip(0, 255) / 255
    found = one_step("red-fixed-point", y, kernel, denoiser=halfway, weight=0.05, sigma_8bit=3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_step_of_red_by_steepest_descent_is_the_formula():
    y, kernel, transfer = blurred_scene()
    y255, variance = 255 * y, 3.0**2
    back = np.fft.ifft2(np.conj(transfer) * np.fft.fft2(circular_blur(y255, kernel) - y255)).real
    slope = back / variance + 0.05 * (y255 - (y255 + y255.mean()) / 2)
    expected = (y255 - 2 / (1 / variance + 0.05) * slope).clip(0, 255) / 255
    found = one_step("red-steepest-descent", y, kernel, denoiser=halfway, weight=0.05, sigma_8bit=3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


# What they find


@pytest.mark.parametrize("name", ["wiener", *BLACK_BOX])
def test_a_known_blur_without_noise_is_undone(name):
    """Circular and invertible: the truth can be had, and a wrong flip would displace it."""
    sharp, kernel = scene(3).double(), lopsided()
    options = {"nsr": 0.0} if name == "wiener" else {"iterations": 250, "stop": "iterations"}
    found = method(name, border="circular", **options)(KernelBlur(kernel)(sharp), kernel)
    torch.testing.assert_close(found, sharp.float(), atol=5e-3, rtol=0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("border", BORDERS)
def test_every_border_brings_the_scene_nearer_and_does_not_displace_it(name, border):
    """What was observed is the middle of a larger scene, blurred by a lopsided kernel."""
    larger, kernel = scene(1, 90, 100), lopsided()
    observed = KernelBlur(kernel)(larger)[:, 12:-12, 12:-12]
    truth = larger[:, 12:-12, 12:-12]
    found = restored(name, observed, kernel, border=border)
    inside = (..., slice(10, -10), slice(10, -10))
    before, after = (psnr(image[inside][None], truth[inside][None]).item() for image in (observed, found))
    assert after > before + (1.5 if name.startswith("red") else 4)


@pytest.mark.parametrize("name", ["landweber", "richardson-lucy", "red-fixed-point", "red-steepest-descent"])
def test_an_unknown_outside_is_better_taken_for_unknown_than_for_circular(name):
    larger, kernel = scene(1, 90, 100), degradation("camera-shake(size=15)").kernel(torch.Generator().manual_seed(2))
    observed = KernelBlur(kernel)(larger)[:, 15:-15, 15:-15]
    truth = larger[None, :, 15:-15, 15:-15]
    valid, circular = (
        psnr(restored(name, observed, kernel, border=border, sigma_8bit=1)[None], truth).item()
        for border in ("valid", "circular")
    )
    assert valid > circular + 1


@pytest.mark.parametrize("name", BLACK_BOX)
def test_where_nothing_was_observed_the_true_scene_is_a_fixed_point(name):
    """Of the larger scene only its middle was observed; what is laid around that must not pull the estimate."""
    kernel, made = lopsided(), method(name)
    grid = observe(scene(1, 60, 72), kernel, border="valid", extend=False)
    larger = scene(1, *grid.image.shape[-2:])
    blurred = grid.blur(larger)
    observation = observe(grid.cut(blurred), kernel, border="valid", extend=False)
    assert not torch.allclose(observation.image, blurred, atol=0.05)
    filled = observation.filled(blurred)
    torch.testing.assert_close(filled, blurred)
    torch.testing.assert_close(made.updates(observation, 0.01)(larger, blurred, filled), larger, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_channels_are_restored_by_themselves(name):
    made, image, kernel = method(name, **FEW[name]), scene(3), lopsided()
    together = made(image, kernel)
    assert together.dtype == torch.float32
    for number in range(3):
        assert torch.equal(together[number : number + 1], made(image[number : number + 1], kernel))


@pytest.mark.parametrize("name", BLACK_BOX)
def test_a_black_box_is_as_good_as_its_kernel(name):
    blur = BoxBlur(size=3)
    image = blur(scene(2))
    made = method(name, iterations=3, border="reflect", stop="iterations", sigma_8bit=1)
    torch.testing.assert_close(made(image[:1], blur), made(image[:1], blur.kernel()), atol=2e-5, rtol=0)
    assert made(image, blur).shape == image.shape


@pytest.mark.parametrize("name", NEEDS_KERNEL)
def test_a_method_that_needs_the_kernel_says_so(name):
    with pytest.raises(DataError, match=r"needs the kernel of the blur.*landweber, richardson-lucy and levenberg"):
        method(name)(scene(), BoxBlur(size=3))


def test_a_fixed_point_of_red_is_one():
    """At the end, Fᵀ(F(x) - y) / sigma² + lambda (x - f(x)) = 0: the slope of what is minimised."""
    kernel = lopsided()
    observed = KernelBlur(kernel)(scene())
    observed = observed + 0.01 * torch.randn(observed.shape, generator=torch.Generator().manual_seed(0))
    denoise = Bilateral(sigma_8bit=30)
    made = RedFixedPoint(border="circular", denoiser=denoise, sigma_8bit=2.5, weight=0.1, iterations=1000)

    def slope(x: Tensor) -> float:
        blur = KernelBlur(kernel)
        return (blur.transpose(blur(x) - 255 * observed) / 2.5**2 + 0.1 * (x - denoise(x))).abs().max().item()

    assert slope(255 * made(observed, kernel)) < 1e-3 * slope(255 * observed)


# When to stop


@pytest.mark.parametrize("name", BLACK_BOX)
def test_an_iteration_stops_when_the_residual_is_noise(name):
    sharp, kernel = scene(1, 120, 120), lopsided()
    noise = torch.randn(sharp.shape, generator=torch.Generator().manual_seed(0))
    observed = KernelBlur(kernel)(sharp) + 3 / 255 * noise
    result = method(name, sigma_8bit=3, border="circular").run(observed, kernel)
    (residuals,) = result.residuals
    assert result.iterations == (len(residuals),)
    assert 1 <= len(residuals) < 100
    assert all(residual > 3 / 255 for residual in residuals)
    left = KernelBlur(kernel)(result.image) - observed
    assert left.square().mean().sqrt().item() <= 3 / 255 + 1e-6


def test_an_iteration_stops_when_little_changes_and_at_the_latest_when_told():
    image, kernel = KernelBlur(lopsided())(scene()), lopsided()
    made = {"stop": "iterations", "border": "circular"}
    few = method("landweber", tolerance=1e-3, **made).run(image, kernel).iterations[0]
    more = method("landweber", tolerance=1e-5, **made).run(image, kernel).iterations[0]
    assert 1 < few < more < 250
    last, before, earlier = (
        method("landweber", iterations=few - back, **made)(image, kernel).double() for back in range(3)
    )
    assert (last - before).norm() <= 1e-3 * before.norm()
    assert (before - earlier).norm() > 1e-3 * earlier.norm()
    assert method("landweber", iterations=7, **made).run(image, kernel).iterations == (7,)


@pytest.mark.parametrize("name", METHODS)
def test_progress_is_reported_to_the_end(name):
    seen = []
    kernel = lopsided()
    made = method(name) if name == "wiener" else method(name, iterations=3, stop="iterations")
    made.run(scene(2), kernel, progress=lambda *step: seen.append(step))
    passes = 10 if name == "wiener" else 3
    assert seen == [(done, 2 * passes) for done in range(1, 2 * passes + 1)]


# Denoisers


def test_the_bilateral_filter_is_opencvs():
    cv2 = pytest.importorskip("cv2")
    image = 255 * scene()
    image += 5 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    expected = cv2.bilateralFilter(image[0].numpy(), 5, 20.0, 1.5, borderType=cv2.BORDER_REFLECT_101)
    found = Bilateral(sigma_8bit=20, sigma_px=1.5, size=5)(image)[0]
    # OpenCV reads its weights from a table of 4096 steps.
    np.testing.assert_allclose(found.numpy(), expected, atol=0.02)


def test_dncnn_takes_away_a_share_of_the_noise():
    weights = shared_data("weights/dncnn_gray_25.safetensors")
    clean = 255 * scene()
    noisy = clean + 25 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    whole = DnCNNDenoiser(weights=str(weights), sigma_8bit=25)(noisy)
    fifth = DnCNNDenoiser(weights=str(weights), sigma_8bit=5)(noisy)
    assert (whole - clean).std() < 0.4 * (noisy - clean).std()
    torch.testing.assert_close(fifth, noisy + (whole - noisy) / 5)


def test_red_takes_dncnn_by_its_name():
    weights = shared_data("weights/dncnn_gray_25.safetensors")
    made = method(f"red-fixed-point(denoiser='dncnn(weights={weights})', iterations=2)")
    assert torch.isfinite(made(scene(1, 32, 32), lopsided())).all()


def test_weights_of_another_network_are_refused():
    colour = shared_data("weights/dncnn_color_25.safetensors")
    with pytest.raises(DataError, match="images of 3 channels"):
        DnCNNDenoiser(weights=str(colour))
    with pytest.raises(DataError, match="cannot be read as the weights of a DnCNN"):
        DnCNNDenoiser(weights=str(colour.parent / "dists.safetensors"))


# Mistakes


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("winer", UnknownName, "Did you mean 'wiener'"),
        ("landweber(iteration=3)", UnknownName, "Did you mean 'iterations'"),
        ("landweber(iterations=0)", BadOption, "iterations of landweber must be a whole number of at least 1"),
        ("landweber(border=mirror)", BadOption, "border of landweber must be one of"),
        ("landweber(stop=never)", BadOption, "stop of landweber must be one of"),
        ("wiener(nsr=-1)", BadOption, "nsr of wiener"),
        ("richardson-lucy(floor=0)", BadOption, "floor of richardson-lucy"),
        ("red-fixed-point(denoiser=bilatral)", UnknownName, "Did you mean 'bilateral'"),
        ("red-fixed-point(denoiser=dncnn)", DataError, "needs the file of its weights"),
        ("red-fixed-point(denoiser=3)", BadOption, "must be a spec such as"),
        ("red-fixed-point(weight=0)", BadOption, "weight of red-fixed-point"),
    ],
)
def test_a_mistake_in_a_spec_is_named(spec, kind, words):
    with pytest.raises(kind, match=re.escape(words)):
        method(spec)


@pytest.mark.parametrize(
    ("image", "kernel", "words"),
    [
        (torch.zeros(1, 1, 9, 9), torch.ones(3, 3), r"expects one floating-point image \(C, H, W\)"),
        (torch.zeros(1, 9, 9, dtype=torch.uint8), torch.ones(3, 3), "Divide 8-bit images by 255"),
        (torch.zeros(1, 9, 9), torch.ones(1, 3, 3), r"a kernel is a floating-point tensor \(h, w\)"),
        (torch.zeros(1, 9, 9), torch.zeros(3, 3), "this one sums to 0"),
        (torch.zeros(1, 9, 9), torch.ones(11, 3), "is larger than the image"),
    ],
)
def test_what_cannot_be_restored_is_refused(image, kernel, words):
    with pytest.raises(DataError, match=words):
        method("wiener")(image, kernel)


@pytest.mark.parametrize("name", METHODS)
def test_a_black_image_stays_black(name):
    found = method(name, **FEW[name])(torch.zeros(1, 24, 24), lopsided())
    assert found.abs().max() < 1e-3


def test_the_label_of_a_method_makes_it_again():
    made = method("red-fixed-point(denoiser='bilateral(sigma_8bit=10)', iterations=5)")
    assert method(made.label) == made
    assert method("wiener").label == "wiener"


# Real photographs


def test_a_box_blur_of_a_photograph_is_much_undone():
    """Kodak, on luma, as in the paper on sharpness Q as a loss; a part of the picture, for speed."""
    file = shared_data("test/kodak24/kodim19.webp")
    sharp = luma(read_image(file).pixels[None])[0][:, 200:456, 200:456]
    blur = BoxBlur(size=5)
    blurred = blur(sharp)
    before = psnr(blurred[None], sharp[None]).item()
    for name, gain in {"wiener": 4.5, "landweber": 4, "richardson-lucy": 4, "levenberg-marquardt": 5}.items():
        after = psnr(restored(name, blurred, blur.kernel())[None], sharp[None]).item()
        assert after > before + gain, name


@pytest.mark.parametrize("name", METHODS)
def test_a_real_photograph_of_a_shaking_camera_is_restored(name):
    """Levin et al. 2009: the kernels are those of a correlation, and say nothing of where the scene was."""
    folder = shared_data("pairs/levin")
    kernel = torch.from_numpy(np.load(shared_data("kernels/levin/kernel04.npy"))).flip(0, 1)
    blurred, sharp = (read_image(folder / side / "im01_ker04.png", channels=None).pixels for side in ("blur", "sharp"))
    before, after = (
        psnr(*(one[None] for one in aligned(image, sharp, reach=4, border=15))).item()
        for image in (blurred, restored(name, blurred, kernel))
    )
    assert after > before + 6


# The commands


def veridical(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_methods_lists_them_and_shows_one():
    listed = veridical("methods").output
    assert all(name in listed for name in METHODS)
    shown = veridical("methods", "landweber").output
    assert "x += flip((F(x + e) - F(x - e)) / 2)" in shown
    assert "iterations = 250" in shown


def test_deconvolve_restores_files_each_by_its_kernel(tmp_path):
    kernels = {"kernel01": lopsided(), "kernel02": lopsided(4, 3)}
    (tmp_path / "kernels").mkdir()
    for name, kernel in kernels.items():
        np.save(tmp_path / "kernels" / f"{name}.npy", kernel.numpy().astype(np.float32))
    sharp = scene(3)
    (tmp_path / "in").mkdir()
    for number, kernel in enumerate(kernels.values(), start=1):
        blurred = (KernelBlur(kernel)(sharp).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        alpha = np.full((*blurred.shape[:2], 1), 77, np.uint8)
        Image.fromarray(np.concatenate([blurred, alpha], axis=2)).save(tmp_path / "in" / f"im_ker0{number}.png")
    out = tmp_path / "out"
    done = veridical(
        "deconvolve",
        tmp_path / "in",
        "--kernels",
        tmp_path / "kernels",
        "--method",
        "wiener(border=circular)",
        "-o",
        out,
    )
    assert done.exit_code == 0, done.output
    assert "restored 2 photographs" in done.output
    for number in (1, 2):
        before, after = (read_image(folder / f"im_ker0{number}.png") for folder in (tmp_path / "in", out))
        assert (after.alpha * 255).round().unique().tolist() == [77]
        gain = psnr(after.pixels[None], sharp[None]) - psnr(before.pixels[None], sharp[None])
        assert gain.item() > 5
    again = veridical("deconvolve", tmp_path / "in", "--kernels", tmp_path / "kernels", "-o", out)
    assert again.exit_code == 2
    assert "exist already" in again.output


def test_deconvolve_turns_kernels_of_correlations_and_takes_blurs_by_name(tmp_path):
    kernel = lopsided()
    np.save(tmp_path / "kernel.npy", kernel.flip(0, 1).numpy())
    blurred = (KernelBlur(kernel)(scene()).clamp(0, 1) * 255).round().byte()[0].numpy()
    Image.fromarray(blurred).save(tmp_path / "a.png")
    command = ("deconvolve", tmp_path / "a.png", "--method", "wiener(border=circular, nsr=0.001)")
    values = {}
    for name, options in {
        "right": ("--kernel", tmp_path / "kernel.npy", "--flip-kernel"),
        "wrong": ("--kernel", tmp_path / "kernel.npy"),
        "box": ("--blur", "box-blur(size=3)"),
    }.items():
        done = veridical(*command, *options, "-o", tmp_path / name)
        assert done.exit_code == 0, done.output
        values[name] = psnr(read_image(tmp_path / name / "a.png", channels=1).pixels[None], scene()[None]).item()
    assert values["right"] > values["wrong"] + 5
    assert values["right"] > values["box"] + 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "one of --kernel FILE, --kernels FOLDER and --blur NAME"),
        (("--blur", "camera-shake"), "is drawn anew for every image"),
        (("--blur", "box-blur", "--method", "winer"), "Did you mean 'wiener'"),
    ],
)
def test_deconvolve_names_a_mistake(tmp_path, options, words):
    write_photographs(tmp_path / "in", 1)
    done = veridical("deconvolve", tmp_path / "in", *options, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert words in " ".join(done.output.split())


def test_deconvolve_reports_what_it_cannot_restore_and_goes_on(tmp_path):
    write_photographs(tmp_path / "in", 1)
    Image.fromarray(photograph(0, 4, 4)).save(tmp_path / "in" / "tiny.png")
    done = veridical("deconvolve", tmp_path / "in", "--blur", "box-blur(size=7)", "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert "tiny.png: the kernel of (7, 7) is larger than the image" in " ".join(done.output.split())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["photo0.png"]


def test_bench_deconvolution_measures_before_and_after(tmp_path):
    write_photographs(tmp_path / "in", 2)
    table = tmp_path / "table.md"
    done = veridical(
        "bench", "deconvolution", tmp_path / "in", "--blur", "box-blur(size=3)", "--luma", "--methods",
        "wiener,levenberg-marquardt(border=reflect)", "--align", 1, "--border", 2, "--markdown", table,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = [line.strip("| \n").split(" | ") for line in table.read_text().splitlines()]
    assert rows[0] == ["method", "psnr", "ssim", "iterations", "CPU s/megapixel"]
    values = {row[0].strip("`"): float(row[1]) for row in rows[2:]}
    assert values["wiener"] > values["(blurred)"] + 3
    assert values["levenberg-marquardt(border=reflect)"] > values["(blurred)"] + 1


def test_a_result_is_aligned_to_the_truth_by_whole_pixels():
    truth = scene()
    shifted, inner = aligned(truth.roll((2, -1), (1, 2)), truth, reach=3, border=6)
    assert torch.equal(shifted, inner)
    assert inner.shape == (1, truth.shape[1] - 12, truth.shape[2] - 12)


def test_camera_shake_is_restored_by_the_kernel_that_it_gives():
    """The convention that both rooms share: what `Blur.kernel` gives is what a method takes."""
    shake, generator = CameraShake(size=9, border="circular"), torch.Generator()
    kernel = shake.kernel(generator.manual_seed(3))
    blurred = shake(scene(), generator.manual_seed(3))
    found = method("wiener", nsr=1e-6, border="circular")(blurred, kernel)
    assert psnr(found[None], scene()[None]).item() > psnr(blurred[None], scene()[None]).item() + 15
