"""BRISQUE against its formula written out in NumPy, against values of pyiqa, and the file that it needs."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage, special

import veridical
from tests.shared import shared_data
from tests.test_cli import veridical as command
from tests.test_degradations_values import imresize
from veridical.core.errors import WeightsMissing
from veridical.core.files import read_image, write_image
from veridical.core.resize import resize
from veridical.features import weights
from veridical.features.libsvm import read_regression
from veridical.measures.brisque import GREATEST, LEAST, brisque, brisque_features, scaled_features
from veridical.measures.scene_statistics import asymmetric_shape, gaussian_shape, moments

REAL = "weights/brisque_live_allmodel"


# ---- the formula, written out as MATLAB has it ----

SHAPES = np.arange(200, 10_001) / 1000


def matlab_features(rgb: np.ndarray) -> list[float]:
    """(H, W, 3) in 0-255."""
    grey = ((rgb.astype(np.int64) @ np.array([299, 587, 114]) + 500) // 1000).astype(np.float64)  # half rounds up
    x = np.arange(-3, 4)
    window = np.exp(-(x[:, None] ** 2 + x**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    features: list[float] = []
    for _ in range(2):
        mean = ndimage.correlate(grey, window, mode="constant")
        deviation = np.sqrt(np.abs(ndimage.correlate(grey**2, window, mode="constant") - mean**2))
        contrast = (grey - mean) / (deviation + 1)
        table = special.gamma(1 / SHAPES) * special.gamma(3 / SHAPES) / special.gamma(2 / SHAPES) ** 2
        ratio = np.mean(contrast**2) / np.mean(np.abs(contrast)) ** 2
        features += [SHAPES[np.argmin(np.abs(table - ratio))], np.mean(contrast**2)]
        for shift in ((0, 1), (1, 0), (1, 1), (-1, 1)):
            product = contrast * np.roll(contrast, shift, (0, 1))
            left = np.sqrt(np.mean(product[product < 0] ** 2))
            right = np.sqrt(np.mean(product[product > 0] ** 2))
            g = left / right
            r = np.mean(np.abs(product)) ** 2 / np.mean(product**2) * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
            shape = SHAPES[np.argmin(np.abs(1 / table - r))]
            mean_of_it = (right - left) * special.gamma(2 / shape) / special.gamma(1 / shape)
            mean_of_it *= np.sqrt(special.gamma(1 / shape) / special.gamma(3 / shape))
            features += [shape, mean_of_it, left**2, right**2]
        grey = imresize(imresize(grey, 0.5).T, 0.5).T
    return features


def photograph(height: int = 61, width: int = 74, seed: int = 0) -> torch.Tensor:
    """(1, 3, H, W) of 8 bits: smooth waves with texture, odd and even sides."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x * a + y * b) for a, b in generator.uniform(-0.6, 0.6, (3, 2))], axis=-1)
    noise = ndimage.gaussian_filter(generator.normal(size=(height, width, 3)), (0.8, 0.8, 0))
    image = (128 + 60 * waves + 30 * noise).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize(("height", "width"), [(61, 74), (48, 48), (33, 90)])
def test_the_features_are_those_of_the_formula_written_out(height: int, width: int) -> None:
    image = photograph(height, width)
    expected = matlab_features((image[0] * 255).round().permute(1, 2, 0).double().numpy())
    assert brisque_features(image)[0].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_score_is_the_regression_written_out(regression_file: Path) -> None:
    image = torch.cat([photograph(seed=seed) for seed in (0, 1)])
    values = veridical.metric("brisque", weights=str(regression_file))(image)
    lines = regression_file.read_text().splitlines()[8:]
    features = scaled_features(brisque_features(image)).numpy()
    for value, feature in zip(values.tolist(), features, strict=True):
        total = 30.5
        for line in lines:
            coefficient, *entries = line.split()
            vector = np.zeros(36)
            for entry in entries:
                index, _, number = entry.partition(":")
                vector[int(index) - 1] = float(number)
            total += float(coefficient) * np.exp(-0.05 * ((feature - vector) ** 2).sum())
        assert value == pytest.approx(total, rel=1e-6)


def test_the_images_of_a_batch_do_not_influence_each_other(regression_file: Path) -> None:
    regression = read_regression(regression_file, 36)
    first, second = photograph(seed=0), photograph(seed=1)
    both = brisque(torch.cat([first, second]), regression)
    assert both.dtype == torch.float64
    assert both.tolist() == pytest.approx([brisque(one, regression).item() for one in (first, second)], rel=1e-12)


