"""Write the software bills of materials into dist/: what `make sbom` runs.

One CycloneDX file for veridical alone, one for the extra `compare`, one for all that a user may install.
"""

import json
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import Distribution
from pathlib import Path

from installed import ROOT, RUNTIME, asked_for

import veridical

SIZES = {"small": ("",), "compare": ("compare",), "all": RUNTIME}


def bill(extras: tuple[str, ...]) -> str:
    """The bill of veridical with these extras, of what is installed here: the same text for the same installation."""
    needed = {name: found for extra in extras for name, found in asked_for(extra).items()}
    with tempfile.TemporaryDirectory() as folder:
        # cyclonedx-py lists all that an environment has, so it is shown one that has these distributions alone.
        venv.create(folder, symlinks=True, with_pip=False)
        (packages,) = Path(folder).glob("lib/python*/site-packages")
        for found in needed.values():
            metadata = metadata_folder(found)
            (packages / metadata.name).symlink_to(metadata, target_is_directory=True)
        out = Path(folder, "bill.json")
        command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--validate"]
        command += ["--pyproject", str(ROOT / "pyproject.toml"), "--mc-type", "library", "--spec-version", "1.6"]
        subprocess.run([*command, "--output-file", str(out), folder], check=True)
        made = json.loads(out.read_text(encoding="utf-8"))
    made["metadata"]["component"]["version"] = veridical.__version__  # which pyproject.toml has from the package
    return json.dumps(made, indent=1, sort_keys=True) + "\n"


def metadata_folder(found: Distribution) -> Path:
    """Where a distribution's metadata lies."""
    files = found.files or []
    return Path(str(found.locate_file(next(file for file in files if file.name == "METADATA").parent)))


if __name__ == "__main__":
    folder = ROOT / "dist"
    folder.mkdir(exist_ok=True)
    for size, extras in SIZES.items():
        file = folder / f"veridical-{veridical.__version__}-{size}.cdx.json"
        file.write_text(bill(extras), encoding="utf-8")
        print(file.relative_to(ROOT))
