"""Restorers: degraded (N, C, H, W) -> restored (N, C, s*H, s*W), of any size. They import torch only."""

from veridical.models.base import Restorer
from veridical.models.ddnet import DDNet
from veridical.models.dncnn import DnCNN
from veridical.models.dsdeblur import DsDeblur
from veridical.models.edsr import EDSR
from veridical.models.hinet import HINet
from veridical.models.ifan import IFAN
from veridical.models.mprnet import MPRNet
from veridical.models.nafnet import NAFNet
from veridical.models.restormer import Restormer
from veridical.models.rrdbnet import RRDBNet
from veridical.models.srn import SRN
from veridical.models.srresnet import SRResNet
from veridical.models.unet import UNet
from veridical.models.xydeblur import XYDeblur

__all__ = [
    "EDSR",
    "IFAN",
    "MODELS",
    "SRN",
    "DDNet",
    "DnCNN",
    "DsDeblur",
    "HINet",
    "MPRNet",
    "NAFNet",
    "RRDBNet",
    "Restorer",
    "Restormer",
    "SRResNet",
    "UNet",
    "XYDeblur",
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
    "srn": SRN,
    "dsdeblur": DsDeblur,
    "xydeblur": XYDeblur,
    "ddnet": DDNet,
    "ifan": IFAN,
}
