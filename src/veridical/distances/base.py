"""The contract of a distance between feature maps."""

from typing import Any

import torch
from torch import Tensor, nn

from veridical.core.options import check_flag, check_whole


class Distance(nn.Module):
    """Two maps (N, C, h, w) -> (N,); 0 for equal maps; each image by itself.

    What depends on the target alone is computed in `prepare`, once, without a graph; what it returns is the distance's
    own affair. `forward(prediction, prepared)` sees maps of at least float32, with autocast off.

    Attributes: random: whether `prepare` draws anew each time in training.
    """

    random: bool = False

    def prepare(self, target: Tensor) -> Any:
        return target

    def forward(self, prediction: Tensor, prepared: Any) -> Tensor:
        raise NotImplementedError("a subclass of Distance defines forward")


class DrawnDistance(Distance):
    """A distance that draws something, in `prepare`: what it drew goes to `forward` with the prepared target, so that
    prediction and target see the same.

    All draws are a pure function of (seed, step). With `redraw` each `prepare` in training mode is a step, counted in
    the state; otherwise, and always in evaluation, there is one draw.
    """

    step: Tensor

    def __init__(self, what: str, *, seed: int, redraw: bool) -> None:
        super().__init__()
        check_whole(f"seed of {what}", seed, low=0)
        check_flag(f"redraw of {what}", redraw)
        self.seed, self.random = seed, redraw
        self.register_buffer("step", torch.zeros((), dtype=torch.int64), persistent=redraw)

    def next_step(self) -> Tensor:
        """The step to draw for; -1 is the draw of every evaluation."""
        if not (self.random and self.training):
            return torch.full_like(self.step, -1)
        step = self.step.clone()  # the draw must not see the advance
        self.step.add_(1)
        return step
