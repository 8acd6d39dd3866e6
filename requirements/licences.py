"""Write docs/licences.md: what `make licences` runs. The licences are those that the installed distributions state."""

from importlib.metadata import Distribution

from installed import ROOT, RUNTIME, asked_for, distribution, normalised

PAGE = ROOT / "docs" / "licences.md"
PERMISSIVE = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CNRI-Python",
    "ISC",
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "PSF-2.0",
    "Zlib",
}
EXCEPTIONS = {
    "certifi": "a list of certificates; MPL-2.0 asks that changes to its own files stay open, and we change none",
    "fqdn": "MPL-2.0, unchanged; checks the file that `make sbom` writes, not installed with veridical",
    "hypothesis": "MPL-2.0, unchanged; of the tests, not installed with veridical",
    "pathspec": "MPL-2.0, unchanged; of mypy and hatchling, not installed with veridical",
    "tqdm": "in part MPL-2.0, unchanged",
}
"""Distributions in whose licence there is more than PERMISSIVE, and why they may be used all the same."""

_STATED = {  # as distributions write it -> as SPDX does
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD 3-Clause License": "BSD-3-Clause",
    "BSD License": "BSD",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MIT license": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "PSFL": "PSF-2.0",
    "Python Software Foundation License": "PSF-2.0",
}


def licence(found: Distribution) -> str:
    """The SPDX expression of a distribution: its own, else of its licence field, else of its classifiers."""
    metadata = found.metadata
    if expression := metadata.get("License-Expression"):
        return expression
    stated = metadata.get("License", "")
    stated = _STATED.get(stated, stated)
    if stated and (parts(stated) <= PERMISSIVE | {"MPL-2.0"}):
        return stated
    classifiers = [line.split(" :: ")[-1] for line in metadata.get_all("Classifier") or [] if line.startswith("Lic")]
    return " OR ".join(_STATED.get(line, line) for line in classifiers) or "unknown"


def parts(expression: str) -> set[str]:
    """The licences in an SPDX expression."""
    return {part.strip(" ()") for choice in expression.split(" AND ") for part in choice.split(" OR ")}


def is_permissive(expression: str) -> bool:
    """Whether every part of it may be used under a licence of PERMISSIVE."""
    return all(
        any(part.strip(" ()") in PERMISSIVE for part in choice.split(" OR ")) for choice in expression.split(" AND ")
    )


def table() -> str:
    """Every distribution of the lock, with what brings it."""
    by_extra = {extra: asked_for(extra) for extra in (*RUNTIME, "dev")}
    found = {name: each for extra in by_extra.values() for name, each in extra.items()}
    for name in ("lpips", "DISTS-pytorch"):  # beside which the tests compare; installed without what they ask for
        found[normalised(name)] = distribution(name)
    found.pop("pip", None)  # of every environment, in a version of its own
    lines = ["| distribution | version | licence | asked for by |", "|---|---|---|---|"]
    for name, each in sorted(found.items()):
        brought = [extra for extra in by_extra if name in by_extra[extra]]
        if "" in brought:
            by = "veridical"
        elif "compare" in brought:
            by = "compare"
        else:
            by = ", ".join(extra for extra in brought if extra in RUNTIME) or "tests and tools"
        version = each.version.partition("+")[0]
        lines.append(f"| {each.metadata['Name']} | {version} | {licence(each)} | {by} |")
    return "\n".join(lines) + "\n"


def text() -> str:
    """The whole page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- `make licences` writes from here -->\n")
    _, _, after = rest.partition("<!-- to here -->\n")
    exceptions = "".join(f"- **{name}**: {reason}.\n" for name, reason in EXCEPTIONS.items())
    written = f"Permissive, and so allowed: {', '.join(sorted(PERMISSIVE))}.\n\nExceptions:\n\n{exceptions}\n{table()}"
    return f"{before}<!-- `make licences` writes from here -->\n{written}<!-- to here -->\n{after}"


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
