"""The benchmark itself: cases in, measurements out. Nothing here prints or writes."""

import datetime
import os
import platform
import re
import subprocess
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from veridical import __version__
from veridical.benchmark import peers
from veridical.benchmark.cases import CASES, PACKAGES, WITHOUT_DEPENDENCIES, Case, Target
from veridical.benchmark.measure import Call, Images, Times, interleaved, peak_memory, threads
from veridical.benchmark.peers import Peer
from veridical.benchmark.roofline import Rates, Work, count, measure_rates
from veridical.benchmark.supply import Supply
from veridical.benchmark.trunks import trunks
from veridical.core.catalog import nearest
from veridical.core.errors import UnknownName, VeridicalError
from veridical.core.memory import Memory
from veridical.core.options import check_number, check_whole
from veridical.losses import LOSSES, loss, needs
from veridical.metrics import metric
from veridical.metrics import needs as metric_needs

OURS = "veridical"
# How far a peer may lie from ours, relatively, and still be called the same. Gradients feel where a peer has its ε.
VALUE_AGREES, GRADIENT_AGREES = 1e-3, 1e-2
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Settings:
    """Attributes:
    only: names or specs of cases, all when empty. size: in place of each case's own (N, C, H, W).
    seconds: for the timing of one case. repeats: at least so many rounds, whatever the seconds.
    threads: of torch, 0 for its default. random_weights: leave pretrained ones alone.
    """

    only: tuple[str, ...] = ()
    size: tuple[int, int, int, int] | None = None
    seconds: float = 6.0
    repeats: int = 3
    threads: int = 0
    device: str = "cpu"
    random_weights: bool = False

    def __post_init__(self) -> None:
        check_number("seconds", self.seconds, low=0)
        check_whole("repeats", self.repeats, low=1)
        check_whole("threads", self.threads, low=0)
        if self.size is not None and (len(self.size) != 4 or self.size[1] != 3 or min(self.size) < 1):
            raise VeridicalError(f"the size {self.size} is not that of RGB images. Expected such as 4x3x256x256.")


@dataclass(frozen=True)
class Measured:
    """One contestant in one case.

    Attributes:
    value_difference, gradient_difference: from ours, relative; None where it is another function, and
                of the value where that lies a constant away.
    """

    name: str
    time: Times
    memory: Memory
    value: float
    value_difference: float | None
    gradient_difference: float | None
    note: str = ""

    @property
    def agrees(self) -> bool | None:
        """Whether it computes what ours does; None where it is not meant to."""
        value, gradient = self.value_difference, self.gradient_difference
        if value is None and gradient is None:
            return None
        return (value or 0.0) <= VALUE_AGREES and (gradient or 0.0) <= GRADIENT_AGREES


@dataclass(frozen=True)
class Row:
    """One case, measured.

    Attributes: attainable: seconds of the roofline, None where no plain form was counted. missing: peers -> why.
    """

    name: str
    shape: tuple[int, ...]
    metric: bool
    target: Target
    contestants: tuple[Measured, ...]
    flop: int | None
    bytes: int | None
    attainable: float | None
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> Measured:
        return self.contestants[0]

    @property
    def peers(self) -> tuple[Measured, ...]:
        """Those that ours is held against: the one that the target names, or all that compute the same, or that differ
        in a way that we know of and that does not make them faster."""
        others = self.contestants[1:]
        if self.target.against:
            return tuple(each for each in others if each.name == self.target.against)
        return tuple(each for each in others if each.agrees or (each.agrees is False and each.note))

    @property
    def fastest(self) -> Measured | None:
        return min(self.peers, key=lambda each: each.time.median, default=None)

    @property
    def leanest(self) -> Measured | None:
        return min(self.peers, key=lambda each: each.memory.tensors, default=None)

    @property
    def time_ratio(self) -> float | None:
        """Our median time over that of the fastest peer."""
        return self.ours.time.median / self.fastest.time.median if self.fastest else None

    @property
    def memory_ratio(self) -> float | None:
        """Our memory over that of the leanest peer."""
        if not self.leanest or not self.leanest.memory.tensors:
            return None
        return self.ours.memory.tensors / self.leanest.memory.tensors

    @property
    def roofline(self) -> float | None:
        """How many times the least possible time ours takes."""
        return self.ours.time.median / self.attainable if self.attainable else None

    @property
    def met(self) -> bool | None:
        """Whether both targets are; None when there is none, or nobody to compare with."""
        pairs = [(self.time_ratio, self.target.time), (self.memory_ratio, self.target.memory)]
        wanted = [(ratio, limit) for ratio, limit in pairs if limit is not None]
        if not wanted or any(ratio is None for ratio, _ in wanted):
            return None
        return all(ratio <= limit for ratio, limit in wanted if ratio is not None)


