"""The contextual and contextual bilateral distances against the definition written out in NumPy, and a test for each
way in which public versions are wrong."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import veridical
from veridical.distances import Contextual, contextual

SIZE = (6, 7)


@pytest.fixture
def maps() -> tuple[torch.Tensor, torch.Tensor]:
    """Two batches of feature maps, (2, 5, 6, 7), the second a noisy version of the first."""
    generator = torch.Generator().manual_seed(0)
    target = 3 + torch.randn(2, 5, *SIZE, generator=generator, dtype=torch.float64)
    return target + 0.5 * torch.randn(target.shape, generator=generator, dtype=torch.float64), target


def compare(distance, prediction, target) -> torch.Tensor:
    return distance(prediction, distance.prepare(target))


def by_definition(x, y, similarity="dp", spatial=0.0, eps=1e-5, h=0.5, b=1.0) -> float:
    """-log CX of one pair of maps (C, h, w), by the whole matrix. Mechrez et al. 2018, equations 2 to 4; the mean, the
    ½ and eps as in their released code; the spatial part as in the released code of Zhang et al. 2019."""
    height, width = x.shape[1:]
    x, y = (m.reshape(len(m), -1).numpy().astype(np.float64) for m in (x, y))
    if similarity == "dp":
        mean = y.mean(1, keepdims=True)
        x, y = x - mean, y - mean
        x, y = x / np.linalg.norm(x, axis=0), y / np.linalg.norm(y, axis=0)
        distances = (1 - x.T @ y) / 2  # [generated, target]
    else:
        distances = ((x[:, :, None] - y[:, None, :]) ** 2).sum(0)

    def normalised(d):
        relative = d / (d.min(1, keepdims=True) + eps)
        w = np.exp((b - relative) / h)
        return w / w.sum(1, keepdims=True)

    rows, columns = np.mgrid[:height, :width]
    grid = np.stack([rows.ravel() / height, columns.ravel() / width], axis=1)
    places = ((grid[:, None] - grid) ** 2).sum(2)
    similarities = (1 - spatial) * normalised(distances) + spatial * normalised(places)
    return -np.log(similarities.max(0).mean())


@pytest.mark.parametrize("similarity", ["dp", "l2"])
@pytest.mark.parametrize(("spatial", "eps"), [(0.0, 1e-5), (0.1, 1e-3), (0.4, 0.02)])
def test_agrees_with_the_definition(similarity, spatial, eps, maps):
    prediction, target = maps
    distance = Contextual(similarity=similarity, spatial=spatial, eps=eps)
    values = compare(distance, prediction, target)
    for n in range(2):
        expected, own = (by_definition(m[n], target[n], similarity, spatial, eps) for m in (prediction, target))
        assert values[n].item() == pytest.approx(expected - own, rel=1e-8)
        assert distance.prepare(target).own[n].item() == pytest.approx(-own, abs=1e-10)


def test_the_half_counts_where_features_nearly_agree(maps):
    """d / (min d + 1e-5) has no scale but that of the 1e-5: without the ½ it would be another value."""
    _, target = maps
    prediction = target + 0.003 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    near = by_definition(prediction[0], target[0], eps=1e-2)
    assert compare(Contextual(eps=1e-2), prediction, target)[0].item() == pytest.approx(
        near - by_definition(target[0], target[0], eps=1e-2), rel=1e-6
    )
    assert near != pytest.approx(by_definition(prediction[0], target[0], eps=5e-3), rel=1e-2)


def test_only_directions_from_the_targets_mean_count_for_dp(maps):
    """Versions that forget to centre, or to bring features to one length, change here."""
    prediction, target = maps
    mean = target.mean((2, 3), keepdim=True)
    lengths = 0.5 + torch.rand(2, 1, *SIZE, generator=torch.Generator().manual_seed(1))
    stretched = mean + lengths * (prediction - mean)
    expected = compare(Contextual(), prediction, target)
    torch.testing.assert_close(compare(Contextual(), stretched, target), expected)
    torch.testing.assert_close(compare(Contextual(), prediction + 7, target + 7), expected)
    assert (compare(Contextual(similarity="l2"), stretched, target) - expected).abs().min() > 0.01


def test_the_best_is_sought_for_each_target(maps):
    """A prediction that repeats one of the target's features everywhere has a like for that one alone: log n. Taking
    the maximum over the other axis, each of its features has found its like: 0."""
    _, target = maps
    repeated = target[:, :, 2:3, 3:4].expand_as(target)
    for similarity in ("dp", "l2"):
        values = compare(Contextual(similarity=similarity), repeated, target)
        torch.testing.assert_close(values, torch.full_like(values, np.log(42)), rtol=1e-3, atol=0)


def test_places_and_the_order_of_channels_do_not_matter(maps):
    prediction, target = maps
    generator = torch.Generator().manual_seed(1)
    shuffled = prediction.flatten(2)[:, :, torch.randperm(42, generator=generator)].view_as(prediction)
    order = torch.randperm(5, generator=generator)
    expected = compare(Contextual(), prediction, target)
    torch.testing.assert_close(compare(Contextual(), shuffled, target), expected)
    torch.testing.assert_close(compare(Contextual(), prediction[:, order], target[:, order]), expected)


def test_places_matter_for_cobi(maps):
    _, target = maps
    moved = target.roll((2, 3), dims=(2, 3))
    assert compare(Contextual(), moved, target).abs().max() < 1e-6
    near, far = (compare(Contextual(spatial=0.3, eps=0.02), target.roll(shift, dims=3), target) for shift in (1, 3))
    assert (near > 0.01).all()
    assert (far > near).all()


def test_a_batch_is_compared_image_by_image(maps):
    """Some public versions stop at a batch of two, or centre by the mean of the whole batch."""
    prediction, target = maps
    target = target + torch.tensor([0.0, 50.0])[:, None, None, None]
    together = compare(Contextual(), prediction, target)
    alone = torch.cat([compare(Contextual(), prediction[n : n + 1], target[n : n + 1]) for n in range(2)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("redraw", [False, True])
def test_sampled_positions_are_the_same_in_both_maps(redraw, maps):
    prediction, target = maps
    distance = Contextual(max_positions=12, redraw=redraw)
    assert compare(distance, target, target).abs().max() == 0
    prepared = distance.prepare(target)
    places = prepared.places
    assert len(places.unique()) == 12
    sampled = [m.flatten(2)[:, :, places, None] for m in maps]
    torch.testing.assert_close(distance(prediction, prepared), compare(Contextual(), *sampled))
    torch.testing.assert_close(prepared.grid, torch.stack([(places // 7) / 6, (places % 7) / 7], dim=1).double())
    unlike = {tuple(distance.prepare(target).places.tolist()) for _ in range(4)}
    assert len(unlike) == (4 if redraw else 1)
    assert distance.random == redraw
    assert list(distance.state_dict()) == (["step"] if redraw else [])
    distance.eval()
    assert torch.equal(distance.prepare(target).places, Contextual(max_positions=12).prepare(target).places)


def test_sampled_positions_cover_the_map_evenly():
    distance = Contextual(max_positions=100, redraw=True)
    maps = torch.rand(1, 1, 32, 32)
    counts = torch.zeros(1024)
    for _ in range(200):
        counts[distance.prepare(maps).places] += 1
    assert counts.sum() == 20000
    assert counts.min() > 4  # 19.5 on average, standard deviation 4.2
    assert counts.max() < 40


@pytest.mark.parametrize("similarity", ["dp", "l2"])
@pytest.mark.parametrize("spatial", [0.0, 0.2])
def test_a_few_columns_at_a_time_are_the_same_as_all_at_once(similarity, spatial, maps, monkeypatch):
    prediction, target = maps
    distance = Contextual(similarity=similarity, spatial=spatial, eps=1e-3)
    found = []
    for entries in (2**20, 42 * 5):
        monkeypatch.setitem(contextual._ENTRIES, "cpu", entries)
        image = prediction.clone().requires_grad_()
        values = compare(distance, image, target)
        (values * torch.tensor([2.0, -3.0])).sum().backward()
        found.append((values.detach(), image.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("similarity", ["dp", "l2"])
@pytest.mark.parametrize("spatial", [0.0, 0.2])
def test_the_gradient_written_by_hand_is_that_of_the_value(similarity, spatial, maps):
    prediction, target = (m[:, :, :3, :4] for m in maps)
    distance = Contextual(similarity=similarity, spatial=spatial, eps=1e-3)
    prepared = distance.prepare(target)
    assert torch.autograd.gradcheck(lambda image: distance(image, prepared), prediction.requires_grad_())


@pytest.mark.parametrize("similarity", ["dp", "l2"])
def test_float32_which_oneDNN_multiplies_agrees_with_float64(similarity):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(1, 64, 16, 20, generator=generator)
    prediction = target + 0.3 * torch.rand(target.shape, generator=generator)
    found = []
    for dtype in (torch.float32, torch.float64):
        image = prediction.to(dtype, copy=True).requires_grad_()
        value = compare(Contextual(similarity=similarity), image, target.to(dtype))
        (gradient,) = torch.autograd.grad(value, image)
        found.append((value.detach().float(), (gradient / gradient.abs().max()).float()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_the_operators_are_what_the_compiler_takes_them_for(maps):
    prediction, target = (m.flatten(2).mT.contiguous() for m in maps)
    grid = torch.rand(42, 2, dtype=torch.float64)
    torch.library.opcheck(contextual._similarity, (prediction.requires_grad_(), target, grid, 0.5, 1e-3, 0.1))


def test_patches_are_those_around_each_position():
    """The 3x3 patch of every position, by NumPy, zero outside."""
    maps = torch.rand(1, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    padded = np.pad(maps[0].numpy(), ((0, 0), (1, 1), (1, 1)))
    patches = [padded[:, i : i + 3, j : j + 3].ravel() for i in range(4) for j in range(5)]
    distance = Contextual(patch_size=3)
    np.testing.assert_array_equal(distance._at(maps, None)[0].numpy(), np.stack(patches))


def test_a_nan_is_not_hidden(maps, monkeypatch):
    prediction, target = (m.clone() for m in maps)
    prediction[0, 0, 2, 2] = float("nan")
    for entries in (2**20, 42 * 5):
        monkeypatch.setitem(contextual._ENTRIES, "cpu", entries)
        assert compare(Contextual(), prediction, target).isnan().tolist() == [True, False]


def test_memory_does_not_grow_with_the_square_of_the_positions():
    """6144 positions: one matrix of all pairs would be 144 MiB, and the plain form holds several."""
    code = """
