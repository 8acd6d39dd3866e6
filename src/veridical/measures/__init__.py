"""Pure functions of images -> one number per image, in the papers' own sign."""

from veridical.measures.brisque import brisque
from veridical.measures.psnr import psnr
from veridical.measures.sharpness_q import sharpness_q
from veridical.measures.ssim import ms_ssim, ssim

__all__ = ["brisque", "ms_ssim", "psnr", "sharpness_q", "ssim"]
