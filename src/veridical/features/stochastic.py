"""The small random network of the Stochastic Perceptual Loss."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from veridical.core.colour import as_rgb
from veridical.core.image import at_least_float32, no_autocast
from veridical.core.options import check_choice, check_whole
from veridical.core.random import normal, uniform
from veridical.features.base import Features, Maps

CHANNELS = (3, 8, 16, 32, 64)
BLOCKS = ("block1", "block2", "block3", "block4")


class StochasticNetwork(Features):
    """4 blocks of Conv3x3 -> LeakyReLU(0.1) -> MaxPool2, 3-8-16-32-64 channels, 24,528 numbers, never trained.

    The blocks in `redraw` get new weights (Kaiming normal, gain sqrt(2), fan-in) at every `draw` in training mode; in
    evaluation the draw stays what it was. The other blocks, and every bias, keep their first value: PyTorch's default,
    uniform within 1/sqrt(fan-in). All numbers are a pure function of (seed, step), so a run can be resumed and every
    rank draws alike; `step` is saved with the state.

    Shapes: (N, 1 or 3, H, W), nominal [0, 1], no normalisation -> block k: (N, C_k, H / 2^k, W / 2^k); without `pool`
            all are H x W.
    Source: the Stochastic Perceptual Loss comparison (12 losses); initialisation as in its released description.
    """

    step: Tensor

    def __init__(
        self,
        *,
        taps: tuple[str, ...] = BLOCKS,
        redraw: tuple[str, ...] = (),
        pool: bool = True,
        seed: int = 0,
    ):
        check_whole("seed of the stochastic network", seed, low=0)
        for block in redraw:
            check_choice("redraw", block, BLOCKS)
        super().__init__(taps=taps, available=BLOCKS, identity=("stochastic", redraw, pool, seed))
        self.redraw, self.pool, self.seed = redraw, pool, seed
        self.random = bool(redraw)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64), persistent=self.random)
        first = torch.zeros((), dtype=torch.int64)
        for k, (c_in, c_out) in enumerate(itertools.pairwise(CHANNELS)):
            bound = 1 / math.sqrt(9 * c_in)
            for name, stream, shape in (
                ("weight", 2 * k, (c_out, c_in, 3, 3)),
                ("bias", 2 * k + 1, (c_out,)),
            ):
                values = bound * (2 * uniform(shape, seed=seed, stream=stream, step=first) - 1)
                self.register_buffer(f"{name}{k}", values, persistent=False)

    @property
    def min_size(self) -> int:
        return 2 ** (BLOCKS.index(self.taps[-1]) + 1) if self.pool else 1

    def draw(self) -> tuple[Tensor, ...]:
        if self.random and self.training:
            step = self.step.clone()  # the draw must not see the advance
            self.step.add_(1)
        else:
            step = torch.full_like(self.step, -1)  # one draw for every evaluation, however long the training was
        weights = []
        for k, block in enumerate(BLOCKS):
            weight = getattr(self, f"weight{k}")
            if block in self.redraw:
                gain = math.sqrt(2 / (9 * CHANNELS[k]))
                stream = 100 + k  # apart from the streams of the first values
                weight = gain * normal(tuple(weight.shape), seed=self.seed, stream=stream, step=step).to(weight)
            weights += [weight, getattr(self, f"bias{k}")]
        return tuple(weights)

    def forward(self, image: Tensor, weights: tuple[Tensor, ...]) -> Maps:
        maps: Maps = {}
        with no_autocast(image):
            x = at_least_float32(as_rgb(image))
            for k in range(BLOCKS.index(self.taps[-1]) + 1):
                x = F.conv2d(x, weights[2 * k].to(x.dtype), weights[2 * k + 1].to(x.dtype), padding=1)
                if self.pool:
                    # Max-pooling commutes with an increasing function: pool first, and activate a quarter.
                    x = F.max_pool2d(x, 2)
                x = F.leaky_relu(x, 0.1)
                if BLOCKS[k] in self.taps:
                    maps[BLOCKS[k]] = x
        return maps
