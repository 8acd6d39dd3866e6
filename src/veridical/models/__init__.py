"""Restorers: degraded (N, C, H, W) -> restored (N, C, H, W), of any size. They import torch only."""

from torch import nn

from veridical.models.dncnn import DnCNN
from veridical.models.unet import UNet

__all__ = ["MODELS", "DnCNN", "UNet"]

# name -> class; its keyword arguments are the options.
MODELS: dict[str, type[nn.Module]] = {"unet": UNet, "dncnn": DnCNN}
