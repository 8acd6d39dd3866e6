"""Restorers: degraded (N, C, H, W) -> restored (N, C, s*H, s*W), of any size. They import torch only."""

from veridical.models.base import Restorer
from veridical.models.dncnn import DnCNN
from veridical.models.unet import UNet

__all__ = ["MODELS", "DnCNN", "Restorer", "UNet"]

# name -> class; its keyword arguments are the options.
MODELS: dict[str, type[Restorer]] = {"unet": UNet, "dncnn": DnCNN}
