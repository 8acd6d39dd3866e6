"""The photographs of a report: which part of which images to show, without loss, inside a budget of bytes."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from veridical.core.errors import DataError, VeridicalError
from veridical.core.files import MOST_BYTES, open_image
from veridical.core.untrusted import read_file

CROP_PX = 256
BUDGET = 12_500_000  # characters of base64 in one report; 12 losses by 16 metrics make the rest of the page 1.9 MB
CROP_SHARE = 0.5  # of the budget: crops of many images say more than full frames of few
FAILURE_SHARE = 0.25  # of the budget, for the crops on which losses fail
FAILURE_PX = 128
MOST_IMAGES = 16
_THUMBNAIL_PX = 176
_STRIDE_PX = 16


@dataclass(frozen=True)
class Box:
    """A window of an image, in pixels of the truth."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Shown:
    """One image of the report. crops, frames: folder of the variant -> data URI; no frames without room."""

    name: str
    width: int
    height: int
    box: Box
    thumbnail: str
    crops: dict[str, str]
    frames: dict[str, str]

    @property
    def whole(self) -> bool:
        """The crop is the image."""
        return (self.box.width, self.box.height) == (self.width, self.height)


def interesting(truth: np.ndarray, size: int = CROP_PX) -> Box:
    """The window of at most size x size px with the most detail: the largest mean gradient of luma.

    Shapes: truth (H, W, 3) uint8
    """
    # The root keeps one hard edge against the sky from outweighing a window full of texture.
    return _fullest(np.sqrt(_slope(truth)), size)


def _slope(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) float64, the length of luma's gradient."""
    luma = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    down, right = np.zeros_like(luma), np.zeros_like(luma)
    down[:-1], right[:, :-1] = np.diff(luma, axis=0), np.diff(luma, axis=1)
    return np.hypot(down, right).astype(np.float64)


