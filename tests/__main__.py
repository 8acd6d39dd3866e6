"""The whole suite in two halves at a time, each on one core: `python -m tests`, with pytest's options.

Much of what the first half takes is waiting for processes that it starts.
"""

import os
import signal
import subprocess
import sys

FIRST_HALF = (
    "devices estimate faults learn_mdf lock nonfinite on_ray pages storage study_browser study_server supply sweep",
    "tasks training untrusted",
)


def main() -> int:
    # What a shell starts in the background ignores Ctrl-C, and so would the processes that the tests send it to.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    files = [f"tests/test_{name}.py" for line in FIRST_HALF for name in line.split()]
    halves = (files, [f"--ignore={file}" for file in files])
    command = [sys.executable, "-m", "pytest", *sys.argv[1:]]
    running = [subprocess.Popen([*command, *half], env=os.environ | {"OMP_NUM_THREADS": "1"}) for half in halves]
    statuses = [process.wait() for process in running]
    return int(any(statuses))


if __name__ == "__main__":
    raise SystemExit(main())
