"""torchvision's trunks, for the peers that build theirs from it: a stand-in where torchvision cannot be imported.

The peers take `models.vgg16(...).features` and the like: plain `nn.Sequential`s. Here they get the very same layers,
with the weights that ours have, and nothing is downloaded. Where torchvision is there, it stays, and only these
functions are replaced while the peers are built. (torchvision's wheel does not suit every build of torch: it may be
missing beside a torch that all the peers can use.)
"""

import functools
import importlib
import importlib.machinery
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from veridical.features.weights import FILES

Find = Callable[[str], Mapping[str, Tensor]]  # a network's name -> its convolutions, by torchvision's keys

NAMES = ("vgg16", "vgg19", "alexnet", "squeezenet1_1")

_SUBMODULES = (
    "models", "models.inception", "models.feature_extraction", "models.vgg", "transforms", "transforms.functional",
    "transforms.functional_tensor", "utils", "ops", "ops.deform_conv",
)  # fmt: skip


class _Fire(nn.Module):
    """SqueezeNet's block, as torchvision writes it."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.squeeze(x))
        return torch.cat([torch.relu_(self.expand1x1(x)), torch.relu_(self.expand3x3(x))], 1)


def features(name: str, tensors: Mapping[str, Tensor]) -> nn.Sequential:
    """The layers of `torchvision.models.NAME().features`, in place ReLUs included, with these weights."""
    layers = {"alexnet": _alexnet, "squeezenet1_1": _squeezenet}.get(name, _vgg)(name)
    layers.load_state_dict({key.removeprefix("features."): tensor.clone() for key, tensor in tensors.items()})
    return layers.eval()


def _vgg(name: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for convolutions in (2, 2, 3, 3, 3) if name == "vgg16" else (2, 2, 4, 4, 4):
        for _ in range(convolutions):
            outputs, inputs, *_ = FILES[name].shapes[f"features.{len(layers)}.weight"]
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


def _alexnet(_: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
    )  # fmt: skip


def _squeezenet(_: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True),
        _Fire(64, 16, 64), _Fire(128, 16, 64), nn.MaxPool2d(3, 2, ceil_mode=True),
        _Fire(128, 32, 128), _Fire(256, 32, 128), nn.MaxPool2d(3, 2, ceil_mode=True),
        _Fire(256, 48, 192), _Fire(384, 48, 192), _Fire(384, 64, 256), _Fire(512, 64, 256),
    )  # fmt: skip


class _Network(nn.Module):
    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.features = layers


class _Anything:
    """`VGG16_Weights.DEFAULT` and the like: which weights are asked for does not matter, they are ours."""

    DEFAULT = IMAGENET1K_V1 = None


class _StandIn(ModuleType):
    """A module that has only the trunks. A peer's other files may import what they like, and fail when they use it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.endswith("_Weights"):
            return _Anything

        def refuse(self_: object, *_: object, **__: object) -> None:
            raise NotImplementedError(f"veridical's stand-in for torchvision has no {name} in {self.__name__}")

        return type(name, (nn.Module,), {"__init__": refuse})


@functools.cache
def _stand_in() -> dict[str, ModuleType]:
    """The same modules every time: a peer keeps those that were there when it was imported."""
    modules: dict[str, ModuleType] = {}
    for name in ("torchvision", *(f"torchvision.{part}" for part in _SUBMODULES)):
        module = modules[name] = _StandIn(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__path__ = []
        module.__version__ = "0.0.0"  # type: ignore[attr-defined]
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    return modules


_finding: list[Find] = []  # of the `trunks` that are open, the innermost last


def _trunk(name: str) -> Callable[..., _Network]:
    """What stands for `torchvision.models.NAME`. A peer may keep it, too, so it asks anew where weights come from."""
    return lambda *_, **__: _Network(features(name, _finding[-1](name)))


def _look_again() -> None:
    """torchmetrics remembers whether there was a torchvision when it, or lightning_utilities for it, first asked."""
    with suppress(ImportError):
        found = importlib.import_module("lightning_utilities.core.imports")
        found.module_available.cache_clear()
        found.package_available.cache_clear()
    if "torchmetrics" in sys.modules:  # imported before, as Lightning does
        vars(sys.modules["torchmetrics.utilities.imports"]._TORCHVISION_AVAILABLE).pop("available", None)


@contextmanager
def trunks(find: Find) -> Iterator[bool]:
    """Inside, `torchvision.models.vgg16(...)` and the other three have the weights that `find` gives, whatever their
    arguments are. Yields whether torchvision itself is here. Import and build peers inside."""
    try:
        models = importlib.import_module("torchvision").models
        added: dict[str, ModuleType] = {}
    except (ImportError, RuntimeError, AttributeError):  # a wheel made for another torch fails in its own ways
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        with suppress(ImportError):
            # transformers looks once whether there is a torchvision, and would keep to the stand-in ever after.
            importlib.import_module("transformers.utils").is_torchvision_available()
        added = _stand_in()
        sys.modules.update(added)
        _look_again()
        models = added["torchvision.models"]
    # basicsr takes them from the file of the VGGs.
    places = (models, importlib.import_module("torchvision.models.vgg"))
    before = [(place, name, place.__dict__[name]) for place in places for name in NAMES if name in place.__dict__]
    for place in places:
        for name in NAMES:
            setattr(place, name, _trunk(name))
    _finding.append(find)
    try:
        yield not added
    finally:
        _finding.pop()
        for place, name, function in before:
            setattr(place, name, function)
        for name in added:
            sys.modules.pop(name, None)
        _look_again()
