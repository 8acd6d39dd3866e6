"""Where training starts when it does not start from random weights: the model that another run has left."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from veridical.comparison.restore import load_model
from veridical.core import catalog
from veridical.core.errors import RecipeError
from veridical.features.weights import content_hash
from veridical.models import MODELS
from veridical.training.recipe import Recipe


@dataclass(frozen=True)
class Start:
    """The finished model of one loss of a run.

    folder: as it was named. options: of the model, every one. weights: its state_dict. sha256: of those, by content.
    loss, steps: what it was trained on, as far as model.json says. optimises: the metrics that this loss is.
    """

    folder: str
    name: str
    options: dict[str, Any]
    weights: dict[str, Tensor]
    sha256: str
    loss: str
    steps: int | None
    optimises: tuple[str, ...]

    @property
    def described(self) -> dict[str, Any]:
        """For comparison.json and model.json."""
        return {"folder": self.folder, "sha256": self.sha256, "loss": self.loss, "steps": self.steps}


def read_start(folder: str) -> Start:
    """Read and check what another run has left in `folder`, such as runs/x/l1.

    Errors: DataError when it holds no finished model, or a damaged one.
    """
    model, about = load_model(folder)
    weights = model.state_dict()
    return Start(
        folder=folder,
        name=about["model"]["name"],
        options=dict(about["model"]["options"]),
        weights=weights,
        sha256=content_hash(weights),
        loss=str(about.get("loss", "an unknown loss")),
        steps=about.get("steps"),
        optimises=tuple(about.get("optimises", ())),
    )


def fitting(recipe: Recipe, start: Start) -> Recipe:
    """The recipe with the number of channels of the model that it starts from.

    Errors: RecipeError naming both sides when the recipe names another model, or another option of it; UnknownName.
    """
    named: dict[str, Any] = {}
    if recipe.model.name is not None:
        term = catalog.parse_one(recipe.model.name, "model", "unet(levels=3)")
        build = catalog.lookup(MODELS, term.name, "model")
        if term.name != start.name:
            raise _contradiction(start, f"the model {start.name}", term.name)
        known = list(catalog.options_of(build))
        for option in term.options:
            if option not in known:
                raise catalog.unknown(f"option of model {term.name!r}", option, known)
        named |= term.options
    if recipe.model.width is not None:
        named["width"] = recipe.model.width
    if "channels" in recipe.model.model_fields_set:
        named["channels"] = recipe.model.channels
    for option, value in named.items():
        value = list(value) if isinstance(value, tuple) else value  # as model.json has it
        if start.options.get(option) != value:
            raise _contradiction(start, f"a {start.name} of {option} = {start.options.get(option)!r}", f"{value!r}")
    channels = start.options.get("channels", recipe.model.channels)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"channels": channels})})


def _contradiction(start: Start, theirs: str, ours: str) -> RecipeError:
    return RecipeError(
        f"training cannot start from {start.folder}: it holds {theirs}, but the recipe names {ours}. Leave the model "
        "out of the recipe, which then takes it from there, or start from another folder."
    )
