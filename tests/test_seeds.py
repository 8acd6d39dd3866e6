"""The images that MDF's discriminators learn from."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from veridical.cli import app
from veridical.core.errors import BadOption, DataError, UnknownName
from veridical.core.files import read_image, write_image
from veridical.training import seeds
from veridical.training.photographs import EVALUATE, EVALUATE_PX, TRAIN
from veridical.training.seeds import (
    KINDS,
    PERIOD_PX,
    collapse,
    contrast_rings,
    laplacian_pyramid,
    made_image,
    pink_noise,
    pyramid_permutation,
    seed_image,
)


def test_a_photograph_of_the_demo_comes_whole() -> None:
    name, image = seed_image("astronaut")
    assert name == "astronaut"
    assert image.shape == (3, 512, 512)
    assert image.shape[1] > EVALUATE_PX
    assert 0 <= image.min() < image.max() <= 1


def test_a_file_is_read_as_rgb_and_is_called_by_its_name(tmp_path: Path) -> None:
    grey = torch.arange(0, 12).reshape(1, 3, 4) / 255
    write_image(tmp_path / "own.png", grey)
    name, image = seed_image(str(tmp_path / "own.png"))
    assert name == "own.png"
    torch.testing.assert_close(image, grey.repeat(3, 1, 1), rtol=0, atol=0)


def test_a_name_that_nobody_has_gives_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'astronaut'") as raised:
        seed_image("astronot")
    assert all(name in str(raised.value) for name in TRAIN | EVALUATE)


@pytest.mark.parametrize("text", ["missing.png", "folder/missing", "."])
def test_a_path_without_an_image_is_named(text: str) -> None:
    with pytest.raises(DataError, match="cannot read"):
        seed_image(text)


# ---- those that are made ----


def photograph(height: int = 53, width: int = 70) -> torch.Tensor:
    """Smooth, with an edge and some grain; its channels differ."""
    generator = torch.Generator().manual_seed(4)
    coarse = torch.rand(1, 3, 5, 6, generator=generator)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)[0]
    image[:, :, width // 2 :] *= 0.5
    return (image + 0.02 * torch.randn(image.shape, generator=generator)).clamp(0, 1)


def made(kind: str, size: int, seed: int) -> torch.Tensor:
    return made_image(kind, size=size, seed=seed, photograph=photograph() if kind == "pyramid-permutation" else None)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_pure_function_of_size_and_seed(kind):
    image = made(kind, 48, seed=3)
    assert image.shape == (3, 48, 48)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    assert torch.equal(made(kind, 48, seed=3), image)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(made(kind, 48, seed=4), image) == (kind == "contrast-rings")


def spectrum(channel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean power at each whole number of cycles per image, by NumPy: frequencies from 1 to half the size."""
    power = np.abs(np.fft.fft2(channel)) ** 2
    cycles = np.fft.fftfreq(len(channel)) * len(channel)
    rounded = np.hypot(cycles[:, None], cycles[None]).round().astype(int)
    mean = np.bincount(rounded.ravel(), power.ravel()) / np.bincount(rounded.ravel())
    frequencies = np.arange(1, len(channel) // 2)
    return frequencies, mean[frequencies]


@pytest.mark.parametrize("size", [256, 255])
def test_the_power_of_pink_noise_falls_with_the_square_of_the_frequency(size):
    image = pink_noise(size, 0).double().numpy()
    assert (image.min(), image.max()) == (0, 1)
    for channel in image:
        frequencies, power = spectrum(channel)
        slope, _ = np.polyfit(np.log(frequencies[4:]), np.log(power[4:]), 1)
        assert slope == pytest.approx(-2, abs=0.05)
        fall = power[60:68].mean() / power[14:18].mean()  # whatever the fit says of the rest
        assert fall == pytest.approx((16.5 / 64.5) ** 2, rel=0.25)
    apart = np.corrcoef(image.reshape(3, -1))
    assert np.abs(apart[np.triu_indices(3, 1)]).max() < 0.4  # each channel has its own; only a few waves are long


@pytest.mark.parametrize("size", [256, 97])
def test_rings_look_the_same_from_all_sides(size):
    image = contrast_rings(size)
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])
    for turned in (image.flip(1), image.flip(2), image.transpose(1, 2), image.rot90(1, (1, 2))):
        torch.testing.assert_close(turned, image, rtol=0, atol=1e-6)


