"""Layers with fixed weights: a convolution with its activation, and pooling.

Their weights need no gradient, so that the backward pass needs neither the input nor the output: one bool per ReLU
and one small index per pooled value are all that a graph keeps. (A LeakyReLU keeps its output: torch has one operator
for its backward pass, and the passes that a bool takes instead cost a tenth of MDF's time.)

On a CPU, in float32, a convolution goes straight to oneDNN with weights that are laid out for it once, and a 3 x 3 one
of many channels runs as Winograd's F(4x4, 3x3), with a quarter of the multiplications. Everywhere else it is F.conv2d.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input
from torch.utils.weak import WeakTensorKeyDictionary


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    slope: float | None = None,
) -> Tensor:
    """Convolve with fixed weights, add the bias, activate.

    Shapes: x (N, C, H, W), weight (D, C / groups, kh, kw), bias (D,) -> (N, D, h, w)
    Args:   slope: none for no activation, 0 for ReLU, else LeakyReLU's factor of negative values.
            weight: hand over the same tensor each time: what is made of it is kept as long as it lives.
            Zeros are padded, as F.conv2d does. The gradient reaches x alone, and once: it has no gradient of its own.
    """
    settings = (stride, padding, groups, slope)
    if torch.is_grad_enabled() and x.requires_grad:
        y: Tensor = _Convolution.apply(x, weight, bias, *settings)
        return y
    if _is_fast(x, weight):
        return torch.ops.veridical.convolution(x, weight, bias, *settings, False)[0]
    return _activated(F.conv2d(x, weight, bias, stride, padding, groups=groups), slope)


def max_pool(x: Tensor, kernel: int, *, stride: int = 2, ceil: bool = False) -> Tensor:
    """The greatest of each kernel x kernel window; of equal ones the first gets the gradient, as in F.max_pool2d."""
    if torch.is_grad_enabled() and x.requires_grad:
        y: Tensor = _MaxPool.apply(x, kernel, stride, ceil)
        return y
    return F.max_pool2d(x, kernel, stride, ceil_mode=ceil)


def l2_pool(x: Tensor) -> Tensor:
    """Root of the blurred square, at every second position: it has no aliases. (N, C, H, W) -> (N, C, H/2, W/2), up.

    The window is Hanning's of 3 x 3, the outer product of [.25, .5, .25], over zeros at the border: two means of 2 x 2.
    Source: Ding et al. 2020, arXiv:2004.07728, with the 1e-12 of its released code.
    """
    means = F.avg_pool2d(x.square(), 2, stride=1, padding=1)
    return torch.sqrt(F.avg_pool2d(means, 2) + 1e-12)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        padding: int,
        groups: int,
        slope: float | None,
    ) -> Tensor:
        ctx.shape, ctx.settings = x.shape, (stride, padding, groups, slope)
        if _is_fast(x, weight):
            y, positive = torch.ops.veridical.convolution(x, weight, bias, stride, padding, groups, slope, slope == 0)
        else:
            y = _activated(F.conv2d(x, weight, bias, stride, padding, groups=groups), slope)
            positive = y > 0 if slope == 0 else None
        ctx.save_for_backward(weight, y if slope else positive)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, seen = ctx.saved_tensors
        stride, padding, groups, slope = ctx.settings
        if slope:
            gradient = torch.ops.aten.leaky_relu_backward(gradient, seen, slope, True)
        elif slope == 0:
            gradient = gradient * seen.view(torch.int8)  # a product with int8 is twice as fast as with bool
        if _is_fast(gradient, weight):
            result = torch.ops.veridical.convolution_transposed(
                gradient, weight, ctx.shape[2], ctx.shape[3], stride, padding, groups
            )
        else:
            weight = weight.to(gradient.dtype)  # autocast may have lowered the gradient's
            result = conv2d_input(ctx.shape, weight, gradient, stride, padding, groups=groups)
        return result, None, None, None, None, None, None


def _activated(y: Tensor, slope: float | None) -> Tensor:
    """In place: nothing else sees the convolution's own output. (A slope > 0 leaves the sign as it was.)"""
    return y if slope is None else F.leaky_relu_(y, slope) if slope else F.relu_(y)


