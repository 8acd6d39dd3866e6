"""weight="auto": found once, so that gradients have the stated ratio; kept, recorded, and disturbing nothing."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import veridical
from tests.photographs import quick_recipe, write_photographs
from tests.processes import run_script
from veridical.comparison import report
from veridical.comparison.sweep import Observer, compare
from veridical.core.errors import BadOption, NonFiniteLoss, UnknownName, VeridicalError
from veridical.losses import AutoWeight, WeightedSum
from veridical.training.loop import Silent, train
from veridical.training.settings import Settings


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(3, 3, 32, 32, generator=generator)
    return target + 0.1 * torch.randn(target.shape, generator=generator), target


def norm(loss: nn.Module, prediction: Tensor, target: Tensor) -> float:
    image = prediction.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(image, target), image)
    return gradient.norm().item()


# What it finds


def test_the_weight_of_l2_beside_l1_by_hand(images):
    """|∇ mean |d|| = 1 / sqrt(n) and |∇ mean d²| = 2 |d| / n: λ = sqrt(n) / (2 |d|)."""
    prediction, target = images
    loss = veridical.loss("l1 + auto*l2")
    found = loss.calibrate([images])
    expected = target.numel() ** 0.5 / (2 * (prediction - target).norm().item())
    assert list(found) == ["auto*l2"]
    assert found["auto*l2"] == pytest.approx(expected, rel=1e-3)  # it is rounded to four digits
    assert loss.weights == [1.0, found["auto*l2"]]


@pytest.mark.parametrize(
    "spec", ["l1 + auto(ratio=0.25)*ssim", "0.5*l1 + l2 + auto(ratio=0.25)*edge", "l2 + auto(ratio=0.25)*spl-d"]
)
def test_the_gradients_then_have_the_ratio(spec, images):
    """Of the terms as they stand in the sum, with the first one's own weight."""
    loss = veridical.loss(spec).eval()
    loss.calibrate([images])
    sizes = [norm(lambda p, t, k=k: list(loss.terms(p, t).values())[k], *images) for k in (0, -1)]
    assert sizes[1] / sizes[0] == pytest.approx(0.25, rel=1e-3)


def test_the_norms_are_averaged_over_the_batches():
    generator = torch.Generator().manual_seed(2)
    targets = [torch.rand(2, 3, 16, 16, generator=generator) for _ in range(3)]
    batches = [
        (target + scale * torch.randn(target.shape, generator=generator), target)
        for target, scale in zip(targets, (0.01, 0.1, 0.5), strict=True)
    ]
    means = [sum(norm(veridical.loss(name), *batch) for batch in batches) / 3 for name in ("l1", "l2")]
    loss = veridical.loss("l1 + auto*l2")
    assert loss.calibrate(iter(batches))["auto*l2"] == pytest.approx(means[0] / means[1], rel=1e-3)


def test_a_weight_of_the_whole_scales_every_term(images):
    plain, tripled = veridical.loss("l1 + auto*l2"), veridical.loss("l1 + auto*l2", weight=3)
    plain.calibrate([images])
    tripled.calibrate([images])
    assert tripled(*images).item() == pytest.approx(3 * plain(*images).item(), rel=1e-3)


def test_the_sum_is_then_that_with_the_numbers(images):
    loss = veridical.loss("l1 + auto*ssim + auto(ratio=0.5)*edge")
    loss.calibrate([images])
    assert loss.label == "l1 + auto*ssim + auto(ratio=0.5)*edge"  # a run that goes on must know its loss again
    assert torch.equal(loss(*images), veridical.loss(loss.fixed_label)(*images))


def test_what_was_found_is_rounded_as_it_is_printed(images):
    loss = veridical.loss("l1 + auto*ssim")
    found = loss.calibrate([images])["auto*ssim"]
    assert loss.fixed_label == f"l1 + {found:g}*ssim"


def test_terms_of_one_network_are_measured_each_by_itself(images, network_file):
    file = network_file("vgg16")
    loss = veridical.loss(f"vgg16(weights='{file}') + auto*pdl(weights='{file}')").eval()
    loss.calibrate([images])
    sizes = [norm(lambda p, t, k=k: list(loss.terms(p, t).values())[k], *images) for k in (0, 1)]
    assert sizes[1] / sizes[0] == pytest.approx(1, rel=2e-3)


