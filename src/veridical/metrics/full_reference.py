"""Builders of the metrics that compare an image with its reference; the table is in `metrics/__init__.py`."""

from functools import partial

from torch import Tensor, nn

from veridical.core.options import check_choice, check_flag, check_whole
from veridical.distances import FeatureDistance, dists_distance, lpips_distance
from veridical.features.pieapp import PieAPPNetwork
from veridical.measures import cw_ssim, fsim, gmsd, ms_ssim, pieapp, psnr, ssim, vif
from veridical.measures.cw_ssim import VARIANTS as CW_SSIM_VARIANTS
from veridical.measures.cw_ssim import Variant as CWSSIMVariant
from veridical.measures.cw_ssim import least_size as cw_ssim_least_size
from veridical.measures.fsim import LEAST_PX as FSIM_LEAST_PX
from veridical.measures.gmsd import LEAST_PX as GMSD_LEAST_PX
from veridical.measures.pieapp import PATCH as PIEAPP_PATCH
from veridical.measures.pieapp import STRIDE as PIEAPP_STRIDE
from veridical.measures.ssim import SCALE_WEIGHTS, check_window, least_size
from veridical.measures.vif import LEAST_PX as VIF_LEAST_PX
from veridical.measures.vif import Variant as VIFVariant
from veridical.metrics.parts import OfPair


class OfPatches(nn.Module):
    """PieAPP: its network is a submodule, so that it moves along."""

    def __init__(self, network: PieAPPNetwork, stride: int) -> None:
        super().__init__()
        self.network, self.stride, self.min_size = network, stride, PIEAPP_PATCH

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return pieapp(prediction, target, self.network, stride=self.stride)


class OfFeatures(nn.Module):
    def __init__(self, distance: FeatureDistance) -> None:
        super().__init__()
        self.distance = distance
        self.min_size = distance.features.min_size

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.distance(prediction, self.distance.see(target))


def build_psnr() -> nn.Module:
    """Peak signal-to-noise ratio for images in [0, 1]; identical images give inf."""
    return OfPair(psnr, 1)


def build_ssim(*, window_size: int = 11, sigma_px: float = 1.5) -> nn.Module:
    """Structural similarity, Gaussian window."""
    check_window("ssim", window_size, sigma_px)
    return OfPair(partial(ssim, window_size=window_size, sigma_px=sigma_px), window_size)


def build_ms_ssim(*, scales: int = 5, window_size: int = 11, sigma_px: float = 1.5) -> nn.Module:
    """Structural similarity at several scales; five, the default, need 161 px."""
    check_whole("scales of ms-ssim", scales, low=1, high=len(SCALE_WEIGHTS))
    check_window("ms-ssim", window_size, sigma_px)
    measure = partial(ms_ssim, scales=scales, window_size=window_size, sigma_px=sigma_px)
    return OfPair(measure, least_size(scales, window_size))


def build_lpips(*, net: str = "alex", weights: str | None = None) -> nn.Module:
    """Learned perceptual distance LPIPS 0.1."""
    return OfFeatures(lpips_distance(net, weights=weights))


def build_dists(*, weights: str | None = None) -> nn.Module:
    """Learned distance DISTS: a texture may be another of its kind."""
    return OfFeatures(dists_distance(weights=weights))


def build_cw_ssim(*, variant: CWSSIMVariant = "steerable", levels: int = 6, orientations: int = 16) -> nn.Module:
    """Structural similarity of complex wavelets, which forgives small shifts; needs 256 px."""
    check_choice("variant of cw-ssim", variant, CW_SSIM_VARIANTS)
    check_whole("levels of cw-ssim", levels, low=1)
    check_whole("orientations of cw-ssim", orientations, low=2)
    measure = partial(cw_ssim, variant=variant, levels=levels, orientations=orientations)
    return OfPair(measure, cw_ssim_least_size(variant, levels))


def build_vif(*, variant: VIFVariant = "wavelet") -> nn.Module:
    """Share of the reference's visual information that is left."""
    check_choice("variant of vif", variant, VIF_LEAST_PX)
    return OfPair(partial(vif, variant=variant), VIF_LEAST_PX[variant])


def build_gmsd() -> nn.Module:
    """How unevenly the slopes of the two images differ."""
    return OfPair(gmsd, GMSD_LEAST_PX)


def build_fsim(*, colour: bool = True) -> nn.Module:
    """Similarity of features: phase congruency and slopes, with colour FSIMc."""
    check_flag("colour of fsim", colour)
    return OfPair(partial(fsim, colour=colour), FSIM_LEAST_PX)


def build_pieapp(*, stride: int = PIEAPP_STRIDE, weights: str | None = None) -> nn.Module:
    """Perceptual error learned from people's choices, on 64x64 patches."""
    check_whole("stride of pieapp", stride, low=1)
    return OfPatches(PieAPPNetwork(weights), stride)
