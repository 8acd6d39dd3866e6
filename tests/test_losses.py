"""One contract over the whole table of losses."""

import copy

import pytest
import torch

import veridical
from veridical.core.errors import UnknownName, VeridicalError
from veridical.features.networks import PLANS
from veridical.losses import LOSSES, Loss

SIZE = 48
BUILT: dict[tuple, Loss] = {}  # reading a network for each test would take most of the time
# Five scales need 161 px; three are the same code on smaller images.
OPTIONS = {"ms-ssim": {"scales": 3}, "ms-ssim-l1": {"scales": 3}}
CASES = [(name, OPTIONS.get(name, {})) for name in LOSSES] + [
    ("lpips", {"net": "vgg"}),
    ("lpips", {"net": "squeeze"}),
    ("pdl", {"order": 2.0}),
    (
        "vgg16",
        {"taps": ("conv1_1", "pool2"), "tap_weights": (1.0, 0.5), "distance": "l1", "normalisation": "none"},
    ),
    ("sharpness-q", {"variant": "released"}),
]


@pytest.fixture(params=CASES, ids=lambda case: case[0] + ("-" + "-".join(map(str, case[1])) if case[1] else ""))
def loss(request, network_file) -> Loss:
    """Every loss of the table, in evaluation mode (a fixed draw). Networks have random weights of the true shapes."""
    name, options = request.param
    key = (name, *options.items())
    if key not in BUILT:
        needed = LOSSES[name].needs(options)
        weights = {"weights": str(network_file(needed[0]))} if needed else {}
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
    prediction, target = images
    together = loss(prediction, target, reduction="none")
    alone = torch.stack([loss(p[None], t[None]) for p, t in zip(prediction, target, strict=True)])
    torch.testing.assert_close(together, alone, rtol=2e-5, atol=1e-7)


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
    if loss.random:
        pytest.skip("re-draws in training mode: see test_stochastic.py")
    in_evaluation = loss(*images)
    assert torch.equal(loss.train()(*images), in_evaluation)


def test_reduced_precision_agrees_with_float32(loss, images):
    prediction, target = (image.bfloat16() for image in images)
    expected = loss(prediction.float(), target.float())
    assert loss(prediction, target).dtype == torch.float32
    torch.testing.assert_close(loss(prediction, target), expected, rtol=1e-5, atol=1e-7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # Networks may run in bfloat16, which keeps 8 bits; everything else must not.
        tolerance = 0.05 if loss.weight_hashes else 1e-5
        torch.testing.assert_close(loss(prediction.float(), target.float()), expected, rtol=tolerance, atol=1e-6)


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
    # A pixel loss needs no pass over the target, so its graph may reach it; a network's must not.
    if loss.weight_hashes:
        assert target.grad is None


def test_carries_no_backbone_in_its_state(loss):
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


def test_label_makes_the_same_loss_again(loss):
    assert loss.label.partition("(")[0] in LOSSES


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


def test_a_loss_of_ones_own_needs_no_line_in_the_table(tmp_path, images):
    file = tmp_path / "mine.py"
    file.write_text(
        "from veridical.losses import Loss\n"
        "class Mine(Loss):\n"
        "    def compare(self, prediction, data):\n"
        "        return (prediction - data).abs().amax((1, 2, 3))\n"
        "class Stranger: pass\n"
    )
    loss = veridical.loss(f"{file}:Mine")
    prediction, target = images
    assert loss(prediction, target).item() == pytest.approx((prediction - target).abs().amax((1, 2, 3)).mean().item())
    assert loss.label == "mine.py:Mine"
    with pytest.raises(VeridicalError, match="derived from"):
        veridical.loss(f"{file}:Stranger")


def test_every_entry_describes_itself():
    for name, entry in LOSSES.items():
        assert len(entry.summary) > 30, name
        assert "Range:" in entry.build.__doc__ or name in ("charbonnier", "edge"), name


def test_unknown_reduction_is_an_error(images):
    with pytest.raises(ValueError, match="'mean' or 'none'"):
        veridical.loss("l1", reduction="sum")(*images)


def test_unknown_names_are_unknown_name_errors():
    with pytest.raises(UnknownName):
        veridical.loss("nothing-like-it")
