"""Score images that are already on disk, by whomever they were restored."""

import contextlib
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from veridical.comparison.evaluate import Measured, build_metrics, score_images
from veridical.core.errors import DataError
from veridical.core.files import find_images, read_image
from veridical.training.device import choose_device

SCHEMA = {"image": pl.String, "metric": pl.String, "value": pl.Float64}
BATCH_PX = 2**22  # of one batch on an accelerator: 4 megapixels keep LPIPS below 2 GB


@dataclass(frozen=True)
class Pair:
    """An image, its name in the table, and the file it is compared with, if any."""

    name: str
    image: Path
    reference: Path | None


@dataclass(frozen=True)
class Scored:
    """rows: image, metric, value; a metric is named by its spec. skipped: why, for each image without rows."""

    rows: pl.DataFrame
    skipped: tuple[str, ...]


def score(
    out: Path,
    reference: Path | None,
    metrics: Sequence[str],
    *,
    device: str = "cpu",
    on_image: Callable[[int, int], None] | None = None,
    table: Path | None = None,
) -> Scored:
    """Score images against their references. Memory does not grow with their number.

    Args:    out, reference: two files, or two folders whose images match by relative path without the suffix.
             reference may be None when no metric needs one. metrics: specs such as "psnr(channel=y, border=4)".
             table: a CSV file for the rows; they are in TABLE.part as they come, so that a stopped call leaves them.
    Errors:  DataError when a path is missing, images have no partner, or none of them can be scored; WeightsMissing
             when a metric's weights cannot be had. An image that cannot be read, is too small, or differs in size from
             its partner is skipped.
    """
    built = build_metrics(metrics)
    check_references(built, reference)
    return score_pairs(pairs_of(out, reference), built, device=device, on_image=on_image, table=table)


def check_references(metrics: Sequence[Measured], reference: Path | None) -> None:
    """Errors: DataError when there is no reference for those that need one."""
    needing = [one.name for one in metrics if one.reference]
    if needing and reference is None:
        raise DataError(f"{', '.join(needing)} compare with a reference: name the reference file or folder, too.")


def score_pairs(
    pairs: Sequence[Pair],
    metrics: Sequence[Measured],
    *,
    device: str = "cpu",
    on_image: Callable[[int, int], None] | None = None,
    table: Path | None = None,
) -> Scored:
    """The same for pairs that are known, by metrics that are made; at least one pair."""
    target_device = choose_device(device)
    names, labels, values, skipped = [], [], [], []
    with _streamed(table) as write:
        done = 0
        for batch in _batches(pairs, metrics, target_device):
            if isinstance(batch, str):
                skipped.append(batch)
                done += 1
            else:
                found, prediction, target = batch
                by_metric = dict(score_images(prediction, target, metrics, target_device))
                for k, name in enumerate(found):
                    for label, of_images in by_metric.items():
                        write(name, label, of_images[k])
                        names.append(name)
                        labels.append(label)
                        values.append(of_images[k])
                done += len(found)
            if on_image:
                on_image(done, len(pairs))
        if not names:
            raise DataError("none of the images could be scored: " + "; ".join(skipped[:3]))
    return Scored(pl.DataFrame([names, labels, values], schema=SCHEMA), tuple(skipped))


@contextlib.contextmanager
def _streamed(table: Path | None) -> Iterator[Callable[[str, str, float], None]]:
    """write(image, metric, value): one line of TABLE.part, which becomes TABLE when all went well."""
    if table is None:
        yield lambda image, metric, value: None
        return
    table.parent.mkdir(parents=True, exist_ok=True)
    part = unfinished(table)
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(SCHEMA)

        def write(image: str, metric: str, value: float) -> None:
            writer.writerow((image, metric, repr(value)))
            file.flush()

        yield write
    part.replace(table)


def unfinished(table: Path) -> Path:
    """Where the rows are until all images are scored."""
    return table.with_name(table.name + ".part")


