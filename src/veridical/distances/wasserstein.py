"""Distribution against distribution: positions do not matter, only which values occur."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from veridical.core.errors import BadOption
from veridical.core.options import check_choice, check_number, check_whole
from veridical.distances.base import DrawnDistance
from veridical.distances.projections import PROJECTIONS, draw_projection

Reduction = Literal["mean", "sum"]
REDUCTIONS = ("mean", "sum")
Projection = Literal["id", "r2p", "rpp", "rsp"]


@torch.library.custom_op("veridical::order", mutates_args=())
def _order_on_cpu(values: Tensor) -> Tensor:
    """argsort of the last axis by NumPy, whose sort uses the CPU's vector units: 3 to 6 times as fast as torch's."""
    return torch.from_numpy(np.argsort(values.numpy(), axis=-1))


@_order_on_cpu.register_fake
def _(values: Tensor) -> Tensor:
    return values.new_empty(values.shape, dtype=torch.int64)


def sorted_positions(maps: Tensor) -> Tensor:
    """Each channel's values over all positions, ascending: (N, C, n) -> (N, C, n)."""
    maps = maps.contiguous()
    order = _order_on_cpu(maps.detach()) if maps.device.type == "cpu" else maps.detach().argsort(dim=2)
    return maps.gather(2, order)


def wasserstein(
    prediction: Tensor,
    target_sorted: Tensor,
    *,
    order: float = 1.0,
    positions: Reduction = "mean",
    projections: Reduction = "mean",
) -> Tensor:
    """1-D Wasserstein distance of every channel's values, W_p^p = mean |sorted - sorted|^p, reduced over channels.

    Shapes: prediction (N, C, n), n positions; target_sorted the same, from `sorted_positions` -> (N,)
    Args:   order: p >= 1. positions, projections: how the n ranks and the C channels are reduced.
    Source: Delbracio, Talebi, Milanfar 2020, arXiv:2012.09289, equations 2, 3 and 5. Equation 3 sums over positions
            where equation 2 averages, and equation 5 sums over projections where the text says "averaging": we average
            both by default. The paper's weights (0.001 to 0.02 beside L1) were found with reductions it does not state.
    """
    gaps = (sorted_positions(prediction) - target_sorted).abs()
    if order != 1:
        gaps = gaps**order
    over_positions = gaps.mean(2) if positions == "mean" else gaps.sum(2)
    return over_positions.mean(1) if projections == "mean" else over_positions.sum(1)


class Wasserstein(DrawnDistance):
    """See `wasserstein`; the target is sorted once, in `prepare`.

    Args: projection: "id" compares each channel; "r2p", "rpp" and "rsp" compare k * C weighted sums of the channels
          (see `draw_projection`). redraw: new ones at every step of training. seed: of the draw. eps: of "rpp".
    """

    def __init__(
        self,
        *,
        order: float = 1.0,
        projection: Projection = "id",
        k: int = 1,
        redraw: bool = False,
        eps: float = 0.01,
        seed: int = 0,
        positions: Reduction = "mean",
        projections: Reduction = "mean",
    ) -> None:
        super().__init__("wasserstein", seed=seed, redraw=redraw)
        check_number("order of wasserstein", order, low=1)
        check_choice("projection of wasserstein", projection, PROJECTIONS)
        check_whole("k of wasserstein", k, low=1)
        check_number("eps of wasserstein", eps, low=0)
        check_choice("positions of wasserstein", positions, REDUCTIONS)
        check_choice("projections of wasserstein", projections, REDUCTIONS)
        if projection == "id" and (k != 1 or redraw):
            raise BadOption("projection=id takes each channel once: k and redraw need projection=r2p, rpp or rsp.")
        self.order, self.positions, self.projections = order, positions, projections
        self.projection, self.k, self.eps = projection, k, eps

    def prepare(self, target: Tensor) -> tuple[Tensor | None, Tensor]:
        directions = None
        if self.projection != "id":
            channels, step = target.shape[1], self.next_step()
            drawn = draw_projection(self.projection, channels, k=self.k, eps=self.eps, seed=self.seed, step=step)
            directions = drawn.to(target.dtype)
        return directions, sorted_positions(_along(target, directions))

    def forward(self, prediction: Tensor, prepared: tuple[Tensor | None, Tensor]) -> Tensor:
        directions, target_sorted = prepared
        return wasserstein(
            _along(prediction, directions),
            target_sorted,
            order=self.order,
            positions=self.positions,
            projections=self.projections,
        )


def _along(maps: Tensor, directions: Tensor | None) -> Tensor:
    """(N, C, h, w) -> (N, C', h*w), projected on each direction."""
    flat = maps.flatten(2)
    return flat if directions is None else directions @ flat
