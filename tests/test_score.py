"""Scoring images on disk."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from veridical.comparison.score import score
from veridical.core.errors import DataError, UnknownName


def _write(path: Path, level: int, size: tuple[int, int] = (48, 48), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (level,) * 3 if mode == "RGB" else level).save(path)


def test_psnr_of_a_constant_difference_is_the_formula(tmp_path: Path) -> None:
    """A difference of 10 levels: 20 log10(255 / 10) dB."""
    _write(tmp_path / "out.png", 110)
    _write(tmp_path / "ref.png", 100)
    rows = score(tmp_path / "out.png", tmp_path / "ref.png", ["psnr"])
    assert rows.columns == ["image", "metric", "value"]
    assert rows["value"][0] == pytest.approx(20 * math.log10(25.5), abs=1e-4)


def test_folders_match_by_path_without_suffix(tmp_path: Path) -> None:
    _write(tmp_path / "out" / "x" / "a.png", 110)
    _write(tmp_path / "ref" / "x" / "a.bmp", 100)
    rows = score(tmp_path / "out", tmp_path / "ref", ["psnr", "ssim"])
    assert rows["image"].to_list() == ["x/a", "x/a"]
    assert rows["metric"].to_list() == ["psnr", "ssim"]


def test_the_luma_and_border_options_change_the_value(tmp_path: Path) -> None:
    """Only the outer 4 pixels differ, so that leaving them out makes the images equal."""
    ref = np.full((48, 48, 3), 100, np.uint8)
    out = ref.copy()
    out[:4] = 200
    Image.fromarray(out).save(tmp_path / "out.png")
    Image.fromarray(ref).save(tmp_path / "ref.png")
    rows = score(tmp_path / "out.png", tmp_path / "ref.png", ["psnr", "psnr(channel=y, border=4)"])
    values = dict(zip(rows["metric"], rows["value"], strict=True))
    assert values["psnr"] == pytest.approx(10 * math.log10(255**2 / (100**2 / 12)), abs=1e-3)
    assert values["psnr(channel=y, border=4)"] > 80 or math.isinf(values["psnr(channel=y, border=4)"])


def test_a_reference_is_not_needed_by_a_metric_without_one(tmp_path: Path) -> None:
    stripes = np.tile((np.sin(np.arange(64)) * 100 + 128).astype(np.uint8)[None, :, None], (64, 1, 3))
    Image.fromarray(stripes).save(tmp_path / "out.png")
    rows = score(tmp_path / "out.png", None, ["sharpness-q"])
    assert rows["value"][0] > 0
    with pytest.raises(DataError, match="psnr compare with a reference"):
        score(tmp_path / "out.png", None, ["psnr", "sharpness-q"])


def test_images_without_a_partner_are_named(tmp_path: Path) -> None:
    _write(tmp_path / "out" / "a.png", 1)
    _write(tmp_path / "out" / "b.png", 1)
    _write(tmp_path / "ref" / "a.png", 1)
    _write(tmp_path / "ref" / "c.png", 1)
    with pytest.raises(DataError, match=r"2 images have no partner of the same name: .*out/b, .*ref/c\."):
        score(tmp_path / "out", tmp_path / "ref", ["psnr"])


def test_images_of_two_sizes_are_refused(tmp_path: Path) -> None:
    _write(tmp_path / "out.png", 1, (48, 48))
    _write(tmp_path / "ref.png", 1, (50, 48))
    with pytest.raises(DataError, match=r"is 48x48 px, but its reference .* is 50x48"):
        score(tmp_path / "out.png", tmp_path / "ref.png", ["psnr"])


def test_an_image_too_small_for_a_metric_is_refused(tmp_path: Path) -> None:
    for name in ("out.png", "ref.png"):
        _write(tmp_path / name, 1, (9, 9))
    with pytest.raises(DataError, match="is 9x9 px, but the metric ssim needs at least 11x11"):
        score(tmp_path / "out.png", tmp_path / "ref.png", ["ssim"])


def test_a_grey_image_beside_a_colour_one_is_taken_as_colour(tmp_path: Path) -> None:
    _write(tmp_path / "out.png", 110, mode="L")
    _write(tmp_path / "ref.png", 100)
    rows = score(tmp_path / "out.png", tmp_path / "ref.png", ["psnr"])
    assert rows["value"][0] == pytest.approx(20 * math.log10(25.5), abs=1e-4)


def test_a_file_beside_a_folder_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "out" / "a.png", 1)
    with pytest.raises(DataError, match=r"Expected two files or two folders"):
        score(tmp_path / "out", tmp_path / "out" / "a.png", ["psnr"])


def test_an_unknown_metric_suggests_the_nearest(tmp_path: Path) -> None:
    _write(tmp_path / "a.png", 1)
    with pytest.raises(UnknownName, match="Did you mean 'ms-ssim'"):
        score(tmp_path / "a.png", tmp_path / "a.png", ["msssim"])
