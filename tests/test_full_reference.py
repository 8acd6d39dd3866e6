"""The measures with a reference beyond PSNR and SSIM: against their definitions written out, and other libraries."""

import ast
import importlib
import math
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import ndimage, signal

import veridical
from tests.test_measures import photograph
from veridical.benchmark.trunks import trunks
from veridical.core.colour import luma
from veridical.core.errors import BadOption, WeightsMissing
from veridical.measures import cw_ssim, fsim, gmsd, steerable, vif
from veridical.measures.vif import BAND, LOW, LOWER, _kernel
from veridical.metrics import Metric

# ---- the steerable pyramid ----


def peers_pyramid(monkeypatch: pytest.MonkeyPatch) -> type:
    """pyiqa's port of matlabPyrTools' buildSCFpyr, loaded by itself: the package as a whole asks for torchvision."""
    found = find_spec("pyiqa")
    if found is None:
        pytest.skip("needs pyiqa (pip install --no-deps pyiqa)")
    package = types.ModuleType("pyiqa_matlab_utils")
    package.__path__ = [str(Path(found.origin).parent / "matlab_utils")]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    return importlib.import_module(f"{package.__name__}.scfpyr_util").SCFpyr_PyTorch


@pytest.mark.parametrize(("height", "width"), [(64, 64), (67, 90), (81, 65)])
@pytest.mark.parametrize("orientations", [4, 5, 6])
def test_the_pyramid_is_that_of_matlabs_toolbox(
    height: int, width: int, orientations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toolbox looks its cosines up in a table; hence the tolerance."""
    image = torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    high, *levels, low = peers_pyramid(monkeypatch)(height=4, nbands=orientations, device=image.device).build(image)
    assert (steerable.high_residual(image)[:, 0] - high).abs().max() < 1e-5
    assert (steerable.low_residual(image, levels=4)[:, 0] - low).abs().max() < 1e-6 * low.abs().max()
    for level, bands in enumerate(levels, 1):
        expected = torch.view_as_complex(torch.stack(bands, dim=1).contiguous())
        actual = steerable.oriented_bands(image, level=level, orientations=orientations)
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("height", "width", "levels", "orientations"), [(64, 64, 4, 6), (33, 47, 3, 2), (70, 40, 2, 5)]
)
def test_the_pyramid_loses_nothing(height: int, width: int, levels: int, orientations: int) -> None:
    """A tight frame: the real parts hold the image's energy, each grid in its own units."""
    image = torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parts = [
        steerable.high_residual(image),
        *(steerable.oriented_bands(image, level=k, orientations=orientations).real for k in range(1, levels + 1)),
        steerable.low_residual(image, levels=levels),
    ]
    energy = sum(p.square().sum((1, 2, 3)) * p.shape[-2] * p.shape[-1] / (height * width) for p in parts)
    torch.testing.assert_close(energy, image.square().sum((1, 2, 3)), rtol=1e-12, atol=0)


def test_a_band_holds_its_own_waves() -> None:
    """Waves of about 8 px, the middle of level 2: across, down and on both diagonals."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    for best, wave in enumerate((8 * x, 6 * (x + y), 8 * y, 6 * (y - x))):
        image = (2 * torch.pi * wave / 64).cos()[None, None]
        by_level = [steerable.oriented_bands(image, level=k, orientations=4)[0].abs() for k in (1, 2, 3, 4)]
        strength = torch.stack([band.square().mean((1, 2)) / 16**k for k, band in enumerate(by_level)])
        assert divmod(int(strength.argmax()), 4) == (1, best)


def test_the_bands_are_analytic() -> None:
    """No band has negative frequencies along its normal: the amplitude of a moving wave stays what it is."""
    x = torch.arange(64.0).expand(64, 64)
    first, second = (
        steerable.oriented_bands((2 * torch.pi * (x + shift) / 8).cos()[None, None], level=2, orientations=6)
        for shift in (0.0, 1.7)
    )
    torch.testing.assert_close(first[:, 0].abs(), second[:, 0].abs(), rtol=1e-4, atol=1e-4)
    assert first[:, 0].abs().min() > 1


def test_the_pyramid_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="at least 32x32 px"):
        steerable.oriented_bands(torch.rand(1, 1, 31, 64), level=3, orientations=4)
    with pytest.raises(ValueError, match="1 channels"):
        steerable.oriented_bands(torch.rand(1, 3, 64, 64), level=3, orientations=4)
    with pytest.raises(ValueError, match="orientations of the steerable pyramid"):
        steerable.oriented_bands(torch.rand(1, 1, 64, 64), level=3, orientations=1)


# ---- what every metric with a reference keeps to ----

SPECS = ("psnr", "ssim", "ms-ssim", "gmsd", "fsim", "fsim(colour=false)", "vif", "vif(variant=pixel)",
         "cw-ssim", "cw-ssim(levels=3, orientations=5)", "cw-ssim(variant=ricker)")  # fmt: skip
OF_CONSTANT = {"psnr": math.inf, "gmsd": 0, "vif": math.nan, "vif(variant=pixel)": math.nan}


@pytest.fixture(params=SPECS)
def a_metric(request: pytest.FixtureRequest) -> Metric:
    return veridical.metric(request.param)


def test_every_metric_with_a_reference_and_no_network_is_looked_at_here() -> None:
    of_pairs = {name for name, entry in veridical.METRICS.items() if entry.reference and not entry.needs({})}
    assert of_pairs == {spec.partition("(")[0] for spec in SPECS}


def images(metric: Metric, count: int = 2, channels: int = 3, *, more: tuple[int, int] = (3, 18)) -> torch.Tensor:
    """Smooth random pictures a little above the least size, odd and even."""
    height, width = (max(metric.min_size, 33) + pixels for pixels in more)
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(count, channels, height // 4, width // 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)


def degraded(target: torch.Tensor) -> torch.Tensor:
    noise = 0.05 * torch.randn(target.shape, generator=torch.Generator().manual_seed(8))
    return (torch.nn.functional.avg_pool2d(target, 3, 1, 1) + noise).clamp(0, 1)


def test_identical_images_have_the_best_value(a_metric: Metric) -> None:
    target = images(a_metric)
    best, less = a_metric(target, target), a_metric(degraded(target), target)
    ideal = {"psnr": math.inf, "gmsd": 0}.get(a_metric.name, 1)
    assert best.tolist() == pytest.approx([ideal] * 2, abs=1e-6)
    assert ((best > less) if a_metric.higher_is_better else (best < less)).all()


def test_images_of_one_batch_do_not_influence_each_other(a_metric: Metric) -> None:
    target = images(a_metric, 3)
    together = a_metric(degraded(target), target)
    alone = torch.cat([a_metric(x[None], y[None]) for x, y in zip(degraded(target), target, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_a_grey_image_is_three_equal_channels(a_metric: Metric) -> None:
    target = images(a_metric, 1, 1)
    grey = a_metric(degraded(target), target)
    colour = a_metric(*(image.expand(-1, 3, -1, -1) for image in (degraded(target), target)))
    torch.testing.assert_close(grey, colour, rtol=1e-4, atol=1e-5)


def test_everything_is_computed_where_the_images_are(a_metric: Metric) -> None:
    """The meta device computes nothing, and refuses tensors of another device beside its own."""
    target = images(a_metric).to("meta")
    assert a_metric(target, target).device.type == "meta"


@pytest.mark.parametrize("more", [(0, 0), (1, 4), (2, 1), (5, 7)])
def test_any_size_from_the_least_on_is_accepted(a_metric: Metric, more: tuple[int, int]) -> None:
    least = a_metric.min_size
    target = images(a_metric, 1)[:, :, : least + more[0], : least + more[1]]
    assert a_metric(degraded(target), target).isfinite().all()
    if least > 1:
        with pytest.raises(ValueError, match=f"at least {least}x{least} px"):
            a_metric(target[:, :, : least - 1], target[:, :, : least - 1])


def test_constant_images_have_the_value_that_is_documented(a_metric: Metric) -> None:
    """Nothing to compare counts as alike; but VIF has no value where the reference has no information."""
    target = torch.full_like(images(a_metric), 0.5)
    expected = OF_CONSTANT.get(a_metric.name, 1)
    assert a_metric(target, target).tolist() == pytest.approx([expected] * 2, abs=1e-6, nan_ok=True)


def test_the_precision_of_the_input_and_autocast_change_nothing(a_metric: Metric) -> None:
    target = images(a_metric)
    expected = a_metric(degraded(target), target)
    torch.testing.assert_close(a_metric(degraded(target).double(), target.double()), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(a_metric(degraded(target), target), expected, rtol=1e-6, atol=1e-7)


# ---- against definitions written out, and other libraries ----


@pytest.fixture(scope="module")
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Photographs, blurred and noisy, and as they are: (2, 3, 141, 170)."""
    target = torch.cat([photograph("astronaut")[:, :, :141, :170], photograph("coffee")[:, :, 150:291, 100:270]])
    blurred = torch.nn.functional.avg_pool2d(target, 5, 1, 2, count_include_pad=False)
    noise = 0.02 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    return (blurred + noise).clamp(0, 1), target


def grey_levels(image: torch.Tensor) -> np.ndarray:
    return 255 * (image.double().permute(1, 2, 0).numpy() @ np.array([0.299, 0.587, 0.114]))


def conv2_same(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """MATLAB's conv2(image, kernel, 'same'), which begins half a pixel after SciPy's where the kernel is even."""
    full = signal.convolve2d(image, kernel)
    rows, columns = (size // 2 for size in kernel.shape)
    return full[rows : rows + image.shape[0], columns : columns + image.shape[1]]


@pytest.fixture(scope="module")
def piq() -> Any:
    with trunks(lambda name: {}):
        return pytest.importorskip("piq")


def test_gmsd_is_the_authors_code_written_out(pairs) -> None:
    prewitt = np.array([[1, 0, -1]] * 3) / 3
    for x, y in zip(*pairs, strict=True):
        maps = []
        for image in (x, y):
            grey = conv2_same(grey_levels(image), np.full((2, 2), 0.25))[::2, ::2]
            maps.append(np.hypot(conv2_same(grey, prewitt), conv2_same(grey, prewitt.T)))
        quality = (2 * maps[0] * maps[1] + 170) / (maps[0] ** 2 + maps[1] ** 2 + 170)
        assert gmsd(x[None], y[None]).item() == pytest.approx(np.std(quality), abs=1e-6)


def test_gmsd_agrees_with_piq(pairs, piq) -> None:
    torch.testing.assert_close(gmsd(*pairs), piq.gmsd(*pairs, reduction="none"), atol=1e-6, rtol=0)


def test_vif_of_pixels_agrees_with_piq_and_torchmetrics(pairs, piq) -> None:
    from torchmetrics.functional.image import visual_information_fidelity

    ours = vif(*pairs, variant="pixel")
    prediction, target = (image.double() for image in pairs)
    torch.testing.assert_close(ours, piq.vif_p(prediction, target, reduction="none"), atol=1e-8, rtol=0)
    grey = [255 * luma(image) for image in (prediction, target)]
    theirs = torch.stack([visual_information_fidelity(x[None], y[None]) for x, y in zip(*grey, strict=True)])
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=0)


def written_out_vif(reference: np.ndarray, distorted: np.ndarray, filters: dict[str, np.ndarray]) -> float:
    """The authors' vifvec, block by block."""

    def bands(image: np.ndarray) -> list[np.ndarray]:
        out, image = [], ndimage.correlate(image, filters["low"], mode="mirror")
        for _ in range(4):
            out += [ndimage.correlate(image, kernel, mode="mirror") for kernel in (filters["band"], filters["band"].T)]
            image = ndimage.correlate(image, filters["lower"], mode="mirror")[::2, ::2]
        return out

    kept = told = 0.0
    for index, (y, yn) in enumerate(zip(bands(reference), bands(distorted), strict=True)):
        window = 2 ** (4 - index // 2) + 1
        height, width = (size // 3 for size in y.shape)
        y, yn = y[: 3 * height, : 3 * width], yn[: 3 * height, : 3 * width]
        vectors = np.array(
            [y[i : i + 3, j : j + 3].ravel() for i in range(3 * height - 2) for j in range(3 * width - 2)]
        )
        covariance = np.cov(vectors.T, bias=True)
        inverse, spread = np.linalg.inv(covariance), np.linalg.eigvalsh(covariance)
        half, edge = window // 2, int(np.ceil((window - 1) / 2 / 3))
        around, beside = (np.pad(band, half, mode="reflect") for band in (y, yn))
        for row in range(edge, height - edge):
            for column in range(edge, width - edge):
                at = np.s_[3 * row + 1 : 3 * row + 1 + window, 3 * column + 1 : 3 * column + 1 + window]
                c = np.cov(around[at].ravel(), beside[at].ravel(), bias=True)
                gain = c[0, 1] / c[0, 0]
                error = c[1, 1] - gain * c[0, 1]
                gain = max(gain, 0.0)
                block = y[3 * row : 3 * row + 3, 3 * column : 3 * column + 3].ravel()
                strength = block @ inverse @ block / 9
                kept += np.log2(1 + gain**2 * strength * spread / (error + 0.4)).sum()
                told += np.log2(1 + strength * spread / 0.4).sum()
    return kept / told


def test_vif_of_wavelets_is_the_authors_code_written_out(pairs) -> None:
    filters = {
        "low": _kernel(LOW, odd=False).numpy(),
        "lower": _kernel(LOWER, odd=False).numpy(),
        "band": _kernel(BAND, odd=True).numpy(),
    }
    x, y = (image[1, :, :99, :86].clone() for image in pairs)
    x[:, 20:50] = 1 - x[:, 20:50]  # where the gain would be negative
    expected = written_out_vif(grey_levels(y), grey_levels(x), filters)
    assert vif(x[None], y[None]).item() == pytest.approx(expected, rel=1e-6)


def test_the_filters_of_vif_are_those_of_the_toolbox() -> None:
    """matlabPyrTools' own properties: low passes pass a constant (the second doubles it), bands nothing; and together
    they leave a picture's waves as strong as they were, as far as 9 taps can."""
    low, lower, band = (_kernel(half, odd=odd) for half, odd in ((LOW, False), (LOWER, False), (BAND, True)))
    assert low.sum().item() == pytest.approx(1, abs=1e-3)
    assert lower.sum().item() == pytest.approx(2, abs=1e-2)
    assert band.sum().item() == 0
    assert [tuple(kernel.shape) for kernel in (low, lower, band)] == [(5, 5), (9, 9), (7, 7)]
    for kernel in (low, lower):
        assert torch.equal(kernel, kernel.T)
        assert torch.equal(kernel, kernel.flip(0))
    assert torch.equal(band, band.flip(0))
    assert torch.equal(band, -band.flip(1))


def test_the_filters_of_vif_are_those_that_pyiqa_has() -> None:
    path = Path(find_spec("pyiqa").origin).parent / "archs" / "vif_arch.py" if find_spec("pyiqa") else None
    if path is None:
        pytest.skip("needs pyiqa (pip install --no-deps pyiqa)")
    tree = ast.parse(path.read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "sp5_filters")
    names: dict[str, Any] = {"np": np}
    exec(compile(ast.Module([function], []), str(path), "exec"), names)
    theirs = names["sp5_filters"]()
    assert np.array_equal(_kernel(LOW, odd=False), theirs["lo0filt"])
    assert np.allclose(_kernel(LOWER, odd=False), theirs["lofilt"], atol=1e-15, rtol=0)
    band = _kernel(BAND, odd=True).numpy()
    assert np.array_equal(band, theirs["bfilts"][:, 0].reshape(7, 7).T)
    assert np.array_equal(-band.T, theirs["bfilts"][:, 3].reshape(7, 7).T)


def written_out_fsim(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """FeatureSIM.m with phasecong2.m: (H, W, 3) in 0-255 -> FSIM, FSIMc."""
    factor = max(1, int(np.floor(min(x.shape[:2]) / 256 + 0.5)))
    planes = []
    for image in (x, y):
        yiq = image @ np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]]).T
        kernel = np.full((factor, factor), 1 / factor**2)
        planes.append([conv2_same(yiq[..., k], kernel)[::factor, ::factor] for k in range(3)])

    def phase_congruency(image: np.ndarray) -> np.ndarray:
        axes = [
            np.arange(-(n - 1) / 2, (n - 1) / 2 + 1) / (n - 1) if n % 2 else np.arange(-n / 2, n / 2) / n
            for n in image.shape
        ]
        v, h = np.meshgrid(*axes, indexing="ij")
        radius, theta = np.fft.ifftshift(np.sqrt(h**2 + v**2)), np.fft.ifftshift(np.arctan2(-v, h))
        low_pass = 1 / (1 + (radius / 0.45) ** 30)
        radius[0, 0] = 1
        energies = amplitudes = 0
        for o in range(4):
            angle = o * np.pi / 4
            ds = np.sin(theta) * np.cos(angle) - np.cos(theta) * np.sin(angle)
            dc = np.cos(theta) * np.cos(angle) + np.sin(theta) * np.sin(angle)
            spread = np.exp(-(np.abs(np.arctan2(ds, dc)) ** 2) / (2 * (np.pi / 4 / 1.2) ** 2))
            responses, kernels = [], []
            for s in range(4):
                gabor = np.exp(-(np.log(radius * 6 * 2**s) ** 2) / (2 * np.log(0.55) ** 2)) * low_pass
                gabor[0, 0] = 0
                kernels.append(np.fft.ifft2(gabor * spread).real * np.sqrt(image.size))
                responses.append(np.fft.ifft2(np.fft.fft2(image) * gabor * spread))
                if s == 0:
                    finest = np.sum((gabor * spread) ** 2)
            even, odd = np.real(responses), np.imag(responses)
            total = np.sqrt(even.sum(0) ** 2 + odd.sum(0) ** 2) + 1e-4
            mean_even, mean_odd = even.sum(0) / total, odd.sum(0) / total
            energy = (even * mean_even + odd * mean_odd - np.abs(even * mean_odd - odd * mean_even)).sum(0)
            noise = np.median(np.abs(responses[0]) ** 2) / np.log(2) / finest
            squares = sum((kernel**2).sum() for kernel in kernels)
            products = sum((kernels[i] * kernels[j]).sum() for i in range(3) for j in range(i + 1, 4))
            tau = np.sqrt((2 * noise * squares + 4 * noise * products) / 2)
            threshold = (tau * np.sqrt(np.pi / 2) + 2 * np.sqrt((2 - np.pi / 2) * tau**2)) / 1.7
            energies = energies + np.maximum(energy - threshold, 0)
            amplitudes = amplitudes + np.abs(responses).sum(0)
        return energies / amplitudes

    scharr = np.array([[3, 0, -3], [10, 0, -10], [3, 0, -3]]) / 16
    congruent = [phase_congruency(plane[0]) for plane in planes]
    slope = [np.hypot(conv2_same(plane[0], scharr), conv2_same(plane[0], scharr.T)) for plane in planes]

    def alike(one: np.ndarray, other: np.ndarray, constant: float) -> np.ndarray:
        return (2 * one * other + constant) / (one**2 + other**2 + constant)

    weight = np.maximum(*congruent)
    grey = alike(*congruent, 0.85) * alike(*slope, 160) * weight
    hue = alike(planes[0][1], planes[1][1], 200) * alike(planes[0][2], planes[1][2], 200)
    colour = grey * ((hue + 0j) ** 0.03).real
    return grey.sum() / weight.sum(), colour.sum() / weight.sum()


@pytest.mark.parametrize(("height", "width"), [(141, 170), (128, 101), (385, 400), (640, 660)])
def test_fsim_is_the_authors_code_written_out(height: int, width: int) -> None:
    """At factors of 1 to 3: 640 px / 256 is 2.5, which MATLAB rounds to 3 and Python to 2."""
    target = torch.nn.functional.interpolate(photograph("coffee"), (height, width), mode="bilinear")
    prediction = degraded(target)
    prediction[:, :, ::9] = 1 - prediction[:, :, ::9]  # opposite colours meet
    expected = written_out_fsim(*(255 * image[0].double().permute(1, 2, 0).numpy() for image in (prediction, target)))
    for double, tolerance in ((True, 1e-7), (False, 1e-4)):
        images = [image.double() if double else image for image in (prediction, target)]
        actual = [fsim(*images, colour=colour).item() for colour in (False, True)]
        assert actual == pytest.approx(expected, rel=tolerance)


def test_fsim_agrees_with_piq(pairs, piq) -> None:
    """Where nothing is shrunk. piq rounds the matrix of YIQ otherwise, and has another epsilon."""
    for colour in (True, False):
        theirs = piq.fsim(*pairs, chromatic=colour, reduction="none")
        torch.testing.assert_close(fsim(*pairs, colour=colour), theirs, atol=2e-5, rtol=0)


def test_cw_ssim_is_the_authors_code_written_out(pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """cwssim_index.m on pyiqa's port of its pyramid."""
    pyramid = peers_pyramid(monkeypatch)(height=4, nbands=8, device=torch.device("cpu"))
    greys = [torch.from_numpy(np.stack([grey_levels(image) for image in images])[:, None]) for images in pairs]
    one, other = (pyramid.build(grey)[4] for grey in greys)
    expected = []
    for n in range(2):
        values = []
        for band in range(8):
            x, y = (torch.view_as_complex(bands[band][n].contiguous()).numpy() for bands in (one, other))
            box = np.full((7, 7), 1 / 49)
            together = np.abs(signal.convolve2d(x * y.conj(), box, mode="valid"))
            energy = signal.convolve2d(np.abs(x) ** 2 + np.abs(y) ** 2, box, mode="valid")
            rows, columns = (np.arange(size) - (size - 1) / 2 for size in energy.shape)
            weight = np.exp(-(rows[:, None] ** 2 + columns**2) / (2 * (x.shape[0] / 4) ** 2))
            values.append((2 * together / energy * weight).sum() / weight.sum())
        expected.append(np.mean(values))
    assert cw_ssim(*pairs, levels=4, orientations=8).tolist() == pytest.approx(expected, abs=1e-5)


def test_cw_ssim_forgives_a_shift_that_ssim_does_not() -> None:
    whole = photograph("coffee")[:, :, 10:330, 10:400]
    target, shifted = whole[:, :, :-3, :-3], whole[:, :, 3:, 3:]
    assert cw_ssim(shifted, target).item() > 0.99
    assert veridical.metric("ssim")(shifted, target).item() < 0.8


def test_cw_ssim_of_pyssim_is_its_formula_written_out(pairs) -> None:
    """SSIM.cw_ssim_value of pyssim 0.3 to 0.7, with scipy.signal.cwt and ricker, which SciPy 1.15 has no more."""
    for x, y in zip(*(image[:, :, :40, :47] for image in pairs), strict=True):
        lines = [np.floor(grey_levels(image) + 0.5).ravel() for image in (x, y)]
        transformed = []
        for line in lines:
            rows = []
            for width in range(1, 31):
                points = min(10 * width, len(line))
                at = np.arange(points) - (points - 1) / 2
                ricker = 2 / (np.sqrt(3 * width) * np.pi**0.25) * (1 - (at / width) ** 2)
                ricker *= np.exp(-(at**2) / (2 * width**2))
                rows.append(signal.convolve(line, ricker, mode="same"))
            transformed.append(np.array(rows))
        a, b = transformed
        first = (2 * (abs(a) * abs(b)).sum(0) + 0.01) / ((a**2).sum(0) + (b**2).sum(0) + 0.01)
        second = (2 * abs((a * b).sum(0)) + 0.01) / (2 * abs(a * b).sum(0) + 0.01)
        actual = cw_ssim(x[None], y[None], variant="ricker").item()
        assert actual == pytest.approx((first * second).mean(), abs=1e-9)


def test_a_batch_too_large_for_one_part_gives_the_same(pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, target = (image.repeat(2, 1, 1, 1) for image in pairs)
    for name, measure in (("fsim", fsim), ("vif", vif)):
        expected = measure(prediction, target)
        monkeypatch.setattr(sys.modules[f"veridical.measures.{name}"], "PART_PX", 3 * 141 * 170)
        torch.testing.assert_close(measure(prediction, target), expected)
        monkeypatch.setattr(sys.modules[f"veridical.measures.{name}"], "PART_PX", 1)
        torch.testing.assert_close(measure(prediction, target), expected)


@pytest.mark.parametrize(
    "spec", ["vif(variant=pixels)", "cw-ssim(levels=0)", "cw-ssim(variant=cwt)", "fsim(colour=1)", "pieapp(stride=0)"]
)
def test_an_impossible_option_is_refused_when_the_metric_is_made(spec: str) -> None:
    with pytest.raises(BadOption):
        veridical.metric(spec)


# ---- PieAPP, with random weights in the published file's form ----


@pytest.fixture(scope="module")
def pieapp_file(network_file) -> Path:
    return network_file("pieapp")


@pytest.fixture(scope="module")
def a_pieapp(pieapp_file: Path) -> Metric:
    return veridical.metric("pieapp", weights=str(pieapp_file))


def test_pieapp_agrees_with_piq_but_for_the_order_of_the_channels(pairs, piq, pieapp_file: Path, a_pieapp) -> None:
    """piq gives the network red first, the authors' code (OpenCV's imread) and ours blue first."""
    state = load_file(pieapp_file)
    state["ref_score_subtract.weight"] = state["ref_score_subtract.weight"][:, None]
    peer = piq.PieAPP.__new__(piq.PieAPP)
    torch.nn.Module.__init__(peer)
    peer.model = piq.pieapp.PieAPPModel()
    peer.model.load_state_dict(state)
    peer.data_range, peer.reduction, peer.stride, peer.enable_grad = 1.0, "none", 27, False
    expected = peer(*(image.flip(1) for image in pairs))
    torch.testing.assert_close(a_pieapp(*pairs), expected, rtol=1e-4, atol=1e-4)
    assert (peer(*pairs) - expected).abs().min() > 0.01 * expected.abs().max()


def test_pieapp_judges_patches_by_images_and_a_few_at_a_time(pairs, a_pieapp, monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, target = (image[:, :, :92, :119] for image in pairs)  # 2 x 3 patches; the second one ends the rows
    expected = a_pieapp(prediction, target)
    monkeypatch.setattr(sys.modules["veridical.measures.pieapp"], "AT_ONCE", 4)
    torch.testing.assert_close(a_pieapp(prediction, target), expected, rtol=1e-4, atol=1e-4)
    alone = torch.cat([a_pieapp(x[None], y[None]) for x, y in zip(prediction, target, strict=True)])
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-4)
    beyond = prediction.clone()
    beyond[..., 91:, :] = 0  # of 92 rows the patches look at 91
    beyond[..., 118:] = 0
    torch.testing.assert_close(a_pieapp(beyond, target), expected, rtol=1e-4, atol=1e-4)


def test_pieapp_takes_grey_and_refuses_what_is_too_small(a_pieapp) -> None:
    grey = torch.rand(1, 1, 64, 70, generator=torch.Generator().manual_seed(0))
    colour = grey.expand(-1, 3, -1, -1)
    torch.testing.assert_close(a_pieapp(grey * 0.9, grey), a_pieapp(colour * 0.9, colour))
    assert a_pieapp.min_size == 64
    with pytest.raises(ValueError, match="at least 64x64 px"):
        a_pieapp(colour[:, :, :63], colour[:, :, :63])


def test_nothing_of_pieapp_is_trained_or_saved(a_pieapp) -> None:
    assert not list(a_pieapp.parameters())
    assert not a_pieapp.state_dict()
    assert len(list(a_pieapp.buffers())) == 32


def test_without_its_file_pieapp_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("VERIDICAL_WEIGHTS", raising=False)
    with pytest.raises(WeightsMissing, match=r"github\.com/prashnani/PerceptualImageError") as caught:
        veridical.metric("pieapp")
    assert "pieapp(weights=PieAPPv0.1.pth)" in str(caught.value)
    assert veridical.metrics.needs("pieapp") == ("pieapp",)
    assert veridical.metrics.needs("pieapp(weights='mine.pth')") == ()


def test_a_published_pth_is_read_and_a_foreign_one_refused(tmp_path: Path, pieapp_file: Path) -> None:
    """The authors' file is a state dict that torch.save wrote; none of its code is run."""
    state = load_file(pieapp_file)
    torch.save(state, tmp_path / "PieAPPv0.1.pth")
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    read = veridical.metric("pieapp", weights=str(tmp_path / "PieAPPv0.1.pth"))
    assert read(image * 0.9, image).isfinite().all()
    del state["fc2_weight.bias"]
    torch.save({key: value[:1] for key, value in state.items()}, tmp_path / "other.pth")
    with pytest.raises(WeightsMissing, match=r"'conv1.weight' is torch.float32 of shape \(1, 3, 3, 3\)"):
        veridical.metric("pieapp", weights=str(tmp_path / "other.pth"))
