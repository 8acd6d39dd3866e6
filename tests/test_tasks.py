"""Comparisons of several tasks as one grid."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.heard import Heard
from tests.photographs import QUICK, quick_recipe, write_photographs
from veridical.cli import app
from veridical.comparison.sweep import compare, compare_tasks
from veridical.core.errors import DataError

SETTINGS = [each for each in QUICK if not each.startswith("degradation")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photos")


def test_the_command_compares_each_task_and_shows_them_side_by_side(data: Path, tmp_path: Path) -> None:
    options = ["--data", str(data), "--losses", "l1,l2", *(part for each in SETTINGS for part in ("--set", each))]
    run = CliRunner().invoke
    done = run(app, ["compare", "--tasks", "denoise,jpeg", *options, "--out", str(tmp_path / "runs")])
    assert done.exit_code == 0, done.output
    for task in ("denoise", "jpeg"):
        assert (tmp_path / "runs" / task / "report.html").is_file()
        assert f"report: {tmp_path / 'runs' / task / 'report.html'}" in done.output
    table = done.output[done.output.index("score by task") :]
    assert any(line.split() == ["loss", "denoise", "jpeg"] for line in table.splitlines())
    again = run(app, ["report", str(tmp_path / "runs")])
    assert again.exit_code == 0, again.output
    assert again.output[again.output.index("score by task") :] == table


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tasks", "denoise,jpeg"], "needs --out"),
        (["--tasks", "denoise,jpeg", "--task", "denoise", "--out", "x"], "takes the place of --task"),
        (["--tasks", "denoise,jpge", "--out", "x"], "Did you mean 'jpeg'"),
        (["--tasks", "denoise", "--out", "x", "--degradation", "gaussian-noise"], "would be that of all tasks"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: list[str], said: str, data: Path, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["compare", "--data", str(data), *options])
    assert done.exit_code == 2
    assert said in done.output


def test_every_task_is_checked_before_the_first_training(data: Path, tmp_path: Path) -> None:
    good = quick_recipe(data, 'losses=["l1"]')
    bad = quick_recipe(tmp_path / "none", 'losses=["l1"]')
    heard = Heard()
    with pytest.raises(DataError, match="no folder"):
        compare_tasks({"good": good, "bad": bad}, tmp_path / "runs", heard)
    assert heard.trained == []


def test_a_task_of_several_is_what_it_is_alone(data: Path, tmp_path: Path) -> None:
    recipes = {
        name: quick_recipe(data, 'losses=["l1", "spl-a"]', f"degradation={name}") for name in ("jpeg", "box-blur")
    }
    heard = Heard()
    runs = compare_tasks(recipes, tmp_path / "runs", heard)
    assert heard.ends == [(f"{task}: {loss}", "done") for task in recipes for loss in ("l1", "spl-a")]
    for task, recipe in recipes.items():
        compare(recipe, tmp_path / task)
        assert (Path(runs[task]) / "rows.csv").read_bytes() == (tmp_path / task / "rows.csv").read_bytes()
