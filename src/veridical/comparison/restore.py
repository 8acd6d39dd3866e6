"""Use a trained model on photographs: any size, in tiles; what was in the file besides its pixels stays."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from veridical.core import catalog
from veridical.core.colour import luma
from veridical.core.errors import DataError
from veridical.core.files import ImageFile, find_images, read_image, write_image
from veridical.models import MODELS
from veridical.training.device import choose_device

TILE_PX = 512
OVERLAP_PX = 64
# Tiles start at multiples of this, so that a network with up to five halvings sees the same grid as in the whole image.
_GRID_PX = 32


@dataclass(frozen=True)
class Restored:
    """What a call of `restore` did: the files it wrote, and those it left out, each with the reason."""

    written: tuple[Path, ...]
    skipped: tuple[tuple[Path, str], ...]


def load_model(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model that a run left in `folder` (runs/x/<loss>), in eval mode, and what model.json says about it.

    Errors: DataError when the folder holds no finished model, or its weights do not fit the model.
    """
    description, weights = folder / "model.json", folder / "model.safetensors"
    for path in (description, weights):
        if not path.is_file():
            raise DataError(f"{folder} holds no finished model: {path.name} is missing. {_finished_models(folder)}")
    try:
        about = json.loads(description.read_text(encoding="utf-8"))
        name, options = about["model"]["name"], about["model"]["options"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{description} cannot be read as the description of a model ({error!r}).") from error
    try:
        model = catalog.call(catalog.lookup(MODELS, name, "model"), options, f"model {name!r}")
    except (TypeError, ValueError) as error:
        raise DataError(f"{description} describes a model that cannot be made: {error}") from error
    try:
        model.load_state_dict(load_file(weights))
    except Exception as error:
        raise DataError(f"{weights} does not fit the model {name!r} of {description}: {error}") from error
    return model.eval(), about


def _finished_models(folder: Path) -> str:
    """Where the user may have meant to point: one level down, or beside."""
    near = [p.parent for base in (folder, folder.parent) if base.is_dir() for p in base.glob("*/model.safetensors")]
    if near:
        return f"Finished models: {', '.join(str(p) for p in sorted(near)[:8])}."
    return "Expected the folder of one loss in a run, such as runs/x/l1."


def restore_image(
    model: nn.Module, image: Tensor, *, tile: int = TILE_PX, overlap: int = OVERLAP_PX, channels: int = 3
) -> Tensor:
    """One whole image through the model, in blended tiles when it is larger than one tile.

    Shapes:  image (3 or 1, H, W) -> (the same, s*H, s*W), where s is the model's scale. A grey image is repeated for
             a colour model and its luma taken afterwards; the channels of a colour image go one by one through a grey
             model.
    Range:   nominal [0, 1], not clamped here.
    Args:    channels: what the model takes.
    """
    grey = image.shape[0] == 1
    if channels == 1 and not grey:
        return torch.cat([restore_tiled(model, plane[None], tile=tile, overlap=overlap) for plane in image])
    if channels == 3 and grey:
        colour = restore_tiled(model, image.expand(3, -1, -1), tile=tile, overlap=overlap)
        return luma(colour[None])[0]
    return restore_tiled(model, image, tile=tile, overlap=overlap)


@torch.no_grad()
def restore_tiled(model: nn.Module, image: Tensor, *, tile: int = TILE_PX, overlap: int = OVERLAP_PX) -> Tensor:
    """`model(image)` computed in overlapping tiles, which are blended by a smooth window that adds up to one.

    A tile at least as large as the image gives the untiled result. The outer quarter of every overlap has no weight: it
    only gives the network its surroundings, so that its behaviour at a border does not show as a seam.

    Shapes: image (C, H, W) -> (C', s*H, s*W) with the model's scale s.
    Args:   tile: side of a tile; overlap: what neighbours share, both in pixels of the input.
    Errors: DataError when the tile is not larger than the overlap by at least 32 pixels.
    """
    height, width = image.shape[-2:]
    if tile >= height and tile >= width:
        result: Tensor = model(image[None])[0]
        return result
    if overlap < 0 or tile - overlap < _GRID_PX:
        raise DataError(
            f"a tile of {tile} pixels with an overlap of {overlap} cannot be used: "
            f"expected 0 <= overlap <= tile - {_GRID_PX}."
        )
    total: Tensor | None = None
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            bottom, right = min(top + tile, height), min(left + tile, width)
            piece = model(image[None, :, top:bottom, left:right])[0]
            scale = piece.shape[-1] // (right - left)
            if total is None:
                total = piece.new_zeros(piece.shape[0], height * scale, width * scale)
                weight = piece.new_zeros(1, height * scale, width * scale)
            window = (
                _ramps(top, bottom, height, overlap, scale).view(-1, 1)
                * _ramps(left, right, width, overlap, scale).view(1, -1)
            ).to(piece)
            area = (..., slice(top * scale, bottom * scale), slice(left * scale, right * scale))
            total[area] += piece * window
            weight[area] += window
    assert total is not None
    return total / weight


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along one axis: multiples of the grid, neighbours sharing at least `overlap` pixels.

    >>> _starts(1000, 512, 64), _starts(512, 512, 64)
    ([0, 448, 512], [0])
    """
    if length <= tile:
        return [0]
    step = (tile - overlap) // _GRID_PX * _GRID_PX
    last = -(-(length - tile) // _GRID_PX) * _GRID_PX
    return [*range(0, last, step), last]


def _ramps(start: int, stop: int, length: int, overlap: int, scale: int) -> Tensor:
    """The window of one tile along one axis: 1 inside and at the image's own borders, else falling smoothly to 0."""
    window = torch.ones((stop - start) * scale)
    span = overlap * scale
    if span:
        t = (torch.arange(span) + 0.5) / span
        rise = torch.sin(((t - 0.25) * 2).clamp(0, 1) * torch.pi / 2) ** 2
        if start > 0:
            window[:span] *= rise
        if stop < length:
            window[-span:] *= rise.flip(0)
    return window


def restore(
    run: Path,
    inputs: Sequence[Path],
    out: Path,
    *,
    tile: int = TILE_PX,
    overlap: int = OVERLAP_PX,
    overwrite: bool = False,
    device: str = "auto",
    on_image: Callable[[int, int, Path, str | None], None] | None = None,
) -> Restored:
    """Restore files and folders of photographs with the model of one loss of a run.

    The results are PNG files (TIFF for TIFF), with the sub-folders of every input folder. Alpha, the orientation that
    a viewer sees, 8 or 16 bits, the colour profile and grey stay as they were. No input is ever overwritten.

    Args:   run: folder of one loss, such as runs/x/pdl. tile, overlap: in pixels. on_image: called after each image as
            (number so far, number of all, source, None or the reason why it was skipped).
    Errors: DataError, before any work, when an input does not exist, a result would land on an input, or (without
            `overwrite`) on an existing file. A file that cannot be read is skipped and reported in the result.
    """
    model, about = load_model(run)
    jobs = _jobs(inputs, out, overwrite=overwrite)
    target = choose_device(device)
    model.to(target)
    channels = int(about["model"]["options"].get("channels", 3))
    written: list[Path] = []
    skipped: list[tuple[Path, str]] = []
    for number, (source, destination) in enumerate(jobs, start=1):
        reason = None
        try:
            file = read_image(source, channels=None)
        except DataError as error:
            reason = str(error)
            skipped.append((source, reason))
        else:
            pixels = restore_image(model, file.pixels.to(target), tile=tile, overlap=overlap, channels=channels)
            _write(destination, pixels.float().cpu(), file)
            written.append(destination)
        if on_image:
            on_image(number, len(jobs), source, reason)
    return Restored(tuple(written), tuple(skipped))


def _write(destination: Path, pixels: Tensor, file: ImageFile) -> None:
    alpha = file.alpha
    if alpha is not None and alpha.shape[-2:] != pixels.shape[-2:]:
        alpha = torch.nn.functional.interpolate(
            alpha[None], size=pixels.shape[-2:], mode="bilinear", align_corners=False
        )[0]
    icc = file.icc
    if icc is not None and icc[16:20] == b"CMYK":  # the pixels were read as RGB, for which that profile is wrong
        icc = None
    write_image(destination, pixels, alpha=alpha, bits=file.bits, icc=icc, exif=file.exif)


def _jobs(inputs: Sequence[Path], out: Path, *, overwrite: bool) -> list[tuple[Path, Path]]:
    """Every (source, destination), checked as a whole before the first is touched."""
    if out.exists() and not out.is_dir():
        raise DataError(f"the output {out} is a file; expected a folder, which is made if it does not exist.")
    found: list[tuple[Path, PurePosixPath]] = []
    for given in inputs:
        if given.is_dir():
            found += [(path, PurePosixPath(path.relative_to(given).as_posix())) for path in find_images(given)]
        elif given.is_file():
            found.append((given, PurePosixPath(given.name)))
        else:
            raise DataError(f"there is no file or folder {given}. Check the path.")
    if not found:
        raise DataError("no photographs were named. Expected files or folders of images.")
    jobs: dict[Path, Path] = {}
    for source, relative in found:
        suffix = relative.suffix if relative.suffix.lower() in (".tif", ".tiff") else ".png"
        destination = out / relative.with_suffix(suffix)
        if destination in jobs:  # a.jpg beside a.png
            destination = out / relative.with_name(relative.name + suffix)
        if destination in jobs:
            raise DataError(f"{source} and {jobs[destination]} would both become {destination}. Restore them apart.")
        jobs[destination] = source
    sources = {source.resolve() for source, _ in found}
    for destination, source in jobs.items():
        if destination.resolve() in sources:
            raise DataError(
                f"restoring {source} into {out} would overwrite the input {destination}. Name another output folder."
            )
    existing = [str(destination) for destination in jobs if destination.exists()]
    if existing and not overwrite:
        raise DataError(
            f"{len(existing)} of {len(jobs)} outputs exist already ({', '.join(existing[:3])}"
            f"{', ...' if len(existing) > 3 else ''}). Name another output folder, or pass --overwrite."
        )
    return [(source, destination) for destination, source in jobs.items()]
