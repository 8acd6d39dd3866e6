"""Distances against SciPy and closed forms, and the laws that the public versions break."""

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from veridical.distances import DISTANCES, L2, LPIPS, FeatureDistance, Wasserstein
from veridical.distances.lpips import linear_weights
from veridical.features import Laplacian, Pixels

GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture
def maps() -> tuple[torch.Tensor, torch.Tensor]:
    """Two batches of feature maps, (2, 5, 6, 7)."""
    return torch.randn(2, 5, 6, 7, generator=GENERATOR), torch.randn(2, 5, 6, 7, generator=GENERATOR)


def compare(distance, prediction, target) -> torch.Tensor:
    return distance(prediction, distance.prepare(target))


def test_wasserstein_agrees_with_scipy_on_each_channel(maps):
    prediction, target = maps
    values = compare(Wasserstein(projections="sum"), prediction, target)
    for n in range(2):
        expected = sum(
            wasserstein_distance(prediction[n, c].flatten().numpy(), target[n, c].flatten().numpy()) for c in range(5)
        )
        assert values[n].item() == pytest.approx(expected, rel=1e-5)


def test_wasserstein_does_not_see_positions(maps):
    prediction, target = maps
    shuffled = prediction.flatten(2)[:, :, torch.randperm(42, generator=GENERATOR)].view_as(prediction)
    torch.testing.assert_close(compare(Wasserstein(), shuffled, target), compare(Wasserstein(), prediction, target))


def test_wasserstein_does_not_see_the_order_of_channels(maps):
    order = torch.randperm(5, generator=GENERATOR)
    prediction, target = maps
    torch.testing.assert_close(
        compare(Wasserstein(), prediction[:, order], target[:, order]),
        compare(Wasserstein(), prediction, target),
    )


def test_wasserstein_sees_which_channel_a_value_is_in(maps):
    prediction, _ = maps
    assert (compare(Wasserstein(), prediction, prediction.flip(1)) > 0).all()


def test_wasserstein_reductions_and_order_are_what_they_say(maps):
    prediction, target = maps
    mean = compare(Wasserstein(), prediction, target)
    torch.testing.assert_close(compare(Wasserstein(projections="sum"), prediction, target), 5 * mean)
    torch.testing.assert_close(compare(Wasserstein(positions="sum"), prediction, target), 42 * mean)
    shifted = compare(Wasserstein(order=2), target + 0.5, target)
    torch.testing.assert_close(shifted, torch.full((2,), 0.25))


def test_the_gradient_of_wasserstein_transports_one_sample_onto_the_other(maps):
    prediction, target = (m[:1].clone() for m in maps)
    image = prediction.requires_grad_()
    optimiser = torch.optim.SGD([image], lr=0.5)
    for _ in range(300):
        optimiser.zero_grad()
        compare(Wasserstein(order=2, positions="sum", projections="sum"), image, target).sum().mul(0.5).backward()
        optimiser.step()
    torch.testing.assert_close(
        image.detach().flatten(2).sort(2).values, target.flatten(2).sort(2).values, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_are_zero_for_equal_maps_and_per_image(name, maps):
    distance = DISTANCES[name]()
    prediction, target = maps
    assert (compare(distance, target, target) == 0).all()
    together = compare(distance, prediction, target)
    assert together.shape == (2,)
    torch.testing.assert_close(together[1:], compare(distance, prediction[1:], target[1:]))


def test_pointwise_distances_agree_with_numpy(maps):
    prediction, target = maps
    d = (prediction - target).numpy().astype(np.float64)
    for name, value in {"l1": abs(d), "l2": d**2, "charbonnier": np.sqrt(d**2 + 1e-6) - 1e-3}.items():
        np.testing.assert_allclose(
            compare(DISTANCES[name](), prediction, target).numpy(), value.mean((1, 2, 3)), rtol=1e-5
        )


def test_lpips_agrees_with_numpy(maps):
    prediction, target = maps
    weight = torch.rand(5, generator=GENERATOR)

    def unit(x: torch.Tensor) -> np.ndarray:
        x = x.numpy().astype(np.float64)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    expected = ((unit(prediction) - unit(target)) ** 2 * weight.numpy()[:, None, None]).sum(1).mean((1, 2))
    np.testing.assert_allclose(compare(LPIPS(weight), prediction, target).numpy(), expected, rtol=1e-5)


def test_gradient_of_lpips_is_finite_where_all_channels_are_zero():
    zero = torch.zeros(1, 5, 2, 2, requires_grad=True)
    compare(LPIPS(torch.ones(5)), zero, torch.ones(1, 5, 2, 2)).sum().backward()
    assert torch.isfinite(zero.grad).all()


def test_the_shipped_lpips_weights_are_those_released():
    """First three of lin0 in the released v0.1 alex.pth, and all are non-negative, as they were trained to be."""
    from safetensors.torch import load_file

    from tests.shared import shared_data

    for net in ("alex", "vgg", "squeeze"):
        released = load_file(shared_data(f"weights/lpips_v0.1_{net}.safetensors"))
        for k, weight in enumerate(linear_weights(net)):
            assert torch.equal(weight, released[f"lin{k}.model.1.weight"].flatten())
            assert (weight >= 0).all()


def test_edge_features_agree_with_scipy():
    """x - blur(4 * keep_even(blur(x))) with replicated borders, by scipy.ndimage."""
    from scipy.ndimage import convolve1d

    image = torch.rand(1, 1, 9, 12, generator=GENERATOR)
    x = image[0, 0].double().numpy()
    window = np.array([0.05, 0.25, 0.4, 0.25, 0.05])

    def blur(a: np.ndarray) -> np.ndarray:
        return convolve1d(convolve1d(a, window, axis=0, mode="nearest"), window, axis=1, mode="nearest")

    sparse = np.zeros_like(x)
    sparse[::2, ::2] = 4 * blur(x)[::2, ::2]
    np.testing.assert_allclose(Laplacian()(image, ())["laplacian"][0, 0].numpy(), x - blur(sparse), atol=1e-6)


def test_tap_weights_multiply():
    image = torch.rand(1, 3, 4, 4, generator=GENERATOR)
    distance = FeatureDistance(Pixels(), {"pixels": L2()}, weights={"pixels": 3.0})
    assert distance(image, distance.see(torch.zeros_like(image))).item() == pytest.approx(
        3 * image.square().mean().item(), rel=1e-6
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [({"order": 0.5}, "at least 1"), ({"positions": "max"}, "must be one of mean, sum")],
)
def test_impossible_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Wasserstein(**options)
