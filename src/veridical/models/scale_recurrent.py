"""What SRN and DsDeblur share: an encoder-decoder that is applied from coarse to fine."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veridical.models.base import Restorer


class ScaleRecurrent(Restorer):
    """From coarse to fine: at each scale the network sees the image and the result of the coarser scale, both at the
    size of that scale; at the coarsest it sees the image twice.

    No gradient passes from a scale to the coarser one through the result, as in the released code.

    A subclass writes `at_scale`, calls `see_through` with how far one pass looks, and names its authors' keys.

    planes:        channels that the network sees at once: those of the image, or 1 when each is restored by itself.
    legacy_resize: images are resized as TensorFlow 1 did, as in the released code: pixel i of a grid half as fine is
                   pixel 2i of the finer one, and nothing is averaged on the way down. Else bilinear between pixel
                   centres.
    """

    def __init__(self, *, channels: int, scales: int, by_channel: bool, legacy_resize: bool) -> None:
        super().__init__()
        self.channels = channels
        self.planes = 1 if by_channel else channels
        self.scales = scales
        self.legacy_resize = legacy_resize
        self.multiple = 4 * 2 ** (scales - 1)
        self.stage_weights = (1.0,) * scales

    def at_scale(self, place: int, seen: Tensor, image: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(the result, what it hands on) at scale `place`, 0 the coarsest.

        seen is (N, 2 * planes, h, w): the image and the result of the coarser scale; image is (N, planes, h, w).
        """
        raise NotImplementedError("a subclass of ScaleRecurrent writes at_scale")

    def see_through(self, reach_px: int) -> None:
        """Sets radius_px where one pass of the network looks so far, in px of the scale that it is at."""
        # Each scale looks reach_px of its own pixels; the results are enlarged by looking 2 px of the finer grid
        # further; and the coarsest grid's pixels lie within half of their size of the image's.
        shrinks = [2**place for place in range(self.scales)]
        self.radius_px = sum(reach_px * shrink for shrink in shrinks) + sum(2 * shrink for shrink in shrinks[:-1])
        self.radius_px += shrinks[-1] // 2

    def body(self, image: Tensor) -> tuple[Tensor, ...]:
        number, _, height, width = image.shape
        image = image.reshape(-1, self.planes, height, width)
        found: list[Tensor] = []
        result, state = image, None
        for place in range(self.scales):
            shrink = 2 ** (self.scales - 1 - place)
            small = self.shrunk(image, shrink)
            before = self.enlarged(result).detach() if found else small
            if state is not None:
                state = self.enlarged(state)
            result, state = self.at_scale(place, torch.cat((small, before), dim=1), small, state)
            found.append(result)
        return tuple(each.reshape(number, self.channels, *each.shape[-2:]) for each in found)

    def shrunk(self, image: Tensor, shrink: int) -> Tensor:
        if self.legacy_resize or shrink == 1:
            return image[..., ::shrink, ::shrink]
        size = (image.shape[-2] // shrink, image.shape[-1] // shrink)
        return F.interpolate(image, size=size, mode="bilinear", align_corners=False)

    def enlarged(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        if not self.legacy_resize:
            return F.interpolate(image, size=(2 * height, 2 * width), mode="bilinear", align_corners=False)
        # With one more pixel at the end, its corner lies where TensorFlow had it: pixel o looks at o / 2.
        padded = F.pad(image, (0, 1, 0, 1), mode="replicate")
        between = F.interpolate(padded, size=(2 * height + 1, 2 * width + 1), mode="bilinear", align_corners=True)
        return between[..., :-1, :-1]

    @classmethod
    def convert(cls, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' variables with our keys: "g_net/enc1_1/weights", (h, w, in, out) in TensorFlow, becomes (out,
        in, h, w); what the optimiser kept beside them is left out."""
        variables = {key.removesuffix(":0"): value for key, value in published.items()}
        variables = {
            key: value.permute(3, 2, 0, 1).contiguous() if value.ndim == 4 else value
            for key, value in variables.items()
            if key.startswith("g_net/") and key.endswith(("/weights", "/biases"))
        }
        return super().convert(variables or published)


class ResidualBlock(nn.Module):
    """x + conv2(relu(conv1(x))), without normalisation."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2)
        self.conv2 = nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class HalvingConv(nn.Conv2d):
    """A convolution of stride 2 that pads as TensorFlow's "SAME" does for even sides: one zero more at the end."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int) -> None:
        super().__init__(channels_in, channels_out, kernel_size, stride=2)
        before = (kernel_size - 2) // 2
        self.around = (before, kernel_size - 2 - before)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.around * 2))


def initialise(network: nn.Module) -> None:
    """Xavier's uniform weights and zero biases, as in the released code."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


# TensorFlow's names of variables, once the path before them is ours.
TENSORFLOW_KEYS = ((r"/weights$", ".weight"), (r"/biases$", ".bias"), (r"/", "."))
