"""SRResNet: the generator of SRGAN."""

from torch import Tensor, nn

from veridical.models.base import Restorer, check_options
from veridical.models.upsampling import check_scale, pixel_shuffles, pixel_shuffles_radius


class SRResNet(Restorer):
    """SRResNet: 9x9 convolutions at both ends, residual blocks with batch norm and PReLU, pixel shuffles.

    It is the generator of SRGAN. 16 blocks of two 3x3 convolutions, each with batch norm, PReLU between them; one more
    convolution with batch norm before the long skip. The scale is reached by shuffles that PReLU follows. Scale 1
    leaves the enlarging out, so that the network serves denoising and JPEG. Every PReLU has one slope.

    Its authors released neither code nor weights, so there are no keys to map. What others release under this name is
    often another network: BasicSR's MSRResNet has 3x3 ends, no batch norm, leaky ReLU and a bilinear skip, and its
    files do not load here.

    Shapes: (N, channels, H, W) -> (N, channels, scale * H, scale * W), any H, W >= 1; borders are padded by zeros in
            every layer.
    Range:  nominal [0, 1] at both ends, where the paper has [-1, 1] at the exit; not clamped.
    Args:   channels: of the image: 1 (grey) or 3 (RGB).
            scale: 1, 2, 3 or 4 (4 = twice 2, as in the paper).
            width: channels of every layer.
            blocks: residual blocks.
            batch_norm: as in the paper; without it, every convolution is followed by nothing or PReLU alone.
    Errors: ValueError for impossible options and for inputs of another shape.
    Source: Ledig et al. 2017, Photo-Realistic Single Image Super-Resolution Using a GAN, arXiv:1609.04802, figure 4.
    """

    def __init__(
        self, *, channels: int = 3, scale: int = 4, width: int = 64, blocks: int = 16, batch_norm: bool = True
    ) -> None:
        super().__init__()
        check_options("srresnet", channels=(channels, 1), width=(width, 1), blocks=(blocks, 1))
        check_scale("srresnet", scale)
        self.channels = channels
        self.scale = scale
        self.radius_px = 4 + 2 * blocks + 1 + pixel_shuffles_radius(scale, after=4)
        self.head = nn.Sequential(nn.Conv2d(channels, width, kernel_size=9, padding=4), nn.PReLU())
        self.blocks = nn.Sequential(*(_Block(width, batch_norm) for _ in range(blocks)))
        self.after = _convolution(width, batch_norm)
        self.enlarge = pixel_shuffles(width, scale, prelu=True)
        self.out = nn.Conv2d(width, channels, kernel_size=9, padding=4)

    def body(self, image: Tensor) -> Tensor:
        first = self.head(image)
        features = first + self.after(self.blocks(first))  # (N, width, H, W)
        return self.out(self.enlarge(features))


class _Block(nn.Module):
    def __init__(self, width: int, batch_norm: bool) -> None:
        super().__init__()
        self.first = _convolution(width, batch_norm)
        self.prelu = nn.PReLU()
        self.second = _convolution(width, batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.prelu(self.first(x)))


def _convolution(width: int, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(width, width, kernel_size=3, padding=1)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(width))
    return nn.Sequential(*layers)
