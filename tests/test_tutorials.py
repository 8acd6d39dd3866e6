"""What the tutorials show runs, with fewer steps: see tests/pages.py."""

from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import polars as pl
import pytest

from tests import shared
from tests.pages import run_page
from veridical.features.weights import available


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of the pages, after the first one, on which the others build."""
    folder = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patched, chdir(folder):
        if (weights := shared.ROOT / "weights").is_dir():
            patched.setenv("VERIDICAL_WEIGHTS", str(weights))
        patched.setenv("VERIDICAL_OFFLINE", "1")
        run_page("tutorials/first-comparison")
        yield folder


def labels(run: str) -> set[str]:
    return set(pl.read_parquet(f"{run}/rows.parquet")["loss"])


def test_the_first_comparison_leaves_a_report_and_restored_photographs(desk: Path) -> None:
    assert "Use " in (desk / "runs/first/report.html").read_text(encoding="utf-8")
    assert {"l1", "ssim"} <= labels("runs/first")
    assert sorted(path.stem for path in (desk / "restored").iterdir()) == ["astronaut", "camera", "chelsea", "coffee"]


@pytest.mark.usefixtures("desk")
def test_a_loss_of_ones_own_is_compared_and_runs_from_a_recipe_when_allowed() -> None:
    run_page("tutorials/own-loss")
    assert {"edges.py:EdgeL1(gain=4)", "edges.py:EdgeL1(gain=16)"} <= labels("runs/own")
    assert "edges.py:EdgeL1(gain=16)" in labels("runs/recipe")


@pytest.mark.usefixtures("desk")
def test_a_loss_is_learned_and_compared() -> None:
    run_page("tutorials/learn-a-loss")
    assert "l1 + 0.1*mdf(weights=mine.safetensors)" in labels("runs/mine")
    if available("alexnet"):
        assert "init" in labels("runs/tuned")


@pytest.mark.usefixtures("desk")
def test_made_up_raters_answer_a_study_whose_votes_are_scaled() -> None:
    run_page("tutorials/preference-study")
    scale = pl.read_csv("runs/first/scale/scale.csv")
    assert scale["votes"].sum() > 0
    assert set(scale["method"]) <= labels("runs/first")


@pytest.mark.usefixtures("desk")
def test_a_sweep_is_forecast_and_carried_out_for_two_tasks() -> None:
    run_page("tutorials/cluster")
    assert {path.parent.name for path in Path("runs/tasks").glob("*/report.html")} == {"denoise", "jpeg"}
    assert Path("estimate-large/estimate.json").is_file()
