"""What every restorer is: any size in, the same size (times `scale`) out, and all of its stages for the asking."""

import re
from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn


class Restorer(nn.Module):
    """A network from a degraded image to a restored one.

    A subclass sets what it is in `__init__` and writes `body`, which sees sides that are multiples of `multiple`.

    channels:      of the images: 1 (grey, luma) or 3 (RGB).
    scale:         the result is so many times as large as the input.
    multiple:      sides are padded to a multiple of this inside, and the result is cut back.
    padding:       how: "replicate", "reflect" or "constant" (zeros).
    radius_px:     how far, in px of the input and in every direction, a pixel of the result looks; None where it sees
                   the whole image (attention or a mean over it).
    stage_weights: what each of its stages counts in the loss, as its authors trained it; the last is the result.
    uses_kernel:   whether `forward` and `stages` take the blur's `kernel`, (h, w), too.
    KEYS:          (pattern, replacement) in order, for `re.sub`: from the keys of the authors' published files to ours.

    Shapes: (N, channels, H, W) -> (N, channels, scale * H, scale * W), any H, W >= 1.
    Range:  nominal [0, 1]; not clamped.
    Errors: ValueError for inputs of another shape.
    """

    channels: int = 3
    scale: int = 1
    multiple: int = 1
    padding: str = "replicate"
    radius_px: int | None = None
    stage_weights: tuple[float, ...] = (1.0,)
    uses_kernel: bool = False
    KEYS: ClassVar[tuple[tuple[str, str], ...]] = ()

    def body(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The restored image, or all stages from the first to the last; sides are multiples of `multiple`."""
        raise NotImplementedError("a subclass of Restorer writes body")

    def forward(self, image: Tensor) -> Tensor:
        """The final image."""
        return self.stages(image)[-1]

    def stages(self, image: Tensor) -> tuple[Tensor, ...]:
        """What every stage gives, from the first to the last, which is the final image; earlier ones may be smaller."""
        self.check(image)
        if self.multiple == 1:
            found = self.body(image)
            return found if isinstance(found, tuple) else (found,)
        height, width = image.shape[-2:]
        # Done for every size, so that torch.export needs to know nothing about the size; and ONNX divides positive
        # numbers alone as Python does.
        to_height, to_width = ((side + self.multiple - 1) // self.multiple * self.multiple for side in (height, width))
        found = self.body(F.pad(image, (0, to_width - width, 0, to_height - height), mode=self.padding))
        every = found if isinstance(found, tuple) else (found,)
        # A stage of a quarter of the size keeps a quarter of the pixels, rounded up.
        earlier = (
            each[..., : -(-height * each.shape[-2] // to_height), : -(-width * each.shape[-1] // to_width)]
            for each in every[:-1]
        )
        return (*earlier, every[-1][..., : self.scale * height, : self.scale * width])

    def check(self, image: Tensor) -> None:
        if image.ndim != 4 or image.shape[1] != self.channels or image.numel() == 0:
            raise ValueError(
                f"this {type(self).__name__.lower()} restores images of shape (N, {self.channels}, H, W); got "
                f"{tuple(image.shape)}."
            )

    @classmethod
    def convert(cls, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' state_dict with our keys."""
        converted = {}
        for key, value in published.items():
            key = key.removeprefix("module.")
            for pattern, replacement in cls.KEYS:
                key = re.sub(pattern, replacement, key)
            converted[key] = value
        return converted


def check_options(model: str, **least: tuple[object, int]) -> None:
    """ValueError for an option that is not a whole number of at least so much: check_options("unet", width=(8, 1))."""
    for option, (value, low) in least.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ValueError(f"{option} of {model} must be a whole number of at least {low}; got {value!r}.")
