"""Losses that learn: what the two play for, the networks, and a training that both go through."""

import copy
import csv
import pickle
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import veridical
from tests.photographs import quick_recipe, write_photographs
from tests.test_losses import _Watch
from tests.test_training import SETTINGS, same_weights
from veridical.comparison import plan
from veridical.comparison.folder import read_json
from veridical.comparison.observer import Observer
from veridical.comparison.report import read_run, write_report
from veridical.comparison.restore import restore
from veridical.comparison.sweep import compare
from veridical.core.errors import BadOption, NonFiniteLoss, UnknownName
from veridical.losses import LOSSES, Loss
from veridical.losses.discriminators import Discriminator
from veridical.training import checkpoint as checkpoints
from veridical.training.loop import Silent, train
from veridical.training.settings import Settings

LEARNING = [name for name, entry in LOSSES.items() if getattr(entry.build, "learns", False)]
WIDTH = 4


def make(name: str, **options: object) -> Loss:
    return veridical.loss(name, **{"width": WIDTH, "lr": 1e-3, **options})


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    """Restored and sharp, (4, 3, 40, 40): the restored ones are smoother, as they are in life."""
    target = torch.rand(4, 3, 40, 40, generator=torch.Generator().manual_seed(2))
    return F.avg_pool2d(target, 3, 1, 1), target


def state_of(loss: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in loss.state_dict().items()}


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# -- what they play for: the papers' formulas, in NumPy ------------------------------------------------


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _gan(fake, real):
    return -np.log(_sigmoid(fake)), -np.log(_sigmoid(real)).mean() - np.log(1 - _sigmoid(fake)).mean()


def _ragan(fake, real):
    d_real, d_fake = _sigmoid(real - fake.mean()), _sigmoid(fake - real.mean())
    restorer = -np.log(1 - d_real) - np.log(d_fake)  # equation 2 of ESRGAN
    return restorer, -np.log(d_real).mean() - np.log(1 - d_fake).mean()  # equation 1


def _hinge(fake, real):
    return -fake, np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean()


def _lsgan(fake, real):
    return (fake - 1) ** 2 / 2, ((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2


FORMULAS = {"gan": _gan, "ragan": _ragan, "hinge-gan": _hinge, "lsgan": _lsgan}


@pytest.mark.parametrize("discriminator", ["srgan", "patch"])
@pytest.mark.parametrize("name", LEARNING)
def test_objectives_are_the_papers(name, discriminator, images):
    loss = make(name, discriminator=discriminator).train()
    fake, real = (loss.network(image).double().numpy() for image in images)
    assert np.abs(fake - real).max() > 0.01
    restorer, objective = FORMULAS[name](fake, real)
    expected = torch.from_numpy(restorer.reshape(len(fake), -1).mean(1)).float()
    torch.testing.assert_close(loss(*images, reduction="none"), expected, rtol=1e-5, atol=1e-6)
    learned = loss.learn(*images)
    assert learned["discriminator"].item() == pytest.approx(objective, rel=1e-5)
    assert learned["restored"].item() == pytest.approx(fake.mean(), rel=1e-4)
    assert learned["sharp"].item() == pytest.approx(real.mean(), rel=1e-4)


@pytest.mark.parametrize("name", LEARNING)
def test_gradient_is_the_slope_of_the_value(name, images):
    """Through batch norm and, for ragan, through both of its terms."""
    loss = make(name).train()
    prediction, target = (image.double() for image in images)
    direction = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(0)).double()
    image = prediction.clone().requires_grad_()
    loss(image, target).backward()
    h = 1e-6
    slope = (loss(prediction + h * direction, target) - loss(prediction - h * direction, target)) / (2 * h)
    assert (image.grad * direction).sum().item() == pytest.approx(slope.item(), rel=1e-4)


# -- the networks: the papers' figures, in torch.nn ----------------------------------------------------


def _block(c_in, c_out, kernel, stride, *, norm=True):
    convolution = nn.Conv2d(c_in, c_out, kernel, stride, padding=1, bias=not norm)
    return [convolution, *([nn.BatchNorm2d(c_out)] if norm else []), nn.LeakyReLU(0.2)]


def _srgan(width):
    """Figure 4 of SRGAN, for crops of 96 px."""
    widths = [3, *(width * factor for factor in (1, 1, 2, 2, 4, 4, 8, 8))]
    layers = [layer for k, (a, b) in enumerate(pairwise(widths)) for layer in _block(a, b, 3, 1 + k % 2, norm=k > 0)]
    dense = [nn.Flatten(), nn.Linear(8 * width * 36, 16 * width), nn.LeakyReLU(0.2), nn.Linear(16 * width, 1)]
    return nn.Sequential(*layers, *dense)


def _patchgan(width):
    """C64-C128-C256-C512 of pix2pix, 6.1.2; the last two convolutions have stride 1, which makes it 70x70."""
    widths = [3, width, 2 * width, 4 * width, 8 * width]
    strides = (2, 2, 2, 1)
    layers = [x for k, (a, b) in enumerate(pairwise(widths)) for x in _block(a, b, 4, strides[k], norm=k > 0)]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))


