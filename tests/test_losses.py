"""One contract over the whole table of losses."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

import veridical
from veridical import measures
from veridical.core.errors import UnknownName, VeridicalError
from veridical.core.filters import convolve
from veridical.features import FrozenNetwork, Laplacian
from veridical.features.networks import PLANS
from veridical.losses import LOSSES, Loss, WeightedSum

SIZE = 48
BUILT: dict[tuple, Loss] = {}  # reading a network for each test would take most of the time
# Five scales need 161 px; three are the same code on smaller images. A narrow discriminator is the same code, too.
OPTIONS = {
    "ms-ssim": {"scales": 3},
    "ms-ssim-l1": {"scales": 3},
    **{name: {"width": 8} for name in ("gan", "ragan", "hinge-gan", "lsgan")},
}
CASES = [(name, OPTIONS.get(name, {})) for name in LOSSES if name != "tfmlc"] + [
    ("lpips", {"net": "vgg"}),
    ("lpips", {"net": "squeeze"}),
    ("pdl", {"order": 2.0}),
    ("pdl", {"projection": "r2p", "k": 2}),
    ("pdl", {"projection": "rsp", "redraw": True}),
    ("contextual", {"similarity": "l2"}),
    ("contextual", {"max_positions": 12, "redraw": True}),
    ("cobi", {"rgb": 1.0}),
    ("lpips", {"linear": False}),
    (
        "vgg16",
        {"taps": ("conv1_1", "pool2"), "tap_weights": (1.0, 0.5), "distance": "l1", "normalisation": "none"},
    ),
    ("mdf", {"task": "jpeg", "taps": "paper", "range": "0..1", "discriminators": 5}),
    ("fmlc", {"tokens": "patch", "size": "interpolate", "block": 0}),
    ("tfmlc", {"adapter": "clip"}),
    ("tfmlc", {"adapter": "vgg16"}),
    ("feature", {"features": "random", "distance": "unit-l2"}),
    ("feature", {"features": "mdf", "task": "jpeg", "distance": "wasserstein"}),
    ("feature", {"features": "adapter", "adapter": "vgg16", "distance": "contextual"}),
    ("sharpness-q", {"variant": "released"}),
    ("ragan", {"width": 8, "discriminator": "patch"}),
    ("gradient", {"kernel": "sobel"}),
    ("tv", {"isotropic": True}),
    ("focal-frequency", {"alpha": 0.5, "patch_factor": 2, "log_matrix": True}),
]


@pytest.fixture(params=CASES, ids=lambda case: case[0] + ("-" + "-".join(map(str, case[1])) if case[1] else ""))
def loss(request, network_file, clip_folder, adapter_file) -> Loss:
    """Every loss of the table, in evaluation mode (a fixed draw). Networks have random weights of the true shapes;
    CLIP's tower is a small one."""
    name, options = request.param
    key = (name, *options.items())
    if key not in BUILT:
        if "adapter" in options:
            options = options | {"adapter": str(adapter_file(options["adapter"]))}
        needed = ("mdf-released-jpeg",) if name == "mdf" else LOSSES[name].needs(options)
        weights = {"weights": str(network_file(needed[0]))} if needed else {}
        if name in ("fmlc", "tfmlc") and not needed:
            weights = {"weights": str(clip_folder)}
        BUILT[key] = veridical.loss(name, **options, **weights)
    return BUILT[key].eval()


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth random pictures and a noisy version, (2, 3, SIZE, SIZE)."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(2, 3, 6, 6, generator=generator)
    target = torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic", align_corners=False).clamp(0.05, 0.95)
    prediction = target + 0.08 * torch.randn(target.shape, generator=generator)
    return prediction, target


def test_is_zero_for_identical_images(loss, images):
    if loss.learns:
        pytest.skip("its value is what its own network makes of the images")
    _, target = images
    assert loss(target, target, reduction="none").abs().max().item() <= 1e-6 * max(1, _size(loss, images))


def _size(loss, images) -> float:
    return loss(*images).abs().item()