def test_a_term_that_learns_has_a_weight_by_the_gradient_that_it_gives_the_model(images):
    loss = veridical.loss("l1 + auto(ratio=0.1)*gan(width=4, discriminator=patch)")
    before = copy.deepcopy(loss.losses[1].state_dict())
    loss.calibrate([images])
    sizes = [norm(part, *images) for part in loss.parts]
    assert loss.weights[1] * sizes[1] / sizes[0] == pytest.approx(0.1, rel=1e-3)
    assert all(torch.equal(value, before[key]) for key, value in loss.losses[1].state_dict().items())  # nothing learned


# How it is written


@pytest.mark.parametrize(
    "spec",
    [
        "l1 + auto*ssim", "l1 + auto(ratio=0.1)*ssim + 0.5*edge",
        "2*l1 + auto(ratio=0.001, batches=4)*charbonnier(eps=0.01)",
    ],
)  # fmt: skip
def test_label_of_an_automatic_weight_makes_the_same_loss_again(spec):
    loss = veridical.loss(spec)
    assert loss.label == spec
    assert veridical.loss(loss.label).label == spec


def test_spaces_and_exponents_do_not_matter():
    assert veridical.loss("l1+auto ( ratio = 1e-2 ) *l2").label == "l1 + auto(ratio=0.01)*l2"


def test_a_table_says_the_same():
    loss = veridical.loss(
        {"l1": 1, "charbonnier": {"weight": "auto", "ratio": 0.1, "batches": 2, "eps": 0.01}, "l2": "auto"}
    )
    assert loss.label == "l1 + auto(ratio=0.1, batches=2)*charbonnier(eps=0.01) + auto*l2"
    assert loss.batches_to_calibrate == 8  # of several, the most


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("auto*l1", "the first term's weight is 'auto'"),
        ("auto*l1 + l2", "the first term's weight is 'auto'"),
        ("l1 + auto(ratoi=2)*l2", "Did you mean 'ratio'"),
        ("l1 + auto(ratio=0)*l2", "ratio of an automatic weight"),
        ("l1 + auto(ratio=-1)*l2", "ratio of an automatic weight"),
        ("l1 + auto(batches=0)*l2", "batches of an automatic weight"),
        ("l1 + auto(ratio)*l2", "Expected key=value"),
        ("l1 + aut*l2", r"auto\*lpips"),
        ({"l1": 1, "l2": "automatic"}, "unless 'auto'"),
        ({"l1": 1, "l2": {"weight": "auto", "ratoi": 1}}, "unknown option"),
    ],
)
def test_what_is_wrong_with_an_automatic_weight_is_said(spec, message):
    with pytest.raises((BadOption, UnknownName, VeridicalError), match=message):
        veridical.loss(spec)


def test_degradations_have_no_automatic_weight():
    with pytest.raises(VeridicalError, match="has a weight"):
        veridical.degradation("auto*gaussian-noise + jpeg")


# Before it is found, and after


def test_before_it_is_found_the_sum_says_what_to_do(images):
    loss = veridical.loss("l1 + auto*l2")
    for use in (loss, loss.with_terms, loss.terms):
        with pytest.raises(VeridicalError, match=r"loss\.calibrate\(\[\(model\(degraded\), sharp\)\]\)"):
            use(*images)
    with pytest.raises(ValueError, match="at least one batch"):
        loss.calibrate([])


def test_other_losses_have_nothing_to_find(images):
    for spec in ("l1", "l1 + 2*l2"):
        loss = veridical.loss(spec)
        assert loss.batches_to_calibrate == 0
        assert loss.calibrate([images]) == {}
        assert loss.fixed_label == loss.label


def test_it_goes_with_the_state_the_copy_and_the_pickle(images):
    loss = veridical.loss("l1 + auto*l2 + auto*edge")
    unset = copy.deepcopy(loss.state_dict())
    loss.calibrate([images])
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), veridical.loss(loss.label)):
        twin.load_state_dict(loss.state_dict())
        assert twin.weights == loss.weights
        assert twin.batches_to_calibrate == 0
    loss.load_state_dict(unset)
    assert loss.batches_to_calibrate == 8
    assert veridical.loss("l1 + 2*l2").state_dict() == {}  # nothing new in the checkpoints of other sums


def test_a_step_compiles_and_waits_for_nothing(images):
    loss = veridical.loss("l1 + auto*l2")
    loss.calibrate([images])
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*images), loss(*images))
    meta = [image.to("meta") for image in images]
    loss.to("meta")(*meta)  # there a number cannot be read


