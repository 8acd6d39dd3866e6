"""Distribution against distribution: positions do not matter, only which values occur."""

from typing import Literal

from torch import Tensor

from veridical.distances.base import Distance

Reduction = Literal["mean", "sum"]


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
            both by default, and the weights of the paper (0.001 to 0.02 beside L1) suit that choice.
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
        if order < 1:
            raise ValueError(f"wasserstein expects order >= 1, but got {order}.")
        for name, value in (("positions", positions), ("projections", projections)):
            if value not in ("mean", "sum"):
                raise ValueError(f"wasserstein expects {name} to be 'mean' or 'sum', but got {value!r}.")
        self.order, self.positions, self.projections = order, positions, projections

    def prepare(self, target: Tensor) -> Tensor:
        return sorted_positions(target)

    def forward(self, prediction: Tensor, prepared: Tensor) -> Tensor:
        return wasserstein(
            prediction, prepared, order=self.order, positions=self.positions, projections=self.projections
        )
