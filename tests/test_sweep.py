"""One recipe, many losses: fair, checked before it begins, and continued where it was stopped."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.heard import Heard
from tests.photographs import QUICK, quick_recipe, write_photographs
from veridical.comparison import sweep
from veridical.comparison.sweep import DEMO_LOSSES, compare, demo_recipe, initial_model
from veridical.core.errors import DataError, NonFiniteLoss, RecipeError, UnknownName, WeightsMissing
from veridical.features import mdf
from veridical.losses import at_task
from veridical.training.recipe import load_recipe


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photos")


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without pretrained networks and without a network."""
    monkeypatch.setenv("VERIDICAL_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("VERIDICAL_WEIGHTS", raising=False)


def _about(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "comparison.json").read_text()))


def test_a_run_folder_holds_all_that_the_report_reads(data: Path, tmp_path: Path) -> None:
    run = compare(quick_recipe(data, 'losses=["l2", "0.8*l2 + 0.2*l1"]'), tmp_path / "run")
    assert run == tmp_path / "run"
    about = _about(run)
    assert about["task"] == "deblur"
    assert about["degradation"] == "box-blur(size=5)"
    assert about["steps"] == 3
    assert about["model"]["name"] == "unet"
    assert about["model"]["options"] == {"channels": 3, "width": 4, "levels": 1, "convs": 1}
    assert about["model"]["parameters"] == sum(
        p.numel() for p in initial_model("unet", about["model"]["options"], 0).parameters()
    )
    assert [(each["name"], each["slug"], each["status"]) for each in about["losses"]] == [
        ("l2", "l2", "done"),
        ("0.8*l2 + 0.2*l1", "0-8-l2-0-2-l1", "done"),
    ]
    assert about["losses"][0]["optimises"] == ["psnr"]
    assert [(each["name"], each["higher_is_better"]) for each in about["metrics"]] == [("psnr", True), ("ssim", True)]
    (image,) = about["images"]
    assert (image["width"], image["height"]) == (64, 56)
    rows = pl.read_parquet(run / "rows.parquet")
    assert rows.columns == ["image", "loss", "seed", "metric", "value"]
    assert set(rows["seed"]) == {0}
    assert rows.height == 3 * 2  # (input and two losses) x (psnr and ssim), one image
    assert rows["value"].is_finite().all()
    assert pl.read_csv(run / "rows.csv").equals(rows)
    for folder in ("input", "truth", "l2", "0-8-l2-0-2-l1"):
        with Image.open(run / "images" / folder / f"{image['slug']}.png") as picture:
            assert picture.size == (64, 56)
    for slug in ("l2", "0-8-l2-0-2-l1"):
        for name in ("training.csv", "model.json", "model.safetensors", "checkpoints"):
            assert (run / slug / name).exists()
        assert list((run / slug).glob("events.out.*"))
    terms = pl.read_csv(run / "0-8-l2-0-2-l1" / "training.csv")
    assert {"step", "total", "term:l2", "term:l1", "lr", "rate"} <= set(terms.columns)
    assert load_recipe(run / "recipe.toml").losses == {"l2": "l2", "0.8*l2 + 0.2*l1": "0.8*l2 + 0.2*l1"}