@pytest.mark.parametrize("where", ["prediction is the target", "flat"])
def test_no_gradient_is_an_error_that_names_the_term(where, images):
    _, target = images
    if where == "flat":
        with pytest.raises(NonFiniteLoss, match="the gradient of gradient on the prediction has the norm 0"):
            veridical.loss("l1 + auto*gradient").calibrate([(torch.zeros_like(target), torch.ones_like(target))])
    else:
        with pytest.raises(NonFiniteLoss, match="the gradient of l1 on the prediction has the norm 0"):
            veridical.loss("l1 + auto*l2").calibrate([(target, target)])


def test_a_gradient_that_is_not_finite_is_an_error_that_names_the_term(images):
    prediction, target = images
    with pytest.raises(NonFiniteLoss, match="the gradient of l2 on the prediction has the norm nan"):
        veridical.loss("l2 + auto*l1").calibrate([(prediction * torch.nan, target)])


def test_random_terms_draw_as_if_nothing_had_been_measured(images):
    measured, other = veridical.loss("l1 + auto*spl-a").train(), veridical.loss("l1 + 1*spl-a").train()
    measured.calibrate([images] * 3)
    for _ in range(3):
        ours, theirs = (loss.with_terms(*images)[1]["spl-a"] for loss in (measured, other))
        assert ours.item() == pytest.approx(measured.weights[1] * theirs.item(), rel=1e-5)


def test_half_precision_predictions_are_measured_in_float32(images):
    """A gradient of 1e-4 / 9216 vanishes in float16."""
    prediction, target = images
    loss = veridical.loss("1e-4*l1 + auto*l2")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss.calibrate([(prediction.half(), target)])["auto*l2"]
    assert found == pytest.approx(veridical.loss("1e-4*l1 + auto*l2").calibrate([images])["auto*l2"], rel=1e-2)


def test_an_auto_weight_is_an_object_too(images):
    loss = WeightedSum([(1.0, veridical.loss("l1")), (AutoWeight(ratio=0.5), veridical.loss("l2"))])
    assert loss.label == "l1 + auto(ratio=0.5)*l2"
    outer = WeightedSum([(2.0, loss), (1.0, veridical.loss("l2"))]) if loss.calibrate([images]) else None
    assert outer is not None
    assert outer.weights == [2.0, 2 * loss.weights[1], 1.0]


def test_a_sum_with_a_weight_that_is_not_found_is_no_part_of_another():
    with pytest.raises(VeridicalError, match="not found yet"):
        WeightedSum([(2.0, veridical.loss("l1 + auto*l2"))])


# In a training


class Samples(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sharp = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(index))
        return 0.5 * sharp, sharp


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(4, 3, 3, padding=1)
    )


SETTINGS = Settings(steps=6, batch_size=2, crop=16, lr=1e-2, device="cpu", checkpoint_every=3)


def test_the_loop_finds_it_on_the_first_batches_and_says_so(tmp_path):
    loss, heard = veridical.loss("l1 + auto(batches=4)*l2"), Notes()
    train(model(), loss, Samples(), SETTINGS, tmp_path, observer=heard)
    network = model().train()
    norms = []
    for step in range(4):
        degraded, sharp = (
            torch.stack(images) for images in zip(*[Samples()[2 * step + k] for k in range(2)], strict=True)
        )
        with torch.no_grad():
            prediction = network(degraded)  # dropout draws otherwise: the norms are near, not equal
        norms.append([norm(veridical.loss(name), prediction, sharp) for name in ("l1", "l2")])
    means = torch.tensor(norms).mean(0)
    assert loss.weights[1] == pytest.approx((means[0] / means[1]).item(), rel=0.1)
    assert heard.notes == [
        f"auto(batches=4)*l2: the weight is {loss.weights[1]:g}, by the gradients of the first 4 batches"
    ]


