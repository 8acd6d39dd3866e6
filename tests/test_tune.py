"""The search of weights: fair trials, scores that compare, no leak, and a search that goes on where it was stopped."""

import json
import math
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.heard import Heard
from tests.photographs import QUICK, quick_recipe, write_photographs
from veridical.cli import app
from veridical.comparison import report, sweep
from veridical.comparison.charts import dots
from veridical.comparison.sweep import compare
from veridical.comparison.tune import Search, Searched, Trial, _suggested, tune
from veridical.core.errors import BadOption, MissingExtra, NonFiniteLoss, RecipeError, VeridicalError
from veridical.training.recipe import Recipe

pytest.importorskip("optuna")

LOSS = 'losses=["l1 + 0.1*ssim"]'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photos", 8)


def searched(data: Path, *more: str) -> Recipe:
    """Steps that move the model: a few, at a high learning rate."""
    return quick_recipe(data, LOSS, "training.lr=0.02", *more)


def found(search: Search) -> list[tuple[str, float | None]]:
    return [(trial.spec, trial.score) for trial in search.trials]


# A search


def test_a_search_tries_weights_around_those_given_and_keeps_all_that_it_saw(data: Path, tmp_path: Path) -> None:
    search = tune(searched(data), tmp_path / "run", trials=4, span=10)
    assert search.trials[0].spec == "l1 + 0.1*ssim"
    weights = [trial.weights[0] for trial in search.trials]
    assert len(set(weights)) == 4
    assert all(0.01 <= weight <= 1 for weight in weights)
    assert [trial.status for trial in search.trials] == ["done"] * 4
    assert search.best.score == max(trial.score or 0 for trial in search.trials)
    about = json.loads((search.folder / "tune.json").read_text())
    assert about["best"] == {"spec": search.best.spec, "score": search.best.score, "trial": search.best.number}
    assert [(each["spec"], each["score"]) for each in about["trials"]] == found(search)
    assert about["score"]["formula"] == "PSNR / PSNR of the input · SSIM / SSIM of the input"


def test_the_score_is_equation_7_over_the_degraded_input(data: Path, tmp_path: Path) -> None:
    """By hand, from the rows on disk; and ranked as equation 7 ranks the table, whose extremes are other numbers."""
    search = tune(searched(data), tmp_path / "run", trials=3)
    rows = pl.read_parquet(search.folder / "rows.parquet")
    means = {
        (loss, metric): value
        for loss, metric, value in rows.group_by("loss", "metric")
        .agg(pl.col("value").mean())
        .select("loss", "metric", "value")
        .iter_rows()
    }
    for trial in search.trials:
        expected = math.prod(means[trial.spec, metric] / means["input", metric] for metric in ("psnr", "ssim"))
        assert trial.score == pytest.approx(expected, rel=1e-9)
    assert len({trial.score for trial in search.trials}) == 3
    ranking = report.read_run(search.folder).analysis.ranking
    assert list(ranking) == [t.spec for t in sorted(search.trials, key=lambda t: -(t.score or 0))]


def test_weights_are_not_chosen_on_photographs_that_a_comparison_evaluates_on(data: Path, tmp_path: Path) -> None:
    heard = Heard()
    tune(searched(data), tmp_path / "search", heard, trials=1)
    compare(searched(data), tmp_path / "comparison")
    judged = {
        run: {each["name"] for each in json.loads((tmp_path / run / "comparison.json").read_text())["images"]}
        for run in ("search", "comparison")
    }
    assert judged["search"]
    assert not judged["search"] & judged["comparison"]
    described = json.loads((tmp_path / "search" / "tune.json").read_text())["photographs"]
    assert described["train"].startswith("6 photographs")  # of 8: one set aside, one to choose by
    assert any(note.startswith("not looked at: 1 photograph") for note in heard.notes)


def test_evaluation_photographs_that_are_named_are_set_aside(data: Path, tmp_path: Path) -> None:
    test = write_photographs(data / "test", 4, seed=40)
    search = tune(searched(data, f"data.evaluate={test}"), tmp_path / "run", trials=1)
    about = json.loads((search.folder / "comparison.json").read_text())
    assert about["dataset"]["train"].startswith("6 photographs")
    assert [image["name"].startswith("test/") for image in about["images"]] == [False, False]