import resource, torch
from veridical.distances import Contextual
distance = Contextual(max_positions=6144)
def step(width):
    image = torch.rand(1, 8, 64, width, requires_grad=True)
    distance(image, distance.prepare(torch.rand(1, 8, 64, width))).sum().backward()
step(4)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(96)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    if sys.platform != "linux":
        pytest.skip("needs Linux, where the highest memory use is counted in KiB")
    mib = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert mib < 72


def test_values_of_the_recipes(network_file):
    """Taps, weights and settings of contextual and cobi, from the distance that the other tests check."""
    file = str(network_file("vgg16"))
    generator = torch.Generator().manual_seed(2)
    prediction, target = (torch.rand(1, 3, 24, 32, generator=generator) for _ in range(2))
    features = veridical.loss("cobi", rgb=2.0, weights=file).distance.features
    features.add_taps(["conv4_3"])
    ours, theirs = (features(image, features.draw()) for image in (prediction, target))
    assert torch.equal(ours["image"], prediction)
    for options in ({}, {"similarity": "l2", "bandwidth": 0.3}):
        expected = compare(Contextual(**options), ours["conv4_3"], theirs["conv4_3"])
        loss = veridical.loss("contextual", weights=file, **options)
        torch.testing.assert_close(loss(prediction, target), expected[0], rtol=1e-4, atol=1e-6)
    spatial = {"spatial": 0.1, "eps": 1e-3}
    terms = {
        tap: compare(Contextual(**spatial, patch_size=5 if tap == "image" else 1), ours[tap], theirs[tap]).item()
        for tap in ("relu1_2", "relu2_2", "relu3_2", "image")
    }
    network = terms["relu1_2"] + terms["relu2_2"] + 0.5 * terms["relu3_2"]
    assert veridical.loss("cobi", weights=file)(prediction, target).item() == pytest.approx(network, rel=1e-4)
    with_patches = veridical.loss("cobi", rgb=2.0, weights=file)(prediction, target).item()
    assert with_patches == pytest.approx(network + 2 * terms["image"], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": "cosine"}, "must be one of dp, l2"),
        ({"bandwidth": 0}, "at least 0.001"),
        ({"max_positions": 1}, "at least 2"),
        ({"patch_size": 4}, "odd"),
        ({"spatial": 1.0}, "from 0 to 0.99"),
    ],
)
def test_impossible_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Contextual(**options)