class _MaxPool(torch.autograd.Function):
    """torch keeps int64 indices into the image; we keep their distance to the window's first pixel, as int16.

    Numbers wrap around when they become int16, and so does their difference: it is right whenever it fits itself.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int, stride: int, ceil: bool) -> Tensor:
        y, index = F.max_pool2d(x, kernel, stride, ceil_mode=ceil, return_indices=True)
        ctx.shape, ctx.settings = x.shape, (kernel, stride, ceil)
        ctx.last = x.is_contiguous(memory_format=torch.channels_last)
        small = torch.int16 if (kernel - 1) * (x.shape[3] + 1) < 2**15 else torch.int32
        ctx.save_for_backward(index.to(small) - _window_starts(index, ctx).to(small))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (offset,) = ctx.saved_tensors
        kernel, stride, ceil = ctx.settings
        index = offset + _window_starts(offset, ctx)
        like = torch.empty(  # nothing is read of it but its shape and layout
            ctx.shape,
            dtype=gradient.dtype,
            device=gradient.device,
            memory_format=torch.channels_last if ctx.last else torch.contiguous_format,
        )
        result = torch.ops.aten.max_pool2d_with_indices_backward(
            gradient, like, [kernel] * 2, [stride] * 2, [0, 0], [1, 1], ceil, index
        )
        return result, None, None, None


def _window_starts(pooled: Tensor, ctx: Any) -> Tensor:
    """The index of each window's first pixel in its plane, int64 (h, w)."""
    stride = ctx.settings[1]
    rows, columns = (torch.arange(n, device=pooled.device) * stride for n in pooled.shape[2:])
    return rows[:, None] * ctx.shape[3] + columns


# What follows runs on a CPU in float32 alone: oneDNN's convolution, with weights laid out once, and Winograd's
# algorithm. Two operators hide them from torch.compile; the functions named *_shape tell it what comes out.


def _is_fast(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and HAS_ONEDNN
    )


