"""Triplets (sharp, weak, strong): one picture as it is, degraded a little, and degraded more.

From photographs: any degradation at two strengths. From video: means over half a window and over a whole one. A triplet
is a pure function of (seed, index), whatever else is asked for.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from veridical.core.errors import BadOption, DataError
from veridical.core.files import IMAGE_SUFFIXES
from veridical.core.options import check_whole
from veridical.degradations import Degradation, degradation
from veridical.degradations.tasks import TASKS
from veridical.training.data import Photograph, TrainingSamples, generator_for, hold_out, photographs_in, pick, turned
from veridical.training.photographs import demo_photographs
from veridical.training.video import VIDEO_SUFFIXES, Clip, Window, clips_in, means, motion_of, no_window, windows

# What an adapter for each task learns to order. Other strengths: --weak and --strong.
STRENGTHS: dict[str, tuple[str, str]] = {
    "deblur": ("camera-shake(size=15)", "camera-shake(size=31)"),
    "defocus": ("disc-blur(radius_px=(1, 2))", "disc-blur(radius_px=(2, 4))"),
    "denoise": ("gaussian-noise(sigma_8bit=10)", "gaussian-noise(sigma_8bit=25)"),
    "super-resolve": (
        "bicubic-downscale(scale=2) + bicubic-upscale(scale=2)",
        "bicubic-downscale(scale=4) + bicubic-upscale(scale=4)",
    ),
    "jpeg": ("jpeg(quality=50)", "jpeg(quality=20)"),
    "demosaic": (
        "bayer-mosaic(pattern=rggb, noise_sigma_8bit=2)",
        "bayer-mosaic(pattern=rggb, noise_sigma_8bit=20)",
    ),
}
assert STRENGTHS.keys() == {task.learned for task in TASKS.values()}


class Triplet(NamedTuple):
    """Each (3, crop, crop) float32, nominal [0, 1]."""

    sharp: Tensor
    weak: Tensor
    strong: Tensor


class Triplets(ABC):
    """Triplets in a fixed order, made anew and alike on each iteration, one after the other.

    Attributes: crop: their side in px. label: what makes weak and strong. data: what they are made of, to be noted:
                name and sha256 of each source.
    """

    crop: int
    label: str
    data: list[dict[str, str]]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __iter__(self) -> Iterator[Triplet]: ...


@dataclass(frozen=True)
class TwoStrengths:
    """A degradation that gives the weak and the strong image one above the other: (3, H, W) -> (6, H, W).

    Both draw from the same state of the generator: of one shake or one pattern of noise, more or less. So the two
    differ by strength alone, as far as the degradations draw alike.
    """

    weak: Degradation
    strong: Degradation

    @property
    def label(self) -> str:
        return f"weak: {self.weak.label}; strong: {self.strong.label}"

    @property
    def scale(self) -> object:
        return next((each.scale for each in (self.weak, self.strong) if each.scale != 1), 1)

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        again = torch.Generator()
        again.set_state(generator.get_state())
        return torch.cat([self.weak(image, again), self.strong(image, generator)])


def two_strengths(task: str | None, weak: str | None = None, strong: str | None = None) -> TwoStrengths:
    """The two strengths of a task, or those that are given.

    Errors: BadOption when one of the two is missing, or both are the same.
    """
    if (weak is None) != (strong is None):
        raise BadOption("give both --weak and --strong, such as 'jpeg(quality=50)' and 'jpeg(quality=20)', or neither.")
    if weak is None or strong is None:
        if task is None:
            raise BadOption("say what to order: a task (--task deblur), or two strengths (--weak SPEC --strong SPEC).")
        if task not in STRENGTHS:
            raise BadOption(f"the task {task!r} has no strengths of its own: give --weak SPEC and --strong SPEC.")
        weak, strong = STRENGTHS[task]
    two = TwoStrengths(degradation(weak), degradation(strong))
    if two.weak.label == two.strong.label:
        raise BadOption(f"weak and strong are both {two.weak.label!r}; nothing could be ordered by them.")
    return two


class PhotographTriplets(Triplets):
    """Crops of photographs, at two strengths of a degradation.

    Args:   photographs: those that cannot be read or are smaller than `crop` are skipped. count: how many triplets.
            flips: turn and mirror at random. progress: called with (done, of) while files are read.
    Errors: DataError when no photograph is left, or a degradation changes the size.
    """

    def __init__(
        self,
        photographs: Sequence[Photograph],
        two: TwoStrengths,
        *,
        crop: int,
        count: int,
        seed: int,
        flips: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        check_whole("the number of triplets", count, low=1)
        if two.scale != 1:
            raise DataError(
                f"the images of a triplet have one size, but {two.label} makes them {two.scale} times smaller. "
                "Enlarge them again: 'bicubic-downscale(scale=4) + bicubic-upscale(scale=4)'."
            )
        self.crop, self.count, self.label = crop, count, two.label
        self.samples = TrainingSamples(photographs, two, crop=crop, seed=seed, flips=flips, progress=progress)
        self.skipped = self.samples.skipped
        used = [pair.sharp for pair in self.samples.items]
        digest = hashlib.sha256()
        for photograph in sorted(used, key=lambda each: each.name):
            source = photograph.source
            held = source.read_bytes() if isinstance(source, Path) else source.numpy().tobytes()
            digest.update(photograph.name.encode() + b"\0" + hashlib.sha256(held).digest())
        self.data = [{"name": f"{len(used)} photographs", "sha256": digest.hexdigest()}]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Triplet:
        degraded, sharp = self.samples[index]
        return Triplet(sharp, degraded[:3], degraded[3:])

    def __iter__(self) -> Iterator[Triplet]:
        return (self[index] for index in range(self.count))


class VideoTriplets(Triplets):
    """Crops of windows of video: the centre frame, the mean of the middle half, the mean of all.

    The windows share the triplets evenly; each clip is streamed. A crop's place and turn are drawn from (seed, clip,
    start of its window, which crop of it).

    Args:   wanted: the windows of each clip. linear_light: see `video.means`.
    Errors: DataError when there is no window, or the frames are smaller than a crop.
    """

    def __init__(
        self,
        wanted: Mapping[Clip, Sequence[Window]],
        *,
        crop: int,
        count: int,
        seed: int,
        flips: bool = True,
        linear_light: bool = False,
    ) -> None:
        check_whole("the number of triplets", count, low=1)
        self.wanted = {clip: list(each) for clip, each in wanted.items()}
        self.crop, self.count, self.seed, self.flips, self.linear_light = crop, count, seed, flips, linear_light
        total = sum(map(len, self.wanted.values()))
        if not total:
            raise DataError("there is no window in these clips.")
        shares = [count * (place + 1) // total - count * place // total for place in range(total)]
        places = ((clip, window) for clip, each in self.wanted.items() for window in each)
        self.shares = {place: share for place, share in zip(places, shares, strict=True) if share}
        self.label = f"means over windows of video{' in linear light' if linear_light else ''}"
        self.data = [
            {"name": clip.name, "sha256": clip.sha256, "windows": " ".join(f"{w.start}-{w.end - 1}" for w in each)}
            for clip, each in self.wanted.items()
        ]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Triplet]:
        for clip, each in self.wanted.items():
            shared = [window for window in each if (clip, window) in self.shares]
            for seen in means(clip, shared, linear_light=self.linear_light):
                for number in range(self.shares[clip, seen.window]):
                    generator = generator_for(self.seed, "window", clip.name, seen.window.start, number)
                    yield self._cut(clip, (seen.sharp, seen.weak, seen.strong), generator)

    def _cut(self, clip: Clip, images: Sequence[np.ndarray], generator: torch.Generator) -> Triplet:
        height, width = images[0].shape[:2]
        if min(height, width) < self.crop:
            raise DataError(f"{clip.name} is {width}x{height} px, smaller than a crop of {self.crop} px.")
        top, left = pick(height - self.crop + 1, generator), pick(width - self.crop + 1, generator)
        turn = pick(8, generator) if self.flips else 0
        parts = (torch.from_numpy(image[top : top + self.crop, left : left + self.crop]) for image in images)
        return Triplet(*(turned(part.permute(2, 0, 1), turn) for part in parts))


def triplets_from(
    data: Sequence[Path],
    validate: Sequence[Path] = (),
    *,
    crop: int,
    count: int,
    validation_count: int,
    seed: int,
    task: str | None = None,
    weak: str | None = None,
    strong: str | None = None,
    frames: bool = False,
    linear_light: bool = False,
    shift_px: float = 25.0,
    least: int = 15,
    every: int | None = None,
    doing: Callable[[str, int, int], None] = lambda what, done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[Triplets, Triplets]:
    """(to learn from, to validate on), of photographs or of video, whichever lies there.

    Args:   data: folders of photographs, or videos and folders of them; none for the demo's photographs. validate:
            others to validate on; by default photographs held out of `data`, or the last fifth of each clip. task,
            weak, strong: see `two_strengths`; video is of the task deblur. frames: the images of a folder are the
            frames of a clip. shift_px, least, every: see `video.windows`. doing: told of progress. note: told what a
            user should know.
    Errors: DataError, BadOption, UnknownName, MissingExtra.
    """
    if not data and (validate or frames):
        raise BadOption("no data were named to learn from: give photographs or videos with --data.")
    of_video = {_is_video(Path(path), frames) for path in (*data, *validate)}
    if len(of_video) > 1:
        raise DataError("photographs and videos cannot be mixed; for images that are frames of a clip, add --frames.")
    if True not in of_video:
        two = two_strengths(task, weak, strong)
        learn, held = _photographs(data), _photographs(validate)
        if not data:
            learn, held = ([Photograph(*each) for each in side] for side in demo_photographs())
        elif not validate:
            learn, held = hold_out(learn)
        parts: list[PhotographTriplets] = []
        for photographs, number, own in ((learn, count, seed), (held, validation_count, -1 - seed)):
            what = "photographs to validate on" if parts else "photographs to learn from"
            made = PhotographTriplets(
                photographs, two, crop=crop, count=number, seed=own, progress=partial(doing, what)
            )
            for skipped in made.skipped:
                note(f"left out: {skipped.reason}")
            parts.append(made)
        return parts[0], parts[1]
    if task not in (None, "deblur") or weak is not None or strong is not None:
        raise BadOption(
            "video gives triplets of motion blur alone (--task deblur), as strong as the motion is; for "
            f"{task if task not in (None, 'deblur') else 'strengths of your own'} give photographs."
        )

    found = partial(_windows, frames=frames, shift_px=shift_px, least=least, every=every, doing=doing, note=note)
    learn_on, hold = (found(data), found(validate)) if validate else split_windows(found(data))
    make = partial(VideoTriplets, crop=crop, linear_light=linear_light)
    return make(learn_on, count=count, seed=seed), make(hold, count=validation_count, seed=-1 - seed)


def _windows(
    paths: Sequence[Path],
    *,
    frames: bool,
    shift_px: float,
    least: int,
    every: int | None,
    doing: Callable[[str, int, int], None],
    note: Callable[[str], None],
) -> dict[Clip, list[Window]]:
    """The windows of all clips that have any; those that have none are noted."""
    found: dict[Clip, list[Window]] = {}
    problems = []
    for clip in [clip for path in paths for clip in clips_in(Path(path), frames=frames)]:
        motion = motion_of(clip, progress=partial(doing, f"motion of {clip.name}"))
        each = windows(motion, shift_px=shift_px, least=least, every=every)
        if not each:
            problems.append(no_window(clip, motion, shift_px=shift_px, least=least))
            continue
        found[clip] = each
        lengths = [window.end - window.start for window in each]
        cuts = f", {len(motion.cuts)} cut(s)" if motion.cuts else ""
        spread = f"{min(lengths)} to {max(lengths)}"
        note(f"{clip.name}: {motion.frames} frames{cuts}, {len(each)} window(s) of {spread} frames")
    if not found:
        raise problems[0]
    for problem in problems:
        note(f"left out: {problem}")
    return found


def _is_video(path: Path, frames: bool) -> bool:
    if not path.exists():
        raise DataError(f"there is no {path}. Expected a folder of photographs, a video, or a folder of videos.")
    if frames or not path.is_dir():
        return True
    suffixes = {each.suffix.lower() for each in path.rglob("*") if not each.name.startswith(".")}
    photographs, videos = suffixes & set(IMAGE_SUFFIXES), suffixes & set(VIDEO_SUFFIXES)
    if photographs and videos:
        raise DataError(f"{path} holds both images and videos; give folders or files of one kind.")
    return bool(videos)


def _photographs(folders: Sequence[Path]) -> list[Photograph]:
    """Of all folders; where there are several, each name begins with its folder's."""
    several = len(folders) > 1
    return [
        Photograph(f"{place}-{folder.name}/{photograph.name}" if several else photograph.name, photograph.source)
        for place, folder in enumerate(map(Path, folders), start=1)
        for photograph in photographs_in(folder)
    ]


