"""Blur from video: how far the picture moves, windows of frames that move far enough, and their means.

A clip is read twice, frame by frame: first for the motion, which decides where the windows begin and end, then for the
means. So no window is ever in memory, however long, but two sums and one frame of each.
"""

import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from veridical.core.catalog import require
from veridical.core.errors import DataError
from veridical.core.files import IMAGE_SUFFIXES, read_image
from veridical.core.options import check_number, check_whole

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm")

MOST_PIXELS = 2**26
"""Of a frame: twice those of 8K."""
_ATOMS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")  # with which MP4 and QuickTime begin

CORNERS = 300  # that are tracked at once; when fewer than half are left, they are detected afresh
BACK_PX = 1.0  # a track counts when followed back it ends so near to where it began
CUT_TRACKS = 0.2  # where fewer tracks than this share survive
CUT_LEVELS = 12.0  # and the mean grey level changes by as much (of 255), the scene has changed


@dataclass(frozen=True)
class Clip:
    """A video file, or frames in order."""

    name: str
    source: Path | tuple[Path, ...]

    @property
    def sha256(self) -> str:
        """Of the file, or of all frames."""
        digest = hashlib.sha256()
        for path in (self.source,) if isinstance(self.source, Path) else self.source:
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class Motion:
    """How a clip moves.

    Attributes: shift_px: of frame t to frame t + 1, the mean over what could be tracked (0 where nothing could).
                cuts: each t after which another scene begins.
    """

    shift_px: tuple[float, ...]
    cuts: frozenset[int] = frozenset()

    @property
    def frames(self) -> int:
        return len(self.shift_px) + 1


class Window(NamedTuple):
    """Frames start to end - 1."""

    start: int
    end: int


class Means(NamedTuple):
    """(H, W, 3) float32 in [0, 1]: the centre frame, the mean of the middle half, the mean of all."""

    window: Window
    sharp: np.ndarray
    weak: np.ndarray
    strong: np.ndarray


