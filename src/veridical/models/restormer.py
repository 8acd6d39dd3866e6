"""Restormer: a U-Net of transformer blocks whose attention is between channels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veridical.models.base import Restorer, check_options


class Restormer(Restorer):
    """Restormer: an encoder and a decoder of transformer blocks that attend between channels, not between pixels.

    Queries and keys are the channels, each a vector over all pixels of the image scaled to unit length, so that the
    cost grows with the number of pixels and not with its square. The feed-forward layers are gated and look at 3x3
    neighbours. At its defaults it has 26,126,644 parameters (26.1 M in the authors' words).

    The authors' released files load as they are, those of denoising with `bias_free=True`. Their dual-pixel variant,
    of six input channels, is not here.

    The last convolution starts at zero, so that the untrained network returns its input: every loss starts from the
    degraded image. (The authors start from PyTorch's initialisation throughout.)

    Shapes: (N, channels, H, W) -> the same, any H, W >= 1: padded by replication to a multiple of 8 inside, and cropped
            back. (The authors' tests pad by reflection, which an image of a few pixels does not allow.)
    Range:  nominal [0, 1]; not clamped.
    Args:   channels: of the image: 1 (grey) or 3 (RGB).
            width: channels of the first level, an even number; each of the three levels below has twice as many.
            blocks: transformer blocks in each of the four levels, from the finest to the coarsest.
            refinement: blocks behind the decoder, at full resolution.
            heads: of the attention in each level.
            expansion: the feed-forward layers have so many times as many channels, rounded down.
            bias_free: layer norms divide the channels of a pixel by their deviation alone, without mean and bias.
    Errors: ValueError for impossible options and for inputs of another shape.
    Source: Zamir, Arora, Khan, Hayat, Khan & Yang 2022, Restormer, arXiv:2111.09881; keys from their released code.
    """

    multiple = 8

    def __init__(
        self,
        *,
        channels: int = 3,
        width: int = 48,
        blocks: Sequence[int] = (4, 6, 6, 8),
        refinement: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        expansion: float = 2.66,
        bias_free: bool = False,
    ) -> None:
        super().__init__()
        check_options("restormer", channels=(channels, 1), width=(width, 1), refinement=(refinement, 0))
        for option, each in (("blocks", blocks), ("heads", heads)):
            if isinstance(each, (str, int)) or len(each) != 4 or any(not isinstance(n, int) or n < 1 for n in each):
                raise ValueError(f"{option} of restormer must be four whole numbers of at least 1; got {each!r}.")
        widths = [width * 2**level for level in range(4)]
        if width % 2 or any(wide % count for wide, count in zip(widths, heads, strict=True)):
            raise ValueError(
                f"width of restormer must be even, and that of each level, {widths}, a multiple of its heads, "
                f"{list(heads)}; got {width}."
            )
        if int(width * expansion) < 1:
            raise ValueError(f"expansion of restormer leaves no channels of {width}; got {expansion!r}.")
        self.channels = channels

        def level(count: int, wide: int, of: int) -> nn.Sequential:
            return nn.Sequential(*(_TransformerBlock(wide, heads[of], expansion, bias_free) for _ in range(count)))

        self.patch_embed = nn.ModuleDict({"proj": _conv3x3(channels, width)})
        self.encoder_level1 = level(blocks[0], widths[0], 0)
        self.down1_2 = _Down(widths[0])
        self.encoder_level2 = level(blocks[1], widths[1], 1)
        self.down2_3 = _Down(widths[1])
        self.encoder_level3 = level(blocks[2], widths[2], 2)
        self.down3_4 = _Down(widths[2])
        self.latent = level(blocks[3], widths[3], 3)
        self.up4_3 = _Up(widths[3])
        self.reduce_chan_level3 = _conv1x1(widths[3], widths[2])
        self.decoder_level3 = level(blocks[2], widths[2], 2)
        self.up3_2 = _Up(widths[2])
        self.reduce_chan_level2 = _conv1x1(widths[2], widths[1])
        self.decoder_level2 = level(blocks[1], widths[1], 1)
        self.up2_1 = _Up(widths[1])
        # The finest level of the decoder keeps the channels of both: no 1x1 convolution, and twice the width.
        self.decoder_level1 = level(blocks[0], widths[1], 0)
        self.refinement = level(refinement, widths[1], 0)
        self.output = _conv3x3(widths[1], channels)
        nn.init.zeros_(self.output.weight)

    def body(self, image: Tensor) -> Tensor:
        first = self.encoder_level1(self.patch_embed["proj"](image))
        second = self.encoder_level2(self.down1_2(first))
        third = self.encoder_level3(self.down2_3(second))
        x = self.latent(self.down3_4(third))
        x = self.decoder_level3(self.reduce_chan_level3(torch.cat((self.up4_3(x), third), dim=1)))
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat((self.up3_2(x), second), dim=1)))
        x = self.decoder_level1(torch.cat((self.up2_1(x), first), dim=1))
        return image + self.output(self.refinement(x))


def _conv1x1(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=1, bias=False)


def _conv3x3(channels_in: int, channels_out: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, groups=groups, bias=False)


class _Down(nn.Module):
    """Half the size, twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv3x3(width, width // 2), nn.PixelUnshuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


class _Up(nn.Module):
    """Twice the size, half the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv3x3(width, 2 * width), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, expansion: float, bias_free: bool) -> None:
        super().__init__()
        self.norm1 = nn.ModuleDict({"body": _ChannelNorm(width, bias_free)})
        self.attn = _ChannelAttention(width, heads)
        self.norm2 = nn.ModuleDict({"body": _ChannelNorm(width, bias_free)})
        self.ffn = _GatedFeedForward(width, int(width * expansion))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1["body"](x))
        y: Tensor = x + self.ffn(self.norm2["body"](x))
        return y


class _ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel; `bias_free` divides by the deviation alone."""

    def __init__(self, width: int, bias_free: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = None if bias_free else nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None:
            return F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias).permute(0, 3, 1, 2)
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        variance = exact.var(dim=1, keepdim=True, unbiased=False)
        return (exact * (variance + 1e-5).rsqrt()).to(x.dtype) * self.weight.view(-1, 1, 1)


class _ChannelAttention(nn.Module):
    """Attention between the channels of each head: softmax of their cosine similarity over all pixels."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = _conv1x1(width, 3 * width)
        self.qkv_dwconv = _conv3x3(3 * width, 3 * width, groups=3 * width)
        self.project_out = _conv1x1(width, width)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        joint = self.qkv_dwconv(self.qkv(x)).flatten(2).unflatten(1, (3, self.heads, -1))
        query, key, value = joint.unbind(dim=1)  # each (N, heads, C / heads, H * W)
        similarity = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)
        attention = (similarity * self.temperature).softmax(dim=-1)  # (N, heads, C / heads, C / heads)
        y: Tensor = self.project_out((attention.to(value.dtype) @ value).flatten(1, 2).unflatten(-1, (height, width)))
        return y


class _GatedFeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.project_in = _conv1x1(width, 2 * hidden)
        self.dwconv = _conv3x3(2 * hidden, 2 * hidden, groups=2 * hidden)
        self.project_out = _conv1x1(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, passed = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        y: Tensor = self.project_out(F.gelu(gate) * passed)
        return y
