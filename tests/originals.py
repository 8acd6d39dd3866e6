"""For comparing with the packages of a method's authors: the torchvision that they import, and real pairs of images."""

import sys
import types

import pytest
import torch
from torch import nn

from tests.shared import shared_data
from veridical.core.files import read_image
from veridical.features.networks import PLANS, Layer
from veridical.features.weights import load


def stand_in_for_torchvision(patch: pytest.MonkeyPatch) -> None:
    """Put a `torchvision` in place whose networks have our weights: its own code does not import beside this torch.
    A package that was imported with another one before is imported anew."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("lpips", "DISTS_pytorch")]:
        patch.delitem(sys.modules, name)
    models = types.ModuleType("torchvision.models")
    for name in ("alexnet", "vgg16"):
        setattr(models, name, lambda pretrained, name=name: types.SimpleNamespace(features=_features(name)))
    vision = types.ModuleType("torchvision")
    vision.models, vision.transforms = models, types.ModuleType("torchvision.transforms")
    for module in (vision, vision.models, vision.transforms):
        patch.setitem(sys.modules, module.__name__, module)


def _features(name: str) -> nn.Sequential:
    tensors = load(name).tensors
    layers: list[nn.Module] = []
    for layer in PLANS[name]:
        layers.append(_module(name, layer, len(layers), tensors))
    return nn.Sequential(*layers)


def _module(name: str, layer: Layer, index: int, tensors: dict[str, torch.Tensor]) -> nn.Module:
    if layer.name.startswith("relu"):
        return nn.ReLU(inplace=True)
    if layer.name.startswith("pool"):
        return nn.MaxPool2d(3 if name == "alexnet" else 2, 2)
    weight = tensors[f"features.{index}.weight"]
    size = weight.shape[-1]
    stride, padding = (4, 2) if size == 11 else (1, size // 2)
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], size, stride, padding)
    conv.load_state_dict({"weight": weight, "bias": tensors[f"features.{index}.bias"]})
    return conv


def real_pairs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """20 real pairs, blurred and sharp or noisy and clean, as (1, 3, 128, 128) crops."""
    folders = [("pairs/gopro/blur", "pairs/gopro/sharp", 15), ("pairs/noise/real", "pairs/noise/mean", 5)]
    out = []
    for first, second, count in folders:
        ones, others = (sorted(shared_data(folder).iterdir())[:count] for folder in (first, second))
        for one, other in zip(ones, others, strict=True):
            out.append(tuple(read_image(path).pixels[None, :, 100:228, 100:228] for path in (one, other)))
    assert len(out) == 20
    return out
