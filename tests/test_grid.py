"""Several models, and classical methods, in one comparison: each model on every loss, on the same images."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.heard import Heard
from tests.photographs import quick_recipe, write_photographs
from veridical.cli import app
from veridical.comparison.cost import Meter
from veridical.comparison.report import markdown, read_run, table, verdict, write_report
from veridical.comparison.sweep import compare
from veridical.core.errors import DataError, RecipeError
from veridical.deconvolution import Landweber
from veridical.degradations import degradation
from veridical.training.recipe import Recipe, load_recipe

MODELS = "unet(width=4, levels=1, convs=1)", "dncnn(depth=3, width=4)"
TWO = f'models={{small = "{MODELS[0]}", plain = "{MODELS[1]}"}}'


def recipe_of(data: Path, *overrides: str) -> Recipe:
    """The quick recipe without its one model."""
    settings = [
        "degradation=box-blur(size=5)",
        'metrics=["psnr", "ssim"]',
        "training.steps=3",
        "training.batch_size=2",
        "training.crop=32",
        "training.device=cpu",
    ]
    return load_recipe(None, [*settings, f"data.train={data}", *overrides])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photos")


def _about(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "comparison.json").read_text()))


def test_every_model_is_trained_on_every_loss_and_methods_stand_beside_them(data: Path, tmp_path: Path):
    recipe = recipe_of(data, TWO, 'losses=["l1", "spl-a"]', 'classical=["wiener", "landweber(iterations=3)"]')
    run = compare(recipe, tmp_path / "run")
    about = _about(run)
    names = ["small: l1", "small: spl-a", "plain: l1", "plain: spl-a", "wiener", "landweber(iterations=3)"]
    assert [each["name"] for each in about["losses"]] == names
    assert [each.get("classical", False) for each in about["losses"]] == [False] * 4 + [True] * 2
    assert [(each["label"], each["name"], each["options"]["width"]) for each in about["models"]] == [
        ("small", "unet", 4),
        ("plain", "dncnn", 4),
    ]
    rows = pl.read_parquet(run / "rows.parquet")
    assert set(rows["loss"]) == {"input", *names}
    assert rows.height == 7 * 2
    for each in about["losses"]:
        assert each["cost"]["seconds_per_megapixel"] > 0
        assert each["cost"]["megabytes_per_megapixel"] > 0
        assert list((run / "images" / each["slug"]).glob("*.png"))
    psnr = dict(rows.filter(pl.col("metric") == "psnr").select("loss", "value").iter_rows())
    assert psnr["wiener"] > psnr["input"] + 1  # a known blur without noise


def test_a_grid_trains_as_each_model_alone(data: Path, tmp_path: Path):
    """A loss that draws or learns begins anew with every model: nothing of one training reaches the next."""
    losses = 'losses=["spl-a", "l1 + 0.01*gan"]'
    run = compare(recipe_of(data, TWO, losses), tmp_path / "both")
    alone = compare(recipe_of(data, f"model.name={MODELS[1]}", losses), tmp_path / "alone")
    for loss, slug in (("spl-a", "plain-spl-a"), ("l1-0-01-gan", "plain-l1-0-01-gan")):
        ours, theirs = load_file(run / slug / "model.safetensors"), load_file(alone / loss / "model.safetensors")
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_models_losses_and_methods_may_be_added_and_what_is_finished_stays(data: Path, tmp_path: Path):
    one = f'models={{small = "{MODELS[0]}"}}'
    compare(recipe_of(data, one, 'losses=["l1"]'), tmp_path / "run")
    heard = Heard()
    compare(recipe_of(data, TWO, 'losses=["l1"]', 'classical=["wiener"]'), tmp_path / "run", heard)
    assert heard.ends == [("small: l1", "kept"), ("plain: l1", "done")]
    assert [each["name"] for each in _about(tmp_path / "run")["losses"]] == ["small: l1", "plain: l1", "wiener"]
    with pytest.raises(RecipeError, match=r"holds another comparison: models\.small was"):
        compare(recipe_of(data, f'models={{small = "{MODELS[1]}"}}', 'losses=["l1"]'), tmp_path / "run")


def test_methods_need_no_seeds_and_count_with_every_seed(data: Path, tmp_path: Path):
    recipe = recipe_of(data, f'models={{small = "{MODELS[0]}"}}', 'losses=["l1"]', 'classical=["wiener"]')
    run = compare(recipe.model_copy(update={"training": _seeds(recipe, 2)}), tmp_path / "run")
    rows = pl.read_parquet(run / "rows.parquet")
    assert set(rows.filter(pl.col("loss") == "small: l1")["seed"]) == {0, 1}
    assert set(rows.filter(pl.col("loss") == "wiener")["seed"]) == {0}
    values = read_run(run).analysis.values
    assert values.seeds == (0, 1)
    assert values.seeds_of("wiener").shape[0] == 1
    assert values.left_out == ()


def _seeds(recipe: Recipe, count: int) -> Any:
    import dataclasses

    return dataclasses.replace(recipe.training, seeds=count)


def test_a_method_is_told_the_blur_that_each_image_was_degraded_with(tmp_path: Path):
    """Camera shake is another for every image: a method that was told one of them for all could not undo it."""
    data = write_photographs(tmp_path / "photos", 8, height=96, width=96)
    settings = ["degradation=camera-shake(size=9)", 'losses=["l1"]', 'classical=["wiener"]', f"data.evaluate={data}"]
    train = write_photographs(tmp_path / "train", seed=20)
    run = compare(recipe_of(train, *settings, "model.name=unet(width=4, levels=1, convs=1)"), tmp_path / "run")
    rows = pl.read_parquet(run / "rows.parquet").filter(pl.col("metric") == "psnr")
    wiener, before = (rows.filter(pl.col("loss") == name)["value"].to_numpy() for name in ("wiener", "input"))
    assert len(wiener) == 8
    assert (wiener - before > 5).sum() >= 7  # one is hardly blurred


def test_methods_are_refused_where_the_blur_is_not_known(data: Path, tmp_path: Path):
    recipe = recipe_of(data, "degradation=jpeg(quality=20)", 'losses=["l1"]', 'classical=["wiener"]')
    with pytest.raises(RecipeError, match=r"the blur of 'photo\d' is not known, which wiener needs\. Leave out"):
        compare(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_method_that_fails_is_named_and_all_else_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def diverge(*given: Any, **options: Any) -> None:
        del given, options
        raise DataError("the estimate grows beyond bounds")

    monkeypatch.setattr(Landweber, "run", diverge)
    recipe = recipe_of(data, f"model.name={MODELS[0]}", 'losses=["l1"]', 'classical=["landweber", "wiener"]')
    run = compare(recipe, tmp_path / "run")
    assert [(each["name"], each["status"]) for each in _about(run)["losses"]] == [
        ("l1", "done"),
        ("landweber", "failed"),
        ("wiener", "done"),
    ]
    found = read_run(run)
    assert found.failed == (("landweber", "the estimate grows beyond bounds"),)
    assert set(found.analysis.ranking) == {"l1", "wiener"}


def test_models_that_enlarge_and_models_that_keep_the_size_meet_on_one_task(data: Path, tmp_path: Path):
    models = 'models={keeps = "unet(width=4, levels=1, convs=1)", enlarges = "edsr(width=8, blocks=1, scale=2)"}'
    settings = ["degradation=bicubic-downscale(scale=2)", "training.crop=24", 'losses=["l1"]']
    run = compare(recipe_of(data, models, *settings), tmp_path / "run")
    about = {each["name"]: each for each in _about(run)["losses"]}
    assert set(about) == {"keeps: l1", "enlarges: l1"}
    described = {slug: json.loads((run / slug / "model.json").read_text()) for slug in ("keeps-l1", "enlarges-l1")}
    assert {slug: each["enlarge"] for slug, each in described.items()} == {"keeps-l1": 2, "enlarges-l1": 1}
    with pytest.raises(RecipeError, match=r"enlarges 4 times, but the degraded images are 2 times smaller .*scale=2"):
        compare(recipe_of(data, "model.name=edsr(width=8, blocks=1, scale=4)", *settings), tmp_path / "other")


def test_the_untrained_unet_on_a_small_input_gives_the_row_of_the_input(data: Path, tmp_path: Path):
    """What a model that keeps the size is fed is the picture that stands beside the truth as the input."""
    settings = ["degradation=bicubic-downscale(scale=2)", "training.crop=24", "training.steps=1", "training.lr=1e-12"]
    run = compare(
        recipe_of(data, "model.name=unet(width=4, levels=1, convs=1)", *settings, 'losses=["l1"]'), tmp_path / "run"
    )
    rows = pl.read_parquet(run / "rows.parquet")
    values = {loss: rows.filter(pl.col("loss") == loss)["value"].to_list() for loss in ("input", "l1")}
    assert values["l1"] == pytest.approx(values["input"], abs=1e-6)


def test_a_stage_too_small_for_the_loss_is_found_before_training(data: Path, tmp_path: Path):
    settings = ["model.name=srn(width=4, blocks=1)", 'losses=["ms-ssim(scales=2)"]', "training.crop=48"]
    with pytest.raises(RecipeError, match=r"a stage of the model srn makes one of 12 px of a crop of 48\. Set --crop"):
        compare(recipe_of(data, *settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_report_speaks_of_restorers_with_their_cost(data: Path, tmp_path: Path):
    run = compare(recipe_of(data, TWO, 'losses=["l1"]', 'classical=["wiener"]'), tmp_path / "run")
    found = read_run(run)
    assert found.compares_restorers
    assert "restorer" in verdict(found)
    lines = markdown(found).splitlines()
    assert lines[0].endswith("| s/MP | MB/MP |")
    assert all(line.count("|") == lines[0].count("|") for line in lines if line.startswith("|"))
    assert [column.header for column in table(found).columns][-3:] == ["s/MP", "MB/MP", "s/step"]
    page = write_report(found).read_text(encoding="utf-8")
    assert "Which restorer should I use?" in page
    assert "Model small" in page
    assert "The classical methods were told the blur of each image" in page
    assert "unet(channels=3, width=4, levels=1, convs=1), " in page


def test_the_command_says_how_many_models_and_losses_it_trains(data: Path, tmp_path: Path):
    quick = ["--steps", "1", "--crop", "32", "--batch-size", "1", "--device", "cpu", "--metrics", "psnr"]
    asked = ["--data", str(data), "--out", str(tmp_path / "run"), "--degradation", "box-blur(size=5)", *quick]
    given = ["--models", ", ".join(MODELS), "--losses", "l1,l2", "--classical", "wiener"]
    done = CliRunner().invoke(app, ["compare", *asked, *given])
    assert done.exit_code == 0, done.output
    assert "comparing 2 models on 2 losses, 4 trainings, over 1 steps each" in done.output
    assert "wiener" in done.output


def test_a_comparison_of_losses_alone_stays_one_of_losses(data: Path, tmp_path: Path):
    run = compare(quick_recipe(data, 'losses=["l1"]'), tmp_path / "run")
    found = read_run(run)
    assert not found.compares_restorers
    assert "s/MP" not in markdown(found)
    assert "Which loss should I use?" in write_report(found).read_text(encoding="utf-8")


def test_a_meter_measures_memory_on_the_first_image_and_time_on_the_others():
    meter = Meter(torch.device("cpu"))
    assert meter.cost is None
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        out = meter.run(lambda: image.double().sqrt().float())
    assert torch.equal(out, image.double().sqrt().float())
    cost = meter.cost
    assert cost is not None
    # Two tensors of doubles at once, the second beside the result in float32 once the first is released.
    assert cost["megabytes_per_megapixel"] == pytest.approx(3 * 16, rel=0.3)
    assert 0 < cost["seconds_per_megapixel"] < 100


def test_the_input_row_is_enlarged_as_models_are_fed():
    from veridical.comparison.evaluate import as_seen, quantise

    sharp = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(0))
    small = degradation("bicubic-downscale(scale=2)")(sharp)
    assert torch.equal(as_seen(small, sharp), quantise(degradation("bicubic-upscale(scale=2)")(small)))
