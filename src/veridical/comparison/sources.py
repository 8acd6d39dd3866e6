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
    degradation: Degradation,
    observer: Observer,
    note: Callable[[str], None],
    *,
    validation: bool = False,
) -> Sources:
    """Find, read and check all photographs of a recipe; without evaluation data some of them are held out.

    Args:   validation: what a comparison of this recipe would evaluate on is set aside, neither trained on nor looked
            at; a quarter of the rest, 24 at most, is held out to be evaluated on instead. So that what is chosen by
            its values there, such as a weight, can be judged on photographs that had no part in the choice.
    Errors: DataError when a folder or its images cannot be used, or nothing is left to train or evaluate on.
    """
    settings, channels = recipe.training, recipe.model.channels
    trained, judged = _sides(recipe.data)
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
        samples = TrainingSamples(
            _sharp(trained), degradation, crop=settings.crop, seed=settings.seed, channels=channels, progress=reading
        )
    if judged.real:
        pairs = evaluation_pairs(judged.items, channels=channels)
    else:
        pairs = evaluation_photographs(_sharp(judged), degradation, seed=settings.seed, channels=channels)
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
        degradation="real pairs" if trained.real else degradation.label,
        digest=_digest(samples.items, pairs.items),
    )


def _sides(data: Data) -> tuple[_Side, _Side | None]:
    """What to train on; and what to evaluate on, where it is named."""
    judged: _Side | None = None
    if data.pairs:
        trained = _pairs(data.pairs)
    elif data.train:
        trained = _photographs(photographs_in(Path(data.train)), data.train)
    else:
        shipped, shown = ([Photograph(*each) for each in side] for side in demo_photographs())
        trained, judged = _photographs(shipped, "the demo's"), _photographs(shown, "held out of the demo's")
    if data.evaluate:
        judged = _photographs(photographs_in(Path(data.evaluate)), data.evaluate)
    elif data.pairs_evaluate:
        judged = _pairs(data.pairs_evaluate)
    return trained, judged


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
