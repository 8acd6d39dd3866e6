"""The frozen layers equal torch's plain ones, in value and gradient, however they are computed."""

import copy
import gc
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veridical.features import convolution as layers
from veridical.features.convolution import convolution, l2_pool, max_pool

# n, inputs, outputs, height, width, kernel, stride, padding, groups, slope
SHAPES = {
    "one pixel": (1, 3, 8, 1, 1, 3, 1, 1, 1, 0.0),
    "to fewer channels than a vector": (2, 3, 16, 20, 24, 3, 1, 1, 1, 0.0),
    "of odd size": (2, 3, 16, 21, 23, 3, 1, 1, 1, 0.0),
    "without padding": (1, 3, 16, 22, 18, 3, 1, 0, 1, None),
    "padded more than its kernel": (1, 3, 16, 9, 9, 3, 1, 3, 1, None),
    "padded more than its kernel, of many channels": (1, 16, 16, 9, 9, 3, 1, 3, 1, None),
    "AlexNet's first": (2, 3, 64, 64, 72, 11, 4, 2, 1, 0.0),
    "AlexNet's first, of odd size": (1, 3, 64, 67, 65, 11, 4, 2, 1, 0.0),
    "SqueezeNet's first": (2, 3, 64, 40, 40, 3, 2, 0, 1, 0.0),
    "strided, of many channels": (1, 16, 16, 12, 15, 3, 2, 1, 1, 0.0),
    "stride wider than the kernel": (1, 3, 8, 16, 16, 2, 4, 0, 1, None),
    "1x1": (2, 64, 16, 9, 7, 1, 1, 0, 1, 0.0),
    "5x5": (1, 64, 48, 11, 11, 5, 1, 2, 1, 0.0),
    "groups": (2, 64, 128, 12, 13, 3, 1, 0, 8, 0.2),
    "groups from shared channels": (1, 3, 32, 12, 13, 3, 1, 0, 1, 0.2),
    "Winograd": (1, 128, 160, 32, 32, 3, 1, 1, 1, 0.0),
    "Winograd without padding, sizes that are no multiple of 4": (2, 128, 128, 35, 41, 3, 1, 0, 1, 0.2),
    "Winograd padded by 2, without activation": (3, 160, 128, 17, 18, 3, 1, 2, 1, None),
    "Winograd over several small images": (9, 128, 128, 9, 10, 3, 1, 1, 1, 0.0),
    "Winograd of one pixel": (70, 128, 128, 1, 1, 3, 1, 1, 1, 0.0),
    "Winograd in chunks of which the last is smaller": (1, 128, 128, 76, 77, 3, 1, 1, 1, 0.0),
}
# Both sum in another order than F.conv2d, and Winograd through numbers that are larger: measured are 2e-6 and 3e-6.
TOLERANCE = 1e-5


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def case(request) -> tuple[Tensor, Tensor, Tensor, dict]:
    n, inputs, outputs, height, width, kernel, stride, padding, groups, slope = request.param
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, inputs, height, width, generator=generator)
    weight = torch.randn(outputs, inputs // groups, kernel, kernel, generator=generator)
    weight /= weight[0].numel() ** 0.5
    bias = torch.randn(outputs, generator=generator)
    return x, weight, bias, {"stride": stride, "padding": padding, "groups": groups, "slope": slope}


def plain(x: Tensor, weight: Tensor, bias: Tensor, *, slope: float | None, **options: int) -> Tensor:
    """What `convolution` stands for, in float64."""
    y = F.conv2d(x.double(), weight.double(), bias.double(), **options)
    return y if slope is None else F.leaky_relu(y, slope)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def test_equals_the_plain_convolution(case):
    x, weight, bias, options = case
    assert_close(convolution(x, weight, bias, **options), plain(x, weight, bias, **options))
    without = plain(x, weight, torch.zeros_like(bias), **options)
    assert_close(convolution(x, weight, **options), without)


def test_its_gradient_is_autograds(case):
    x, weight, bias, options = case
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    y = convolution(ours, weight, bias, **options)
    assert torch.equal(y, convolution(x, weight, bias, **options))  # with a graph and without: one value
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    # Where the sum is 0, rounding decides whether a ReLU is open.
    upstream *= plain(x, weight, bias, **{**options, "slope": None}).abs() > 1e-4
    expected = plain(theirs, weight, bias, **options)
    y.backward(upstream)
    expected.backward(upstream.double())
    assert ours.grad.dtype == torch.float32
    assert_close(ours.grad, theirs.grad)


def test_the_memory_layout_of_the_input_changes_nothing(case):
    x, weight, bias, options = case
    other = x.to(memory_format=torch.channels_last)
    assert torch.equal(convolution(other, weight, bias, **options), convolution(x, weight, bias, **options))


def test_the_cases_named_so_run_as_winograd(monkeypatch):
    seen = []
    original = layers._winograd
    monkeypatch.setattr(layers, "_winograd", lambda *a, **k: seen.append(k["transposed"]) or original(*a, **k))
    for name, (n, inputs, outputs, height, width, _, stride, padding, groups, slope) in SHAPES.items():
        seen.clear()
        x = torch.randn(n, inputs, height, width, requires_grad=True)
        weight = torch.randn(outputs, inputs // groups, SHAPES[name][5], SHAPES[name][5])
        convolution(x, weight, stride=stride, padding=padding, groups=groups, slope=slope).sum().backward()
        assert seen == ([False, True] if name.startswith("Winograd") else []), name


def test_chunks_of_any_size_give_one_value(monkeypatch):
    x, weight = torch.randn(3, 128, 30, 33), torch.randn(128, 128, 3, 3) / 34
    whole = convolution(x, weight, padding=1)
    for tiles in (64, 90, 150, 1000):
        monkeypatch.setattr(layers, "CHUNK_TILES", tiles)
        assert_close(convolution(x, weight, padding=1), whole, 1e-6)


@pytest.mark.parametrize("slope", [None, 0.0, 0.2])
def test_gradcheck(slope):
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    weight, bias = torch.randn(6, 2, 3, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: convolution(x, weight, bias, padding=1, groups=2, slope=slope), x)
    assert torch.autograd.gradcheck(lambda x: convolution(x, weight, bias, stride=2, groups=2, slope=slope), x)


def test_a_weight_that_changes_in_place_is_noticed():
    for channels in (16, 128):
        x, weight = torch.randn(1, channels, 32, 32), torch.randn(channels, channels, 3, 3)
        before = convolution(x, weight, padding=1)
        weight.mul_(2)
        assert_close(convolution(x, weight, padding=1), 2 * before)


def test_what_is_made_of_a_weight_is_made_once_and_goes_with_it():
    x, weight = torch.randn(1, 128, 32, 32, requires_grad=True), torch.randn(128, 128, 3, 3)
    convolution(x, weight, padding=1).sum().backward()
    kept = {what: entry[2] for what, entry in layers._MADE[weight].items()}
    assert len(kept) == 2  # one for each direction
    convolution(x, weight, padding=1).sum().backward()
    assert all(layers._MADE[weight][what][2] is made for what, made in kept.items())
    gc.collect()
    before = len(layers._MADE)
    del weight
    gc.collect()
    assert len(layers._MADE) == before - 1


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(128, 128, 3, 3) / 34, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return convolution(x, self.weight, padding=1, slope=0.0)


def test_a_module_that_was_used_can_be_copied_pickled_and_cast():
    layer, x = _Layer(), torch.randn(1, 128, 32, 32)
    expected = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), expected)
    assert list(layer.state_dict()) == []
    assert_close(copy.deepcopy(layer).double()(x.double()), expected.double())
    assert copy.deepcopy(layer).to("meta")(x.to("meta")).shape == expected.shape


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile does it itself
@pytest.mark.parametrize("gradient", [False, True])
def test_compiles_without_graph_breaks(case, gradient):
    x, weight, bias, options = case
    torch.compiler.reset()
    x.requires_grad_(gradient)
    compiled = torch.compile(lambda x: convolution(x, weight, bias, **options), fullgraph=True, backend="aot_eager")
    y, expected = compiled(x), convolution(x, weight, bias, **options)
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride()
    if gradient:
        ours, theirs = (torch.autograd.grad(value.square().sum(), x)[0] for value in (y, expected))
        torch.testing.assert_close(ours, theirs)


