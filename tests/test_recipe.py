"""The recipe: what it reads, what it refuses, and with which words."""

import tomllib
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from pydantic import ValidationError

from veridical.core.errors import RecipeError
from veridical.training.recipe import load_recipe, make_recipe

FULL = """
task = "denoise"
degradation = "gaussian-noise(sigma_8bit=25)"
metrics = ["psnr", "ssim"]
out = "runs/x"

[losses]
plain = "l2"
mixed = "0.8*l2 + 0.2*lpips"

[data]
pairs = ["blurred", "sharp"]

[model]
name = "unet"
width = 32

[training]
steps = 10
lr = 1
ema = 0.5
"""


def test_the_defaults_are_a_whole_recipe():
    recipe = load_recipe()
    assert recipe.task == "deblur"
    assert recipe.training.steps == 2000
    assert recipe.metrics == ("psnr", "ssim", "ms-ssim", "lpips", "sharpness-q")


def test_reads_every_key_of_a_file(tmp_path: Path):
    (tmp_path / "recipe.toml").write_text(FULL)
    recipe = load_recipe(tmp_path / "recipe.toml")
    assert recipe.losses == {"plain": "l2", "mixed": "0.8*l2 + 0.2*lpips"}
    assert recipe.data.pairs == ("blurred", "sharp")
    assert (recipe.model.name, recipe.model.width, recipe.model.channels) == ("unet", 32, 3)
    assert (recipe.training.lr, recipe.training.ema, recipe.out) == (1.0, 0.5, "runs/x")


def test_what_is_written_is_read_back_equal(tmp_path: Path):
    (tmp_path / "a.toml").write_text(FULL)
    recipe = load_recipe(tmp_path / "a.toml", ["training.precision=bf16-mixed"])
    (tmp_path / "b.toml").write_text(recipe.to_toml())
    assert load_recipe(tmp_path / "b.toml") == recipe
    assert tomllib.loads(recipe.to_toml())["training"]["precision"] == "bf16-mixed"


def test_a_list_of_losses_names_each_by_its_spec():
    assert make_recipe({"losses": ["l1", "0.8*l2  + 0.2*lpips"]}).losses == {
        "l1": "l1",
        "0.8*l2 + 0.2*lpips": "0.8*l2 + 0.2*lpips",
    }


