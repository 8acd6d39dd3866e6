"""DISTS against the package DISTS-pytorch of its authors, on real pairs."""

import hashlib
import importlib
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import veridical
from tests.originals import real_pairs, stand_in_for_torchvision
from tests.shared import shared_data
from veridical.distances import dists as dists_module
from veridical.distances.dists import DISTS, TAPS, dists_weights, statistics

PACKAGE = "DISTS-pytorch"


@pytest.fixture(scope="module")
def original():
    """The authors' class, with a stand-in for the torchvision that it imports."""
    if importlib.util.find_spec("DISTS_pytorch") is None:
        pytest.skip(f"needs the package {PACKAGE}: pip install --no-deps {PACKAGE}==0.1")
    with pytest.MonkeyPatch.context() as patch:
        stand_in_for_torchvision(patch)
        yield importlib.import_module("DISTS_pytorch").DISTS
    for name in [name for name in sys.modules if name.partition(".")[0] == "DISTS_pytorch"]:
        del sys.modules[name]


@pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")  # it loads its own pickle
def test_agrees_with_the_authors_package_on_10_real_pairs(original, monkeypatch):
    """Values, and the gradient for one pair.

    Theirs in float64: in float32 their covariance, a mean of products less a product of means, is off by up to 5e-5 on
    these pairs. Our gradient in float64 too: a feature that is hardly ever active divides by next to nothing, so that
    rounding decides much of the gradient.
    """
    monkeypatch.setenv("VERIDICAL_WEIGHTS", str(shared_data("weights")))
    theirs = original().double()
    ours = veridical.metric("dists")
    loss = veridical.loss("dists")
    for prediction, target in real_pairs()[::2]:
        expected = theirs(prediction.double(), target.double()).reshape(1).float()
        assert expected > 0.001
        torch.testing.assert_close(ours(prediction, target), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(loss(prediction, target, reduction="none"), expected, atol=1e-6, rtol=0)
    prediction, target = prediction.double(), target.double()
    ours, theirs = (
        torch.autograd.grad(value(image), image)[0]
        for image in [prediction.requires_grad_()]
        for value in (lambda image: loss(image, target), lambda image: theirs(image, target, require_grad=True))
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def test_the_shipped_weights_are_those_of_the_package():
    files = metadata.files(PACKAGE) if importlib.util.find_spec("DISTS_pytorch") else pytest.skip(f"needs {PACKAGE}")
    path = next(file.locate() for file in files if str(file).endswith("DISTS_pytorch/weights.pt"))
    released = torch.load(path, weights_only=True)
    for k, name in enumerate(("alpha", "beta")):
        ours = torch.cat([pair[k] for pair in dists_weights()])
        assert torch.equal(ours, released[name].flatten())
    digest = "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218"  # weights.pt of the wheel 0.1
    assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest


def test_the_shipped_weights_are_those_that_reach_the_published_values():
    kept = load_file(shared_data("weights/dists.safetensors"))
    for k, name in enumerate(("alpha", "beta")):
        assert torch.equal(torch.cat([pair[k] for pair in dists_weights()]), kept[name].flatten())


def test_the_shipped_weights_sum_to_one():
    assert sum(part.sum().item() for pair in dists_weights() for part in pair) == pytest.approx(1, abs=1e-6)
    assert all((part >= 0).all() for pair in dists_weights() for part in pair)


def test_the_distance_agrees_with_its_definition():
    """S1 and S2 as the paper writes them, equations 6 and 7, in float64."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2, 4, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    alpha, beta = (torch.rand(4, generator=generator, dtype=torch.float64) for _ in range(2))
    mean_x, mean_y = x.mean((2, 3)), y.mean((2, 3))
    covariance = (x * y).mean((2, 3)) - mean_x * mean_y
    variances = x.var((2, 3), correction=0) + y.var((2, 3), correction=0)
    s1 = (2 * mean_x * mean_y + 1e-6) / (mean_x**2 + mean_y**2 + 1e-6)
    s2 = (2 * covariance + 1e-6) / (variances + 1e-6)
    expected = (alpha * (1 - s1) + beta * (1 - s2)).sum(1)
    distance = DISTS(alpha, beta)
    torch.testing.assert_close(distance(x, distance.prepare(y)), expected)


def test_the_gradient_written_by_hand_is_that_of_the_value():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    for layout in (torch.contiguous_format, torch.channels_last):
        image = x.to(memory_format=layout).requires_grad_()
        mean = y.mean((2, 3))
        assert torch.autograd.gradcheck(lambda image: dists_module._Statistics.apply(image, y, mean), image)  # noqa: B023
        assert all(
            torch.equal(one, other)
            for one, other in zip(
                dists_module._Statistics.apply(image, y, mean), statistics(image, y, mean), strict=True
            )
        )


def test_it_looks_at_the_image_and_five_depths_of_a_vgg16_that_pools_without_aliases(network_file):
    loss = veridical.loss("dists", weights=str(network_file("vgg16")))
    assert loss.distance.features.taps == TAPS
    image = torch.rand(1, 3, 40, 33)
    maps = loss.distance.features(image, loss.distance.features.draw())
    sizes = [(40, 33), (40, 33), (20, 17), (10, 9), (5, 5), (3, 3)]
    assert [tuple(m.shape[2:]) for m in maps.values()] == sizes
    assert [m.shape[1] for m in maps.values()] == [len(alpha) for alpha, _ in dists_weights()]
    assert torch.equal(maps["image"], image)
