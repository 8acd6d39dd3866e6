"""The contract of a distance between feature maps."""

from torch import Tensor, nn


class Distance(nn.Module):
    """Two maps (N, C, h, w) -> (N,); 0 for equal maps; each image by itself.

    What depends on the target alone is computed in `prepare`, once, without a graph. `forward(prediction, prepared)`
    sees maps of at least float32, with autocast off.
    """

    def prepare(self, target: Tensor) -> Tensor:
        return target

    def forward(self, prediction: Tensor, prepared: Tensor) -> Tensor:
        raise NotImplementedError("a subclass of Distance defines forward")
