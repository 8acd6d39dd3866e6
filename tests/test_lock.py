"""One process at a time in a folder, decided by the system and not by what a file says."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from veridical.core import lock
from veridical.core.errors import FolderInUse
from veridical.core.lock import FILE, locked

_OWNER = """
import os, sys, time
from pathlib import Path
from veridical.core.lock import locked

with locked(Path(sys.argv[1])):
    if os.fork() == 0:  # as a data loader: it outlives its killed parent
        time.sleep(60)
        os._exit(0)
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has locked tmp_path/run, and has a child."""
    process = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_and_told_who_is_there(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    with (
        pytest.raises(
            FolderInUse, match=rf"run is in use by process {owner.pid}, since 20\S+: -c \S+\. Wait until that"
        ),
        locked(tmp_path / "run"),
    ):
        pass


def test_what_the_file_says_decides_nothing(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    """Nor what is no owner's name at all."""
    for said in (json.dumps({"pid": 1, "host": "elsewhere", "since": "2999"}), "", "[" * 5000, "[1]", "\0\0"):
        (tmp_path / "run" / FILE).write_text(said)
        with pytest.raises(FolderInUse, match="in use by"), locked(tmp_path / "run"):
            pass
    assert owner.poll() is None


def test_a_killed_owner_keeps_nobody_out_though_its_child_lives(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    owner.kill()
    owner.wait()
    with locked(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / FILE).read_text())["pid"] == os.getpid()
    assert list((tmp_path / "run").iterdir()) == []


def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b"):
        assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [FILE]
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["kept"]


def test_whoever_opened_the_file_just_before_it_was_removed_takes_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would hold a file that is in no folder, beside the next owner."""
    real, handles = lock._lock, []

    def late(handle: int) -> None:
        if not handles:
            (tmp_path / FILE).unlink()  # by its owner, who is done
        handles.append(handle)
        real(handle)

    monkeypatch.setattr(lock, "_lock", late)
    with locked(tmp_path):
        assert os.path.samestat((tmp_path / FILE).stat(), os.fstat(handles[-1]))
    assert len(handles) == 2


def test_a_link_in_place_of_the_file_leads_nowhere(tmp_path: Path) -> None:
    """A run from elsewhere must not have us write into a file of its choice."""
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run" / FILE).symlink_to(tmp_path / "precious")
    with locked(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_file_system_without_locks_is_said_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(handle: int) -> None:
        del handle
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_lock", none)
    notes: list[str] = []
    with locked(tmp_path, notes.append):
        pass
    (note,) = notes
    assert "cannot be locked (No locks available): see to it yourself" in note