@dataclass(frozen=True)
class Result:
    """Everything that was measured. machine: who, when and with which versions. skipped: cases -> why."""

    machine: Mapping[str, Any]
    rates: Rates
    rows: tuple[Row, ...]
    skipped: Mapping[str, str]
    absent: Mapping[str, str]
    weights: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what was measured, and the ratios that follow from it."""
        out = asdict(self)
        for row, written in zip(self.rows, out["rows"], strict=True):
            for name in ("time_ratio", "memory_ratio", "roofline", "met"):
                written[name] = getattr(row, name)
        return out


def read_size(text: str) -> tuple[int, int, int, int]:
    """(N, C, H, W) from "4x3x256x256".

    Errors: VeridicalError.
    """
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)x(\d+)", text.strip())
    if not match:
        raise VeridicalError(
            f"cannot read the size {text!r}. Expected images, channels, height and width: 4x3x256x256."
        )
    count, channels, height, width = map(int, match.groups())
    return count, channels, height, width


def choose(only: Sequence[str]) -> tuple[Case, ...]:
    """The cases of these names: the whole spec ("lpips(net=vgg)", "metric ssim"), or the loss's name for all of its."""
    if not only:
        return CASES
    chosen = []
    for name in only:
        found = [case for case in CASES if name in (case.name, case.name.partition("(")[0])]
        if not found:
            known = [case.name for case in CASES]
            close = nearest(name, known)
            hint = f"Did you mean {close!r}? " if close else ""
            raise UnknownName(f"unknown case {name!r}. {hint}Known: {', '.join(known)}.")
        chosen += [case for case in found if case not in chosen]
    return tuple(chosen)


def measure(settings: Settings, progress: Progress = lambda *_: None) -> Result:
    """Measure the chosen cases. progress(number, all, name) is called as each begins, and once at the end.

    Errors: UnknownName for a case that there is not.
    """
    cases = choose(settings.only)
    device = torch.device(settings.device)
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    quiet = warnings.catch_warnings()
    with Supply(always_random=settings.random_weights) as supply, threads(settings.threads), quiet:
        warnings.simplefilter("ignore")  # the peers' own
        absent = missing_packages(supply)
        progress(0, len(cases), "this machine's rates")
        rates = measure_rates(device)
        for number, case in enumerate(cases):
            progress(number, len(cases), case.name)
            try:
                rows.append(_measure_case(case, settings, device, supply, rates, absent))
            except Exception as error:  # what goes wrong in one case must not cost the others
                skipped[case.name] = peers.why(error)
        progress(len(cases), len(cases), "")
        machine = describe(device)
    return Result(machine, rates, tuple(rows), skipped, absent, supply.origins)


def missing_packages(supply: Supply) -> dict[str, str]:
    """Peers that are not here, or that cannot be imported -> why."""
    missing = {}
    with trunks(supply.tensors), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, module in PACKAGES.items():
            if not peers.version(name):
                how = f"--no-deps {name}" if name in WITHOUT_DEPENDENCIES else '"veridical[bench]"'
                missing[name] = f"not installed: pip install {how}"
                continue
            try:
                import_module(module)
            except Exception as error:
                missing[name] = peers.why(error)
    return missing


