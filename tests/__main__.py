"""The whole suite in two halves at a time, each on one core: `python -m tests`, with pytest's options.

Much of what the first half takes is waiting for processes that it starts. A shell would not do: what it starts in the
background ignores Ctrl-C, which some of these processes are sent.
"""

import os
import subprocess
import sys

FIRST_HALF = (
    "cli devices estimate export faults learn_adapter learn_mdf lock nonfinite on_ray pages seeds_of_training storage",
    "study_browser study_scaling study_server supply sweep tasks training tune untrusted",
)


def main() -> int:
    files = [f"tests/test_{name}.py" for line in FIRST_HALF for name in line.split()]
    halves = (files, [f"--ignore={file}" for file in files])
    command = [sys.executable, "-m", "pytest", *sys.argv[1:]]
    running = [subprocess.Popen([*command, *half], env=os.environ | {"OMP_NUM_THREADS": "1"}) for half in halves]
    statuses = [process.wait() for process in running]
    return int(any(statuses))


if __name__ == "__main__":
    raise SystemExit(main())