def test_grey_is_the_luma_of_equal_channels(regression_file: Path) -> None:
    regression = read_regression(regression_file, 36)
    grey = photograph()[:, :1]
    colour = grey.expand(-1, 3, -1, -1)
    assert brisque(colour, regression).item() == pytest.approx(brisque(grey, regression).item(), rel=1e-6)


def test_samples_of_known_shape_are_recognised() -> None:
    """Gaussian: 2; Laplacian: 1; an asymmetric Gaussian keeps its two deviations."""
    generator = np.random.default_rng(0)
    gaussian, laplacian = generator.normal(0, 3, 200_000), generator.laplace(size=200_000)
    shape, variance = gaussian_shape(moments(torch.from_numpy(np.stack([gaussian, laplacian]))))
    assert shape.tolist() == pytest.approx([2, 1], abs=0.02)
    assert variance.tolist() == pytest.approx([9, 2], rel=0.02)
    sides = np.abs(gaussian) * np.where(generator.random(200_000) < 0.25, -1 / 3, 1)
    shape, left, right = asymmetric_shape(moments(torch.from_numpy(sides)[None]))
    assert (shape.item(), left.item(), right.item()) == pytest.approx((2, 1, 3), abs=0.05)


def test_an_image_without_contrast_has_no_value(regression_file: Path) -> None:
    assert brisque(torch.zeros(1, 3, 32, 32), read_regression(regression_file, 36)).isnan().all()


def test_images_that_are_too_small_are_refused(regression_file: Path) -> None:
    metric = veridical.metric("brisque(border=2)", weights=str(regression_file))
    assert metric.min_size == 20
    with pytest.raises(ValueError, match="at least 20x20"):
        metric(torch.rand(1, 3, 19, 40))


def test_half_the_size_is_matlabs() -> None:
    image = photograph(33, 40)[0, 0].double()
    expected = imresize(imresize(image.numpy(), 0.5).T, 0.5).T
    assert resize(image[None], Fraction(1, 2))[0].numpy() == pytest.approx(expected, abs=1e-12)


# ---- the real regression ----


def test_kodak_has_the_values_of_pyiqa() -> None:
    """From pyiqa 0.1.16's own code (archs/brisque_arch.py) with this regression, in float64; in its float32 they differ
    by 0.01. piq 0.8.0 gives 14.4459, 14.9608, 3.6151 and 2.0217."""
    regression = read_regression(shared_data(REAL), 36)
    published = {"kodim01": 14.44198, "kodim02": 14.95746, "kodim03": 3.60350, "kodim04": 2.01775}
    for name, value in published.items():
        image = read_image(shared_data("test/kodak24") / f"{name}.webp").pixels[None]
        assert brisque(image, regression).item() == pytest.approx(value, abs=0.002)


def test_saturated_parts_count_as_in_pyiqa() -> None:
    """kodim15, 20 and 24 have white and black parts. pyiqa's own code in float64, whose contrast there is a rounding
    error; in its float32 it gives -1.391 for kodim20, and piq 0.8.0 -1.406. An exact 0 would give -3.951."""
    regression = read_regression(shared_data(REAL), 36)
    for name, value in {"kodim15": 2.6691, "kodim20": -1.8131, "kodim24": 13.5607}.items():
        image = read_image(shared_data("test/kodak24") / f"{name}.webp").pixels[None]
        assert brisque(image, regression).item() == pytest.approx(value, abs=0.1)


