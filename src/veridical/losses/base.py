"""The contract of every loss."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from veridical.core.image import check_image, check_pair
from veridical.core.options import check_choice
from veridical.distances import FeatureDistance
from veridical.features import Features

REDUCTIONS = ("mean", "none")


@dataclass(frozen=True)
class Prepared:
    """A target that a loss has looked at once: `loss(prediction, loss.prepare(target))`.

    Attributes: parts: what `prepare_target` made of each `images_at_once` images. maker: which loss that was.
    """

    target: Tensor
    parts: tuple[Any, ...]
    images_at_once: int
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
        reference: False when the value at the target is not where the gradient leads (sharpness, adversarial).
        coupled: whether images of one batch influence each other: the batch is then never worked through in parts.
        learns: whether it has parts of its own that `learn` trains beside the model (adversarial). `train()` may then
            change the value, and identical images need not give 0.
        optimises: metrics that this loss optimises directly: a comparison marks those cells.
        weight_hashes: sha256 of each frozen network that it looks through.
        by_image: whether it needs so much memory that a batch is worked through a few images at a time. The gradient of
            each part is then taken before the next part is looked at, so that memory does not grow with the batch.
            Possible because images do not influence each other.
        batches_to_calibrate: how many batches `calibrate` should see before the first step; 0 when nothing is to be
            found.
        images_at_once: how many those are. None: on a CPU as many as have `pass_px` pixels; elsewhere, and when
            compiled, the whole batch at once.
        pass_px: as `Features` says.

    A subclass defines `prepare_target` (what depends on the target alone; runs without a graph) and `compare`.
    """

    label: str = ""
    min_size: int = 1
    random: bool = False
    reference: bool = True
    coupled: bool = False
    learns: bool = False
    optimises: tuple[str, ...] = ()
    reduction: str = "mean"
    by_image: bool = False
    batches_to_calibrate: int = 0
    images_at_once: int | None = None
    pass_px: int = Features.pass_px

    @property
    def weight_hashes(self) -> dict[str, str]:
        return {}

    def prepare_target(self, target: Tensor) -> Any:
        return target

    def compare(self, prediction: Tensor, data: Any) -> Tensor:
        """-> (N,). `data` is what `prepare_target` returned."""
        raise NotImplementedError("a subclass of Loss defines compare")

    def learn(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """One update of its own parts by its own optimiser, from what the model has just predicted; after the backward
        pass. Where `learns`. Parts and optimiser are buffers, in the state_dict.

        Returns: scalars to log, by name, without a graph; the same names at every step.
        """
        del prediction, target
        return {}

    @property
    def parts(self) -> list["Loss"]:
        """The terms of a sum, each with weight 1; of any other loss, itself."""
        return [self]

    @property
    def fixed_label(self) -> str:
        """The label, with numbers in place of the automatic weights that were found."""
        return self.label

    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Find the automatic weights of a sum, on batches of (prediction, target): once, before the first step, with
        the model as it is then. In several processes call it in each, on its own share: all get the same weights.

        Returns: the terms with what their weights have come to; empty for a loss that has none to find.
        Errors: NonFiniteLoss when a term's gradient is 0 or not finite.
        """
        del batches
        return {}

    @property
    def labels(self) -> list[str]:
        """Of its terms: for all but a sum, itself."""
        return [self.label or type(self).__name__]

    def compare_terms(self, prediction: Tensor, data: Any) -> list[Tensor]:
        """The weighted terms that add up to `compare`, each (N,)."""
        return [self.compare(prediction, data)]

    def prepare(self, target: Tensor) -> Prepared:
        """Look at the target once; the result may be used for many predictions."""
        check_image(target, self._who, min_size=self.min_size, channels=(1, 3))
        size = self._images_at_once(target)
        return Prepared(target.detach(), tuple(map(self._prepare_part, target.split(size))), size, self._who)

    def forward(self, prediction: Tensor, target: Tensor | Prepared, *, reduction: str | None = None) -> Tensor:
        return self._reduce(self._evaluate(prediction, target)[0], reduction)

    def with_terms(self, prediction: Tensor, target: Tensor | Prepared) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar, and the weighted terms that add up to it, by label; the terms are for looking at, without a
        graph."""
        values, terms = self._evaluate(prediction, target)
        return values.mean(), dict(zip(self.labels, terms.detach().mean(1).unbind(), strict=True))

    def terms(self, prediction: Tensor, target: Tensor | Prepared) -> dict[str, Tensor]:
        """The weighted terms, each with a graph of its own: for the gradient of a single one. Needs more memory than
        `with_terms`."""
        terms = self._evaluate(prediction, target, at_once=False)[1]
        return dict(zip(self.labels, terms.mean(1).unbind(), strict=True))

    def _evaluate(
        self, prediction: Tensor, target: Tensor | Prepared, *, at_once: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Values (N,) and weighted terms (T, N). at_once: the gradient of each part may be taken before the next part;
        the terms then have no graph."""
        image = target.target if isinstance(target, Prepared) else target
        check_pair(prediction, image, self._who, min_size=self.min_size, channels=(1, 3))
        if isinstance(target, Prepared) and target.maker != self._who:
            raise ValueError(f"{self._who} was given a target that {target.maker} prepared; call its own prepare.")
        size = target.images_at_once if isinstance(target, Prepared) else self._images_at_once(image)
        at_once = at_once and self._takes_gradients_at_once(prediction)
        found, gradients = [], []
        for k, (part, part_image) in enumerate(zip(prediction.split(size), image.split(size), strict=True)):
            data = target.parts[k] if isinstance(target, Prepared) else self._prepare_part(part_image)
            if not at_once:
                found.append(torch.stack(self.compare_terms(part, data)))
                continue
            with torch.enable_grad():
                leaf = part.detach().requires_grad_()
                terms = torch.stack(self.compare_terms(leaf, data))
                gradients += torch.autograd.grad(terms.sum(), leaf)
            found.append(terms.detach())
        terms = found[0] if len(found) == 1 else torch.cat(found, dim=1)
        values = terms.sum(0)
        if at_once:
            values = _WithGradient.apply(prediction, values, torch.cat(gradients))
        return values, terms

    def _prepare_part(self, target: Tensor) -> Any:
        with torch.no_grad():
            return self.prepare_target(target.detach())  # `no_grad` alone lets a graph through where it is kept

    def _works_by_image(self, image: Tensor) -> bool:
        if not self.by_image or self.random or self.coupled or torch.compiler.is_compiling():
            return False
        return image.device.type == "cpu" or self.images_at_once is not None

    def _images_at_once(self, image: Tensor) -> int:
        if not self._works_by_image(image):
            return max(1, len(image))
        return self.images_at_once or max(1, self.pass_px // (image.shape[-2] * image.shape[-1]))

    def _takes_gradients_at_once(self, prediction: Tensor) -> bool:
        if not (torch.is_grad_enabled() and prediction.requires_grad and self._works_by_image(prediction)):
            return False
        device = prediction.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        # In float16, gradients that lack the scaler's factor vanish.
        return not (autocast and torch.get_autocast_dtype(device) == torch.float16)

    def _reduce(self, values: Tensor, reduction: str | None) -> Tensor:
        if values.ndim != 1:
            raise ValueError(f"{self._who}: compare must give one number per image, but gave {tuple(values.shape)}.")
        reduction = reduction or self.reduction
        check_choice("reduction", reduction, REDUCTIONS)
        return values.mean() if reduction == "mean" else values

    @property
    def _who(self) -> str:
        return f"the loss {self.label!r}" if self.label else type(self).__name__


class _WithGradient(torch.autograd.Function):
    """Values (N,) whose gradient with respect to the prediction is known already: value n depends on image n alone."""

    @staticmethod
    def forward(ctx: FunctionCtx, prediction: Tensor, values: Tensor, gradient: Tensor) -> Tensor:
        del prediction
        ctx.save_for_backward(gradient)
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[:, None, None, None]).to(gradient.dtype), None, None


class FeatureLoss(Loss):
    """Features × distances as a loss: L(x̂, x) = Σ_k λ_k · d_k(φ_k(x̂), φ_k(x))."""

    def __init__(self, distance: FeatureDistance) -> None:
        super().__init__()
        self.distance = distance
        self.by_image = bool(self.weight_hashes)  # pretrained networks are large
        self.pass_px = distance.features.pass_px

    @property
    def min_size(self) -> int:  # type: ignore[override]
        return self.distance.features.min_size

    @property
    def random(self) -> bool:  # type: ignore[override]
        return self.distance.random

    @property
    def weight_hashes(self) -> dict[str, str]:
        return self.distance.features.weight_hashes

    def prepare_target(self, target: Tensor) -> Any:
        return self.distance.see(target)

    def compare(self, prediction: Tensor, data: Any) -> Tensor:
        return self.distance(prediction, data)