def test_is_positive_for_different_images(loss, images):
    if loss.reference:
        assert (loss(*images, reduction="none") > 0).all()
    else:
        assert (loss(*images, reduction="none") != 0).all()


def test_gives_one_number_per_image_and_their_mean(loss, images):
    values = loss(*images, reduction="none")
    assert values.shape == (2,)
    assert values.dtype == torch.float32
    assert loss(*images).shape == ()
    assert loss(*images).item() == pytest.approx(values.mean().item(), rel=1e-6)


def test_images_do_not_leak_into_each_other(loss, images):
    if loss.coupled:
        pytest.skip("it says that they do")
    prediction, target = (image.double() for image in images)  # a score of either sign may be close to 0
    together = loss(prediction, target, reduction="none")
    alone = torch.stack([loss(p[None], t[None]) for p, t in zip(prediction, target, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-8, atol=1e-12)


def test_following_the_gradient_brings_the_loss_down(loss, images):
    prediction, target = images
    image = prediction.clone().requires_grad_()
    before = loss(image, target)
    (gradient,) = torch.autograd.grad(before, image)
    assert gradient.abs().max() > 0
    step = 0.01 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    assert loss(prediction - step, target) < before


def test_gradient_is_finite_even_at_the_optimum_and_on_flat_images(loss, images):
    _, target = images
    flat = torch.full_like(target, 0.5)
    for prediction, wanted in (
        (target, target),
        (flat, flat),
        (flat, target),
        (torch.zeros_like(flat), target),
    ):
        image = prediction.clone().requires_grad_()
        loss(image, wanted).backward()
        assert torch.isfinite(image.grad).all()


def test_gradient_does_not_vanish_for_the_negative(loss, images):
    """MS-SSIM that clips negative contrast learns nothing from x = 1 - y."""
    _, target = images
    image = (1 - target).requires_grad_()
    loss(image, target).backward()
    assert image.grad.abs().max() > 1e-9


def test_train_mode_changes_nothing(loss, images):
    if loss.learns:
        pytest.skip("batch norm: see test_adversarial.py")
    in_evaluation = loss(*images)
    in_training = loss.train()(*images)
    assert loss.random or torch.equal(in_training, in_evaluation)  # a random loss draws anew: see test_stochastic.py
    assert torch.equal(loss.eval()(*images), in_evaluation)


def test_reduced_precision_agrees_with_float32(loss, images):
    prediction, target = (image.bfloat16() for image in images)
    expected = loss(prediction.float(), target.float())
    assert loss(prediction, target).dtype == torch.float32
    torch.testing.assert_close(loss(prediction, target), expected, rtol=1e-5, atol=1e-7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # Networks may run in bfloat16, which keeps 8 bits; everything else must not.
        tolerance = 0.05 if loss.weight_hashes else 1e-5
        torch.testing.assert_close(loss(prediction.float(), target.float()), expected, rtol=tolerance, atol=1e-6)


# Their gradient is not that of their value, on purpose: which factors are held fixed is part of their definition.
HOLDS_FIXED = {"focal-frequency": "the weights of the frequencies"}


def test_gradient_is_the_slope_of_the_value(loss, images):
    """torch.autograd.gradcheck along one random direction, in float64; its own way takes minutes for the networks."""
    name = loss.label.partition("(")[0]
    if name in HOLDS_FIXED:
        pytest.skip(f"{name} holds {HOLDS_FIXED[name]} fixed")
    prediction, target = (image[:1].double() for image in images)
    direction = torch.randn(prediction.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    direction /= direction.norm()
    prepared, step = loss.prepare(target), 1e-7  # so short that it meets few of the kinks of a network
    image = prediction.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(image, prepared), image)
    with torch.no_grad():
        rise = loss(prediction + step * direction, prepared) - loss(prediction - step * direction, prepared)
    torch.testing.assert_close((gradient * direction).sum(), rise / (2 * step), rtol=1e-4, atol=1e-8)


def test_double_precision_agrees_with_float32(loss, images):
    torch.testing.assert_close(loss(*(image.double() for image in images)).float(), loss(*images), rtol=1e-3, atol=1e-5)


def test_compiles_without_graph_breaks(loss, images):
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*images), loss(*images), rtol=1e-5, atol=1e-7)


def test_prepared_target_gives_the_same_value(loss, images):
    prediction, target = images
    prepared = loss.prepare(target.clone().requires_grad_())
    torch.testing.assert_close(loss(prediction, prepared), loss(prediction, target), rtol=1e-6, atol=0)
    image = prediction.clone().requires_grad_()
    loss(image, prepared).backward()
    assert image.grad is not None


def test_target_gets_no_gradient(loss, images):
    prediction, target = images
    target = target.clone().requires_grad_()
    loss(prediction.clone().requires_grad_(), target).backward()
    assert target.grad is None


def test_a_step_waits_for_nothing_and_copies_nothing_to_the_device(loss, images):
    """What would stall a GPU: reading a value on the host, or making a constant on the CPU in the middle of a step.
    Watched on the meta device, where neither is possible."""
    loss = copy.deepcopy(loss).to("meta")
    prediction, target = (torch.empty_like(image, device="meta", requires_grad=True) for image in images)
    with _Watch() as watch:
        loss.train()(prediction, target).backward()
    assert watch.found == []
    assert prediction.grad is not None


class _Watch(TorchDispatchMode):
    """Names the operations that make a tensor on the CPU, or read one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else [result]
        on_cpu = any(isinstance(value, torch.Tensor) and value.device.type == "cpu" for value in made)
        if on_cpu or "_local_scalar_dense" in str(function):
            self.found.append(str(function))
        return result


def test_part_by_part_is_the_same_as_all_at_once(loss, images):
    """Values and the gradient of each image, with weights of the images that only the caller knows. In float64:
    rounding decides which of two equal pixels a pool takes."""
    if loss.random or loss.coupled:
        pytest.skip("it looks at the whole batch at once")
    loss, images = copy.deepcopy(loss), [image.double() for image in images]
    loss.by_image = False
    found = [_values_and_gradient(loss, *images)]
    loss.by_image, loss.images_at_once = True, 1
    found.append(_values_and_gradient(loss, *images))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-9 * whole.abs().max().item())


def _values_and_gradient(loss, prediction, target):
    image = prediction.clone().requires_grad_()
    values = loss(image, target, reduction="none")
    (values * torch.tensor([2.0, -3.0])).sum().backward()
    return values.detach(), image.grad


def test_memory_does_not_grow_with_the_batch(network_file):
    """What autograd keeps between the forward and the backward pass: the gradient, whatever the network."""
    loss = veridical.loss("vgg16", weights=str(network_file("vgg16")))
    image = torch.rand(4, 3, 32, 32, requires_grad=True)
    value = loss(image, torch.rand(4, 3, 32, 32))
    kept, waiting = [], [value.grad_fn]
    while waiting:
        node = waiting.pop()
        kept += getattr(node, "saved_tensors", ())
        waiting += [following for following, _ in node.next_functions if following is not None]
    assert [each.shape for each in kept] == [image.shape]


def test_can_be_copied_and_pickled(loss, images):
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(*images), loss(*images))


def test_carries_no_backbone_in_its_state(loss):
    if loss.learns:
        pytest.skip("its state is what it has learned")
    assert sum(value.numel() for value in loss.state_dict().values()) <= 64


def test_has_nothing_to_train(loss):
    assert list(loss.parameters()) == []


def test_state_goes_round(loss):
    loss.load_state_dict(copy.deepcopy(loss.state_dict()))


def test_overshoot_is_allowed(loss, images):
    prediction, target = images
    assert torch.isfinite(loss(prediction * 1.5 - 0.25, target))


def test_grey_images_are_accepted(loss, images):
    prediction, target = (image[:, :1] for image in images)
    assert torch.isfinite(loss(prediction, target))


def test_sizes_that_are_no_multiple_of_anything_are_accepted(loss, images):
    prediction, target = (image[:, :, :45, :47] for image in images)
    assert torch.isfinite(loss(prediction, target))


def test_the_least_size_works_and_one_less_is_an_error_that_names_it(loss):
    least = torch.rand(1, 3, loss.min_size, loss.min_size)
    assert torch.isfinite(loss(least, least))
    if loss.min_size > 1:
        less = torch.rand(1, 3, loss.min_size, loss.min_size - 1)
        with pytest.raises(ValueError, match=f"at least {loss.min_size}x{loss.min_size}"):
            loss(less, less)


def test_wrong_input_is_an_error_that_says_so(loss, images):
    prediction, target = images
    with pytest.raises(ValueError, match="one shape"):
        loss(prediction, target[:, :, :-1])
    with pytest.raises(ValueError, match=r"\(N, C, H, W\)"):
        loss(prediction[0], target[0])
    with pytest.raises(ValueError, match="movedim"):
        loss(prediction.movedim(1, -1), target.movedim(1, -1))
    with pytest.raises(TypeError, match="floating-point"):
        loss((prediction * 255).byte(), (target * 255).byte())


def test_label_makes_the_same_loss_again(loss, images):
    again = veridical.loss(loss.label).eval()
    assert again.label == loss.label
    assert torch.equal(again(*images), loss(*images))


# Specs


def test_a_sum_is_the_weighted_sum_of_its_terms_and_reports_each(images):
    prediction, target = images
    total, terms = veridical.loss("0.8*l2 + 0.2*ssim").with_terms(prediction, target)
    assert set(terms) == {"l2", "ssim"}
    assert terms["l2"].item() == pytest.approx(0.8 * veridical.loss("l2")(prediction, target).item(), rel=1e-6)
    assert terms["ssim"].item() == pytest.approx(0.2 * veridical.loss("ssim")(prediction, target).item(), rel=1e-6)
    assert total.item() == pytest.approx(sum(t.item() for t in terms.values()), rel=1e-6)


def test_a_table_and_a_string_make_the_same_loss(images):
    table = veridical.loss({"l2": 0.8, "charbonnier": {"weight": 0.2, "eps": 0.01}})
    text = veridical.loss("0.8*l2 + 0.2*charbonnier(eps=0.01)")
    assert table.label == text.label
    assert torch.equal(table(*images), text(*images))


def test_weight_multiplies_the_whole(images):
    assert veridical.loss("l1", weight=3)(*images).item() == pytest.approx(3 * veridical.loss("l1")(*images).item())


def test_terms_of_one_network_share_one_pass(images, network_file):
    file = network_file("vgg16")
    spec = f"l1 + vgg16(weights='{file}') + 0.1*pdl(weights='{file}') + lpips(net=vgg, weights='{file}')"
    loss = veridical.loss(spec)
    passes = []
    for network in loss.networks.values():
        network.register_forward_hook(lambda module, inputs, output: passes.append(type(module).__name__))
    prediction, target = images
    _, terms = loss.with_terms(prediction, target)
    # One for the target and one for the prediction, through VGG16 and through the pixels.
    assert sorted(passes) == ["FrozenNetwork", "FrozenNetwork", "Pixels", "Pixels"]
    for part in ("vgg16", "0.1*pdl", "lpips(net=vgg)"):
        weight, _, name = part.rpartition("*")
        name, _, options = name.partition("(")
        alone = veridical.loss(name, weights=str(file), **({"net": "vgg"} if options else {}))
        shared = next(value for label, value in terms.items() if label.startswith(name))
        assert shared.item() == pytest.approx(float(weight or 1) * alone(prediction, target).item(), rel=1e-5)


def test_a_network_from_two_files_is_named_twice(network_file, tmp_path):
    first = network_file("alexnet")
    tensors = load_file(first)
    tensors["features.0.bias"] += 1
    save_file(tensors, tmp_path / "other.safetensors")
    loss = veridical.loss(f"lpips(weights='{first}') + lpips(weights='{tmp_path / 'other.safetensors'}')")
    assert len(loss.networks) == 2
    assert len(set(loss.weight_hashes.values())) == 2


def test_the_network_stops_at_the_last_tap(network_file):
    loss = veridical.loss("vgg16", taps=("relu1_2",), weights=str(network_file("vgg16")))
    assert len(loss.distance.features._layers()) == [layer.name for layer in PLANS["vgg16"]].index("relu1_2") + 1


def test_an_input_never_changes_the_weights(network_file, images):
    loss = veridical.loss("vgg16", weights=str(network_file("vgg16")))
    before = loss(*images)
    loss(*(image.half() for image in images))
    assert torch.equal(loss(*images), before)


def test_a_state_saved_with_other_weights_is_noticed(network_file):
    state = veridical.loss("vgg16", weights=str(network_file("vgg16"))).state_dict()
    key = next(key for key in state if key.endswith("_extra_state"))
    state[key] = state[key].flip(0)
    with pytest.raises(VeridicalError, match="saved with vgg16 weights"):
        veridical.loss("vgg16", weights=str(network_file("vgg16"))).load_state_dict(state)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mssim", "Did you mean 'ms-ssim'"),
        ("0.8*l2 + lpisp", "Did you mean 'lpips'"),
        ("charbonnier(esp=1)", "Did you mean 'eps'"),
        ("l1 l2", "cannot read"),
        ("l1 +", "cannot read"),
        ("x*l1", "cannot read"),
        ("lpips(net=vgg", "unclosed"),
        ("lpips(net=resnet)", "unknown LPIPS network"),
        ("vgg16(taps=relu9_9)", "unknown tap"),
        ("missing.py:Mine", "does not exist"),
        ("l1 + 0.1*missing.py:Mine", "does not exist"),
    ],
)
def test_a_spec_that_cannot_be_read_is_an_error_that_helps(spec, message, network_file, monkeypatch):
    monkeypatch.setenv("VERIDICAL_OFFLINE", "1")
    if "vgg16" in spec:
        spec = f"vgg16(taps=relu9_9, weights='{network_file('vgg16')}')"
    with pytest.raises(VeridicalError, match=message):
        veridical.loss(spec)


def test_a_bare_word_is_a_string_even_when_it_is_none(network_file):
    loss = veridical.loss(f"vgg16(normalisation=none, clamp=true, weights='{network_file('vgg16')}')")
    assert not loss.distance.features.normalised
    assert loss.distance.features.clamp is True


def test_options_of_a_sum_are_refused():
    with pytest.raises(VeridicalError, match="write them at the term"):
        veridical.loss("l1 + l2", eps=1)


@pytest.mark.parametrize(
    "spec", ["0.123456789*l1", "l1 + -0.1*sharpness-q", "2*l1 + l2", "charbonnier(eps=0.01) + 1e-05*l2", "l1 + l1"]
)
def test_label_of_a_sum_makes_the_same_sum_again(spec, images):
    loss = veridical.loss(spec)
    assert veridical.loss(loss.label).label == loss.label
    assert torch.equal(veridical.loss(loss.label)(*images), loss(*images))


def test_a_term_twice_counts_twice_and_is_told_apart(images):
    total, terms = veridical.loss("l1 + 0.5*l1").with_terms(*images)
    assert list(terms) == ["l1 #1", "l1 #2"]
    assert total.item() == pytest.approx(1.5 * veridical.loss("l1")(*images).item(), rel=1e-6)


def test_a_sum_respects_a_subclass_that_compares_in_its_own_way(images):
    class Louder(type(veridical.loss("l1"))):
        def compare(self, prediction, data):
            return 1000 * super().compare(prediction, data)

    louder = Louder(veridical.loss("l1").distance)
    assert WeightedSum([(1.0, louder)])(*images).item() == pytest.approx(louder(*images).item(), rel=1e-6)


OWN = """
from __future__ import annotations
from dataclasses import dataclass
from veridical.losses import Loss

@dataclass
class Setting:
    power: float = 1.0

class Mine(Loss):
    def __init__(self, power=1.0):
        super().__init__()
        self.setting = Setting(power)
    def compare(self, prediction, data):
        return ((prediction - data).abs() ** self.setting.power).amax((1, 2, 3))

class Scalar(Loss):
    def compare(self, prediction, data):
        return (prediction - data).abs().mean()

class Stranger: pass
"""


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    return file


def test_a_loss_of_ones_own_needs_no_line_in_the_table(own, images):
    prediction, target = images
    difference = (prediction - target).abs().amax((1, 2, 3))
    assert veridical.loss(f"{own}:Mine")(*images).item() == pytest.approx(difference.mean().item())
    squared = veridical.loss(f"l1 + 0.5*{own}:Mine(power=2.0)")
    expected = veridical.loss("l1")(*images) + 0.5 * difference.square().mean()
    assert squared(*images).item() == pytest.approx(expected.item())
    assert veridical.loss(squared.label).label == squared.label
    assert veridical.losses.needs(f"{own}:Mine") == ()
    assert veridical.losses.files(squared.label) == (own,)
    pickle.dumps(squared)


def test_what_is_wrong_with_a_loss_of_ones_own_is_said(own, images):
    with pytest.raises(VeridicalError, match="derived from"):
        veridical.loss(f"{own}:Stranger")
    with pytest.raises(VeridicalError, match="Did you mean 'power'"):
        veridical.loss(f"{own}:Mine(powr=2)")
    with pytest.raises(ValueError, match="one number per image"):
        veridical.loss(f"{own}:Scalar")(*images)


def test_a_target_that_another_loss_prepared_is_refused(images):
    prediction, target = images
    with pytest.raises(ValueError, match="'l2' prepared"):
        veridical.loss("l1")(prediction, veridical.loss("l2").prepare(target))


def test_weights_given_by_path_need_not_be_found():
    assert veridical.losses.needs("vgg16 + lpips") == ("vgg16", "alexnet")
    assert veridical.losses.needs("lpips(net=vgg)") == ("vgg16",)
    assert veridical.losses.needs("pdl(network=vgg19)") == ("vgg19",)
    for spec in ("vgg16(weights=a.pth)", "lpips(weights=a.pth)", "pdl(weights=a.pth)"):
        assert veridical.losses.needs(spec) == ()


@pytest.mark.parametrize(
    "spec",
    [
        "pdl(network=resnet)", "charbonnier(eps=abc)", "charbonnier(eps=1e-25)", "psnr(eps=-1)", "ms-ssim(scales=2.5)",
        "ms-ssim(scales=6)", "ms-ssim(sigma_px=0)", "ssim(window_size=0)", "ssim(window_size=-3)", "ssim(sigma_px=abc)",
        "ms-ssim-l1(alpha=1.5)", "spl-a(seed=abc)", "sharpness-q(variant=relesed)", "1e999*l1", "vgg16(distance=l3)",
    ],
)  # fmt: skip
def test_an_impossible_option_is_refused_when_the_loss_is_made(spec):
    with pytest.raises(VeridicalError):
        veridical.loss(spec)


@pytest.mark.parametrize(
    "options",
    [
        {"taps": ()}, {"taps": ("relu1_2", "relu1_2")}, {"tap_weights": 0.5}, {"tap_weights": (1, 2)}, {"clamp": "no"},
        {"normalisation": "imagnet"}, {"tap_weights": (1, 1, 1, float("nan"))},
    ],
)  # fmt: skip
def test_an_impossible_option_of_a_network_is_refused(options, network_file):
    with pytest.raises(VeridicalError):
        veridical.loss("vgg16", weights=str(network_file("vgg16")), **options)


@pytest.mark.parametrize("spec", [None, ["l1"], {"l1": None}, {"l1": float("nan")}])
def test_what_is_no_spec_is_refused(spec):
    with pytest.raises(VeridicalError):
        veridical.loss(spec)


# What each recipe is: its value from the parts that other tests check. (ssim, lpips, pdl's distance and the stochastic
# network have tests of their own.)


def test_values_of_the_recipes(images):
    prediction, target = (image.double() for image in images)
    d = prediction - target
    similarity = measures.ssim(prediction, target).mean().item()
    several = measures.ms_ssim(prediction, target, scales=3).mean().item()
    laplacian = Laplacian().double()
    e = laplacian(prediction, ())["laplacian"] - laplacian(target, ())["laplacian"]
    mse = d.square().mean((1, 2, 3))
    expected = {
        "l1": d.abs().mean(),
        "l2": d.square().mean(),
        "charbonnier": (torch.sqrt(d**2 + 1e-6) - 1e-3).mean(),
        "edge": (torch.sqrt(e**2 + 1e-6) - 1e-3).mean(),
        "psnr": (10 * torch.log10((mse + 1e-8) / 1e-8)).mean(),
        "ssim": 1 - similarity,
        "ms-ssim(scales=3)": 1 - several,
        "ms-ssim-l1(scales=3)": 0.84 * (1 - several) + 0.16 * d.abs().mean(),
        "sharpness-q": (measures.sharpness_q(target) - measures.sharpness_q(prediction)).mean(),
    }
    for spec, value in expected.items():
        assert veridical.loss(spec)(*images).item() == pytest.approx(float(value), rel=1e-4), spec


def test_values_of_the_network_recipes(images, network_file):
    file = str(network_file("vgg16"))
    prediction, target = images
    taps = ("relu1_2", "relu2_2", "relu3_3", "conv4_3", "relu4_3")
    network = FrozenNetwork("vgg16", taps=taps, weights=file)
    ours, theirs = (network(image, network.draw()) for image in images)
    squares = sum((ours[t] - theirs[t]).square().mean() for t in taps if t != "conv4_3")
    assert veridical.loss("vgg16", weights=file)(*images).item() == pytest.approx(squares.item(), rel=1e-4)
    first, third = ((ours[tap] - theirs[tap]).abs().mean() for tap in ("relu1_2", "relu3_3"))
    loss = veridical.loss("vgg16", weights=file, taps=("relu3_3", "relu1_2"), tap_weights=(3, 2), distance="l1")
    assert loss(*images).item() == pytest.approx((2 * first + 3 * third).item(), rel=1e-4)
    for name, distance in (("style", "gram"), ("contextual", "contextual"), ("pdl", "wasserstein")):
        taps = {} if name == "style" else {"taps": "conv4_3"}
        same = veridical.loss("vgg16", weights=file, distance=distance, **taps)
        assert veridical.loss(name, weights=file)(*images).item() == pytest.approx(same(*images).item())
    ranks = [m["conv4_3"].flatten(2).sort(2).values for m in (ours, theirs)]
    assert veridical.loss("pdl", weights=file)(prediction, target).item() == pytest.approx(
        (ranks[0] - ranks[1]).abs().mean().item(), rel=1e-4
    )


def test_sharpening_lowers_the_sharpness_loss_and_blur_raises_it(images):
    _, target = images
    blurred = convolve(target, torch.full((5, 5), 0.04))
    loss = veridical.loss("sharpness-q")
    assert loss(blurred, target) > 0
    assert loss(target + (target - blurred), target) < 0


def test_random_losses_and_sums_compile_without_graph_breaks_in_training(images):
    for spec in ("spl-c", "0.8*l2 + 0.2*spl-a + 0.1*ssim"):
        torch.compiler.reset()
        loss, twin = veridical.loss(spec), veridical.loss(spec)
        compiled = torch.compile(loss, fullgraph=True, backend="eager")
        for _ in range(3):
            torch.testing.assert_close(compiled(*images), twin(*images), rtol=1e-5, atol=1e-7)


def test_every_entry_describes_itself():
    for name, entry in LOSSES.items():
        assert len(entry.summary) > 30, name
        assert "Range:" in entry.build.__doc__, name


def test_unknown_reduction_is_an_error(images):
    with pytest.raises(ValueError, match="must be one of mean, none"):
        veridical.loss("l1", reduction="sum")
    with pytest.raises(ValueError, match="must be one of mean, none"):
        veridical.loss("l1")(*images, reduction="sum")


def test_unknown_names_are_unknown_name_errors():
    with pytest.raises(UnknownName):
        veridical.loss("nothing-like-it")
