"""LPIPS against the package `lpips` of its authors, on real pairs."""

import importlib
import sys
import types

import pytest
import torch
from torch import nn

import veridical
from tests.shared import shared_data
from veridical.core.files import read_image
from veridical.features.networks import PLANS, Layer
from veridical.features.weights import load


def _torchvision_network(name: str) -> nn.Sequential:
    """torchvision's `features`, made from our weights: its own code does not import beside this torch build."""
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


@pytest.fixture(scope="module")
def original():
    """The authors' package, with a stand-in for the torchvision that it imports."""
    if importlib.util.find_spec("lpips") is None:
        pytest.skip("needs the package lpips: pip install --no-deps lpips==0.1.4")
    models = types.ModuleType("torchvision.models")
    for ours, theirs in (("alexnet", "alexnet"), ("vgg16", "vgg16")):
        setattr(
            models,
            theirs,
            lambda pretrained, ours=ours: types.SimpleNamespace(features=_torchvision_network(ours)),
        )
    vision = types.ModuleType("torchvision")
    vision.models = models
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchvision", vision)
        patch.setitem(sys.modules, "torchvision.models", models)
        yield importlib.import_module("lpips")
    for name in [name for name in sys.modules if name.partition(".")[0] == "lpips"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def pairs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """20 real pairs, blurred and sharp or noisy and clean, as (1, 3, 192, 192) crops."""
    folders = [("pairs/gopro/blur", "pairs/gopro/sharp", 15), ("pairs/noise/real", "pairs/noise/mean", 5)]
    out = []
    for first, second, count in folders:
        ones, others = (sorted(shared_data(folder).iterdir())[:count] for folder in (first, second))
        for one, other in zip(ones, others, strict=True):
            out.append(tuple(read_image(path).pixels[None, :, 100:292, 100:292] for path in (one, other)))
    assert len(out) == 20
    return out


@pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")  # lpips loads its own pickles
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_agrees_with_the_authors_package_on_20_real_pairs(net, original, pairs, monkeypatch):
    monkeypatch.setenv("VERIDICAL_WEIGHTS", str(shared_data("weights")))
    theirs = original.LPIPS(net=net, verbose=False).eval()
    ours = veridical.metric("lpips", net=net)
    loss = veridical.loss("lpips", net=net)
    for prediction, target in pairs:
        with torch.no_grad():
            expected = theirs(2 * prediction - 1, 2 * target - 1).flatten()
        torch.testing.assert_close(ours(prediction, target), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(loss(prediction, target, reduction="none"), expected, atol=1e-5, rtol=0)


def test_the_squeeze_weights_have_the_shapes_of_their_taps(network_file):
    loss = veridical.loss("lpips", net="squeeze", weights=str(network_file("squeezenet1_1")))
    image = torch.rand(1, 3, 64, 64)
    maps = loss.distance.features(image, loss.distance.features.draw())
    assert [m.shape[1] for m in maps.values()] == [64, 128, 256, 384, 384, 512, 512]
    assert all(loss.distance.distances[tap].weight.shape == (m.shape[1],) for tap, m in maps.items())
