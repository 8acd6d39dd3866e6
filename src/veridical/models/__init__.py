"""Restorers: degraded (N, C, H, W) -> restored (N, C, s*H, s*W), of any size. They import torch only."""

from veridical.models.base import Restorer
from veridical.models.dncnn import DnCNN
from veridical.models.edsr import EDSR
from veridical.models.nafnet import NAFNet
from veridical.models.rrdbnet import RRDBNet
from veridical.models.srresnet import SRResNet
from veridical.models.unet import UNet

__all__ = [
    "EDSR",
    "MODELS",
    "DnCNN",
    "NAFNet",
    "RRDBNet",
    "Restorer",
    "SRResNet",
    "UNet",
]

# name -> class; its keyword arguments are the options.
MODELS: dict[str, type[Restorer]] = {
    "unet": UNet,
    "dncnn": DnCNN,
    "edsr": EDSR,
    "srresnet": SRResNet,
    "rrdbnet": RRDBNet,
    "nafnet": NAFNet,
}
