"""The recipes of the papers' tables: each table has one, and all that they name is there."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from veridical.cli import app
from veridical.comparison.folder import slugs
from veridical.core import catalog
from veridical.core.errors import RecipeError, UnknownName
from veridical.deconvolution import METHODS, method
from veridical.degradations import TASKS, degradation
from veridical.losses import LOSSES, at_task, loss, needs
from veridical.metrics import METRICS
from veridical.models import MODELS
from veridical.training.recipe import Recipe, make_recipe
from veridical.training.recipes import (
    SCALES,
    about,
    at_scale,
    markdown,
    named_recipe,
    recipe_names,
    recipe_text,
    trainings,
)

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"

# Every table with results in the five papers, and what beside them is trained; and which recipes are its own.
# MDF's table 1 is of what losses cost: `veridical bench losses`.
TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "SPL": {"the table of its twelve losses": ("spl-table",)},
    "PDL": {
        "table 1": ("pdl-table-1",),
        "table 2": ("pdl-table-1",),
        "table 3": ("pdl-table-3",),
        "table 4": ("pdl-table-3",),
        "table 5": ("pdl-table-5",),
        "table 6": ("pdl-table-6",),
        "table 7": ("pdl-table-7",),
        "figure 9": ("pdl-demosaic",),
    },
    "MDF": {
        "table 2": ("mdf-table-2",),
        "table 3": ("mdf-table-3-edsr", "mdf-table-3-srresnet", "mdf-table-3-denoise", "mdf-table-3-jpeg"),
        "section 4.4": ("mdf-esrgan-1", "mdf-esrgan-2"),
    },
    "TFMLC": {
        "table 1": (
            "tfmlc-table-1-mprnet-1",
            "tfmlc-table-1-mprnet-2",
            "tfmlc-table-1-hinet-1",
            "tfmlc-table-1-hinet-2",
        ),
        "table 2": ("tfmlc-table-2",),
        "table 3": ("tfmlc-table-3",),
    },
    "Sharpness": {
        "table I": ("sharpness-table-1-1", "sharpness-table-1-2"),
        "table II": ("sharpness-table-2-1", "sharpness-table-2-2"),
        "table III": ("sharpness-table-3-1", "sharpness-table-3-2"),
    },
}
# What each table compares, in rows that are trained: (at full scale, at the small one).
TRAININGS = {
    "spl-table": (12, 12),
    "pdl-table-1": (20, 20),
    "pdl-table-3": (7, 7),
    "pdl-table-5": (7, 7),
    "pdl-table-6": (8, 8),
    "pdl-table-7": (15, 15),
    "pdl-demosaic": (5, 5),
    "mdf-table-2": (6, 6),
    "mdf-table-3-edsr": (8, 8),
    "mdf-table-3-srresnet": (8, 8),
    "mdf-table-3-denoise": (8, 8),
    "mdf-table-3-jpeg": (8, 8),
    "mdf-esrgan-1": (1, 1),
    "mdf-esrgan-2": (2, 2),
    "tfmlc-table-1-mprnet-1": (1, 1),
    "tfmlc-table-1-mprnet-2": (3, 3),
    "tfmlc-table-1-hinet-1": (1, 1),
    "tfmlc-table-1-hinet-2": (3, 3),
    "tfmlc-table-2": (4, 4),
    "tfmlc-table-3": (7, 4),
    "sharpness-table-1-1": (1, 1),
    "sharpness-table-1-2": (5, 5),
    "sharpness-table-2-1": (3, 3),
    "sharpness-table-2-2": (1, 1),
    "sharpness-table-3-1": (4, 4),
    "sharpness-table-3-2": (1, 1),
}
EVERY = pytest.mark.parametrize("name", recipe_names())
EVERY_SCALE = pytest.mark.parametrize("scale", SCALES)


def the_recipe(name: str, scale: str) -> Recipe:
    return make_recipe(named_recipe(name, scale))


def models_of(recipe: Recipe) -> dict[str, str]:
    return recipe.models or {"": recipe.model.name or TASKS[recipe.task].model}


def veridical(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes that the command would have run."""
    found: list[Recipe] = []

    def compare(recipe: Recipe, *_: object, **__: object) -> None:
        found.append(recipe)
        raise RecipeError("that is enough")

    monkeypatch.setattr("veridical.comparison.sweep.compare", compare)
    return found


# ---- which there are ----