FIGURES = {"srgan": _srgan, "patch": _patchgan}


@pytest.mark.parametrize(("kind", "count"), [("srgan", 23_563_649), ("patch", 2_765_633)])
def test_discriminators_have_the_papers_weights(kind, count):
    ours = sum(weight.numel() for weight in Discriminator(kind).weights())
    assert ours == sum(weight.numel() for weight in FIGURES[kind](64).parameters()) == count


@pytest.mark.parametrize("kind", FIGURES)
def test_discriminators_are_the_papers(kind):
    network, figure = Discriminator(kind, width=WIDTH), FIGURES[kind](WIDTH)
    generator = torch.Generator().manual_seed(0)
    for own, theirs in zip(network.weights(), _in_our_order(figure), strict=True):
        own.add_(0.1 * torch.randn(own.shape, generator=generator))  # shifts and scales that are not 0 and 1
        theirs.data = own.reshape(theirs.shape).clone()
    image = torch.rand(3, 3, 96, 96, generator=generator)
    for mode in (True, False):
        figure.train(mode)
        expected = figure(2 * image - 1).detach()
        found = network.train(mode)(image, learning=mode)
        torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(network(image), found)  # the restorer sees what the discriminator learns with
    norms = [layer for layer in figure if isinstance(layer, nn.BatchNorm2d)]
    moved = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
    for own, theirs in zip(network.statistics(), moved, strict=True):
        torch.testing.assert_close(own, theirs)


def _in_our_order(figure):
    """Weight and bias of each convolution; with batch norm its weight, then the norm's bias and scale."""
    weights = []
    for layer in figure:
        if isinstance(layer, nn.BatchNorm2d):
            weights += [layer.bias, layer.weight]
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            weights += [layer.weight, *([layer.bias] if layer.bias is not None else [])]
    return weights


def test_a_score_of_the_patch_discriminator_sees_70_by_70_pixels():
    network = Discriminator("patch", width=WIDTH).eval()
    image = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scores = network(image)
    assert scores.shape == (1, 1, 18, 18)
    scores[0, 0, 9, 9].backward()
    seen = image.grad[0].abs().sum(0) > 0
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    assert [int(each[-1] - each[0]) + 1 for each in (rows, columns)] == [70, 70]


@pytest.mark.parametrize(("kind", "shape"), [("srgan", (1, 1, 1, 1)), ("patch", (1, 1, 6, 10))])
def test_discriminators_take_any_size(kind, shape):
    network = Discriminator(kind, width=WIDTH)
    assert network(torch.rand(1, 3, 65, 97)).shape == shape
    least = torch.rand(1, 1, network.min_size, network.min_size)
    assert torch.isfinite(network.train()(least, learning=True)).all()  # a batch of one, too


