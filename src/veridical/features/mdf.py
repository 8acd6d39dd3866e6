"""MDF's discriminators: small networks that were each trained to notice a restoration's errors at one scale."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from veridical.core.colour import as_rgb
from veridical.core.errors import BadOption, WeightsMissing
from veridical.core.image import at_least_float32
from veridical.core.options import check_choice, check_whole
from veridical.features import weights as files
from veridical.features.base import Maps
from veridical.features.convolution import convolution
from veridical.features.frozen import FrozenFeatures

LAYERS = ("head", "body1", "body2", "body3", "tail")
KEYS = ("head", "body.block1", "body.block2", "body.block3", "tail")  # the layers' names in a file
TAPS = {"released": ("head", "body3", "tail"), "paper": ("head", "body1", "body2", "body3")}
RANGES = {"-1..1": (2.0, -1.0), "0..1": (1.0, 0.0)}  # x -> scale x + shift, for an image in [0, 1]

TASKS = ("deblur", "defocus", "denoise", "super-resolve", "jpeg", "demosaic")
"""Of the table of tasks; each has a file in SHIPPED that `veridical learn mdf` made."""
RELEASED = ("released-sisr", "released-jpeg")
"""The authors' own, which weights.py finds."""
SHIPPED = Path(__file__).with_name("mdf_weights")
FORMAT = "veridical mdf 1"
MOST = 8
"""Of a file's discriminators, unless more are asked for: the paper's K, and what the released code looks through."""

JSON_NOTES = ("seed_images", "scales", "widths", "iterations", "settings", "seed")
WHAT, OURS = "the discriminators of mdf", "veridical itself"  # in messages

SLOPE = 0.2
EPS = 1e-5  # nn.BatchNorm2d's

Convolution = tuple[Tensor, Tensor]
"""Weight (D, C, 3, 3) and bias (D,)."""


@dataclass(frozen=True)
class Discriminators:
    """What a file holds.

    Attributes: layers: of each discriminator, coarsest first, its five convolutions with BatchNorm folded in.
                range: the input range that the file declares, a key of RANGES, or None. sha256, origin: of the file.
    """

    layers: list[list[Convolution]]
    range: str | None
    sha256: str
    origin: str


def check_task(task: object) -> None:
    """Raise BadOption, suggesting the nearest, unless there are discriminators of that name."""
    known = (*TASKS, *RELEASED)
    if task not in known and f"released-{task}" in known:
        raise BadOption(
            f"task of mdf must be one of {', '.join(known)}; got {task!r}. Did you mean 'released-{task}', "
            "the authors' own?"
        )
    check_choice("task of mdf", task, known)


def read(task: str = TASKS[0], path: str | Path | None = None) -> Discriminators:
    """The discriminators of a task, or those in a file.

    A file has the keys `INDEX.LAYER.conv.weight` and `.bias` for the layers head, body.block1, body.block2 and
    body.block3, `INDEX.tail.weight` and `.bias`; and `INDEX.LAYER.norm.*` (weight, bias, running_mean, running_var)
    where BatchNorm is not yet folded into the convolution. Its note `range` is the input range, "-1..1" or "0..1". A
    file of ours says FORMAT in its note `format`; one without is a converted file of the authors.

    Errors: WeightsMissing when there is no file, or it holds something else.
    """
    check_task(task)
    if path is None and task in RELEASED:
        loaded = files.load(f"mdf-{task}")
    else:
        loaded = files.read(_shipped(task) if path is None else path, WHAT)
    _check_format(loaded.notes, loaded.origin)
    declared = loaded.notes.get("range")
    if declared not in RANGES and (declared is not None or loaded.notes.get("format") == FORMAT):
        found = "no range" if declared is None else f"the range {declared!r}"
        raise WeightsMissing(f"{loaded.origin} declares {found}; expected one of {', '.join(RANGES)}.")
    return Discriminators(fold(loaded.tensors, loaded.origin), declared, loaded.sha256, loaded.origin)


