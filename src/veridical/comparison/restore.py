"""Use a trained model on photographs: any size, in tiles; what was in the file besides its pixels stays.

A folder streams through: while the device restores one image, the next is read and the last one is written.
"""

import contextlib
import csv
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from veridical.comparison.storage import to_read
from veridical.core import catalog
from veridical.core.colour import luma
from veridical.core.errors import DataError
from veridical.core.files import ImageFile, find_images, read_image, write_image
from veridical.core.options import check_sizes
from veridical.core.resize import resize
from veridical.core.untrusted import parse_json, read_file, short
from veridical.models import MODELS
from veridical.training.device import choose_device

# In pixels of the result. The side of a tile, where the overlap does not ask for more; the widest overlap that is
# chosen so that tiles give the untiled result; and the one that is taken where that would need a wider one.
TILE_PX = 512
_WIDEST_OVERLAP_PX = 512
_PARTIAL_OVERLAP_PX = 256
_LEAST_TILE_PX = 64  # tiles are not halved below this when memory runs out

PRECISIONS: dict[str, torch.dtype | None] = {"32-true": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Restored:
    """What a call of `restore` did.

    written: the results. skipped: the files that could not be read or restored, each with the reason.
    present: results that were there already and were kept (`skip_existing`).
    """

    written: tuple[Path, ...]
    skipped: tuple[tuple[Path, str], ...]
    present: tuple[Path, ...] = ()


def load_model(run: Path | str) -> tuple[nn.Module, dict[str, Any]]:
    """The model that a run left in a folder (runs/x/<loss>) or at a URL, in eval mode, and what model.json says of it.

    Errors: DataError when the folder holds no finished model, or its weights do not fit the model.
    """
    with to_read(run) as (folder, _):
        return _model_in(folder)


def _model_in(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    description, weights = folder / "model.json", folder / "model.safetensors"
    for path in (description, weights):
        if not path.is_file():
            raise DataError(f"{folder} holds no finished model: {path.name} is missing. {_finished_models(folder)}")
    try:
        about = parse_json(read_file(description))
        name, options = str(about["model"]["name"]), dict(about["model"]["options"])
        _check_model(about)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{description} cannot be read as the description of a model ({error!r}).") from error
    try:
        build = catalog.lookup(MODELS, name, "model")
        with torch.device("meta"):  # without memory, until it is known that its numbers are in the file
            empty = catalog.call(build, options, f"model {name!r}")
        size = sum(tensor.nbytes for tensor in empty.state_dict().values())
        if size > 2 * weights.stat().st_size + 2**20:
            raise DataError(
                f"{weights} does not fit the model {name!r} of {description}: that has {size:,} bytes, the file "
                f"{weights.stat().st_size:,}."
            )
        model = catalog.call(build, options, f"model {name!r}")
    except DataError:
        raise
    except Exception as error:  # of options that are none, models fail in any way
        raise DataError(f"{description} describes a model that cannot be made: {error}") from error
    try:
        model.load_state_dict(load_file(weights))
    except Exception as error:
        raise DataError(f"{weights} does not fit the model {name!r} of {description}: {error}") from error
    if not all(torch.isfinite(tensor).all() for tensor in model.state_dict().values()):
        raise DataError(f"{weights} has numbers that are not finite, so it restores nothing. Train it again.")
    return model.eval(), about


def _check_model(about: dict[str, Any]) -> None:
    """TypeError or ValueError for what no training writes into model.json."""
    if not isinstance(about["model"]["options"], dict):
        raise TypeError("the options are no table")
    check_sizes("a model", about["model"]["options"])
    enlarge = about.get("enlarge")
    if not isinstance(enlarge, int | None) or not 0 <= (enlarge or 0) <= 64:
        raise ValueError(f"enlarge is {short(enlarge)}")
    if not isinstance(about.get("optimises") or [], list) or not isinstance(about.get("steps"), int | None):
        raise TypeError("optimises or steps is of another type")


def _finished_models(folder: Path) -> str:
    """Where the user may have meant to point: one level down, or beside."""
    near = [p.parent for base in (folder, folder.parent) if base.is_dir() for p in base.glob("*/model.safetensors")]
    if near:
        return f"Finished models: {', '.join(str(p) for p in sorted(near)[:8])}."
    return "Expected the folder of one loss in a run, such as runs/x/l1."


def restore_image(
    model: nn.Module, image: Tensor, *, tile: int | None = None, overlap: int | None = None, channels: int = 3
) -> Tensor:
    """One whole image through the model, in tiles when it is larger than one tile.

    Shapes:  image (3 or 1, H, W) -> (the same, s*H, s*W), where s is the model's scale. A grey image is repeated for
             a colour model and its luma taken afterwards; the channels of a colour image go one by one through a grey
             model.
    Range:   nominal [0, 1], not clamped here.
    Args:    tile, overlap: as in `restore_tiled`. channels: what the model takes.
    """
    grey = image.shape[0] == 1
    if channels == 1 and not grey:
        return torch.cat([restore_tiled(model, plane[None], tile=tile, overlap=overlap) for plane in image])
    if channels == 3 and grey:
        colour = restore_tiled(model, image.expand(3, -1, -1), tile=tile, overlap=overlap)
        return luma(colour[None])[0]
    return restore_tiled(model, image, tile=tile, overlap=overlap)


def tiling(model: nn.Module, *, tile: int | None = None, overlap: int | None = None) -> tuple[int, int]:
    """(side of a tile, what neighbours share), in px of the input; what is None is chosen.

    The overlap: twice the model's `radius_px`, which makes the tiled result the untiled one, where that is at most
    512 px of the result. A model that looks further, or at the whole image, gets 256 px; by how much its tiles then
    differ depends on what it makes of things far away. Never more than half of a tile that was named. Measured: a U-Net
    of radius 245 after 150 steps, on a photograph of 1280x720, in tiles of 512 px that share 256 (128) px: by at most
    0.019 (0.064), on average by 0.00008 (0.0005), where white is 1. A NAFNet (width 8, two levels; it takes means over
    the whole image) after 300 steps, on another one, in the tiles chosen for it, 768 px that share 256 (512 that share
    128): by at most 0.0005 (0.0011), on average by 0.00007 (0.0001), where it changes the image by 0.0022 on average.
    The tile: 512 px of the result, or three times the overlap where that is more.

    >>> from veridical.models import DnCNN, UNet
    >>> tiling(DnCNN(depth=17)), tiling(DnCNN(depth=17), tile=48), tiling(DnCNN(depth=17), overlap=300), tiling(UNet())
    ((512, 34), (48, 24), (900, 300), (1470, 490))
    """
    scale = getattr(model, "scale", 1)
    if overlap is None:
        radius = getattr(model, "radius_px", None)
        overlap = _PARTIAL_OVERLAP_PX // scale
        if radius is not None and 2 * radius <= _WIDEST_OVERLAP_PX // scale:
            overlap = 2 * radius
        if tile is not None:
            overlap = min(overlap, tile // 2)
    if tile is None:
        tile = max(TILE_PX // scale, 3 * overlap)
    return tile, overlap


@torch.no_grad()
def restore_tiled(model: nn.Module, image: Tensor, *, tile: int | None = None, overlap: int | None = None) -> Tensor:
    """`model(image)` computed in overlapping tiles. A tile at least as large as the image gives the untiled result.

    The outer part of every overlap has no weight: there the model does not see all the surroundings that it looks at.
    Where the overlap is at least twice the model's `radius_px`, that part is as wide as the radius, and what is left is
    the untiled result but for rounding. Where it is less, or the model looks at the whole image, that part is a quarter
    of the overlap, and the tiles fade into each other over the half between. Tiles begin at multiples of the model's
    `multiple`, so that it halves every tile where it would halve the whole image.

    Tiles go to the model's device one by one: what that must hold does not grow with the image.

    Shapes: image (C, H, W) -> (C', s*H, s*W) with the model's scale s, on the image's device.
    Args:   tile: side of a tile; overlap: what neighbours share, both in pixels of the input; None: see `tiling`.
    Errors: DataError when the tile is not larger than the overlap by at least the model's `multiple`.
    """
    height, width = image.shape[-2:]
    device = next((tensor.device for tensor in model.parameters()), image.device)
    side, shared = tiling(model, tile=tile, overlap=overlap)
    if side >= height and side >= width:
        whole: Tensor = model(image[None].to(device))[0]
        return whole.to(image.device)
    grid = getattr(model, "multiple", 1)
    if shared < 0 or side - shared < grid:
        raise DataError(
            f"a tile of {side} pixels with an overlap of {shared} cannot be used: "
            f"expected 0 <= overlap <= tile - {grid}."
        )
    radius = getattr(model, "radius_px", None)
    margin = radius if radius is not None and 2 * radius <= shared else shared // 4
    rows, columns = _places(height, side, shared, grid), _places(width, side, shared, grid)
    total: Tensor | None = None
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            piece = model(image[None, :, top:bottom, left:right].to(device))[0].to(image.device)
            if total is None:
                scale = piece.shape[-1] // (right - left)
                total = piece.new_zeros(piece.shape[0], height * scale, width * scale, dtype=torch.float32)
                down = _windows(rows, shared * scale, margin * scale, scale)
                across = _windows(columns, shared * scale, margin * scale, scale)
            window = (down[i][:, None] * across[j]).to(total)
            total[..., top * scale : bottom * scale, left * scale : right * scale] += piece * window
    assert total is not None
    return total


def _places(length: int, tile: int, overlap: int, grid: int) -> list[tuple[int, int]]:
    """From where to where tiles go along one axis: from multiples of the grid, neighbours sharing at least `overlap`.

    >>> _places(1000, 512, 64, 16), _places(512, 512, 64, 16)
    ([(0, 512), (448, 960), (496, 1000)], [(0, 512)])
    """
    if length <= tile:
        return [(0, length)]
    step = (tile - overlap) // grid * grid
    last = -(-(length - tile) // grid) * grid
    return [(start, min(start + tile, length)) for start in (*range(0, last, step), last)]


def _windows(places: Sequence[tuple[int, int]], overlap: int, margin: int, scale: int) -> list[Tensor]:
    """The weight of every tile along one axis, float64; at each pixel of the result they add up to one.

    1 inside and at the image's own borders; beside another tile `margin` pixels of 0, then rising smoothly until the
    `overlap` ends. Places are in pixels of the input, the others in pixels of the result.
    """
    length = places[-1][1] * scale
    between = max(overlap - 2 * margin, 0)
    t = (torch.arange(overlap, dtype=torch.float64) + 0.5 - margin) / max(between, 1)
    rise = torch.sin(t.clamp(0, 1) * torch.pi / 2) ** 2 if between else (t > 0).double()
    total = torch.zeros(length, dtype=torch.float64)
    windows = []
    for start, stop in ((start * scale, stop * scale) for start, stop in places):
        window = torch.ones(stop - start, dtype=torch.float64)
        if overlap and start > 0:
            window[:overlap] *= rise
        if overlap and stop < length:
            window[-overlap:] *= rise.flip(0)
        total[start:stop] += window
        windows.append(window)
    return [window / total[start * scale : stop * scale] for window, (start, stop) in zip(windows, places, strict=True)]


def restore(
    run: Path | str,
    inputs: Sequence[Path],
    out: Path,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    precision: str = "32-true",
    overwrite: bool = False,
    skip_existing: bool = False,
    device: str = "auto",
    report: Path | None = None,
    on_image: Callable[[int, int, Path, str | None], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Restored:
    """Restore files and folders of photographs with the model of one loss of a run.

    The results are PNG files (TIFF for TIFF), with the sub-folders of every input folder. Alpha, the orientation that
    a viewer sees, 8 or 16 bits, the colour profile, EXIF, the resolution in dpi and grey stay as they were. No input is
    ever overwritten, and every result is whole or not there. For a model that was trained on enlarged images
    (`enlarge` in model.json), images are enlarged first, by the same bicubic interpolation.

    While one image is restored, the next is read and the last is written, on a thread each; no more than these three
    are held. When the device's memory runs out, the side of the tiles is halved, for this image and those after it.

    Args:   run: folder of one loss, such as runs/x/pdl. tile, overlap: in pixels; None: see `tiling`.
            precision: "32-true", or "bf16" or "fp16" by autocast. skip_existing: keep the results that are there.
            report: a CSV file with a line for each image; the lines are in REPORT.part as they come.
            on_image: called after each image as (number so far, number of all, source, None or the reason why it was
            skipped). note: called with what the user should know of the way it went.
    Errors: DataError, before any work, when an input does not exist, a result would land on an input, or (without
            `overwrite` or `skip_existing`) on an existing file, or the model needs more than an image. A file that
            cannot be read or restored is skipped and reported in the result.
    """
    dtype = catalog.lookup(PRECISIONS, precision, "precision")
    if overwrite and skip_existing:
        raise DataError("results that exist cannot be both replaced and kept: choose --overwrite or --skip-existing.")
    model, about = load_model(run)
    if getattr(model, "uses_kernel", False):
        raise DataError(
            f"the model {about['model']['name']!r} restores with the kernel of the blur, which a photograph does not "
            "say. Call it from Python, as model(image, kernel=...)."
        )
    everything = jobs_of(inputs, out, kept=overwrite or skip_existing)
    present = [destination for _, destination in everything if skip_existing and destination.exists()]
    jobs = [job for job in everything if job[1] not in set(present)]
    target = choose_device(device)
    model.to(target)
    channels = int(about["model"]["options"].get("channels", 3))
    enlarge = int(about.get("enlarge") or 1)
    written: list[Path] = []
    skipped: list[tuple[Path, str]] = []
    with (
        _reported(report) as record,
        ThreadPoolExecutor(1, "veridical-read") as reading,
        ThreadPoolExecutor(1, "veridical-write") as writing,
    ):
        for source, destination in everything:
            if destination in set(present):
                record(source, destination, None, "present", "")
        behind: _Done | None = None

        def settle() -> None:
            """Wait until the last image is written, and say what became of it."""
            nonlocal behind
            if behind is None:
                return
            done, behind = behind, None
            reason = done.reason
            if done.writing is not None:
                try:
                    done.writing.result()
                except DataError as error:
                    reason = str(error)
            if reason is None:
                written.append(done.destination)
            else:
                skipped.append((done.source, reason))
            record(done.source, done.destination, done.seconds, "skipped" if reason else "restored", reason or "")
            if on_image:
                on_image(len(written) + len(skipped), len(jobs), done.source, reason)

        ahead = reading.submit(_read, jobs[0][0], enlarge) if jobs else None
        try:
            for place, (source, destination) in enumerate(jobs):
                assert ahead is not None
                now = ahead
                ahead = reading.submit(_read, jobs[place + 1][0], enlarge) if place + 1 < len(jobs) else None
                done = _Done(source, destination)
                try:
                    file = now.result()
                    del now
                    began = time.monotonic()
                    with torch.autocast(target.type, dtype=dtype, enabled=dtype is not None):
                        pixels, tile = _within_memory(model, source, file.pixels, tile, overlap, channels, note)
                    done.seconds = time.monotonic() - began
                    _check_finite(source, pixels, precision)
                except DataError as error:
                    done.reason = str(error)
                settle()  # before the next is handed over: one result waits at most
                if done.reason is None:
                    done.writing = writing.submit(write_restored, destination, pixels, file)
                    del pixels, file
                behind = done
        finally:
            settle()
    return Restored(tuple(written), tuple(skipped), tuple(present))


@dataclass
class _Done:
    """What became of one image: seconds on the device, then why not or its writing, which may go on."""

    source: Path
    destination: Path
    seconds: float | None = None
    reason: str | None = None
    writing: "Future[None] | None" = None


@contextlib.contextmanager
def _reported(table: Path | None) -> Iterator[Callable[[Path, Path, float | None, str, str], None]]:
    """record(source, destination, seconds, status, reason): a line of TABLE.part, which becomes TABLE at the end."""
    if table is None:
        yield lambda source, destination, seconds, status, reason: None
        return
    table.parent.mkdir(parents=True, exist_ok=True)
    part = table.with_name(table.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("source", "destination", "seconds", "status", "reason"))

        def record(source: Path, destination: Path, seconds: float | None, status: str, reason: str) -> None:
            writer.writerow((source, destination, "" if seconds is None else f"{seconds:.3f}", status, reason))
            file.flush()

        yield record
    part.replace(table)


def _read(source: Path, enlarge: int) -> ImageFile:
    file = read_image(source, channels=None)
    if enlarge > 1:
        file = dataclasses.replace(file, pixels=resize(file.pixels, Fraction(enlarge)))
    return file


def _within_memory(
    model: nn.Module,
    source: Path,
    image: Tensor,
    tile: int | None,
    overlap: int | None,
    channels: int,
    note: Callable[[str], None] | None,
) -> tuple[Tensor, int | None]:
    """The restored image, float32, and the side of a tile with which it fitted into the memory.

    Errors: DataError when it does not fit in the smallest tiles either, or the model fails on the image.
    """
    while True:
        try:
            return restore_image(model, image, tile=tile, overlap=overlap, channels=channels).float(), tile
        except (RuntimeError, ValueError, MemoryError) as error:
            if isinstance(error, DataError) or type(error).__name__ == "AcceleratorError":
                raise  # wrong options, or a device that is lost: no other file would fare better
            if not _out_of_memory(error):
                raise DataError(f"cannot restore {source}: the model fails on it ({error}).") from error
            side = min(tiling(model, tile=tile, overlap=overlap)[0], max(image.shape[-2:]))
            grid = getattr(model, "multiple", 1)
            smaller = side // 2 // grid * grid
            if smaller < max(_LEAST_TILE_PX, (overlap or 0) + grid):
                raise DataError(
                    f"cannot restore {source}: tiles of {side} px need more memory than there is. Free some, or choose "
                    "a smaller --overlap, --precision bf16 or --device cpu."
                ) from error
        # Outside of the handler: there, the error still holds the tensors of the attempt that failed.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        tile = smaller
        if note:
            shared = tiling(model, tile=tile, overlap=overlap)[1]
            radius = getattr(model, "radius_px", None)
            less = "" if radius is not None and 2 * radius <= shared else ", which is less than the model looks at"
            note(f"memory ran out with tiles of {side} px: going on with {tile} px that share {shared}{less}")


def _out_of_memory(error: BaseException) -> bool:
    """Of a CUDA device by its type; of others, where it is a RuntimeError like any other, by torch's words."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    words = str(error).lower()
    return "out of memory" in words or "can't allocate memory" in words


def _check_finite(source: Path, pixels: Tensor, precision: str) -> None:
    if not torch.isfinite(pixels).all():
        hint = (
            "Use --precision 32-true, or bf16, whose range is wider."
            if precision == "fp16"
            else "Use --precision 32-true."
            if precision != "32-true"
            else "The training of the model may have diverged."
        )
        raise DataError(f"cannot restore {source}: the result has pixels that are not finite in {precision}. {hint}")


def write_restored(destination: Path, pixels: Tensor, file: ImageFile) -> None:
    """The restored pixels of a file, with what else was in it; whole or not at all."""
    alpha = file.alpha
    if alpha is not None and alpha.shape[-2:] != pixels.shape[-2:]:
        alpha = torch.nn.functional.interpolate(
            alpha[None], size=pixels.shape[-2:], mode="bilinear", align_corners=False
        )[0]
    icc = file.icc
    if icc is not None and icc[16:20] == b"CMYK":  # the pixels were read as RGB, for which that profile is wrong
        icc = None
    write_image(destination, pixels, alpha=alpha, bits=file.bits, icc=icc, exif=file.exif, dpi=file.dpi)


def jobs_of(inputs: Sequence[Path], out: Path, *, kept: bool) -> list[tuple[Path, Path]]:
    """Every (source, destination), checked as a whole before the first is touched; kept: some may exist already."""
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
    if existing and not kept:
        raise DataError(
            f"{len(existing)} of {len(jobs)} outputs exist already ({', '.join(existing[:3])}"
            f"{', ...' if len(existing) > 3 else ''}). Name another output folder, or pass --overwrite, or "
            "--skip-existing to go on with the others."
        )
    return [(source, destination) for destination, source in jobs.items()]
