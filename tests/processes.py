"""Scripts in processes of their own, as a training on several devices starts them."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# This source and these tests, wherever the script lies; one thread each, as the cores are few.
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), "OMP_NUM_THREADS": "1"}


def start(command: list[str]) -> subprocess.Popen[str]:
    """A process group of its own, so that nothing is left of it: see `end`."""
    return subprocess.Popen(
        command,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str], *, timeout: float = 600) -> tuple[str, str]:
    """What it has printed: stdout and stderr. Whatever is left of its group after `timeout` is killed."""
    try:
        return process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        with_children(process, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"not ended after {timeout} s:\n{out}\n{err}") from None
    finally:
        with_children(process, signal.SIGKILL)


def with_children(process: subprocess.Popen[str], number: int) -> None:
    """Signal it and all that it has started, as a terminal does."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def write_script(folder: Path, code: str) -> Path:
    """`code` as a file, which further processes run again."""
    script = folder / "script.py"
    # Lightning Fabric imports torchmetrics, where it is there, to learn its version: four seconds of each process.
    script.write_text(f"import sys\n\nsys.modules['torchmetrics'] = None\n{code}")
    return script


def run_script(folder: Path, code: str, *arguments: str, timeout: float = 600) -> str:
    """Run `code` as a file, which further processes run again; what it has printed. Fails when it does."""
    script = write_script(folder, code)
    process = start([sys.executable, str(script), *arguments])
    out, err = end(process, timeout=timeout)
    assert process.returncode == 0, err
    return out
