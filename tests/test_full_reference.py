"""The measures with a reference beyond PSNR and SSIM: against their definitions written out, and other libraries."""

import importlib
import math
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import veridical
from veridical.measures import steerable
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
