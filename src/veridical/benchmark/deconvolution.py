"""The classical methods beside each other: how near they come to the truth, and how long they take."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from veridical.comparison.evaluate import Metric, quantise, score_image
from veridical.core.colour import luma
from veridical.core.errors import DataError
from veridical.core.files import read_image
from veridical.deconvolution import BlackBox, Method

BEFORE = "(blurred)"


@dataclass(frozen=True)
class Case:
    """An image to restore: the name, the truth, the blurred file (None: the truth is blurred), and its blur."""

    name: str
    sharp: Path
    blurred: Path | None
    blur: Tensor | BlackBox
    degrade: Callable[[Tensor], Tensor] | None = None


@dataclass
class Measured:
    """Of one method, an entry for each image."""

    values: dict[str, list[float]] = field(default_factory=dict)
    seconds_per_megapixel: list[float] = field(default_factory=list)
    iterations: list[float] = field(default_factory=list)


def measure(
    cases: Sequence[Case],
    methods: Mapping[str, Method],
    metrics: Sequence[Metric],
    *,
    luma_alone: bool = False,
    align: int = 0,
    border: int = 0,
    on_image: Callable[[int, int, str], None] | None = None,
) -> dict[str, Measured]:
    """Restore every image by every method and score it, rounded to 8 bits, against the truth.

    Args:   luma_alone: restore and score luma, on one channel.
            align: shift each result, and the blurred image, by the whole number of pixels up to this in both
            directions that gives the least mean squared error: a photograph's kernel says nothing of where the scene
            was. border: pixels cut from every side of the truth before scoring, at least `align`.
    Errors: DataError for a border smaller than align, or images and truths of different sizes.
    """
    if border < align:
        raise DataError(f"to shift by {align} px, at least as many must be cut from the borders; got border {border}.")
    found = {BEFORE: Measured(), **{name: Measured() for name in methods}}
    total = len(cases) * len(methods)
    device = torch.device("cpu")
    for number, case in enumerate(cases):
        sharp, blurred = _images(case, luma_alone)
        truth = quantise(sharp)

        def score(image: Tensor, entry: Measured, case: Case = case, truth: Tensor = truth) -> None:
            if image.shape != truth.shape:
                raise DataError(f"{case.blurred} has {tuple(image.shape)}, but its truth {tuple(truth.shape)}.")
            pair = aligned(quantise(image), truth, reach=align, border=border)
            for name, value in score_image(*pair, metrics, device):
                entry.values.setdefault(name, []).append(value)

        score(blurred, found[BEFORE])
        for done, (name, method) in enumerate(methods.items(), start=1):
            start = time.process_time()
            result = method.run(blurred, case.blur)
            seconds = time.process_time() - start
            found[name].seconds_per_megapixel.append(seconds / (blurred.shape[-2] * blurred.shape[-1] / 1e6))
            found[name].iterations.append(sum(result.iterations) / len(result.iterations))
            score(result.image, found[name])
            if on_image is not None:
                on_image(number * len(methods) + done, total, f"{case.name}, {name}")
    return found


def _images(case: Case, luma_alone: bool) -> tuple[Tensor, Tensor]:
    sharp = read_image(case.sharp, channels=None).pixels
    sharp = luma(sharp[None])[0] if luma_alone else sharp
    if case.blurred is None:
        assert case.degrade is not None
        return sharp, case.degrade(sharp)
    blurred = read_image(case.blurred, channels=None).pixels
    return sharp, luma(blurred[None])[0] if luma_alone else blurred


def aligned(image: Tensor, truth: Tensor, *, reach: int, border: int) -> tuple[Tensor, Tensor]:
    """Both without `border` pixels on every side, the image shifted as `measure` says."""
    height, width = truth.shape[-2:]
    inner = truth[..., border : height - border, border : width - border]
    if inner.numel() == 0:
        raise DataError(f"an image of {height}x{width} has nothing left within a border of {border} px.")
    shifted = [
        image[..., border + down : height - border + down, border + right : width - border + right]
        for down in range(-reach, reach + 1)
        for right in range(-reach, reach + 1)
    ]
    return min(shifted, key=lambda one: (one - inner).square().mean().item()), inner


def table(found: Mapping[str, Measured]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows: means over the images."""
    metrics = list(found[BEFORE].values)
    rows = [
        (
            name,
            *(f"{_mean(entry.values[metric]):.{2 if metric.startswith('psnr') else 3}f}" for metric in metrics),
            f"{_mean(entry.iterations):.0f}" if entry.iterations else "-",
            f"{_mean(entry.seconds_per_megapixel):.3g}" if entry.iterations else "-",
        )
        for name, entry in found.items()
    ]
    return ("method", *metrics, "iterations", "CPU s/megapixel"), rows


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
