"""Sharpness as a loss."""

from torch import Tensor

from veridical.core.options import check_choice
from veridical.losses.base import Loss
from veridical.measures.sharpness_q import PATCH, THRESHOLD, Variant, sharpness_q


class SharpnessQLoss(Loss):
    """How much less sharp than the target: Q(target) - Q(prediction). Only beside a pixel loss: l1 + 0.01*sharpness-q.

    Q needs no reference; Q(target) is a constant that makes the loss 0 at the target: the gradient is the paper's -Q.
    Unbounded below: it rewards noise and ringing as much as detail. The paper's weights lie between 0.001 and 0.1 and
    ring from 0.5 up.

    Range:  (-inf, Q(target)].
    Args:   variant: "singular" (the paper) or "released" (its code); one's weight does not suit the other.
    Source: Aurangabadkar, Ramsook, Kokaram 2024, "A Sharpness Based Loss Function for Removing Out-of-Focus Blur".
    """

    reference = False
    min_size = PATCH

    def __init__(self, *, variant: Variant = "singular") -> None:
        super().__init__()
        check_choice("variant of sharpness-q", variant, THRESHOLD)
        self.variant = variant

    def prepare_target(self, target: Tensor) -> Tensor:
        return sharpness_q(target, variant=self.variant)

    def compare(self, prediction: Tensor, data: Tensor) -> Tensor:
        return data - sharpness_q(prediction, variant=self.variant)
