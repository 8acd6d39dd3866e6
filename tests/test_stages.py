"""The loss of a model with several stages: what counts how much, at which size, and what is shared."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

import veridical
from veridical.core.errors import RecipeError
from veridical.models import Restorer
from veridical.training.loop import train
from veridical.training.settings import Settings
from veridical.training.stages import spread_over, stage_weights, target_of


class Pyramid(Restorer):
    """A half-size stage and the whole one, from one number each."""

    multiple = 2
    stage_weights = (0.5, 2.0)

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.Parameter(torch.tensor(0.25))
        self.fine = nn.Parameter(torch.tensor(0.5))

    def body(self, image: Tensor) -> tuple[Tensor, ...]:
        return F.avg_pool2d(image, 2) * self.coarse, image * self.fine


class Bright(Dataset[tuple[Tensor, Tensor]]):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(index)
        image = torch.rand(3, 12, 12, generator=generator)
        return image, image.flip(2)


def test_each_stage_counts_as_its_weight_says_at_its_own_size():
    model, loss = Pyramid(), veridical.loss("l2 + 0.5*l1")
    degraded, sharp = (torch.stack(each) for each in zip(*(Bright()[i] for i in range(2)), strict=True))
    total, terms = spread_over(loss, model.stages(degraded), sharp, stage_weights(model, "authors"))
    # Bilinear to half the size is the mean of 2x2 px.
    coarse = 0.25 * F.avg_pool2d(degraded, 2) - F.avg_pool2d(sharp, 2)
    fine = 0.5 * degraded - sharp
    l2 = 0.5 * coarse.square().mean() + 2 * fine.square().mean()
    l1 = 0.5 * (0.5 * coarse.abs().mean() + 2 * fine.abs().mean())
    torch.testing.assert_close(total, l2 + l1)
    torch.testing.assert_close(terms["l2"], l2.detach())
    assert sum(terms.values()).item() == pytest.approx(total.item(), rel=1e-6)


def test_the_last_stage_alone_is_the_plain_loss():
    model, loss = Pyramid(), veridical.loss("l1")
    degraded, sharp = (each[None] for each in Bright()[0])
    assert stage_weights(model, "last") == (0.0, 1.0)
    found, _ = spread_over(loss, model.stages(degraded), sharp, (0.0, 1.0))
    assert found.item() == loss(model(degraded), sharp).item()


def test_a_stage_of_the_full_size_is_compared_with_the_sharp_image_itself():
    sharp = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert target_of(torch.zeros(1, 3, 8, 8), sharp) is sharp


def test_a_random_loss_draws_once_a_step_however_many_stages_there_are():
    loss = veridical.loss("spl-c").train()
    sharp = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    other = sharp.flip(3)
    twice, _ = spread_over(loss, (other, other), sharp, (1.0, 1.0))
    loss = veridical.loss("spl-c").train()
    once = loss(other, sharp)
    torch.testing.assert_close(twice, 2 * once)


def test_as_many_weights_as_stages_are_asked_for():
    with pytest.raises(RecipeError, match=r"training\.stages has 3 weights, but Pyramid has 2 stages\. Give 2"):
        stage_weights(Pyramid(), (1.0, 1.0, 1.0))
    assert stage_weights(Pyramid(), (1.0, 0.0)) == (1.0, 0.0)
    assert stage_weights(nn.Identity(), "authors") == (1.0,)


@pytest.mark.parametrize(("stages", "coarse_moves"), [("authors", True), ("last", False), ((1.0, 0.0), True)])
def test_training_moves_what_the_stages_that_count_depend_on(tmp_path: Path, stages, coarse_moves):
    model = Pyramid()
    settings = Settings(steps=3, batch_size=2, crop=12, lr=0.01, stages=stages, device="cpu", checkpoint_every=3)
    train(model, veridical.loss("l2"), Bright(), settings, tmp_path)
    assert (model.coarse.item() != 0.25) == coarse_moves
    assert (model.fine.item() != 0.5) == (stages != (1.0, 0.0))


def test_a_long_gradient_is_shortened_to_the_norm_that_is_set(tmp_path: Path):
    """Plain gradient descent moves by the learning rate times the norm, where the gradient is longer."""
    model = Pyramid()
    before = torch.stack([model.coarse.detach(), model.fine.detach()])
    settings = Settings(
        steps=1,
        batch_size=2,
        crop=12,
        lr=1.0,
        optimizer="sgd",
        momentum=0.0,
        clip_gradient=1e-3,
        device="cpu",
    )
    train(model, veridical.loss("l2"), Bright(), settings, tmp_path)
    moved = torch.stack([model.coarse.detach(), model.fine.detach()]) - before
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)
