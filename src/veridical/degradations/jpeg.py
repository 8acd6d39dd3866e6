"""JPEG compression, by the real encoder."""

import io
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from veridical.core.errors import DataError
from veridical.core.options import check_choice
from veridical.degradations.base import Degradation
from veridical.degradations.strength import Strength, check_strength, draw, varies


@dataclass(frozen=True, kw_only=True)
class Jpeg(Degradation):
    """Through a JPEG file and back, with Pillow's libjpeg; the image is clamped and rounded to 8 bit first.

    Args:   quality: libjpeg's quality from 1 to 100, or a range (low, high), both ends included, drawn for
            every image and rounded to a whole number.
            subsampling: of the colour: "4:2:0" (halved both ways: what cameras and libjpeg do), "4:2:2" or
            "4:4:4" (full). Grey images have no colour to subsample.
    Errors: DataError unless the image has 1 or 3 channels.
    """

    name: ClassVar[str] = "jpeg"
    quality: Strength = 20
    subsampling: str = "4:2:0"

    def __post_init__(self) -> None:
        check_strength("quality of jpeg", self.quality, low=1, high=100)
        check_choice("subsampling of jpeg", self.subsampling, ("4:2:0", "4:2:2", "4:4:4"))

    @property
    def random(self) -> bool:
        return varies(self.quality)

    def apply(self, image: Tensor, generator: torch.Generator) -> Tensor:
        if image.shape[0] not in (1, 3):
            raise DataError(f"jpeg expects a grey or RGB image; got {image.shape[0]} channels.")
        levels = image.clamp(0, 1).mul(255).round().to(torch.uint8).cpu().permute(1, 2, 0).numpy()
        picture = Image.fromarray(levels[..., 0] if image.shape[0] == 1 else np.ascontiguousarray(levels))
        file = io.BytesIO()
        quality = round(draw(self.quality, generator))
        picture.save(file, format="JPEG", quality=quality, subsampling=self.subsampling)
        with Image.open(file) as decoded:
            pixels = torch.from_numpy(np.array(decoded))
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        return pixels.to(image.device, torch.float32) / 255
