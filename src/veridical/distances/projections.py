"""Directions to look along: rows of W, so that each projected channel is one weighted sum of the channels."""

import torch
from torch import Tensor

from veridical.core.random import normal, uniform

PROJECTIONS = ("id", "r2p", "rpp", "rsp")
_STREAM = 200  # apart from the streams of the stochastic network


def draw_projection(kind: str, channels: int, *, k: int, eps: float, seed: int, step: Tensor) -> Tensor:
    """W, (k * channels, channels) of unit rows, float32, on the device of `step`.

    Args:   kind: "r2p": two random channels with Gaussian coefficients. "rpp": one channel e_i, each in turn,
            perturbed: e_i + eps g. "rsp": any direction on the sphere, g. g is standard normal, rows are renormalised.
    Source: Delbracio, Talebi, Milanfar 2020, arXiv:2012.09289, section 5.7; the constants are not published, and this
            is our reading.
    """
    blocks = []  # of `channels` rows each: one draw of all k would wait for memory more than it computes
    for block in range(k):
        stream = _STREAM + 2 * block
        if kind == "r2p":
            rows = _pairs(channels, seed=seed, stream=stream, step=step)
        else:
            rows = normal((channels, channels), seed=seed, stream=stream, step=step)
            if kind == "rpp":
                rows = torch.eye(channels, device=step.device) + eps * rows
        blocks.append(rows / rows.square().sum(1, keepdim=True).sqrt())
    return torch.cat(blocks)


def _pairs(channels: int, *, seed: int, stream: int, step: Tensor) -> Tensor:
    """Rows with two non-zero entries, in two different channels."""
    random = uniform((2, channels), seed=seed, stream=stream, step=step)
    first = (random[0] * channels).long().clamp(max=channels - 1)
    apart = 1 + (random[1] * (channels - 1)).long().clamp(max=max(0, channels - 2))
    places = torch.stack([first, (first + apart) % channels], dim=1)
    coefficients = normal((channels, 2), seed=seed, stream=stream + 1, step=step)
    return torch.zeros(channels, channels, device=step.device).scatter_(1, places, coefficients)
