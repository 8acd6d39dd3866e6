"""The processes that train together, one for each device: how they start, how they agree, and what if one ends.

Lightning Fabric starts `training.devices` processes of the same command, or finds those that torchrun or srun have
started. They exchange gradients, numbers and text as tensors; nothing is pickled.
"""

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from veridical.core.errors import ProcessLost, RecipeError, VeridicalError
from veridical.training.device import choose_device
from veridical.training.settings import Settings

# How long a process may take to end by itself once another is gone: it may be at work on an image, or print its own
# message. One that waits for the other on an accelerator would never end.
GRACE_S = 30.0
_POLL_S = 0.5

# What collectives say when another process is gone; the types of these errors are torch's RuntimeError, mostly.
_BROKEN = ("connection closed", "connection reset", "broken pipe", "timed out", "timeout", "gloo", "nccl", "socket")


# -- together -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """The processes that train together, as one of them sees them. device: where tensors that they exchange must be."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.total(torch.zeros(1))

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, which give tensors of one shape; back on the device of `values`."""
        return self._reduced(values, distributed.ReduceOp.SUM)

    def least(self, values: Tensor) -> Tensor:
        """The minimum over all processes, element by element."""
        return self._reduced(values, distributed.ReduceOp.MIN)

    def _reduced(self, values: Tensor, how: Any) -> Tensor:
        if self.size == 1:
            return values
        result = values.detach().to(self.device, copy=True)
        distributed.all_reduce(result, how)
        return result.to(values.device)

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Give the tensors of the first process to all, in place of their own of the same shapes."""
        for tensor in tensors if self.size > 1 else ():
            there = tensor.detach().to(self.device)
            distributed.broadcast(there, src=0)
            tensor.detach().copy_(there)

    def texts(self, text: str) -> list[str]:
        """The text of every process, by rank, in each of them."""
        if self.size == 1:
            return [text]
        data = torch.tensor(list(text.encode()), dtype=torch.uint8, device=self.device)
        length = torch.tensor([len(data)], device=self.device)
        lengths = [torch.zeros_like(length) for _ in range(self.size)]
        distributed.all_gather(lengths, length)
        longest = max(int(each) for each in lengths)
        padded = torch.zeros(longest, dtype=torch.uint8, device=self.device)
        padded[: len(data)] = data
        found = [torch.zeros_like(padded) for _ in range(self.size)]
        distributed.all_gather(found, padded)
        return [bytes(each[: int(n)].tolist()).decode() for each, n in zip(found, lengths, strict=True)]


def group() -> Group:
    """The processes that train together, where they were started already; else this one alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return Group()
    where = torch.device("cpu")
    if distributed.get_backend() == "nccl":
        where = torch.device("cuda", torch.cuda.current_device())
    return Group(distributed.get_rank(), distributed.get_world_size(), where)


def is_first() -> bool:
    """Whether this process is the first of those that train together: it alone writes and speaks. Where they have not
    joined yet, what started them says which is which."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def join(settings: Settings) -> Group:
    """Where torchrun or srun has started the processes, join them; processes that Fabric starts join in `train`, when
    the first of them has made every check.

    Errors: RecipeError when other numbers of processes were started than the settings say.
    """
    if settings.processes > 1 and group().size == 1 and _started_outside():
        make_fabric(settings)
    started = os.environ.get("WORLD_SIZE", "1") if "TORCHELASTIC_RUN_ID" in os.environ else "1"
    if settings.processes == 1 and started != "1":
        raise RecipeError(
            f"{started} processes were started together, but training.devices * training.nodes is 1. "
            "Set training.devices (--devices) to the processes on each machine, and training.nodes."
        )
    return group()


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """The first process goes through the body before the others: it makes what all of them need."""
    members = group()
    if members.rank:
        with together():
            members.barrier()
    try:
        yield
    finally:
        if not members.rank:
            members.barrier()


def check_same(what: str, seen: str) -> None:
    """Raise ProcessLost when the processes see different files, as on a disk that they do not share."""
    texts = group().texts(seen)
    other = next((rank for rank, text in enumerate(texts) if text != texts[0]), None)
    if other is not None:
        raise ProcessLost(
            f"the processes that train together see different {what}: the first {texts[0]}, process {other} "
            f"{texts[other]}. The run folder must be on storage that all of them share."
        )


def _started_outside() -> bool:
    """Whether torchrun or srun has started this process; an interactive job of SLURM has but reserved the machine."""
    by_srun = "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    return "TORCHELASTIC_RUN_ID" in os.environ or by_srun


# -- Fabric ---------------------------------------------------------------------------------------------


class PlainFabric:
    """What the loop needs of Lightning Fabric, by torch alone: one device, float32 or bfloat16. It trains to the same
    bits in float32, and Fabric takes seconds to import."""

    def __init__(self, settings: Settings) -> None:
        if settings.processes > 1 or settings.precision == "16-mixed":
            raise RecipeError(
                "training on several devices, or in 16-mixed, needs Lightning Fabric. "
                'Install it with: pip install "veridical[compare]", or use devices = 1 and bf16-mixed.'
            )
        self.device = choose_device(settings.device)
        self._mixed = settings.precision == "bf16-mixed"

    def setup(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        return model.to(self.device), optimizer

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._mixed)

    def backward(self, total: Tensor) -> None:
        total.backward()

    def no_backward_sync(self, model: nn.Module, *, enabled: bool) -> contextlib.AbstractContextManager[None]:
        del model, enabled
        return contextlib.nullcontext()

    def clip_gradients(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, max_norm: float, error_if_nonfinite: bool
    ) -> None:
        del optimizer
        nn.utils.clip_grad_norm_(model.parameters(), max_norm, error_if_nonfinite=error_if_nonfinite)


