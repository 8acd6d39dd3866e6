"""Restored images -> numbers. Clamping and 8-bit rounding happen here, once, and nowhere else."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import polars as pl
import torch
from torch import Tensor, nn

from veridical.comparison.architecture import Pairs, enlarge
from veridical.comparison.cost import Meter
from veridical.comparison.restore import restore_tiled
from veridical.comparison.statistics import INPUT, SCHEMA
from veridical.core.colour import as_rgb
from veridical.core.errors import DataError, NonFiniteLoss, VeridicalError
from veridical.core.files import atomic_write, write_image
from veridical.deconvolution import Method
from veridical.metrics import Metric, metric
from veridical.models import Restorer
from veridical.training.data import EvaluationPair
from veridical.training.devices import group, together

# What to do where classical methods, which are told the blur, are not.
NEEDS_BLUR = (
    "Leave out the classical methods, take a degradation that begins with a blur, such as 'box-blur(size=5)' or "
    "'camera-shake', or give real pairs with the folder of their kernels (data.kernels)."
)
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
    scale = sharp.shape[-1] // image.shape[-1]
    if scale > 1:
        image = enlarge(image[0], scale)[None]
    return quantise(image[0])


@torch.no_grad()
def restored(model: nn.Module, pair: EvaluationPair, device: torch.device, meter: Meter | None = None) -> Tensor:
    """The degraded image through the model, whole and in eval mode, then clamped and rounded to 8 bits; on the CPU."""
    was_training = model.training
    model.eval()
    image = pair.degraded.to(device)
    whole = max(pair.degraded.shape[-2:]) if image[0].numel() <= _WHOLE_PX else 1024
    told = _Told(model, pair.kernel.to(device, torch.float32)) if _asks(model) and pair.kernel is not None else model
    result = _metered(lambda: restore_tiled(told, image, tile=whole), meter)
    model.train(was_training)
    return _as_evaluated(result, pair, "the model", "its training diverged")


def _asks(model: nn.Module) -> TypeGuard[Restorer]:
    """Whether a model takes the kernel of the blur."""
    return isinstance(model, Restorer) and model.uses_kernel


class _Told(Restorer):
    """A model that is told one blur for every tile."""

    def __init__(self, model: Restorer, kernel: Tensor) -> None:
        super().__init__()
        self.model, self.kernel = model, kernel
        self.channels, self.scale, self.multiple, self.radius_px = (
            model.channels, model.scale, model.multiple, model.radius_px
        )  # fmt: skip

    def stages(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.model.stages(image, kernel=self.kernel)  # type: ignore[call-arg]


def _metered(restore: Callable[[], Tensor], meter: Meter | None) -> Tensor:
    return meter.run(restore) if meter else restore()


def _as_evaluated(result: Tensor, pair: EvaluationPair, who: str, why: str) -> Tensor:
    """Checked, clamped and rounded to 8 bits, on the CPU."""
    if result.shape != pair.sharp.shape:
        raise DataError(
            f"{who} gave an image of shape {tuple(result.shape)} for {pair.name!r}, but the truth has "
            f"{tuple(pair.sharp.shape)}. It does not fit the task."
        )
    if not result.isfinite().all():
        raise NonFiniteLoss(f"{who} restored {pair.name!r} to pixels that are not finite: {why}.")
    return quantise(result.float()).cpu()


@torch.no_grad()
def deconvolved(method: Method, pair: EvaluationPair, device: torch.device, meter: Meter | None = None) -> Tensor:
    """The degraded image by a classical method that is told the blur, then clamped and rounded to 8 bits; on the CPU.

    Errors: DataError when the blur is not known.
    """
    kernel, degraded = pair.kernel, pair.degraded.to(device)
    if kernel is None:
        raise DataError(f"the blur of {pair.name!r} is not known, which {method.label} needs. {NEEDS_BLUR}")
    result = _metered(lambda: method(degraded, kernel), meter)
    return _as_evaluated(result, pair, method.label, "it diverged")


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
    restorer: nn.Module | Method,
    pairs: Iterable[EvaluationPair],
    metrics: Sequence[Metric],
    *,
    loss: str,
    slugs: Mapping[str, str],
    images: Path | None,
    device: torch.device,
    meter: Meter | None = None,
) -> Iterator[list[Row]]:
    """Restore and score every image, by a model or a classical method; the 8-bit results go to `images`/<slug>.png, or
    nowhere. Yields the rows of one at a time."""
    for pair in pairs:
        if isinstance(restorer, nn.Module):
            image = restored(restorer, pair, device, meter)
        else:
            image = deconvolved(restorer, pair, device, meter)
        if images is not None:
            write_image(images / f"{slugs[pair.name]}.png", image)
        yield rows_of(pair, loss, image, metrics, device)


def evaluate_together(
    model: nn.Module,
    pairs: Pairs,
    metrics: Sequence[Metric],
    *,
    loss: str,
    slugs: Mapping[str, str],
    images: Path | None,
    device: torch.device,
    meter: Meter | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Row]:
    """What `evaluate` yields, in the same order, where the processes that train together restore an image in turn:
    each writes its own, and all of them come to know all values.

    Args:   meter: measures this process's images. progress: told how many are done, of all.
    Errors: that of any process, in all of them, when each is done with its own; VeridicalError when an image was not
            evaluated exactly once.
    """
    members = group()
    mine = pairs.part(members.rank, members.size)
    places = {name: place for place, name in enumerate(pairs.names)}
    columns = {one.name: column for column, one in enumerate(metrics)}
    values = torch.zeros(len(places), len(columns), dtype=torch.float64)
    times = torch.zeros(len(places), dtype=torch.int64)
    error: Exception | None = None
    try:
        rows_by_image = evaluate(
            model, mine, metrics, loss=loss, slugs=slugs, images=images, device=device, meter=meter
        )
        for number, rows in enumerate(rows_by_image, start=1):
            for row in rows:
                values[places[str(row["image"])], columns[str(row["metric"])]] = float(row["value"])
            times[places[str(rows[0]["image"])]] += 1
            if progress:
                progress(min(number * members.size, len(places)))
    except Exception as caught:  # the others wait for this process in what follows
        if members.size == 1:
            raise
        error = caught
    with together():
        _raise_alike(members.texts(f"{type(error).__name__}: {error}" if error else ""), error)
        values, times = members.total(values), members.total(times)
    wrong = [name for name, place in places.items() if times[place] != 1]
    if wrong:
        raise VeridicalError(
            f"{len(wrong)} of {len(places)} images were not evaluated exactly once by the {members.size} processes: "
            f"{', '.join(wrong[:5])}. They must see the same images: the folder must be on storage that all share."
        )
    return [
        {"image": name, "loss": loss, "metric": metric_name, "value": float(values[place, column])}
        for name, place in places.items()
        for metric_name, column in columns.items()
    ]


def _raise_alike(said: Sequence[str], own: Exception | None) -> None:
    """Raise the first error among those of all processes, as what it is where others act on it."""
    first = next((text for text in said if text), None)
    if first is None:
        return
    kinds = {each.__name__: each for each in (NonFiniteLoss, DataError, torch.OutOfMemoryError)}
    name, _, message = first.partition(": ")
    raise kinds.get(name, VeridicalError)(message) from own


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
