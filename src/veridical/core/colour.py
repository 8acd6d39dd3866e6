"""Colour: the two lumas of the field, which are not the same."""

from torch import Tensor

from veridical.core.image import check_image


def luma(image: Tensor) -> Tensor:
    """BT.601 luma, full range: 0.299 R + 0.587 G + 0.114 B. (N, 3, H, W) -> (N, 1, H, W); (N, 1, H, W) stays.

    >>> import torch
    >>> luma(torch.ones(1, 3, 1, 1)).item()
    1.0
    """
    return _weighted(image, (0.299, 0.587, 0.114), 0.0)


def luma_studio(image: Tensor) -> Tensor:
    """MATLAB's `rgb2ycbcr` Y, in [16/255, 235/255]: the Y channel on which super-resolution papers measure PSNR.

    Shapes: as `luma`. A grey image is taken for full-range grey, as MATLAB would after `repmat`.

    >>> import torch
    >>> round(luma_studio(torch.ones(1, 3, 1, 1)).item() * 255, 4)
    235.0
    """
    if image.shape[1] == 1:
        image = image.expand(-1, 3, -1, -1)
    return _weighted(image, (65.481 / 255, 128.553 / 255, 24.966 / 255), 16 / 255)


def _weighted(image: Tensor, weights: tuple[float, float, float], offset: float) -> Tensor:
    check_image(image, "luma", channels=(1, 3))
    if image.shape[1] == 1:
        return image
    red, green, blue = image.split(1, dim=1)
    return weights[0] * red + weights[1] * green + weights[2] * blue + offset


def as_rgb(image: Tensor) -> Tensor:
    """Repeat a Y image to three equal channels; RGB stays. For networks that were trained on RGB."""
    return image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image
