"""Which features occur together, wherever they stand."""

from torch import Tensor

from veridical.distances.base import Distance


def gram(maps: Tensor) -> Tensor:
    """Mean over positions of the products of each two channels, over C: (N, C, h, w) -> (N, C, C)."""
    flat = maps.flatten(2)
    return flat @ flat.mT / (flat.shape[1] * flat.shape[2])


class Gram(Distance):
    """Squared Frobenius distance of the two Gram matrices, Σ over both channels; the target's is made once."""

    def prepare(self, target: Tensor) -> Tensor:
        return gram(target)

    def forward(self, prediction: Tensor, prepared: Tensor) -> Tensor:
        return (gram(prediction) - prepared).square().sum((1, 2))
