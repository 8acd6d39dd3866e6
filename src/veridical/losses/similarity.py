"""Losses from structural similarity. `ssim` is a similarity; what is minimised here is one minus it."""

from torch import Tensor

from veridical.core.filters import gaussian_window
from veridical.core.image import at_least_float32, no_autocast
from veridical.core.options import check_number, check_whole
from veridical.distances.pointwise import l1
from veridical.losses.base import Loss
from veridical.measures.ssim import SCALE_WEIGHTS, check_window, least_size, ms_ssim, ssim


class SSIMLoss(Loss):
    """1 - SSIM: local mean, contrast and structure in an 11 px Gaussian window.

    Formula: 1 - mean (2 μx μy + C1)(2 σxy + C2) / ((μx² + μy² + C1)(σx² + σy² + C2)), C1 = 0.01², C2 = 0.03²; means,
            variances and covariance in the window, per channel.
    Range:  [0, 2].
    Use:    where structure counts more than exact brightness or colour; beside l1, which keeps colour and brightness.
    Weak:   each channel by itself, so it hardly sees colour casts; little gradient at strong edges, where the variances
            are large. Where the truth cannot be known it blurs as pixel losses do. One scale: what is right depends on
            the viewing distance, and splotches wider than the window pass.
    Args:   window_size, sigma_px: the Gaussian window.
    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861; as a loss: Zhao et al. 2017, arXiv:1511.08861.
    """

    window: Tensor

    def __init__(self, *, window_size: int = 11, sigma_px: float = 1.5) -> None:
        super().__init__()
        check_window("ssim", window_size, sigma_px)
        self.min_size = window_size
        self.register_buffer("window", gaussian_window(window_size, sigma_px).float(), persistent=False)

    def compare(self, prediction: Tensor, data: Tensor) -> Tensor:
        return 1 - ssim(prediction, data, window=self.window)


class MSSSIMLoss(Loss):
    """1 - MS-SSIM: structural similarity at five scales; forgiving about noise and brightness.

    Formula: 1 - Π_k CS_k^w_k · SSIM_5^w_5, CS = (2 σxy + C2) / (σx² + σy² + C2) at halved sizes, w = (0.0448, 0.2856,
            0.3001, 0.2363, 0.1333); product per channel, then the mean.
    Range:  [0, 1]. Its gradient does not vanish where contrast is inverted (see `ms_ssim`, negative="soft").
    Use:    as ssim, when one scale is too few; with L1 for colour, see ms-ssim-l1.
    Weak:   changes of brightness and shifts of colour cost it little (Zhao et al. 2017). The finest scale has a weight
            of 0.04, so that fine grain and noise cost less than with ssim. Needs large crops: 161 px for five scales.
    Args:   scales: 1 to 5; five need crops of at least 161 px, three need 41 px. window_size, sigma_px: the window.
    Source: Wang, Simoncelli, Bovik 2003; as a loss: Zhao et al. 2017, arXiv:1511.08861.
    """

    window: Tensor

    def __init__(self, *, scales: int = 5, window_size: int = 11, sigma_px: float = 1.5) -> None:
        super().__init__()
        check_whole("scales of ms-ssim", scales, low=1, high=len(SCALE_WEIGHTS))
        check_window("ms-ssim", window_size, sigma_px)
        self.scales = scales
        self.min_size = least_size(scales, window_size)
        self.register_buffer("window", gaussian_window(window_size, sigma_px).float(), persistent=False)

    def compare(self, prediction: Tensor, data: Tensor) -> Tensor:
        return 1 - ms_ssim(prediction, data, scales=self.scales, window=self.window, negative="soft")


class MSSSIML1Loss(MSSSIMLoss):
    """alpha (1 - MS-SSIM) + (1 - alpha) L1: structure from one, colour and brightness from the other.

    Formula: alpha (1 - MS-SSIM(x̂, x)) + (1 - alpha) mean |x̂ - x|.
    Range:  [0, inf).
    Use:    where no pretrained network is wanted: the best of Zhao's hand-made losses by objective metrics.
    Weak:   no texture where the truth cannot be known: under camera shake with noise its LPIPS was no better than L1's
            (docs/results.md). The two parts differ in scale, so alpha is no share of influence. Needs large crops.
    Args:   alpha: 0.84 in the paper. scales, window_size, sigma_px: as for ms-ssim.
    Source: Zhao et al. 2017, arXiv:1511.08861, with the plain L1 of MDF's comparison (Mustafa et al. 2022); Zhao
            weights L1 by the coarsest Gaussian window.
    """

    def __init__(self, *, alpha: float = 0.84, scales: int = 5, window_size: int = 11, sigma_px: float = 1.5) -> None:
        super().__init__(scales=scales, window_size=window_size, sigma_px=sigma_px)
        check_number("alpha of ms-ssim-l1", alpha, low=0, high=1)
        self.alpha = alpha

    def compare(self, prediction: Tensor, data: Tensor) -> Tensor:
        with no_autocast(prediction):
            absolute = l1(at_least_float32(prediction), at_least_float32(data))
        return self.alpha * super().compare(prediction, data) + (1 - self.alpha) * absolute
