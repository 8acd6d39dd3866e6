"""Restored images -> rows."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from veridical.comparison.evaluate import (
    as_seen,
    build_metrics,
    check_size,
    evaluate,
    evaluate_input,
    quantise,
    restored,
    write_rows,
)
from veridical.core.errors import DataError, NonFiniteLoss, UnknownName, VeridicalError, WeightsMissing
from veridical.metrics import metric
from veridical.training.data import EvaluationPair

CPU = torch.device("cpu")


SLUGS = {"a": "a", "sub/grey sky": "sub-grey-sky"}


def _pair(level: float = 0.4) -> EvaluationPair:
    sharp = torch.full((3, 48, 56), 100 / 255)
    return EvaluationPair("sub/grey sky", torch.full_like(sharp, level), sharp)


class _Add(nn.Module):
    """Adds a constant; in train mode it would add something else."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, image: Tensor) -> Tensor:
        return image + (self.value if not self.training else 0.3)


def test_pixels_are_rounded_to_the_nearest_of_256_levels() -> None:
    levels = torch.arange(256) / 255
    assert torch.equal(quantise(levels), levels)
    near = torch.tensor([10.4, 10.6, -3.0, 300.0]) / 255
    assert (quantise(near) * 255).round().tolist() == [10, 11, 0, 255]


def test_the_value_is_that_of_the_clamped_and_rounded_image(tmp_path: Path) -> None:
    """Off by 10.3 levels before rounding, hence by 10 after it: 20 log10(255/10) dB."""
    metrics = build_metrics(["psnr"])
    pair = EvaluationPair("a", torch.full((3, 48, 48), 100 / 255), torch.full((3, 48, 48), 100 / 255))
    ((row,),) = evaluate(_Add(10.3 / 255), [pair], metrics, loss="l1", slugs=SLUGS, images=tmp_path, device=CPU)
    assert row["value"] == pytest.approx(20 * math.log10(25.5), abs=1e-4)
    assert (np.asarray(Image.open(tmp_path / "a.png")) == 110).all()


def test_the_saved_image_is_the_scored_image(tmp_path: Path) -> None:
    metrics = build_metrics(["psnr", "ssim"])
    generator = torch.Generator().manual_seed(0)
    sharp = torch.rand(3, 48, 56, generator=generator)
    pair = EvaluationPair("a", sharp + 0.1 * torch.randn(3, 48, 56, generator=generator), sharp)
    (rows,) = evaluate(_Add(0.01), [pair], metrics, loss="l1", slugs=SLUGS, images=tmp_path, device=CPU)
    saved = torch.from_numpy(np.array(Image.open(tmp_path / "a.png"))).permute(2, 0, 1).float() / 255
    truth = torch.from_numpy((sharp * 255).round().numpy()) / 255
    for row in rows:
        again = float(metric(str(row["metric"]))(saved[None], truth[None])[0])
        assert row["value"] == pytest.approx(again, abs=1e-5)


def test_a_model_is_evaluated_in_eval_mode_and_left_as_it_was() -> None:
    model = _Add(0.0).train()
    pair = _pair()
    torch.testing.assert_close(restored(model, pair, CPU), quantise(pair.degraded))
    assert model.training


def test_a_model_that_diverged_is_an_error_not_a_black_image() -> None:
    with pytest.raises(NonFiniteLoss, match="restored 'sub/grey sky' to pixels that are not finite"):
        restored(_Add(float("nan")), _pair(), CPU)


def test_a_model_of_the_wrong_size_is_an_error() -> None:
    class Halve(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image[..., ::2, ::2]

    with pytest.raises(DataError, match="does not fit the task"):
        restored(Halve(), _pair(), CPU)


def test_the_degraded_image_is_scored_and_saved_beside_the_truth(tmp_path: Path) -> None:
    metrics = build_metrics(["psnr"])
    (row,) = evaluate_input([_pair(110 / 255)], metrics, slugs=SLUGS, images=tmp_path, device=CPU)
    assert row["loss"] == "input"
    assert row["image"] == "sub/grey sky"
    assert row["value"] == pytest.approx(20 * math.log10(25.5), abs=1e-4)
    assert (np.asarray(Image.open(tmp_path / "input" / "sub-grey-sky.png")) == 110).all()
    assert (np.asarray(Image.open(tmp_path / "truth" / "sub-grey-sky.png")) == 100).all()


def test_a_smaller_input_is_enlarged_to_stand_beside_the_truth() -> None:
    seen = as_seen(torch.full((3, 12, 14), 0.4), torch.zeros(3, 48, 56))
    assert seen.shape == (3, 48, 56)
    assert float((seen - 102 / 255).abs().max()) < 1e-6


def test_luma_and_border_options_are_columns_of_their_own() -> None:
    metrics = build_metrics(["psnr", "psnr(channel=y, border=4)", "psnr"])
    assert [one.name for one in metrics] == ["psnr", "psnr(channel=y, border=4)"]


def test_a_metric_without_weights_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VERIDICAL_OFFLINE", "1")
    monkeypatch.setenv("VERIDICAL_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(WeightsMissing):
        build_metrics(["psnr", "lpips"])


def test_an_unknown_metric_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'ssim'"):
        build_metrics(["sim"])


def test_a_sum_of_metrics_is_refused() -> None:
    with pytest.raises(VeridicalError, match="expected one metric"):
        build_metrics(["psnr + ssim"])


def test_an_image_too_small_for_a_metric_is_named_with_the_least_size() -> None:
    metrics = build_metrics(["psnr", "ssim"])
    with pytest.raises(DataError, match=r"'sub/grey sky' is 9x10 px, but the metric ssim needs at least 11x11"):
        check_size("sub/grey sky", 10, 9, metrics)


def test_rows_are_the_same_in_parquet_and_csv(tmp_path: Path) -> None:
    rows = [{"image": "a", "loss": "l1, scaled", "seed": 2, "metric": "psnr", "value": 30.123456789}]
    write_rows(tmp_path, rows)
    for frame in (pl.read_parquet(tmp_path / "rows.parquet"), pl.read_csv(tmp_path / "rows.csv")):
        assert frame.columns == ["image", "loss", "seed", "metric", "value"]
        assert frame.row(0) == ("a", "l1, scaled", 2, "psnr", 30.123456789)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.csv", "rows.parquet"]