def test_initial_weights_keep_the_scale_and_depend_on_the_seed_alone():
    network, same, other = (Discriminator("patch", width=16, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(network.weights(), same.weights(), strict=True))
    assert not torch.equal(network.weight0, other.weight0)
    assert network.weight3.std().item() == pytest.approx((2 / (64 * 16)) ** 0.5, rel=0.02)


# -- the contract of losses that learn ------------------------------------------------------------------


@pytest.fixture(params=[*LEARNING, "l1 + 0.1*ragan"])
def loss(request) -> Loss:
    """Every loss of the table that learns, and a sum with one, in training mode."""
    if request.param in LEARNING:
        return make(request.param).train()
    return veridical.loss({"l1": 1, "ragan": {"weight": 0.1, "width": WIDTH, "lr": 1e-3}}).train()


def test_a_loss_says_whether_it_learns(loss):
    assert loss.learns
    assert set(LEARNING) == set(FORMULAS)
    assert not veridical.loss("l1 + ssim").learns
    assert veridical.loss("l1 + ssim").learn(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)) == {}


def test_learning_lowers_what_is_minimised(loss, images):
    values = [_of(loss.learn(*images), "discriminator") for _ in range(30)]
    assert values[-1] < 0.7 * values[0]


def _of(learned: dict[str, Tensor], name: str) -> float:
    return next(value.item() for key, value in learned.items() if key.endswith(name))


def test_what_is_logged_are_scalars_under_the_same_names(loss, images):
    first, second = loss.learn(*images), loss.learn(*images)
    assert list(first) == list(second)
    assert [name.split()[-1] for name in first] == ["discriminator", "sharp", "restored", "gradient"]
    for value in (*first.values(), *second.values()):
        assert value.shape == ()
        assert torch.isfinite(value)
        assert not value.requires_grad


def test_the_models_gradient_reaches_the_prediction_and_nothing_of_the_discriminator(loss, images):
    prediction, target = images
    before = state_of(loss)
    image = prediction.clone().requires_grad_()
    loss(image, target).backward()
    assert (image.grad.flatten(1).abs().amax(1) > 0).all()
    assert same_state(state_of(loss), before)  # the running statistics have not moved, either
    for value in loss.buffers():
        assert value.grad is None
        assert not value.requires_grad


def test_learning_gives_no_gradient_to_the_images(loss, images):
    pair = [image.clone().requires_grad_() for image in images]
    loss.learn(*pair)
    assert all(image.grad is None for image in pair)
    assert not any(value.requires_grad for value in loss.buffers())


def test_an_optimiser_of_the_parameters_finds_nothing(loss, images):
    loss.learn(*images)
    assert list(loss.parameters()) == []


def test_running_statistics_move_once_for_each_of_the_two(images):
    loss = make("gan").train()
    loss.learn(*images)
    fresh = make("gan")
    means = []
    for image in reversed(images):  # sharp, then restored
        x = F.leaky_relu(F.conv2d(2 * image - 1, fresh.network.weight0, padding=1), 0.2)
        means.append(F.conv2d(x, fresh.network.weight1, stride=2, padding=1).mean((0, 2, 3)))
    torch.testing.assert_close(loss.network.mean1, 0.9 * 0.1 * means[0] + 0.1 * means[1])


def test_evaluation_mode_is_a_fixed_function_of_what_was_learned(loss, images):
    fresh = loss.eval()(*images)
    loss.train().learn(*images)
    loss.eval()
    assert loss(*images) != fresh
    assert torch.equal(loss(*images), loss(*images))
    if not loss.coupled:
        whole = loss(*images, reduction="none")
        torch.testing.assert_close(whole[:1], loss(*(image[:1] for image in images), reduction="none"))


def test_which_losses_couple_the_images_of_a_batch():
    for name in LEARNING:
        assert make(name).train().coupled
        assert make(name).eval().coupled == (name == "ragan")


def test_state_goes_round_with_the_optimiser(loss, images):
    """Through the bytes of a checkpoint, into a loss that has taken no step."""
    for _ in range(3):
        loss.learn(*images)
    state = safetensors.torch.load(safetensors.torch.save(state_of(loss)))
    twin = veridical.loss(loss.label).train()
    assert not same_state(state_of(twin), state_of(loss))
    twin.load_state_dict(state)
    for _ in range(3):
        a, b = loss.learn(*images), twin.learn(*images)
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert same_state(state_of(twin), state_of(loss))
    assert torch.equal(twin(*images), loss(*images))


def test_copies_go_on_by_themselves(loss, images):
    loss.learn(*images)
    twins = copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))
    before = state_of(loss)
    for twin in twins:
        twin.learn(*images)
    assert same_state(state_of(loss), before)
    loss.learn(*images)
    assert all(same_state(state_of(twin), state_of(loss)) for twin in twins)


