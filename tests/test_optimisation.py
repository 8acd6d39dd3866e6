"""What moves the weights: the learning rate at every step, the optimisers, and the settings that choose them."""

import math
from dataclasses import fields

import pytest
import torch
from torch import nn

from veridical.core.errors import RecipeError
from veridical.training import checkpoint as checkpoints
from veridical.training.optimisation import learning_rate, make_optimizer
from veridical.training.recipe import make_recipe
from veridical.training.settings import Settings

SCHEDULES = ("cosine", "exponential", "polynomial", "step")


def rates(**settings: object) -> list[float]:
    made = Settings(**settings)  # type: ignore[arg-type] # each test writes what it means
    return [learning_rate(made, step) for step in range(1, made.steps + 1)]


def test_the_default_learning_rate_falls_along_a_cosine_to_a_hundredth():
    found = rates(steps=101, lr=2.0)
    assert found[0] == pytest.approx(2.0)
    assert found[50] == pytest.approx((2.0 + 0.02) / 2)
    assert found[100] == pytest.approx(0.02)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_falls_from_lr_to_its_end(schedule: str):
    found = rates(steps=30, lr=0.1, lr_end=1e-3, schedule=schedule, drops=3, power=0.3)
    assert found[0] == pytest.approx(0.1)
    assert found[-1] == pytest.approx(1e-4)
    assert found == sorted(found, reverse=True)


def test_a_constant_learning_rate_stays():
    assert set(rates(steps=5, lr=0.25, schedule="constant")) == {0.25}


@pytest.mark.parametrize("schedule", [*SCHEDULES, "constant"])
def test_one_step_is_made_at_the_full_learning_rate(schedule: str):
    assert rates(steps=1, lr=0.25, schedule=schedule) == [0.25]


def test_an_exponential_learning_rate_agrees_with_torch():
    # The MDF paper's denoising: from 0.1 to 1e-4.
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    reference = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=1e-3 ** (1 / 9))
    expected = []
    for _ in range(10):
        expected.append(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    assert rates(steps=10, lr=0.1, lr_end=1e-3, schedule="exponential") == pytest.approx(expected)


def test_a_polynomial_learning_rate_agrees_with_torch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-4)
    reference = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=9, power=0.3)
    expected = []
    for _ in range(10):
        expected.append(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    assert rates(steps=10, lr=1e-4, lr_end=0.0, schedule="polynomial", power=0.3) == pytest.approx(expected, abs=1e-12)


def test_drops_are_evenly_spaced_and_by_one_factor():
    found = rates(steps=8, lr=1.0, lr_end=0.125, schedule="step", drops=3)
    assert found == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125])


def test_the_default_optimizer_is_torchs_adam_as_it_comes():
    parameters = [nn.Parameter(torch.zeros(2))]
    made, plain = make_optimizer(Settings(lr=0.01), parameters), torch.optim.Adam(parameters, lr=0.01)
    assert type(made) is torch.optim.Adam
    assert made.defaults == plain.defaults


