"""What every network with fixed weights has in common, whatever it computes."""

from typing import Any

import torch
from torch import Tensor

from veridical.core.errors import WeightsMissing
from veridical.features.base import Features


class FrozenFeatures(Features):
    """Features with weights from a file. A subclass keeps them as buffers outside the state_dict, and gives `name` and
    `sha256`: the state carries that hash alone, so that a run resumed with other weights is noticed."""

    name: str
    sha256: str

    def _freeze(self, name: str, sha256: str) -> None:
        """Say which weights these are."""
        self.name, self.sha256 = name, sha256
        self.weight_hashes = {name: sha256}

    def get_extra_state(self) -> Tensor:
        return torch.frombuffer(bytearray.fromhex(self.sha256), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        saved = bytes(torch.as_tensor(state, dtype=torch.uint8).tolist()).hex()
        if saved != self.sha256:
            raise WeightsMissing(
                f"this state was saved with {self.name} weights {saved[:12]}..., but the ones loaded are "
                f"{self.sha256[:12]}.... Load the same file with weights=PATH."
            )