def test_the_global_generator_is_left_alone(images):
    for name in LEARNING:
        before = torch.get_rng_state()
        loss = make(name).train()
        loss(*images)
        loss.learn(*images)
        assert torch.equal(torch.get_rng_state(), before)


def test_autocast_does_not_reach_the_discriminator(loss, images):
    twin = copy.deepcopy(loss)
    value, learned = loss(*images), loss.learn(*images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(twin(*images), value)
        found = twin.learn(*images)
    assert all(torch.equal(found[name], learned[name]) for name in learned)


def test_it_learns_from_images_of_any_kind(loss):
    for shape, dtype in (
        ((2, 1, 40, 40), torch.float32),
        ((1, 3, 45, 47), torch.float64),
        ((2, 3, 33, 32), torch.half),
    ):
        image = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        learned = loss.learn(0.5 * image, image)
        assert all(torch.isfinite(value) for value in learned.values())
        assert torch.isfinite(loss(0.5 * image, image))
    assert all(value.dtype == torch.float32 for value in loss.buffers())


def test_it_follows_to_after_it_has_learned(loss, images):
    """Another precision stands for another device, which there may not be; meta is one that computes nothing."""
    loss.learn(*images)
    loss.to(torch.float64)
    loss.learn(*images)
    assert all(value.dtype == torch.float64 for value in loss.buffers())
    assert all(value.is_meta for value in copy.deepcopy(loss).to("meta").buffers())


def test_a_step_of_learning_waits_for_nothing_and_copies_nothing_to_the_device(loss, images):
    loss = loss.to("meta")
    with _Watch() as watch:
        loss.learn(*(torch.empty_like(image, device="meta") for image in images))
    assert watch.found == []


def test_it_compiles_without_graph_breaks_in_training_mode(loss, images):
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    compiled(*images)
    with torch.compiler.set_stance("fail_on_recompile"):  # once is enough for all steps
        for _ in range(3):
            loss.learn(*images)
            torch.testing.assert_close(compiled(*images), loss(*images), rtol=1e-5, atol=1e-7)


def test_its_adam_is_torchs(images):
    loss = make("hinge-gan", betas=(0.5, 0.9), lr=2e-3).train().double()
    images = [image.double() for image in images]
    network = copy.deepcopy(loss.network)
    weights = [nn.Parameter(weight.clone()) for weight in network.weights()]
    optimizer = torch.optim.Adam(weights, lr=2e-3, betas=(0.5, 0.9))
    for _ in range(4):
        optimizer.zero_grad()
        fake, real = (network(image, weights) for image in images)
        (F.relu(1 - real).mean() + F.relu(1 + fake).mean()).backward()
        optimizer.step()
        learned = loss.learn(*images)
        norm = torch.cat([weight.grad.flatten() for weight in weights]).norm()
        torch.testing.assert_close(learned["gradient"], norm.detach())
    for own, theirs in zip(loss.network.weights(), weights, strict=True):
        torch.testing.assert_close(own, theirs.detach(), rtol=1e-6, atol=1e-9)


def test_until_its_start_it_is_zero_and_learns_nothing(images):
    loss = make("ragan", start=2).train()
    before = state_of(loss)
    for step in range(2):
        image = images[0].clone().requires_grad_()
        value = loss(image, images[1])
        value.backward()
        assert value.item() == 0
        assert image.grad.abs().max() == 0
        learned = loss.learn(*images)
        assert list(learned.values()) == [0, 0, 0, 0]
        after = state_of(loss)
        assert after.pop("_extra_state").item() == step + 1
        assert all(torch.equal(after[key], before[key]) for key in after)
    resumed = make("ragan", start=2).train()
    resumed.load_state_dict(state_of(loss))
    at_once = make("ragan").train()
    for _ in range(2):
        assert torch.equal(loss(*images), at_once(*images))
        assert torch.equal(loss(*images), resumed(*images))
        for each in (loss, at_once, resumed):
            each.learn(*images)
    assert loss(*images) != 0


def test_a_batch_is_not_taken_apart_where_its_images_influence_each_other(network_file, images):
    file = network_file("vgg16")
    vgg = {"weight": 2, "weights": str(file)}
    loss = veridical.loss({"vgg16": vgg, "gan": {"width": WIDTH}})
    loss.images_at_once = 1
    alone = [veridical.loss("vgg16", weights=str(file)), veridical.loss("gan", width=WIDTH)]
    for mode in (True, False):
        loss.train(mode)
        vgg_value, gan_value = (each.train(mode)(*images) for each in alone)
        image = images[0].clone().requires_grad_()
        torch.testing.assert_close(loss(image, images[1]), 2 * vgg_value + gan_value, rtol=1e-5, atol=1e-6)
        assert loss._images_at_once(image) == (4 if mode else 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"discriminator": "patches"}, UnknownName, "Did you mean 'patch'"),
        ({"width": 0}, BadOption, "width"),
        ({"lr": -1}, BadOption, "lr"),
        ({"betas": 0.9}, BadOption, "two numbers"),
        ({"betas": (0.9, 1)}, BadOption, "betas"),
        ({"betas": (0.9, "x")}, BadOption, "betas"),
        ({"start": 0.5}, BadOption, "start"),
        ({"seed": -1}, BadOption, "seed"),
    ],
)
def test_impossible_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        make("gan", **options)


