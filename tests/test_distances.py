"""Distances against SciPy and closed forms, and the laws that the public versions break."""

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from veridical.core.product import product
from veridical.distances import DISTANCES, L2, LPIPS, FeatureDistance, Gram, Wasserstein
from veridical.distances.gram import gram
from veridical.distances.lpips import linear_weights
from veridical.distances.projections import draw_projection
from veridical.distances.wasserstein import sorted_positions
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


def test_sorting_equals_torchs_sort(maps):
    """NumPy sorts on the CPU: the same values, and a gradient that goes back to where each came from."""
    values = torch.cat([maps[0].flatten(2), maps[0].flatten(2).relu()], dim=1)  # the second half has ties
    for x in (values, values.double(), values.mT.contiguous().mT):
        x = x.clone().requires_grad_()
        assert torch.equal(sorted_positions(x), x.sort(dim=2).values)
        ours, theirs = ((y * y.detach()).sum() for y in (sorted_positions(x), x.sort(dim=2).values))
        assert torch.equal(*(torch.autograd.grad(y, x)[0] for y in (ours, theirs)))
    assert torch.equal(sorted_positions(torch.tensor([[[2.0, float("nan"), 1.0]]]))[0, 0, :2], torch.tensor([1.0, 2.0]))


KINDS = ("r2p", "rpp", "rsp")


def directions(kind: str, channels: int = 64, k: int = 4, seed: int = 3) -> np.ndarray:
    step = torch.tensor(-1)
    return draw_projection(kind, channels, k=k, eps=0.01, seed=seed, step=step).double().numpy()


def test_projections_are_what_they_say():
    """Unit rows, k per channel; two channels, one perturbed channel, or any direction."""
    for kind in KINDS:
        rows = directions(kind)
        assert rows.shape == (256, 64)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
        assert len(np.unique(rows.round(4), axis=0)) == 256, "no direction twice"
    pairs = directions("r2p")
    assert ((pairs != 0).sum(1) == 2).all()
    assert ((pairs != 0).sum(0) > 0).all(), "256 pairs reach all 64 channels"
    one_by_one = directions("rpp")
    cosines = one_by_one[np.arange(256), np.arange(256) % 64]
    np.testing.assert_allclose(cosines, 1 / np.sqrt(1 + 64e-4), atol=2e-3)  # e_i + 0.01 g, |g|² about 64
    anywhere = directions("rsp", k=64)
    np.testing.assert_allclose(anywhere.T @ anywhere / len(anywhere), np.eye(64) / 64, atol=0.002)
    np.testing.assert_allclose(anywhere.mean(0), 0, atol=0.01)
    assert (abs(directions("r2p", channels=1, k=3)) == 1).all(), "a single channel has no other"


@pytest.mark.parametrize("kind", KINDS)
def test_projected_wasserstein_agrees_with_scipy_on_each_direction(kind, maps):
    prediction, target = maps
    rows = directions(kind, channels=5, k=2)
    values = compare(Wasserstein(projection=kind, k=2, seed=3), prediction, target)
    for n in range(2):
        ours, theirs = (rows @ m[n].flatten(1).double().numpy() for m in maps)
        expected = np.mean([wasserstein_distance(one, other) for one, other in zip(ours, theirs, strict=True)])
        assert values[n].item() == pytest.approx(expected, rel=1e-5)
    shuffled = prediction.flatten(2)[:, :, torch.randperm(42, generator=GENERATOR)].view_as(prediction)
    torch.testing.assert_close(compare(Wasserstein(projection=kind, k=2, seed=3), shuffled, target), values)


@pytest.mark.parametrize("kind", KINDS)
def test_a_redrawn_projection_is_the_same_for_both_and_another_at_each_step(kind, maps):
    prediction, target = maps
    drawn, same, other = (Wasserstein(projection=kind, redraw=True, seed=seed) for seed in (0, 0, 1))
    assert drawn.random
    found = []
    for _ in range(3):
        found.append(compare(drawn, prediction, target)[0].item())
        assert compare(same, prediction, target)[0].item() == found[-1]
        assert compare(other, prediction, target)[0].item() != found[-1]
    assert len(set(found)) == 3
    first = draw_projection(kind, 5, k=1, eps=0.01, seed=0, step=torch.tensor(0))
    assert torch.equal(Wasserstein(projection=kind, redraw=True).prepare(target)[0], first)
    assert (compare(drawn, target, target) == 0).all(), "prediction and target see the same directions"
    state = drawn.state_dict()
    assert state["step"].item() == 4
    same.load_state_dict(state)
    assert torch.equal(compare(same, prediction, target), compare(drawn, prediction, target))
    fixed = compare(Wasserstein(projection=kind), prediction, target)
    drawn.eval()
    assert torch.equal(compare(drawn, prediction, target), fixed), "evaluation knows nothing of the training"
    assert torch.equal(compare(drawn, prediction, target), fixed)
    assert drawn.step.item() == 5
    assert not Wasserstein(projection=kind).random
    assert not Wasserstein(projection=kind).state_dict()


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_are_zero_for_equal_maps_and_per_image(name, maps):
    distance = DISTANCES[name]()
    prediction, target = maps
    at_rest = 1e-14 if name == "unit-l2" else 0  # its difference is one operation, rounded once; the target's is not
    assert (compare(distance, target, target) <= at_rest).all()
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


def test_gram_agrees_with_numpy(maps):
    """Σ over channels c, d of (G_cd - G'_cd)², G_cd the sum over positions of the product, / (C h w)."""
    prediction, target = maps
    expected = []
    for pair in zip(*(m.double().numpy() for m in maps), strict=True):
        one, other = (np.einsum("chw,dhw->cd", m, m) / (5 * 6 * 7) for m in pair)
        expected.append(((one - other) ** 2).sum())
    values = compare(Gram(), prediction, target)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-5)
    shuffled = prediction.flatten(2)[:, :, torch.randperm(42, generator=GENERATOR)].view_as(prediction)
    torch.testing.assert_close(compare(Gram(), shuffled, target), values)
    as_gatys = [
        ((np.einsum("chw,dhw->cd", a, a) - np.einsum("chw,dhw->cd", b, b)) ** 2).sum() / (4 * 5**2 * 42**2)
        for a, b in zip(*(m.double().numpy() for m in maps), strict=True)
    ]
    np.testing.assert_allclose(values.numpy(), np.multiply(4, as_gatys), rtol=1e-5)


def test_the_gradient_of_gram_written_by_hand_is_that_of_the_value(maps):
    for layout in (torch.contiguous_format, torch.channels_last):
        image = maps[0][:, :, :2, :3].double().to(memory_format=layout).requires_grad_()
        assert torch.autograd.gradcheck(gram, image)


def test_the_product_by_onednn_is_the_product():
    for shape in ((5, 3), (2, 5, 3)):
        a, b = (torch.randn(*shape[:-2], rows, 3, generator=GENERATOR) for rows in (5, 4))
        torch.testing.assert_close(product(a, b), (a.double() @ b.double().mT).float())
        torch.testing.assert_close(product(a.mT, a.mT), (a.double().mT @ a.double()).float())
        assert product(a.double(), b.double()).dtype == torch.float64


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
    [
        ({"order": 0.5}, "at least 1"),
        ({"positions": "max"}, "must be one of mean, sum"),
        ({"projection": "rsq"}, "Did you mean 'rsp'"),
        ({"projection": "rsp", "k": 0}, "k of wasserstein"),
        ({"k": 2}, "need projection"),
        ({"redraw": True}, "need projection"),
    ],
)
def test_impossible_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Wasserstein(**options)
