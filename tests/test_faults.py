"""A sample of the faults that `python -m tests.faults` puts into real runs; all of them: docs/robustness.md."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="faults are put into processes by means of Linux")


def faults(*arguments: str) -> str:
    """The table; every fault in it came to what it should."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.faults", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=600,
        check=False,
    )
    assert found.returncode == 0, found.stderr + found.stdout
    return found.stdout


def test_a_run_into_which_faults_are_put_goes_on_to_the_same_bits() -> None:
    """Killed, fought over by two processes, on a disk that is full or turns read-only."""
    table = faults("operations", "two", "full", "read-only", "--sample", "1", "--seed", "3")
    assert "| goes on to the same bits |" in table
    assert "| refused, the first named and unharmed |" in table
    if "no mount namespace here" in table:
        pytest.skip("a disk can only be filled in a mount namespace, which this system does not give (unshare -Urm)")
    assert table.count("| names file and cause; goes on to the same bits |") == 2
    assert "| refused before any training |" in table