def test_every_table_of_the_papers_has_a_recipe_and_every_recipe_a_table() -> None:
    wanted = {name for tables in TABLES.values() for names in tables.values() for name in names}
    assert wanted == set(recipe_names()) == set(TRAININGS)


@pytest.mark.parametrize(
    ("paper", "table", "name"),
    [(paper, table, name) for paper, tables in TABLES.items() for table, names in tables.items() for name in names],
)
def test_a_recipe_says_of_which_paper_and_table_it_is(paper: str, table: str, name: str) -> None:
    it = about(name)
    assert it.short == paper
    assert re.search(rf"\b{re.escape(table)}(?![\w-])", it.table)


@EVERY
def test_a_recipe_trains_as_many_models_as_its_table_has_rows(name: str) -> None:
    assert (trainings(name), trainings(name, "small")) == TRAININGS[name]


# ---- what they name ----


@EVERY_SCALE
@EVERY
def test_what_a_recipe_names_is_there_with_all_its_options(name: str, scale: str) -> None:
    recipe = the_recipe(name, scale)
    for spec in recipe.losses.values():
        for term in catalog.parse(spec):
            assert set(term.options) <= set(catalog.options_of(LOSSES[term.name].build)), term
    for spec in recipe.metrics:
        term = catalog.parse_one(spec, "metric", "psnr")
        assert term.name in METRICS
    for spec in recipe.classical:
        assert catalog.parse_one(spec, "method", "wiener").name in METHODS
        method(spec)
    assert recipe.task in TASKS
    degradation(recipe.degradation or TASKS[recipe.task].degradation)


@EVERY_SCALE
@EVERY
def test_the_models_of_a_recipe_can_be_made_and_restore_its_crop(name: str, scale: str) -> None:
    recipe = the_recipe(name, scale)
    if recipe.init:
        return  # its model is the one that it starts from
    shrinks = degradation(recipe.degradation or TASKS[recipe.task].degradation).scale
    assert isinstance(shrinks, int)
    with torch.device("meta"):
        for spec in models_of(recipe).values():
            term = catalog.parse_one(spec, "model", "unet")
            options = {**term.options, "channels": recipe.model.channels}
            model = catalog.call(MODELS[term.name], options, spec)
            assert model.scale in (1, shrinks)
            assert recipe.training.crop % shrinks == 0


@EVERY
def test_the_losses_of_a_small_recipe_can_be_made_for_its_crop(name: str, network_file, adapter_file) -> None:
    recipe = the_recipe(name, "small")
    for spec in recipe.losses.values():
        for term in catalog.parse(at_task(spec, TASKS[recipe.task].learned)):
            options = dict(term.options)
            if term.name == "tfmlc":  # the adapter is made by the command that comes before
                options |= {"adapter": str(adapter_file("vgg16")), "weights": str(network_file("vgg16"))}
            elif networks := needs(term.label):
                assert set(networks) <= {"vgg16", "alexnet"}, "the small scale does with what can be had everywhere"
                options["weights"] = str(network_file(networks[0]))
            assert loss(term.name, **options).min_size <= recipe.training.crop


@EVERY
def test_a_recipe_of_a_gpu_is_smaller_at_the_small_scale(name: str) -> None:
    full, small = (the_recipe(name, scale) for scale in SCALES)
    assert small.training.steps <= 600 < full.training.steps
    assert small.training.batch_size * small.training.crop**2 <= 4 * 64**2
    assert set(small.metrics) <= set(full.metrics)
    assert set(small.metrics).isdisjoint({"pi", "brisque", "pieapp"}), "whose weights are not for download"
    assert (full.task, full.degradation, full.data) == (small.task, small.degradation, small.data)


@EVERY_SCALE
@EVERY
def test_a_recipe_that_fine_tunes_starts_where_another_ends(name: str, scale: str) -> None:
    recipe = the_recipe(name, scale)
    if not recipe.init:
        return
    runs = {each.out: (first, each) for first in recipe_names() if (each := the_recipe(first, scale)).out}
    first, before = runs[str(Path(recipe.init).parent)]
    names = [f"{model}: {each}" if model else each for model in models_of(before) for each in before.losses]
    if not before.models:
        names = list(before.losses)
    assert Path(recipe.init).name in slugs(names).values()
    assert before.model.channels == recipe.model.channels
    assert (before.task, before.degradation) == (recipe.task, recipe.degradation)
    commands = about(name).full if scale == "full" else about(name).small
    ends_there = (f"veridical compare {first} ", f"--out {recipe.init}")  # or it is the authors' network, adopted
    assert any(end in command for command in commands for end in ends_there)


