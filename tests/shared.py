"""Where the real photographs and weights lie, for the tests that measure on them. Without them those tests skip."""

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("VERIDICAL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def shared_data(name: str) -> Path:
    """The path of one folder or file of the shared data; skips the test when it is not there."""
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"needs the shared data {name!r} (set VERIDICAL_TEST_DATA to the folder that has it)")
    return path