def test_the_settings_reach_the_optimizer():
    parameters = [nn.Parameter(torch.zeros(2))]
    sgd = make_optimizer(Settings(optimizer="sgd", weight_decay=1e-4, momentum=0.8), iter(parameters))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"], sgd.defaults["weight_decay"]) == (0.8, True, 1e-4)
    plain = make_optimizer(Settings(optimizer="sgd", momentum=0.0), parameters)
    assert (plain.defaults["momentum"], plain.defaults["nesterov"]) == (0.0, False)
    adamw = make_optimizer(Settings(optimizer="adamw", weight_decay=0.1, betas=(0.9, 0.99)), parameters)
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.defaults["betas"], adamw.defaults["weight_decay"]) == ((0.9, 0.99), 0.1)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_every_optimizer_goes_on_from_what_a_checkpoint_keeps(name: str):
    settings = Settings(optimizer=name, weight_decay=0.01, lr=0.1)

    def moved(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        (parameter**2).sum().backward()
        optimizer.step()

    whole = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = make_optimizer(settings, [whole])
    moved(whole, optimizer)
    resumed = nn.Parameter(whole.detach().clone())
    again = make_optimizer(settings, [resumed])
    kept = {key: value.clone() for key, value in checkpoints.optimizer_tensors(optimizer).items()}
    checkpoints.restore_optimizer(again, kept)
    moved(whole, optimizer)
    moved(resumed, again)
    assert torch.equal(whole, resumed)


def test_lists_of_a_recipe_become_tuples_of_numbers():
    settings = make_recipe({"training": {"betas": [0, 0.9], "stages": [1, 0.5]}}).training
    assert settings.betas == (0.0, 0.9)
    assert settings.stages == (1.0, 0.5)
    assert settings == Settings(betas=(0.0, 0.9), stages=(1.0, 0.5))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optimizer", "adm", "one of adam, adamw, sgd, but got 'adm'. Did you mean 'adam'?"),
        ("schedule", "linear", "one of cosine, constant, exponential, polynomial, step, but got 'linear'"),
        ("lr_end", 2.0, "a share of training.lr, from 0 to 1, but got 2.0"),
        ("lr_end", -0.1, "a share of training.lr"),
        ("weight_decay", -1.0, "0 or more, but got -1.0"),
        ("weight_decay", math.inf, "0 or more, but got inf"),
        ("clip_gradient", -1.0, "0 or more"),
        ("clip_gradient", math.nan, "0 or more, but got nan"),
        ("momentum", 1.0, "at least 0 and less than 1, but got 1.0"),
        ("power", 0.0, "greater than 0"),
        ("drops", 0, "at least 1, but got 0"),
        ("betas", (0.9,), "two numbers"),
        ("betas", (0.9, 1.0), "two numbers of at least 0 and less than 1"),
        ("betas", (0.9, True), "two numbers"),
        ("betas", 0.9, "two numbers"),
        ("stages", "lst", "one of authors, last, or a list of weights, but got 'lst'. Did you mean 'last'?"),
        ("stages", (), "not all of them 0, but got ()"),
        ("stages", (0.0, 0.0), "not all of them 0"),
        ("stages", (1.0, -1.0), "a list of weights of at least 0"),
        ("stages", ("a",), "a list of weights"),
        ("stages", 1.0, "a list of weights"),
    ],
)
def test_an_impossible_setting_says_what_was_expected(key: str, value: object, expected: str):
    with pytest.raises(RecipeError) as error:
        Settings(**{key: value})  # type: ignore[arg-type]
    assert str(error.value).startswith(f"training.{key} must be ")
    assert expected in str(error.value)


@pytest.mark.parametrize("schedule", ["exponential", "step"])
def test_a_factor_cannot_lead_to_nothing(schedule: str):
    with pytest.raises(RecipeError, match=f"lr_end must be greater than 0 with schedule '{schedule}'"):
        Settings(schedule=schedule, lr_end=0.0)


def test_runs_from_before_a_key_existed_can_go_on():
    # The keys of the first version's fingerprint: a run of that version has these and no others.
    first = {"steps", "batch_size", "crop", "lr", "seed", "precision", "ema"}
    assert Settings().fingerprint().keys() == {f"training.{name}" for name in first}


def test_every_setting_that_moves_the_weights_is_in_the_fingerprint():
    others = {
        "lr_end": 0.5,
        "schedule": "step",
        "power": 0.3,
        "drops": 2,
        "optimizer": "sgd",
        "weight_decay": 0.1,
        "momentum": 0.5,
        "betas": (0.5, 0.9),
        "clip_gradient": 1.0,
        "stages": (1.0, 0.5),
    }
    for name, value in others.items():
        assert Settings(**{name: value}).fingerprint()[f"training.{name}"] == str(value)  # type: ignore[arg-type]
    free = {"seeds", "device", "devices", "nodes", "accumulate", "on_nonfinite", "workers"}
    free |= {"log_every", "checkpoint_every"}
    known = {name.removeprefix("training.") for name in Settings().fingerprint()} | others.keys() | free
    assert known == {f.name for f in fields(Settings)}
