"""What the builders of both kinds of metrics share."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn


class OfPair(nn.Module):
    """A pure function of two images, with the least size that it needs."""

    def __init__(self, function: Callable[..., Tensor], min_size: int) -> None:
        super().__init__()
        self.function, self.min_size = function, min_size

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.function(prediction, target)


class OfImage(OfPair):
    """The same of one image: the target is not looked at."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:  # noqa: ARG002
        return self.function(prediction)


def weights_needed(name: str, option: str = "weights") -> Callable[[Mapping[str, Any]], tuple[str, ...]]:
    """The pretrained file that a metric reads unless its option gives another."""
    return lambda options: () if options.get(option) else (name,)