def mdf_notes(source: str | Path) -> dict[str, Any]:
    """What the file of a task, or a file by its path, says of itself, without reading its tensors.

    One that `veridical learn mdf` made says: format, veridical (its version), task, degradation, range, quality; and,
    read from their JSON, seed, settings, seed_images ([{"name", "sha256"}]), and of each discriminator, coarsest first,
    scales ([h, w]), widths and iterations. The authors' converted ones say range and source.

    Errors: WeightsMissing when there is no file, it is broken, or of another format.
    """
    path: str | Path = source
    if source in TASKS:
        path = _shipped(str(source))
    elif source in RELEASED:
        found = files.available(f"mdf-{source}")
        if found is None:
            raise WeightsMissing(
                f"the {source} discriminators of mdf are not here. {files.FILES[f'mdf-{source}'].remedy}."
            )
        path = found
    notes = files.notes(path, WHAT)
    _check_format(notes, str(path))
    return {key: _parsed(text) if key in JSON_NOTES else text for key, text in notes.items()}


def shipped() -> list[files.Status]:
    """What there is of each task, as `veridical weights list` shows it, without reading the files."""
    return [_status(task, "shipped" if _path(task).is_file() else "missing") for task in TASKS]


def verify(task: str) -> files.Status:
    """Read the file of a task: "shipped" when it can be used, with the hash of its contents; else what is wrong."""
    try:
        return _status(task, "shipped", f"sha256 of the contents {read(task).sha256}")
    except WeightsMissing as error:
        return _status(task, "broken" if _path(task).is_file() else "missing", str(error))


def _status(task: str, status: Literal["shipped", "missing", "broken"], detail: str = "") -> files.Status:
    path = _path(task)
    return files.Status(f"mdf-{task}", path.name, path if path.is_file() else None, status, detail, (OURS,))


def _path(task: str) -> Path:
    return SHIPPED / f"{task}.safetensors"


def _shipped(task: str) -> Path:
    if not _path(task).is_file():
        raise WeightsMissing(
            f"this installation holds no discriminators of mdf for {task!r}: there is no {_path(task)}. Make them with "
            "`veridical learn mdf` and name their file with weights=PATH, or install veridical again."
        )
    return _path(task)


def _check_format(notes: Mapping[str, str], origin: str) -> None:
    found = notes.get("format", "")
    if found == FORMAT or not found.startswith("veridical "):  # others write "pt"
        return
    if found.startswith("veridical mdf "):
        raise WeightsMissing(
            f"{origin} is of the format {found!r}, and this version of veridical reads {FORMAT!r}. Upgrade it: "
            "pip install --upgrade veridical"
        )
    hint = f" Did you mean tfmlc(adapter='{origin}')?" if found.startswith("veridical adapter ") else ""
    raise WeightsMissing(f"{origin} holds no discriminators of mdf: it is of the format {found!r}.{hint}")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def fold(tensors: Mapping[str, Tensor], origin: str) -> list[list[Convolution]]:
    """The five convolutions of each discriminator, BatchNorm's evaluation folded into them. origin: for errors."""
    indices = {int(match[1]) for key in tensors if (match := re.match(r"(\d+)\.head\.", key))}
    if indices != set(range(len(indices))) or not indices:
        has = ", ".join(list(tensors)[:3]) or "nothing"
        raise WeightsMissing(
            f"{origin} holds no discriminators of mdf: expected keys 0.head.conv.weight, ...; it has: {has}."
        )
    return [_fold_one(tensors, str(index), origin) for index in range(len(indices))]


def _fold_one(tensors: Mapping[str, Tensor], index: str, origin: str) -> list[Convolution]:
    def get(key: str, *shape: int) -> Tensor:
        tensor = tensors.get(key)
        if tensor is None or tuple(tensor.shape) != shape:
            found = "is missing" if tensor is None else f"has the shape {tuple(tensor.shape)}"
            raise WeightsMissing(f"{origin} is not whole: {key!r} {found}; expected the shape {shape}.")
        return tensor.double()  # folding rounds once, at the end

    head = tensors.get(f"{index}.head.conv.weight")
    inputs, width = 3, max(1, len(head)) if head is not None and head.ndim else 1
    layers = []
    for key in KEYS[:-1]:
        weight = get(f"{index}.{key}.conv.weight", width, inputs, 3, 3)
        bias = get(f"{index}.{key}.conv.bias", width)
        norm = f"{index}.{key}.norm"
        if any(name.startswith(f"{norm}.") for name in tensors):
            scale, shift = get(f"{norm}.weight", width), get(f"{norm}.bias", width)
            mean, variance = get(f"{norm}.running_mean", width), get(f"{norm}.running_var", width)
            scale = scale / torch.sqrt(variance + EPS)
            weight, bias = weight * scale[:, None, None, None], (bias - mean) * scale + shift
        layers.append((weight, bias))
        inputs = width
    layers.append((get(f"{index}.tail.weight", 1, width, 3, 3), get(f"{index}.tail.bias", 1)))
    if not all(bool(tensor.float().isfinite().all()) for layer in layers for tensor in layer):
        raise WeightsMissing(f"{origin} is broken: discriminator {index} has weights that are not finite.")
    return layers