def test_measuring_changes_nothing_else(tmp_path):
    """The same training as with the number: not a draw of dropout, nor a statistic of batch norm, is another."""
    measured, given = model(), model()
    loss = veridical.loss("l1 + auto*l2 + 0.1*spl-a")
    train(measured, loss, Samples(), SETTINGS, tmp_path / "measured")
    train(given, veridical.loss(loss.fixed_label), Samples(), SETTINGS, tmp_path / "given")
    ours, theirs = measured.state_dict(), given.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_training_that_goes_on_keeps_the_weight(tmp_path):
    class Stop(Silent):
        def step(self, step: int, total: float, terms: dict[str, float], rate: float) -> None:
            del total, terms, rate
            if step == 4:
                raise KeyboardInterrupt

    straight, stopped = model(), model()
    loss = veridical.loss("l1 + auto*l2")
    train(straight, loss, Samples(), SETTINGS, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train(stopped, veridical.loss(loss.label), Samples(), SETTINGS, tmp_path / "stopped", observer=Stop())
    again, heard = veridical.loss(loss.label), Notes()
    train(resumed := model(), again, Samples(), SETTINGS, tmp_path / "stopped", observer=heard)
    assert again.weights == loss.weights
    assert not any("the weight is" in note for note in heard.notes)  # it was not measured again
    ours, theirs = resumed.state_dict(), straight.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


_TWO = """
import os, sys
from dataclasses import replace
from pathlib import Path
import veridical
from tests.test_auto_weight import SETTINGS, Samples, plain_model
from veridical.training.loop import train

loss = veridical.loss("l1 + auto(batches=3)*l2")
train(plain_model(), loss, Samples(), replace(SETTINGS, devices=2), Path(sys.argv[1]) / "run")
(Path(sys.argv[1]) / os.environ.get("LOCAL_RANK", "0")).write_text(repr(loss.weights[1]))
"""


def plain_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, 3, 3, padding=1)


def test_two_processes_agree_on_the_weight_that_one_finds(tmp_path):
    """Each sees one sample of every batch of two."""
    run_script(tmp_path, _TWO, str(tmp_path))
    found = [float((tmp_path / rank).read_text()) for rank in "01"]
    network = plain_model()
    norms = {"l1": 0.0, "l2": 0.0}
    for step in range(3):
        degraded, sharp = (
            torch.stack(images) for images in zip(*(Samples()[2 * step + k] for k in (0, 1)), strict=True)
        )
        for name in norms:
            norms[name] += norm(veridical.loss(name), network(degraded).detach(), sharp)
    assert found[0] == found[1] == pytest.approx(norms["l1"] / norms["l2"], rel=1e-3)


# In a comparison


class Heard(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.ends: list[tuple[str, str]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def loss_ends(self, name: str, status: str, seconds: float, error: str | None) -> None:
        del seconds, error
        self.ends.append((name, status))


def test_a_comparison_records_what_was_found(tmp_path: Path) -> None:
    data = write_photographs(tmp_path / "photos")
    recipe = quick_recipe(data, 'losses=["l2", "l1 + auto(ratio=0.5)*ssim"]')
    heard = Heard()
    run = compare(recipe, tmp_path / "run", heard)
    (said,) = [note for note in heard.notes if "the weight is" in note]
    number = said.partition("the weight is ")[2].partition(",")[0]
    fixed = f"l1 + {number}*ssim"
    for _ in range(2):  # the second time from what the first has left
        about = json.loads((run / "comparison.json").read_text())["losses"]
        assert [loss["fixed_spec"] for loss in about] == [None, fixed]
        page = report.write_report(report.read_run(run)).read_text()
        assert fixed in page
        assert compare(recipe, run, heard) == run
    slug = about[1]["slug"]
    assert json.loads((run / slug / "model.json").read_text())["loss_fixed"] == fixed
    state = load_file(max((run / slug / "checkpoints").iterdir()) / "state.safetensors")
    assert [f"{value:g}" for key, value in state.items() if "automatic" in key for value in value.tolist()] == [number]


def test_a_loss_without_a_weight_to_be_found_fails_and_the_others_go_on(tmp_path: Path) -> None:
    """A term that no gradient comes from."""
    data = write_photographs(tmp_path / "photos")
    own = tmp_path / "silent.py"
    own.write_text(
        "from veridical.losses import Loss\n\n\n"
        "class Silent(Loss):\n"
        "    def compare(self, prediction, data):\n"
        "        return 0 * (prediction - data).flatten(1).mean(1)\n"
    )
    heard = Heard()
    losses = f'losses={{"silent" = "l1 + auto*{own}:Silent", "l1" = "l1"}}'
    run = compare(quick_recipe(data, losses), tmp_path / "run", heard)
    assert heard.ends == [("silent", "failed"), ("l1", "done")]
    failed = json.loads((run / "comparison.json").read_text())["losses"][0]
    assert "has the norm 0" in failed["error"]
