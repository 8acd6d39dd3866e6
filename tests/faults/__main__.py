"""`python -m tests.faults`: a table of faults, how often each was put into a real run, and what became of it.

With --sample N, N of each kind, drawn by --seed. Where `unshare` gives a mount namespace, disks fill up and turn
read-only for real.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.commands import CHECKPOINT_EVERY, ONE, STEPS, TWO, Bench, Ended, Process, import_everything, start
from tests.faults.disk import Disk

_INSIDE = "VERIDICAL_FAULTS_NAMESPACE"
GOOD = "goes on to the same bits"


@dataclass
class Line:
    """A line of the table. lost: steps of training that had to be done again, at most. problems: of single faults."""

    fault: str
    how: str
    outcome: str
    times: int = 0
    lost: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, what: str, problem: str | None, lost: int = 0) -> None:
        self.times += 1
        self.lost = max(self.lost, lost)
        if problem:
            self.problems.append(f"{what}: {problem}")
            print(f"  PROBLEM {self.problems[-1]}", file=sys.stderr, flush=True)


@dataclass
class Options:
    folder: Path
    sample: int | None
    chance: random.Random
    part: tuple[int, int] = (1, 1)
    lines: list[Line] = field(default_factory=list)

    @property
    def losses(self) -> str:
        return TWO if self.sample is None else ONE

    def line(self, fault: str, how: str, outcome: str) -> Line:
        """A new line of the table, which is printed when its kind ends, or is stopped."""
        self.lines.append(Line(fault, how, outcome))
        return self.lines[-1]

    def some(self, everything: Sequence[tuple]) -> list[tuple]:  # type: ignore[type-arg]
        """All, or a sample in their order; of them, our part."""
        chosen = list(everything)
        if self.sample is not None and self.sample < len(everything):
            chosen = [everything[k] for k in sorted(self.chance.sample(range(len(everything)), self.sample))]
        return chosen[self.part[0] - 1 :: self.part[1]]

    def count(self, of_all: int) -> int:
        return of_all if self.sample is None else min(self.sample, of_all)


def goes_on(bench: Bench, before: int, whole: Ended, *, saved: bool = False) -> tuple[str | None, int]:
    """Give the same command again. -> what is wrong with what it comes to, and the steps that were done twice.

    Args: before: steps that were begun until now. saved: a checkpoint was made where the run was stopped, so that the
          one before the last may be another."""
    ended = bench.compare()
    if ended.code:
        return f"the same command again ended with {ended.code}: {ended.output[-600:]}", 0
    last = f"step-{STEPS:08d}"
    found = [each for each in bench.differences() if not (saved and "/step-" in each and last not in each)]
    return "; ".join(found) or None, before + ended.steps - whole.steps


# ---- killed ----


def killed_at_operations(options: Options) -> None:
    """Before each operation on the disk, and in the middle of each write. Before an fsync a kill leaves what it leaves
    before the next operation, so those are not tried."""
    bench = Bench(options.folder, ONE)
    whole = bench.make_whole()
    log = options.folder / "operations.txt"
    assert bench.compare(lambda: Disk(bench.run, log=log).watch()).code == 0
    operations = log.read_text().splitlines()
    before = options.line("killed before an operation on a file", "SIGKILL, by itself", GOOD)
    half = options.line("killed in the middle of a write", "SIGKILL after half of the bytes", GOOD)
    points: list[tuple[int, bool]] = []
    for number, operation in enumerate(operations, start=1):
        kind = operation.partition(" ")[0]
        points += [(number, False)] if kind != "fsync" else []
        points += [(number, True)] if kind == "write" else []
    points = options.some(points)
    for at, in_half in points:
        bench.clear()
        killed = bench.compare(lambda: Disk(bench.run, at, half=in_half).watch())  # noqa: B023
        what = f"{'half of' if in_half else 'before'} operation {at}, {operations[at - 1]}"
        if killed.code == 0:  # how often comparison.json is written depends on time: this run had fewer operations
            continue
        if killed.code != -signal.SIGKILL:
            half.add(what, f"ended with {killed.code}: {killed.output[-300:]}")
            continue
        problem, lost = goes_on(bench, killed.steps, whole)
        (half if in_half else before).add(what, problem, lost)


def killed_at_times(options: Options) -> None:
    """From outside, up to three times one after the other."""
    bench = Bench(options.folder, options.losses)
    began = time.monotonic()
    whole = bench.make_whole()
    took = time.monotonic() - began
    line = options.line("killed at any moment, up to three times over", "SIGKILL, from outside", GOOD)
    for _ in range(options.count(40)):
        bench.clear()
        steps, moments = 0, [options.chance.uniform(0, took) for _ in range(options.chance.randint(1, 3))]
        for moment in moments:
            process = bench.start()
            time.sleep(moment)
            os.kill(process.pid, signal.SIGKILL)
            steps += process.wait().steps
        problem, lost = goes_on(bench, steps, whole)
        line.add(f"after {', '.join(f'{each:.2f} s' for each in moments)}", problem, -(-lost // len(moments)))


def interrupted(options: Options) -> None:
    bench = Bench(options.folder, options.losses)
    whole = bench.make_whole()
    for number, name, codes in (
        (signal.SIGINT, "Ctrl-C", {130}),
        (signal.SIGTERM, "SIGTERM", {143, -signal.SIGTERM}),
    ):
        line = options.line(f"{name} in a training", f"{number.name} after a random step", f"says how to go on; {GOOD}")
        if number is signal.SIGTERM:
            line.outcome = GOOD
        for _ in range(options.count(10)):
            bench.clear()
            process = bench.start()
            step = options.chance.randint(1, whole.steps)
            process.reaches(step)
            os.kill(process.pid, number)
            ended = process.wait()
            problem, lost = None, 0
            if ended.code not in codes:
                problem = f"ended with {ended.code}: {ended.output[-300:]}"
            elif number is signal.SIGINT and "run the same command again to continue" not in ended.output:
                problem = f"does not say how to go on: {ended.output[-300:]}"
            else:
                problem, lost = goes_on(bench, ended.steps, whole, saved=True)
            line.add(f"{name} in step {step}", problem, lost)
    _learning_interrupted(options)


def _learning_interrupted(options: Options) -> None:
    line = options.line("Ctrl-C in `learn mdf`", "SIGINT at random moments", "says how to go on; the same file")
    folder = options.folder / "mdf"
    photograph = Bench(options.folder, ONE).data / "photo0.png"

    def learn(name: str) -> Process:
        argv = ["learn", "mdf", "--image", str(photograph), "--task", "denoise", "--scales", "2", "--iterations", "60"]
        argv += ["--device", "cpu", "-o", str(folder / name / "own.safetensors")]
        return start(argv, options.folder / "log.txt")

    began = time.monotonic()
    whole = learn("whole").wait()
    took = time.monotonic() - began
    assert whole.code == 0, whole.output
    for turn in range(options.count(6)):
        process = learn(str(turn))
        log = folder / str(turn) / "own.run" / ".lock"
        until = time.monotonic() + 60
        while not log.exists() and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(options.chance.uniform(0, 0.5 * took))
        os.kill(process.pid, signal.SIGINT)
        ended = process.wait()
        problem = None
        if ended.code == 130 and not re.search(r"run the same command again|no work had been finished", ended.output):
            problem = f"does not say how to go on: {ended.output[-300:]}"
        elif ended.code not in (130, 0):  # 0: it was too late
            problem = f"ended with {ended.code}: {ended.output[-300:]}"
        if ended.code == 130 and not (folder / str(turn) / "own.safetensors").exists():
            again = learn(str(turn)).wait()
            problem = problem or (again.output[-600:] if again.code else None)
        files = [(folder / name / "own.safetensors").read_bytes() for name in ("whole", str(turn))]
        line.add(f"turn {turn}", problem or (None if files[0] == files[1] else "another file"))


# ---- damaged ----


def damaged(options: Options) -> None:
    """What a power cut, or a bad disk, may leave: each file of a run that is finished, and of one that was stopped in
    its second training, emptied, cut in half, or filled with something else."""
    bench = Bench(options.folder, ONE)
    whole = bench.make_whole()
    stopped = options.folder / "stopped"
    process = bench.start()
    process.reaches(whole.steps // 2 + CHECKPOINT_EVERY + 1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    shutil.copytree(bench.run, stopped)
    ways: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda data: b"",
        "half": lambda data: data[: len(data) // 2],
        "garbage": lambda data: random.Random(0).randbytes(len(data)),
        "nested": lambda data: b"[" * 100_000,
    }
    tries = [
        (state, path.relative_to(state).as_posix(), way)
        for state in (bench.whole, stopped)
        for path in sorted(state.rglob("*"))
        if path.is_file() and path.name != ".lock"
        for way in ways
        if (way != "nested" or path.suffix == ".json") and "events.out" not in path.name
    ]
    line = options.line(
        "a file of the run damaged", "emptied, cut in half, random bytes, or JSON nested 100,000 deep", GOOD
    )
    told = options.line(
        "recipe.toml of the run cut in half", "", "refused, if what is left reads as another; it is named"
    )
    for state, name, way in options.some(tries):
        bench.clear()
        shutil.copytree(state, bench.run)
        path = bench.run / name
        path.write_bytes(ways[way](path.read_bytes()))
        ended = bench.compare()
        # A checkpoint that is no longer needed stays as it is; rows of training.csv are nowhere else.
        lost = [name] if "/checkpoints/" in name else [name, "report.html"] if name.endswith("training.csv") else []
        found = bench.differences(*lost) if ended.code == 0 else []
        what = f"{way} {name} of the {state.name} run"
        if name == "recipe.toml" and ended.code == 2 and "recipe.toml" in ended.output:
            told.add(what, None)
            continue
        problem = f"ended with {ended.code}: {ended.output[-600:]}" if ended.code else "; ".join(found) or None
        line.add(what, problem)
    _checkpoints_damaged(options, bench, stopped)


def _checkpoints_damaged(options: Options, bench: Bench, stopped: Path) -> None:
    for which, said in (("the last", "going back to the one before"), ("every", "starting anew")):
        line = options.line(f"{which} checkpoint damaged", "cut short", f"says so; {GOOD}")
        bench.clear()
        shutil.copytree(stopped, bench.run)
        folders = sorted(bench.run.glob("*/seed-1/checkpoints/step-*"))
        if which == "the last" and len(folders) == 1:  # make it the second
            shutil.copytree(
                bench.whole / folders[0].relative_to(bench.run).parent, folders[0].parent, dirs_exist_ok=True
            )
            folders = sorted(folders[0].parent.iterdir())
        for each in folders[-1:] if which == "the last" else folders:
            path = each / "state.safetensors"
            path.write_bytes(path.read_bytes()[:-4])
        ended = bench.compare()
        problem = None
        if ended.code or said not in ended.output:
            problem = f"ended with {ended.code}, and does not say {said!r}: {ended.output[-600:]}"
        line.add(which, problem or "; ".join(bench.differences()) or None, ended.steps)


# ---- disks ----


def full_disk(options: Options) -> None:
    with _Mounted(options) as place:
        if place is None:
            return
        bench = Bench(options.folder, options.losses, place)
        whole = bench.make_whole()
        size = sum(path.stat().st_size + 4096 for path in bench.whole.rglob("*") if path.is_file())
        line = options.line("disk full", "a real one of 16 MB, filled up to a point", f"names file and cause; {GOOD}")
        count = options.count(40)
        for k in range(count):
            bench.clear()
            free = int(size * (k + options.chance.random()) / count)
            _fill(place / "filler", free)
            ended = bench.compare()
            (place / "filler").unlink()
            problem = None
            if ended.code:
                named = re.search(r"(?i)no space left", ended.output) and str(bench.run) in ended.output
                problem = None if named else f"does not name file and cause: {ended.output[-600:]}"
            again, lost = goes_on(bench, ended.steps, whole)
            line.add(f"{free} bytes free", problem or again, lost)


def _fill(path: Path, free: int) -> None:
    """Leave so many bytes of a disk."""
    disk = os.statvfs(path.parent)
    with path.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(disk.f_bavail * disk.f_frsize - free, 1))


def read_only(options: Options) -> None:
    with _Mounted(options) as place:
        if place is None:
            return
        bench = Bench(options.folder, options.losses, place)
        whole = bench.make_whole()
        line = options.line("folder read-only from the start", "a real mount, read-only", "refused before any training")
        bench.run.mkdir()
        _mount("--bind", bench.run, bench.run)
        _mount("-o", "remount,ro,bind", bench.run)
        ended = bench.compare()
        subprocess.run(["umount", bench.run], check=True)
        good = ended.code == 2 and ended.steps == 0 and "cannot be written to: Read-only file system" in ended.output
        line.add("", None if good else f"{ended.code}, {ended.steps} steps: {ended.output[-600:]}")
        line = options.line(
            "folder turns read-only", "a real mount, after a random step", f"names file and cause; {GOOD}"
        )
        for _ in range(options.count(8)):
            bench.clear()
            process = bench.start()
            step = options.chance.randint(1, whole.steps - CHECKPOINT_EVERY)
            process.reaches(step)
            _mount("--bind", bench.run, bench.run)
            _mount("-o", "remount,ro,bind", bench.run)
            ended = process.wait()
            subprocess.run(["umount", bench.run], check=True)
            problem = None
            if ended.code not in (1, 2) or "Read-only file system" not in ended.output:
                problem = f"ended with {ended.code}: {ended.output[-600:]}"
            again, lost = goes_on(bench, ended.steps, whole)
            line.add(f"after step {step}", problem or again, lost)


class _Mounted:
    """A disk of 16 MB of its own, or None where there is no mount namespace."""

    def __init__(self, options: Options) -> None:
        self.place = options.folder / "disk"

    def __enter__(self) -> Path | None:
        if _INSIDE not in os.environ:
            print("no mount namespace here (unshare -Urm): disks that are full or read-only are left out")
            return None
        self.place.mkdir()
        _mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", self.place)
        return self.place

    def __exit__(self, *error: object) -> None:
        if _INSIDE in os.environ:
            subprocess.run(["umount", self.place], check=True)


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


# ---- others ----


def two_processes(options: Options) -> None:
    bench = Bench(options.folder, options.losses)
    whole = bench.make_whole()
    line = options.line(
        "a second process on the folder", "while the first is in a random step", "refused, the first named and unharmed"
    )
    free = options.line("its owner killed", "SIGKILL, then the same command at once", GOOD)
    for _ in range(options.count(5)):
        for kill in (False, True):
            bench.clear()
            first = bench.start()
            step = options.chance.randint(1, whole.steps)
            first.reaches(step)
            if kill:
                os.kill(first.pid, signal.SIGKILL)
                problem, lost = goes_on(bench, first.wait().steps, whole)
                free.add(f"in step {step}", problem, lost)
                continue
            second = start(bench.argv, options.folder / "second.txt").wait()
            ended = first.wait()
            refused = second.code == 2 and second.steps == 0 and f"is in use by process {first.pid}" in second.output
            late = second.code == 0 and second.steps == 0  # the first had just ended
            problem = None if refused or late else f"the second ended with {second.code}: {second.output[-600:]}"
            problem = problem or (ended.output[-600:] if ended.code else "; ".join(bench.differences()) or None)
            line.add(f"in step {step}", problem)
    line = options.line(
        "`veridical report` on a run that goes on", "in a random step", "a report, or none yet; no harm done"
    )
    for _ in range(options.count(10)):
        bench.clear()
        first = bench.start()
        step = options.chance.randint(1, whole.steps)
        first.reaches(step)
        read = start(["report", str(bench.run)], options.folder / "second.txt").wait()
        ended = first.wait()
        problem = f"the report ended with {read.code}: {read.output[-600:]}" if read.code not in (0, 2) else None
        problem = problem or (ended.output[-600:] if ended.code else "; ".join(bench.differences()) or None)
        line.add(f"in step {step}", problem)


def clocks(options: Options) -> None:
    """Every look at the clock gives another time, days before or after the last one."""
    bench = Bench(options.folder, options.losses)
    whole = bench.make_whole()
    line = options.line("clock jumps", "by up to 30 days, back and forth, at every look; a kill between", GOOD)
    for _ in range(options.count(8)):
        bench.clear()
        seed, step = options.chance.random(), options.chance.randint(1, whole.steps)
        process = bench.start(lambda: jumping(seed))  # noqa: B023
        process.reaches(step)
        os.kill(process.pid, signal.SIGKILL)
        ended = process.wait()
        again = bench.compare(lambda: jumping(seed + 1))  # noqa: B023
        problem = f"ended with {again.code}: {again.output[-600:]}" if again.code else None
        problem = problem or "; ".join(bench.differences()) or None
        for path in bench.run.rglob("result.json"):
            seconds = json.loads(path.read_bytes())["seconds"]
            if not 0 < seconds < 300:
                problem = problem or f"{path.name} says {seconds} s"
        line.add(f"kill in step {step}", problem, ended.steps + again.steps - whole.steps)


def jumping(seed: float) -> None:
    """Let the clock of this process jump; the one that durations are measured by does not, as the system has it."""
    import datetime

    from veridical.comparison import folder
    from veridical.core import lock

    chance = random.Random(seed)
    now, exact = time.time, datetime.datetime

    def jump() -> float:
        return now() + chance.uniform(-30, 30) * 86400

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Jumping":  # type: ignore[override]
            return exact.fromtimestamp(jump(), tz)  # type: ignore[return-value]

    time.time = jump
    time.time_ns = lambda: int(jump() * 1e9)
    datetime.datetime = folder.datetime = lock.datetime = Jumping  # type: ignore[misc, assignment]


KINDS: dict[str, Callable[[Options], None]] = {
    "operations": killed_at_operations,
    "times": killed_at_times,
    "interrupts": interrupted,
    "damage": damaged,
    "full": full_disk,
    "read-only": read_only,
    "two": two_processes,
    "clocks": clocks,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("kinds", nargs="*", default=list(KINDS), help=f"of {', '.join(KINDS)}; all when left out")
    parser.add_argument("--sample", type=int, help="so many of each; all when left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="1/1", metavar="K/N", help="of operations and damage, every Nth from the Kth")
    asked = parser.parse_args()
    for kind in asked.kinds:
        if kind not in KINDS:
            parser.error(f"{kind!r} is none of {', '.join(KINDS)}")
    namespace = ["unshare", "-Urm"]
    if _INSIDE not in os.environ and _works(namespace):
        os.environ[_INSIDE] = "1"
        os.execvp(namespace[0], [*namespace, sys.executable, "-m", "tests.faults", *sys.argv[1:]])
    part = tuple(int(each) for each in asked.part.split("/"))
    lines = []
    print("| fault | how | times | outcome | steps done again, at most |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        import_everything(Path(folder))
        for kind in asked.kinds:
            own = Path(folder) / kind
            own.mkdir()
            options = Options(own, asked.sample, random.Random(asked.seed), part)
            try:
                KINDS[kind](options)
            finally:
                lines += options.lines
                for line in filter(lambda line: line.times, options.lines):
                    outcome = f"{len(line.problems)} PROBLEMS" if line.problems else line.outcome
                    print(f"| {line.fault} | {line.how} | {line.times} | {outcome} | {line.lost} |", flush=True)
            shutil.rmtree(own)
    problems = [problem for line in lines for problem in line.problems]
    print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


def _works(namespace: Sequence[str]) -> bool:
    try:
        return subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
