"""What several test files share."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from veridical.features.weights import FILES


@pytest.fixture(scope="session")
def network_file(tmp_path_factory):
    """network_file(name) -> a file of random weights in that network's shapes, for tests of behaviour, not of value."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            generator = torch.Generator().manual_seed(0)
            tensors = {}
            for key, shape in FILES[name].shapes.items():
                scale = (2 / max(1, torch.Size(shape[1:]).numel())) ** 0.5 if len(shape) == 4 else 0.05
                centre = 1.0 if key.endswith(("norm.weight", "running_var")) else 0.0
                tensors[key] = centre + scale * torch.randn(shape, generator=generator)
            made[name] = tmp_path_factory.mktemp("networks") / f"random-{name}.safetensors"
            save_file(tensors, made[name])
        return made[name]

    return make