class MDFNetwork(FrozenFeatures):
    """K frozen discriminators on the image in full size: five 3x3 convolutions without padding each, 11 px of view.

    BatchNorm and the input's range are folded into the convolutions. Each discriminator runs by itself, channels last:
    on a CPU that is faster than one grouped convolution over all of them, and no memory is spent on joining maps.

    Shapes: (N, 1 or 3, H, W), nominal [0, 1] -> map LAYER_INDEX: (N, width, H - 2 l, W - 2 l) after layer l = 1 ... 5
            of head, body1, body2, body3 (after LeakyReLU(0.2)) and tail (width 1, without activation).
    Args:   task: one of TASKS or of RELEASED. weights: a file to read instead; see `read`.
            taps: "released" (head, third body block, tail), or "paper" (after every activation).
            range: what the discriminators are fed, "-1..1" or "0..1"; by default what the file declares, else "-1..1".
            discriminators: how many, from the coarsest; by default all, at most MOST.
    Source: Mustafa et al. 2022, arXiv:2103.14616.
    """

    def __init__(
        self,
        task: str = TASKS[0],
        *,
        weights: str | Path | None = None,
        taps: str = "released",
        range: str | None = None,
        discriminators: int | None = None,
    ) -> None:
        check_task(task)
        check_choice("taps of mdf", taps, TAPS)
        if range is not None:
            check_choice("range of mdf", range, RANGES)
        if discriminators is not None:
            check_whole("discriminators of mdf", discriminators, low=1)
        found = read(task, weights)
        there = len(found.layers)
        self.count = min(there, MOST) if discriminators is None else discriminators
        if self.count > there:
            raise BadOption(f"discriminators of mdf is {self.count}, but {found.origin} holds {there}.")
        self.range = range or found.range or "-1..1"
        super().__init__(
            taps=[f"{layer}_{k}" for k, _ in enumerate(found.layers[: self.count]) for layer in TAPS[taps]],
            available=[f"{layer}_{k}" for k, _ in enumerate(found.layers[: self.count]) for layer in LAYERS],
            identity=("mdf", found.sha256, self.range, self.count),
        )
        self._freeze("mdf" if weights is not None else f"mdf-{task}", found.sha256)
        scale, shift = RANGES[self.range]
        for k, layers in enumerate(found.layers[: self.count]):
            weight, bias = layers[0]
            layers[0] = (scale * weight, bias + shift * weight.sum((1, 2, 3)))
            for layer, (weight, bias) in zip(LAYERS, layers, strict=True):
                weight = weight.float().contiguous(memory_format=torch.channels_last)
                self.register_buffer(f"{layer}_{k}_weight", weight, persistent=False)
                self.register_buffer(f"{layer}_{k}_bias", bias.float(), persistent=False)

    @property
    def min_size(self) -> int:
        return 1 + 2 * max(1 + LAYERS.index(tap.partition("_")[0]) for tap in self.taps)

    def draw(self) -> tuple[Tensor, ...]:
        return tuple(self.buffers())

    def forward(self, image: Tensor, weights: tuple[Tensor, ...]) -> Maps:
        image = as_rgb(at_least_float32(image)).contiguous(memory_format=torch.channels_last)
        parameters = (weight.to(image.dtype) for weight in weights)
        maps: Maps = {}
        for k in range(self.count):
            convolutions = [(next(parameters), next(parameters)) for _ in LAYERS]
            x = image
            for layer, (weight, bias) in zip(LAYERS, convolutions, strict=True):
                x = convolution(x, weight, bias, slope=None if layer == "tail" else SLOPE)
                if f"{layer}_{k}" in self.taps:
                    maps[f"{layer}_{k}"] = x
                if not any(f"{later}_{k}" in self.taps for later in LAYERS[LAYERS.index(layer) + 1 :]):
                    break
        return maps