def test_every_trial_starts_from_the_same_weights_on_the_same_batches(data: Path, tmp_path: Path) -> None:
    """A trial with the weights of another would be the same training: here those of a comparison's loss."""
    search = tune(searched(data), tmp_path / "run", trials=2)
    again = tune(
        quick_recipe(data, f'losses=["{search.trials[1].spec}"]', "training.lr=0.02"), tmp_path / "again", trials=1
    )
    one, other = (
        load_file(s.folder / slug / "model.safetensors") for s, slug in ((search, "trial-002"), (again, "trial-001"))
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert again.trials[0].score == search.trials[1].score


# A search that goes on


def test_a_stopped_search_goes_on_to_the_same_trials(data: Path, tmp_path: Path) -> None:
    """Stopped in the second trial, after its checkpoint at step 2."""
    recipe = searched(data, "training.steps=4", "training.checkpoint_every=2")

    class Stop(Heard):
        def step(self, step: int, total: float, terms: dict[str, float], rate: float) -> None:
            del total, terms, rate
            if len(self.starts) == 2 and step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(recipe, tmp_path / "run", Stop(), trials=3)
    about = json.loads((tmp_path / "run" / "tune.json").read_text())
    assert [each["status"] for each in about["trials"]] == ["done", "running"]
    heard = Heard()
    resumed = tune(recipe, tmp_path / "run", heard, trials=3)
    assert heard.ends == [("trial 1", "kept"), ("trial 2", "done"), ("trial 3", "done")]
    assert heard.starts == [2, 0]
    straight = tune(recipe, tmp_path / "straight", trials=3)
    assert found(resumed) == found(straight)


def test_more_trials_are_added_to_a_finished_search(data: Path, tmp_path: Path) -> None:
    tune(searched(data), tmp_path / "run", trials=2)
    heard = Heard()
    longer = tune(searched(data), tmp_path / "run", heard, trials=3)
    assert heard.ends == [("trial 1", "kept"), ("trial 2", "kept"), ("trial 3", "done")]
    assert len(heard.starts) == 1
    assert found(longer) == found(tune(searched(data), tmp_path / "straight", trials=3))
    shorter = tune(searched(data), tmp_path / "run", trials=1)  # what is there is not forgotten
    assert found(shorter) == found(longer)
    about = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert [each["name"] for each in about["losses"]] == [trial.spec for trial in longer.trials]


def test_other_metrics_score_again_without_training(data: Path, tmp_path: Path) -> None:
    tune(searched(data), tmp_path / "run", trials=2)
    heard = Heard()
    search = tune(searched(data, 'metrics=["psnr"]'), tmp_path / "run", heard, trials=2)
    assert heard.starts == []
    assert search.formula == "PSNR / PSNR of the input"
    assert search.trials[1].score == pytest.approx(search.trials[1].means["psnr"] / search.input["psnr"])


# What is suggested


def _trial(number: int, weights: list[float], optimum: list[float]) -> Trial:
    score = -sum(math.log(weight / best) ** 2 for weight, best in zip(weights, optimum, strict=True))
    return Trial(number, "", weights, "done", score)


def test_the_search_closes_in_on_the_best_weights() -> None:
    """A made-up score with its top at 0.02 and -3. Over 12 seeds, half of trials 21 to 40 were within 3.9 (2.5 to 4.9)
    times of it; of weights drawn by chance, within 15 times."""
    ranges = (Searched("ssim", 0.1, 0.001, 10.0), Searched("sharpness-q", -1.0, 0.01, 100.0))
    optimum = [0.02, -3.0]
    search = Search(Path(), "", 100, ranges, "", "", {}, [])
    for number in range(1, 41):
        weights = _suggested(search, number, seed=0)
        assert all(each.low <= abs(weight) <= each.high for each, weight in zip(ranges, weights, strict=True))
        assert weights[1] < 0 < weights[0]
        search.trials.append(_trial(number, weights, optimum))
    assert search.trials[0].weights == [0.1, -1.0]
    late = [math.exp(math.sqrt(-(trial.score or 0) / 2)) for trial in search.trials[20:]]
    assert sorted(late)[len(late) // 2] < 6


def test_suggestions_depend_on_the_seed_and_the_trials_alone() -> None:
    ranges = (Searched("ssim", 0.1, 0.001, 10.0),)
    search = Search(Path(), "", 100, ranges, "", "", {}, [_trial(1, [0.1], [0.5])])
    torch.rand(3)
    first = _suggested(search, 2, seed=0)
    assert _suggested(search, 2, seed=0) == first
    assert _suggested(search, 2, seed=1) != first
    assert _suggested(search, 3, seed=0) != first


# What can go wrong


def test_without_optuna_the_extra_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)  # an import of it now fails
    with pytest.raises(MissingExtra, match=r"pip install \"veridical\[tune\]\""):
        tune(searched(data), tmp_path / "run", trials=1)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ('["l1"]', "is not a sum"),
        ('["l1 + l2", "l1"]', "takes one loss"),
        ('["l1 + auto*ssim"]', "is auto, but a search begins at a number"),
        ('["l1 + 0*ssim"]', r"is 0\.0, but a search begins at a number"),
        ('["l1 + 0.1*sim"]', "Did you mean 'ssim'"),
    ],
)
def test_a_loss_that_cannot_be_searched_is_an_error_that_says_why(
    losses: str, message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(VeridicalError, match=message):
        tune(quick_recipe(data, f"losses={losses}"), tmp_path / "run", trials=1)
    assert not (tmp_path / "run").exists()


def test_impossible_numbers_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="number of trials"):
        tune(searched(data), tmp_path / "run", trials=0)
    with pytest.raises(BadOption, match="range of the weights"):
        tune(searched(data), tmp_path / "run", span=1)
    with pytest.raises(RecipeError, match="trains on one device"):
        tune(searched(data, "training.devices=2"), tmp_path / "run")