def test_distortions_are_worse_than_photographs() -> None:
    regression = read_regression(shared_data(REAL), 36)
    generator = torch.Generator().manual_seed(0)
    for name in ("kodim05", "kodim13", "kodim20"):
        image = read_image(shared_data("test/kodak24") / f"{name}.webp").pixels[None]
        blurred = torch.nn.functional.avg_pool2d(image, 5, 1, 2)
        noisy = (image + 0.1 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
        own, *others = (brisque(one, regression).item() for one in (image, blurred, noisy))
        assert min(others) > own + 15


def test_the_ranges_belong_to_this_regression() -> None:
    """Shapes are multiples of 0.001 in the authors' code. The support vectors', mapped back, are so only with these
    ranges; those of the authors' C++ release (0.336999 to 9.999411 and so on) put them anywhere in between."""
    vectors = read_regression(shared_data(REAL), 36)["vectors"]
    for k in (0, 2, 6, 10, 14, 18, 20, 24, 28, 32):
        shapes = LEAST[k] + (vectors[:, k] + 1) / 2 * (GREATEST[k] - LEAST[k])
        assert (shapes * 1000 - (shapes * 1000).round()).abs().max() < 0.01
    assert vectors.amin(0).tolist() == [-1] * 36
    assert vectors.amax(0).tolist() == [1] * 36


def test_the_real_file_is_found_and_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERIDICAL_WEIGHTS", str(shared_data(REAL).parent))
    assert weights.verify("brisque").status == "verified"
    loaded = weights.load("brisque")
    assert loaded.tensors["vectors"].shape == (774, 36)
    assert loaded.tensors["vectors"].dtype == torch.float64
    assert veridical.metric("brisque").weights == ("brisque",)


# ---- the file ----


def test_what_libsvm_leaves_out_is_zero(regression_file: Path) -> None:
    regression = read_regression(regression_file, 36)
    assert {key: tuple(value.shape) for key, value in regression.items()} == {
        "coefficients": (12,), "vectors": (12, 36), "gamma": (), "rho": (),
    }  # fmt: skip
    assert regression["vectors"][0, 4] == regression["vectors"][5, 0] == 0
    assert (regression["vectors"] == 0).sum() == 2
    assert regression["coefficients"].tolist() == [-1024.5, 1024.0] * 6
    assert (regression["gamma"].item(), regression["rho"].item()) == (0.05, -30.5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[:-1], "it is cut short"),
        (lambda text: text[: text.rindex("-1024.5")], "added to: 10 support vectors, where it says 12"),
        (lambda text: text + "1 1:2 \n", "13 support vectors, where it says 12"),
        (lambda text: text[:60], "it has no line SV"),
        (lambda text: "", "it has no line SV"),
        (lambda text: text.replace("rbf", "linear"), "with the kernel linear"),
        (lambda text: text.replace("epsilon_svr", "c_svc"), "it is a c_svc"),
        (lambda text: text.replace("rho -30.5\n", ""), "its settings lack rho"),
        (lambda text: text.replace("rho -30.5", "rho"), "have the line 'rho'"),
        (lambda text: text.replace("nr_class", "label"), "have the line 'label 2'"),
        (lambda text: text.replace("gamma 0.05", "gamma x"), "'x' in gamma is not a number"),
        (lambda text: text.replace("gamma 0.05", "gamma -1"), "gamma is -1"),
        (lambda text: text.replace(" 36:", " 37:"), "support vector 1 has '37:"),
        (lambda text: text.replace(" 3:", " 2:"), "support vector 1 has '2:"),
        (lambda text: text.replace(" 3:", " 3;"), "support vector 1 has '3;"),
        (lambda text: text.replace("-1024.5 1:", "nan 1:"), "'nan' in support vector 1 is not a number"),
        (lambda text: text.replace("\n1024 1:", "\n\n1024 1:", 1), "13 support vectors"),
        (lambda text: text.replace("svm_type", "\u00e9"), "it is not text"),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_file_is_refused(regression_file: Path, tmp_path: Path, spoil, message: str) -> None:
    path = tmp_path / "allmodel"
    path.write_text(spoil(regression_file.read_text()), encoding="utf-8")
    with pytest.raises(WeightsMissing, match="is not a whole support vector regression of libsvm") as caught:
        veridical.metric("brisque", weights=str(path))
    assert message in str(caught.value)


def test_another_file_under_the_standard_name_is_refused(
    regression_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brisque_live_allmodel").write_bytes(regression_file.read_bytes())
    monkeypatch.setenv("VERIDICAL_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsMissing, match="does not hold the published brisque weights"):
        veridical.metric("brisque")


def test_without_the_file_the_command_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("VERIDICAL_WEIGHTS", raising=False)
    assert weights.verify("brisque").status == "missing"
    image = tmp_path / "image.png"
    write_image(image, photograph()[0])
    result = command("score", image, "--metrics", "brisque")
    assert result.exit_code == 2
    assert "brisque weights are not on this machine" in result.output
    assert "brisque(weights=allmodel)" in result.output


def test_it_is_scored_without_a_reference(regression_file: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    write_image(image, photograph()[0])
    result = command("score", image, "--metrics", f"brisque(weights='{regression_file}')")
    assert result.exit_code == 0, result.output
    expected = brisque(photograph(), read_regression(regression_file, 36)).item()
    assert f"{expected:.4f}" in result.output