def split_windows(found: Mapping[Clip, Sequence[Window]]) -> tuple[dict[Clip, list[Window]], dict[Clip, list[Window]]]:
    """(to learn from, to validate on): of each clip the last fifth of its windows, and no frame in both.

    Errors: DataError when too few windows are left to learn from.
    """
    learn: dict[Clip, list[Window]] = {}
    validate: dict[Clip, list[Window]] = {}
    for clip, each in found.items():
        in_order = sorted(each)
        held = in_order[-max(1, round(len(in_order) / 5)) :] if len(in_order) > 1 else []
        learn[clip] = [window for window in in_order if not held or window.end <= held[0].start]
        validate[clip] = held
    for part, what in ((learn, "learn from"), (validate, "validate on")):
        if not any(part.values()):
            total = sum(map(len, found.values()))
            raise DataError(
                f"the {total} window{'s' if total != 1 else ''} of {', '.join(clip.name for clip in found)} cannot be "
                f"split into some to learn from and some to validate on: none is left to {what}. Give a longer clip, "
                "or others to validate on (--validate)."
            )
    return learn, validate


def picture(rows: Sequence[Triplet]) -> Image.Image:
    """Triplets, one a row, for people to look at: sharp, weak, strong."""
    crop = rows[0].sharp.shape[-1]
    side = crop * max(1, 192 // crop)
    gap, head = 4, 18
    sheet = Image.new("RGB", (3 * side + 4 * gap, head + len(rows) * (side + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(Triplet._fields):
        draw.text((gap + column * (side + gap), 3), name, fill="black")
        for row, triplet in enumerate(rows):
            pixels = (triplet[column].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            tile = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(tile, (gap + column * (side + gap), head + row * (side + gap)))
    return sheet
