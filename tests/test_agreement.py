"""Ours beside other libraries on pairs of images: the table of `veridical bench metrics`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.photographs import photograph
from veridical.benchmark import agreement
from veridical.benchmark.cases import Case
from veridical.benchmark.peers import Peer, plain
from veridical.benchmark.supply import Supply
from veridical.cli import app
from veridical.comparison.score import pairs_of
from veridical.core.errors import UnknownName


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[Path, Path]:
    """Three pairs that differ by 2, 4 and 6 levels everywhere."""
    blurred, sharp = tmp_path / "data" / "blurred", tmp_path / "data" / "sharp"
    for folder in (blurred, sharp):
        folder.mkdir(parents=True)
    for number in range(3):
        image = photograph(number).clip(20, 200)
        Image.fromarray(image).save(sharp / f"{number}.png")
        Image.fromarray((image + 2 * (number + 1)).astype(np.uint8)).save(blurred / f"{number}.png")
    return blurred, sharp


def test_the_largest_difference_is_of_one_image(pairs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_the_error(prediction, target):
        """PSNR, plus the mean difference in levels: 2, 4 and 6 on these images."""
        error = prediction - target
        return -10 * error.square().mean().log10() + 255 * error.mean()

    def broken(*_):
        raise RuntimeError("not today")

    peers = (Peer("odd", plain(off_by_the_error), note="adds the error"), Peer("broken", plain(broken)),
             Peer("absent", plain(broken), package="no-such-package"))  # fmt: skip
    monkeypatch.setattr("veridical.benchmark.run.CASES", (Case("psnr", peers, metric=True),))
    monkeypatch.setattr(agreement, "missing_packages", lambda supply: {"no-such-package": "not installed"})
    found = agreement.agree(pairs_of(*pairs), "3 pairs", ["psnr"])
    (row,) = found.rows
    levels = np.array([2.0, 4.0, 6.0])
    assert row.ours == pytest.approx((20 * np.log10(255 / levels)).mean(), abs=1e-4)
    assert row.theirs - row.ours == pytest.approx(4, abs=1e-3)
    assert row.largest == pytest.approx(6, abs=1e-3)
    assert (row.image, row.images, row.note, row.random) == ("2", 3, "adds the error", False)
    assert found.missing == {"psnr: broken": "RuntimeError: not today", "psnr: absent": "not installed"}


def test_random_weights_are_said_of_every_metric_that_has_them(
    pairs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the second metric on the same network, too."""
    peer = (Peer("l1", plain(lambda prediction, target: (prediction - target).abs().mean())),)
    cases = tuple(Case(spec, peer, metric=True) for spec in ("lpips", "lpips(net=alex)", "psnr"))
    monkeypatch.setattr("veridical.benchmark.run.CASES", cases)
    monkeypatch.setattr(agreement, "Supply", lambda: Supply(always_random=True))
    found = agreement.agree(pairs_of(*pairs), "3 pairs")
    assert [(row.metric, row.random) for row in found.rows] == [
        ("lpips", True),
        ("lpips(net=alex)", True),
        ("psnr", False),
    ]


def test_the_command_writes_a_page(pairs: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "agreement.md"
    result = CliRunner().invoke(app, ["bench", "metrics", *map(str, pairs), "--only", "ssim", "--markdown", str(page)])
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert "3 pairs of data/blurred" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| ssim | pytorch-msssim")]
    assert float(line.split("|")[5]) < 1e-4


def test_a_metric_without_peers_is_named(pairs: tuple[Path, Path]) -> None:
    with pytest.raises(UnknownName, match="unknown case 'metric sharpnes'"):
        agreement.agree(pairs_of(*pairs), "", ["sharpnes"])