def _fullest(detail: np.ndarray, size: int) -> Box:
    """The window of at most size x size px with the largest sum of (H, W) detail."""
    height, width = detail.shape
    box_h, box_w = min(size, height), min(size, width)
    total = np.pad(detail.cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # total[i, j]: sum of detail[:i, :j]
    tops = np.unique([*range(0, height - box_h + 1, _STRIDE_PX), height - box_h])
    lefts = np.unique([*range(0, width - box_w + 1, _STRIDE_PX), width - box_w])
    inside = (
        total[np.ix_(tops + box_h, lefts + box_w)]
        - total[np.ix_(tops, lefts + box_w)]
        - total[np.ix_(tops + box_h, lefts)]
        + total[np.ix_(tops, lefts)]
    )
    i, j = np.unravel_index(int(inside.argmax()), inside.shape)
    return Box(int(lefts[j]), int(tops[i]), box_w, box_h)


def failing(truth: np.ndarray, ours: np.ndarray, rival: np.ndarray | None = None, size: int = FAILURE_PX) -> Box:
    """The window in which the edges and texture of `ours` are furthest from the truth's, beyond those of `rival`.

    Of the length of luma's gradient: too little of it is blur, too much is ringing or invented texture.

    Shapes: truth, ours, rival (H, W, 3) uint8; images of other sizes than the truth are not looked at.
    """
    detail = _slope(truth)
    if ours.shape != truth.shape:
        return _fullest(detail, size)
    error = np.abs(_slope(ours) - detail)
    if rival is not None and rival.shape == truth.shape:
        error -= np.abs(_slope(rival) - detail)
    return _fullest(error, size)


def spread(count: int, most: int) -> list[int]:
    """Indices of `most` of `count` things, evenly spaced from first to last.

    >>> spread(9, 3), spread(2, 5)
    ([0, 4, 8], [0, 1])
    """
    if count <= most:
        return list(range(count))
    if most == 1:
        return [count // 2]
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def choose(
    run: Path, images: Sequence[tuple[str, str]], variants: Sequence[str], *, budget: int = BUDGET
) -> list[Shown]:
    """Crops of as many images as the budget has room for, and full frames of as many of those as still fit.

    Args:   images: (name, slug), from the hardest to the easiest; what is shown is spread evenly over them.
            variants: folders under images/, such as "input", "truth"; those without a file are left out.
    Errors: DataError for an image file that cannot be read.
    """
    present = [(name, slug) for name, slug in images if (run / "images" / "truth" / f"{slug}.png").is_file()]
    if not present:
        return []
    first = _crops(run, *present[len(present) // 2], variants)
    room = max(1, int(CROP_SHARE * budget / max(1, size(first.crops))))
    chosen = spread(len(present), min(room, MOST_IMAGES))
    shown: list[Shown] = []
    used = 0
    for i in chosen:
        candidate = first if i == len(present) // 2 else _crops(run, *present[i], variants)
        if shown and used + size(candidate.crops) > budget:
            continue
        shown.append(candidate)
        used += size(candidate.crops) + len(candidate.thumbnail)
    slugs = dict(present)
    for k, candidate in enumerate(shown):
        pixels = candidate.width * candidate.height
        expected = size(candidate.crops) * pixels / (candidate.box.width * candidate.box.height)
        # A crop is the busiest part of its image, so the frame usually takes less than this estimate.
        if candidate.whole or used + 0.6 * expected > budget:
            continue
        frames = {
            variant: lossless(read(path))
            for variant in candidate.crops
            if (path := run / "images" / variant / f"{slugs[candidate.name]}.png").is_file()
        }
        if used + size(frames) <= budget:
            used += size(frames)
            shown[k] = Shown(**{**vars(candidate), "frames": frames})
    return shown


def _crops(run: Path, name: str, slug: str, variants: Sequence[str]) -> Shown:
    truth = read(run / "images" / "truth" / f"{slug}.png")
    box = interesting(np.asarray(truth))
    small = truth.copy()
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    return Shown(name, *truth.size, box, _uri(small, "JPEG", quality=82), _cuts(run, slug, variants, box, truth), {})


def _cuts(run: Path, slug: str, variants: Sequence[str], box: Box, truth: Image.Image) -> dict[str, str]:
    """Variant -> the box of its image as a data URI, of those that have one."""
    paths = {variant: run / "images" / variant / f"{slug}.png" for variant in variants}
    return {
        variant: lossless(_cut(read(path), box, truth.size)) for variant, path in paths.items() if path.is_file()
    }  # fmt: skip


def failure(run: Path, slug: str, ours: str, rival: str | None) -> tuple[Box, dict[str, str]] | None:
    """The window in which a loss fails, and its crops: input, ours, rival, truth. None when one of the images that
    decide is missing.

    Args:   slug: of the image. ours, rival: the folders of the two losses under images/.
    Errors: DataError for an image file that cannot be read.
    """
    named = [folder for folder in ("truth", ours, rival) if folder is not None]
    paths = [run / "images" / folder / f"{slug}.png" for folder in named]
    if not all(path.is_file() for path in paths):
        return None
    images = [read(path) for path in paths]
    truth, own, *other = (np.asarray(image) for image in images)
    box = failing(truth, own, other[0] if other else None)
    variants = ["input", ours, *([rival] if rival else []), "truth"]
    return box, _cuts(run, slug, variants, box, images[0])


def _cut(image: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """The box, in pixels of an image of that size, from an image that may be smaller (super-resolution)."""
    x, y = image.width / size[0], image.height / size[1]
    left, top = round(box.left * x), round(box.top * y)
    return image.crop((left, top, left + max(1, round(box.width * x)), top + max(1, round(box.height * y))))


def read(path: Path) -> Image.Image:
    """An image below FOLDER/images as RGB.

    Errors: DataError when it cannot be read, or lies elsewhere: a link in a run that somebody else sent would show on
            the page, and so give away, what only you can read.
    """
    folder = next(each for each in path.parents if each.name == "images").parent
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"the run's image {path} is a link to {path.resolve()}, outside of the run. Copy it there.")
        with open_image(read_file(path, MOST_BYTES)) as image:
            return image.convert("RGB")
    except VeridicalError:
        raise
    except Exception as error:  # see files.read_image
        raise DataError(f"the run's image {path} cannot be read ({error}). Evaluate the run again.") from error


def lossless(image: Image.Image) -> str:
    """A data URI that holds every pixel as it is."""
    return _uri(image, "WEBP", lossless=True, quality=60, method=4)


def _uri(image: Image.Image, kind: str, **options: int | bool) -> str:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


def size(uris: dict[str, str]) -> int:
    """Characters of so many data URIs."""
    return sum(map(len, uris.values()))
