"""The photographs of a comparison: which to train on and which to evaluate on, as the recipe says."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from veridical.comparison.observer import Observer
from veridical.core.errors import DataError
from veridical.degradations import Degradation
from veridical.training.data import (
    EvaluationPairs,
    Pair,
    PairSamples,
    Photograph,
    Samples,
    TrainingSamples,
    evaluation_pairs,
    evaluation_photographs,
    hold_out,
    pairs_in,
    photographs_in,
)
from veridical.training.kernels import kernels_in
from veridical.training.layouts import LAYOUTS, Part, source
from veridical.training.photographs import demo_photographs
from veridical.training.recipe import Data, Recipe


@dataclass(frozen=True)
class Sources:
    """What a recipe trains and evaluates on.

    described:   "train" and "evaluate" in words. degradation: its label, or "real pairs".
    digest:      a hash over the names and sizes of all photographs: another one is another comparison.
    """

    samples: Samples
    pairs: EvaluationPairs
    described: dict[str, str]
    degradation: str
    digest: str

    def forget(self) -> None:
        """Give up the decoded photographs; they are read again when they are needed."""
        for used in (self.samples, self.pairs):
            used.store.forget()


@dataclass(frozen=True)
class _Side:
    """Photographs that are not read yet. real: pairs of files; otherwise each is its own partner, to be degraded.
    where: the folders, in words."""

    items: list[Pair]
    where: str
    real: bool = False

    def count(self, number: int) -> str:
        noun = "pair" if self.real else "photograph"
        return f"{number} {noun}{'' if number == 1 else 's'}"


def gather(
    recipe: Recipe,
    degradation: Degradation | None,
    observer: Observer,
    note: Callable[[str], None],
    *,
    validation: bool = False,
) -> Sources:
    """Find, read and check all photographs of a recipe; without evaluation data some of them are held out.

    Args:   degradation: of photographs that are not real pairs; None for a task that has only such pairs.
            validation: what a comparison of this recipe would evaluate on is set aside, neither trained on nor looked
            at; a quarter of the rest, 24 at most, is held out to be evaluated on instead. So that what is chosen by
            its values there, such as a weight, can be judged on photographs that had no part in the choice.
    Errors: DataError when a folder or its images cannot be used, when nothing is left to train or evaluate on, or when
            the task is of real pairs and photographs are named.
    """
    settings, channels = recipe.training, recipe.model.channels
    trained, judged = _sides(recipe.data)
    for side in (trained, judged):
        if degradation is None and side is not None and not side.real:
            raise DataError(
                f"the task {recipe.task} is of real pairs, but {side.where} are photographs without a partner. Name "
                "--pairs DEGRADED SHARP, or data.train and data.evaluate as a set that its authors ship: "
                f"{', '.join(f'{name}:FOLDER' for name in LAYOUTS)}. Or say how to degrade: --degradation SPEC."
            )
    if judged is None:
        kept, held = hold_out(trained.items)
        listed = ", ".join(item.name for item in held[:5]) + (", ..." if len(held) > 5 else "")
        verb = "is" if len(held) == 1 else "are"
        note(f"no evaluation data was named, so {trained.count(len(held))} {verb} held out: {listed}")
        judged = replace(trained, items=held, where=f"held out of {trained.where}")
        trained = replace(trained, items=kept)
    trained = _without(trained, judged, note)
    if validation:
        aside = judged.count(len(judged.items))
        kept, held = hold_out(trained.items, min(24, max(1, len(trained.items) // 4)))
        judged = replace(trained, items=held, where=f"held out of {trained.where} to choose by")
        trained = replace(trained, items=kept)
        note(f"not looked at: {aside}, for a comparison to evaluate on; to choose by: {judged.count(len(held))} more")

    def reading(done: int, total: int) -> None:
        observer.doing("reading the training photographs", done, total)

    samples: Samples
    if trained.real:
        samples = PairSamples(
            trained.items, crop=settings.crop, seed=settings.seed, channels=channels, progress=reading
        )
    else:
        assert degradation is not None  # checked above
        samples = TrainingSamples(
            _sharp(trained), degradation, crop=settings.crop, seed=settings.seed, channels=channels, progress=reading
        )
    if judged.real:
        kernels = None
        if recipe.data.kernels:
            names = [item.name for item in judged.items]
            kernels = kernels_in(Path(recipe.data.kernels), names, flip=recipe.data.flip_kernels)
        pairs = evaluation_pairs(judged.items, channels=channels, kernels=kernels)
    else:
        if recipe.data.kernels:
            raise DataError(
                f"data.kernels names measured kernels of real pairs, but {judged.where} are photographs, whose blur is "
                "drawn and known. Leave it out, or name the pairs with data.pairs_evaluate."
            )
        assert degradation is not None  # checked above
        pairs = evaluation_photographs(_sharp(judged), degradation, seed=settings.seed, channels=channels)
    if pairs.scale != samples.scale:
        raise DataError(
            f"what is trained on is to become {samples.scale} times as large, but what is evaluated on {pairs.scale} "
            f"times: {trained.where}; {judged.where}. Name data of one scale, or another degradation."
        )
    for used, what in ((samples, "training"), (pairs, "evaluation")):
        if used.skipped:
            reasons = "; ".join(each.reason for each in used.skipped[:3])
            more = f"; and {len(used.skipped) - 3} more" if len(used.skipped) > 3 else ""
            total = len(used.items) + len(used.skipped)
            note(f"{len(used.skipped)} of {total} {what} photographs were skipped: {reasons}{more}")
    return Sources(
        samples,
        pairs,
        described={
            "train": f"{trained.count(len(samples.items))}, {trained.where}",
            "evaluate": f"{judged.count(len(pairs))}, {judged.where}",
        },
        degradation="real pairs" if trained.real or degradation is None else degradation.label,
        digest=_digest(samples.items, pairs.items),
    )


def _sides(data: Data) -> tuple[_Side, _Side | None]:
    """What to train on; and what to evaluate on, where it is named."""
    judged: _Side | None = None
    if data.pairs:
        trained = _pairs(data.pairs)
    elif data.train:
        trained = _named(data.train, "train")
    else:
        shipped, shown = ([Photograph(*each) for each in side] for side in demo_photographs())
        trained, judged = _photographs(shipped, "the demo's"), _photographs(shown, "held out of the demo's")
    if data.evaluate and _whole_set(data.evaluate) and data.evaluate == data.train:
        judged = None  # a set without parts, on both sides: some of it is held out
    elif data.evaluate:
        judged = _named(data.evaluate, "test")
    elif data.pairs_evaluate:
        judged = _pairs(data.pairs_evaluate)
    return trained, judged


def _named(text: str, part: Part) -> _Side:
    """A folder of photographs, or one part of a set of pairs."""
    found = source(text)
    if found is None:
        return _photographs(photographs_in(Path(text)), text)
    return _Side(found.pairs(part), f"{text} ({part})" if found.split else text, real=True)


def _whole_set(text: str) -> bool:
    """Whether it is a set of pairs that comes without a training and a test part."""
    found = source(text)
    return found is not None and not found.split


def _pairs(folders: tuple[str, str]) -> _Side:
    return _Side(pairs_in(Path(folders[0]), Path(folders[1])), f"{folders[0]} and {folders[1]}", real=True)


def _photographs(photographs: Sequence[Photograph], where: str) -> _Side:
    return _Side([Pair(each.name, each, each) for each in photographs], where)


def _sharp(side: _Side) -> list[Photograph]:
    return [item.sharp for item in side.items]


def _without(trained: _Side, judged: _Side, note: Callable[[str], None]) -> _Side:
    """`trained` less the files that are evaluated on, should one folder hold the other."""
    files = {source.resolve() for photo in _sharp(judged) if isinstance(source := photo.source, Path)}
    left = [
        item
        for item in trained.items
        if not (isinstance(item.sharp.source, Path) and item.sharp.source.resolve() in files)
    ]
    overlap = len(trained.items) - len(left)
    if overlap and not left:
        raise DataError(
            f"every photograph of {trained.where} is evaluated on, so none is left to train on. "
            "Leave --evaluate out, and some are held out, or name another folder."
        )
    if overlap:
        note(f"{overlap} of the training photographs are evaluated on, so they are not trained on")
    return replace(trained, items=left)


def _digest(*sides: Sequence[Pair]) -> str:
    digest = hashlib.sha256()
    for items in sides:
        for item in items:
            for photograph in (item.degraded, item.sharp):
                digest.update(f"{photograph.name} {_size(photograph.source)}\n".encode())
        digest.update(b"--\n")
    return digest.hexdigest()


def _size(source: Path | Tensor) -> object:
    """A file's size; what is in memory is hashed whole."""
    if isinstance(source, Path):
        return source.stat().st_size
    return hashlib.sha256(source.contiguous().numpy().tobytes()).hexdigest()
