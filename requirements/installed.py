"""The distributions that veridical and each of its extras ask for, read from what is installed."""

import re
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
"""What each asks for; "" is veridical alone."""
RUNTIME = ("", "compare", "clip", "tune", "export", "study", "ray", "remote")


def normalised(name: str) -> str:
    """A distribution's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def asked_for(extra: str) -> dict[str, Distribution]:
    """The distributions that veridical needs with an extra, by normalised name, veridical itself left out.

    Errors: importlib.metadata.PackageNotFoundError when one is not installed.
    """
    found: dict[str, Distribution] = {}
    seen = set()
    wanted = [(Requirement(text), "") for text in (*EXTRAS[""], *EXTRAS[extra])]
    while wanted:
        requirement, of = wanted.pop()
        name = normalised(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": of}):
            continue
        for part in ("", *requirement.extras):
            if (name, part) in seen:
                continue
            seen.add((name, part))
            if name == "veridical":
                texts = EXTRAS[part]
            else:
                found[name] = distribution(name)
                texts = found[name].requires or []
            wanted += [(Requirement(text), part) for text in texts]
    return found
