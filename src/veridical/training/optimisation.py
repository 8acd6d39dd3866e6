"""What moves the weights: the optimiser, and its learning rate at every step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from veridical.training.settings import Settings


def make_optimizer(settings: Settings, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of a training, with the learning rate of its first step.

    Weight decay reaches every parameter, those of normalisations too.
    """
    parameters = list(parameters)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            weight_decay=settings.weight_decay,
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)


def learning_rate(settings: Settings, step: int) -> float:
    """The learning rate of a step, counted from 1: `lr` at the first, `lr_end * lr` at the last, unless constant.

    With progress p from 0 (first step) to 1 (last), e = lr_end, n = drops:

    cosine:      lr * (e + (1 - e) * (1 + cos(pi * p)) / 2).
    exponential: lr * e^p.
    polynomial:  lr * (e + (1 - e) * (1 - p)^power); TensorFlow's polynomial_decay.
    step:        lr * e^(k / n) in the part k = 0 ... n of n + 1 parts of equal length.
    """
    progress = (step - 1) / max(settings.steps - 1, 1)
    end = settings.lr_end
    match settings.schedule:
        case "constant":
            share = 1.0
        case "exponential":
            share = end**progress
        case "polynomial":
            share = end + (1 - end) * (1 - progress) ** settings.power
        case "step":
            share = end ** (min((step - 1) * (settings.drops + 1) // settings.steps, settings.drops) / settings.drops)
        case _:
            share = end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress))
    return settings.lr * share
