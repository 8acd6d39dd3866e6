"""How many raters at once the server bears: python -m veridical.study.load [--raters 50] [--pause 5] [--database URL].

A made-up study in a temporary folder, the real server in a process of its own, and a thread for each rater, who loads
every image and answers: at once, which is the most that the server can do, or after a pause, as people do. The clients
run on the same machine and share its processors with the server.
"""

import argparse
import contextlib
import http.client
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
import torch.nn.functional as F

from veridical.core.files import write_image
from veridical.study.design import load_design, new_study

_START_S = 120


@dataclass(frozen=True)
class Load:
    """What was measured.

    votes, images: the latency of each in seconds. seconds: from the first request to the last.
    memory_mb: the most that the server used; None where /proc does not tell.
    """

    raters: int
    votes: np.ndarray
    images: np.ndarray
    seconds: float
    memory_mb: float | None

    def __str__(self) -> str:
        def milliseconds(values: np.ndarray) -> str:
            median, p95, most = 1000 * np.quantile(values, (0.5, 0.95, 1))
            return f"median {median:.0f} ms, 95 % {p95:.0f} ms, most {most:.0f} ms"

        memory = "" if self.memory_mb is None else f"; server {self.memory_mb:.0f} MB"
        return (
            f"{self.raters} raters, {len(self.votes)} votes in {self.seconds:.1f} s: "
            f"{len(self.votes) / self.seconds:.0f} votes/s and {len(self.images) / self.seconds:.0f} images/s\n"
            f"a vote:   {milliseconds(self.votes)}\nan image: {milliseconds(self.images)}{memory}"
        )


def made_up_study(
    folder: Path, *, methods: int = 4, images: int = 3, size: tuple[int, int] = (48, 64), **options: Any
) -> Path:
    """A study of random textures, each method smoother than the one before; gives its folder.

    Args:   size: (H, W). options: those of `new_study`.
    """
    for k in range(images):
        image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(k))
        image = F.avg_pool2d(image, 3, 1, 1)
        write_image(folder / "reference" / f"{k}.png", image[0])
        for method in range(methods):
            image = F.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
            write_image(folder / "methods" / f"method-{method}" / f"{k}.png", image[0])
    return new_study(
        folder / "methods", reference=folder / "reference", out=folder / "study", **{"per_pair": 6, **options}
    )


@contextlib.contextmanager
def running(study: Path, url: str | None = None, *, port: int = 0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """(address, process) of a server of its own, which is killed at the end."""
    command = [sys.executable, "-m", "veridical", "study", "serve", str(study), "--port", str(port)]
    process = subprocess.Popen([*command, *(["--database", url] if url else [])], stdout=subprocess.PIPE, text=True)
    watch = threading.Timer(_START_S, process.kill)
    watch.start()
    try:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        watch.cancel()
        yield next(word for word in words if word.startswith("http")), process
    finally:
        watch.cancel()
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


class Rater:
    """One who takes part by HTTP, as a browser does."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=120)
        self._cookie = ""

    def ask(self, path: str, body: object = None) -> tuple[int, bytes]:
        """(status, body) of one request, with the cookie."""
        headers = {"cookie": self._cookie, "content-type": "application/json"}
        if body is None:
            self._connection.request("GET", path, headers=headers)
        else:
            self._connection.request("POST", path, json.dumps(body), headers)
        response = self._connection.getresponse()
        self._cookie = (response.getheader("set-cookie") or self._cookie).partition(";")[0]
        return response.status, response.read()

    def take_part(self, *, times: int = 1, pause: float = 0.0) -> tuple[list[float], list[float], int]:
        """Answer a whole set of trials: the latencies of votes and of images, and how many questions were answered.

        Args:   times: how often each answer is sent. pause: seconds before an answer, on average.
        """
        votes, images, answered = [], [], 0
        status, found = self.ask("/api/begin", {"consent": True})
        while status == 200 and (trials := json.loads(found)["trials"]):
            for side in ("left", "reference", "right"):
                start = time.perf_counter()
                if self.ask(f"/image/{trials[0]}/{side}")[0] != 200:
                    raise RuntimeError("an image did not come")
                images.append(time.perf_counter() - start)
            time.sleep(random.uniform(0, 2 * pause))
            for _ in range(times):
                start = time.perf_counter()
                status, found = self.ask("/api/vote", {"trial": trials[0], "choice": 1, "seconds": 1.5})
                votes.append(time.perf_counter() - start)
            answered += 1
        self._connection.close()
        if status not in (200, 409):  # 409: nothing left to ask
            raise RuntimeError(f"the server answered {status}: {found!r}")
        return votes, images, answered


def measure(address: str, raters: int, process: subprocess.Popen[str], *, times: int = 1, pause: float = 0.0) -> Load:
    """So many raters at once, each answering one set of trials as `take_part` says."""
    together = threading.Barrier(raters)

    def one(_number: int) -> tuple[list[float], list[float], int]:
        together.wait()
        return Rater(address).take_part(times=times, pause=pause)

    start = time.perf_counter()
    with ThreadPoolExecutor(raters) as pool:
        results = list(pool.map(one, range(raters)))
    seconds = time.perf_counter() - start
    votes = np.array([each for votes, _, _ in results for each in votes])
    images = np.array([each for _, images, _ in results for each in images])
    return Load(raters, votes, images, seconds, _memory_mb(process.pid))


def _memory_mb(process: int) -> float | None:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(prog="python -m veridical.study.load", description=__doc__.partition("\n")[0])
    parser.add_argument("--raters", type=int, default=50, help="how many answer at once")
    parser.add_argument("--trials", type=int, default=20, help="questions to each")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds before an answer, on average")
    parser.add_argument("--database", help="of an empty PostgreSQL database; SQLite by default")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        per_pair = ceil(given.raters * given.trials / 28)
        study = made_up_study(
            Path(folder), methods=8, images=6, size=(320, 480), per_pair=per_pair, trials=given.trials - 2, screening=2
        )
        print(f"{load_design(study).votes} ordinary votes wanted; images of 480x320 px")
        with running(study, given.database) as (address, process):
            print(measure(address, given.raters, process, pause=given.pause))


if __name__ == "__main__":
    main()
