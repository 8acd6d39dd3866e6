"""Several trainings of each loss: what a seed changes and what it must not, resumed, added to, and failed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.heard import Heard
from tests.photographs import QUICK, quick_recipe, write_photographs
from tests.test_cli import QUICK as OPTIONS
from tests.test_cli import veridical
from veridical.comparison import sweep
from veridical.comparison.report import read_run, write_report
from veridical.comparison.restore import load_model
from veridical.comparison.statistics import SCHEMA
from veridical.comparison.sweep import compare
from veridical.core.errors import NonFiniteLoss, RecipeError
from veridical.losses import Loss, at_seed, loss
from veridical.training.recipe import load_recipe

MOVES = ("training.steps=8", "training.lr=0.02")  # so far that an image of 8 bits shows it
NOISY = "degradation=gaussian-noise(sigma_8bit=20)"


class _Heard(Heard):
    """Hears errors as notes, too, and how many trainings there will be."""

    begun: tuple[list[str], int] = ([], 0)

    def begins(self, folder: Path, trainings: Any, steps: int, seeds: int = 1, models: int = 1) -> None:
        del folder, steps, models
        self.begun = (list(trainings), seeds)

    def loss_ends(self, name: str, status: str, seconds: float, error: str | None) -> None:
        super().loss_ends(name, status, seconds, error)
        if error:
            self.notes.append(error)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photos", 6)


def _about(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "comparison.json").read_text()))


def _weights(run: Path) -> dict[str, bytes]:
    """Every trained model of a run, by its place."""
    files = [path for path in sorted(run.rglob("model.safetensors")) if "checkpoints" not in path.parts]
    return {path.parent.relative_to(run).as_posix(): path.read_bytes() for path in files}


# ---- what a seed changes ----


class _Seen:
    """What each training began with, and was given."""

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.starts: list[dict[str, Tensor]] = []
        self.batches: list[list[tuple[Tensor, Tensor]]] = []
        self.labels: list[str] = []


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> _Seen:
    found, real = _Seen(), sweep.train

    def spy(model: Any, one: Any, samples: Any, settings: Any, folder: Path, **rest: Any) -> Any:
        found.folders.append("/".join(folder.parts[-2:]) if folder.name.startswith("seed-") else folder.name)
        found.starts.append({key: value.clone() for key, value in model.state_dict().items()})
        found.labels.append(one.label)
        batches: list[tuple[Tensor, Tensor]] = []
        found.batches.append(batches)
        forward = model.forward

        def listen(degraded: Tensor) -> Any:
            batches.append((degraded.clone(), samples[len(batches)][1]))
            return forward(degraded)

        model.forward = listen
        return real(model, one, samples, settings, folder, **rest)

    monkeypatch.setattr(sweep, "train", spy)
    return found


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def test_every_loss_sees_the_same_seeds_and_each_seed_other_weights_and_crops(
    data: Path, tmp_path: Path, seen: _Seen
) -> None:
    """Two losses, one of which draws; three seeds, each of which trains both before the next."""
    heard = _Heard()
    recipe = quick_recipe(data, 'losses=["spl-a", "l1"]', NOISY, "training.seeds=3", "training.seed=4")
    run = compare(recipe, tmp_path / "run", heard)
    assert seen.folders == ["spl-a", "l1", "spl-a/seed-5", "l1/seed-5", "spl-a/seed-6", "l1/seed-6"]
    assert seen.labels == ["spl-a", "l1", "spl-a(seed=1)", "l1", "spl-a(seed=2)", "l1"]
    assert heard.begun == ([f"{each}, seed {seed}" for seed in (4, 5, 6) for each in ("spl-a", "l1")], 3)
    for seed in range(3):
        spl, l1 = 2 * seed, 2 * seed + 1
        assert _equal(seen.starts[spl], seen.starts[l1])
        for (degraded, sharp), (other, truth) in zip(seen.batches[spl], seen.batches[l1], strict=True):
            assert torch.equal(degraded, other)
            assert torch.equal(sharp, truth)
    for one, other in ((1, 3), (1, 5), (3, 5)):
        assert not _equal(seen.starts[one], seen.starts[other])
        assert not torch.equal(seen.batches[one][0][0], seen.batches[other][0][0])
    about = _about(run)
    assert about["seeds"] == [4, 5, 6]
    assert [(each["name"], each["status"], each["seeds"]) for each in about["losses"]] == [
        ("spl-a", "done", [4, 5, 6]),
        ("l1", "done", [4, 5, 6]),
    ]


def test_the_training_with_a_seed_is_that_of_a_run_with_this_seed_alone(data: Path, tmp_path: Path) -> None:
    """Where the loss draws nothing; and what is evaluated on is that of the first seed, noise and all."""
    several = compare(quick_recipe(data, 'losses=["l1"]', NOISY, "training.seeds=2"), tmp_path / "several")
    alone = compare(quick_recipe(data, 'losses=["l1"]', NOISY, "training.seed=1"), tmp_path / "alone")
    first = compare(quick_recipe(data, 'losses=["l1"]', NOISY), tmp_path / "first")
    assert _weights(several) == {"l1": _weights(first)["l1"], "l1/seed-1": _weights(alone)["l1"]}
    told = [json.loads((several / place / "result.json").read_text())["trained"] for place in ("l1", "l1/seed-1")]
    assert [each["training.seed"] for each in told] == ["0", "1"]
    for picture in (several / "images" / "input").glob("*.png"):
        assert picture.read_bytes() == (first / "images" / "input" / picture.name).read_bytes()
        assert picture.read_bytes() != (alone / "images" / "input" / picture.name).read_bytes()


def test_the_rows_say_the_seed_and_the_pictures_are_of_the_first(data: Path, tmp_path: Path) -> None:
    run = compare(quick_recipe(data, 'losses=["l1", "l2"]', "training.seeds=2", *MOVES), tmp_path / "run")
    assert "2 training seeds hardly tell how much trainings differ; prefer --seeds 3 or more" in _about(run)["notes"]
    first = compare(quick_recipe(data, 'losses=["l1", "l2"]', *MOVES), tmp_path / "first")
    rows = pl.read_parquet(run / "rows.parquet")
    assert rows.schema == SCHEMA
    counts = {(name, seed): count for name, seed, count in rows.group_by("loss", "seed").len().iter_rows()}
    images = len(_about(run)["images"])
    assert counts == {("input", 0): 2 * images} | {(name, seed): 2 * images for name in ("l1", "l2") for seed in (0, 1)}
    assert rows.filter(pl.col("seed") == 0).equals(pl.read_parquet(first / "rows.parquet"))
    values = [rows.filter((pl.col("loss") == "l1") & (pl.col("seed") == seed))["value"] for seed in (0, 1)]
    assert (values[0] != values[1]).all()
    pictures = {path.relative_to(run / "images").as_posix(): path.read_bytes() for path in run.rglob("images/*/*.png")}
    assert pictures == {
        path.relative_to(first / "images").as_posix(): path.read_bytes() for path in first.rglob("images/*/*.png")
    }


def test_a_run_with_one_seed_has_the_files_that_it_had_before(data: Path, tmp_path: Path) -> None:
    run = compare(quick_recipe(data, 'losses=["l1"]'), tmp_path / "run")
    files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    image = _about(run)["images"][0]["slug"]
    assert {name for name in files if not name.startswith("l1/events")} == {
        "comparison.json",
        "recipe.toml",
        "rows.csv",
        "rows.parquet",
        *(f"images/{folder}/{image}.png" for folder in ("input", "truth", "l1")),
        "images/input/rows.json",
        *(f"l1/{name}" for name in ("training.csv", "result.json", "model.json", "model.safetensors")),
        *(f"l1/checkpoints/step-00000003/{name}" for name in ("model.safetensors", "state.safetensors", "state.json")),
    }
    assert set(json.loads((run / "l1" / "result.json").read_text())["rows"][0]) == {"image", "loss", "metric", "value"}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("l1", "l1"),
        ("0.50*l2", "0.50*l2"),
        ("spl-a", "spl-a(seed=2)"),
        ("spl-a(seed=7)", "spl-a(seed=9)"),
        ("l1 + auto(ratio=0.1)*pdl(projections=8)", "l1 + auto(ratio=0.1)*pdl(projections=8, seed=2)"),
        ("l1 + 0.1*ragan(start=5) + 2*gan(seed=1)", "l1 + 0.1*ragan(start=5, seed=2) + 2*gan(seed=3)"),
    ],
)  # fmt: skip
def test_what_a_loss_draws_is_shifted_by_the_seed(spec: str, expected: str) -> None:
    assert at_seed(spec, 2) == expected
    assert at_seed(spec, 0) == spec


def test_the_draws_of_a_training_are_others(tmp_path: Path) -> None:
    """Of a loss in the table, and of one of one's own that takes a seed; one that does not stays."""
    images = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    own = tmp_path / "own.py"
    own.write_text(
        "from veridical.losses import Loss\n\n\n"
        "class Drawn(Loss):\n"
        "    def __init__(self, *, seed: int | None = None):\n"
        "        super().__init__()\n"
        "        self.seed = seed or 0\n\n"
        "    def compare(self, prediction, data):\n"
        "        return (prediction - data).flatten(1).abs().mean(1) * (1 + self.seed)\n\n\n"
        "class Plain(Loss):\n"
        "    def compare(self, prediction, data):\n"
        "        return (prediction - data).flatten(1).abs().mean(1)\n"
    )

    def value(spec: str) -> float:
        made: Loss = loss(spec)
        return float(made.eval()(*images))

    for spec in ("spl-a", f"{own}:Drawn"):
        assert len({value(at_seed(spec, number)) for number in range(3)}) == 3
    assert value(at_seed(f"{own}:Drawn", 2)) == pytest.approx(3 * value(f"{own}:Drawn"))
    assert at_seed(f"{own}:Plain", 2) == f"{own}:Plain"


