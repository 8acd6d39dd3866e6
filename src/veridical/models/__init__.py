"""Restorers: degraded (N, C, H, W) -> restored (N, C, s*H, s*W), of any size. They import torch only."""

from veridical.models.base import Restorer
from veridical.models.dncnn import DnCNN
from veridical.models.edsr import EDSR
from veridical.models.hinet import HINet
from veridical.models.mprnet import MPRNet
from veridical.models.nafnet import NAFNet
from veridical.models.restormer import Restormer
from veridical.models.rrdbnet import RRDBNet
from veridical.models.srresnet import SRResNet
from veridical.models.unet import UNet

__all__ = [
    "EDSR",
    "MODELS",
    "DnCNN",
    "HINet",
    "MPRNet",
    "NAFNet",
    "RRDBNet",
    "Restorer",
    "Restormer",
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
    "hinet": HINet,
    "mprnet": MPRNet,
    "restormer": Restormer,
}
