"""The spectrum of the difference, with most weight on the frequencies that are most wrong."""

import torch
from torch import Tensor

from veridical.core.image import at_least_float32, no_autocast
from veridical.core.options import check_flag, check_number, check_whole
from veridical.losses.base import Loss


class FocalFrequencyLoss(Loss):
    """Squared error of the spectrum, each frequency weighted by how wrong it is: what a model finds hard to make.

    With alpha = 0 every weight is 1 and this is l2 (Parseval). The weights are constants to the gradient, as in the
    source, so that it is not the slope of the value.

    Formula: mean_k w_k |F_k|² over channels and frequencies, F = FFT(x̂ - x) orthonormal; w_k = |F_k|^alpha / max_k
            |F_k|^alpha of that image and channel.
    Range:  [0, inf), in squared intensity units; at most l2.
    Use:    beside l1 or l2, against patterns that come back at one frequency: checkerboards, aliasing, lost fine
            periodic texture. l1 + auto*focal-frequency finds a weight to begin with.
    Weak:   where errors are spread over many frequencies it is little but a scaled l2: of a 5x5 box blur of Kodak24 the
            lower half of the band (below 1/4 cycle per px) has 56 % of l2 and 57 % of this. One frequency that stands
            out sets the scale of all others. A spectrum has no places: the gradient of one wrong spot is spread over
            the image.
    Args:   alpha: how much the weights prefer what is wrong. patch_factor: cut each side into so many patches, each
            with a spectrum of its own; where that does not come out even, patches overlap. log_matrix: weights of
            log(1 + |F|^alpha), which differ less.
    Source: Jiang, Dai, Wu, Loy 2021, arXiv:2012.12821. Its options ave_spectrum and batch_matrix are left out: they
            make the value of an image depend on the others of its batch.
    """

    def __init__(self, *, alpha: float = 1.0, patch_factor: int = 1, log_matrix: bool = False) -> None:
        super().__init__()
        check_number("alpha of focal-frequency", alpha, low=0)
        check_whole("patch_factor of focal-frequency", patch_factor, low=1)
        check_flag("log_matrix of focal-frequency", log_matrix)
        self.alpha, self.patch_factor, self.log_matrix = alpha, patch_factor, log_matrix

    @property
    def min_size(self) -> int:  # type: ignore[override]
        return self.patch_factor

    def compare(self, prediction: Tensor, data: Tensor) -> Tensor:
        with no_autocast(prediction):
            # The transform is linear: one of the difference, not one of each image.
            patches = self._patches(at_least_float32(prediction) - at_least_float32(data))
            half = torch.view_as_real(torch.fft.rfft2(patches, norm="ortho"))  # (N, C, P, h, w // 2 + 1, 2)
            power = half.square().sum(-1)
            terms = self._weights(power.detach()) * power
            # Of a real image's spectrum every column but the first, and the last of an even width, stands there twice.
            height, width = patches.shape[-2:]
            once = terms[..., 0].sum(-1)
            if width % 2 == 0:
                once = once + terms[..., -1].sum(-1)
            return ((2 * terms.sum((-2, -1)) - once) / (height * width)).flatten(1).mean(1)

    def _weights(self, power: Tensor) -> Tensor:
        weights = power ** (self.alpha / 2)
        if self.log_matrix:
            weights = torch.log1p(weights)
        largest = weights.amax((-2, -1), keepdim=True)
        return weights / largest.clamp_min(torch.finfo(weights.dtype).tiny)  # no error: 0 / tiny

    def _patches(self, image: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, P, h, w): evenly spread, from edge to edge."""
        if self.patch_factor == 1:
            return image.unsqueeze(2)
        rows, columns = (_spread(side, self.patch_factor) for side in image.shape[-2:])
        return torch.stack([image[..., row, column] for row in rows for column in columns], dim=2)


def _spread(side: int, count: int) -> list[slice]:
    """`count` stretches of one length that cover a side.

    >>> [(s.start, s.stop) for s in _spread(6, 2)], [(s.start, s.stop) for s in _spread(7, 2)]
    ([(0, 3), (3, 6)], [(0, 4), (3, 7)])
    """
    length = -(-side // count)
    return [slice(start, start + length) for k in range(count) for start in [(side - length) * k // max(1, count - 1)]]