def test_autocast_lowers_the_precision_and_the_gradient_comes_back_in_the_inputs():
    x, weight = torch.randn(1, 128, 32, 32, requires_grad=True), torch.randn(128, 128, 3, 3) / 34
    expected = convolution(x, weight, padding=1)
    (wanted,) = torch.autograd.grad(expected.sum(), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = convolution(x, weight, padding=1)
        (inside,) = torch.autograd.grad(y.float().sum(), x, retain_graph=True)
    (outside,) = torch.autograd.grad(y.float().sum(), x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.05)
    for gradient in (inside, outside):
        assert gradient.dtype == torch.float32
        assert (gradient - wanted).norm() < 0.02 * wanted.norm()


def _kept(compute, x: Tensor, *buffers: Tensor) -> int:
    """How many bytes a graph keeps of what was not there before."""
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = compute(x)
    known = {tensor.untyped_storage().data_ptr() for tensor in (x, *buffers)}
    assert y.requires_grad
    return sum(size for pointer, size in storages.items() if pointer not in known)


@pytest.mark.parametrize("channels", [16, 128])
def test_a_graph_keeps_one_byte_per_relu_and_two_per_pooled_value(channels):
    x, weight = torch.randn(2, channels, 32, 32, requires_grad=True), torch.randn(channels, channels, 3, 3)
    assert _kept(lambda x: convolution(x, weight, padding=1, slope=0.0), x, weight) == x.numel()
    assert _kept(lambda x: convolution(x, weight, padding=1), x, weight) == 0
    assert _kept(lambda x: max_pool(x, 2), x) == 2 * x.numel() // 4


# Pooling


@pytest.mark.parametrize("size", [(8, 8), (9, 12), (3, 3), (64, 7)], ids=str)
@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("content", ["noise", "flat", "ties", "relu"])
def test_max_pooling_is_torchs_in_value_and_gradient(size, kernel, ceil, content):
    x = torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(3))
    x = {"noise": x, "flat": torch.ones_like(x), "ties": x.round(), "relu": x.relu()}[content]
    for layout in (torch.contiguous_format, torch.channels_last):
        ours, theirs = (x.to(memory_format=layout).clone().requires_grad_() for _ in range(2))
        y, expected = max_pool(ours, kernel, ceil=ceil), F.max_pool2d(theirs, kernel, 2, ceil_mode=ceil)
        assert torch.equal(y, expected)
        assert torch.equal(max_pool(x, kernel, ceil=ceil), expected)
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(4))
        y.backward(upstream)
        expected.backward(upstream)
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_max_pooling_knows_its_place_beyond_the_range_of_int16():
    for shape in ((1, 1, 300, 300), (1, 1, 4, 40_000)):
        ours, theirs = (torch.randn(shape, generator=torch.Generator().manual_seed(5)) for _ in range(2))
        max_pool(ours.requires_grad_(), 3).sum().backward()
        F.max_pool2d(theirs.requires_grad_(), 3, 2).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_max_pooling_gradcheck():
    x = torch.randn(1, 2, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(6), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: max_pool(x, 2), x)
    assert torch.autograd.gradcheck(lambda x: max_pool(x, 3, ceil=True), x)


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (1, 1)], ids=str)
def test_l2_pooling_is_the_root_of_the_blurred_square(size):
    x = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    window = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    window = (window[:, None] * window).expand(5, 1, 3, 3)
    expected = torch.sqrt(F.conv2d(x.square(), window, stride=2, padding=1, groups=5) + 1e-12)
    torch.testing.assert_close(l2_pool(x), expected)
    assert torch.autograd.gradcheck(l2_pool, x)
