"""The contract of every loss."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from veridical.core.image import check_image, check_pair
from veridical.core.options import check_choice
from veridical.distances import FeatureDistance

REDUCTIONS = ("mean", "none")


@dataclass(frozen=True)
class Prepared:
    """A target that a loss has looked at once: `loss(prediction, loss.prepare(target))`. maker: which loss that was."""

    target: Tensor
    data: Any
    maker: str


class Loss(nn.Module):
    """(prediction, target) -> scalar; 0 for identical images; lower is better.

    Shapes: (N, C, H, W) x 2, float, C = 3 (RGB) or 1 (Y), nominal [0, 1], overshoot allowed -> scalar, the mean over
            images; with reduction="none" (N,). Each image is compared by itself.
    Errors: ValueError / TypeError for a wrong shape, a wrong dtype or too small an image; values are never looked at.

    Attributes:
        label: the spec that makes this loss, such as "lpips(net=vgg)".
        min_size: the least height and width, in px.
        random: whether each forward in training mode draws anew (in evaluation mode the draw is fixed).
        reference: False when the value at the target is not where the gradient leads (sharpness).
        optimises: metrics that this loss optimises directly: a comparison marks those cells.
        weight_hashes: sha256 of each frozen network that it looks through.

    A subclass defines `prepare_target` (what depends on the target alone; runs without a graph) and `compare`.
    """

    label: str = ""
    min_size: int = 1
    random: bool = False
    reference: bool = True
    optimises: tuple[str, ...] = ()
    reduction: str = "mean"

    @property
    def weight_hashes(self) -> dict[str, str]:
        return {}

    def prepare_target(self, target: Tensor) -> Any:
        return target

    def compare(self, prediction: Tensor, data: Any) -> Tensor:
        """-> (N,). `data` is what `prepare_target` returned."""
        raise NotImplementedError("a subclass of Loss defines compare")

    def prepare(self, target: Tensor) -> Prepared:
        """Look at the target once; the result may be used for many predictions."""
        check_image(target, self._who, min_size=self.min_size, channels=(1, 3))
        target = target.detach()  # `no_grad` alone lets a graph through where the target itself is kept
        with torch.no_grad():
            return Prepared(target, self.prepare_target(target), self._who)

    def forward(self, prediction: Tensor, target: Tensor | Prepared, *, reduction: str | None = None) -> Tensor:
        prepared = self._prepared(prediction, target)
        return self._reduce(self.compare(prediction, prepared.data), reduction)

    def with_terms(self, prediction: Tensor, target: Tensor | Prepared) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar, and the weighted terms that add up to it, by label."""
        total = self(prediction, target, reduction="mean")
        return total, {self.label: total}

    def _prepared(self, prediction: Tensor, target: Tensor | Prepared) -> Prepared:
        image = target.target if isinstance(target, Prepared) else target
        check_pair(prediction, image, self._who, min_size=self.min_size, channels=(1, 3))
        if not isinstance(target, Prepared):
            return self.prepare(target)
        if target.maker != self._who:
            raise ValueError(f"{self._who} was given a target that {target.maker} prepared; call its own prepare.")
        return target

    def _reduce(self, values: Tensor, reduction: str | None) -> Tensor:
        if values.ndim != 1:
            raise ValueError(f"{self._who}: compare must give one number per image, but gave {tuple(values.shape)}.")
        reduction = reduction or self.reduction
        check_choice("reduction", reduction, REDUCTIONS)
        return values.mean() if reduction == "mean" else values

    @property
    def _who(self) -> str:
        return f"the loss {self.label!r}" if self.label else type(self).__name__


class FeatureLoss(Loss):
    """Features × distances as a loss: L(x̂, x) = Σ_k λ_k · d_k(φ_k(x̂), φ_k(x))."""

    def __init__(self, distance: FeatureDistance) -> None:
        super().__init__()
        self.distance = distance

    @property
    def min_size(self) -> int:  # type: ignore[override]
        return self.distance.features.min_size

    @property
    def random(self) -> bool:  # type: ignore[override]
        return self.distance.features.random

    @property
    def weight_hashes(self) -> dict[str, str]:
        return self.distance.features.weight_hashes

    def prepare_target(self, target: Tensor) -> Any:
        return self.distance.see(target)

    def compare(self, prediction: Tensor, data: Any) -> Tensor:
        return self.distance(prediction, data)
