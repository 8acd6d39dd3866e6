"""Sharpness as a loss."""

from torch import Tensor

from veridical.core.options import check_choice
from veridical.losses.base import Loss
from veridical.measures.sharpness_q import PATCH, THRESHOLD, Variant, sharpness_q


class SharpnessQLoss(Loss):
    """How much less sharp than the target: Q(target) - Q(prediction). Only beside a pixel loss: l1 + 0.01*sharpness-q.

    Q needs no reference; Q(target) is a constant that makes the loss 0 at the target: the gradient is the paper's -Q.

    Formula: Q(x) - Q(x̂); Q = Σ s1 R over the 8x8 patches with R > tau, / their number in all. s1 >= s2: singular
            values of a patch's 64 x 2 matrix of luma gradients, R = (s1 - s2) / (s1 + s2).
    Range:  (-inf, Q(target)].
    Use:    to sharpen what L1 has learned, with a small weight: the paper's lie between 0.001 and 0.1, and at 0.01 it
            raises PSNR and Q on a 5x5 box blur.
    Weak:   unbounded below: ringing raises Q as detail does (white noise lowers it), and alone it fills the patches
            with stripes. In the paper, weights above 0.5 ring severely and 0.1 costs 1.4 dB; here a network bought Q at
            the border of its crops (docs/fine-tuning.md). Blind to colour, to a change of brightness, and to what is
            shown.
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
