"""Take a trained model elsewhere: one file for ONNX or torch.export, written only when it gives the same image."""

import contextlib
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from veridical import __version__
from veridical.comparison.restore import load_model
from veridical.core import catalog
from veridical.core.errors import DataError
from veridical.core.files import atomic_write

FORMATS: dict[str, str] = {"onnx": ".onnx", "torch": ".pt2"}

# What the exported file may differ by, in parts of the largest value or of 1: a fortieth of a level of 8 bits.
TOLERANCE = 1e-4

_DIMENSIONS = {0: "batch", 2: "height", 3: "width"}

Runs = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """What was written, and how it was checked.

    dynamic: the dimensions that a caller may choose. fixed: the others, with the one size that the file takes there.
    checked: the shapes on which the file was compared with the model. largest_difference: found there, against a
    tolerance of `TOLERANCE`.
    """

    path: Path
    bytes: int
    dynamic: tuple[str, ...]
    fixed: dict[str, int]
    checked: tuple[tuple[int, ...], ...]
    largest_difference: float


def export_model(
    folder: Path | str,
    destination: Path,
    *,
    format: str | None = None,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    overwrite: bool = False,
) -> Exported:
    """Export the model of one loss of a run. Input "image" (N, C, H, W) in [0, 1] -> "restored" (N, C, s*H, s*W).

    What the file says of itself is in ONNX's metadata_props, or in torch.export's extra file veridical.json: model,
    options, task, loss, channels, scale, enlarge, range, version. The file is made, read back (onnxruntime on the CPU;
    torch.export.load) and compared with the model before it is written, on two shapes, one of whose sides are no
    multiples of anything. A file of torch.export may refuse images of a few px: restormer's refuses widths of 8 px and
    less, ifan's images of at most 8x8.

    Args:   folder: of one loss, such as runs/x/l1. format: "onnx" or "torch"; None: by the suffix, .onnx or .pt2.
            size: (height, width), fixed, for one image; None: any size and any number of images, or one image where
            torch.export cannot leave that open.
            opset: of ONNX; None: torch's own choice.
    Errors: DataError when the run holds no finished model, the file exists, the model cannot be exported, or the
            exported file gives another image (it says by how much); MissingExtra.
    """
    format = _format(destination, format)
    if opset is not None and format != "onnx":
        raise DataError(f"opset belongs to ONNX, but the format is {format!r}. Leave it out.")
    if destination.exists() and not overwrite:
        raise DataError(f"{destination} exists already. Name another file, or pass --overwrite.")
    model, about = load_model(folder)
    if getattr(model, "uses_kernel", False):
        raise DataError(
            f"the model {about['model']['name']!r} takes the kernel of the blur beside the image: it is not exported."
        )
    described = _described(model, about)
    multiple, channels = getattr(model, "multiple", 1), getattr(model, "channels", 3)
    make = _made_onnx if format == "onnx" else _made_torch
    if format == "onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            catalog.require(module, "export", "exporting to ONNX")
    if size is not None:
        attempts: list[tuple[tuple[int, ...], list[tuple[int, ...]], bool]] = [((), [(1, channels, *size)], False)]
    else:
        first, second = (4 * multiple + 32, 5 * multiple + 32), (3 * multiple + 37, multiple + 51)
        two_images: list[tuple[int, ...]] = [(2, channels, *second), (1, channels, *first)]
        one_image: list[tuple[int, ...]] = [(1, channels, *second), (1, channels, *first)]
        attempts = [
            ((0, 2, 3), two_images, False),
            # torch.export may take for granted what holds for two images or more, mostly their layout in memory: with
            # copies in one and the same layout there is less to take for granted.
            ((0, 2, 3), two_images, True),
            ((2, 3), one_image, False),
        ]
    refused: _Bound | None = None
    for dynamic, shapes, copied in attempts:
        with _Copied() if copied else contextlib.nullcontext():
            program = _traced(model, shapes[0], dynamic)
        data, run = make(program, described, opset)
        try:
            difference = _largest_difference(model, run, shapes, format)
            break
        except _Bound as error:
            refused = error
    else:
        raise DataError(
            f"the exported {about['model']['name']} refuses a size that the model takes ({refused}). Export it for one "
            "size, with --size HEIGHTxWIDTH."
        ) from refused
    atomic_write(destination, data)
    free = tuple(_DIMENSIONS[dimension] for dimension in dynamic)
    fixed = {name: shapes[0][dimension] for dimension, name in _DIMENSIONS.items() if dimension not in dynamic}
    return Exported(destination, len(data), free, fixed, tuple(shapes), difference)


class _Bound(Exception):
    """The exported program is bound to some sizes and refuses another."""


def _format(destination: Path, format: str | None) -> str:
    if format is None:
        by_suffix = {suffix: name for name, suffix in FORMATS.items()}
        if destination.suffix not in by_suffix:
            raise DataError(
                f"the format of {destination} is not known: expected a name that ends in .onnx or .pt2, or --format."
            )
        return by_suffix[destination.suffix]
    catalog.lookup(FORMATS, format, "format")
    return format


def _described(model: nn.Module, about: dict[str, Any]) -> dict[str, str]:
    """What the file says of itself; text, because ONNX has no other."""
    return {
        "model": str(about["model"]["name"]),
        "options": json.dumps(about["model"]["options"], sort_keys=True),
        "task": str(about.get("task", "")),
        "degradation": str(about.get("degradation", "")),
        "loss": str(about.get("loss", "")),
        "channels": str(getattr(model, "channels", 3)),
        "scale": str(getattr(model, "scale", 1)),
        "enlarge": str(about.get("enlarge") or 1),  # so many times by bicubic interpolation, before the model
        "range": "[0, 1]; the result is not clamped",
        "version": f"veridical {__version__}, torch {torch.__version__}",
    }


