"""Write the files of pinned versions: what `make lock` runs.

    python requirements/lock.py              add what pyproject.toml newly asks for; what is pinned stays
    python requirements/lock.py --upgrade    newest versions of all

lock.txt has all but torch. torch-cpu.txt has torch's build for CPUs, torch.txt that of PyPI, which on Linux brings
some gigabytes of CUDA. Of each version every file that the index has is listed with its sha256; uv resolves the extra
`dev` for Python 3.11 and newer on every platform. constraints.txt has the versions alone. docs.txt has the extra
`docs`, whose tools read veridical's source and need neither torch nor veridical.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK, TORCH, CPU, DOCS = (ROOT / "requirements" / f"{name}.txt" for name in ("lock", "torch", "torch-cpu", "docs"))
CONSTRAINTS = ROOT / "constraints.txt"
WITHOUT_DEPENDENCIES = ("lpips==0.1.4", "DISTS-pytorch==0.1")
"""The tests compare with them. They ask for torchvision, whose wheels do not fit every torch, and need none."""
LEFT_OUT = ("torchvision", "veridical", "pip")
"""The last comes with every environment."""
CPU_BUILDS = {
    # torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl, which is not on PyPI
    "torch==2.13.0": "torch==2.13.0+cpu --hash=sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
}


def resolve(options: list[str], more_lines: list[str], sources: list[str], known: str) -> list[str]:
    """uv's lock of `sources` and of further requirements, entry by entry. known: the entries that it keeps."""
    with tempfile.TemporaryDirectory() as folder:
        more, out = Path(folder, "more.in"), Path(folder, "lock.txt")
        more.write_text("\n".join(more_lines))
        out.write_text(known)  # uv keeps what it finds here
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"]
        command += ["--generate-hashes", "--no-annotate", "--no-header"]
        command += [*(f"--no-emit-package={name}" for name in LEFT_OUT), "--output-file", str(out)]
        subprocess.run([*command, *options, *sources, str(more)], cwd=ROOT, check=True)
        return re.findall(r"^[^\s#]\S*==.*(?:\n    --hash=.*)+\n", out.read_text(), re.MULTILINE)


def main(options: list[str]) -> None:
    pinned = LOCK.read_text() + TORCH.read_text() if LOCK.exists() else ""
    entries = resolve(options, [*WITHOUT_DEPENDENCIES], ["--extra", "dev", "pyproject.toml"], pinned)
    torch = [entry for entry in entries if re.match(r"torch==|triton==|cuda-|nvidia-", entry)]
    rest = [entry for entry in entries if entry not in torch]
    cpu = next(build for version, build in CPU_BUILDS.items() if f"{version} " in "".join(torch))
    versions = [entry.partition(" \\\n")[0] for entry in entries]
    write(LOCK, "What `make test` installs beside torch, tried together on Python 3.11.", rest)
    write(TORCH, "torch as it is on PyPI; on Linux with CUDA.", torch)
    write(CPU, "torch's build for CPUs.", [f"{cpu}\n"])
    lock_docs("".join(entries), options)
    write(CONSTRAINTS, "The versions of requirements/, for installations without hashes.", [f"{v}\n" for v in versions])


def lock_docs(lock: str, options: list[str]) -> None:
    """Write DOCS: in the versions of the lock what stands there, too."""
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["docs"]
    kept = "" if "--upgrade" in options or not DOCS.exists() else DOCS.read_text()
    pins = [re.sub(r" \\\n.*", "", entry, flags=re.DOTALL) for entry in re.split(r"(?m)^(?=\S)", lock) if "==" in entry]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("\n".join(pins))
        constraints.flush()
        entries = resolve([*options, "--constraint", constraints.name], extra, [], kept)
    write(DOCS, "What `make docs` installs.", entries)


def write(path: Path, what: str, entries: list[str]) -> None:
    path.write_text(f"# Written by `make lock`: do not edit. {what}\n" + "".join(entries))


if __name__ == "__main__":
    main(sys.argv[1:])
