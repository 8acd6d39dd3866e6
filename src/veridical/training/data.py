"""Training samples and evaluation pairs, every one of them a pure function of (seed, place).

Sample `index` is drawn from a generator of its own, seeded with a hash of (seed, index). So every loss of a
comparison sees the same crops, flips and noise in the same order, whatever the worker count, resumed or not.
"""

import copy
import hashlib
import signal
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from veridical.core.colour import luma
from veridical.core.errors import DataError
from veridical.core.files import find_images, read_image
from veridical.degradations import blur_of

# Decoded photographs kept in memory, together, at the depth of their files.
CACHE_BYTES = 2 * 2**30
# A training crop is cut from a degraded window that is larger by this on each side (where the photograph
# allows), so that the border rule of a blur of up to 33 px stays outside. A multiple of 16: JPEG's blocks
# with halved colour, a Bayer pattern and a resize's grid then stand in the crop as they stand in a whole
# image. Of an image that shrinks, it is px of the small one.
MARGIN_PX = 16
# Of so many workers that were killed, the last has no successor.
DEATHS = 3


class Degradation(Protocol):
    """What is needed of a degradation here; `veridical.degradation(spec)` makes one."""

    @property
    def label(self) -> str: ...
    @property
    def scale(self) -> object: ...
    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor: ...


class Photograph(NamedTuple):
    """A named photograph: a file, or an image (C, H, W) in [0, 1] that is in memory already."""

    name: str
    source: Path | Tensor


class Pair(NamedTuple):
    """A degraded photograph and the sharp one of the same scene: of its size, or a whole number of times larger."""

    name: str
    degraded: Photograph
    sharp: Photograph


Named = TypeVar("Named", Photograph, Pair)


class EvaluationPair(NamedTuple):
    """degraded: (C, H, W) float32. sharp: (C, scale * H, scale * W).

    kernel: of the blur in `degraded`, where it is known: float64 (h, w), sums to 1, of a true convolution.
    """

    name: str
    degraded: Tensor
    sharp: Tensor
    kernel: Tensor | None = None


@dataclass(frozen=True)
class Skipped:
    """A photograph that could not be used, and why."""

    name: str
    reason: str


def generator_for(seed: int, *place: int | str) -> torch.Generator:
    """A CPU generator for one place of a run, independent of every other: seeded by BLAKE2b of both.

    >>> generator_for(0, 5).initial_seed() == generator_for(0, 5).initial_seed()
    True
    """
    text = "/".join(map(str, (seed, *place))).encode()
    mixed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1  # 63 bits: never negative
    return torch.Generator().manual_seed(mixed)


def pick(count: int, generator: torch.Generator) -> int:
    """One of 0 ... count - 1, each as likely as another."""
    return int(torch.randint(count, (), generator=generator))


def turned(image: Tensor, turn: int) -> Tensor:
    """One of the 8 turns and flips of (C, H, W): `turn` quarter turns; from 4 on, mirrored afterwards."""
    image = image.rot90(turn % 4, (1, 2))
    return (image.flip(2) if turn >= 4 else image).contiguous()


def photographs_in(folder: Path) -> list[Photograph]:
    """The images below `folder`, named by their paths inside it: without suffix unless two would then be one."""
    paths = find_images(folder)
    stems = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    times = Counter(stems)
    return [
        Photograph(stem if times[stem] == 1 else path.relative_to(folder).as_posix(), path)
        for stem, path in zip(stems, paths, strict=True)
    ]


def pairs_in(degraded: Path, sharp: Path) -> list[Pair]:
    """Pairs of two folders, matched by path inside the folder without the suffix.

    Errors: DataError when a name stands on one side only (lists the first of each side).
    """
    left, right = ({photo.name: photo for photo in photographs_in(folder)} for folder in (degraded, sharp))
    only_left, only_right = sorted(left.keys() - right.keys()), sorted(right.keys() - left.keys())
    if only_left or only_right:
        raise DataError(
            f"the names in {degraded} and {sharp} do not match. A pair has one name in both folders, "
            f"whatever the suffix. Only in the first: {_first(only_left)}. Only in the second: {_first(only_right)}."
        )
    return [Pair(name, left[name], right[name]) for name in left]


