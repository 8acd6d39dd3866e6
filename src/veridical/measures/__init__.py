"""Pure functions of images -> one number per image, in the papers' own sign."""

from veridical.measures.brisque import brisque
from veridical.measures.cw_ssim import cw_ssim
from veridical.measures.fsim import fsim
from veridical.measures.gmsd import gmsd
from veridical.measures.laplacian_variance import laplacian_variance
from veridical.measures.niqe import niqe
from veridical.measures.nrqm import nrqm, perceptual_index
from veridical.measures.pieapp import pieapp
from veridical.measures.psnr import psnr
from veridical.measures.sharpness_q import sharpness_q
from veridical.measures.ssim import ms_ssim, ssim
from veridical.measures.vif import vif

__all__ = [
    "brisque",
    "cw_ssim",
    "fsim",
    "gmsd",
    "laplacian_variance",
    "ms_ssim",
    "niqe",
    "nrqm",
    "perceptual_index",
    "pieapp",
    "psnr",
    "sharpness_q",
    "ssim",
    "vif",
]