def test_with_a_start_the_weights_are_the_same_and_the_crops_are_not(data: Path, tmp_path: Path, seen: _Seen) -> None:
    first = compare(quick_recipe(data, 'losses=["l1"]'), tmp_path / "first")
    modelless = [setting for setting in QUICK if not setting.startswith("model")]
    recipe = load_recipe(
        None, [*modelless, f"data.train={data}", f'init="{first / "l1"}"', 'losses=["l2"]', "training.seeds=2"]
    )
    run = compare(recipe, tmp_path / "run")
    _, one, other = seen.starts
    assert _equal(one, load_file(first / "l1" / "model.safetensors"))
    assert _equal(one, other)
    assert not torch.equal(seen.batches[1][0][0], seen.batches[2][0][0])
    rows = pl.read_parquet(run / "rows.parquet")
    assert rows.filter(pl.col("loss") == "init")["seed"].unique().to_list() == [0]
    read = read_run(run)
    assert read.analysis.values.seeds == (0, 1)
    assert set(read.analysis.ranking) == {"init", "l2"}


# ---- resumed, and added to ----


def test_a_run_stopped_between_and_within_seeds_goes_on_to_the_same_bytes(data: Path, tmp_path: Path) -> None:
    """Stopped before the second seed, then in its first loss after the checkpoint at step 2, then in the third seed."""
    recipe = quick_recipe(
        data, 'losses=["spl-a", "l1"]', "training.seeds=3", "training.steps=4", "training.checkpoint_every=2"
    )

    class Stop(_Heard):
        def __init__(self, title: str, at: int) -> None:
            super().__init__()
            self.title, self.at = title, at

        def step(self, step: int, total: float, terms: dict[str, float], rate: float) -> None:
            del total, terms, rate
            if (self.trained[-1], step) == (self.title, self.at):
                raise KeyboardInterrupt

    run = tmp_path / "run"
    for title, at in (("spl-a, seed 1", 1), ("spl-a, seed 1", 3), ("l1, seed 2", 3)):
        with pytest.raises(KeyboardInterrupt):
            compare(recipe, run, Stop(title, at))
        about = _about(run)
        assert [each["status"] for each in about["losses"]] == ["done", "done"]
        assert about["notes"][-1].endswith("are not finished: run the same command again.")
        read = read_run(run)  # what is there so far can be read, with the seeds that both have
        assert read.analysis.values.seeds == ((0,) if title == "spl-a, seed 1" else (0, 1))
    assert "training seed 2 left out of every mean: there are no values of l1 with it." in read.analysis.values.left_out
    heard = _Heard()
    compare(recipe, run, heard)
    assert heard.ends == [
        ("spl-a, seed 0", "kept"),
        ("l1, seed 0", "kept"),
        ("spl-a, seed 1", "kept"),
        ("l1, seed 1", "kept"),
        ("spl-a, seed 2", "kept"),
        ("l1, seed 2", "done"),
    ]
    assert heard.starts == [2]
    assert not any("not finished" in note for note in _about(run)["notes"])
    straight = compare(recipe, tmp_path / "straight")
    assert len(_weights(run)) == 6
    assert _weights(run) == _weights(straight)
    assert (run / "rows.parquet").read_bytes() == (straight / "rows.parquet").read_bytes()


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(data: Path, tmp_path: Path) -> None:
    """A process that dies without a word (as by SIGKILL) at the second step of the second seed."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from veridical.comparison.sweep import Observer, compare\n"
        "from veridical.training.recipe import load_recipe\n\n\n"
        "class Die(Observer):\n"
        "    def loss_begins(self, name):\n"
        "        self.name = name\n\n"
        "    def step(self, step, total, terms, rate):\n"
        "        if (self.name, step) == ('l1, seed 1', 2):\n"
        "            os._exit(137)\n\n\n"
        "compare(load_recipe(None, sys.argv[2:]), Path(sys.argv[1]), Die())\n"
    )
    overrides = [*QUICK, f"data.train={data}", 'losses=["l1"]', "training.seeds=2", "training.checkpoint_every=1"]
    killed = subprocess.run([sys.executable, "-c", code, tmp_path / "run", *overrides], env=os.environ, timeout=300)
    assert killed.returncode == 137
    recipe = load_recipe(None, overrides)
    heard = _Heard()
    run, straight = compare(recipe, tmp_path / "run", heard), compare(recipe, tmp_path / "straight")
    assert heard.ends == [("l1, seed 0", "kept"), ("l1, seed 1", "done")]
    assert heard.starts[0] >= 1
    assert _weights(run) == _weights(straight)


def test_seeds_are_added_to_a_finished_run(data: Path, tmp_path: Path) -> None:
    compare(quick_recipe(data, 'losses=["l1", "l2"]'), tmp_path / "run")
    before = _weights(tmp_path / "run")
    heard = _Heard()
    several = quick_recipe(data, 'losses=["l1", "l2"]', "training.seeds=3")
    run = compare(several, tmp_path / "run", heard)
    assert [end[1] for end in heard.ends] == ["kept"] * 2 + ["done"] * 4
    assert {place: _weights(run)[place] for place in before} == before
    assert _weights(run) == _weights(compare(several, tmp_path / "straight"))
    assert load_recipe(run / "recipe.toml").training.seeds == 3
    added = _Heard()
    compare(quick_recipe(data, 'losses=["l1", "l2", "spl-a"]', "training.seeds=3"), run, added)  # and a loss
    assert added.trained == ["spl-a, seed 0", "spl-a, seed 1", "spl-a, seed 2"]
    assert read_run(run).analysis.values.by_seed.shape[:2] == (4, 3)


def test_seeds_are_not_taken_away(data: Path, tmp_path: Path) -> None:
    compare(quick_recipe(data, 'losses=["l1"]', "training.seeds=2"), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"training\.seeds was 2, now 1"):
        compare(quick_recipe(data, 'losses=["l1"]'), tmp_path / "run")


def test_a_run_from_before_there_were_seeds_is_read_and_goes_on(data: Path, tmp_path: Path) -> None:
    """Such a folder: no column in the rows, no key in the recipe, nothing about seeds in comparison.json."""
    recipe = quick_recipe(data, 'losses=["l1", "l2"]')
    run = compare(recipe, tmp_path / "run")
    new = read_run(run).analysis
    rows = pl.read_parquet(run / "rows.parquet").drop("seed")
    rows.write_parquet(run / "rows.parquet")
    rows.write_csv(run / "rows.csv")
    text = (run / "recipe.toml").read_text()
    assert "seeds = 1\n" in text
    (run / "recipe.toml").write_text(text.replace("seeds = 1\n", ""))
    about = _about(run)
    del about["seeds"]
    for each in about["losses"]:
        del each["seeds"]
    (run / "comparison.json").write_text(json.dumps(about))
    for slug in ("l1", "l2"):
        model = json.loads((run / slug / "model.json").read_text())
        del model["seed"]
        (run / slug / "model.json").write_text(json.dumps(model))
        result = json.loads((run / slug / "result.json").read_text())
        del result["files"]  # nor were there hashes
        (run / slug / "result.json").write_text(json.dumps(result))
    read = read_run(run)
    assert read.analysis.values.seeds == (0,)
    assert read.analysis.scores == new.scores
    assert read.analysis.tests == new.tests
    (run / "rows.parquet").unlink()
    assert read_run(run).analysis.scores == new.scores  # from the CSV too
    assert write_report(read_run(run)).is_file()
    heard = _Heard()
    compare(recipe, run, heard)
    assert heard.ends == [("l1", "kept"), ("l2", "kept")]
    heard = _Heard()
    compare(quick_recipe(data, 'losses=["l1", "l2"]', "training.seeds=2"), run, heard)
    assert [end[1] for end in heard.ends] == ["kept", "kept", "done", "done"]
    assert load_model(run / "l1" / "seed-1")[1]["seed"] == 1


def test_other_metrics_evaluate_every_seed_again_without_training(data: Path, tmp_path: Path) -> None:
    compare(quick_recipe(data, 'losses=["l1"]', "training.seeds=2"), tmp_path / "run")
    heard = _Heard()
    run = compare(quick_recipe(data, 'losses=["l1"]', 'metrics=["ssim"]', "training.seeds=2"), tmp_path / "run", heard)
    assert heard.ends == [("l1, seed 0", "done"), ("l1, seed 1", "done")]
    assert heard.starts == []
    assert set(pl.read_parquet(run / "rows.parquet")["metric"]) == {"ssim"}


# ---- a training that fails ----


@pytest.fixture
def explodes_with_seed(tmp_path: Path) -> str:
    """A loss that becomes NaN with the second seed, and not before."""
    own = tmp_path / "exploding.py"
    own.write_text(
        "from veridical.losses import Loss\n\n\n"
        "class Exploding(Loss):\n"
        "    def __init__(self, *, seed: int = 0):\n"
        "        super().__init__()\n"
        "        self.factor = 1.0 if seed == 0 else float('nan')\n\n"
        "    def compare(self, prediction, data):\n"
        "        return (prediction - data).flatten(1).abs().mean(1) * (self.factor if self.training else 1.0)\n"
    )
    return f"{own}:Exploding"


def test_a_loss_one_of_whose_trainings_failed_is_not_ranked_and_the_others_go_on(
    data: Path, tmp_path: Path, explodes_with_seed: str
) -> None:
    """To rank it by its other trainings would flatter it; its third is not begun."""
    losses = f'losses={{"boom" = "{explodes_with_seed}", "l1" = "l1"}}'
    recipe, heard = quick_recipe(data, losses, "training.seeds=3"), _Heard()
    run = compare(recipe, tmp_path / "run", heard)
    assert heard.ends == [
        ("boom, seed 0", "done"),
        ("l1, seed 0", "done"),
        ("boom, seed 1", "failed"),
        ("l1, seed 1", "done"),
        ("boom, seed 2", "failed"),
        ("l1, seed 2", "done"),
    ]
    assert heard.trained == ["boom, seed 0", "l1, seed 0", "boom, seed 1", "l1, seed 1", "l1, seed 2"]
    failed, fine = _about(run)["losses"]
    assert (failed["status"], failed["seeds"], fine["status"], fine["seeds"]) == ("failed", [0], "done", [0, 1, 2])
    assert failed["error"].startswith("with training seed 1, and a loss counts with all of its seeds or not at all: ")
    assert "became NaN or infinite at step 1" in failed["error"]
    assert not any("not finished" in note for note in _about(run)["notes"])
    read = read_run(run)
    assert read.analysis.ranking == ("l1",)
    assert read.analysis.values.seeds == (0, 1, 2)
    assert [name for name, _ in read.failed] == ["boom"]
    again = _Heard()
    compare(recipe, run, again)
    assert again.trained == []
    assert [end for end in again.ends if end[0].startswith("boom")] == [
        ("boom, seed 0", "kept"),
        ("boom, seed 1", "failed"),
        ("boom, seed 2", "failed"),
    ]
    with pytest.raises(NonFiniteLoss, match=r"every loss failed.*boom: with training seed 1"):
        compare(
            quick_recipe(data, f'losses={{"boom" = "{explodes_with_seed}"}}', "training.seeds=2"), tmp_path / "none"
        )


def test_a_training_that_met_a_full_device_is_tried_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sweep.train

    def full(model: Any, one: Any, samples: Any, settings: Any, *rest: Any, **more: Any) -> Any:
        if settings.seed == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, one, samples, settings, *rest, **more)

    recipe = quick_recipe(data, 'losses=["l1", "l2"]', "training.seeds=3")
    with monkeypatch.context() as patched:
        patched.setattr(sweep, "train", full)
        with pytest.raises(NonFiniteLoss, match="too little memory"):
            compare(recipe, tmp_path / "run")
    heard = _Heard()
    compare(recipe, tmp_path / "run", heard)
    assert [end[1] for end in heard.ends] == ["kept"] * 2 + ["done"] * 4


# ---- the recipe and the commands ----


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.seeds=0", r"training\.seeds must be at least 1, but got 0"),
        ("training.seeds=2.5", r"training\.seeds must be a whole number, but got 2\.5"),
        ("seeds=3", r"unknown recipe key 'seeds'\. Did you mean 'training\.seeds'"),
    ],
)
def test_a_wrong_number_of_seeds_is_refused(setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(None, [setting])


def test_the_commands_train_report_and_restore_with_several_seeds(tmp_path: Path) -> None:
    data, run = write_photographs(tmp_path / "photos", 12), tmp_path / "run"
    on = ("--data", data, "--losses", "l1,l2", "--out", run, *OPTIONS, "--lr", 0.02, "--steps", 8)
    result = veridical("compare", *on)
    assert result.exit_code == 0, result.output
    result = veridical("compare", *on, "--seeds", 3)
    assert result.exit_code == 0, result.output
    assert "comparing 2 losses with 3 seeds each, 6 trainings, over" in result.output
    assert "l1, seed 0: was finished already" in result.output
    assert "l2, seed 2: done" in result.output
    assert veridical("report", run).exit_code == 0
    shutil.copytree(data, tmp_path / "some")
    for seed, place in ((0, run / "l1"), (2, run / "l1" / "seed-2")):
        assert load_model(place)[1]["seed"] == seed
        out = tmp_path / f"restored-{seed}"
        result = veridical("restore", tmp_path / "some", "--run", place, "--out", out, "--device", "cpu")
        assert result.exit_code == 0, result.output
    first, third = ((tmp_path / f"restored-{seed}" / "photo0.png").read_bytes() for seed in (0, 2))
    assert first != third
    result = veridical("train", "--data", data, "--init", run / "l1", "--loss", "l2", "--out", tmp_path / "next",
                       "--degradation", "box-blur(size=5)", "--steps", 2, "--batch-size", 2, "--crop", 32,
                       "--metrics", "psnr", "--device", "cpu")  # fmt: skip
    assert result.exit_code == 0, result.output
    begun = json.loads((tmp_path / "next" / "l2" / "model.json").read_text())["init"]
    assert begun["folder"] == str(run / "l1")


def test_a_search_trains_each_trial_once(data: Path, tmp_path: Path) -> None:
    result = veridical("tune", "--data", data, "--losses", "l1 + 0.1*l2", "--out", tmp_path / "run",
                       "--set", "training.seeds=2")  # fmt: skip
    assert result.exit_code == 2
    assert "a search trains each trial once; set training.seeds = 1" in result.output
