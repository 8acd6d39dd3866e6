"""Cutting images into patches."""

from torch import Tensor


def tiles(image: Tensor, size: int) -> Tensor:
    """Non-overlapping size x size patches, rows first; a remainder at the right and bottom is dropped.

    Shapes: (N, C, H, W) -> (N, P, C, size, size) with P = (H // size) * (W // size).
    """
    n, c, height, width = image.shape
    rows, columns = height // size, width // size
    cut = image[:, :, : rows * size, : columns * size]
    cut = cut.reshape(n, c, rows, size, columns, size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(n, rows * columns, c, size, size)
