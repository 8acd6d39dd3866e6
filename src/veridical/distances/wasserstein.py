"""Distribution against distribution: positions do not matter, only which values occur."""

from typing import Literal

from torch import Tensor

from veridical.core.options import check_choice, check_number
from veridical.distances.base import Distance

Reduction = Literal["mean", "sum"]
REDUCTIONS = ("mean", "sum")


def sorted_positions(maps: Tensor) -> Tensor:
    """Each channel's values over all positions, ascending: (N, C, h, w) -> (N, C, h*w)."""
    return maps.flatten(2).sort(dim=2).values


def wasserstein(
    prediction: Tensor,
    target_sorted: Tensor,
    *,
    order: float = 1.0,
    positions: Reduction = "mean",
    projections: Reduction = "mean",
) -> Tensor:
    """1-D Wasserstein distance of every channel's values, W_p^p = mean |sorted - sorted|^p, reduced over channels.

    Shapes: prediction (N, C, h, w); target_sorted (N, C, h*w) from `sorted_positions` -> (N,)
    Args:   order: p >= 1. positions, projections: how the h*w ranks and the C channels are reduced.
    Source: Delbracio, Talebi, Milanfar 2020, arXiv:2012.09289, equations 2, 3 and 5. Equation 3 sums over positions
            where equation 2 averages, and equation 5 sums over projections where the text says "averaging": we average
            both by default. The paper's weights (0.001 to 0.02 beside L1) were found with reductions it does not state.
    """
    gaps = (sorted_positions(prediction) - target_sorted).abs()
    if order != 1:
        gaps = gaps**order
    over_positions = gaps.mean(2) if positions == "mean" else gaps.sum(2)
    return over_positions.mean(1) if projections == "mean" else over_positions.sum(1)


class Wasserstein(Distance):
    """See `wasserstein`; the target is sorted once, in `prepare`."""

    def __init__(self, *, order: float = 1.0, positions: Reduction = "mean", projections: Reduction = "mean") -> None:
        super().__init__()
        check_number("order of wasserstein", order, low=1)
        check_choice("positions of wasserstein", positions, REDUCTIONS)
        check_choice("projections of wasserstein", projections, REDUCTIONS)
        self.order, self.positions, self.projections = order, positions, projections

    def prepare(self, target: Tensor) -> Tensor:
        return sorted_positions(target)

    def forward(self, prediction: Tensor, prepared: Tensor) -> Tensor:
        return wasserstein(
            prediction, prepared, order=self.order, positions=self.positions, projections=self.projections
        )
