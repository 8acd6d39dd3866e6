"""The loss of a model with several stages: each one's result beside the sharp image, at the size that it has."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from veridical.core.errors import RecipeError


class StagedLoss(Protocol):
    """What is needed of a loss here."""

    def prepare(self, target: Tensor) -> Any: ...
    def with_terms(self, prediction: Tensor, target: Any) -> tuple[Tensor, dict[str, Tensor]]: ...


def stage_weights(model: nn.Module, spread: str | Sequence[float]) -> tuple[float, ...]:
    """What each stage of a model counts, as `training.stages` says.

    Args:   spread: "authors": as the model's authors trained it; "last": the result alone; or a weight for each stage.
    Errors: RecipeError when the model has another number of stages.
    """
    own: tuple[float, ...] = getattr(model, "stage_weights", (1.0,))
    if spread == "authors":
        return own
    if spread == "last":
        return (0.0,) * (len(own) - 1) + (1.0,)
    weights = tuple(float(weight) for weight in spread)
    if len(weights) != len(own):
        raise RecipeError(
            f"training.stages has {len(weights)} weights, but {type(model).__name__} has {len(own)} stage"
            f"{'' if len(own) == 1 else 's'}. Give {len(own)}, or 'authors', or 'last'."
        )
    return weights


def target_of(stage: Tensor, sharp: Tensor) -> Tensor:
    """The sharp image at the size of a stage's result: bilinear, as models with several scales reduce their input."""
    if stage.shape[-2:] == sharp.shape[-2:]:
        return sharp
    return F.interpolate(sharp, size=stage.shape[-2:], mode="bilinear", align_corners=False)


def spread_over(
    loss: StagedLoss, stages: Sequence[Tensor], sharp: Tensor, weights: Sequence[float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the loss over the stages that count, each with its weight, and the same of every term.

    Stages of one size share what the loss sees in the sharp image, and so one draw of a loss that draws at random.
    """
    counted = [(stage, weight) for stage, weight in zip(stages, weights, strict=True) if weight]
    if len(counted) == 1 and counted[0][1] == 1:
        return loss.with_terms(counted[0][0], target_of(counted[0][0], sharp))
    seen: dict[tuple[int, ...], Any] = {}
    totals: list[Tensor] = []
    terms: dict[str, Tensor] = {}
    for stage, weight in counted:
        size = tuple(stage.shape[-2:])
        if size not in seen:
            seen[size] = loss.prepare(target_of(stage, sharp))
        total, parts = loss.with_terms(stage, seen[size])
        totals.append(weight * total)
        for label, part in parts.items():
            terms[label] = terms[label] + weight * part if label in terms else weight * part
    return sum(totals[1:], totals[0]), terms
