"""Restore photographs by a classical method: files in, files out."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from veridical.comparison.restore import Restored, jobs_of, write_restored
from veridical.core.errors import DataError
from veridical.core.files import read_image
from veridical.deconvolution import BlackBox, Method
from veridical.training.device import choose_device


def deconvolve(
    inputs: Sequence[Path],
    out: Path,
    method: Method,
    blurs: Callable[[Sequence[str]], Sequence[Tensor | BlackBox]],
    *,
    overwrite: bool = False,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> Restored:
    """Restore files and folders of photographs whose blur is known, as `comparison.restore` does with a model.

    Args:   blurs: the kernels or the black boxes of images by their names, without the suffix.
            progress: called after each iteration as (images so far, number of all, where it is in this one).
    Errors: DataError, before any work, as `restore`. A file that cannot be read, or that the method cannot restore, is
            skipped and reported in the result.
    """
    jobs = jobs_of(inputs, out, kept=overwrite)
    target = choose_device(device)
    # All are looked for before the first image is restored.
    every = blurs([source.stem for source, _ in jobs])
    written: list[Path] = []
    skipped: list[tuple[Path, str]] = []
    for number, ((source, destination), known) in enumerate(zip(jobs, every, strict=True)):

        def advance(done: int, most: int, number: int = number, source: Path = source) -> None:
            if progress is not None:
                progress(number, len(jobs), f"{source.name}, iteration {done} of {most}")

        try:
            file = read_image(source, channels=None)
            pixels = method.run(file.pixels.to(target), known, progress=advance).image
        except DataError as error:
            message = str(error)
            skipped.append((source, message if str(source) in message else f"{source}: {message}"))
        else:
            write_restored(destination, pixels.cpu(), file)
            written.append(destination)
        if progress is not None:
            progress(number + 1, len(jobs), source.name)
    return Restored(tuple(written), tuple(skipped))
