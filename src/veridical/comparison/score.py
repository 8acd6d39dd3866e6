"""Score images that are already on disk, by whomever they were restored."""

from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import torch

from veridical.comparison.evaluate import build_metrics, score_image
from veridical.core.errors import DataError
from veridical.core.files import find_images, read_image
from veridical.metrics import Metric
from veridical.training.device import choose_device


def score(
    out: Path,
    reference: Path | None,
    metrics: Sequence[str],
    *,
    device: str = "cpu",
    on_image: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Score images against their references.

    Args:    out, reference: two files, or two folders whose images match by relative path without the suffix.
             reference may be None when no metric needs one. metrics: specs such as "psnr(channel=y, border=4)".
    Returns: rows with the columns image, metric, value; a metric is named by its spec.
    Errors:  DataError when a path is missing, images have no partner, or two partners differ in size;
             WeightsMissing when a metric's weights cannot be had.
    """
    built = build_metrics(metrics)
    if reference is None:
        needing = [one.name for one in built if one.reference]
        if needing:
            raise DataError(f"{', '.join(needing)} compare with a reference: name the reference file or folder, too.")
    pairs = _pairs(out, reference)
    target_device = choose_device(device)
    rows: list[dict[str, str | float]] = []
    for number, (name, ours, theirs) in enumerate(pairs, start=1):
        for metric, value in _score_pair(ours, theirs, built, target_device):
            rows.append({"image": name, "metric": metric, "value": value})
        if on_image:
            on_image(number, len(pairs))
    return pl.DataFrame(rows, schema={"image": pl.String, "metric": pl.String, "value": pl.Float64})


def _score_pair(
    ours: Path, theirs: Path | None, metrics: Sequence[Metric], device: torch.device
) -> list[tuple[str, float]]:
    prediction = read_image(ours, channels=None).pixels
    target = prediction if theirs is None else read_image(theirs, channels=None).pixels
    if prediction.shape[-2:] != target.shape[-2:]:
        raise DataError(
            f"{ours} is {prediction.shape[-1]}x{prediction.shape[-2]} px, but its reference {theirs} is "
            f"{target.shape[-1]}x{target.shape[-2]}. Scores need images of one size."
        )
    if prediction.shape[0] != target.shape[0]:  # grey beside colour: both as colour
        prediction, target = prediction.expand(3, -1, -1), target.expand(3, -1, -1)
    for one in metrics:
        least = one.min_size
        if min(prediction.shape[-2:]) < least:
            raise DataError(
                f"{ours} is {prediction.shape[-1]}x{prediction.shape[-2]} px, but the metric {one.name} needs at least "
                f"{least}x{least}."
            )
    return list(score_image(prediction, target, metrics, device))


def _pairs(out: Path, reference: Path | None) -> list[tuple[str, Path, Path | None]]:
    """(name, image, reference) for every image, sorted by name."""
    for path in (out, reference):
        if path is not None and not path.exists():
            raise DataError(f"there is no file or folder {path}. Check the path.")
    if reference is not None and out.is_dir() != reference.is_dir():
        kinds = ("a folder", "a file") if out.is_dir() else ("a file", "a folder")
        raise DataError(f"{out} is {kinds[0]}, but {reference} is {kinds[1]}. Expected two files or two folders.")
    if not out.is_dir():
        return [(out.stem, out, reference)]
    ours = _by_stem(out)
    if reference is None:
        return [(stem, path, None) for stem, path in ours.items()]
    theirs = _by_stem(reference)
    alone = [f"{out}/{s}" for s in ours if s not in theirs] + [f"{reference}/{s}" for s in theirs if s not in ours]
    if alone:
        more = f" and {len(alone) - 4} more" if len(alone) > 4 else ""
        raise DataError(
            f"{len(alone)} images have no partner of the same name: {', '.join(alone[:4])}{more}. "
            "Images are matched by their path inside the folder, without the suffix."
        )
    return [(stem, path, theirs[stem]) for stem, path in ours.items()]


def _by_stem(folder: Path) -> dict[str, Path]:
    stems: dict[str, Path] = {}
    for path in find_images(folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in stems:
            raise DataError(f"{path} and {stems[stem]} differ in their suffix only, so neither can be matched by name.")
        stems[stem] = path
    return stems