# ---- their first comments ----


@EVERY_SCALE
@EVERY
def test_the_commands_of_a_recipe_are_understood_and_the_recipe_is_one_of_them(name: str, scale: str) -> None:
    commands = about(name).full if scale == "full" else about(name).small
    ran = []
    for line in commands:
        line = re.sub(r"\$[A-Z]+", "3", line)
        (words,) = re.findall(r"veridical ([^;]*)", line)
        words = shlex.split(words)
        command = typer.main.get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        given = command.make_context(line, words).params
        if command.name == "compare":
            assert given["scale"] == scale
            assert (given["data"] is None) == (scale == "small")
            ran.append(str(given["recipe"]))
        if command.name == "adapter":
            assert given["task"] or given["frames"], "of photographs it must be told what to order"
    assert name in ran
    assert set(ran) <= set(recipe_names())


def test_the_page_of_recipes_has_their_table() -> None:
    assert markdown() in PAGE.read_text(encoding="utf-8"), "docs/recipes.md is old: see veridical recipes --markdown"


# ---- scales ----


def test_small_keys_replace_single_keys_of_tables_and_whole_lists() -> None:
    values = tomllib.loads("""
        metrics = ["psnr", "pi"]
        [losses]
        a = "l1"
        [training]
        steps = 100
        crop = 64
        [small]
        metrics = ["psnr"]
        losses = ["l2"]
        [small.training]
        steps = 3
        [small.model]
        width = 4
    """)
    small = at_scale(values, "small")
    assert small == {
        "metrics": ["psnr"],
        "losses": ["l2"],
        "training": {"steps": 3, "crop": 64},
        "model": {"width": 4},
    }
    full = at_scale(values, "full")
    assert full == {"metrics": ["psnr", "pi"], "losses": {"a": "l1"}, "training": {"steps": 100, "crop": 64}}


def test_a_scale_that_is_not_there_is_an_error() -> None:
    with pytest.raises(RecipeError, match="one of full, small, but got 'tiny'"):
        named_recipe("spl-table", "tiny")
    with pytest.raises(RecipeError, match="the recipe mine has no table"):
        at_scale({"task": "jpeg"}, "small", "mine")


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'pdl-table-1'"):
        recipe_text("pdl-tabel-1")


# ---- the command ----


def test_the_list_names_every_recipe() -> None:
    result = veridical("recipes")
    assert result.exit_code == 0, result.output
    for name in recipe_names():
        assert name in result.output
    assert veridical("recipes", "--markdown").output == markdown()


def test_a_recipe_that_is_printed_can_be_copied_and_run(tmp_path: Path, asked: list[Recipe]) -> None:
    (tmp_path / "mine.toml").write_text(veridical("recipes", "mdf-table-2").output)
    veridical("compare", tmp_path / "mine.toml", "--data", tmp_path)
    veridical("compare", tmp_path / "mine.toml", "--scale", "small")
    veridical("compare", "mdf-table-2", "--scale", "small")
    mine, small, named = asked
    assert mine.training == the_recipe("mdf-table-2", "full").training
    assert small == named == the_recipe("mdf-table-2", "small")


def test_the_small_scale_needs_no_photographs_and_the_full_one_says_which(asked: list[Recipe]) -> None:
    assert "that is enough" in veridical("compare", "mdf-esrgan-1", "--scale", "small").output
    assert "that is enough" in veridical("train", "mdf-esrgan-1", "--scale", "small").output
    assert [recipe.data.train for recipe in asked] == [None, None]
    result = veridical("compare", "mdf-esrgan-1")
    assert result.exit_code == 2
    assert "DIV2K: 800 photographs to train on" in result.output
    assert "none was named" in veridical("compare", "--scale", "small").output
    assert len(asked) == 2


def test_options_win_over_the_models_of_a_recipe(tmp_path: Path, asked: list[Recipe]) -> None:
    veridical("compare", "spl-table", "--data", tmp_path, "--models", "unet, dncnn(depth=3)", "--classical", "wiener")
    veridical("compare", "sharpness-table-2-1", "--data", tmp_path, "--model", "unet(levels=2)")
    several, one = asked
    assert several.models == {"unet": "unet", "dncnn(depth=3)": "dncnn(depth=3)"}
    assert several.classical == ("wiener",)
    assert several.model.name is None
    assert (one.models, one.model.name, one.model.channels) == (None, "unet(levels=2)", 1)
