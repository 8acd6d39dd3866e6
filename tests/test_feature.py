"""Any features with any distance: cells that other losses are, cells in closed form, and what is refused."""

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

import veridical
from veridical.core.errors import BadOption, UnknownName
from veridical.distances import DISTANCES
from veridical.losses import needs
from veridical.losses.feature import FEATURES


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(2, 3, 40, 40, generator=generator)
    return (target + 0.1 * torch.randn(2, 3, 40, 40, generator=generator)).clamp(0, 1), target


SAME = [
    ("feature(features=pixels, distance=l2)", "l2", None),
    ("feature(features=vgg16, distance=l1)", "vgg16(distance=l1)", "vgg16"),
    ("feature(features=alexnet, distance=unit-l2)", "lpips(linear=false)", "alexnet"),
    ("feature(features=vgg16, taps=conv4_3, distance=wasserstein)", "pdl", "vgg16"),
    ("feature(taps=pool2, distance=contextual, max_positions=9)", "contextual(taps=pool2, max_positions=9)", "vgg16"),
    ("feature(features=vgg16, distance=gram)", "style", "vgg16"),
    ("feature(features=mdf, task=jpeg, distance=l2)", "mdf(task=jpeg)", None),
    ("feature(features=random, taps=block4, distance=l1, seed=5)", "spl-d-last(seed=5)", None),
]  # fmt: skip


@pytest.mark.parametrize(("cell", "named", "network"), SAME, ids=[named for _, named, _ in SAME])
def test_a_cell_that_has_a_name_is_that_loss(cell, named, network, images, network_file):
    """Each named loss has a check of its own against an independent source."""
    weights = {"weights": str(network_file(network))} if network else {}
    values = [veridical.loss(spec, **weights).eval()(*images, reduction="none") for spec in (cell, named)]
    assert (values[0] > 0).all()
    torch.testing.assert_close(*values, rtol=1e-6, atol=0)


def test_the_adapters_cell_is_tfmlc(images, network_file, adapter_file):
    options = {"adapter": str(adapter_file("vgg16")), "weights": str(network_file("vgg16"))}
    cell = veridical.loss("feature", features="adapter", distance="l2", **options)
    torch.testing.assert_close(cell(*images), veridical.loss("tfmlc", **options)(*images))


def test_unit_l2_of_pixels_is_the_squared_distance_of_their_directions(images):
    prediction, target = (image.double().numpy() for image in images)
    unit = [image / np.linalg.norm(image, axis=1, keepdims=True) for image in (prediction, target)]
    expected = np.square(unit[0] - unit[1]).sum(1).mean((1, 2))
    values = veridical.loss("feature(features=pixels, distance=unit-l2)")(*images, reduction="none")
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-5)


def test_wasserstein_of_pixels_is_scipys_of_the_histograms(images):
    values = veridical.loss("feature(features=pixels, distance=wasserstein)")(*images, reduction="none")
    for value, prediction, target in zip(values, *images, strict=True):
        channels = zip(prediction.flatten(1).numpy(), target.flatten(1).numpy(), strict=True)
        assert value.item() == pytest.approx(np.mean([wasserstein_distance(*pair) for pair in channels]), rel=1e-5)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("features", ["pixels", "random", "mdf"])
def test_every_cell_has_a_gradient_and_is_zero_where_images_are_equal(features, distance, images):
    cell = veridical.loss("feature", features=features, distance=distance, task="jpeg", max_positions=20).eval()
    prediction = images[0].clone().requires_grad_()
    cell(prediction, images[1]).backward()
    assert prediction.grad.abs().sum() > 0
    assert cell(images[1], images[1]).abs() < 1e-6


def test_what_is_missing_or_unknown_is_said():
    with pytest.raises(BadOption, match="needs the task"):
        veridical.loss("feature(features=mdf)")
    with pytest.raises(BadOption, match="needs the file of an adapter"):
        veridical.loss("feature(features=adapter)")
    with pytest.raises(UnknownName, match="pixels"):
        veridical.loss("feature(features=pixel)")
    with pytest.raises(UnknownName, match="wasserstein"):
        veridical.loss("feature(features=pixels, distance=waserstein)")
    with pytest.raises(UnknownName, match="block1"):
        veridical.loss("feature(features=random, taps=blok1)")


def test_its_weights_are_those_of_its_features():
    found = {name: needs(f"feature(features={name}, task=released-jpeg)") for name in FEATURES if name != "adapter"}
    assert found == {
        "pixels": (),
        "vgg16": ("vgg16",),
        "vgg19": ("vgg19",),
        "alexnet": ("alexnet",),
        "squeezenet1_1": ("squeezenet1_1",),
        "random": (),
        "mdf": ("mdf-released-jpeg",),
    }