def _measure_case(
    case: Case, settings: Settings, device: torch.device, supply: Supply, rates: Rates, absent: Mapping[str, str]
) -> Row:
    images = pictures(settings.size or case.shape, device, with_gradient=not case.metric)
    contestants: dict[str, Peer] = {}
    calls: dict[str, Call] = {OURS: build_ours(case, supply, device)}
    missing: dict[str, str] = {}
    seen: dict[str, tuple[Tensor, Tensor | None]] = {OURS: images.run(calls[OURS])}
    # A loss of single pixels has no plain form to count: it reads both images, and writes the gradient.
    work = None if case.counted else Work(0, images.bytes)
    for peer in case.peers:
        if peer.package in absent:
            missing[peer.name] = absent[peer.package]
            continue
        try:
            calls[peer.name] = peers.build(peer, supply, device)
            # Also the warming up.
            if peer.name == case.counted:
                work, seen[peer.name] = count(calls[peer.name], images)
            else:
                seen[peer.name] = images.run(calls[peer.name])
        except Exception as error:  # whatever a stranger's code may raise
            calls.pop(peer.name, None)
            missing[peer.name] = peers.why(error)
            continue
        contestants[peer.name] = peer
    memory = {name: peak_memory(call, images) for name, call in calls.items()}
    times = interleaved(calls, images, seconds=settings.seconds, repeats=settings.repeats)

    def measured(name: str) -> Measured:
        value, gradient = seen[name]
        same = name == OURS or contestants[name].same
        constant = name != OURS and contestants[name].constant
        return Measured(
            name=name,
            time=times[name],
            memory=memory[name],
            value=float(value),
            value_difference=_apart(value, seen[OURS][0]) if same and not constant else None,
            gradient_difference=_apart(gradient, seen[OURS][1]) if same else None,
            note=contestants[name].note if name in contestants else "",
        )

    return Row(
        name=case.name,
        shape=tuple(images.prediction.shape),
        metric=case.metric,
        target=case.target,
        contestants=tuple(map(measured, calls)),
        flop=work.flop if work else None,
        bytes=work.bytes if work else None,
        attainable=work.attainable(rates) if work else None,
        missing=missing,
    )


def build_ours(case: Case, supply: Supply, device: torch.device) -> Call:
    """The loss or metric of a case, with the weights that its peers have."""
    make, needed = (metric, metric_needs) if case.metric else (loss, needs)
    return make(case.spec, **_options(case.spec, needed(case.spec), supply)).to(device).eval()


def _options(spec: str, needed: tuple[str, ...], supply: Supply) -> dict[str, Any]:
    """Where ours finds its weights."""
    own = next((case.weights for case in CASES if case.weights and case.spec == spec), None)
    return {"weights": str(own(supply))} if own else supply.options(needed)


def _apart(one: Tensor | None, other: Tensor | None) -> float | None:
    """|one - other| / |other|, over all entries."""
    if one is None or other is None:
        return None
    return float((one - other).norm() / other.norm().clamp_min(1e-30))


def pictures(shape: Sequence[int], device: torch.device, *, with_gradient: bool) -> Images:
    """Smooth random pictures, and the same with noise, away from 0 and 1: no peer clips them or refuses them."""
    generator = torch.Generator().manual_seed(0)
    count, channels, height, width = shape
    coarse = torch.rand(count, channels, max(2, height // 8), max(2, width // 8), generator=generator)
    target = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False).clamp(0.1, 0.9)
    prediction = (target + 0.05 * torch.randn(target.shape, generator=generator)).clamp(0.01, 0.99)
    return Images(prediction.to(device), target.to(device), with_gradient)


# ---- what each loss costs, in units of l2 ----


def measure_costs(settings: Settings, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """The time of every loss of the table at its default options, forward and backward in training mode, over that of
    l2, measured in turn with it. Losses that cannot be built here are left out."""
    device = torch.device(settings.device)
    images = pictures(settings.size or (4, 3, 256, 256), device, with_gradient=True)
    relative = {}
    with Supply(always_random=settings.random_weights) as supply, threads(settings.threads):
        for number, name in enumerate(LOSSES):
            progress(number, len(LOSSES), name)
            try:
                built = loss(name, **_options(name, needs(name), supply)).to(device).train()
                calls = {name: built, "l2 itself": loss("l2").to(device)}
                for call in calls.values():
                    images.run(call)
            except (VeridicalError, ImportError, OSError, ValueError):
                continue
            times = interleaved(calls, images, seconds=settings.seconds, repeats=settings.repeats)
            relative[name] = float(f"{times[name].median / times['l2 itself'].median:.3g}")
        progress(len(LOSSES), len(LOSSES), "")
        machine = describe(device)
    return {
        "machine": f"{machine['processor']}, {machine['threads']} threads",
        "date": machine["date"],
        "shape": list(images.prediction.shape),
        "relative_to_l2": relative,
    }


# ---- the machine ----


def describe(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "processor": gpu or processor(),
        "device": device.type,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "veridical": version_of_ours(),
        "peers": {name: peers.version(name) for name in PACKAGES if peers.version(name)},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def processor() -> str:
    """The CPU's own name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        match = re.search(r"model name\s*:\s*(.+)", info.read_text())
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def version_of_ours() -> str:
    """The version, with the commit where the package lies in a git checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=5,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__} ({done.stdout.strip()})"
