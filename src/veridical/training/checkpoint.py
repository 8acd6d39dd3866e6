"""Checkpoints: folders of safetensors and JSON that appear whole or not at all.

checkpoints/step-00001000/model.safetensors   the model's state_dict
                          state.safetensors   optimiser, EMA, loss and random state
                          state.json          step, seconds, fingerprint, versions, hashes of the two
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from veridical.core.errors import RecipeError, VeridicalError
from veridical.core.files import flush_folder
from veridical.core.untrusted import MOST_TEXT_BYTES, parse_json, read_file

MOST_BYTES = 256 * 2**30  # of a file of tensors
KEEP = 2  # the newest, and the one before in case the newest is damaged

_STEP = re.compile(r"step-(\d{8,})")


class StorageError(VeridicalError, OSError):
    """The disk refused what training had to write; what was there before is intact."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds; every tensor on the CPU.

    seconds:     of training so far.
    fingerprint: setting -> value, of everything that must be the same for the run to go on.
    model:       the model's state_dict.
    state:       "optimizer.<parameter>.<key>", "ema.<name>", "loss.<name>", "random.<device>".
    """

    step: int
    seconds: float
    fingerprint: Mapping[str, str]
    model: Mapping[str, Tensor]
    state: Mapping[str, Tensor]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of `state` below `name`, by the rest of their keys."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): value for key, value in self.state.items() if key.startswith(prefix)}


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder`/step-00001000 and delete all but the newest KEEP up to it: those of later steps were found
    damaged, or the run would have gone on from them. Returns its path.

    The files are written and flushed in a hidden folder beside it, which is then renamed.
    Errors: StorageError naming path and cause; older checkpoints are then intact and the hidden folder is
            removed.
    """
    path = folder / f"step-{checkpoint.step:08d}"
    temporary = _hidden(path)
    with storage(path, last_good=newest(folder)):
        try:
            temporary.mkdir(parents=True)
            hashes = {}
            for name, tensors in (("model", checkpoint.model), ("state", checkpoint.state)):
                whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
                data = safetensors.torch.save(_unshared(whole))
                hashes[name] = hashlib.sha256(data).hexdigest()
                _write(temporary / f"{name}.safetensors", data)
            facts = {
                "step": checkpoint.step,
                "seconds": checkpoint.seconds,
                "fingerprint": dict(checkpoint.fingerprint),
                "sha256": hashes,
                "versions": {"torch": torch.__version__},
            }
            _write(temporary / "state.json", json.dumps(facts, indent=2).encode())
            flush_folder(temporary)
            if path.exists():  # damaged, or of an older run of the same length
                path.rename(_hidden(path))
            temporary.rename(path)
            flush_folder(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    tidy(folder, checkpoint.step)
    return path


def tidy(folder: Path, step: int) -> None:
    """Delete all but the newest KEEP up to `step`, and what a killed process has left of those it wrote or deleted."""
    paths = _paths(folder)
    kept = [path for number, path in paths if number <= step][-KEEP:]
    for _, path in paths:
        if path not in kept:
            with contextlib.suppress(OSError):  # first out of the way, so that no half of it counts as damaged
                path.rename(_hidden(path))
    for left in folder.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)


def newest(folder: Path) -> Path | None:
    """The checkpoint of the highest step, unread; None when there is none."""
    paths = _paths(folder)
    return paths[-1][1] if paths else None


def load(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, or None; and a message for each damaged one passed over.

    Errors: StorageError for one that may be whole but cannot be read: to pass over it could throw work away.
    """
    messages: list[str] = []
    for _, path in reversed(_paths(folder)):
        try:
            return read(path), messages
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, SafetensorError) as error:
            messages.append(f"the checkpoint {path} is damaged ({error}); going back to the one before.")
        except OSError as error:
            raise StorageError(
                f"cannot read the checkpoint {path}: {error.strerror or error}. Mend that and run the same command to "
                f"go on; or delete {path} to go on from the one before."
            ) from error
    if messages:
        messages.append(f"no checkpoint in {folder} is whole: starting anew.")
    return None, messages


def read(path: Path) -> Checkpoint:
    """One checkpoint. Errors: OSError, ValueError or SafetensorError when it is damaged."""
    try:
        facts = parse_json(_contents(path / "state.json", MOST_TEXT_BYTES))
        step, seconds, fingerprint = int(facts["step"]), float(facts["seconds"]), dict(facts["fingerprint"])
        hashes = dict(facts["sha256"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"state.json is not what was written: {type(error).__name__} {error}") from error
    if path.name != f"step-{step:08d}":
        raise ValueError(f"state.json is that of step {step}")
    tensors = {}
    for name in ("model", "state"):
        data = _contents(path / f"{name}.safetensors", MOST_BYTES)
        if hashlib.sha256(data).hexdigest() != hashes.get(name):
            raise ValueError(f"{name}.safetensors is not what was written: its sha256 differs")
        tensors[name] = safetensors.torch.load(data)
    return Checkpoint(step, seconds, fingerprint, tensors["model"], tensors["state"])


def _contents(path: Path, most: int) -> bytes:
    """A file's bytes. Errors: ValueError for what no checkpoint has, such as a pipe; OSError when it cannot be read."""
    try:
        return read_file(path, most)
    except OSError as error:
        if error.errno in (errno.EFBIG, errno.EINVAL):
            raise ValueError(error.strerror) from error
        raise


def check_fingerprint(checkpoint: Checkpoint, fingerprint: Mapping[str, str], folder: Path) -> None:
    """Raise RecipeError that names each setting by which a run differs from the one it would go on from."""
    saved = checkpoint.fingerprint
    differing = [
        f"{name} was {saved.get(name, 'not set')}, now {fingerprint.get(name, 'not set')}"
        for name in sorted(saved.keys() | fingerprint.keys())
        if saved.get(name) != fingerprint.get(name)
    ]
    if differing:
        raise RecipeError(
            f"{folder} holds a run of other settings, at step {checkpoint.step}: {'; '.join(differing)}. "
            "Go on with the old settings, or choose another --out."
        )


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's state as "<parameter>.<key>" -> tensor."""
    return {
        f"{parameter}.{key}": value
        for parameter, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; learning rates stay as they are."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter, _, key = name.partition(".")
        state.setdefault(int(parameter), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


@contextlib.contextmanager
def storage(path: Path, *, last_good: Path | None) -> Iterator[None]:
    """Turn an OSError into a StorageError that names `path`, the cause, and the checkpoint to go on from."""
    try:
        yield
    except StorageError:
        raise
    # safetensors wraps what the system says in an error of its own
    except (OSError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        resume = f"The last good checkpoint is {last_good}" if last_good else "There is no earlier checkpoint"
        raise StorageError(
            f"cannot write {path}: {cause}. {resume}. Free some space, or mend the permissions, "
            "and run the same command to go on."
        ) from error


def _paths(folder: Path) -> list[tuple[int, Path]]:
    """The step and the folder of finished checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((int(match[1]), path) for path in folder.iterdir() if (match := _STEP.fullmatch(path.name)))


def _hidden(path: Path) -> Path:
    """Where a checkpoint is while it is not whole: not yet, or no longer."""
    return path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors that share memory with another, which safetensors refuses."""
    seen: set[int] = set()
    result = {}
    for key, value in tensors.items():
        start = value.untyped_storage().data_ptr()
        result[key] = value.clone() if start in seen else value
        seen.add(start)
    return result


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
