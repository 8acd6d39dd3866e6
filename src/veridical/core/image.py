"""The image contract: float (N, C, H, W), C = 3 (RGB) or 1 (Y), nominal [0, 1]. Shapes and dtypes are checked,
values never: a loss must not read a tensor on the host, and overshoot is allowed."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def check_image(image: Tensor, who: str, *, min_size: int = 1, channels: tuple[int, ...] = ()) -> None:
    """Raise ValueError / TypeError when `image` breaks the contract; `who` begins the message."""
    if image.ndim != 4:
        raise ValueError(
            f"{who} expects images of shape (N, C, H, W), but got {tuple(image.shape)}."
            + (" Add the batch axis with image.unsqueeze(0)." if image.ndim == 3 else "")
        )
    if not image.is_floating_point():
        raise TypeError(
            f"{who} expects floating-point images in [0, 1], but got {image.dtype}; use image.float() / 255."
        )
    if channels and image.shape[1] not in channels:
        expected = " or ".join(map(str, channels))
        hint = " It looks like (N, H, W, C): use image.movedim(-1, 1)." if image.shape[-1] in channels else ""
        raise ValueError(f"{who} expects {expected} channels, but got shape {tuple(image.shape)}.{hint}")
    if min(image.shape[-2:]) < min_size:
        raise ValueError(
            f"{who} needs images of at least {min_size}x{min_size} px, but got {image.shape[-2]}x{image.shape[-1]}."
        )


def check_pair(
    prediction: Tensor, target: Tensor, who: str, *, min_size: int = 1, channels: tuple[int, ...] = ()
) -> None:
    """`check_image` for both, and that they have one shape."""
    check_image(prediction, who, min_size=min_size, channels=channels)
    check_image(target, who, min_size=min_size, channels=channels)
    if prediction.shape != target.shape:
        raise ValueError(
            f"{who} expects prediction and target of one shape, but got "
            f"{tuple(prediction.shape)} and {tuple(target.shape)}."
        )


def at_least_float32(image: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; wider types stay. SSIM in bfloat16 can come out negative."""
    return image.to(torch.promote_types(image.dtype, torch.float32))


def in_float64(image: Tensor) -> Tensor:
    """For statistics that subtract large numbers."""
    return where_float64_is(image).double()


def where_float64_is(image: Tensor) -> Tensor:
    """The image on a device that has float64: MPS has none, from there it goes to the CPU."""
    return image.cpu() if image.device.type == "mps" else image


def in_parts(function: Callable[..., Tensor], *images: Tensor, px: int) -> Tensor:
    """function(*images) -> (N,), on a few images at a time, about `px` pixels (one image at least): so that memory does
    not grow with the batch. For functions in which images do not influence each other."""
    count = max(1, px // (images[0].shape[-2] * images[0].shape[-1]))
    parts = zip(*(image.split(count) for image in images), strict=True)
    return torch.cat([function(*part) for part in parts])


def no_autocast(image: Tensor) -> AbstractContextManager[object]:
    """A context with autocast off on the image's device, for maths that needs float32."""
    device = image.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def mean_per_image(values: Tensor) -> Tensor:
    """(N, ...) -> (N,)."""
    return values.mean(tuple(range(1, values.ndim)))  # flatten would copy a channels-last map