def make_fabric(settings: Settings, *, all_used: bool = True) -> Any:
    """Plain torch where that is all that is needed, one device in float32; else Lightning Fabric, with its processes
    started; without it, what plain torch can do.

    Args:   all_used: whether every weight of the model has a part in every loss; else several devices look for those
            that have none.
    Errors: RecipeError when the devices, or the processes, are not there.
    """
    return _lightning_fabric(settings, all_used) if needs_fabric(settings) else PlainFabric(settings)


def needs_fabric(settings: Settings) -> bool:
    """Whether a training needs more than plain torch."""
    return settings.processes > 1 or settings.precision != "32-true"


def _lightning_fabric(settings: Settings, all_used: bool = True) -> Any:
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import DDPStrategy
    except ImportError:
        return PlainFabric(settings)
    if settings.nodes > 1 and not _started_outside():
        raise RecipeError(
            f"training.nodes is {settings.nodes}, but this process was started alone. Start all of them with torchrun "
            f"or srun: torchrun --nnodes {settings.nodes} --nproc-per-node {settings.devices} ... -m veridical ..."
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The `srun` command is available")  # it need not be used
        fabric = Fabric(
            accelerator=choose_device(settings.device, count=settings.devices).type,
            devices=settings.devices,
            num_nodes=settings.nodes,
            precision=settings.precision,  # type: ignore[arg-type] # checked by Settings
            strategy=DDPStrategy(find_unused_parameters=not all_used) if settings.processes > 1 else "auto",
        )
    if settings.processes > 1:
        try:
            fabric.launch()
        except ValueError as error:  # of torchrun or srun, whose numbers do not fit
            raise RecipeError(
                f"training.devices = {settings.devices} and training.nodes = {settings.nodes} do not fit the processes "
                f"that were started: {error}"
            ) from error
        if not _watch.is_alive():
            atexit.register(_leave_the_group)
            _watch.begin(fabric)
    return fabric


def _leave_the_group() -> None:
    """Without it, a process that ends while others are connected is aborted."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def accelerators(device: torch.device) -> list[int]:
    """Which CUDA devices' random state to keep aside, for torch.random.fork_rng."""
    return [device.index or 0] if device.type == "cuda" else []


# -- when one ends --------------------------------------------------------------------------------------


class _Watch(threading.Thread):
    """Ends this process when one that it trains with has ended, unless it notices by itself, and says so.

    Fabric's own observer kills this process without a word; it gives up once it has no children to look at.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True, name="veridical-watch")
        self.children: list[subprocess.Popen[bytes]] = []
        self.parent: int | None = None

    def begin(self, fabric: Any) -> None:
        launched = getattr(getattr(fabric.strategy, "launcher", None), "procs", [])
        self.children = list(launched)
        launched.clear()
        if not self.children and not _started_outside():
            self.parent = os.getppid()
        if self.children or self.parent:
            self.start()

    def run(self) -> None:
        while (lost := self.lost()) is None:
            time.sleep(_POLL_S)
        time.sleep(GRACE_S)
        print(f"error: {lost}; without it nothing goes on. {_AGAIN}", file=sys.stderr, flush=True)
        self.end()
        os._exit(1)

    def lost(self) -> str | None:
        """Which process has failed, and how; None while all go on, or have ended as they should."""
        for rank, child in enumerate(self.children, start=1):
            if code := child.poll():
                how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
                reason = ", as the kernel does when memory runs out" if code == -signal.SIGKILL else ""
                return f"process {rank} of {len(self.children) + 1} {how}{reason}"
        if self.parent is not None and os.getppid() != self.parent:
            return "the first process has ended"
        return None

    def end(self) -> None:
        """End the processes that this one has started: they cannot go on by themselves."""
        for child in self.children:
            if child.poll() is None:
                child.kill()


_watch = _Watch()
_AGAIN = "Run the same command again to go on."


@contextlib.contextmanager
def together(last_good: Callable[[], Path | None] | None = None) -> Iterator[None]:
    """Turn what breaks when another process is gone, or this one alone cannot go on, into an error that says so.

    Args: last_good: the checkpoint to go on from, in a training.
    """
    members = group()
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if members.size == 1 or isinstance(error, VeridicalError):
            raise
        kept = ""
        if last_good:
            path = last_good()
            kept = f"The last good checkpoint is {path}. " if path else "There is no checkpoint yet. "
        if isinstance(error, torch.OutOfMemoryError):
            raise ProcessLost(
                f"the device of process {members.rank} of {members.size} has too little memory. {kept}Try a larger "
                "training.accumulate, a smaller training.batch_size or training.crop."
            ) from error
        if not any(word in str(error).lower() for word in _BROKEN):
            raise
        lost = _who_is_lost() or f"another process has ended or does not answer ({str(error).splitlines()[0]})"
        _watch.end()
        raise ProcessLost(f"{lost}; the others cannot go on without it. {kept}{_AGAIN}") from error


def _who_is_lost() -> str | None:
    """A connection breaks a little before the process that held it has ended."""
    for _ in range(10):
        if lost := _watch.lost():
            return lost
        time.sleep(0.2)
    return None