def test_overrides_are_toml_values_and_bare_words_are_strings():
    recipe = load_recipe(
        overrides=[
            "training.lr=2e-4",
            "task=denoise",
            'losses=["l1", "pdl"]',
            "model.width=8",
            "data.train=my photos",
        ]
    )
    assert recipe.training.lr == 2e-4
    assert recipe.task == "denoise"
    assert list(recipe.losses) == ["l1", "pdl"]
    assert recipe.model.width == 8
    assert recipe.data.train == "my photos"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainin.lr=1", r"unknown recipe key 'trainin'\. Did you mean 'training'\?"),
        (
            "training.stepz=1",
            r"unknown recipe key 'training\.stepz'\. Did you mean 'steps'\? Known here: steps, batch",
        ),
        ("model.chanels=1", r"unknown recipe key 'model\.chanels'\. Did you mean 'channels'\?"),
        ("batch_size=4", r"unknown recipe key 'batch_size'\. Did you mean 'training\.batch_size'\?"),
        ("step=4", r"unknown recipe key 'step'\. Did you mean 'training.steps'\?"),
        ("training.steps=many", r"training\.steps must be a whole number, but got 'many'"),
        ('training.steps="10"', r"training\.steps must be a whole number, but got '10'"),
        ("training.steps=0", r"training\.steps must be at least 1, but got 0"),
        ("training.lr=0", r"training\.lr must be greater than 0"),
        ("training.lr=nan", r"training\.lr must be greater than 0"),
        ("training.ema=1", r"training\.ema must be at least 0 and less than 1"),
        ("training.seed=-1", r"training\.seed must be 0 or more"),
        ("training.precision=bf16", r"must be one of 32-true.*Did you mean 'bf16-mixed'\?"),
        (
            "training.devices=3",
            r"training\.batch_size must be a multiple of training\.devices \(3\), but got 8",
        ),
        ("training=5", r"training must be a table of keys, but got 5"),
        ("data=5", r"data must be a table of keys, but got 5"),
        ("model.channels=2", r"model\.channels must be 3 \(RGB\) or 1 \(luma\), but got 2"),
        ("model.width=0", r"model\.width must be greater than or equal to 1, but got 0"),
        ("losses=[]", "losses is empty"),
        ('losses=["l1", "l1"]', "losses names l1 twice"),
        ("metrics=[]", "metrics is empty"),
        ("data.pairs=[1, 2]", r"data\.pairs\.0 must be a valid string, but got 1"),
        ("task.name=x", r"task must be a valid string"),
        ("nothing", r"cannot read the setting 'nothing'\. Expected key=value"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_fix(override: str, message: str):
    with pytest.raises(RecipeError, match=message):
        load_recipe(overrides=[override])


def test_a_table_and_a_value_of_one_name_do_not_mix():
    with pytest.raises(RecipeError, match=r"cannot set task\.name: task is 'deblur', not a table"):
        load_recipe(overrides=["task=deblur", "task.name=x"])


def test_photographs_and_pairs_are_not_trained_on_together():
    with pytest.raises(RecipeError, match=r"data\.train and data\.pairs are both set"):
        load_recipe(overrides=["data.train=a", 'data.pairs=["b", "c"]'])


def test_every_wrong_key_is_named_at_once():
    with pytest.raises(RecipeError, match=r"(?s)training\.step.*taks"):
        make_recipe({"taks": "deblur", "training": {"step": 1}})


def test_a_missing_or_broken_file_says_so(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*none\.toml: No such file"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("task = ")
    with pytest.raises(RecipeError, match=r"bad\.toml is not TOML"):
        load_recipe(tmp_path / "bad.toml")


def test_a_recipe_is_frozen():
    recipe = load_recipe()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.task = "denoise"
    with pytest.raises(FrozenInstanceError):
        recipe.training.steps = 1  # type: ignore[misc]


def test_models_are_a_list_or_a_table_of_specs():
    assert make_recipe({}).models is None
    assert make_recipe({"models": ["unet", "dncnn(depth = 20)"]}).models == {
        "unet": "unet",
        "dncnn(depth = 20)": "dncnn(depth = 20)",
    }
    assert make_recipe({"models": {"small": "unet(width=8)"}}).models == {"small": "unet(width=8)"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": []}, "models is empty; name at least one, as in models = "),
        ({"models": ["unet", "unet"]}, "models names unet twice"),
        ({"models": ["unet", 3]}, "models must be specs in quotes"),
        ({"classical": ["wiener", "wiener"]}, "classical names wiener twice"),
        ({"models": ["unet"], "model": {"name": "unet"}}, "models and model.name are both set"),
        ({"models": ["unet"], "model": {"width": 8}}, r"models = \['unet\(width=8\)'\]"),
        ({"models": ["unet"], "init": "runs/x/l1"}, "models and init are both set"),
    ],
)
def test_models_and_methods_that_contradict_are_refused(values: dict[str, object], message: str):
    with pytest.raises(RecipeError, match=message):
        make_recipe(values)


def test_methods_without_training_are_a_list_of_specs():
    assert make_recipe({}).classical == ()
    assert make_recipe({"classical": "wiener"}).classical == ("wiener",)
    assert make_recipe({"classical": ["wiener", "richardson-lucy(iterations=20)"]}).classical[1] == (
        "richardson-lucy(iterations=20)"
    )


def test_the_newer_keys_are_written_and_read_back_equal(tmp_path: Path):
    recipe = make_recipe(
        {
            "models": ["unet", "dncnn"],
            "classical": ["wiener"],
            "data": {"pairs_evaluate": ["a", "b"], "kernels": "k"},
            "training": {"optimizer": "sgd", "stages": [1, 0.5], "betas": [0.5, 0.9], "schedule": "step"},
        }
    )
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert load_recipe(tmp_path / "recipe.toml") == recipe


def test_a_tasks_defaults_lie_under_what_the_recipe_says(tmp_path: Path):
    recipe = make_recipe({"task": "box-deblur", "training": {"steps": 7}})
    assert (recipe.model.channels, recipe.training.crop, recipe.training.steps) == (1, 128, 7)
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert tomllib.loads(recipe.to_toml())["training"]["crop"] == 128
    assert load_recipe(tmp_path / "recipe.toml") == recipe
    assert "channels" not in recipe.model.model_fields_set  # as it was not asked for, it gives way to that of an `init`
    own = make_recipe({"task": "box-deblur", "training": {"crop": 64}, "model": {"channels": 3}})
    assert (own.model.channels, own.training.crop) == (3, 64)


def test_a_tasks_metrics_count_as_not_asked_for():
    recipe = make_recipe({"task": "denoise-strong"})
    assert recipe.metrics == ("psnr", "ms-ssim", "lpips")
    assert "metrics" not in recipe.model_fields_set
    assert make_recipe({"task": "denoise-strong", "metrics": ["ssim"]}).metrics == ("ssim",)


@pytest.mark.parametrize("task", ["deblur", "defocus", "denoise", "super-resolve", "jpeg", "demosaic"])
def test_the_first_tasks_keep_the_usual_defaults(task: str):
    recipe, usual = make_recipe({"task": task}), load_recipe()
    assert (recipe.training, recipe.metrics, recipe.model) == (usual.training, usual.metrics, usual.model)


def test_an_unknown_task_is_the_plans_to_refuse():
    assert make_recipe({"task": "deblurr"}).task == "deblurr"
