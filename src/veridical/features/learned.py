"""What a file that `veridical learn` made says of itself: discriminators for mdf, or an adapter for tfmlc."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from veridical.core.catalog import nearest
from veridical.core.errors import WeightsMissing
from veridical.features import mdf
from veridical.features import weights as files
from veridical.features.adapter import settings_of

ORDER = (
    "format",
    "task",
    "degradation",
    "range",
    "seed_images",
    "inputs",
    "span",
    "quality",
    "settings",
    "scales",
    "iterations",
    "widths",
)


def learned_notes(source: str | Path) -> dict[str, str]:
    """What is known of a file, in words: of discriminators by their task, such as "jpeg", or of either by its path.

    Discriminators are read, and so known to be whole; of an adapter, which may have 600 MB, only what is noted.
    Errors: WeightsMissing when there is no file, it is broken, or is neither.
    """
    tasks = (*mdf.TASKS, *mdf.RELEASED)
    by_task = source in tasks
    if not by_task:
        if not Path(source).expanduser().is_file():
            close = nearest(str(source), tasks)
            hint = f" Did you mean {close!r}?" if close else ""
            raise WeightsMissing(f"{source} is neither a file nor a task of mdf ({', '.join(tasks)}).{hint}")
        notes = files.notes(source, "what was learned")
        if notes.get("format", "").startswith("veridical adapter "):
            said = settings_of(notes, str(source)) | _table(notes.get("learned", ""))
            return {"file": str(source), "format": notes["format"], **{key: _words(each) for key, each in said.items()}}
    found = mdf.read(str(source)) if by_task else mdf.read(path=source)
    widths = [len(bias) for (_, bias), *_ in found.layers]
    known: dict[str, Any] = {"format": "the authors' own, converted", **mdf.mdf_notes(source), "widths": widths}
    ordered = dict.fromkeys((*(key for key in ORDER if key in known), *sorted(known)))  # the file has them in none
    return {
        "file": found.origin,
        **{key: _words(known[key]) for key in ordered if key != "sha256"},
        "sha256 of the contents": found.sha256,
    }


def _table(text: str) -> dict[str, Any]:
    """A note in JSON, or nothing where it cannot be read."""
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def _words(value: object, *, nested: bool = False) -> str:
    """
    >>> _words([{"name": "china", "seed": 1}, {"name": "coins"}]), _words([[12, 16], [24, 32]]), _words([3000, 20])
    ('name china, seed 1; name coins', '12x16, 24x32', '3000, 20')
    >>> _words({"after": {"ordered": 0.9}, "seed": 1})
    'after (ordered 0.9), seed 1'
    """
    if isinstance(value, Mapping) and nested:
        return f"({', '.join(f'{key} {each}' for key, each in value.items())})"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(each, nested=True)}" for key, each in value.items())
    if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        return "; ".join(_words(each) for each in value)
    if isinstance(value, list):
        return ", ".join("x".join(map(str, each)) if isinstance(each, list) else str(each) for each in value)
    return str(value)