def test_every_loss_starts_from_the_same_weights_on_the_same_batches(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """spl-a draws random numbers, too: they must not move anybody's crops, noise or weights."""
    starts: list[dict[str, Tensor]] = []
    seen: list[list[Tensor]] = []
    real = sweep.train

    def spy(model: Any, loss: Any, samples: Any, settings: Any, folder: Path, **rest: Any) -> Any:
        starts.append({key: value.clone() for key, value in model.state_dict().items()})
        batches: list[Tensor] = []
        seen.append(batches)
        with_terms = loss.with_terms

        def listen(prediction: Tensor, target: Tensor) -> Any:
            batches.append(target.clone())
            return with_terms(prediction, target)

        loss.with_terms = listen
        return real(model, loss, samples, settings, folder, **rest)

    monkeypatch.setattr(sweep, "train", spy)
    noisy = "degradation=gaussian-noise(sigma_8bit=20)"
    compare(quick_recipe(data, 'losses=["spl-a", "l2", "l1"]', noisy), tmp_path / "run")
    assert len(starts) == 3
    for other in starts[1:]:
        assert all(torch.equal(starts[0][key], other[key]) for key in starts[0])
    for others in seen[1:]:
        assert len(others) == 3
        assert all(torch.equal(mine, other) for mine, other in zip(seen[0], others, strict=True))


def test_initial_weights_depend_on_the_seed_alone() -> None:
    """Whatever was drawn before, as after another loss or in another process."""
    options = {"width": 4, "levels": 1, "convs": 1}
    first = initial_model("unet", options, 5).state_dict()
    torch.rand(3)
    again, other = (initial_model("unet", options, seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["down.0.0.weight"], other["down.0.0.weight"])


def test_the_order_of_the_losses_changes_nothing(data: Path, tmp_path: Path) -> None:
    compare(quick_recipe(data, 'losses=["spl-a", "l1"]'), tmp_path / "one")
    compare(quick_recipe(data, 'losses=["l1", "spl-a"]'), tmp_path / "two")
    for slug in ("l1", "spl-a"):
        one, two = (load_file(tmp_path / run / slug / "model.safetensors") for run in ("one", "two"))
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_finished_comparison_is_not_trained_again(data: Path, tmp_path: Path) -> None:
    recipe = quick_recipe(data, 'losses=["l1"]')
    compare(recipe, tmp_path / "run")
    before = (tmp_path / "run" / "rows.parquet").read_bytes()
    heard = Heard()
    compare(recipe, tmp_path / "run", heard)
    assert heard.trained == []
    assert heard.ends == [("l1", "kept")]
    assert (tmp_path / "run" / "rows.parquet").read_bytes() == before


def test_a_stopped_comparison_goes_on_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    """Stopped in the second loss, after its checkpoint at step 2."""
    recipe = quick_recipe(data, 'losses=["l2", "l1"]', "training.steps=4", "training.checkpoint_every=2")

    class Stop(Heard):
        def step(self, step: int, total: float, terms: dict[str, float], rate: float) -> None:
            del total, terms, rate
            if self.trained[-1] == "l1" and step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(recipe, tmp_path / "run", Stop())
    about = _about(tmp_path / "run")
    assert [each["status"] for each in about["losses"]] == ["done", "waiting"]
    assert set(pl.read_parquet(tmp_path / "run" / "rows.parquet")["loss"]) == {"input", "l2"}

    heard = Heard()
    compare(recipe, tmp_path / "run", heard)
    assert heard.ends == [("l2", "kept"), ("l1", "done")]
    assert heard.starts == [2]
    compare(recipe, tmp_path / "straight")
    stopped, straight = (load_file(tmp_path / run / "l1" / "model.safetensors") for run in ("run", "straight"))
    assert all(torch.equal(stopped[key], straight[key]) for key in straight)


def test_files_that_were_damaged_are_named_and_made_again(data: Path, tmp_path: Path) -> None:
    """The model from its last checkpoint, the images from the model, the recipe from what is asked for."""
    recipe = quick_recipe(data, 'losses=["l1"]')
    run = compare(recipe, tmp_path / "run")
    assert isinstance(run, Path)
    (image,) = _about(run)["images"]
    damaged = ["l1/model.safetensors", f"images/l1/{image['slug']}.png", f"images/truth/{image['slug']}.png"]
    whole = {name: (run / name).read_bytes() for name in (*damaged, "rows.csv", "recipe.toml")}
    for name in damaged:
        (run / name).write_bytes(whole[name][:-1])
    (run / "recipe.toml").write_bytes(b"")
    heard = Heard()
    compare(recipe, run, heard)
    assert heard.ends == [("l1", "done")]
    assert heard.starts == [3]  # no step was left to do
    assert {name: (run / name).read_bytes() for name in whole} == whole
    assert f"damaged since they were written, and made again: {damaged[0]}, {damaged[1]}" in heard.notes
    assert f"{run / 'recipe.toml'} is damaged, and written anew" in heard.notes
    assert not any("damaged" in note for note in _about(run)["notes"])


def test_a_run_that_was_killed_before_it_began_leaves_nothing_in_the_way(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in (".lock", "..writable.0123abcd.tmp", ".recipe.toml.0123abcd.tmp"):
        (run / name).write_text("half")
    compare(quick_recipe(data, 'losses=["l1"]'), run)
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_a_loss_can_be_added_to_a_finished_comparison(data: Path, tmp_path: Path) -> None:
    compare(quick_recipe(data, 'losses=["l1"]'), tmp_path / "run")
    heard = Heard()
    compare(quick_recipe(data, 'losses=["l2", "l1"]'), tmp_path / "run", heard)
    assert heard.ends == [("l2", "done"), ("l1", "kept")]
    assert set(pl.read_parquet(tmp_path / "run" / "rows.parquet")["loss"]) == {"input", "l1", "l2"}


def test_other_metrics_evaluate_again_without_training(data: Path, tmp_path: Path) -> None:
    compare(quick_recipe(data, 'losses=["l1"]'), tmp_path / "run")
    heard = Heard()
    compare(quick_recipe(data, 'losses=["l1"]', 'metrics=["psnr(channel=y)"]'), tmp_path / "run", heard)
    assert heard.ends == [("l1", "done")]
    assert heard.starts == []
    assert pl.read_parquet(tmp_path / "run" / "rows.parquet")["metric"].unique().to_list() == ["psnr(channel=y)"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.lr=0.002", r"training\.lr was 0\.0005, now 0\.002"),
        ("model.width=6", r"model\.width was 4, now 6"),
        ('losses=["l2"]', r"losses\.l1 was 'l1', now None"),
    ],
)
def test_another_recipe_in_the_same_folder_is_refused(data: Path, tmp_path: Path, change: str, message: str) -> None:
    compare(quick_recipe(data, 'losses=["l1"]'), tmp_path / "run")
    with pytest.raises(RecipeError, match=rf"holds another comparison: .*{message}.*--out"):
        compare(quick_recipe(data, 'losses=["l1"]', change), tmp_path / "run")


def test_other_photographs_in_the_same_folder_are_noticed(data: Path, tmp_path: Path) -> None:
    recipe = quick_recipe(data, 'losses=["l1"]')
    compare(recipe, tmp_path / "run")
    write_photographs(data, 1, seed=50, height=60)
    with pytest.raises(RecipeError, match="on other photographs"):
        compare(recipe, tmp_path / "run")


def test_a_folder_with_something_else_in_it_is_refused(data: Path) -> None:
    with pytest.raises(RecipeError, match="is not empty and holds no comparison"):
        compare(quick_recipe(data), data)


def test_a_loss_that_diverges_is_recorded_and_the_others_go_on(data: Path, tmp_path: Path) -> None:
    own = tmp_path / "exploding.py"
    own.write_text(
        "from veridical.losses import Loss\n\n\n"
        "class Exploding(Loss):\n"
        "    def compare(self, prediction, data):\n"
        "        error = (prediction - data).flatten(1)\n"
        "        return error.abs().mean(1) * (float('nan') if self.training else 1.0)\n"
    )
    heard = Heard()
    losses = f'losses={{"boom" = "{own}:Exploding", "l1" = "l1"}}'
    run = compare(quick_recipe(data, losses), tmp_path / "run", heard)
    assert heard.ends == [("boom", "failed"), ("l1", "done")]
    failed = _about(run)["losses"][0]
    assert failed["status"] == "failed"
    assert "became NaN or infinite at step 1" in failed["error"]
    assert set(pl.read_parquet(run / "rows.parquet")["loss"]) == {"input", "l1"}
    with pytest.raises(NonFiniteLoss, match=r"every loss failed.*boom"):
        compare(quick_recipe(data, f'losses={{"boom" = "{own}:Exploding"}}'), tmp_path / "none")


# ---- what is checked before any training ----


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        del args, kwargs
        raise AssertionError("a check came too late: the training had begun")

    monkeypatch.setattr(sweep, "train", fail)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("overrides", "kind", "message"),
    [
        (('losses=["l1", "ms-sim"]',), UnknownName, "unknown loss 'ms-sim'. Did you mean 'ms-ssim'"),
        (('losses=["l1", "charbonnier(epsilon=1)"]',), UnknownName, "Did you mean 'eps'"),
        (('losses=["l1", "ms-ssim"]',), RecipeError, "'ms-ssim' needs images of at least 161x161 px, but the training"),
        (('metrics=["psnr", "sim"]',), UnknownName, "Did you mean 'ssim'"),
        (("task=deblurr",), UnknownName, "Did you mean 'deblur'"),
        (("degradation=box-blr(size=5)",), UnknownName, "Did you mean 'box-blur'"),
        (("model.name=unett",), UnknownName, "Did you mean 'unet'"),
        (("model.name=unet(level=2)",), UnknownName, "Did you mean 'levels'"),
        (('losses={input = "l1"}',), RecipeError, "cannot be named 'input'"),
        (("training.crop=600",), DataError, "need at least 600x600"),
        (('metrics=["ms-ssim"]',), DataError, "the metric ms-ssim needs at least 161x161"),
    ],
)
def test_what_is_wrong_is_said_before_training(
    data: Path, tmp_path: Path, overrides: tuple[str, ...], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        compare(quick_recipe(data, *overrides), tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_training", "no_weights")
def test_losses_whose_weights_cannot_be_had_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"vgg16 \(vgg16\), 0.8\*l2 \+ 0.2\*lpips \(alexnet\)"):
        compare(quick_recipe(data, 'losses=["l1", "vgg16", "0.8*l2 + 0.2*lpips"]'), tmp_path / "run")


@pytest.mark.usefixtures("no_weights")
def test_the_demo_leaves_them_out_and_says_so(data: Path, tmp_path: Path) -> None:
    heard = Heard()
    recipe = quick_recipe(data, 'losses=["l1", "vgg16"]')
    run = compare(recipe, tmp_path / "run", heard, leave_out=True)
    assert heard.ends == [("l1", "done")]
    assert any("vgg16 weights could not be had" in note and "left out: vgg16" in note for note in heard.notes)
    assert _about(run)["notes"] == heard.notes


@pytest.mark.usefixtures("no_weights")
def test_default_metrics_give_way_and_those_asked_for_do_not(data: Path, tmp_path: Path) -> None:
    plain = [setting for setting in QUICK if not setting.startswith("metrics")]
    recipe = load_recipe(None, [*plain, f"data.train={data}", 'losses=["l1"]'])
    heard = Heard()
    run = compare(recipe, tmp_path / "run", heard)
    assert [each["name"] for each in _about(run)["metrics"]] == ["psnr", "ssim", "sharpness-q"]
    assert any("the metric lpips was left out" in note for note in heard.notes)
    assert any("the metric ms-ssim was left out: it needs images of at least 161 px" in note for note in heard.notes)
    with pytest.raises(WeightsMissing, match="the metric 'lpips' cannot be computed"):
        compare(quick_recipe(data, 'losses=["l1"]', 'metrics=["lpips"]'), tmp_path / "other")


# ---- data ----


def test_without_evaluation_data_some_photographs_are_held_out(data: Path, tmp_path: Path) -> None:
    heard = Heard()
    run = compare(quick_recipe(data, 'losses=["l1"]'), tmp_path / "run", heard)
    (image,) = _about(run)["images"]
    assert f"no evaluation data was named, so 1 photograph is held out: {image['name']}" in heard.notes
    assert _about(run)["dataset"]["train"].startswith("3 photographs")


def test_photographs_that_are_evaluated_on_are_not_trained_on(tmp_path: Path) -> None:
    """One folder inside the other."""
    photos = write_photographs(tmp_path / "photos")
    write_photographs(photos / "test", 2, seed=20)
    heard = Heard()
    recipe = quick_recipe(photos, f"data.evaluate={photos / 'test'}", 'losses=["l1"]')
    run = compare(recipe, tmp_path / "run", heard)
    assert _about(run)["dataset"]["train"].startswith("4 photographs")
    assert _about(run)["dataset"]["evaluate"].startswith("2 photographs")
    assert any("2 of the training photographs are evaluated on" in note for note in heard.notes)
    with pytest.raises(DataError, match="none is left to train on"):
        compare(quick_recipe(photos / "test", f"data.evaluate={photos / 'test'}"), tmp_path / "other")


def test_real_pairs_are_trained_and_evaluated_on(tmp_path: Path) -> None:
    for side, seed in (("blur", 30), ("sharp", 0)):
        write_photographs(tmp_path / "pairs" / side, 3, seed=seed)
        write_photographs(tmp_path / "test" / side, 2, seed=seed + 10)
    both = [f'["{tmp_path / name / "blur"}", "{tmp_path / name / "sharp"}"]' for name in ("pairs", "test")]
    settings = [*QUICK, f"data.pairs={both[0]}", f"data.pairs_evaluate={both[1]}", 'losses=["l1"]']
    run = compare(load_recipe(None, settings), tmp_path / "run")
    about = _about(run)
    assert about["degradation"] == "real pairs"
    assert about["dataset"]["train"].startswith("3 pairs")
    assert [image["name"] for image in about["images"]] == ["photo0", "photo1"]
    with (
        Image.open(run / "images" / "input" / "photo0.png") as shown,
        Image.open(tmp_path / "test" / "blur" / "photo0.png") as given,
    ):
        assert shown.tobytes() == given.tobytes()


def test_grey_models_are_compared_on_luma(data: Path, tmp_path: Path) -> None:
    run = compare(quick_recipe(data, 'losses=["l1", "spl-a"]', "model.channels=1"), tmp_path / "run")
    with Image.open(next((run / "images" / "l1").iterdir())) as picture:
        assert picture.mode == "L"


def test_the_demo_compares_the_promised_losses() -> None:
    recipe = demo_recipe(["training.steps=7"])
    assert recipe.training.steps == 7
    assert recipe.losses == DEMO_LOSSES
    assert {"l2", "l1", "spl-a", "vgg16", "0.8*l2 + 0.2*lpips"} <= set(DEMO_LOSSES.values())


# ---- to continue and to repeat ----


def test_the_recipe_in_the_folder_continues_a_run_whose_default_metrics_gave_way(data: Path, tmp_path: Path) -> None:
    """Images of several sizes, some too small for ms-ssim: the resolved recipe must not ask for it after all."""
    images = write_photographs(tmp_path / "test", 2, height=170, width=180)
    write_photographs(images / "small", 1, seed=9)
    plain = [setting for setting in QUICK if not setting.startswith("metrics")]
    recipe = load_recipe(None, [*plain, f"data.train={data}", f"data.evaluate={images}", 'losses=["l1"]'])
    run = compare(recipe, tmp_path / "run")
    assert len(_about(run)["images"]) == 3
    heard = Heard()
    compare(load_recipe(run / "recipe.toml"), run, heard)
    assert heard.ends == [("l1", "kept")]


def test_images_that_a_new_metric_leaves_out_are_no_other_photographs(data: Path, tmp_path: Path) -> None:
    images = write_photographs(tmp_path / "test", 2, height=170, width=180)
    write_photographs(images / "small", 1, seed=9)
    recipe = [f"data.evaluate={images}", 'losses=["l1"]']
    compare(quick_recipe(data, *recipe), tmp_path / "run")
    heard = Heard()
    run = compare(quick_recipe(data, *recipe, 'metrics=["ms-ssim"]'), tmp_path / "run", heard)
    assert heard.starts == []  # nothing is trained again
    assert heard.notes == ["1 of 3 evaluation images left out, as ms-ssim needs 161 px: small/photo0"]
    assert len(_about(run)["images"]) == 2
    assert pl.read_parquet(run / "rows.parquet").height == 2 * 2


def test_one_tiny_image_does_not_cost_a_metric(data: Path, tmp_path: Path) -> None:
    images = write_photographs(tmp_path / "test", 3, height=170, width=180)
    write_photographs(images / "thumbnails", 1, height=9, width=9)
    plain = [setting for setting in QUICK if not setting.startswith("metrics")]
    recipe = load_recipe(None, [*plain, f"data.train={data}", f"data.evaluate={images}", 'losses=["l1"]'])
    heard = Heard()
    run = compare(recipe, tmp_path / "run", heard)
    assert "ms-ssim" in [each["name"] for each in _about(run)["metrics"]]
    assert len(_about(run)["images"]) == 3
    assert any(note.startswith("1 of 4 evaluation images left out, as ms-ssim needs 161 px") for note in heard.notes)


@pytest.mark.usefixtures("no_weights")
def test_the_recipe_in_the_folder_repeats_a_demo_whose_weights_were_missing(data: Path, tmp_path: Path) -> None:
    run = compare(quick_recipe(data, 'losses=["l1", "vgg16"]'), tmp_path / "run", leave_out=True)
    again = compare(load_recipe(run / "recipe.toml"), tmp_path / "again")
    assert pl.read_parquet(again / "rows.parquet").equals(pl.read_parquet(run / "rows.parquet"))


def test_a_copy_of_the_recipe_does_not_lead_back_into_the_folder(data: Path, tmp_path: Path) -> None:
    run = compare(quick_recipe(data, 'losses=["l1"]', f"out={tmp_path / 'run'}"))
    assert run == tmp_path / "run"
    assert load_recipe(run / "recipe.toml").out is None


def test_the_report_is_told_what_repeats_the_run(data: Path, tmp_path: Path) -> None:
    run = compare(quick_recipe(data, 'losses=["l1"]'), tmp_path / "a run")
    assert _about(run)["command"] == f"veridical compare '{run / 'recipe.toml'}'"
    assert sweep._command(demo_recipe(["out=x"]), run) == "veridical compare --demo"
    assert "recipe.toml" in sweep._command(demo_recipe(["training.steps=7"]), run)


def test_a_recipe_without_photographs_says_that_the_demos_are_used(tmp_path: Path) -> None:
    heard = Heard()
    compare(load_recipe(None, [*QUICK, 'losses=["l1"]']), tmp_path / "run", heard)
    assert any("names no photographs" in note and "the demo's are used" in note for note in heard.notes)


def test_a_loss_of_ones_own_is_trained_again_only_elsewhere_when_its_file_changes(data: Path, tmp_path: Path) -> None:
    own = tmp_path / "my_file.py"
    code = (
        "from veridical.losses import Loss\n\n\n"
        "class MyLoss(Loss):\n"
        "    def compare(self, prediction, data):\n"
        "        return SCALE * (prediction - data).flatten(1).abs().mean(1)\n"
    )
    own.write_text(code.replace("SCALE", "2"))
    recipe = quick_recipe(data, f'losses=["{own}:MyLoss"]')
    run = compare(recipe, tmp_path / "run")
    (about,) = _about(run)["losses"]
    assert about["slug"].endswith("my-file-py-myloss")
    own.write_text(code.replace("SCALE", "3"))
    with pytest.raises(RecipeError, match="trained in another way: file of the loss was"):
        compare(recipe, tmp_path / "run")


def test_a_loss_that_met_a_full_device_is_tried_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlike one that diverged: another program may have held the memory."""
    real = sweep.train

    def full(model: Any, loss: Any, *rest: Any, **more: Any) -> Any:
        if loss.label == "l2":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, loss, *rest, **more)

    recipe = quick_recipe(data, 'losses=["l2", "l1"]')
    first, second = Heard(), Heard()
    with monkeypatch.context() as patched:
        patched.setattr(sweep, "train", full)
        run = compare(recipe, tmp_path / "run", first)
    assert first.ends == [("l2", "failed"), ("l1", "done")]
    assert "too little memory" in _about(run)["losses"][0]["error"]
    compare(recipe, tmp_path / "run", second)
    assert second.ends == [("l2", "done"), ("l1", "kept")]


# ---- losses that were learned for a task ----


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tiny discriminators in the place of those that ship for two tasks."""
    folder = tmp_path / "mdf_weights"
    monkeypatch.setattr(mdf, "SHIPPED", folder)
    folder.mkdir()
    for seed, task in enumerate(("jpeg", "denoise")):
        torch.manual_seed(seed)
        tensors = {"0.tail.weight": torch.randn(1, 4, 3, 3), "0.tail.bias": torch.zeros(1)}
        for key, inputs in {"head": 3, "body.block1": 4, "body.block2": 4, "body.block3": 4}.items():
            tensors |= {f"0.{key}.conv.weight": torch.randn(4, inputs, 3, 3), f"0.{key}.conv.bias": torch.zeros(4)}
        save_file(tensors, folder / f"{task}.safetensors", metadata={"format": mdf.FORMAT, "range": "-1..1"})


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("mdf", "mdf(task=jpeg)"),
        ("mdf + 0.01*gan", "mdf(task=jpeg) + 0.01*gan"),
        ("l1 + auto(ratio=0.1)*mdf(discriminators=3)", "l1 + auto(ratio=0.1)*mdf(task=jpeg, discriminators=3)"),
        ("mdf(task=denoise)", "mdf(task=denoise)"),
        ("mdf( task = released-sisr )", "mdf( task = released-sisr )"),
        ("mdf(weights='a b.safetensors')+0.10*l1", "mdf(weights='a b.safetensors')+0.10*l1"),
        ("2*mdf + mdf(weights=a.safetensors)", "2*mdf(task=jpeg) + mdf(weights=a.safetensors)"),
        ("own mdf.py:Mine", "own mdf.py:Mine"),
        ("0.50*l2", "0.50*l2"),
    ],
)
def test_a_loss_learned_for_each_task_is_that_of_the_recipe(
    spec: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own mdf.py").touch()
    assert at_task(spec, "jpeg") == expected
    assert at_task(expected, "deblur") == expected  # it is on disk, and read again


@pytest.mark.usefixtures("shipped")
def test_the_recipe_on_disk_and_the_run_name_the_task(data: Path, tmp_path: Path) -> None:
    """The degradation is another than that of the task, whose discriminators are taken all the same."""
    losses = 'losses={own = "mdf", sum = "0.1*mdf + l1", other = "mdf(task=denoise)"}'
    recipe = quick_recipe(data, "task=jpeg", "training.crop=16", losses)
    run = compare(recipe, tmp_path / "run")
    expected = {"own": "mdf(task=jpeg)", "sum": "0.1*mdf(task=jpeg) + l1", "other": "mdf(task=denoise)"}
    assert load_recipe(run / "recipe.toml").losses == expected
    assert {each["name"]: each["spec"] for each in _about(run)["losses"]} == expected
    head = (run / "recipe.toml").read_text().split("task =")[0]
    assert "weights of mdf-jpeg: sha256" in head
    assert "weights of mdf-denoise: sha256" in head

    heard = Heard()
    for again in (recipe, load_recipe(run / "recipe.toml")):  # both continue it
        compare(again, run, heard)
    assert heard.trained == []
