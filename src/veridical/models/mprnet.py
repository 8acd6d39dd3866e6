"""MPRNet: three stages that see a quarter of the image, a half, and the whole."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veridical.models.base import Restorer, check_options


class MPRNet(Restorer):
    """MPRNet: two U-Nets on the quarters and on the halves of the image, then a network at full resolution.

    Stage 1 encodes the four quarters and decodes the upper and the lower half; stage 2 encodes the halves and decodes
    the whole; stage 3 works on the whole, without a change of resolution, fed by both. Between stages stand supervised
    attention, which weights features by the image restored so far, and the fusion of the earlier features level by
    level. Convolutions have no bias, and all PReLUs share one slope.

        task                          width  unet_step  full_step  parameters
        deblurring (the default)         96         48         32  20,127,073  (20.1 M in the paper)
        denoising                        80         48         32  15,741,025
        deraining                        40         20         16   3,637,249

    The TFMLC paper fine-tunes a "lite version". The authors gave out such a network for deblurring in issue 38 of their
    repository (swz30/MPRNet); its sizes are width 40, unet_step 40 and full_step 32 in the words of its user in issue
    55, and its PSNR on GoPro, 31.87 dB there, is that paper's. We have not seen the file itself.

    The authors' released files load through `KEYS`: the slope, which theirs hold once per use, is here once, and the
    convolutions of a channel attention block have names. Their network returns the stages from the last to the first,
    this one from the first to the last. Their 1x1 convolutions behind an enlargement stand before it here, where they
    cost a quarter: the results are the same, as both are linear and one works on pixels, the other on channels.

    The convolutions that make the three images start at zero, so that all stages of the untrained network return its
    input: every loss starts from the degraded image. (The authors start from PyTorch's initialisation throughout.)

    Shapes: (N, channels, H, W) -> the same, any H, W >= 1: padded by replication to a multiple of 8 inside, so that
            quarters can be halved twice, and cropped back. `stages` gives three images of this size. (The authors'
            tests pad by reflection, which an image of a few pixels does not allow.)
    Range:  nominal [0, 1]; not clamped.
    Args:   channels: of the image: 1 (grey) or 3 (RGB).
            width: channels at full resolution (the authors' n_feat).
            unet_step: so many more at each of the two coarser levels of the U-Nets (scale_unetfeats).
            full_step: so many more in the third stage (scale_orsnetfeats).
            cabs: channel attention blocks in each of its three groups (num_cab).
            reduction: a channel attention squeezes the channels to so small a part.
    Errors: ValueError for impossible options and for inputs of another shape.
    Source: Zamir, Arora, Khan, Hayat, Khan, Yang & Shao 2021, Multi-Stage Progressive Image Restoration,
            arXiv:2102.02808; widths, missing biases, the shared slope and the keys from their released code.
    """

    multiple = 8
    stage_weights = (1.0, 1.0, 1.0)
    # In their channel attention blocks body.0 and body.2 are convolutions and body.1 is the PReLU that all share; the
    # body of an orb is a list of such blocks and must keep its numbers.
    KEYS: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^.*(?<!\.orb\d)\.body\.1\.weight$", "slope"),
        (r"(?<!\.orb\d)\.body\.0\.", ".conv1."),
        (r"(?<!\.orb\d)\.body\.2\.", ".conv2."),
    )

    def __init__(
        self,
        *,
        channels: int = 3,
        width: int = 96,
        unet_step: int = 48,
        full_step: int = 32,
        cabs: int = 8,
        reduction: int = 4,
    ) -> None:
        super().__init__()
        check_options(
            "mprnet",
            channels=(channels, 1),
            width=(width, 1),
            unet_step=(unet_step, 0),
            full_step=(full_step, 0),
            cabs=(cabs, 1),
            reduction=(reduction, 1),
        )
        if width < reduction:
            raise ValueError(f"width of mprnet must be at least its reduction, {reduction}; got {width}.")
        self.channels = channels
        self.slope = nn.Parameter(torch.full((1,), 0.25))
        widths = [width, width + unet_step, width + 2 * unet_step]
        full = width + full_step
        self.shallow_feat1 = _Shallow(channels, width, reduction)
        self.shallow_feat2 = _Shallow(channels, width, reduction)
        self.shallow_feat3 = _Shallow(channels, width, reduction)
        self.stage1_encoder = _Encoder(widths, reduction)
        self.stage1_decoder = _Decoder(widths, reduction)
        self.stage2_encoder = _FusingEncoder(widths, reduction)
        self.stage2_decoder = _Decoder(widths, reduction)
        self.stage3_orsnet = _FullResolution(widths, full, cabs, reduction)
        self.sam12 = _SupervisedAttention(width, channels)
        self.sam23 = _SupervisedAttention(width, channels)
        self.concat12 = _conv3x3(2 * width, width)
        self.concat23 = _conv3x3(2 * width, full)
        self.tail = _conv3x3(full, channels)
        nn.init.zeros_(self.tail.weight)

    def body(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slope = self.slope
        halves = _split(image, 2)  # (2N, C, H/2, W): upper, lower
        quarters = _split(halves, 3)  # (4N, C, H/2, W/2): those at the left, those at the right

        encoded = [_join(each, 3) for each in self.stage1_encoder(self.shallow_feat1(quarters, slope), slope)]
        decoded = self.stage1_decoder(encoded, slope)
        attended, first = self.sam12(decoded[0], halves)

        x = self.concat12(torch.cat((self.shallow_feat2(halves, slope), attended), dim=1))
        fused = [_join(each, 2) for each in self.stage2_encoder.fuse(x, slope, encoded, decoded)]
        decoded = self.stage2_decoder(fused, slope)
        attended, second = self.sam23(decoded[0], image)

        x = self.concat23(torch.cat((self.shallow_feat3(image, slope), attended), dim=1))
        third = image + self.tail(self.stage3_orsnet(x, fused, decoded, slope))
        return _join(first, 2), second, third


def _split(x: Tensor, dim: int) -> Tensor:
    """The two halves along `dim`, one behind the other as images of one batch, which never see each other."""
    return torch.cat(x.chunk(2, dim=dim))


def _join(x: Tensor, dim: int) -> Tensor:
    """Undoes `_split`."""
    return torch.cat(x.chunk(2), dim=dim)


def _conv1x1(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=1, bias=False)


def _conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False)


class _Block(nn.Module):
    """Channel attention block: two convolutions, then each channel times a gate made of all channels' means."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        squeezed = width // reduction
        gate = (_conv1x1(width, squeezed), nn.ReLU(), _conv1x1(squeezed, width), nn.Sigmoid())
        self.CA = nn.ModuleDict({"conv_du": nn.Sequential(*gate)})
        self.conv1 = _conv3x3(width, width)
        self.conv2 = _conv3x3(width, width)

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        y = self.conv1(x)
        y = self.conv2(F.prelu(y, slope.to(y.dtype)))
        gated: Tensor = x + y * self.CA["conv_du"](y.mean(dim=(2, 3), keepdim=True))
        return gated


class _Blocks(nn.ModuleList):
    """Two channel attention blocks, one behind the other."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__(_Block(width, reduction) for _ in range(2))

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        for block in self:
            x = block(x, slope)
        return x


class _Shallow(nn.ModuleList):
    """The image's first features."""

    def __init__(self, channels: int, width: int, reduction: int) -> None:
        super().__init__((_conv3x3(channels, width), _Block(width, reduction)))

    def forward(self, image: Tensor, slope: Tensor) -> Tensor:
        convolution, block = self
        y: Tensor = block(convolution(image), slope)
        return y


class _Encoder(nn.Module):
    """-> the features of its three levels, the finest first."""

    def __init__(self, widths: list[int], reduction: int) -> None:
        super().__init__()
        self.encoder_level1 = _Blocks(widths[0], reduction)
        self.encoder_level2 = _Blocks(widths[1], reduction)
        self.encoder_level3 = _Blocks(widths[2], reduction)
        self.down12 = _Down(widths[0], widths[1])
        self.down23 = _Down(widths[1], widths[2])

    def forward(self, x: Tensor, slope: Tensor) -> list[Tensor]:
        first = self.encoder_level1(x, slope)
        second = self.encoder_level2(self.down12(first), slope)
        return [first, second, self.encoder_level3(self.down23(second), slope)]


class _FusingEncoder(_Encoder):
    """Adds to each of its levels what an earlier stage had encoded and decoded there."""

    def __init__(self, widths: list[int], reduction: int) -> None:
        super().__init__(widths, reduction)
        self.csff_enc1, self.csff_dec1 = _conv1x1(widths[0], widths[0]), _conv1x1(widths[0], widths[0])
        self.csff_enc2, self.csff_dec2 = _conv1x1(widths[1], widths[1]), _conv1x1(widths[1], widths[1])
        self.csff_enc3, self.csff_dec3 = _conv1x1(widths[2], widths[2]), _conv1x1(widths[2], widths[2])

    def fuse(self, x: Tensor, slope: Tensor, encoded: list[Tensor], decoded: list[Tensor]) -> list[Tensor]:
        first = self.encoder_level1(x, slope) + self.csff_enc1(encoded[0]) + self.csff_dec1(decoded[0])
        second = self.encoder_level2(self.down12(first), slope)
        second = second + self.csff_enc2(encoded[1]) + self.csff_dec2(decoded[1])
        third = self.encoder_level3(self.down23(second), slope)
        return [first, second, third + self.csff_enc3(encoded[2]) + self.csff_dec3(decoded[2])]


class _Decoder(nn.Module):
    """Features of three levels -> decoded ones, the finest first."""

    def __init__(self, widths: list[int], reduction: int) -> None:
        super().__init__()
        self.decoder_level1 = _Blocks(widths[0], reduction)
        self.decoder_level2 = _Blocks(widths[1], reduction)
        self.decoder_level3 = _Blocks(widths[2], reduction)
        self.skip_attn1 = _Block(widths[0], reduction)
        self.skip_attn2 = _Block(widths[1], reduction)
        self.up21 = _Up(widths[1], widths[0])
        self.up32 = _Up(widths[2], widths[1])

    def forward(self, encoded: list[Tensor], slope: Tensor) -> list[Tensor]:
        third = self.decoder_level3(encoded[2], slope)
        second = self.decoder_level2(self.up32(third) + self.skip_attn2(encoded[1], slope), slope)
        first = self.decoder_level1(self.up21(second) + self.skip_attn1(encoded[0], slope), slope)
        return [first, second, third]


class _Down(nn.Module):
    """Half the size. The mean of 2x2 pixels is what bilinear interpolation gives there."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.AvgPool2d(2), _conv1x1(channels_in, channels_out))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(x)
        return y


class _Up(nn.Module):
    """Twice the size, bilinear; the convolution has the place in the list that it has in the authors' files."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.up = nn.ModuleDict({"1": _conv1x1(channels_in, channels_out)})

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.up["1"](x), scale_factor=2, mode="bilinear", align_corners=False)


class _Group(nn.Module):
    """Channel attention blocks and a convolution, at full resolution (the authors' original resolution block)."""

    def __init__(self, width: int, cabs: int, reduction: int) -> None:
        super().__init__()
        self.body = nn.ModuleList([*(_Block(width, reduction) for _ in range(cabs)), _conv3x3(width, width)])

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        y = x
        for block in self.body[:-1]:
            y = block(y, slope)
        return x + self.body[-1](y)


class _FullResolution(nn.Module):
    """Three groups, behind each of which the features of one level of the second stage are added, the finest first."""

    def __init__(self, widths: list[int], width: int, cabs: int, reduction: int) -> None:
        super().__init__()
        self.orb1 = _Group(width, cabs, reduction)
        self.orb2 = _Group(width, cabs, reduction)
        self.orb3 = _Group(width, cabs, reduction)
        self.up_enc1, self.up_dec1 = _Up(widths[1], widths[0]), _Up(widths[1], widths[0])
        self.up_enc2 = nn.Sequential(_Up(widths[2], widths[1]), _Up(widths[1], widths[0]))
        self.up_dec2 = nn.Sequential(_Up(widths[2], widths[1]), _Up(widths[1], widths[0]))
        self.conv_enc1, self.conv_dec1 = _conv1x1(widths[0], width), _conv1x1(widths[0], width)
        self.conv_enc2, self.conv_dec2 = _conv1x1(widths[0], width), _conv1x1(widths[0], width)
        self.conv_enc3, self.conv_dec3 = _conv1x1(widths[0], width), _conv1x1(widths[0], width)

    def forward(self, x: Tensor, encoded: list[Tensor], decoded: list[Tensor], slope: Tensor) -> Tensor:
        x = self.orb1(x, slope) + self.conv_enc1(encoded[0]) + self.conv_dec1(decoded[0])
        x = self.orb2(x, slope)
        x = x + self.conv_enc2(self.up_enc1(encoded[1])) + self.conv_dec2(self.up_dec1(decoded[1]))
        x = self.orb3(x, slope)
        y: Tensor = x + self.conv_enc3(self.up_enc2(encoded[2])) + self.conv_dec3(self.up_dec2(decoded[2]))
        return y


class _SupervisedAttention(nn.Module):
    """(features, image) -> (features that the restored image has weighted, the restored image)."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv1x1(width, width)
        self.conv2 = _conv1x1(width, channels)
        self.conv3 = _conv1x1(channels, width)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, features: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        restored = self.conv2(features) + image
        return self.conv1(features) * torch.sigmoid(self.conv3(restored)) + features, restored