def clips_in(path: Path, *, frames: bool = False) -> list[Clip]:
    """The clips that a path names: a video, or all below a folder.

    Args:   frames: each folder at or below `path` that holds images is a clip, its images the frames in natural order
            (frame 9 before frame 10).
    Errors: DataError when there is none.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"there is no {path}. Expected a video ({' '.join(VIDEO_SUFFIXES)}) or a folder.")
    if path.is_file():
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise DataError(f"{path} is no video: its name ends in none of {' '.join(VIDEO_SUFFIXES)}.")
        return [Clip(path.stem, path)]
    suffixes = IMAGE_SUFFIXES if frames else VIDEO_SUFFIXES
    found: dict[Path, list[Path]] = {}
    for at, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                found.setdefault(Path(at), []).append(Path(at, name))
    if not found:
        what = "frames" if frames else "video"
        raise DataError(f"{path} holds no {what} at any depth. Their names end in {' '.join(suffixes)}.")

    def below(each: Path) -> str:
        return each.relative_to(path).as_posix() if each != path else path.name

    in_order = {folder: tuple(sorted(found[folder], key=natural)) for folder in sorted(found, key=natural)}
    if frames:
        return [Clip(below(folder), files) for folder, files in in_order.items()]
    return [Clip(below(each.with_suffix("")), each) for files in in_order.values() for each in files]


def natural(path: Path) -> list[Any]:
    """Sort by it, and frame9.png comes before frame10.png.

    >>> sorted([Path("f10.png"), Path("f9.png"), Path("F1.png")], key=natural)[-1].name
    'f10.png'
    """
    parts = re.split(r"(\d+)", path.as_posix().lower())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def read_frames(clip: Clip) -> Iterator[np.ndarray]:
    """The frames in order, each (H, W, 3) uint8 RGB. Frames of 16 bits are rounded.

    Errors: DataError for a video that cannot be read, a damaged frame, or frames of two sizes; MissingExtra.
    """
    size = None
    for number, frame in enumerate(_decoded(clip)):
        if size not in (None, frame.shape):
            assert size is not None
            raise DataError(
                f"{clip.name}: frame {number} is {frame.shape[1]}x{frame.shape[0]} px, but those before are "
                f"{size[1]}x{size[0]}. The frames of a clip have one size."
            )
        size = frame.shape
        yield frame


def _decoded(clip: Clip) -> Iterator[np.ndarray]:
    if not isinstance(clip.source, Path):
        for path in clip.source:
            pixels = (read_image(path).pixels * 255).round().byte()
            yield np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
        return
    cv2 = _cv2()
    video = _opened(cv2, clip.source)
    try:
        width, height = (int(video.get(each)) for each in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if video.isOpened() and width * height > MOST_PIXELS:
            raise DataError(f"{clip.source} has frames of {width}x{height} px; up to {MOST_PIXELS} pixels are read.")
        read, frame = video.read() if video.isOpened() else (False, None)
        if not read:
            raise DataError(
                f"{clip.source} cannot be read as a video: it is damaged, empty, or of a kind that this OpenCV does "
                "not know. Copy it again, or give its frames as images in a folder."
            )
        while read:
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            read, frame = video.read()
    finally:
        video.release()


def motion_of(clip: Clip, *, progress: Callable[[int, int], None] | None = None) -> Motion:
    """Follow corners from frame to frame by Lucas and Kanade's method, there and back.

    Tracks that are lost are left out; when half are lost, corners are detected afresh. A frame without corners (a
    wall, a black frame) counts as standing still, and so does one in which nothing can be followed, unless its grey
    levels say that another scene has begun.

    Args: progress: told how many frames were read, of how many the clip says to have.
    """
    cv2 = _cv2()
    shifts: list[float] = []
    cuts: set[int] = set()
    before: np.ndarray | None = None
    points = np.zeros((0, 1, 2), np.float32)
    detected, total = 0, _said_frames(clip) if progress else 0
    for number, frame in enumerate(read_frames(clip)):
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        if before is not None:
            if len(points) < max(1, detected / 2):
                corners = cv2.goodFeaturesToTrack(before, CORNERS, 0.01, 8)
                points = np.zeros((0, 1, 2), np.float32) if corners is None else corners.astype(np.float32)
                detected = len(points)
            tracked = len(points)
            shift, points = _follow(cv2, before, grey, points)
            change = float(np.abs(grey.astype(np.int16) - before).mean())
            if len(points) < CUT_TRACKS * max(tracked, 1) and change > CUT_LEVELS:
                cuts.add(number - 1)
                shift, points = 0.0, points[:0]
            shifts.append(shift)
        before = grey
        if progress:
            progress(number + 1, max(total, number + 1))
    return Motion(tuple(shifts), frozenset(cuts))


def _said_frames(clip: Clip) -> int:
    """How many frames a clip says to have; a video may be wrong about it."""
    if not isinstance(clip.source, Path):
        return len(clip.source)
    cv2 = _cv2()
    video = _opened(cv2, clip.source)
    try:
        return max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        video.release()


def _opened(cv2: Any, path: Path) -> Any:
    """OpenCV's reader of a video file. What is no container of a film is not given to it: FFmpeg would follow a list of
    addresses, and OpenCV reads a name with a % as a row of images."""
    try:
        with path.open("rb") as stream:
            begin = stream.read(12)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from error
    film = begin[4:8] in _ATOMS or begin[:4] in (b"\x1aE\xdf\xa3", b"RIFF")
    return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG) if film else cv2.VideoCapture()


def _follow(cv2: Any, before: np.ndarray, after: np.ndarray, points: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean shift of what could be followed, and where it is now."""
    if not len(points):
        return 0.0, points
    options = {"winSize": (21, 21), "maxLevel": 4}
    there, found, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None, **options)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(after, before, there, None, **options)
    height, width = after.shape
    x, y = there[:, 0, 0], there[:, 0, 1]
    good = (found[:, 0] == 1) & (found_back[:, 0] == 1) & (x >= 0) & (y >= 0) & (x < width) & (y < height)
    good &= np.linalg.norm((back - points)[:, 0], axis=1) < BACK_PX
    if not good.any():
        return 0.0, points[:0]
    return float(np.linalg.norm((there - points)[good, 0], axis=1).mean()), there[good]


