"""The Stochastic Perceptual Loss: its network, its draws, and the scale of each member of the family."""

import numpy as np
import pytest
import torch

import veridical
from veridical.core.random import normal, uniform
from veridical.features import StochasticNetwork
from veridical.features.stochastic import BLOCKS


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(2, 3, 32, 32, generator=generator)
    return target + 0.05 * torch.randn(target.shape, generator=generator), target


def test_the_network_has_the_papers_number_of_weights():
    assert sum(w.numel() for w in StochasticNetwork().draw()) == 24528


def test_training_mode_draws_anew_and_evaluation_mode_does_not(images):
    for name in ("spl-a", "spl-a-last", "spl-b", "spl-b-last", "spl-c", "spl-c-last"):
        loss = veridical.loss(name)
        assert loss.random
        values = {loss(*images).item() for _ in range(4)}
        assert len(values) == 4, name
        loss.eval()
        assert loss(*images) == loss(*images)
        assert loss(*images) == veridical.loss(name).eval()(*images), "the length of the training must not matter"


def test_d_never_draws(images):
    for name in ("spl-d", "spl-d-last"):
        loss = veridical.loss(name)
        assert not loss.random
        assert loss(*images) == loss(*images)


def test_draws_depend_on_seed_and_step_alone(images):
    one, same, other = veridical.loss("spl-c"), veridical.loss("spl-c"), veridical.loss("spl-c(seed=1)")
    torch.rand(7)  # the global generator plays no part
    for _ in range(3):
        value = one(*images)
        assert torch.equal(value, same(*images))
        assert not torch.equal(value, other(*images))


def test_a_resumed_loss_goes_on_where_it_stopped(images):
    loss = veridical.loss("0.5*l1 + spl-a")
    for _ in range(3):
        loss(*images)
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    expected = loss(*images)
    resumed = veridical.loss("0.5*l1 + spl-a")
    resumed.load_state_dict(state)
    assert torch.equal(resumed(*images), expected)


def test_prediction_and_target_see_the_same_draw(images):
    loss = veridical.loss("spl-c")
    _, target = images
    assert all(loss(target, target).item() == 0 for _ in range(3))
    prepared = loss.prepare(target)
    assert loss(target, prepared).item() == 0


def test_only_the_named_blocks_are_redrawn_and_biases_never():
    network = StochasticNetwork(redraw=BLOCKS[:1])
    first, second = network.draw(), network.draw()
    same = [torch.equal(a, b) for a, b in zip(first, second, strict=True)]
    assert same == [False] + [True] * 7


def test_redrawn_weights_are_kaiming_normal_and_the_others_pytorchs_default():
    """kaiming_normal_(a=0): std sqrt(2 / fan-in); nn.Conv2d's default: uniform within 1 / sqrt(fan-in)."""
    weights = StochasticNetwork(redraw=BLOCKS).draw()
    assert weights[6].std().item() == pytest.approx((2 / 288) ** 0.5, rel=0.02)
    assert weights[6].mean().item() == pytest.approx(0, abs=0.002)
    fixed = StochasticNetwork().draw()
    bound = 288**-0.5
    assert fixed[6].abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert fixed[6].std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_block_by_block_the_family_has_the_scales_of_the_facts():
    """Per-level L1 for random images + 0.05 noise, as measured elsewhere with PyTorch's own initialisers:
    A .043 .018 .0071 .0028; C about .041 each; D .016 .0065 .0025 .0010. Means over seeds; draws vary by a fifth."""
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(4, 3, 64, 64, generator=generator)
    prediction = target + 0.05 * torch.randn(target.shape, generator=generator)
    expected = {
        (): (0.016, 0.0065, 0.0025, 0.0010),
        BLOCKS[:1]: (0.043, 0.018, 0.0071, 0.0028),
        BLOCKS: (0.041, 0.041, 0.041, 0.041),
    }
    for redraw, levels in expected.items():
        found = np.zeros(4)
        for seed in range(12):
            network = StochasticNetwork(redraw=redraw, seed=seed)
            weights = network.draw()
            ours, theirs = network(prediction, weights), network(target, weights)
            found += [(ours[b] - theirs[b]).abs().mean().item() / 12 for b in BLOCKS]
        np.testing.assert_allclose(found, levels, rtol=0.2)


def test_b_is_a_without_the_pools(images):
    network = StochasticNetwork(pool=False)
    assert network(images[0], network.draw())["block4"].shape == (2, 64, 32, 32)
    pooled = StochasticNetwork()
    assert pooled(images[0], pooled.draw())["block4"].shape == (2, 64, 2, 2)


def test_pooling_first_equals_activating_first(images):
    """The network pools before its LeakyReLU, which is cheaper; an increasing function and a maximum commute."""
    network = StochasticNetwork()
    weights = network.draw()
    x = images[0]
    for k in range(4):
        x = torch.nn.functional.conv2d(x, weights[2 * k], weights[2 * k + 1], padding=1)
        x = torch.nn.functional.max_pool2d(torch.nn.functional.leaky_relu(x, 0.1), 2)
        torch.testing.assert_close(network(images[0], weights)[BLOCKS[k]], x)


def lowbias32(x: np.ndarray) -> np.ndarray:
    """The same hash in NumPy's own 32-bit arithmetic."""
    x = x.astype(np.uint32)
    with np.errstate(over="ignore"):
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x7FEB352D)
        x ^= x >> np.uint32(15)
        x *= np.uint32(0x846CA68B)
        return x ^ (x >> np.uint32(16))


def test_random_numbers_agree_with_numpy():
    seed, stream, step = 5, 3, 12345
    key = lowbias32(np.array([(seed * 0x9E3779B1 + stream * 0x85EBCA77 + 1) & 0xFFFFFFFF]))
    key = lowbias32(key ^ np.uint32(step))
    expected = ((lowbias32(lowbias32(np.arange(1, 9)) ^ key) >> np.uint32(9)) + 0.5) / 2**23
    found = uniform((8,), seed=seed, stream=stream, step=torch.tensor(step))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_random_numbers_are_uniform_normal_and_independent():
    from scipy.stats import kstest

    step = torch.tensor(7)
    assert kstest(uniform((20000,), seed=1, stream=0, step=step).numpy(), "uniform").pvalue > 0.001
    one, two = (normal((20000,), seed=1, stream=stream, step=step).numpy() for stream in (0, 1))
    assert kstest(one, "norm").pvalue > 0.001
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.03
    later = normal((20000,), seed=1, stream=0, step=step + 1).numpy()
    assert abs(np.corrcoef(one, later)[0, 1]) < 0.03


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("variant", "redraw"), [("a", BLOCKS[:1]), ("b", BLOCKS[:1]), ("c", BLOCKS), ("d", ())])
def test_each_member_of_the_family_is_what_the_papers_table_says(variant, redraw, last, images):
    """L1 of each block, weighted 1, 2, 4, 8, or of block 4 alone; B has no pools; which blocks are drawn anew."""
    network = StochasticNetwork(redraw=redraw, pool=variant != "b")
    weights = network.draw()
    ours, theirs = (network(image, weights) for image in images)
    lambdas = {"block4": 1} if last else {"block1": 1, "block2": 2, "block3": 4, "block4": 8}
    expected = sum(w * (ours[b] - theirs[b]).abs().mean().item() for b, w in lambdas.items())
    loss = veridical.loss(f"spl-{variant}" + ("-last" if last else ""))
    assert loss(*images).item() == pytest.approx(expected, rel=1e-5)
