"""The recipes that come with veridical: one for each table of the papers, at full scale and at a small one.

Each is a TOML file of `recipes/`: a recipe at the paper's scale, with a table [small] of what is smaller on a machine
without a GPU. Its first comment says the paper, the table, what is compared, the data and the commands. A file of
one's own may have a table [small] as well.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from veridical.core import catalog
from veridical.core.errors import RecipeError
from veridical.training.recipe import make_recipe, read_toml

SCALES = ("full", "small")
# The tables of keys: a small scale changes single keys of them. All else that it names it replaces.
_TABLES = ("data", "model", "training")
# The labels of a recipe's first comment, in order.
LABELS = ("Paper", "Table", "Compares", "Data", "Full", "Small", "Differs")
_LABEL = re.compile(rf"# ({'|'.join(LABELS)}): *(.*)")


@dataclass(frozen=True)
class About:
    """What a recipe's first comment says.

    full, small: the commands, in order; those that come before the comparison itself (an adapter, a former run) too.
    """

    name: str
    paper: str
    table: str
    compares: str
    data: str
    full: tuple[str, ...]
    small: tuple[str, ...]
    differs: str

    @property
    def short(self) -> str:
        """What the paper is called here."""
        return self.paper.partition(",")[0]


def recipe_names() -> list[str]:
    """The names, sorted.

    >>> "pdl-table-1" in recipe_names()
    True
    """
    return sorted(_texts())


def recipe_text(name: str) -> str:
    """The TOML of a recipe that comes with veridical. Errors: UnknownName, with the nearest one."""
    return catalog.lookup(_texts(), name, "recipe")


def named_recipe(name: str, scale: str = "full") -> dict[str, Any]:
    """The values of a recipe that comes with veridical, for `make_recipe`.

    Errors: UnknownName for the recipe, RecipeError for the scale.
    """
    return at_scale(tomllib.loads(recipe_text(name)), scale, name)


def read_values(path: Path, scale: str = "full") -> dict[str, Any]:
    """The values of a recipe: of the file, or, where there is none, of that name among those that come with veridical.

    Errors: RecipeError for a file that cannot be read and for a scale that it has not; UnknownName.
    """
    if is_name(path):
        return named_recipe(str(path), scale)
    return at_scale(read_toml(path), scale, str(path))


def is_name(path: Path) -> bool:
    """Whether a recipe is asked for by name: a bare word, without a file that is called so."""
    return not path.exists() and path.suffix != ".toml" and path.parent == Path()


def at_scale(values: Mapping[str, Any], scale: str, name: str = "it") -> dict[str, Any]:
    """The values without their table [small]; at the small scale with what stands there in the place of theirs.

    Keys of data, model and training are replaced one by one; losses, models and all others as a whole.

    >>> at_scale({"task": "jpeg", "training": {"steps": 9, "crop": 64}, "small": {"training": {"steps": 3}}}, "small")
    {'task': 'jpeg', 'training': {'steps': 3, 'crop': 64}}
    """
    if scale not in SCALES:
        raise RecipeError(f"the scale of a recipe is one of {', '.join(SCALES)}, but got {scale!r}.")
    merged = {key: value for key, value in values.items() if key != "small"}
    if scale == "full":
        return merged
    if "small" not in values:
        raise RecipeError(f"the recipe {name} has no table [small], so it has one scale only; leave --scale out.")
    if not isinstance(values["small"], Mapping):
        raise RecipeError(f"the recipe {name} has a key small that is no table.")
    for key, value in values["small"].items():
        both = key in _TABLES and isinstance(value, dict) and isinstance(merged.get(key, {}), dict)
        merged[key] = {**merged.get(key, {}), **value} if both else value
    return merged


def about(name: str) -> About:
    """What the first comment of a recipe says. Errors: UnknownName; RecipeError when it lacks one of LABELS."""
    found: dict[str, list[str]] = {}
    label = ""
    for line in recipe_text(name).splitlines():
        if not line.startswith("#"):
            break
        if match := _LABEL.fullmatch(line):
            label = match[1]
            found[label] = [match[2]]
        elif label and line.lstrip("# "):
            found[label].append(line.lstrip("# "))
    lacking = [each for each in LABELS if each not in found]
    if lacking:
        raise RecipeError(f"the first comment of the recipe {name} does not say {', '.join(lacking)}.")
    words = {each: " ".join(lines) for each, lines in found.items()}
    return About(
        name=name,
        paper=words["Paper"],
        table=words["Table"],
        compares=words["Compares"],
        data=words["Data"],
        full=tuple(_commands(found["Full"])),
        small=tuple(_commands(found["Small"])),
        differs=words["Differs"],
    )


def trainings(name: str, scale: str = "full") -> int:
    """How many models a recipe trains: each of its models with each of its losses and seeds."""
    recipe = make_recipe(named_recipe(name, scale))
    return len(recipe.losses) * len(recipe.models or [""]) * recipe.training.seeds


def markdown() -> str:
    """The table of docs/recipes.md."""
    lines = ["| recipe | table | compares | trainings | data | commands |", "|---|---|---|---|---|---|"]
    for name in recipe_names():
        it = about(name)
        commands = "<br>".join(f"`{command}`" for command in (*it.full, *it.small))
        number = trainings(name), trainings(name, "small")
        count = str(number[0]) if number[0] == number[1] else f"{number[0]}; small {number[1]}"
        cells = (f"[`{name}`](../src/veridical/recipes/{name}.toml)", f"{it.short}, {it.table}", it.compares, count)
        lines.append(f"| {' | '.join((*cells, it.data, commands))} |")
    return "\n".join(lines) + "\n"


def _texts() -> dict[str, str]:
    folder = resources.files("veridical") / "recipes"
    return {
        file.name.removesuffix(".toml"): file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".toml")
    }


def _commands(lines: list[str]) -> Iterator[str]:
    """The lines with those that end in a backslash joined to the next."""
    text = "\n".join(lines).replace("\\\n", "")
    return (" ".join(line.split()) for line in text.splitlines() if line)
