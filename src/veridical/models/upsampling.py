"""Enlarging by pixel shuffle, as super-resolution networks do at their end."""

from torch import nn

# What is done for a scale: pixel shuffles by these factors, one after the other.
FACTORS: dict[int, tuple[int, ...]] = {1: (), 2: (2,), 3: (3,), 4: (2, 2)}


def pixel_shuffles(width: int, scale: int, *, prelu: bool = False) -> nn.Sequential:
    """(N, width, h, w) -> (N, width, scale * h, scale * w): 3x3 convolution, shuffle, and PReLU where asked for."""
    layers: list[nn.Module] = []
    for factor in FACTORS[scale]:
        layers += [nn.Conv2d(width, factor**2 * width, kernel_size=3, padding=1), nn.PixelShuffle(factor)]
        if prelu:
            layers.append(nn.PReLU())
    return nn.Sequential(*layers)


def pixel_shuffles_radius(scale: int, after: int) -> int:
    """How far a pixel looks before the shuffles, if it looks `after` px far behind them."""
    radius = after
    for factor in reversed(FACTORS[scale]):
        radius = -(-radius // factor) + 1
    return radius


def check_scale(model: str, scale: int, possible: tuple[int, ...] = tuple(FACTORS)) -> None:
    """ValueError for a scale that the model does not have."""
    if isinstance(scale, bool) or scale not in possible:
        raise ValueError(f"scale of {model} must be one of {', '.join(map(str, possible))}; got {scale!r}.")