def test_the_contrast_of_rings_falls_towards_the_middle_in_proportion():
    size = 1024
    row = contrast_rings(size)[0, size // 2].double()[size // 2 :]  # from the middle to the right
    radius = torch.arange(len(row)) + 0.5
    for ring in range(int(len(row) / PERIOD_PX * 2)):
        inside = radius.sub((ring + 0.5) * PERIOD_PX / 2).abs() < PERIOD_PX / 4 - 1.5
        bright = (row[inside] - 0.5) * (-1) ** ring
        # Half the contrast above 0.5, or below it, in proportion to the radius: 1 at the border.
        torch.testing.assert_close(bright, 0.5 * radius[inside].double() / (size / 2), rtol=0, atol=1e-3)
    corner = contrast_rings(size)[0, :100, :100]
    assert {float(corner.min()), float(corner.max())} == {0.0, 1.0}
    assert ((corner > 0) & (corner < 1)).double().mean() < 2.5 / (PERIOD_PX / 2)  # edges, not waves


@pytest.mark.parametrize("shape", [(53, 70), (64, 64), (9, 200), (5, 5)])
def test_a_laplacian_pyramid_comes_back_as_its_image(shape):
    image = photograph(*shape)
    levels = laplacian_pyramid(image)
    assert len(levels) == 1 + max(0, math.floor(math.log2(min(shape) / 4)) if min(shape) > 7 else 0)
    torch.testing.assert_close(collapse(levels), image, rtol=0, atol=1e-6)


def test_a_laplacian_pyramid_splits_by_frequency():
    """Of a fine grating nearly everything is on the first level, of a flat image nothing is."""
    grating = (torch.arange(64) % 2).float().expand(3, 64, 64)
    first, *_, last = laplacian_pyramid(grating)
    torch.testing.assert_close(first, grating - 0.5, rtol=0, atol=1e-6)
    torch.testing.assert_close(last, torch.full_like(last, 0.5), rtol=0, atol=1e-6)
    *fine, last = laplacian_pyramid(torch.full((3, 40, 40), 0.3))
    assert max(level.abs().max() for level in fine) < 1e-6


def test_a_permutation_keeps_the_pixels_of_each_level_and_moves_them(monkeypatch):
    image, seen = photograph(), []
    monkeypatch.setattr(seeds, "collapse", lambda levels: (seen.extend(levels), collapse(levels))[1])
    permuted = pyramid_permutation(image, 0)
    before = laplacian_pyramid(image)
    assert [level.shape for level in seen] == [level.shape for level in before]
    for old, new in zip(before, seen, strict=True):
        pixels = [sorted(map(tuple, level.flatten(1).T.tolist())) for level in (old, new)]
        assert pixels[0] == pixels[1]  # exactly the same ones, each with its three channels
        assert not torch.equal(old, new)
    assert permuted.shape == image.shape
    torch.testing.assert_close(permuted.mean((1, 2)), image.mean((1, 2)), rtol=0, atol=0.05)


def test_a_permutation_takes_the_middle_of_the_photograph_or_all_of_it():
    image = photograph(30, 40)
    middle = pyramid_permutation(image[:, 5:25, 10:30], 0)
    assert torch.equal(made_image("pyramid-permutation", size=20, photograph=image), middle)
    assert made_image("pyramid-permutation", photograph=image).shape == image.shape
    with pytest.raises(DataError, match="30x40 px, too small for a seed image of 31 px"):
        made_image("pyramid-permutation", size=31, photograph=image)
    with pytest.raises(DataError, match="name one with --image"):
        made_image("pyramid-permutation")


def test_what_cannot_be_made_is_an_error():
    with pytest.raises(UnknownName, match="Did you mean 'pink-noise'"):
        made_image("pink")
    with pytest.raises(BadOption, match="at least 16"):
        made_image("pink-noise", size=8)
    with pytest.raises(DataError, match="leave --image out"):
        made_image("pink-noise", photograph=photograph())


def test_the_command_writes_it(tmp_path: Path) -> None:
    runner = CliRunner()
    out = tmp_path / "seed.png"
    result = runner.invoke(
        app, ["learn", "seed", "--kind", "pink-noise", "--size", "64", "--seed", "7", "-o", str(out)]
    )
    assert result.exit_code == 0
    assert str(out) in result.output
    torch.testing.assert_close(read_image(out).pixels, pink_noise(64, 7), rtol=0, atol=0.5 / 255 + 1e-6)
    kind = ["learn", "seed", "--kind", "pyramid-permutation"]
    assert runner.invoke(app, [*kind, "--image", "camera", "--size", "32", "-o", str(out)]).exit_code == 0
    assert read_image(out).pixels.shape == (3, 32, 32)
    assert runner.invoke(app, [*kind, "-o", str(out)]).exit_code == 2
    assert seed_image(str(out))[0] == "seed.png"  # which `learn mdf` takes
