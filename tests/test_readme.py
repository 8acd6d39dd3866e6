"""What the README shows must run."""

import re
import tomllib
from pathlib import Path

from tests.shared import shared_data

README = (Path(__file__).parents[1] / "README.md").read_text()


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)[1]


def test_the_python_of_the_readme_runs(monkeypatch):
    monkeypatch.setenv("VERIDICAL_WEIGHTS", str(shared_data("weights")))
    names: dict = {}
    exec(block("python"), names)
    assert names["total"].item() > 0
    assert set(names["terms"]) == {"l2", "lpips"}
    assert names["prediction"].grad is not None


def test_the_recipe_of_the_readme_is_valid(tmp_path):
    from veridical.training.recipe import load_recipe

    file = tmp_path / "recipe.toml"
    file.write_text(block("toml"))
    recipe = load_recipe(file)
    assert list(recipe.losses) == tomllib.loads(block("toml"))["losses"]
    assert recipe.training.crop == 192
