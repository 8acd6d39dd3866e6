"""A real PostgreSQL of a test's own, from the programs that are installed. Without them those tests skip."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def _programs() -> Path | None:
    if found := shutil.which("initdb"):
        return Path(found).parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: path.parts[4])
    return debian[-1].parent if debian else None


def _as_owner(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root."""
    return ["runuser", "-u", "postgres", "--", *command] if os.getuid() == 0 else command


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """The URL of an empty database, on a Unix socket in a folder of its own; stopped and deleted at the end."""
    programs = _programs()
    if programs is None:
        pytest.skip("needs PostgreSQL's server programs (Debian: apt-get install postgresql)")
    place = Path(tempfile.mkdtemp(prefix="veridical-postgresql-"))
    try:
        if os.getuid() == 0:
            shutil.chown(place, "postgres", "postgres")
        data = place / "data"

        def run(program: str, *options: str) -> None:
            command = _as_owner([str(programs / program), "-D", str(data), *options])
            done = subprocess.run(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
            assert done.returncode == 0, done.stderr.decode()

        run("initdb", "--auth=trust", "--username=postgres", "--locale=C", "--encoding=UTF8", "--no-sync")
        run("pg_ctl", "start", "-w", "-l", str(place / "log"), "-o", f"-k {place} -c listen_addresses=''")
        try:
            yield f"postgresql://postgres@/postgres?host={place}"
        finally:
            run("pg_ctl", "stop", "-m", "immediate")
    finally:
        shutil.rmtree(place, ignore_errors=True)
