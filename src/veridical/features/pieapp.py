"""PieAPP's network: what people would say of a patch's errors, and how much they would look at it."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veridical.features import weights as files

SCALE = 0.01
LEAST_WEIGHT = 1e-6


class PieAPPNetwork(nn.Module):
    """Eleven 3x3 convolutions on 64x64 patches; fully connected layers on the difference of two patches' features.

    Its weights are buffers outside the state_dict: nothing trains them. They are the published file's.

    Shapes: (P, 3, 64, 64) x 2, BGR in 0-255 -> error and weight of each patch, (P,) x 2.
    Args:   weights: path of the file; by default it is found, see `features.weights`.
    Errors: WeightsMissing.
    Source: Prashnani et al. 2018, arXiv:1806.02067, and github.com/prashnani/PerceptualImageError.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        for key, tensor in files.load("pieapp", path=weights).tensors.items():
            self.register_buffer(key.replace(".", "_"), tensor, persistent=False)

    def forward(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        (of_prediction, deep_prediction), (of_target, deep_target) = map(self._see, (prediction, target))
        error = SCALE * self._judge("score", of_target - of_prediction)
        error = error * self._parameter("ref_score_subtract_weight") + self._parameter("ref_score_subtract_bias")
        return error[:, 0], self._judge("weight", deep_target - deep_prediction)[:, 0] + LEAST_WEIGHT

    def _see(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """The features after layers 3, 5, 7, 9 and 11 in one row, and those of 11 alone: (P, 120832), (P, 2048)."""
        rows = []
        for index in range(1, 12):
            weight, bias = (self._parameter(f"conv{index}_{kind}") for kind in ("weight", "bias"))
            patches = F.relu(F.conv2d(patches, weight, bias, padding=1))
            if index > 1 and index % 2:
                rows.append(patches.flatten(1))
            elif index % 2 == 0:
                patches = F.max_pool2d(patches, 2)
        return torch.cat(rows, dim=1), rows[-1]

    def _judge(self, what: str, features: Tensor) -> Tensor:
        for layer in (1, 2):
            weight, bias = (self._parameter(f"fc{layer}_{what}_{kind}") for kind in ("weight", "bias"))
            features = F.linear(F.relu(features) if layer == 2 else features, weight, bias)
        return features

    def _parameter(self, name: str) -> Tensor:
        tensor: Tensor = getattr(self, name)
        return tensor
