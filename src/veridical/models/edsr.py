"""EDSR: residual blocks without batch norm, enlarged at the end."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from veridical.models.base import Restorer, check_options
from veridical.models.upsampling import check_scale, pixel_shuffles, pixel_shuffles_radius

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
DIV2K_MEAN_LUMA = 0.4368  # 0.299 R + 0.587 G + 0.114 B


class EDSR(Restorer):
    """EDSR: a long chain of residual blocks at the small size, then pixel shuffles; no batch norm.

    The default is the authors' baseline (1,517,571 parameters at scale 4); the full network of the paper is
    "edsr(width=256, blocks=32, res_scale=0.1)" (43,089,923). Scale 1 leaves the enlarging out, so that the network
    serves denoising and JPEG; the authors published no such network.

    The mean of DIV2K is taken off at the entry and added at the exit, and between them the numbers are `rgb_range`
    times as large: 255 as in the released code, whose published weights hence load as they are and whose training is
    the one that starts here. (The files say so in sub_mean.bias = -rgb_range * mean; `convert` leaves these
    constants out.) BasicSR's names of the same network load too.

    Shapes: (N, channels, H, W) -> (N, channels, scale * H, scale * W), any H, W >= 1; borders are padded by zeros in
            every layer.
    Range:  nominal [0, 1]; not clamped.
    Args:   channels: of the image: 3 (RGB) or 1 (grey; the authors have colour only, the mean is then its luma).
            scale: 1, 2, 3 or 4 (4 = twice 2).
            width: channels of every layer.
            blocks: residual blocks of two convolutions.
            res_scale: factor of what a block adds; 0.1 keeps the wide network stable.
            rgb_range: how large white is inside; 255 for the published weights.
    Errors: ValueError for impossible options and for inputs of another shape.
    Source: Lim, Son, Kim, Nah & Lee 2017, Enhanced Deep Residual Networks, arXiv:1707.02921; means, range and key
            names from sanghyun-son/EDSR-PyTorch.
    """

    KEYS = (
        (r"^head\.0\.", "head."),
        (r"^body\.(\d+)\.body\.", r"blocks.\1.body."),
        (r"^body\.\d+\.(weight|bias)$", r"after.\1"),
        (r"^tail\.0\.", "enlarge."),
        (r"^tail\.1\.", "out."),
        # BasicSR's.
        (r"^conv_first\.", "head."),
        (r"^body\.(\d+)\.conv1\.", r"blocks.\1.body.0."),
        (r"^body\.(\d+)\.conv2\.", r"blocks.\1.body.2."),
        (r"^conv_after_body\.", "after."),
        (r"^upsample\.", "enlarge."),
        (r"^conv_last\.", "out."),
    )

    mean: Tensor

    def __init__(
        self,
        *,
        channels: int = 3,
        scale: int = 4,
        width: int = 64,
        blocks: int = 16,
        res_scale: float = 1.0,
        rgb_range: int = 255,
    ) -> None:
        super().__init__()
        check_options("edsr", channels=(channels, 1), width=(width, 1), blocks=(blocks, 1), rgb_range=(rgb_range, 1))
        check_scale("edsr", scale)
        self.channels = channels
        self.scale = scale
        self.rgb_range = rgb_range
        self.radius_px = 1 + 2 * blocks + 1 + pixel_shuffles_radius(scale, after=1)
        mean = DIV2K_MEAN if channels == 3 else (DIV2K_MEAN_LUMA,) * channels
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.head = nn.Conv2d(channels, width, kernel_size=3, padding=1)
        self.blocks = nn.Sequential(*(_Block(width, res_scale) for _ in range(blocks)))
        self.after = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.enlarge = pixel_shuffles(width, scale)
        self.out = nn.Conv2d(width, channels, kernel_size=3, padding=1)

    def body(self, image: Tensor) -> Tensor:
        first = self.head((image - self.mean) * self.rgb_range)
        features = first + self.after(self.blocks(first))  # (N, width, H, W)
        return self.out(self.enlarge(features)) / self.rgb_range + self.mean

    @classmethod
    def convert(cls, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' state_dict with our keys, without the two mean shifts, which are constants."""
        shifts = ("sub_mean.", "add_mean.")
        return {key: value for key, value in super().convert(published).items() if not key.startswith(shifts)}


class _Block(nn.Module):
    def __init__(self, width: int, res_scale: float) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.body = nn.Sequential(
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.res_scale * self.body(x)
