"""Scoring images on disk."""

import math
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

from veridical.cli import app, images
from veridical.comparison import score as module
from veridical.comparison.score import score, unfinished
from veridical.core.errors import DataError, UnknownName


def _write(path: Path, level: int, size: tuple[int, int] = (48, 48), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (level,) * 3 if mode == "RGB" else level).save(path)


def test_psnr_of_a_constant_difference_is_the_formula(tmp_path: Path) -> None:
    """A difference of 10 levels: 20 log10(255 / 10) dB."""
    _write(tmp_path / "out.png", 110)
    _write(tmp_path / "ref.png", 100)
    rows = score(tmp_path / "out.png", tmp_path / "ref.png", ["psnr"]).rows
    assert rows.columns == ["image", "metric", "value"]
    assert rows["value"][0] == pytest.approx(20 * math.log10(25.5), abs=1e-4)


def test_folders_match_by_path_without_suffix(tmp_path: Path) -> None:
    _write(tmp_path / "out" / "x" / "a.png", 110)
    _write(tmp_path / "ref" / "x" / "a.bmp", 100)
    rows = score(tmp_path / "out", tmp_path / "ref", ["psnr", "ssim"]).rows
    assert rows["image"].to_list() == ["x/a", "x/a"]
    assert rows["metric"].to_list() == ["psnr", "ssim"]


def test_the_luma_and_border_options_change_the_value(tmp_path: Path) -> None:
    """Only the outer 4 pixels differ, so that leaving them out makes the images equal."""
    ref = np.full((48, 48, 3), 100, np.uint8)
    out = ref.copy()
    out[:4] = 200
    Image.fromarray(out).save(tmp_path / "out.png")
    Image.fromarray(ref).save(tmp_path / "ref.png")
    rows = score(tmp_path / "out.png", tmp_path / "ref.png", ["psnr", "psnr(channel=y, border=4)"]).rows
    values = dict(zip(rows["metric"], rows["value"], strict=True))
    assert values["psnr"] == pytest.approx(10 * math.log10(255**2 / (100**2 / 12)), abs=1e-3)
    assert values["psnr(channel=y, border=4)"] > 80 or math.isinf(values["psnr(channel=y, border=4)"])


def test_a_reference_is_not_needed_by_a_metric_without_one(tmp_path: Path) -> None:
    stripes = np.tile((np.sin(np.arange(64)) * 100 + 128).astype(np.uint8)[None, :, None], (64, 1, 3))
    Image.fromarray(stripes).save(tmp_path / "out.png")
    rows = score(tmp_path / "out.png", None, ["sharpness-q"]).rows
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
    rows = score(tmp_path / "out.png", tmp_path / "ref.png", ["psnr"]).rows
    assert rows["value"][0] == pytest.approx(20 * math.log10(25.5), abs=1e-4)


def test_a_file_beside_a_folder_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "out" / "a.png", 1)
    with pytest.raises(DataError, match=r"Expected two files or two folders"):
        score(tmp_path / "out", tmp_path / "out" / "a.png", ["psnr"])


def test_an_unknown_metric_suggests_the_nearest(tmp_path: Path) -> None:
    _write(tmp_path / "a.png", 1)
    with pytest.raises(UnknownName, match="Did you mean 'ms-ssim'"):
        score(tmp_path / "a.png", tmp_path / "a.png", ["msssim"])


