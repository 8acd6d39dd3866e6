"""Restored images -> numbers. Clamping and 8-bit rounding happen here, once, and nowhere else."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import torch
from torch import Tensor, nn

from veridical.comparison.restore import restore_tiled
from veridical.comparison.statistics import INPUT, SCHEMA
from veridical.core.colour import as_rgb
from veridical.core.errors import DataError, NonFiniteLoss, VeridicalError
from veridical.core.files import atomic_write, write_image
from veridical.metrics import Metric, metric
from veridical.training.data import EvaluationPair

# Above this a whole image needs more memory than it is worth: it goes through the model in tiles.
_WHOLE_PX = 4_000_000


class Measured(Protocol):
    """What a metric is here: (N, C, H, W) x 2 -> (N,), each image by itself."""

    name: str
    reference: bool
    higher_is_better: bool

    @property
    def min_size(self) -> int: ...
    def to(self, device: torch.device) -> Any: ...
    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor: ...


Row = dict[str, str | float]


def build_metrics(specs: Sequence[str]) -> list[Metric]:
    """The metrics of specs such as 'psnr(channel=y, border=4)'; one that is named twice comes once.

    Errors: VeridicalError for an unknown name or option, or a sum of metrics; WeightsMissing.
    """
    metrics: list[Metric] = []
    for spec in specs:
        try:
            made = metric(spec).eval()
        except VeridicalError:
            raise
        except (TypeError, ValueError) as error:
            raise VeridicalError(f"the metric {spec!r} cannot be made: {error}") from error
        if made.name not in [other.name for other in metrics]:
            metrics.append(made)
    return metrics


def check_size(name: str, height: int, width: int, metrics: Sequence[Metric]) -> None:
    """Raise DataError when an image is too small for a metric: before training, not after."""
    for one in metrics:
        if min(height, width) < one.min_size:
            raise DataError(
                f"the evaluation image {name!r} is {width}x{height} px, but the metric {one.name} needs at least "
                f"{one.min_size}x{one.min_size}. Leave that image out, or choose other metrics with --metrics."
            )


def quantise(image: Tensor) -> Tensor:
    """To [0, 1] and to the nearest of 256 levels: the image as a viewer would get it.

    >>> quantise(torch.tensor([-0.2, 0.5, 1.3])).mul(255).tolist()
    [0.0, 128.0, 255.0]
    """
    return image.clamp(0, 1).mul(255).add(0.5).floor().div(255)


def as_seen(degraded: Tensor, sharp: Tensor) -> Tensor:
    """The degraded input as an image that can stand beside the truth: same size (bicubic), same channels, 8 bits."""
    image = degraded[None].float()
    if image.shape[1] == 1 and sharp.shape[0] == 3:
        image = as_rgb(image)
    if image.shape[-2:] != sharp.shape[-2:]:
        image = torch.nn.functional.interpolate(
            image, size=sharp.shape[-2:], mode="bicubic", align_corners=False, antialias=True
        )
    return quantise(image[0])


@torch.no_grad()
def restored(model: nn.Module, pair: EvaluationPair, device: torch.device) -> Tensor:
    """The degraded image through the model, whole and in eval mode, then clamped and rounded to 8 bits; on the CPU."""
    was_training = model.training
    model.eval()
    image = pair.degraded.to(device)
    whole = max(pair.degraded.shape[-2:]) if image[0].numel() <= _WHOLE_PX else 1024
    result = restore_tiled(model, image, tile=whole)
    model.train(was_training)
    if result.shape != pair.sharp.shape:
        raise DataError(
            f"the model gave an image of shape {tuple(result.shape)} for {pair.name!r}, but the truth has "
            f"{tuple(pair.sharp.shape)}. The model does not fit the task."
        )
    if not result.isfinite().all():
        raise NonFiniteLoss(f"the model restored {pair.name!r} to pixels that are not finite: its training diverged.")
    return quantise(result.float()).cpu()


def score_image(
    prediction: Tensor, target: Tensor, metrics: Sequence[Metric], device: torch.device
) -> Iterator[tuple[str, float]]:
    """(name, value) per metric, of one pair (C, H, W)."""
    for name, (value,) in score_images(prediction[None], target[None], metrics, device):
        yield name, value


@torch.no_grad()
def score_images(
    prediction: Tensor, target: Tensor, metrics: Sequence[Measured], device: torch.device
) -> Iterator[tuple[str, list[float]]]:
    """(name, the value of each image) per metric, of pairs (N, C, H, W)."""
    prediction, target = prediction.to(device), target.to(device)
    for one in metrics:
        yield one.name, one.to(device)(prediction, target).tolist()


def rows_of(
    pair: EvaluationPair, loss: str, image: Tensor, metrics: Sequence[Metric], device: torch.device
) -> list[Row]:
    """The rows of one 8-bit image of one loss; `loss` may be "input"."""
    truth = quantise(pair.sharp)
    return [
        {"image": pair.name, "loss": loss, "metric": name, "value": value}
        for name, value in score_image(image, truth, metrics, device)
    ]


def evaluate(
    model: nn.Module,
    pairs: Iterable[EvaluationPair],
    metrics: Sequence[Metric],
    *,
    loss: str,
    slugs: Mapping[str, str],
    images: Path | None,
    device: torch.device,
) -> Iterator[list[Row]]:
    """Restore and score every image; the 8-bit results go to `images`/<slug>.png, or nowhere. Yields the rows of one at
    a time."""
    for pair in pairs:
        image = restored(model, pair, device)
        if images is not None:
            write_image(images / f"{slugs[pair.name]}.png", image)
        yield rows_of(pair, loss, image, metrics, device)


def evaluate_input(
    pairs: Iterable[EvaluationPair],
    metrics: Sequence[Metric],
    *,
    slugs: Mapping[str, str],
    images: Path,
    device: torch.device,
) -> list[Row]:
    """Score the degraded images themselves, and save them and the truth under `images`/input and `images`/truth."""
    rows: list[Row] = []
    for pair in pairs:
        image = as_seen(pair.degraded, pair.sharp)
        write_image(images / INPUT / f"{slugs[pair.name]}.png", image)
        write_image(images / "truth" / f"{slugs[pair.name]}.png", quantise(pair.sharp))
        rows += rows_of(pair, INPUT, image, metrics, device)
    return rows


def write_rows(folder: Path, rows: Sequence[Row]) -> pl.DataFrame:
    """rows.parquet and rows.csv in `folder`, each written whole or not at all."""
    frame = pl.DataFrame(list(rows), schema=SCHEMA)
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    atomic_write(folder / "rows.parquet", buffer.getvalue())
    atomic_write(folder / "rows.csv", frame.write_csv().encode())
    return frame
