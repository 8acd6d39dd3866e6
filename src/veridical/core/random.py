"""Random numbers as a pure function of (seed, step): the same on every device, rank and run, with no state to save.

torch.Generator cannot be seeded inside a compiled graph, and its stream differs between CPU and GPU. A counter hashed
by integer arithmetic has neither fault, so a loss that re-draws its network each step stays compilable, resumable and
equal over ranks. Hash: the 32-bit finaliser "lowbias32" of C. Wellons (hash-prospector); normals by Box-Muller.
"""

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _hash(x: Tensor) -> Tensor:
    """lowbias32 on the low 32 bits of int64 lanes. int64 products wrap, which leaves the low 32 bits right."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def uniform(shape: tuple[int, ...], *, seed: int, stream: int, step: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), 23 bits each, float32, on the device of `step`.

    Args: seed: of the run. stream: which tensor is drawn, so that two tensors differ.
          step: int64 scalar tensor; a tensor, so that a compiled graph may advance it.
    """
    count = math.prod(shape)
    key = torch.full((), (seed * 0x9E3779B1 + stream * 0x85EBCA77 + 1) & _MASK, dtype=torch.int64, device=step.device)
    key = _hash(_hash(key) ^ (step & _MASK))
    bits = _hash(_hash(torch.arange(count, dtype=torch.int64, device=step.device) + 1) ^ key)
    return (((bits >> 9).to(torch.float32) + 0.5) / 2**23).reshape(shape)


def normal(shape: tuple[int, ...], *, seed: int, stream: int, step: Tensor) -> Tensor:
    """Standard normal numbers, float32; arguments as `uniform`."""
    pair = uniform((2, *shape), seed=seed, stream=stream, step=step)
    return torch.sqrt(-2 * torch.log(pair[0])) * torch.cos(2 * math.pi * pair[1])
