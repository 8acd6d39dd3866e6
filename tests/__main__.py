"""The whole suite on two cores: `python -m tests`, with pytest's options (-n 8: on eight).

Each process of pytest-xdist takes the next file when it has nothing left to do. A file stays in one process, so that
what its tests share is made once.
"""

import os
import signal
import sys

import pytest


def main() -> int:
    # What a shell starts in the background ignores Ctrl-C, and so would the processes that the tests send it to.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["OMP_NUM_THREADS"] = "1"
    # The tests start many processes, and each would compile torch and all else anew where no bytecode may be kept.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    return pytest.main(["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", *sys.argv[1:]])


if __name__ == "__main__":
    raise SystemExit(main())