def windows(
    motion: Motion, *, shift_px: float = 25.0, least: int = 15, longest: int = 240, every: int | None = None
) -> list[Window]:
    """Windows of at least `least` frames, grown until their mean shifts add up to `shift_px`.

    Args:   longest: where it takes more frames than this, the picture stands still: the next frame is tried as start.
            every: a window begins so many frames after the one before; by default where that one ended.
    Source: Chang et al. 2023 (25 px, 15 frames). They know no longest.
    """
    check_number("the motion of a window, in px,", shift_px, low=0)
    check_whole("the least frames of a window", least, low=3)
    check_whole("the most frames of a window", longest, low=least)
    if every is not None:
        check_whole("the frames between windows", every, low=1)
    found = []
    path = np.concatenate([[0.0], np.cumsum(motion.shift_px)])  # how far from frame 0 to frame t, along the way
    bounds = [0, *(cut + 1 for cut in sorted(motion.cuts)), motion.frames]
    for first, beyond in itertools.pairwise(bounds):
        start = first
        while start + least <= beyond:
            # A millionth for what adding up many shifts loses.
            last = int(np.searchsorted(path[:beyond], path[start] + shift_px - 1e-6))
            end = max(last + 1, start + least)
            if end > beyond:
                break  # a later start has less motion before it
            if end - start > longest:
                start += 1
                continue
            found.append(Window(start, end))
            start = start + every if every else end
    return found


def no_window(clip: Clip, motion: Motion, *, shift_px: float, least: int) -> DataError:
    """The error for a clip in which `windows` finds none."""
    cut = f" in {len(motion.cuts) + 1} scenes" if motion.cuts else ""
    return DataError(
        f"{clip.name} gives no blur: it has {motion.frames} frames{cut}, which move {sum(motion.shift_px):.1f} px in "
        f"all; a window needs {least} frames that move {shift_px:g} px in all, with no cut between them. Give a longer "
        "clip or one in which more moves, or ask for less motion."
    )


def means(clip: Clip, wanted: Sequence[Window], *, linear_light: bool = False) -> Iterator[Means]:
    """What a slow shutter would have seen, window by window in the order of their ends.

    Args:   wanted: windows of this clip, which may overlap. linear_light: undo the sRGB curve before the mean and do it
            again after, as light adds up; else the mean is of the numbers in the file, as the paper's.
    """
    waiting = sorted(wanted)
    if not waiting:
        return
    light = srgb_to_light(np.arange(256) / 255.0)
    open_now: list[_Sums] = []
    for number, frame in enumerate(read_frames(clip)):
        while waiting and waiting[0].start == number:
            open_now.append(_Sums(waiting.pop(0), frame.shape))
        if open_now:
            values = light[frame] if linear_light else frame
            for sums in open_now:
                sums.add(number, frame, values)
        done = [sums for sums in open_now if sums.window.end == number + 1]
        open_now = [sums for sums in open_now if sums.window.end > number + 1]
        for sums in done:
            yield sums.means(linear_light=linear_light)
        if not waiting and not open_now:
            return
    if waiting or open_now:
        raise DataError(f"{clip.name} changed while it was read: its frames end before its windows do.")


class _Sums:
    def __init__(self, window: Window, shape: tuple[int, ...]) -> None:
        self.window = window
        count = window.end - window.start
        self.middle = range(window.start + count // 4, window.end - count // 4)
        self.centre = window.start + count // 2
        self.all, self.half = np.zeros(shape), np.zeros(shape)
        self.sharp = np.zeros(0)

    def add(self, number: int, frame: np.ndarray, values: np.ndarray) -> None:
        self.all += values
        if number in self.middle:
            self.half += values
        if number == self.centre:
            self.sharp = frame.copy()

    def means(self, *, linear_light: bool) -> Means:
        def mean(total: np.ndarray, count: int) -> np.ndarray:
            value = light_to_srgb(total / count) if linear_light else total / (255.0 * count)
            return value.astype(np.float32)

        count = self.window.end - self.window.start
        return Means(
            self.window,
            (self.sharp / 255.0).astype(np.float32),
            mean(self.half, len(self.middle)),
            mean(self.all, count),
        )


def srgb_to_light(value: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1: what a screen shows for it, in [0, 1].

    >>> round(float(srgb_to_light(np.array(0.5))), 4)
    0.214
    """
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def light_to_srgb(light: np.ndarray) -> np.ndarray:
    """The inverse of `srgb_to_light`."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055)


def _cv2() -> Any:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what it would print of a damaged file, our error says
    return require("cv2", "compare", "reading video and following its motion")