def _images(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _traced(model: nn.Module, shape: tuple[int, ...], dynamic: tuple[int, ...]) -> torch.export.ExportedProgram:
    """The model as torch.export sees it, with those dimensions left open."""
    shapes = (dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC),) if dynamic else None
    try:
        with _quiet(), _no_size_is_special():
            return torch.export.export(model, (_images(shape),), dynamic_shapes=shapes)
    except Exception as error:  # it raises a dozen kinds, of its own and of its libraries
        raise DataError(f"torch.export cannot follow {type(model).__name__}: {_brief(error)}") from error


class _Copied(TorchFunctionMode):
    """Copies every view with its dimensions in another order, or with a part of the channels, into a tensor of its own.

    What reads such a view asks how it lies in memory. The answer differs between one image and several, and between
    sides of 1 and longer ones, and torch.export binds the program to the one that it found.
    """

    _VIEWS = frozenset(
        getattr(owner, name) for owner in (torch, Tensor) for name in ("chunk", "permute", "transpose", "unbind")
    )

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        if function not in self._VIEWS:
            return found
        if isinstance(found, Tensor):
            return found.clone(memory_format=torch.contiguous_format)
        return tuple(each.clone(memory_format=torch.contiguous_format) for each in found)


@contextlib.contextmanager
def _no_size_is_special() -> Iterator[None]:
    """Keeps torch.export from treating sizes of 0 and 1 as other cases: the program would then refuse them, and every
    size at which something inside has a side of 1. Without the setting, in older versions, it does refuse them."""
    from torch.fx.experimental import _config

    if hasattr(_config, "backed_size_oblivious"):
        with _config.patch(  # type: ignore[attr-defined]
            backed_size_oblivious=True
        ):
            yield
    else:
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks on packages that are not there, and on their own deprecations."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _made_torch(
    program: torch.export.ExportedProgram, described: dict[str, str], opset: int | None
) -> tuple[bytes, Runs]:
    del opset
    stream = io.BytesIO()
    with _quiet():
        torch.export.save(program, stream, extra_files={"veridical.json": json.dumps(described, indent=2)})
        data = stream.getvalue()
        module = torch.export.load(io.BytesIO(data)).module()

    @torch.no_grad()
    def run(image: Tensor) -> Tensor:
        try:
            result: Tensor = module(image)
        except (AssertionError, RuntimeError) as error:
            raise _Bound(_brief(error)) from error
        return result

    return data, run


def _made_onnx(
    program: torch.export.ExportedProgram, described: dict[str, str], opset: int | None
) -> tuple[bytes, Runs]:
    import onnxruntime

    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["restored"], "opset_version": opset}
    with _quiet():
        try:
            made = torch.onnx.export(program, (), dynamo=True, verbose=False, **names)
        except Exception:
            # Its optimiser fails on some graphs, MPRNet's for one, that are sound without it.
            try:
                made = torch.onnx.export(program, (), dynamo=True, verbose=False, optimize=False, **names)
            except Exception as error:
                raise DataError(f"torch.onnx cannot export the model: {_brief(error)}") from error
    assert made is not None
    _name_dimensions(made.model)
    made.model.metadata_props.update(described)
    data = made.model_proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise DataError(f"onnxruntime cannot read the exported model: {_brief(error)}") from error

    def run(image: Tensor) -> Tensor:
        try:
            (result,) = session.run(None, {"image": image.numpy()})
        except Exception as error:
            raise _Bound(_brief(error)) from error
        return torch.from_numpy(np.asarray(result))

    return data, run


def _name_dimensions(model: Any) -> None:
    """Call the open dimensions batch, height and width wherever torch's own names (s73) stand in shapes."""
    (image,) = model.graph.inputs
    names = {str(image.shape[place].value): name for place, name in _DIMENSIONS.items() if _is_open(image.shape[place])}
    if not names:
        return
    pattern = re.compile(rf"\b({'|'.join(names)})\b")
    for value in (image, *(output for node in model.graph for output in node.outputs)):
        for place, dimension in enumerate(value.shape or ()):
            if _is_open(dimension):
                value.shape[place] = pattern.sub(lambda found: names[found[0]], str(dimension.value))


def _is_open(dimension: Any) -> bool:
    return not isinstance(dimension, int) and dimension.value is not None


def _largest_difference(model: nn.Module, run: Runs, shapes: list[tuple[int, ...]], format: str) -> float:
    """Between the file's images and the model's, in parts of the largest value or of 1.

    Errors: DataError when that is above the tolerance; _Bound when the file refuses one of the shapes.
    """
    largest = 0.0
    for shape in shapes:
        image = _images(shape)
        with torch.no_grad():
            expected = model(image)
        found = run(image)
        if found.shape != expected.shape:
            raise DataError(
                f"the file exported as {format} gives an image of shape {tuple(found.shape)} for one of {shape}, where "
                f"the model gives {tuple(expected.shape)}; nothing was written."
            )
        difference = float((found - expected).abs().max() / max(1.0, float(expected.abs().max())))
        if not difference <= TOLERANCE:
            raise DataError(
                f"the file exported as {format} gives another image than the model: they differ by up to "
                f"{difference:.2g} for an input of shape {shape}, more than {TOLERANCE:g}; nothing was written."
            )
        largest = max(largest, difference)
    return largest


def _brief(error: BaseException) -> str:
    """The first line of an error that may be pages long, and the cause at its bottom."""
    deepest = error
    while (inner := deepest.__cause__ or deepest.__context__) is not None:
        deepest = inner
    first = [(str(each).strip().splitlines() or [type(each).__name__])[0][:300] for each in (error, deepest)]
    return first[0] if deepest is error else f"{first[0]}; cause: {first[1]}"
