"""Where to compute: what "auto" means here, and whether what was asked for is there."""

import torch

from veridical.core.errors import RecipeError


def choose_device(name: str, *, count: int = 1) -> torch.device:
    """The device of that name; "auto" is cuda, else mps, else cpu.

    Args:   name: auto, cpu, cuda, cuda:1, mps. count: how many of them are needed.
    Errors: RecipeError when the name is no device, or this machine has no such device, or too few of them.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # like every other kind that nothing here can compute on
    if device.type == "cpu":
        return device
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if device.type not in there:
        raise RecipeError(f"unknown device {name!r}. Expected auto, cpu, cuda, cuda:1 or mps.")
    if there[device.type] < max(count, (device.index or 0) + 1):
        needed = f"{count} devices {name!r} are" if count > 1 else f"the device {name!r} is"
        raise RecipeError(
            f"{needed} not available: torch finds {there[device.type]} of that kind on this machine. "
            "Choose another --device; auto takes what there is."
        )
    return device
