"""LPIPS against the package `lpips` of its authors, on real pairs."""

import importlib
import sys

import pytest
import torch

import veridical
from tests.originals import real_pairs, stand_in_for_torchvision
from tests.shared import shared_data
from veridical.distances.lpips import lpips, unit_length


@pytest.fixture(scope="module")
def original():
    """The authors' package, with a stand-in for the torchvision that it imports."""
    if importlib.util.find_spec("lpips") is None:
        pytest.skip("needs the package lpips: pip install --no-deps lpips==0.1.4")
    with pytest.MonkeyPatch.context() as patch:
        stand_in_for_torchvision(patch)
        yield importlib.import_module("lpips")
    for name in [name for name in sys.modules if name.partition(".")[0] == "lpips"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def pairs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return real_pairs()


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


def test_without_learned_weights_it_is_the_authors_baseline(original, pairs, monkeypatch):
    monkeypatch.setenv("VERIDICAL_WEIGHTS", str(shared_data("weights")))
    theirs = original.LPIPS(net="alex", lpips=False, verbose=False).eval()
    ours = veridical.loss("lpips(linear=false)")
    for prediction, target in pairs[::4]:
        with torch.no_grad():
            expected = theirs(2 * prediction - 1, 2 * target - 1).flatten()
        torch.testing.assert_close(ours(prediction, target, reduction="none"), expected, atol=1e-5, rtol=1e-5)


def test_the_squeeze_weights_have_the_shapes_of_their_taps(network_file):
    loss = veridical.loss("lpips", net="squeeze", weights=str(network_file("squeezenet1_1")))
    image = torch.rand(1, 3, 64, 64)
    maps = loss.distance.features(image, loss.distance.features.draw())
    assert [m.shape[1] for m in maps.values()] == [64, 128, 256, 384, 384, 512, 512]
    assert all(loss.distance.distances[tap].weight.shape == (m.shape[1],) for tap, m in maps.items())


def test_the_gradient_is_that_of_the_formula():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 5, 4, 3, dtype=torch.float64, generator=generator)
    target = unit_length(torch.randn(2, 5, 4, 3, dtype=torch.float64, generator=generator))
    weight = torch.rand(5, dtype=torch.float64, generator=generator)
    maps[0, :, 1, 1] = 0  # where there is no direction
    with torch.no_grad():
        without_graph = lpips(maps, target, weight)
    maps.requires_grad_()
    value = lpips(maps, target, weight)
    expected = ((unit_length(maps) - target).square() * weight[:, None, None]).sum(1).mean((1, 2))
    assert torch.equal(value, without_graph)
    torch.testing.assert_close(value, expected)
    upstream = torch.tensor([1.0, -3.0], dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(v, maps, upstream)[0] for v in (value, expected))
    torch.testing.assert_close(ours, theirs)


def test_a_graph_keeps_no_map_but_the_two_that_are_compared():
    prediction, target = torch.rand(2, 2, 8, 16, 16)
    target, weight = unit_length(target), torch.rand(8)
    prediction.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        lpips(prediction, target, weight)
    known = {tensor.untyped_storage().data_ptr() for tensor in (prediction, target)}
    new = sum(tensor.numel() for tensor in kept if tensor.untyped_storage().data_ptr() not in known)
    assert 0 < new <= prediction.numel() // 8 + weight.numel()