def hold_out(items: Sequence[Named], count: int | None = None) -> tuple[list[Named], list[Named]]:
    """Split photographs or pairs into (train, evaluate): the `count` whose names hash lowest are held out.

    The choice depends on the names alone, so a photograph added later rarely moves another.

    Args:   count: how many to hold out; by default one in eight, at least 1 and at most 24.
    Errors: DataError when nothing would be left to train on.
    """
    count = min(24, max(1, len(items) // 8)) if count is None else count
    if len(items) <= count:
        raise DataError(
            f"{len(items)} photograph(s) cannot be split into some to train on and {count} to evaluate on. "
            "Give more, or a folder of each."
        )
    ranked = sorted(items, key=lambda item: hashlib.blake2b(item.name.encode()).digest())
    held = {item.name for item in ranked[:count]}
    return [i for i in items if i.name not in held], [i for i in items if i.name in held]


class Store:
    """Photographs decoded once and kept, as many as fit into `cache_bytes`, the least recently used given up
    first.

    In a DataLoader's worker, which has a memory of its own, the limit is divided by the number of workers.
    """

    def __init__(self, *, channels: int, cache_bytes: int = CACHE_BYTES) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (luma) or 3 (RGB), but got {channels!r}.")
        self.channels = channels
        self.cache_bytes = cache_bytes
        self._kept: OrderedDict[Path, np.ndarray] = OrderedDict()
        self._bytes = 0
        self._sizes: dict[Path, tuple[int, int]] = {}

    def __getstate__(self) -> dict[str, object]:
        """A worker that is started afresh decodes for itself, instead of being sent every photograph."""
        return {**self.__dict__, "_kept": OrderedDict(), "_bytes": 0}

    def samples(self, photograph: Photograph) -> np.ndarray | Tensor:
        """(C, H, W): uint8 or uint16 of a file, or the float tensor that was given."""
        source = photograph.source
        if isinstance(source, Tensor):
            return self._adapt(source)
        if source in self._kept:
            self._kept.move_to_end(source)
            return self._kept[source]
        pixels = decode(source)
        self.keep(source, pixels)
        return pixels

    def window(self, photograph: Photograph, top: int, left: int, height: int, width: int) -> Tensor:
        """A part of a photograph: (channels, height, width) float32 in [0, 1]."""
        samples = self.samples(photograph)[:, top : top + height, left : left + width]
        if isinstance(samples, Tensor):
            return samples.to(torch.float32)
        peak = np.iinfo(samples.dtype).max
        return self._adapt(torch.from_numpy(samples.astype(np.float32) / peak))

    def whole(self, photograph: Photograph) -> Tensor:
        """A whole photograph: (channels, H, W) float32 in [0, 1]."""
        return self.window(photograph, 0, 0, *self.size(photograph))

    def size(self, photograph: Photograph) -> tuple[int, int]:
        """(H, W), without decoding a file that was decoded before."""
        source = photograph.source
        if isinstance(source, Path) and source in self._sizes:
            return self._sizes[source]
        height, width = self.samples(photograph).shape[-2:]
        return int(height), int(width)

    def keep(self, path: Path, pixels: np.ndarray) -> None:
        """Remember what `decode` gave, if it fits."""
        self._sizes[path] = (pixels.shape[1], pixels.shape[2])
        worker = get_worker_info()
        limit = self.cache_bytes // (worker.num_workers if worker else 1)
        if path in self._kept or pixels.nbytes > limit:
            return
        self._kept[path] = pixels
        self._bytes += pixels.nbytes
        while self._bytes > limit:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes

    def forget(self) -> None:
        """Give up what was decoded."""
        self._kept.clear()
        self._bytes = 0

    def _adapt(self, image: Tensor) -> Tensor:
        if self.channels == 1:
            return luma(image[None])[0]
        return image.expand(3, -1, -1)


def decode(path: Path) -> np.ndarray:
    """A file's pixels at its own depth: (1 or 3, H, W), uint8 or uint16. Errors: as `read_image`."""
    image = read_image(path, channels=None)
    peak = 2**image.bits - 1
    return (image.pixels * peak).round().numpy().astype(np.uint8 if image.bits == 8 else np.uint16)


def _usable(
    items: Sequence[Pair],
    store: Store,
    least: int,
    what: str,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Pair], list[Skipped], int]:
    """Every pair whose files decode and are large enough; the others with their reasons; and how many times larger
    than the degraded photographs the sharp ones are.

    Each file is decoded once, on several threads, because a file cut short shows only then.
    """

    def read(pair: Pair) -> dict[Path, np.ndarray] | DataError:
        try:
            paths = {photo.source for photo in (pair.degraded, pair.sharp) if isinstance(photo.source, Path)}
            return {path: decode(path) for path in paths}
        except DataError as error:
            return error

    usable: list[Pair] = []
    skipped: list[Skipped] = []
    by_scale: dict[int, Pair] = {}
    pool = ThreadPoolExecutor(max_workers=8)
    try:
        for done, (pair, decoded) in enumerate(zip(items, pool.map(read, items), strict=True), start=1):
            if isinstance(decoded, DataError):
                skipped.append(Skipped(pair.name, str(decoded)))
            else:
                for path, pixels in decoded.items():
                    store.keep(path, pixels)
                scale, reason = _scale_of(pair, store), _fault(pair, store, least, what)
                if reason:
                    skipped.append(Skipped(pair.name, reason))
                else:
                    usable.append(pair)
                    by_scale.setdefault(scale, pair)
            if progress:
                progress(done, len(items))
    finally:
        pool.shutdown(cancel_futures=True)
    if not usable:
        reasons = "\n  ".join(each.reason for each in skipped[:3]) or "none was given."
        raise DataError(f"none of the {len(items)} image(s) can be used for {what}:\n  {reasons}")
    if len(by_scale) > 1:
        listed = ", ".join(f"{scale} in {pair.name!r}" for scale, pair in sorted(by_scale.items()))
        raise DataError(
            f"the sharp photographs are not all as many times larger than the degraded ones: {listed}. "
            "One model enlarges all of them alike: name a folder for each scale."
        )
    return usable, skipped, next(iter(by_scale))


def _scale_of(pair: Pair, store: Store) -> int:
    """How many times larger the sharp photograph is. Errors: DataError unless it is a whole number, the same in both
    directions."""
    (height, width), (low, narrow) = store.size(pair.sharp), store.size(pair.degraded)
    scale = height // low
    if scale < 1 or (height, width) != (scale * low, scale * narrow):
        raise DataError(
            f"the pair {pair.name!r} has two sizes: {_where(pair.degraded)} is {narrow}x{low} px, "
            f"{_where(pair.sharp)} is {width}x{height}. Both must show the same scene at the same size, or the sharp "
            "one at a whole multiple of it."
        )
    return scale


def _fault(pair: Pair, store: Store, least: int, what: str) -> str | None:
    """Why a pair that decodes is skipped, or None."""
    height, width = store.size(pair.sharp)
    if min(height, width) < least:
        return f"{_where(pair.sharp)} is {width}x{height} px, but {what} need at least {least}x{least}."
    return None


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Sample `index` -> (degraded, sharp), float32: (channels, crop / scale, crop / scale) and (channels, crop, crop).
    There is no last index.

    Attributes: items: what is sampled. skipped: the photographs that could not be used, with reasons. scale: how many
                times larger the sharp image is; crops begin at multiples of it.
    """

    def __init__(
        self,
        items: Sequence[Pair],
        *,
        crop: int,
        seed: int,
        channels: int = 3,
        flips: bool = True,
        cache_bytes: int = CACHE_BYTES,
        progress: Callable[[int, int], None] | None = None,
        scale: int | None = None,
    ) -> None:
        if crop < 1:
            raise ValueError(f"crop must be at least 1 px, but got {crop!r}.")
        self.store = Store(channels=channels, cache_bytes=cache_bytes)
        self.crop, self.seed, self.flips = crop, seed, flips
        self.items, self.skipped, found = _usable(items, self.store, crop, f"training crops of {crop} px", progress)
        self.scale = found if scale is None else scale
        if crop % self.scale:
            below = crop - crop % self.scale
            fitting = " or ".join(str(each) for each in (below, below + self.scale) if each)
            raise DataError(
                f"training crops of {crop} px cannot shrink {self.scale} times: the side must be a multiple of "
                f"{self.scale}. Set training.crop to {fitting}."
            )

    def with_seed(self, seed: int) -> Self:
        """Other samples of the same photographs, which both keep decoded in one place."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def name(self, index: int) -> str:
        """The file, or the name, of the photograph that sample `index` is of; nothing is read for it."""
        return _where(self.items[pick(len(self.items), generator_for(self.seed, index))].sharp)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = generator_for(self.seed, index)
        pair = self.items[pick(len(self.items), generator)]
        height, width = self.store.size(pair.sharp)
        top, left = (self.scale * pick((side - self.crop) // self.scale + 1, generator) for side in (height, width))
        turn = pick(8, generator) if self.flips else 0
        return self._cut(pair, top, left, turn, generator)

    def _cut(self, pair: Pair, top: int, left: int, turn: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class TrainingSamples(Samples):
    """Samples of sharp photographs, degraded as they are drawn.

    The sample's generator chooses, in this order: photograph, row, column, one of the 8 turns and flips, and
    then whatever the degradation draws. Every photograph is as likely as another, and so is every place in
    it.

    Args:   photographs: to sample from; those that cannot be read or are smaller than `crop` are skipped.
            degradation: may make the image smaller by a whole `scale`; `crop` must then be a multiple of it.
            crop: side of a sharp sample, in px. channels: 3, or 1 for BT.601 luma. flips: turn and mirror at
            random.
            cache_bytes: limit of the decoded photographs kept. progress: called with (done, of) while files
            are read.
    Errors: DataError when no photograph is left, the degradation enlarges, or `crop` does not fit its scale.
    """

    def __init__(
        self,
        photographs: Sequence[Photograph | tuple[str, Tensor]],
        degradation: Degradation,
        *,
        crop: int,
        seed: int,
        channels: int = 3,
        flips: bool = True,
        cache_bytes: int = CACHE_BYTES,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.degradation = degradation
        super().__init__(
            [Pair(photo.name, photo, photo) for photo in _named(photographs)],
            crop=crop,
            seed=seed,
            channels=channels,
            flips=flips,
            cache_bytes=cache_bytes,
            progress=progress,
            scale=_shrinks_by(degradation),
        )

    def _cut(self, pair: Pair, top: int, left: int, turn: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        height, width = self.store.size(pair.sharp)
        # What is left on each side of the crop, in whole multiples of the margin: 0 or 1.
        margin = self.scale * MARGIN_PX
        above, below = (margin * (room >= margin) for room in (top, height - top - self.crop))
        before, after = (margin * (room >= margin) for room in (left, width - left - self.crop))
        window = self.store.window(
            pair.sharp, top - above, left - before, above + self.crop + below, before + self.crop + after
        )
        for _ in range(turn % 4):
            window = window.rot90(1, (1, 2))
            above, after, below, before = after, below, before, above
        if turn >= 4:
            window = window.flip(2)
            before, after = after, before
        window = window.contiguous()
        # Not self.scale: what has shrunk may have been enlarged again.
        shrunk = _shrinks_by(self.degradation)
        degraded = _part(self.degradation(window, generator), above // shrunk, before // shrunk, self.crop // shrunk)
        return degraded.contiguous(), _part(window, above, before, self.crop).contiguous()


def _part(image: Tensor, top: int, left: int, side: int) -> Tensor:
    return image[:, top : top + side, left : left + side]


class PairSamples(Samples):
    """Samples of real pairs: the same crop and turn of a degraded photograph and of its sharp one.

    Args:   items: of `pairs_in`; those with a file that cannot be read or is smaller than `crop` are skipped.
            Others as for TrainingSamples.
    Errors: DataError when no pair is left, when the sharp photographs are not all the same whole number of times as
            large as the degraded ones, or when `crop` does not fit that number.
    """

    def _cut(self, pair: Pair, top: int, left: int, turn: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        del generator
        low, narrow, side = (each // self.scale for each in (top, left, self.crop))
        degraded = self.store.window(pair.degraded, low, narrow, side, side)
        return turned(degraded, turn), turned(self.store.window(pair.sharp, top, left, self.crop, self.crop), turn)


def share_of(step: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> range:
    """The samples of a process in a step (from 1): its equal share of the batch that follows the one before."""
    share = batch_size // world_size
    first = (step - 1) * batch_size + rank * share
    return range(first, first + share)


def names_of(samples: Dataset[tuple[Tensor, Tensor]], place: range) -> list[str]:
    """The files of samples, as far as they are known."""
    name = getattr(samples, "name", None)
    return [name(index) if callable(name) else f"sample {index}" for index in place]


def batches(
    samples: Dataset[tuple[Tensor, Tensor]],
    *,
    batch_size: int,
    start_step: int,
    steps: int,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    note: Callable[[str], None] | None = None,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """The batches (degraded, sharp), each (B, C, H, W) of its own size, of the steps start_step + 1 to `steps`.

    Batch k holds the samples (k - 1) * batch_size onwards, whatever `workers` and wherever one starts. With
    several processes (`world_size`), process `rank` gets its equal share of every batch. When a worker is killed,
    others take its place, and make the same batches.

    Args:   note: told when a worker was killed.
    Errors: DataError when a batch cannot be shared equally; and that of a sample, when its turn comes.
    """
    if batch_size % world_size:
        raise DataError(
            f"a batch of {batch_size} cannot be shared equally by {world_size} devices; "
            "set training.batch_size to a multiple of training.devices."
        )
    places = [
        share_of(step, batch_size=batch_size, rank=rank, world_size=world_size)
        for step in range(start_step + 1, steps + 1)
    ]
    if workers == 0:
        return (_made_here(samples, place) for place in places)
    return _made_by_workers(samples, places, start_step, workers, pin_memory, note or (lambda text: None))


class EvaluationPairs:
    """Whole images to evaluate on, each an EvaluationPair, made anew on each iteration and always the same.

    A sharp photograph that the degradation makes smaller is cut, below and on the right, to multiples of its scale.

    Attributes: skipped: the photographs that could not be used, with reasons. scale: how many times larger the sharp
                image is than the degraded one.
    """

    def __init__(
        self,
        items: Sequence[Pair],
        *,
        degradation: Degradation | None,
        seed: int,
        channels: int,
        min_size: int,
        cache_bytes: int,
        kernels: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.store = Store(channels=channels, cache_bytes=cache_bytes)
        self.degradation, self.seed, self.kernels = degradation, seed, kernels or {}
        shrunk = 1 if degradation is None else _shrinks_by(degradation)
        least = shrunk * -(-min_size // shrunk)
        self.items, self.skipped, found = _usable(items, self.store, least, "evaluation images", None)
        self.scale = found if degradation is None else shrunk

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> list[str]:
        return [pair.name for pair in self.items]

    def part(self, number: int, of: int) -> Self:
        """Every `of`-th pair, from `number` on: the same images as among all."""
        other = copy.copy(self)
        other.items = self.items[number::of]
        return other

    def size(self, pair: Pair) -> tuple[int, int]:
        """(H, W) of a sharp image as it is evaluated."""
        height, width = self.store.size(pair.sharp)
        return height - height % self.scale, width - width % self.scale

    def __iter__(self) -> Iterator[EvaluationPair]:
        for pair in self.items:
            sharp = self.store.window(pair.sharp, 0, 0, *self.size(pair))
            if self.degradation is None:
                yield EvaluationPair(pair.name, self.store.whole(pair.degraded), sharp, self.kernels.get(pair.name))
                continue
            degraded = self.degradation(sharp, self._generator(pair))
            blur = blur_of(self.degradation)
            # Of a generator that stands where the degradation's stood, so of the same draw.
            yield EvaluationPair(pair.name, degraded, sharp, blur.kernel(self._generator(pair)) if blur else None)

    def _generator(self, pair: Pair) -> torch.Generator:
        return generator_for(self.seed, "evaluate", pair.name)


def evaluation_photographs(
    photographs: Sequence[Photograph | tuple[str, Tensor]],
    degradation: Degradation,
    *,
    seed: int,
    channels: int = 3,
    min_size: int = 1,
    cache_bytes: int = CACHE_BYTES,
) -> EvaluationPairs:
    """Sharp photographs and their degraded selves, drawn from a generator of (seed, name): the same for
    every loss. The blur's kernel is known where `degradations.blur_of` finds one.

    Args:   min_size: photographs with a side shorter than this are skipped.
    Errors: DataError when no photograph is left, or the degradation enlarges.
    """
    items = [Pair(photo.name, photo, photo) for photo in _named(photographs)]
    return EvaluationPairs(
        items,
        degradation=degradation,
        seed=seed,
        channels=channels,
        min_size=min_size,
        cache_bytes=cache_bytes,
    )


def evaluation_pairs(
    items: Sequence[Pair],
    *,
    channels: int = 3,
    min_size: int = 1,
    cache_bytes: int = CACHE_BYTES,
    kernels: Mapping[str, Tensor] | None = None,
) -> EvaluationPairs:
    """Real pairs as they are.

    Args:   kernels: those of their blurs by the pairs' names, where they were measured; see `training.kernels`.
            Others as for `evaluation_photographs`.
    Errors: DataError when no pair is left, or when the sharp photographs are not all the same whole number of times
            as large as the degraded ones.
    """
    return EvaluationPairs(
        items,
        degradation=None,
        seed=0,
        channels=channels,
        min_size=min_size,
        cache_bytes=cache_bytes,
        kernels=kernels,
    )


def _shrinks_by(degradation: Degradation) -> int:
    """How many times smaller the degraded image is. Errors: DataError unless it is a whole number."""
    scale = degradation.scale
    if not isinstance(scale, int) or scale < 1:
        raise DataError(
            f"the degradation {degradation.label!r} makes the image {scale} times smaller, but that must be a whole "
            "number of at least 1. Choose other scales: 'bicubic-downscale(scale=4)', and 'bicubic-upscale(scale=4)' "
            "after it for models that keep the size."
        )
    return scale


def _named(photographs: Sequence[Photograph | tuple[str, Tensor]]) -> list[Photograph]:
    return [Photograph(*each) for each in photographs]


def _where(photograph: Photograph) -> str:
    return str(photograph.source) if isinstance(photograph.source, Path) else photograph.name


def _made_here(samples: Dataset[tuple[Tensor, Tensor]], place: range) -> tuple[Tensor, Tensor]:
    """One batch, made on one thread as in a worker: so it is the same bit by bit, and where cores are busy the small
    operations of a sample do not wait for each other (0.6 ms instead of 127 ms were measured)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _collate([samples[index] for index in place])
    finally:
        torch.set_num_threads(threads)


def _made_by_workers(
    samples: Dataset[tuple[Tensor, Tensor]],
    places: Sequence[range],
    start_step: int,
    workers: int,
    pin_memory: bool,
    note: Callable[[str], None],
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Batches of other processes, ahead of time. A batch is a function of its place: one that died with its worker is
    made again. After DEATHS of them the batches are made here."""
    made = 0
    for death in range(1, DEATHS + 1):
        loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
            _Told(samples),  # type: ignore[arg-type]
            batch_sampler=[list(place) for place in places[made:]],
            num_workers=workers,
            collate_fn=_collate_told,
            pin_memory=pin_memory,
            worker_init_fn=_leave_interrupts_to_the_parent,
            generator=torch.Generator(),  # else the loader draws its base seed from torch's global state
        )
        iterator = _begun(loader)
        while made < len(places):
            try:
                batch = next(iterator)
            except Exception:  # whatever a half-sent batch looks like
                if not (how := _how_one_died(iterator)):
                    raise
                note(
                    f"a process that makes batches {how} before step {start_step + made + 1}. Nothing is lost: the "
                    "batches are made again "
                    + ("by new ones. " if death < DEATHS else "between the steps from now on. ")
                    + "Fewer training.workers need less memory."
                )
                break
            if isinstance(batch, str):
                raise DataError(batch)
            made += 1
            yield batch
        del iterator
    for place in places[made:]:
        yield _made_here(samples, place)


def _begun(loader: DataLoader[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor] | str]:
    """Its batches. A worker's death is noticed where a batch is missing: torch's own handler would raise wherever the
    program stands, and that may be in the middle of an update of the weights."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    torchs = getattr(before, "__module__", "").startswith("torch.")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL if torchs or before is None else before)
    return iterator


def _how_one_died(iterator: object) -> str:
    """What became of a worker that did not end by itself, in words; "" when none did."""
    for worker in getattr(iterator, "_workers", []):
        worker.join(timeout=0.2)  # its pipe breaks a little earlier
        if worker.exitcode:
            if worker.exitcode == -signal.SIGKILL:
                return "was killed, probably by the kernel as memory ran out,"
            return f"ended with exit status {worker.exitcode}"
    return ""


class _Told(Dataset[object]):
    """Samples for a worker, with a sample's DataError as a text in its place: so it arrives as what it was."""

    def __init__(self, samples: Dataset[tuple[Tensor, Tensor]]) -> None:
        self.samples = samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | str:
        try:
            return self.samples[index]
        except DataError as error:
            return str(error)


def _collate_told(samples: list[tuple[Tensor, Tensor] | str]) -> tuple[Tensor, Tensor] | str:
    for each in samples:
        if isinstance(each, str):
            return each
    return _collate(samples)  # type: ignore[arg-type] # no text among them


def _collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    degraded, sharp = zip(*samples, strict=True)
    return torch.stack(degraded), torch.stack(sharp)


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the training loop decides when the workers end."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _first(names: list[str]) -> str:
    if not names:
        return "none"
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