def test_another_search_or_a_comparison_in_the_same_folder_is_refused(data: Path, tmp_path: Path) -> None:
    tune(searched(data), tmp_path / "run", trials=1)
    with pytest.raises(RecipeError, match="over a range of 100, now 10"):
        tune(searched(data), tmp_path / "run", trials=1, span=10)
    with pytest.raises(RecipeError, match="holds another comparison"):
        tune(quick_recipe(data, 'losses=["l1 + 0.2*ssim"]', "training.lr=0.02"), tmp_path / "run", trials=1)
    with pytest.raises(RecipeError, match="on other photographs"):
        compare(searched(data), tmp_path / "run")
    compare(searched(data), tmp_path / "comparison")
    with pytest.raises(RecipeError, match="holds a comparison, not a search"):
        tune(searched(data), tmp_path / "comparison", trials=1)


def test_a_trial_that_diverges_is_recorded_and_the_search_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sweep.train

    def second_fails(model, loss, samples, settings, folder, **rest):
        if folder.name == "trial-002":
            raise NonFiniteLoss("the term ssim became NaN")
        return real(model, loss, samples, settings, folder, **rest)

    monkeypatch.setattr(sweep, "train", second_fails)
    search = tune(searched(data), tmp_path / "run", trials=3)
    assert [trial.status for trial in search.trials] == ["done", "failed", "done"]
    assert search.trials[1].score is None
    assert search.trials[1].error == "the term ssim became NaN"
    assert search.best.number != 2
    again = Heard()
    tune(searched(data), tmp_path / "run", again, trials=3)
    assert again.ends[1] == ("trial 2", "failed")
    assert again.starts == []


def test_a_search_of_nothing_but_failures_says_so(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_, **__):
        raise NonFiniteLoss("the term l1 became NaN")

    monkeypatch.setattr(sweep, "train", fails)
    with pytest.raises(NonFiniteLoss, match=r"every trial failed.*the term l1 became NaN"):
        tune(searched(data), tmp_path / "run", trials=2)


def test_a_full_device_stops_the_search_and_the_trial_is_tried_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(sweep, "train", full)
        with pytest.raises(VeridicalError, match="too little memory"):
            tune(searched(data), tmp_path / "run", trials=2)
    assert [trial.status for trial in tune(searched(data), tmp_path / "run", trials=1).trials] == ["done"]


# The command


def test_the_command_prints_the_best_as_a_line_to_paste_and_draws_the_scores(data: Path, tmp_path: Path) -> None:
    settings = [part for setting in QUICK for part in ("--set", setting)]
    out = tmp_path / "run"
    command = ["tune", "--losses", "l1 + 0.1*ssim + 0.5*edge", "--data", str(data), "--trials", "3", "--out", str(out)]
    result = CliRunner().invoke(app, [*command, *settings, "--set", "training.lr=0.02"])
    assert result.exit_code == 0, result.output
    best = json.loads((out / "tune.json").read_text())["best"]
    assert f"\n  {best['spec']}\n" in result.output
    assert f"{best['score']:.4f}" in result.output
    for number in (1, 2, 3):
        assert f"trial {number}: done" in result.output
    assert (out / "report.html").is_file()
    svg = ET.parse(out / "tune.svg").getroot()
    assert len(svg.findall(".//{*}circle")) == 2 * 3  # a dot for each trial beside each weight
    texts = [text.text for text in svg.findall(".//{*}text")]
    assert "weight of ssim" in texts
    assert "weight of edge" in texts


def test_the_dots_stand_where_the_numbers_are() -> None:
    drawn = dots([(0.01, 1.0, "a"), (0.1, 1.2, "b"), (1.0, 1.1, "c")], best=1, width=360, height=300)
    first, second, third = drawn.dots
    assert second.x - first.x == pytest.approx(third.x - second.x)  # equal factors, equal distances
    assert second.y < third.y < first.y
    ticks = {tick.text: tick.at for tick in drawn.x_ticks}
    assert ticks["0.1"] == pytest.approx(second.x)