def _batches(
    pairs: Sequence[Pair], metrics: Sequence[Measured], device: torch.device
) -> Iterator[tuple[list[str], Tensor, Tensor] | str]:
    """Neighbours of one size together, on an accelerator; on a CPU, where that gains nothing, one by one. Or why an
    image is left out."""
    names: list[str] = []
    images: list[tuple[Tensor, Tensor]] = []

    def taken() -> tuple[list[str], Tensor, Tensor]:
        found = list(names), *(torch.stack(side) for side in zip(*images, strict=True))
        names.clear()
        images.clear()
        return found  # type: ignore[return-value]

    for pair in pairs:
        try:
            read = _read(pair, metrics)
        except DataError as error:
            yield str(error)
            continue
        most = max(1, BATCH_PX // read[0][0].numel()) if _gains_by_batches(device) else 1
        if images and (images[0][0].shape != read[0].shape or len(images) >= most):
            yield taken()
        names.append(pair.name)
        images.append(read)
        if len(images) >= most:
            yield taken()
    if images:
        yield taken()


def _gains_by_batches(device: torch.device) -> bool:
    return device.type != "cpu"


def _read(pair: Pair, metrics: Sequence[Measured]) -> tuple[Tensor, Tensor]:
    prediction = read_image(pair.image, channels=None).pixels
    target = prediction if pair.reference is None else read_image(pair.reference, channels=None).pixels
    if prediction.shape[-2:] != target.shape[-2:]:
        raise DataError(
            f"{pair.image} is {prediction.shape[-1]}x{prediction.shape[-2]} px, but its reference {pair.reference} is "
            f"{target.shape[-1]}x{target.shape[-2]}. Scores need images of one size."
        )
    if prediction.shape[0] != target.shape[0]:  # grey beside colour: both as colour
        prediction, target = prediction.expand(3, -1, -1), target.expand(3, -1, -1)
    for one in metrics:
        least = one.min_size
        if min(prediction.shape[-2:]) < least:
            raise DataError(
                f"{pair.image} is {prediction.shape[-1]}x{prediction.shape[-2]} px, but the metric {one.name} needs at "
                f"least {least}x{least}."
            )
    return prediction, target


def pairs_of(out: Path, reference: Path | None) -> list[Pair]:
    """Every image of a folder with its partner, sorted by name; or the two files.

    Errors: DataError when a path is missing, one is a file and the other a folder, or an image has no partner.
    """
    for path in (out, reference):
        if path is not None and not path.exists():
            raise DataError(f"there is no file or folder {path}. Check the path.")
    if reference is not None and out.is_dir() != reference.is_dir():
        kinds = ("a folder", "a file") if out.is_dir() else ("a file", "a folder")
        raise DataError(f"{out} is {kinds[0]}, but {reference} is {kinds[1]}. Expected two files or two folders.")
    if not out.is_dir():
        return [Pair(out.stem, out, reference)]
    ours = by_stem(out)
    if reference is None:
        return [Pair(stem, path, None) for stem, path in ours.items()]
    theirs = by_stem(reference)
    alone = [f"{out}/{s}" for s in ours if s not in theirs] + [f"{reference}/{s}" for s in theirs if s not in ours]
    if alone:
        more = f" and {len(alone) - 4} more" if len(alone) > 4 else ""
        raise DataError(
            f"{len(alone)} images have no partner of the same name: {', '.join(alone[:4])}{more}. "
            "Images are matched by their path inside the folder, without the suffix."
        )
    return [Pair(stem, path, theirs[stem]) for stem, path in ours.items()]


def by_stem(folder: Path) -> dict[str, Path]:
    """The images of a folder by their path inside it, without the suffix.

    Errors: DataError when two differ in the suffix only, or there is none.
    """
    stems: dict[str, Path] = {}
    for path in find_images(folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in stems:
            raise DataError(f"{path} and {stems[stem]} differ in their suffix only, so neither can be matched by name.")
        stems[stem] = path
    return stems