def _has_onednn() -> bool:
    """Whether this build has the two operators that torch.compile, too, calls for convolutions on a CPU."""
    names = ("_convolution_pointwise", "_reorder_convolution_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


HAS_ONEDNN = _has_onednn()


def kernel() -> str:
    """Which code convolves on this machine."""
    return "PyTorch; on a CPU in float32 oneDNN's layout and Winograd's F(4x4)" if HAS_ONEDNN else "PyTorch"


@torch.library.custom_op("veridical::convolution", mutates_args=(), device_types="cpu")
def _fast(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    groups: int,
    slope: float | None,
    keep_mask: bool,
) -> tuple[Tensor, Tensor]:
    """The activated convolution, and where it is positive: empty unless that is wanted and there is an activation."""
    keep_mask = keep_mask and slope is not None
    x = x.contiguous(memory_format=torch.channels_last)
    if stride == 1 and groups == 1 and _winograd_pays(x, weight, padding):
        return _winograd(x, weight, bias, padding, slope, keep_mask, transposed=False)
    y = _onednn(x, weight, bias, stride, padding, groups, slope, transposed=False)
    return y, y > 0 if keep_mask else y.new_empty(0, dtype=torch.bool)


@_fast.register_fake
def _fast_shape(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,  # noqa: ARG001
    stride: int,
    padding: int,
    groups: int,  # noqa: ARG001
    slope: float | None,
    keep_mask: bool,
) -> tuple[Tensor, Tensor]:
    height, width = ((n + 2 * padding - k) // stride + 1 for n, k in zip(x.shape[2:], weight.shape[2:], strict=True))
    y = x.new_empty(x.shape[0], height, width, weight.shape[0]).permute(0, 3, 1, 2)
    return y, torch.empty_like(y, dtype=torch.bool) if keep_mask and slope is not None else y.new_empty(
        0, dtype=torch.bool
    )


@torch.library.custom_op("veridical::convolution_transposed", mutates_args=(), device_types="cpu")
def _fast_transposed(
    gradient: Tensor, weight: Tensor, height: int, width: int, stride: int, padding: int, groups: int
) -> Tensor:
    """The gradient on the convolution's input of height x width."""
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    if weight.shape[1] <= FEW_CHANNELS and groups == 1:
        blocks = _by_blocks(gradient, weight, height, width, stride, padding)
        if blocks is not None:
            return blocks
    if stride == 1 and padding < min(weight.shape[2:]):
        if groups == 1 and _winograd_pays(gradient, weight, weight.shape[2] - 1 - padding):
            outer = weight.shape[2] - 1 - padding
            return _winograd(gradient, weight, None, outer, None, False, transposed=True)[0]
        return _onednn(gradient, weight, None, 1, padding, groups, None, transposed=True)
    shape = torch.Size((gradient.shape[0], weight.shape[1] * groups, height, width))
    result = conv2d_input(shape, weight, gradient, stride, padding, groups=groups)
    return result.contiguous(memory_format=torch.channels_last)


@_fast_transposed.register_fake
def _fast_transposed_shape(
    gradient: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    stride: int,  # noqa: ARG001
    padding: int,  # noqa: ARG001
    groups: int,
) -> Tensor:
    return gradient.new_empty(gradient.shape[0], height, width, weight.shape[1] * groups).permute(0, 3, 1, 2)


# weight -> {what is made of it: (its version, for which sizes, the result)}; an entry goes when its weight goes.
_MADE: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _made(weight: Tensor, what: tuple[Any, ...], sizes: tuple[int, ...], make: Callable[[], Tensor]) -> Tensor:
    """make(), or what it gave before for the same weight in the same state, and the same sizes."""
    version = 0 if weight.is_inference() else weight._version
    kept = _MADE.setdefault(weight, {})
    if what not in kept or kept[what][:2] != (version, sizes):
        kept[what] = (version, sizes, make())
    made: Tensor = kept[what][2]
    return made


def _turned(weight: Tensor, groups: int) -> Tensor:
    """The weights of the transposed convolution: mirrored, inputs and outputs exchanged within each group."""
    outputs, inputs, *size = weight.shape
    parted = weight.reshape(groups, outputs // groups, inputs, *size).transpose(1, 2).flip(3, 4)
    return parted.reshape(groups * inputs, outputs // groups, *size)


def _onednn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    groups: int,
    slope: float | None,
    *,
    transposed: bool,
) -> Tensor:
    """oneDNN's convolution, activation included. Called this way it need not rearrange its weights each time."""
    pads = [k - 1 - padding if transposed else padding for k in weight.shape[2:]]
    strides, ones = [stride] * 2, [1, 1]

    def lay_out() -> Tensor:
        plain = _turned(weight, groups) if transposed else weight
        plain = plain.contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._reorder_convolution_weight(plain, pads, strides, ones, groups, list(x.shape))

    laid_out = _made(weight, ("onednn", transposed, stride, padding, groups), tuple(x.shape[2:]), lay_out)
    activation, factors = ("none", []) if slope is None else ("leaky_relu", [slope]) if slope else ("relu", [])
    return torch.ops.mkldnn._convolution_pointwise(
        x, laid_out, bias, pads, strides, ones, groups, activation, factors, ""
    )


FEW_CHANNELS = 4  # a convolution to so few leaves most of the processor's vectors empty


def _by_blocks(gradient: Tensor, weight: Tensor, height: int, width: int, stride: int, padding: int) -> Tensor | None:
    """The gradient on an image of few channels. None for sizes that it does not reach: even ones it does.

    Each block of 2 x 2 pixels, or of stride x stride, comes out of one place of a convolution, as so many channels.
    """
    block = max(2, stride)
    # Pixel block * i + a of the image gets weight a + padding - stride * k from gradient (block / stride) * i + k.
    first, last = -((weight.shape[2] - 1 - padding) // stride), (block - 1 + padding) // stride
    made = [(n - 2 * first - (last - first + 1)) // (block // stride) + 1 for n in gradient.shape[2:]]
    if first > 0 or block * made[0] < height or block * made[1] < width:
        return None

    def lay_out() -> Tensor:
        size = weight.shape[2]
        steps = torch.arange(first, last + 1, device="cpu")
        places = torch.arange(block, device="cpu")[:, None] + padding - stride * steps
        places = torch.where((places >= 0) & (places < size), places, size)  # where there is none: the zeros below
        spread = F.pad(weight, (0, 1, 0, 1))[:, :, places][..., places]  # (outputs, inputs, block, steps, block, steps)
        return spread.permute(1, 2, 4, 0, 3, 5).flatten(0, 2).contiguous(memory_format=torch.channels_last)

    spread = _made(weight, ("blocks", stride, padding), (), lay_out)
    blocks = F.pixel_shuffle(F.conv2d(gradient, spread, None, block // stride, -first), block)
    return blocks[:, :, :height, :width].contiguous(memory_format=torch.channels_last)


# Winograd's F(4x4, 3x3): y = A' [ (G g G') * (B' d B) ] A for tiles of 6 x 6 in and 4 x 4 out. Lavin & Gray 2015,
# arXiv:1509.09308, but with the points 0, ±P, ±Q, P Q = 1, in place of 0, ±1, ±2, which halves the rounding error.
# `_tiles_in` and `_tiles_out` apply B' and A' as a few sums of whole planes.
P, Q = 2 / 3, 3 / 2
G = torch.tensor(
    [
        [1, 0, 0],
        *([x**power / (2 * (P**2 - Q**2)) for power in range(3)] for x in (P, -P)),
        *([x**power / (2 * Q * (Q**2 - P**2)) for power in range(3)] for x in (Q, -Q)),
        [0, 0, 1],
    ],
    dtype=torch.float64,
    device="cpu",
)

# Fewer channels do not pay for the sums, and a matmul of fewer tiles is slow.
LEAST_CHANNELS, LEAST_TILES, CHUNK_TILES = 128, 64, 128


def _winograd_pays(x: Tensor, weight: Tensor, padding: int) -> bool:
    height, width = (-(-(n + 2 * padding - 2) // 4) for n in x.shape[2:])
    return (
        weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= LEAST_CHANNELS
        and x.shape[0] * height * width >= LEAST_TILES
        and 0 <= padding <= 2
    )


def _winograd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: int,
    slope: float | None,
    keep_mask: bool,
    *,
    transposed: bool,
) -> tuple[Tensor, Tensor]:
    """A 3 x 3 convolution of stride 1, in chunks of tiles that stay in the cache. Returns what `_fast` does.

    A chunk is `images` x `rows` of tiles. Its sums are taken over whole planes, with channels last, first for the rows
    of all tiles and then for their columns; the matmul is a 1 x 1 convolution of 36 groups, one for each place in the
    tile, because oneDNN's convolutions are 2.5 times as fast here as torch's matmul.
    """

    def transform() -> Tensor:
        plain = (_turned(weight, 1) if transposed else weight).double()
        spread = torch.einsum("ai,bj,dcij->abdc", G, G, plain).float().reshape(-1, plain.shape[1], 1, 1)
        spread = spread.contiguous(memory_format=torch.channels_last)
        # 256 tiles: one layout then serves any number of them from 64 on.
        sizes = [1, spread.shape[1] * 36, 1, 256]
        return torch.ops.mkldnn._reorder_convolution_weight(spread, [0, 0], [1, 1], [1, 1], 36, sizes)

    factors = _made(weight, ("winograd", transposed), (), transform)
    shift = x.new_zeros(()) if bias is None else bias

    n, c, height, width = x.shape
    d = weight.shape[1 if transposed else 0]
    out_height, out_width = height + 2 * padding - 2, width + 2 * padding - 2
    down, across = -(-out_height // 4), -(-out_width // 4)
    images, rows = _chunk(n, down, across)

    padded = x.new_zeros(images, 4 * rows + 2, 4 * across + 2, c)
    by_row = x.new_empty(images, rows, 6, 4 * across + 2, c)
    tiles = x.new_empty(images, rows, across, 6, 6, c)
    half = x.new_empty(images, rows, 6, across, 4, d)
    whole = x.new_empty(images, rows, 4, 4 * across, d)
    # The same, seen as one plane for each place in the tile. A row of tiles begins 4 pixels after the one before.
    step, line = padded.stride(1), by_row.stride(3)
    row_planes = padded.as_strided((6, images, rows, *padded.shape[2:]), (step, padded.stride(0), 4 * step, line, 1))
    column_planes = by_row.as_strided((6, images, rows, 6, across, c), (line, *by_row.stride()[:3], 4 * line, 1))
    steps_in = (
        _tiles_in(row_planes, by_row.permute(2, 0, 1, 3, 4)),
        _tiles_in(column_planes, tiles.permute(4, 0, 1, 3, 2, 5)),
    )
    step_out = _tiles_out(half.flatten(3, 4).permute(2, 0, 1, 3, 4), whole.permute(2, 0, 1, 3, 4))
    matrix = tiles.view(1, 1, -1, 36 * c).permute(0, 3, 1, 2)

    y = x.new_empty(n, out_height, out_width, d)
    positive = torch.empty_like(y, dtype=torch.bool) if keep_mask else y.new_empty(0, dtype=torch.bool)
    x = x.permute(0, 2, 3, 1)
    for first in range(0, n, images):
        some = slice(first, min(first + images, n))
        count = some.stop - some.start
        for row in range(0, down, rows):
            top = 4 * row - padding
            begin, end = max(top, 0), min(top + 4 * rows + 2, height)
            padded[:, : begin - top].zero_()
            padded[:, end - top :].zero_()
            padded[:count, begin - top : end - top, padding : padding + width].copy_(x[some, begin:end])
            for do in steps_in:
                do()
            product = torch.ops.mkldnn._convolution_pointwise(
                matrix, factors, None, [0, 0], [1, 1], [1, 1], 36, "none", [], ""
            ).permute(0, 2, 3, 1).view(images, rows, across, 6, 6, d)  # fmt: skip
            _tiles_out(product.permute(4, 0, 1, 2, 3, 5), half.permute(4, 0, 1, 3, 2, 5))()
            step_out()
            kept = slice(4 * row, min(4 * (row + rows), out_height))
            result = y[some, kept]
            torch.add(whole.flatten(1, 2)[:count, : kept.stop - kept.start, :out_width], shift, out=result)
            _activated(result, slope)
            if keep_mask:
                torch.gt(result, 0, out=positive[some, kept])
    return y.permute(0, 3, 1, 2), positive.permute(0, 3, 1, 2) if keep_mask else positive


def _chunk(n: int, down: int, across: int) -> tuple[int, int]:
    """How many images and rows of tiles to take at once: even parts of about `CHUNK_TILES` for each thread."""
    wanted = CHUNK_TILES * torch.get_num_threads()
    if down * across >= wanted:
        return 1, -(-down // (down * across // wanted))
    return -(-n // max(1, n * down * across // wanted)), down


def _tiles_in(d: Tensor, to: Tensor) -> Callable[[], None]:
    """B' d along the first axis, 6 planes -> 6 planes: the sums to take, on views made once.

    B' = [[1, 0, -P²-Q², 0, 1, 0], [0, -PQ², -Q², P, 1, 0], [0, PQ², -Q², -P, 1, 0],
          [0, -QP², -P², Q, 1, 0], [0, QP², -P², -Q, 1, 0], [0, 1, 0, -P²-Q², 0, 1]]
    """
    pair = torch.empty_like(d[:2], memory_format=torch.contiguous_format)
    odd, even = pair
    inner, outer, low, middle, high = d[1:3], d[3:5], d[0:2], d[2:4], d[4:6]
    ends, plus_p, minus_p, plus_q, minus_q = to[0::5], *to[1:5]

    def do() -> None:
        for square, point, plus, minus in ((Q**2, P, plus_p, minus_p), (P**2, Q, plus_q, minus_q)):
            torch.sub(outer, inner, alpha=square, out=pair)
            torch.add(even, odd, alpha=point, out=plus)
            torch.sub(even, odd, alpha=point, out=minus)
        torch.sub(high, middle, alpha=P**2 + Q**2, out=ends)
        ends.add_(low)

    return do


def _tiles_out(m: Tensor, to: Tensor) -> Callable[[], None]:
    """A' m along the first axis, 6 planes -> 4 planes: the sums to take, on views made once.

    A' = [[1, 1/P², 1/P², 1/Q, 1/Q, 0], [0, 1/P, -1/P, 1, -1, 0], [0, 1, 1, Q, Q, 0], [0, P, -P, Q², -Q², 1]]
    """
    sums, differences = (torch.empty_like(m[:2], memory_format=torch.contiguous_format) for _ in range(2))
    first, second = m[1:5:2], m[2:5:2]

    def do() -> None:
        torch.add(first, second, out=sums)
        torch.sub(first, second, out=differences)
        torch.add(differences[1], differences[0], alpha=1 / P, out=to[1])
        torch.add(sums[0], sums[1], alpha=Q, out=to[2])
        sums[0].add_(sums[1], alpha=P**2 / Q)
        torch.add(m[0], sums[0], alpha=1 / P**2, out=to[0])
        differences[1].add_(differences[0], alpha=P / Q**2)
        torch.add(m[5], differences[1], alpha=Q**2, out=to[3])

    return do
