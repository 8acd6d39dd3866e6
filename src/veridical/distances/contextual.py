"""Contextual similarity: for each feature of the target, how well the best of the prediction's features fits it.

The public forms hold the n x n matrix of distances, several times over. Here it is made a few columns at a time, in the
forward pass and again in the backward pass, so that memory grows with n alone.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from veridical.core.options import check_choice, check_number, check_whole
from veridical.core.product import product
from veridical.core.random import uniform
from veridical.distances.base import DrawnDistance

SIMILARITIES = ("dp", "l2")
_STREAM = 300  # apart from the streams of other draws
_UNIT_EPS = 1e-10  # inside the square root: the gradient stays finite where a feature is 0

# How many entries of the n x n matrix are looked at together: what fits a CPU's second cache, or keeps a GPU busy.
_ENTRIES = {"cpu": 2**20}
_ENTRIES_ELSEWHERE = 2**24


def _columns_at_once(points: Tensor) -> int:
    return max(1, _ENTRIES.get(points.device.type, _ENTRIES_ELSEWHERE) // points.shape[1])


def _exponential(exponents: Tensor) -> Tensor:
    """In place. Beside the 1 of the nearest, e^-80 is nothing; results too small for a normal number take ten times as
    long, and without the bound most of them would be."""
    return exponents.clamp_(min=-80).exp_()


def _distances(generated: Tensor, target: Tensor, target_square: Tensor) -> Tensor:
    """Squared distances, (c, C) and (n, C) -> (n, c): target down, generated across."""
    distances = product(target, -2 * generated)
    return distances.add_(target_square[:, None]).add_(generated.square().sum(1)).clamp_(min=0)


@torch.library.custom_op("veridical::contextual_similarity", mutates_args=())
def _similarity(
    generated: Tensor, target: Tensor, grid: Tensor, bandwidth: float, eps: float, spatial: float
) -> tuple[Tensor, Tensor]:
    """For each target point, the greatest similarity to it, and which generated point that is.

    Shapes: generated, target (N, n, C); grid (n, 2), the place of each point, used where spatial > 0 -> (N, n) x 2
    """
    columns = _columns_at_once(target)
    best = torch.full_like(target[:, :, 0], -1.0)
    winner = torch.zeros_like(best, dtype=torch.int64)
    for image in range(len(target)):
        square = target[image].square().sum(1)
        for start in range(0, generated.shape[1], columns):
            part = slice(start, start + columns)
            similarity = _distances(generated[image, part], target[image], square)
            least = similarity.amin(0)
            similarity = _exponential(similarity.sub_(least).mul_(-1 / (bandwidth * (least + eps))))
            similarity.mul_((1 - spatial) / similarity.sum(0))
            if spatial:
                apart = (grid[:, None, 0] - grid[part, 0]).square_()
                apart += (grid[:, None, 1] - grid[part, 1]).square_()
                near = _exponential(apart.mul_(-1 / (bandwidth * eps)))  # each point's nearest is itself, at distance 0
                similarity.addcmul_(near, spatial / near.sum(0))
            highest, place = similarity.max(1)
            higher = highest > best[image]
            winner[image] = torch.where(higher, place + start, winner[image])
            best[image] = torch.maximum(best[image], highest)  # which keeps a NaN
    return best, winner


@_similarity.register_fake
def _(generated, target, grid, bandwidth, eps, spatial):  # noqa: ARG001
    best = target.new_empty(target.shape[:2])
    return best, torch.empty_like(best, dtype=torch.int64)


@torch.library.custom_op("veridical::contextual_gradient", mutates_args=())
def _gradient(
    upstream: Tensor, generated: Tensor, target: Tensor, winner: Tensor, bandwidth: float, eps: float, spatial: float
) -> Tensor:
    """d best / d generated, times upstream (N, n) -> (N, n, C).

    A point that is the best for no target has none, so on a CPU only the winners are looked at again.
    """
    columns = _columns_at_once(target)
    result = torch.zeros_like(generated)
    for image in range(len(target)):
        square = target[image].square().sum(1)
        if target.device.type == "cpu":
            points = winner[image].unique()
        else:  # where to know how many there are would be to wait for the device
            points = torch.arange(generated.shape[1], device=target.device)
        columns_of_target = target[image].mT.contiguous()
        for part in points.split(columns):
            across = generated[image].index_select(0, part)
            distances = _distances(across, target[image], square)
            least = distances.amin(0)
            scale = 1 / (bandwidth * (least + eps))
            similarity = _exponential((least - distances).mul_(scale))
            similarity.mul_((1 - spatial) / similarity.sum(0))
            # From here on: the gradient with respect to the exponents, then to the distances, then to the points.
            won = similarity * (winner[image][:, None] == part)
            won.mul_(upstream[image][:, None])
            won.sub_(similarity.mul_(won.sum(0) / (1 - spatial))).mul_(-scale)
            nearest = distances == least
            to_least = -(won * distances).sum(0) / (least + eps)
            won.addcmul_(nearest, to_least / nearest.sum(0))
            gradient = across * won.sum(0)[:, None] - product(won.mT.contiguous(), columns_of_target)
            result[image].index_copy_(0, part, 2 * gradient)
    return result


@_gradient.register_fake
def _(upstream, generated, target, winner, bandwidth, eps, spatial):  # noqa: ARG001
    return torch.empty_like(generated)


def _setup(ctx, inputs, output):
    generated, target, _, *ctx.numbers = inputs
    ctx.save_for_backward(generated, target, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, upstream, _):
    return _gradient(upstream, *ctx.saved_tensors, *ctx.numbers), None, None, None, None, None


_similarity.register_autograd(_backward, setup_context=_setup)


def contextual_similarity(
    prediction: Tensor,
    target: Tensor,
    *,
    bandwidth: float = 0.5,
    eps: float = 1e-5,
    spatial: float = 0.0,
    grid: Tensor | None = None,
) -> Tensor:
    """CX = mean over j of max over i of CX_ij, where i counts the prediction's points and j the target's:
    d_ij = |x_i - y_j|², d̃_ij = d_ij / (min over j of d_ij + eps), CX_ij = softmax over j of -d̃_ij / bandwidth.

    With `spatial` s > 0, CX_ij is (1 - s) of that + s of the same between the places of the points: the contextual
    bilateral similarity.

    Shapes: (N, n, C) x 2; grid (n, 2), needed where spatial > 0 -> (N,), each in (0, 1]
    Source: Mechrez, Talmi, Zelnik-Manor 2018, arXiv:1803.02077, equations 2 to 4. Their b cancels in the softmax.
    """
    grid = target.new_zeros(0, 2) if grid is None else grid
    best, _ = _similarity(prediction, target, grid, bandwidth, eps, spatial)
    return best.mean(1)


class Contextual(DrawnDistance):
    """-log CX(prediction, target) + log CX(target, target); see `contextual_similarity`.

    The second term is a constant of the target: it makes the value 0 for equal maps, where the paper's is only near it,
    and leaves the gradient as it is.

    Args:   similarity: "dp": the points are what is left of the features after the target's mean of each channel is
            taken off, scaled so that d_ij = (1 - cosine) / 2. "l2": d_ij is the squared distance of the features.
            spatial: weight of the similarity of places (CoBi). bandwidth, eps: see `contextual_similarity`.
            max_positions: how many positions are compared at most, spread over the map, the same in both maps.
            seed, redraw: of that choice. patch_size: compare patches of this size around the positions, odd.
    """

    def __init__(
        self,
        *,
        similarity: str = "dp",
        spatial: float = 0.0,
        bandwidth: float = 0.5,
        eps: float = 1e-5,
        max_positions: int = 4096,
        redraw: bool = False,
        seed: int = 0,
        patch_size: int = 1,
    ) -> None:
        super().__init__("contextual", seed=seed, redraw=redraw)
        check_choice("similarity of contextual", similarity, SIMILARITIES)
        check_number("spatial of contextual", spatial, low=0, high=0.99)
        check_number("bandwidth of contextual", bandwidth, low=1e-3)
        check_number("eps of contextual", eps, low=1e-12)
        check_whole("max_positions of contextual", max_positions, low=2)
        check_whole("patch_size of contextual", patch_size, low=1, odd=True)
        self.similarity, self.spatial, self.bandwidth, self.eps = similarity, spatial, bandwidth, eps
        self.max_positions, self.patch_size = max_positions, patch_size

    def prepare(self, target: Tensor) -> "_Context":
        height, width = target.shape[-2:]
        places = self._places(height * width)
        points = self._at(target, places)
        mean = points.mean(1, keepdim=True)
        points = self._scaled(points - mean)
        every = torch.arange(height * width, device=target.device) if places is None else places
        rows, columns = (every // width).to(target.dtype), (every % width).to(target.dtype)
        grid = torch.stack([rows / height, columns / width], dim=1)
        context = _Context(places, mean, points, grid, points.new_zeros(len(points)))
        return context._replace(own=self._log(points, context))

    def forward(self, prediction: Tensor, prepared: "_Context") -> Tensor:
        points = self._scaled(self._at(prediction, prepared.places) - prepared.mean)
        return prepared.own - self._log(points, prepared)

    def _places(self, n: int) -> Tensor | None:
        """One position out of each of max_positions equal parts of the map, (max_positions,); None for all."""
        step = self.next_step()
        if n <= self.max_positions:
            return None
        edges = torch.arange(self.max_positions + 1, device=step.device) * n // self.max_positions
        widths = edges[1:] - edges[:-1]
        within = uniform((self.max_positions,), seed=self.seed, stream=_STREAM, step=step) * widths
        return edges[:-1] + torch.minimum(within.long(), widths - 1)

    def _at(self, maps: Tensor, places: Tensor | None) -> Tensor:
        """(N, C, h, w) -> the features, or patches, at the places: (N, n, C')."""
        size = self.patch_size
        points = (F.unfold(maps, size, padding=size // 2) if size > 1 else maps.flatten(2)).mT
        return points.contiguous() if places is None else points.index_select(1, places)

    def _scaled(self, points: Tensor) -> Tensor:
        """Centred points -> points whose squared distances are the d_ij. Of unit vectors that is 2 - 2 cosine, so that
        half of one gives (1 - cosine) / 2. Centring moves no distance, and spares the digits."""
        if self.similarity == "l2":
            return points
        return 0.5 * points * torch.rsqrt(points.square().sum(2, keepdim=True) + _UNIT_EPS)

    def _log(self, points: Tensor, context: "_Context") -> Tensor:
        similarity = contextual_similarity(
            points,
            context.points,
            bandwidth=self.bandwidth,
            eps=self.eps,
            spatial=self.spatial,
            grid=context.grid,
        )
        return similarity.log()


class _Context(NamedTuple):
    """What a target leaves for the comparison. own: log CX(target, target)."""

    places: Tensor | None
    mean: Tensor
    points: Tensor
    grid: Tensor
    own: Tensor
