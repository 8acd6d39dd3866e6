"""Training that starts from the model of another run."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

from tests.photographs import QUICK, quick_recipe, write_photographs
from tests.test_cli import QUICK as OPTIONS
from tests.test_cli import veridical
from veridical.cli import app
from veridical.comparison import report, sweep
from veridical.comparison.start import read_start
from veridical.comparison.sweep import Observer, compare
from veridical.core.errors import DataError, RecipeError, UnknownName
from veridical.training.recipe import Recipe, load_recipe

MODELLESS = tuple(setting for setting in QUICK if not setting.startswith("model"))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(photographs, the folder of l1 in a run that trained on them in grey)."""
    folder = tmp_path_factory.mktemp("first")
    data = write_photographs(folder / "photos")
    run = compare(
        quick_recipe(data, 'losses=["l1"]', "training.steps=8", "training.lr=0.01", "model.channels=1"), folder / "run"
    )
    return data, run / "l1"


def _from(first: tuple[Path, Path], *overrides: str) -> Recipe:
    data, start = first
    return load_recipe(None, [*MODELLESS, f"data.train={data}", f'init="{start}"', 'losses=["l1", "l2"]', *overrides])


def _spy(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The weights with which each training begins."""
    starts: list[dict[str, torch.Tensor]] = []
    real = sweep.train

    def train(model: Any, *rest: Any, **named: Any) -> Any:
        starts.append({key: value.clone() for key, value in model.state_dict().items()})
        return real(model, *rest, **named)

    monkeypatch.setattr(sweep, "train", train)
    return starts


def test_every_loss_starts_from_the_weights_in_the_folder(
    first: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model comes from there too, grey as it is: the recipe names none."""
    starts = _spy(monkeypatch)
    run = compare(_from(first), tmp_path / "run")
    there = load_file(first[1] / "model.safetensors")
    assert len(starts) == 2
    for start in starts:
        assert start.keys() == there.keys()
        assert all(torch.equal(start[key], there[key]) for key in there)
    described = json.loads((run / "l1" / "model.json").read_text())
    assert described["model"]["options"] == {"channels": 1, "width": 4, "levels": 1, "convs": 1}
    assert described["init"]["folder"] == str(first[1])
    assert described["init"]["sha256"] == read_start(str(first[1])).sha256
    assert load_recipe(run / "recipe.toml").model.channels == 1
    assert (
        f"# training starts from {first[1]}: sha256 {described['init']['sha256']}" in (run / "recipe.toml").read_text()
    )


def test_where_training_started_is_judged_beside_the_losses(first: tuple[Path, Path], tmp_path: Path) -> None:
    run = compare(_from(first), tmp_path / "run")
    before = pl.read_parquet(first[1].parent / "rows.parquet").filter(pl.col("loss") == "l1")
    rows = pl.read_parquet(run / "rows.parquet")
    start = rows.filter(pl.col("loss") == "init")
    assert start.sort("metric")["value"].to_list() == before.sort("metric")["value"].to_list()
    assert list((run / "images" / "init").glob("*.png"))
    about = json.loads((run / "comparison.json").read_text())
    assert about["init"]["folder"] == str(first[1])
    assert [(each["name"], each["optimises"]) for each in about["losses"]] == [
        ("init", []),
        ("l1", []),
        ("l2", ["psnr"]),
    ]
    read = report.read_run(run)
    assert {entry.name for entry in read.entries} == {"init", "l1", "l2"}
    page = report.write_report(read).read_text()
    assert f"{first[1]}, trained on l1 for 8 steps" in page
    assert "no training.csv" not in page


def test_a_model_on_which_nobody_improved_is_named_as_such(first: tuple[Path, Path], tmp_path: Path) -> None:
    run = compare(_from(first, 'losses=["l1"]', "training.lr=5", 'metrics=["psnr"]'), tmp_path / "run")
    assert "no loss improved on the model that training started from" in report.verdict(report.read_run(run))


def test_a_stopped_training_goes_on_to_the_same_weights(first: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = _from(first, 'losses=["l1"]', "training.steps=4", "training.checkpoint_every=2")

    class Stop(Observer):
        def step(self, step: int, total: float, terms: dict[str, float], rate: float) -> None:
            del total, terms, rate
            if step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(recipe, tmp_path / "run", Stop())
    compare(recipe, tmp_path / "run")
    compare(recipe, tmp_path / "straight")
    stopped, straight = (load_file(tmp_path / run / "l1" / "model.safetensors") for run in ("run", "straight"))
    assert all(torch.equal(stopped[key], straight[key]) for key in straight)


def _copied(first: tuple[Path, Path], folder: Path) -> tuple[Path, Path]:
    return first[0], Path(shutil.copytree(first[1], folder))


def _change(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["out.weight"] += 1e-3
    save_file(weights, folder / "model.safetensors")


def test_other_weights_in_the_folder_are_noticed(first: tuple[Path, Path], tmp_path: Path) -> None:
    """In a finished run, by its comparison.json; and by the checkpoint alone, when that file is lost."""
    own = _copied(first, tmp_path / "own")
    recipe = _from(own, 'losses=["l1"]')
    run = compare(recipe, tmp_path / "run")
    written = (run / "recipe.toml").read_text()
    _change(own[1])
    with pytest.raises(RecipeError, match=r"started from other weights: sha256 \w{64}, now \w{64}"):
        compare(recipe, run)
    assert (run / "recipe.toml").read_text() == written
    (run / "comparison.json").unlink()
    with pytest.raises(RecipeError, match=r"init was sha256 \w{64}, now sha256 \w{64}"):
        compare(recipe, run)
    (run / "l1" / "result.json").unlink()
    with pytest.raises(RecipeError, match=r"other settings, at step 3: init was sha256"):
        compare(recipe, run)


def test_a_run_from_random_weights_is_not_continued_from_others(first: tuple[Path, Path], tmp_path: Path) -> None:
    run = compare(quick_recipe(first[0], 'losses=["l1"]'), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"init was None, now"):
        compare(quick_recipe(first[0], 'losses=["l1"]', f'init="{first[1]}"', "model.channels=1"), run)


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("model.name=dncnn", RecipeError, r"it holds the model unet, but the recipe names dncnn"),
        ("model.name=unet(levels=2)", RecipeError, r"a unet of levels = 1, but the recipe names 2"),
        ("model.width=8", RecipeError, r"a unet of width = 4, but the recipe names 8"),
        ("model.channels=3", RecipeError, r"a unet of channels = 1, but the recipe names 3"),
        ("model.name=unet(level=2)", UnknownName, r"Did you mean 'levels'"),
        ('losses={init = "l1"}', RecipeError, r"cannot be named 'init'"),
    ],
)
def test_a_recipe_that_contradicts_the_folder_is_refused(
    first: tuple[Path, Path], tmp_path: Path, override: str, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        compare(_from(first, override), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_agrees_with_the_folder_is_taken(first: tuple[Path, Path], tmp_path: Path) -> None:
    named = ("model.name=unet(levels=1)", "model.width=4", "model.channels=1", 'losses=["l1"]')
    run = compare(_from(first, *named), tmp_path / "run")
    assert (run / "l1" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.json").unlink(), r"holds no finished model: model\.json is missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors is missing"),
        (lambda folder: shutil.rmtree(folder), r"model\.json is missing"),
        (lambda folder: (folder / "model.json").write_text('{"model": '), r"cannot be read as the description"),
        (lambda folder: (folder / "model.json").write_text('{"model": {"name": "unet", "options": {"width": 0}}}'),
         r"describes a model that cannot be made: width of unet"),
        (lambda folder: (folder / "model.json").write_text('{"model": {"name": "vnet", "options": {}}}'),
         r"cannot be made: unknown model 'vnet'"),
        (lambda folder: (folder / "model.json").write_text('{"model": {"name": "unet", "options": {}}}'),
         r"does not fit the model 'unet'"),
        (lambda folder: (folder / "model.safetensors").write_bytes(
            (folder / "model.safetensors").read_bytes()[:-10]), r"model\.safetensors does not fit"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), r"model\.safetensors does not fit"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_started_from_is_refused(
    first: tuple[Path, Path], tmp_path: Path, spoil: Any, message: str
) -> None:
    own = _copied(first, tmp_path / "own")
    spoil(own[1])
    with pytest.raises(DataError, match=message):
        compare(_from(own), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- the commands ----


def test_train_leaves_a_folder_that_every_other_command_uses(tmp_path: Path) -> None:
    data, run = write_photographs(tmp_path / "photos"), tmp_path / "first"
    result = veridical("train", "--data", data, "--loss", "l1", "--out", run, *OPTIONS)
    assert result.exit_code == 0, result.output
    assert "nothing to compare" not in result.output
    assert f"model: {run / 'l1'}\n" in result.output
    assert f"--run {run / 'l1'} --out" in result.output
    assert f"veridical train --init {run / 'l1'} " in result.output
    sharper = "l1 + 0.01*sharpness-q(variant=singular)"
    on = ("--steps", 2, "--batch-size", 2, "--crop", 32, "--device", "cpu", "--metrics", "psnr,ssim")
    start = ("--init", run / "l1", "--lr", 1e-5, "--degradation", "box-blur(size=5)")
    result = veridical("train", "--data", data, "--loss", sharper, "--out", tmp_path / "second", *start, *on)
    assert result.exit_code == 0, result.output
    for word in ("init", "degraded input", "PSNR", "Use "):
        assert word in result.output
    (slug,) = (path.parent for path in (tmp_path / "second").glob("*/model.json"))
    assert json.loads((slug / "model.json").read_text())["init"]["folder"] == str(run / "l1")
    assert veridical("report", tmp_path / "second").exit_code == 0
    result = veridical("restore", data, "--run", slug, "--out", tmp_path / "restored", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "restored").glob("*.png"))) == 4
    losses = ("--losses", "l1,l1 + 0.1*sharpness-q", "--out", tmp_path / "third")
    result = veridical("compare", "--data", data, "--init", slug, *losses, *start[2:], *on)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "third" / "comparison.json").read_text())["init"]["folder"] == str(slug)


def test_train_repeats_itself_from_its_own_recipe(tmp_path: Path) -> None:
    data, run = write_photographs(tmp_path / "photos"), tmp_path / "run"
    assert veridical("train", "--data", data, "--loss", "l1", "--out", run, *OPTIONS).exit_code == 0
    again = veridical("train", run / "recipe.toml", "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    one, two = (load_file(folder / "l1" / "model.safetensors") for folder in (run, tmp_path / "again"))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no loss was named. Expected --loss"),
        (("--loss", "l1,l2"), "one loss is trained at a time, but 2 are named: l1, l2"),
        (("--loss", "l1", "--init", "nowhere"), "nowhere holds no finished model: model.json is missing"),
    ],
)
def test_train_says_what_is_missing(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    data = write_photographs(tmp_path / "photos")
    result = veridical("train", "--data", data, "--out", tmp_path / "run", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "run").exists()


def test_commands_that_train_take_the_same_options() -> None:
    compare_help, train_help = (
        {param.name for param in typer.main.get_command(app).commands[name].params}  # type: ignore[attr-defined]
        for name in ("compare", "train")
    )
    assert compare_help - train_help == {"losses", "seeds", "models", "classical", "tasks", "on"}
    assert train_help - compare_help == {"loss"}
    assert {"init", "lr", "steps", "data", "settings", "out"} <= train_help
