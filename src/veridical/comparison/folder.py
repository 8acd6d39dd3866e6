"""The run folder: which one, whether it may be written to, and what stands where in it."""

import errno
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from veridical.comparison.about import check_about
from veridical.comparison.statistics import INPUT, START
from veridical.comparison.storage import as_path, is_url
from veridical.core.errors import RecipeError
from veridical.core.files import atomic_write
from veridical.core.untrusted import parse_json, read_file
from veridical.training.recipe import Recipe, load_recipe

MOST_BYTES = 2**30
"""Of a file of JSON of ours."""

# What may change when a run is continued: it does not change what any one loss arrives at.
_MAY_CHANGE = {
    "out",
    "metrics",
    "classical",
    "training.device",
    "training.devices",
    "training.nodes",
    "training.accumulate",
    "training.on_nonfinite",
    "training.workers",
    "training.log_every",
    "training.checkpoint_every",
    "resources",
}
_RESERVED = (INPUT, START, "truth", "images")


def choose_folder(recipe: Recipe, out: Path | str | None = None) -> Path | str:
    """`out`, else the recipe's, else runs/<task>-<time>: a path, or the URL of a folder on a storage."""
    chosen = recipe.out if out is None else out
    if chosen is not None:
        return str(chosen) if is_url(chosen) else as_path(chosen)
    if recipe.training.processes > 1:
        raise RecipeError("training on several devices needs --out: every process must know the folder.")
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")  # local time, for a reader
    return Path("runs") / f"{recipe.task}-{stamp}"


def open_folder(recipe: Recipe, folder: Path, note: Callable[[str], None] = lambda text: None) -> None:
    """Make the run folder if it is missing. `note` is told of a recipe.toml that is damaged: it is written anew, as
    each training says by itself how it was made.

    Errors: RecipeError when it cannot be written to, or holds another run or anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"--out {folder} is a file. Name a folder, which is made if it does not exist.")
    if (folder / "recipe.toml").is_file():
        try:  # it is compared alone: nothing that it names is made
            written = (folder / "recipe.toml").read_bytes().strip()
            before = load_recipe(folder / "recipe.toml", allow_code=True) if written else None
        except RecipeError:
            before = None
        if before is None:
            note(f"{folder / 'recipe.toml'} is damaged, and written anew")
        else:
            _same_run(recipe, before, folder)
    elif (
        folder.is_dir()
        and not (folder / "comparison.json").is_file()
        and any(not path.name.startswith(".") for path in folder.iterdir())
    ):
        raise RecipeError(f"--out {folder} is not empty and holds no comparison. Name another folder with --out.")
    _check_links(folder)
    try:
        atomic_write(folder / ".writable", b"")
        (folder / ".writable").unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise RecipeError(
            f"the folder {folder} cannot be written to: {error.strerror}. Name another with --out."
        ) from error


def _same_run(now: Recipe, before: Recipe, folder: Path) -> None:
    """Raise RecipeError naming what differs, unless `now` continues `before`. Losses, seeds and listed models may be
    added."""
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    added = {f"losses.{name}" for name in now.losses if name not in before.losses}
    if before.models and now.models:
        added |= {f"models.{name}" for name in now.models if name not in before.models}
    added |= {"training.seeds"} if now.training.seeds > before.training.seeds else set()
    differing = [
        f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
        for key in dict.fromkeys([*old, *new])
        if not _may_change(key) and key not in added and old.get(key) != new.get(key)
    ]
    if differing:
        raise RecipeError(
            f"{folder} holds another comparison: {'; '.join(differing)}. Name another folder with --out, or give the "
            f"same recipe to continue that one: veridical compare {folder / 'recipe.toml'} --out {folder}"
        )


def _may_change(key: str) -> bool:
    return key in _MAY_CHANGE or key.partition(".")[0] in _MAY_CHANGE


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def slugs(names: Iterable[str], kept: Mapping[str, str] | None = None) -> dict[str, str]:
    """A distinct folder name for each; a name in `kept` has one already, which nobody else may take.

    >>> slugs(["0.8*l2 + 0.2*l1", "0.8 l2 0.2 l1", "input"])
    {'0.8*l2 + 0.2*l1': '0-8-l2-0-2-l1', '0.8 l2 0.2 l1': '0-8-l2-0-2-l1-2', 'input': 'input-2'}
    """
    kept = kept or {}
    taken = {*_RESERVED, *kept.values()}
    found = {}
    for name in names:
        if name in kept:
            found[name] = kept[name]
            continue
        words = re.sub(r"[^a-z0-9]+", "-", name.lower())
        stem = words.strip("-")[-60:].strip("-") or "x"  # the end, which says most of a path
        slug, number = stem, 2
        while slug in taken:
            slug, number = f"{stem}-{number}", number + 1
        taken.add(slug)
        found[name] = slug
    return found


def write_json(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write a file of JSON whole or not at all."""
    atomic_write(path, json.dumps(value, indent=2).encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or an empty one when the file is missing or damaged."""
    try:
        found = parse_json(read_file(path, MOST_BYTES))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_before(folder: Path) -> dict[str, Any]:
    """What comparison.json says of the run that `folder` holds already, or an empty one.

    Errors: DataError for what no run says, such as a folder of a loss that lies elsewhere.
    """
    path = folder / "comparison.json"
    about = read_json(path)
    check_about(about, path)
    return about


def are_rows(found: Any) -> bool:
    """Whether these are rows of an evaluation, as result.json and rows.json hold them."""
    return isinstance(found, list) and all(
        isinstance(row, dict)
        and all(isinstance(row.get(key), str) for key in ("image", "loss", "metric"))
        and isinstance(row.get("value"), float | int | None)
        for row in found
    )


def _check_links(folder: Path) -> None:
    """RecipeError for a folder inside a run that is a link out of it: what is written there would land elsewhere."""
    inside = folder.resolve()
    for at, folders, _ in os.walk(folder):
        for name in folders:
            path = Path(at, name)
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise RecipeError(
                    f"{path} is a link to {path.resolve()}, outside of the run, and what is written there would land "
                    "outside. Put the folder there, or let --out itself be the link."
                )
