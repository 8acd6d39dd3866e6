"""The weights that ours and the peers share, so that what is compared is one and the same function."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from veridical.core.catalog import require
from veridical.features import weights

RANDOM = "random"
CLIP = "clip-vit-b-16"


class Supply:
    """Pretrained weights as far as this machine has them, else random ones of the same shapes. It downloads nothing.

    The time of a network does not depend on its weights, so random ones measure as well; what was used is in `origins`.
    Use it in a `with`, which removes the files of the random ones at the end.

    Args:   always_random: leave the pretrained ones alone.
    Attributes: origins: name -> the sha256 of the weights in use, or RANDOM.
    """

    def __init__(self, *, always_random: bool = False) -> None:
        self.always_random = always_random
        self.origins: dict[str, str] = {}
        self._files: dict[str, Path] = {}
        self._tensors: dict[str, Mapping[str, Tensor]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="veridical-random-weights-")

    def __enter__(self) -> "Supply":
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def tensors(self, name: str) -> Mapping[str, Tensor]:
        """The weights of a network of `veridical.features.weights.FILES`."""
        if name not in self._tensors:
            if self.always_random or weights.available(name) is None:
                self._tensors[name] = random_weights(weights.FILES[name].shapes)
                self.origins[name] = RANDOM
                self._files[name] = Path(self._folder.name) / f"random-{name}.safetensors"
                save_file(dict(self._tensors[name]), self._files[name])
            else:
                found = weights.load(name)
                self._tensors[name], self.origins[name] = found.tensors, found.sha256
        return self._tensors[name]

    def mdf(self) -> Path:
        """The file of the authors' discriminators, as the plain form looks through them."""
        name = "mdf-released-sisr"
        self.tensors(name)
        return self._files.get(name) or weights.fetch(name)

    def clip_tower(self) -> Path:
        """A folder with the first four blocks of CLIP's ViT-B/16, always with random weights: as many as fmlc looks
        through, and nobody has to fetch the rest."""
        if CLIP not in self._files:
            transformers = require("transformers", "clip", "a CLIP tower")
            config = transformers.CLIPVisionConfig(patch_size=16, num_hidden_layers=4)
            with torch.random.fork_rng(devices=[]), without_bars():
                torch.manual_seed(0)
                transformers.CLIPVisionModel(config).save_pretrained(Path(self._folder.name) / CLIP)
            self._files[CLIP] = Path(self._folder.name) / CLIP
            self.origins[CLIP] = RANDOM
        return self._files[CLIP]

    def options(self, needs: tuple[str, ...]) -> dict[str, Any]:
        """What a loss or a metric that needs these networks has to be told: the file, where the weights are random."""
        for name in needs:
            self.tensors(name)
            if name in self._files:
                return {"weights": str(self._files[name])}
        return {}


@contextmanager
def without_bars() -> Iterator[None]:
    """transformers draws a progress bar for each file."""
    logging = require("transformers.utils.logging", "clip", "a CLIP tower")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def random_weights(shapes: weights.Shapes) -> dict[str, Tensor]:
    """Convolutions that keep the size of what passes (He et al. 2015), small offsets, and neutral BatchNorms."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for key, shape in shapes.items():
        if len(shape) == 4:
            made[key] = (2 / torch.Size(shape[1:]).numel()) ** 0.5 * torch.randn(shape, generator=generator)
        elif key.endswith(("norm.weight", "running_var")):
            made[key] = 1 + 0.1 * torch.rand(shape, generator=generator)
        else:
            made[key] = 0.05 * torch.randn(shape, generator=generator)
    return made
