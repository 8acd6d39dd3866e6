"""The page of the grid: what it says of rows whose answer is known."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from scipy import stats

from experiments import finding, reproduce
from veridical.comparison.statistics import paired_p, wilcoxon_p


def rows() -> pl.DataFrame:
    """24 images; beside L1 alone every pair has 0.01 more LPIPS, but pixels x l2, which has 0.1 less."""
    noise = np.random.default_rng(0).normal(0, 0.001, (26, 24))
    names = [f"{features} x {distance}" for features in finding.FEATURES for distance in finding.DISTANCES]
    lpips = dict.fromkeys(names, 0.31) | {"pixels x l2": 0.2, finding.ALONE: 0.3}
    found = [
        (f"{image:02}", name, 0, metric, value + noise[k, image])
        for k, (name, level) in enumerate(lpips.items())
        for image in range(24)
        for metric, value in (("lpips", level), ("psnr", 24.0))
    ]
    return pl.DataFrame(found, schema=["image", "loss", "seed", "metric", "value"], orient="row")


def test_a_cell_has_its_lead_over_l1_alone_with_an_interval():
    cell = finding.cells(rows())["pixels x l2"]
    assert cell.change.value == pytest.approx(-0.1, abs=0.001)
    assert cell.change.low < cell.change.value < cell.change.high
    assert cell.supported
    assert finding.cells(rows())["vgg16 x l1"].change.value == pytest.approx(0.01, abs=0.001)


def test_p_is_two_sided_and_held_to_scipy():
    differences = np.random.default_rng(1).normal(0.3, 1, 24)
    for side in (differences, -differences):
        found = finding.two_sided(lambda each: paired_p(each, np.zeros_like(each)), side)
        assert found == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
        assert finding.two_sided(wilcoxon_p, side) == pytest.approx(stats.wilcoxon(differences).pvalue)


def test_a_cell_like_l1_alone_is_not_supported():
    alone = finding.by_image(rows(), "lpips")[finding.ALONE]
    shifted = alone + np.tile([0.001, -0.001], 12)
    values = dict(zip([f"{k:02}" for k in range(24)], shifted, strict=True))
    changed = rows().with_columns(
        pl.when((pl.col("loss") == "pixels x l1") & (pl.col("metric") == "lpips"))
        .then(pl.col("image").replace_strict(values))
        .otherwise(pl.col("value"))
        .alias("value")
    )
    assert not finding.cells(changed)["pixels x l1"].supported


def test_the_map_frames_the_best_and_says_what_a_step_costs():
    svg = finding.heat_map(rows(), {finding.ALONE: 0.1, "pixels x l2": 0.25}, "deblur")
    assert svg.count('stroke="#17191c" stroke-width="3"') == 1
    assert "2.5×" in svg
    assert "the lowest LPIPS, 0.200" in svg


def test_a_place_without_a_run_stays_as_it_is(tmp_path):
    page = "before\n<!-- grid: deblur -->\nkept\n<!-- end -->\n<!-- equal: deblur -->\n<!-- end -->\nafter"
    filled, missing = finding.fill(page, tmp_path, tmp_path / "page.md")
    assert filled == page
    assert missing == ["grid deblur", "equal deblur"]


def test_each_loss_of_equal_cost_makes_the_steps_that_fit_its_budget(tmp_path, monkeypatch):
    costs = [SimpleNamespace(name="l1", seconds=0.1), SimpleNamespace(name="mdf", seconds=2.0)]
    monkeypatch.setattr(reproduce, "read_measured", lambda path: SimpleNamespace(steps=costs))
    arguments = type(
        "Arguments", (), {"out": str(tmp_path), "set": [], "train": "t", "evaluate": "e", "scale": "small"}
    )
    estimate, *commands = reproduce.commands("equal-cost:jpeg", arguments)
    assert estimate[0] == "estimate"
    steps = [command[command.index("--steps") + 1] for command in commands]
    assert steps == [str(round(reproduce.BUDGET_S / 0.1)), str(round(reproduce.BUDGET_S / 2))]


def test_the_grids_recipe_has_a_cell_for_every_pair(tmp_path):
    from veridical.training.recipe import load_recipe

    file = tmp_path / "grid.toml"
    file.write_text((reproduce.HERE / "grid.toml").read_text().replace("TASK", "jpeg").replace("RUNS", "runs"))
    names = {f"{features} x {distance}" for features in finding.FEATURES for distance in finding.DISTANCES}
    assert set(load_recipe(file).losses) == names | {finding.ALONE}


def test_across_says_who_wins_each_task_and_what_a_cheap_step_wins():
    grids = {"deblur": rows(), "jpeg": rows()}
    costs = {finding.ALONE: 0.1, "pixels x l2": 0.25, "pixels x l1": 0.11, "random x l1": 0.12}
    text = finding.across_block(grids, costs)
    assert text.count("| pixels × l2: −0.100 ●, +0.00 dB |") == 2
    cheap = [line.split(" | ")[2] for line in text.splitlines()[2:4]]
    lowest = min("pixels x l1", "random x l1", key=lambda name: finding.cells(rows())[name].lpips)
    assert all(said.startswith(lowest.replace(" x ", " × ")) for said in cheap)
    assert text.count("| 1, 24, 0 |") == 2
    assert "| l2 | −0.012 | −0.012 |" in text  # (4 x 0.01 - 0.1) / 5
    assert "| pixels | −0.012 | −0.012 |" in text
    assert "| pixels × l2 | 1.0 | 1 | −0.100 ● | −0.100 ● |" in text


def test_across_names_a_pair_that_failed_in_one_task():
    lacking = rows().filter(pl.col("loss") != "mdf x l2")
    text = finding.across_block({"deblur": rows(), "jpeg": lacking}, {})
    (line,) = [line for line in text.splitlines() if line.startswith("| mdf × l2 | ")]
    assert line.endswith("| +0.010 ● | failed |")


def test_trainings_beside_l1_alone_of_the_same_seed():
    leads = {0: -0.02, 1: -0.04, 2: -0.03}
    of_seed = [
        rows()
        .filter(pl.col("loss").is_in(["pixels x wasserstein", finding.ALONE]))
        .with_columns(
            pl.lit(seed).alias("seed"),
            pl.when((pl.col("loss") == finding.ALONE) & (pl.col("metric") == "lpips"))
            .then(0.5)  # every training of L1 alone begins at another level
            .when((pl.col("loss") != finding.ALONE) & (pl.col("metric") == "lpips"))
            .then(0.5 + lead + (pl.col("image").cast(pl.Int64) % 2 - 0.5) * 0.001)
            .otherwise(pl.col("value"))
            .alias("value"),
        )
        .with_columns(pl.when(pl.col("metric") == "lpips").then(pl.col("value") + seed).otherwise(pl.col("value")))
        for seed, lead in leads.items()
    ]
    found = pl.concat(of_seed)
    values = finding.by_training(found, "pixels x wasserstein", "lpips")
    assert values.shape == (3, 24)
    assert values.mean(axis=1) == pytest.approx(list(leads.values()))
    (line,) = finding.trainings_block({"jpeg": found}).splitlines()[2:]
    assert line.startswith("| jpeg | pixels × wasserstein | −0.020, −0.040, −0.030 | −0.030 (")
    low = stats.t.interval(0.95, 2, loc=-0.03, scale=stats.sem([-0.02, -0.04, -0.03]))[0]
    assert f"(−{-low:.3f} to " in line  # images differ by next to nothing: the interval is that over trainings
