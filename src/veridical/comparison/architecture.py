"""The models of a comparison: each is trained with every loss, from the same weights."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from veridical.comparison.start import Start
from veridical.core import catalog
from veridical.core.errors import RecipeError, VeridicalError
from veridical.core.options import check_sizes
from veridical.degradations import degradation, enlarged
from veridical.models import MODELS, Restorer
from veridical.training.data import EvaluationPair, EvaluationPairs, Samples, TrainingSamples
from veridical.training.recipe import Recipe

MOST_PARAMETERS = 2**33
"""Of a model: 32 GiB, and four times as much to train it."""


@dataclass(frozen=True)
class Architecture:
    """One model of a comparison.

    label:      what the recipe calls it; "" where it is the only one.
    name, options: in MODELS, with every default written out, so that the weights find their model again when a default
                changes.
    parameters: how many.
    batch_norm: whether it normalises by batches.
    scale:      by how much it enlarges. enlarge: by how much its input is enlarged before it, where it keeps the size.
    start:      whose weights it begins with, in place of random ones.
    """

    label: str
    name: str
    options: dict[str, Any]
    parameters: int
    batch_norm: bool
    scale: int
    enlarge: int = 1
    start: Start | None = None

    @property
    def called(self) -> str:
        """In sentences."""
        return self.label or self.name

    def initial(self, seed: int) -> Restorer:
        """The model with the weights that every loss begins with, for a training seed."""
        return initial_model(self.name, self.options, seed, self.start)

    @property
    def described(self) -> dict[str, Any]:
        """For comparison.json."""
        return {"name": self.name, "options": self.options, "parameters": self.parameters} | (
            {"label": self.label} if self.label else {}
        )


def architectures(recipe: Recipe, default: str, start: Start | None) -> list[Architecture]:
    """The models of a recipe; `default` is the spec of its task's.

    Errors: RecipeError for several models and one start; UnknownName; VeridicalError for impossible options.
    """
    if start is not None and recipe.models:
        raise RecipeError(
            f"training starts from {start.folder}, which is one model, but the recipe names {len(recipe.models)}: "
            f"{', '.join(recipe.models)}. Leave out init, or models."
        )
    if start is not None:
        return [_described("", start.name, start.options, start)]
    found = []
    for label, spec in (recipe.models or {"": recipe.model.name or default}).items():
        term = catalog.parse_one(spec, "model", "unet(levels=3)")
        options = dict(term.options) | {"channels": recipe.model.channels}
        if recipe.model.width is not None:
            options["width"] = recipe.model.width
        found.append(_described(label, term.name, options, None))
    return found


def _described(label: str, name: str, options: dict[str, Any], start: Start | None) -> Architecture:
    with torch.device("meta"):  # of what it is made, without the weights
        model = initial_model(name, options, 0)
    defaults = {key: parameter.default for key, parameter in catalog.options_of(MODELS[name]).items()}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > MOST_PARAMETERS:
        raise RecipeError(f"the model {label or name} would have {parameters:,} parameters; expected less than 2^33.")
    batch_norm = any("BatchNorm" in type(part).__name__ for part in model.modules())
    return Architecture(label, name, {**defaults, **options}, parameters, batch_norm, model.scale, start=start)


def fitted(one: Architecture, scale: int) -> Architecture:
    """The model for images that are to become `scale` times as large.

    Errors: RecipeError when it enlarges by another factor.
    """
    if one.scale not in (1, scale):
        raise RecipeError(
            f"the model {one.called} enlarges {one.scale} times, but the degraded images are "
            + ("as large as the sharp ones. " if scale == 1 else f"{scale} times smaller than the sharp ones. ")
            + f"Set its scale: {one.name}(scale={scale})."
        )
    return replace(one, enlarge=scale // one.scale)


def initial_model(name: str, options: Mapping[str, Any], seed: int, start: Start | None = None) -> Restorer:
    """A model whose initial weights are those it starts from, else a function of (name, options, seed), whatever was
    drawn before.

    Errors: VeridicalError when it cannot be made of these options.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        check_sizes(f"model {name!r}", options)
        try:
            model = catalog.call(catalog.lookup(MODELS, name, "model"), options, f"model {name!r}")
        except VeridicalError:
            raise
        except (TypeError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
            raise VeridicalError(f"the model {name!r} cannot be made: {error}") from error
    assert isinstance(model, Restorer)
    if start is not None:
        model.load_state_dict(start.weights)
    return model


# ---- the input of a model that keeps the size, where the degraded image is smaller than the sharp one ----


class Pairs(Protocol):
    """Whole images to evaluate on, the same at each iteration."""

    @property
    def names(self) -> list[str]: ...
    def part(self, number: int, of: int) -> "Pairs": ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[EvaluationPair]: ...


def samples_for(one: Architecture, samples: Samples) -> Dataset[tuple[Tensor, Tensor]]:
    """The training samples with degraded images as large as the model takes them."""
    if one.enlarge == 1:
        return samples
    if isinstance(samples, TrainingSamples):  # enlarged with its surroundings, before the crop is cut
        other = copy.copy(samples)
        other.degradation = enlarged(samples.degradation)  # type: ignore[arg-type]
        return other
    return _EnlargedSamples(samples, one.enlarge)


def pairs_for(one: Architecture, pairs: EvaluationPairs) -> Pairs:
    """The evaluation pairs with degraded images as large as the model takes them."""
    return pairs if one.enlarge == 1 else _EnlargedPairs(pairs, one.enlarge)


def enlarge(image: Tensor, scale: int) -> Tensor:
    """(C, H, W) -> (C, scale * H, scale * W), bicubic."""
    return degradation(f"bicubic-upscale(scale={scale})")(image)


class _EnlargedSamples(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, samples: Samples, scale: int) -> None:
        self.samples, self.scale = samples, scale

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        degraded, sharp = self.samples[index]
        return enlarge(degraded, self.scale), sharp

    def name(self, index: int) -> str:
        return self.samples.name(index)


class _EnlargedPairs:
    def __init__(self, pairs: EvaluationPairs, scale: int) -> None:
        self.pairs, self.scale = pairs, scale

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def names(self) -> list[str]:
        return self.pairs.names

    def part(self, number: int, of: int) -> "_EnlargedPairs":
        return _EnlargedPairs(self.pairs.part(number, of), self.scale)

    def __iter__(self) -> Iterator[EvaluationPair]:
        for pair in self.pairs:
            yield pair._replace(degraded=enlarge(pair.degraded, self.scale))