_RANK = """
import sys
import torch
from tests.test_adversarial import make
folder, rank = sys.argv[1], int(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
images = torch.load(f"{folder}/images.pt")
loss = make("ragan").train().double()
for _ in range(2):
    loss.learn(*(image.chunk(2)[rank] for image in images))
torch.save(loss.state_dict(), f"{folder}/state{rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_processes_share_one_discriminator(images, tmp_path):
    """Adam on the mean of the gradients that each finds in its own half of the batch. In float64: Adam makes a step of
    a gradient that is all rounding."""
    images = [image.double() for image in images]
    torch.save(images, tmp_path / "images.pt")
    processes = [
        subprocess.Popen([sys.executable, "-c", _RANK, str(tmp_path), str(rank)], cwd=Path(__file__).parents[1])
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"state{rank}.pt") for rank in range(2))
    assert same_state(first, second)
    loss = make("ragan").double()
    network = loss.network
    weights = [nn.Parameter(weight.clone()) for weight in network.weights()]
    optimizer = torch.optim.Adam(weights, lr=1e-3)
    halves = list(zip(*(image.chunk(2) for image in images), strict=True))
    for _ in range(2):
        optimizer.zero_grad()
        for fake, real in halves:
            scores = network.train()(fake, weights), network(real, weights)
            (loss.discriminator_objective(*scores) / 2).backward()
        optimizer.step()
    for name, weight in zip(network.weight_names, weights, strict=True):
        torch.testing.assert_close(first[f"network.{name}"], weight.detach(), rtol=1e-6, atol=1e-9)


# -- in the training loop --------------------------------------------------------------------------------


class Samples(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sharp = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return F.avg_pool2d(sharp, 3, 1, 1), sharp


SPEC = {"l1": 1, "ragan": {"weight": 0.1, "width": WIDTH, "lr": 1e-3, "start": 2}}


def restorer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, 3, 3, padding=1)


def run(folder: Path, loss: Loss | None = None, observer: Silent | None = None, **changes: object) -> nn.Module:
    settings = Settings(**{**SETTINGS.__dict__, "steps": 12, "crop": 32, **changes})
    model = restorer()
    train(model, loss or veridical.loss(SPEC), Samples(), settings, folder, observer=observer)
    return model


def test_in_a_step_the_model_goes_first_and_both_learn_from_one_prediction(tmp_path):
    spec = {"l1": 1, "gan": {"width": WIDTH, "lr": 1e-3}}
    trained = veridical.loss(spec)
    model = run(tmp_path, trained, steps=3, ema=0.0)
    by_hand, loss = restorer(), veridical.loss(spec).train()
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=1e-2)
    for step, lr in enumerate((1e-2, 0.505e-2, 1e-4)):  # half a cosine
        optimizer.param_groups[0]["lr"] = lr
        degraded, sharp = (torch.stack(each) for each in zip(*(Samples()[2 * step + k] for k in range(2)), strict=True))
        prediction = by_hand(degraded)
        optimizer.zero_grad()
        loss(prediction, sharp).backward()
        optimizer.step()
        loss.learn(prediction.detach(), sharp)
    for own, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(own, theirs)
    for own, theirs in zip(trained.buffers(), loss.buffers(), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-6)


def test_what_it_learns_is_logged_beside_the_terms(tmp_path):
    run(tmp_path)
    with (tmp_path / "training.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    label = veridical.loss(SPEC).labels[1]
    names = [f"learned:{label} {name}" for name in ("discriminator", "sharp", "restored", "gradient")]
    assert list(rows[0]) == ["step", "total", "term:l1", f"term:{label}", *names, "lr", "rate"]
    assert [float(row[names[0]]) > 0 for row in rows] == [True, True, True]
    last = rows[-1]
    assert float(last["total"]) == pytest.approx(float(last["term:l1"]) + float(last[f"term:{label}"]), rel=1e-5)


_SCRIPT = """
import os, signal, sys
from pathlib import Path
from tests.test_adversarial import run
from veridical.training.loop import Silent

