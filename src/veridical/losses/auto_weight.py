"""weight="auto": the weights of a sum that are found by measuring, once, before the first step.

λ is what users fight with most: losses come in units of their own. What moves a model is the gradient on its
prediction, so a weight is set such that the term's gradient has a stated size beside the first term's:

    λ_k = ratio · mean_b |λ_1 ∇d_1| / mean_b |∇d_k|

∇: with respect to the prediction, of the mean over the batch b; |·|: its Euclidean norm. Then λ_k stays as it is: a
weight that followed the gradients through a training would be another loss at every step.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from veridical.core.catalog import Term
from veridical.core.errors import NonFiniteLoss
from veridical.core.image import at_least_float32, no_autocast
from veridical.core.options import check_number, check_whole, is_number_in
from veridical.losses.base import Loss


@dataclass(frozen=True)
class AutoWeight:
    """A weight to be found. ratio: of the term's gradient norm to the first term's. batches: to measure on.

    >>> str(AutoWeight()), str(AutoWeight(ratio=0.1))
    ('auto', 'auto(ratio=0.1)')
    """

    ratio: float = 1.0
    batches: int = 8

    def __post_init__(self) -> None:
        check_number("ratio of an automatic weight", self.ratio, low=1e-12)
        check_whole("batches of an automatic weight", self.batches, low=1)

    @property
    def term(self) -> Term:
        """As a spec has it."""
        given = {"ratio": self.ratio} if self.ratio != 1 else {}
        return Term("auto", options=given | ({"batches": self.batches} if self.batches != 8 else {}))

    def __str__(self) -> str:
        return str(self.term)


class FoundWeights(nn.Module):
    """What the automatic weights of a sum have come to, as plain numbers: a step reads no tensor for them. They go into
    the state, so that a run that goes on has the weights that it began with."""

    def __init__(self, wanted: Mapping[int, AutoWeight]) -> None:
        super().__init__()
        self.wanted = dict(wanted)  # by the place of the term
        self.found: dict[int, float] = {}

    @property
    def complete(self) -> bool:
        return self.found.keys() == self.wanted.keys()

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.found.get(place, torch.nan) for place in self.wanted], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        values = dict(zip(self.wanted, state.tolist(), strict=True))
        self.found = {place: value for place, value in values.items() if value == value}  # NaN: not found yet


def mean_gradient_norms(terms: Mapping[str, Loss], batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """The norm of each term's gradient on the prediction: mean over the batches. Random terms draw afterwards what they
    would have drawn without it.

    Over several processes, which must agree on the weights, those of their shares of a batch are joined to that of the
    whole: up to a factor that all terms have, the root of their mean square.

    Errors: NonFiniteLoss naming the term whose gradient is 0 or not finite.
    """
    draws = [(loss, copy.deepcopy(loss.state_dict())) for loss in terms.values() if loss.random]
    norms = [_gradient_norms(terms.values(), prediction, target) for prediction, target in batches]
    for loss, state in draws:
        loss.load_state_dict(state)
    if not norms:
        raise ValueError("an automatic weight needs at least one batch to be measured on.")
    of_batches = torch.stack(norms)
    if distributed.is_available() and distributed.is_initialized():
        squares = of_batches.double().square()
        distributed.all_reduce(squares)
        of_batches = (squares / distributed.get_world_size()).sqrt()
    found: list[float] = of_batches.mean(0).tolist()
    for label, value in zip(terms, found, strict=True):
        if not is_number_in(value, 1e-30, 1e30):
            raise NonFiniteLoss(
                f"no automatic weight can be found: the gradient of {label} on the prediction has the norm {value:g} "
                f"(batches measured: {len(norms)}). Give numbers in place of 'auto', or measure where the prediction "
                "is not the target itself."
            )
    return found


def _gradient_norms(losses: Iterable[Loss], prediction: Tensor, target: Tensor) -> Tensor:
    """(K,) float32. Each loss goes through by itself, so that the memory of one is needed at a time; and without
    autocast, as small gradients would vanish in float16."""
    norms = []
    for loss in losses:
        leaf = at_least_float32(prediction.detach()).requires_grad_()
        with torch.enable_grad(), no_autocast(leaf):
            (gradient,) = torch.autograd.grad(loss(leaf, target, reduction="mean"), leaf)
        norms.append(torch.linalg.vector_norm(gradient).float())
    return torch.stack(norms)