def test_files_that_cannot_be_scored_are_skipped_and_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        _write(tmp_path / "out" / f"{name}.png", 110)
        _write(tmp_path / "ref" / f"{name}.png", 100)
    (tmp_path / "out" / "b.png").write_bytes(b"not an image")
    _write(tmp_path / "ref" / "c.png", 100, (50, 48))
    seen: list[tuple[int, int]] = []
    scored = score(tmp_path / "out", tmp_path / "ref", ["psnr"], on_image=lambda n, total: seen.append((n, total)))
    assert scored.rows["image"].to_list() == ["a", "d"]
    assert len(scored.skipped) == 2
    assert "b.png" in scored.skipped[0]
    assert "its reference" in scored.skipped[1]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_rows_are_on_disk_as_they_come(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        _write(tmp_path / "out" / f"{name}.png", 110)
        _write(tmp_path / "ref" / f"{name}.png", 100)
    table = tmp_path / "new" / "rows.csv"

    def stop(number: int, total: int) -> None:
        if number == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(tmp_path / "out", tmp_path / "ref", ["psnr"], table=table, on_image=stop)
    assert not table.exists()
    left = pl.read_csv(unfinished(table))
    assert left["image"].to_list() == ["a", "b"]
    rows = score(tmp_path / "out", tmp_path / "ref", ["psnr"], table=table).rows
    assert pl.read_csv(table).equals(rows)
    assert not unfinished(table).exists()


@pytest.mark.parametrize("batch_px", [1, 3 * 48 * 48, 10**9])
def test_batches_change_no_value(tmp_path: Path, batch_px: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours of one size go through together where a device gains by it; here the device is told to be one."""
    sizes = [(48, 48), (48, 48), (48, 48), (40, 48), (48, 48)]
    for number, size in enumerate(sizes):
        _write(tmp_path / "out" / f"{number}.png", 110 + number, size)
        _write(tmp_path / "ref" / f"{number}.png", 100, size)
    one_by_one = score(tmp_path / "out", tmp_path / "ref", ["psnr", "ssim"]).rows
    monkeypatch.setattr(module, "BATCH_PX", batch_px)
    monkeypatch.setattr(module, "_gains_by_batches", lambda device: True)
    batched = score(tmp_path / "out", tmp_path / "ref", ["psnr", "ssim"]).rows
    assert batched.select("image", "metric").equals(one_by_one.select("image", "metric"))
    assert batched["value"].to_list() == pytest.approx(one_by_one["value"].to_list(), rel=1e-6)


def test_the_command_scores_the_rest_and_says_so_by_its_status(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        _write(tmp_path / "out" / f"{name}.png", 110)
        _write(tmp_path / "ref" / f"{name}.png", 100)
    (tmp_path / "out" / "b.png").write_bytes(b"not an image")
    command = ["score", str(tmp_path / "out"), str(tmp_path / "ref"), "--metrics", "psnr"]
    result = CliRunner().invoke(app, [*command, "--csv", str(tmp_path / "rows.csv")])
    assert result.exit_code == 1
    assert "skipped 1 image; the means are of the others alone" in result.stderr
    assert pl.read_csv(tmp_path / "rows.csv")["image"].to_list() == ["a", "c"]
    assert "28.1308" in result.stdout


def test_many_images_are_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_LINES", 2)
    for number in range(3):
        _write(tmp_path / "out" / f"photo{number}.png", 110 + number)
        _write(tmp_path / "ref" / f"photo{number}.png", 100)
    result = CliRunner().invoke(app, ["score", str(tmp_path / "out"), str(tmp_path / "ref"), "--metrics", "psnr"])
    assert result.exit_code == 0
    assert "photo1" not in result.stdout
    assert "the values of 3 images are not shown: --csv FILE keeps them" in result.stdout
    mean = np.mean([20 * math.log10(255 / level) for level in (10, 11, 12)])
    assert f"{mean:.4f}" in result.stdout


def test_equal_images_have_a_mean_without_an_interval(tmp_path: Path) -> None:
    for number in range(2):
        _write(tmp_path / "out" / f"{number}.png", 100)
        _write(tmp_path / "ref" / f"{number}.png", 100)
    result = CliRunner().invoke(app, ["score", str(tmp_path / "out"), str(tmp_path / "ref"), "--metrics", "psnr"])
    assert result.exit_code == 0
    assert re.search(r"mean +inf", result.stdout)
    assert re.search(r"95 % interval +-", result.stdout)
