"""DDNet: Wiener's inverse of a known blur, a network for what the blur destroyed, and a filter for every pixel."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veridical.models.base import Restorer, check_options


class DDNet(Restorer):
    """DDNet: non-blind deblurring that learns only what the blur destroyed.

    With A the blur and A+ its regularised inverse (Wiener's: conj(A) / (|A|**2 + epsilon) in frequency), a network f
    sees the image y and A+ y, and gives an image f and a filter for each pixel:

        output = filters * (f - A+ A f + A+ y)

    f is kept where the blur destroyed the frequencies, A+ y elsewhere; the filters, 5x5, the same for all channels
    of a pixel, remove what is left. The network works at a quarter of the sides (twice: 2x2 pixels to channels, 3x3
    convolution, leaky ReLU), has dense residual blocks of three 3x3 convolutions and a 1x1, and goes back up by
    convolutions with channels to pixels.

    Blurring and its inverse go by FFT, in float32, on the image without its mean, continued by replication over
    `border` px in which it fades to its mean.

    At its defaults it has 2,947,676 parameters in RGB, and 2,938,330 for one channel, as the released network for luma,
    whose keys load through `convert`. Weights start as PyTorch's layers do, as in the released code.

    Not as in the released code: there the luma of an image is restored by this network with one channel, and its two
    chroma channels by a second one of five blocks that adds nothing of A+ y. Here all channels go through one network
    together; `channels=1` is the authors' for luma, which the sharpness paper compares with. And their training
    takes what lies beyond the crop from the photograph, here as in their test it is replicated.

    Without `kernel` the blur is a box of `kernel_size` px, the sharpness paper's. Another is given with each call.

    Shapes: (N, channels, H, W) -> the same, any H, W >= 1: padded inside by replication, and cropped back.
            kernel: (h, w), or (N, h, w), one for each image: sums to 1, applied by true convolution, its centre at
            (h // 2, w // 2).
    Range:  nominal [0, 1]; not clamped.
    Args:   channels: of the image: 1 (grey, luma) or 3 (RGB).
            width: channels of every layer.
            blocks: dense residual blocks.
            filter_size: side of each pixel's filter, odd.
            kernel_size: side of the box blur that is undone where no kernel is given.
            border: px around the image in which it fades.
            epsilon: what is added to |A|**2, the ratio of noise to signal.
    Errors: ValueError for impossible options, for inputs and kernels of another shape, and for a kernel that is larger
            than the image with its border.
    Source: Lopez-Tapia, Mateos, Molina & Katsaggelos 2023, Deep robust image restoration using the Moore-Penrose blur
            inverse (ICIP); layers, constants and keys: the released code (vipgugr/CHSG-DDNet).
    """

    KEYS: ClassVar[tuple[tuple[str, str], ...]] = ((r"^Generator\.", ""),)
    uses_kernel = True

    def __init__(
        self,
        *,
        channels: int = 3,
        width: int = 64,
        blocks: int = 10,
        filter_size: int = 5,
        kernel_size: int = 5,
        border: int = 64,
        epsilon: float = 1e-2,
    ) -> None:
        super().__init__()
        check_options("ddnet", channels=(channels, 1), width=(width, 1), blocks=(blocks, 1), border=(border, 1))
        check_options("ddnet", filter_size=(filter_size, 1), kernel_size=(kernel_size, 1))
        if filter_size % 2 == 0:
            raise ValueError(f"filter_size of ddnet must be odd, so that a filter has a centre; got {filter_size}.")
        if not epsilon > 0:
            raise ValueError(f"epsilon of ddnet must be above 0; got {epsilon!r}.")
        self.channels = channels
        self.kernel_size = kernel_size
        self.filter_size = filter_size
        self.border = border
        self.epsilon = epsilon
        # The names of the modules are the authors', so that their weights load.
        self.in_cv = nn.Sequential(
            _PixelsToChannels(),
            nn.Conv2d(4 * 2 * channels, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            _PixelsToChannels(),
            nn.Conv2d(4 * width, width, 3, padding=1),
            nn.LeakyReLU(0.2),
        )
        self.res_blocks = nn.Sequential(*(_DenseBlock(width) for _ in range(blocks)))
        self.fuse_cv = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(0.2))
        self.upsample = nn.Sequential(
            nn.Conv2d(width, 4 * width, 3, padding=1),
            _ChannelsToPixels(),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 4 * width, 3, padding=1),
            _ChannelsToPixels(),
            nn.LeakyReLU(0.2),
        )
        self.convout_im = _head(width, channels)
        self.convout_df = _head(width, filter_size**2)

    def forward(self, image: Tensor, kernel: Tensor | None = None) -> Tensor:
        """The restored image, whose blur was `kernel`."""
        return self.stages(image, kernel)[-1]

    def stages(self, image: Tensor, kernel: Tensor | None = None) -> tuple[Tensor, ...]:
        """The one stage there is."""
        self.check(image)
        height, width = image.shape[-2:]
        if kernel is None:
            kernel = image.new_full((self.kernel_size, self.kernel_size), 1 / self.kernel_size**2, dtype=torch.float32)
        if kernel.ndim not in (2, 3) or (kernel.ndim == 3 and len(kernel) != len(image)):
            raise ValueError(
                f"the kernel of ddnet must have the shape (h, w), or (N, h, w) with one for each of the {len(image)} "
                f"images; got {tuple(kernel.shape)}."
            )
        # 4 px all around, as the authors, and up to a multiple of 4: the network works at a quarter of the sides.
        padded = F.pad(image, (4, 4 + -width % 4, 4, 4 + -height % 4), mode="replicate")
        sides = (padded.shape[-2] + 2 * self.border, padded.shape[-1] + 2 * self.border)
        if kernel.shape[-2] > sides[0] or kernel.shape[-1] > sides[1]:
            raise ValueError(
                f"the kernel of ddnet is larger than the image with its border: {tuple(kernel.shape[-2:])}, image "
                f"{tuple(image.shape[-2:])}. Give ddnet a larger border ({self.border} px now)."
            )
        return (self.deblurred(padded, kernel)[..., 4 : 4 + height, 4 : 4 + width],)

    def deblurred(self, image: Tensor, kernel: Tensor) -> Tensor:
        """The restored image, (N, channels, H, W); sides that are multiples of 4."""
        with torch.autocast(image.device.type, enabled=False):
            exact = image.to(torch.promote_types(image.dtype, torch.float32))
            inverted = self.invert(exact, kernel)
        found, filters = self.look(torch.cat((image, inverted.to(image.dtype)), dim=1))
        with torch.autocast(image.device.type, enabled=False):
            found = found.to(exact.dtype)
            complete = found - self.invert(found, kernel, blur_first=True) + inverted
            return filter_each_pixel(complete, filters.to(exact.dtype)).to(image.dtype)

    def look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 2 * channels, H, W) -> image (N, channels, H, W) and filters (N, filter_size**2, H, W)."""
        entered = self.in_cv(x)
        x = self.upsample(self.fuse_cv(self.res_blocks(entered) + entered))
        return self.convout_im(x), self.convout_df(x)

    def invert(self, image: Tensor, kernel: Tensor, *, blur_first: bool = False) -> Tensor:
        """A+ image, or A+ A image; float32 or float64, of the same shape."""
        border = self.border
        height, width = image.shape[-2:]
        mean = image.mean(dim=(-2, -1), keepdim=True)
        padded = continued(image - mean, border)
        padded = padded * fading(padded.shape[-2], border, image)[:, None] * fading(padded.shape[-1], border, image)
        sides = (padded.shape[-2], padded.shape[-1])
        blur = transfer_function(kernel.to(image), sides)
        power = blur.real.square() + blur.imag.square()
        response = power if blur_first else blur.conj()
        frequencies = torch.fft.rfft2(padded) * (response / (power + self.epsilon))
        return torch.fft.irfft2(frequencies, s=sides)[..., border : border + height, border : border + width] + mean


def continued(image: Tensor, border: int) -> Tensor:
    """The image with `border` px more on every side, by replication.

    As F.pad does it, whose gradient Inductor refuses behind a convolution (torch 2.13) and CUDA sums in any order.
    """
    upright = (-1, -1, border, -1)
    image = torch.cat((image[..., :1, :].expand(upright), image, image[..., -1:, :].expand(upright)), dim=-2)
    level = (-1, -1, -1, border)
    return torch.cat((image[..., :1].expand(level), image, image[..., -1:].expand(level)), dim=-1)


def fading(length: int, border: int, like: Tensor) -> Tensor:
    """(length,): from 0 up in `border` steps, 1, and down to 0."""
    place = torch.arange(length, device=like.device, dtype=like.dtype)
    return (torch.minimum(place, length - 1 - place) / border).clamp(max=1)


def transfer_function(kernel: Tensor, sides: tuple[int, int]) -> Tensor:
    """(h, w) or (N, h, w) -> (1 or N, 1, H, W // 2 + 1): what convolution with the kernel does to each frequency."""
    height, width = kernel.shape[-2:]
    padded = F.pad(kernel, (0, sides[1] - width, 0, sides[0] - height))
    centred = torch.roll(padded, (-(height // 2), -(width // 2)), dims=(-2, -1))
    return torch.fft.rfft2(centred).reshape(-1, 1, sides[0], sides[1] // 2 + 1)


def filter_each_pixel(image: Tensor, filters: Tensor) -> Tensor:
    """(N, C, H, W) and (N, k * k, H, W) -> (N, C, H, W): each pixel's k x k surroundings, zeros outside, weighted by
    its own filter; row by row, not mirrored."""
    side = round(filters.shape[1] ** 0.5)
    number, channels, height, width = image.shape
    around = F.unfold(image, side, padding=side // 2).reshape(number, channels, side * side, height, width)
    return (around * filters[:, None]).sum(dim=2)


class _DenseBlock(nn.Module):
    """Three convolutions, each of which sees all before it, newest first; then a 1x1 convolution, and x added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1 = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(0.2))
        self.cv2 = nn.Sequential(nn.Conv2d(2 * width, width, 3, padding=1), nn.LeakyReLU(0.2))
        self.cv3 = nn.Sequential(nn.Conv2d(3 * width, width, 3, padding=1), nn.LeakyReLU(0.2))
        self.fuse = nn.Sequential(nn.Conv2d(4 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for layer in (self.cv1, self.cv2, self.cv3):
            seen = torch.cat((layer(seen), seen), dim=1)
        return x + self.fuse(seen)


class _PixelsToChannels(nn.Module):
    """2x2 pixels to channels, column by column: pixel_unshuffle goes row by row."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x.mT, 2).mT


class _ChannelsToPixels(nn.Module):
    """The inverse of _PixelsToChannels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x.mT, 2).mT


def _head(width: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(width, channels, 1))