class Killer(Silent):
    def step(self, step, total, terms, rate):
        if step == 8:
            os.kill(os.getpid(), signal.SIGKILL)

run(Path(sys.argv[1]), observer=Killer())
"""


def test_goes_on_after_a_kill_to_bit_equal_weights(tmp_path):
    whole = run(tmp_path / "whole")
    killed = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(tmp_path / "killed")], cwd=Path(__file__).parents[1], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    newest = checkpoints.newest(tmp_path / "killed" / "checkpoints")
    assert newest is not None
    assert newest.name == "step-00000005"
    assert same_weights(run(tmp_path / "killed"), whole)
    ends = [checkpoints.read(tmp_path / folder / "checkpoints" / "step-00000012") for folder in ("whole", "killed")]
    discriminators = [end.part("loss") for end in ends]
    assert same_state(*discriminators)
    assert discriminators[0]["losses.1._extra_state"].item() == 12
    assert discriminators[0]["losses.1.second_moment"].abs().max() > 0


def test_learning_that_becomes_nan_is_named_and_no_checkpoint_made(tmp_path):
    class Broken(type(make("gan"))):
        def discriminator_objective(self, fake, real):
            value = super().discriminator_objective(fake, real)
            return value if self.steps < 7 else value * torch.nan

    broken = Broken(width=WIDTH)
    with pytest.raises(
        NonFiniteLoss, match=r"what the loss learns .* discriminator, gradient at step 7\..*step-00000005"
    ):
        run(tmp_path, broken)


def test_compare_restore_and_report_take_a_loss_that_learns(tmp_path):
    photographs = write_photographs(tmp_path / "photographs")
    label = f"l1 + 0.005*ragan(width={WIDTH})"
    folder = compare(quick_recipe(photographs, f'losses=["l1", "{label}"]'), tmp_path / "run")
    about = read_json(folder / "comparison.json")
    assert [(each["name"], each["status"]) for each in about["losses"]] == [("l1", "done"), (label, "done")]
    slug = about["losses"][1]["slug"]
    header = (folder / slug / "training.csv").read_text().splitlines()[0]
    assert f"learned:ragan(width={WIDTH}) gradient" in header
    model = safetensors.torch.load_file(folder / slug / "model.safetensors")
    assert not any("network" in key for key in model)  # a discriminator is no part of the result
    result = restore(folder / slug, [photographs / "photo0.png"], tmp_path / "restored")
    assert len(list((tmp_path / "restored").iterdir())) == 1, result
    assert label in write_report(read_run(folder)).read_text(encoding="utf-8")


def test_trying_a_loss_out_teaches_it_nothing(tmp_path):
    recipe = quick_recipe(write_photographs(tmp_path / "photographs"), f'losses=["ragan(width={WIDTH})"]')
    prepared = plan.prepare(recipe, tmp_path / "run", Observer(), leave_out=False)
    (contender,) = prepared.contenders
    assert same_state(state_of(contender.loss), state_of(veridical.loss(f"ragan(width={WIDTH})")))
