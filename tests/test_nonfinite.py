"""A value that is not finite: where it began, in words; and a step that is left out, without a trace."""

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import veridical
from tests.heard import Heard
from tests.photographs import quick_recipe, write_photographs
from veridical.comparison.folder import read_json
from veridical.comparison.sweep import compare
from veridical.core.errors import NonFiniteLoss
from veridical.training.devices import Group
from veridical.training.loop import Silent, TrainingResult, train
from veridical.training.nonfinite import Counters, Fault, Inquiry
from veridical.training.settings import Settings

SETTINGS = Settings(
    steps=6, batch_size=2, crop=32, lr=1e-2, schedule="constant", device="cpu", log_every=2, checkpoint_every=2
)
BAD = 5  # the second image of the third batch


class Samples(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Noise; the images of `bad` are `bright`, which `Fragile` cannot stand."""

    def __init__(self, *, bad: tuple[int, ...] = (), without: int = 10**9, bright: float = 9.0) -> None:
        self.bad, self.without, self.bright = bad, without, bright

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        index += 2 * (index >= self.without)  # as if a batch did not exist
        sharp = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return 0.5 * sharp + (self.bright if index in self.bad else 0.0), sharp

    def name(self, index: int) -> str:
        return f"photo{index}.png"


class Fragile(nn.Module):
    """Passes everything through but what is very bright."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * torch.log(5 - x.amax((1, 2, 3), keepdim=True))


class Steep(nn.Module):
    """Passes everything through, with a gradient that is not a number."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x - x.detach()).square().sum().sqrt()


class Noted(Silent):
    def __init__(self, *, stop_at: int = 0) -> None:
        self.notes: list[str] = []
        self.stop_at = stop_at

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, step: int, total: float, terms: dict[str, float], rate: float) -> None:
        del total, terms, rate
        if step == self.stop_at:
            raise KeyboardInterrupt


def a_model(layer: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        layer or Fragile(),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, padding=1),
    )


def run(
    folder: Path, samples: Samples, spec: str = "l1", *, observer: Silent | None = None, **changes: object
) -> tuple[dict[str, Tensor], dict[str, Tensor], TrainingResult]:
    """The model's state, the loss's, and the result."""
    model, loss = a_model(), veridical.loss(spec)
    settings = replace(SETTINGS, **{"on_nonfinite": "skip", **changes})  # type: ignore[arg-type]
    result = train(model, loss, samples, settings, folder, observer=observer)
    return model.state_dict(), loss.state_dict(), result


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


# -- in words -------------------------------------------------------------------------------------------


def test_the_first_layer_and_the_photograph_are_named(tmp_path: Path):
    with pytest.raises(NonFiniteLoss) as caught:
        run(tmp_path, Samples(bad=(BAD,)), on_nonfinite="stop")
    assert "the term l1 became NaN or infinite at step 3. The last good checkpoint is" in str(caught.value)
    found = "The first layer whose output is not finite is 0 (Fragile), at the image of photo5.png."
    assert found in str(caught.value)


def test_in_parts_too(tmp_path: Path):
    with pytest.raises(NonFiniteLoss, match=r"is 0 \(Fragile\), at the image of photo5\.png"):
        train(
            nn.Sequential(Fragile(), nn.Conv2d(3, 3, 1)),
            veridical.loss("l1"),
            Samples(bad=(BAD,)),
            replace(SETTINGS, accumulate=2),
            tmp_path,
        )


def test_a_photograph_that_is_itself_broken_is_named(tmp_path: Path):
    with pytest.raises(NonFiniteLoss, match=r"The input itself is not finite: mend or remove photo5\.png\."):
        run(tmp_path, Samples(bad=(BAD,), bright=torch.inf), on_nonfinite="stop")


def test_a_gradient_that_no_term_is_guilty_of_is_named_by_its_weights(tmp_path: Path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Steep(), nn.Conv2d(3, 3, 1))
    with pytest.raises(NonFiniteLoss) as caught:
        train(model, veridical.loss("l1 + l2"), Samples(), SETTINGS, tmp_path)
    assert "the gradients became NaN or infinite, of one of the terms l1, l2 at step 1." in str(caught.value)
    assert "photo0.png, photo1.png; no layer's output is at fault" in str(caught.value)
    assert "the first gradient that is not finite is that of 0.bias." in str(caught.value)


def test_a_look_that_comes_late_names_the_photographs_alone():
    """As on an accelerator, where a look at each step would cost a wait."""
    model, loss = a_model(), veridical.loss("l1")
    samples = Samples()
    inquiry = Inquiry(
        Group(),
        model,
        loss,
        counters=Counters(loss),
        names=lambda step: [samples.name(2 * step - 2), samples.name(2 * step - 1)],
        again=lambda step: tuple(image[None] for image in samples[2 * step - 1]),  # type: ignore[arg-type, return-value]
        autocast=contextlib.nullcontext,
    )
    what, detail = inquiry.report(Fault(3, ("l1",), terms=("l1",)), [], 20)
    assert what == "the term l1 became NaN or infinite at step 3"
    assert detail.startswith("The batch was of photo4.png, photo5.png; the look at step 20 came too late to tell")


def test_looking_closer_disturbs_nothing():
    """Batch norm's statistics, and what dropout and a random loss draw next."""
    model, loss = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)), veridical.loss("spl-a")
    counters = Counters(loss)
    parts = [tuple(image[None] for image in Samples()[0])]
    for _ in range(3):
        loss(*parts[0])
    inquiry = Inquiry(
        Group(),
        model,
        loss,
        counters=counters,
        names=lambda step: ["a"],
        again=lambda step: parts[0],  # type: ignore[arg-type, return-value]
        autocast=contextlib.nullcontext,
    )
    state = {**model.state_dict(), **loss.state_dict(), "random": torch.get_rng_state()}
    before = {key: value.clone() for key, value in state.items()}
    for fault in (Fault(1, ("l1",), terms=("l1",)), Fault(1, ("l1",))):
        inquiry.report(fault, parts, 1)  # type: ignore[arg-type]
    assert same({**model.state_dict(), **loss.state_dict(), "random": torch.get_rng_state()}, before)


# -- left out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["l1", "l1 + 0.01*gan(width=2)"])
def test_a_step_left_out_leaves_nothing_behind(spec: str, tmp_path: Path):
    """Not in weights, optimiser, batch norm, nor in what the loss learns: as if its batch did not exist."""
    weights, learned, result = run(tmp_path / "skip", Samples(bad=(BAD,)), spec, ema=0.0)
    expected, also, _ = run(tmp_path / "never", Samples(without=4), spec, steps=5, ema=0.0)
    assert result.skipped == 1
    assert same(weights, expected)
    assert same(learned, also)


def test_a_random_loss_draws_anew_after_a_step_left_out(tmp_path: Path):
    _, state, result = run(tmp_path, Samples(bad=(BAD,)), "spl-a")
    (counter,) = (value for key, value in state.items() if key.endswith("step"))
    assert (int(counter), result.skipped) == (SETTINGS.steps, 1)


def test_what_was_left_out_is_told_and_counted(tmp_path: Path):
    heard = Noted()
    bad = (1, 2, 4, 6)  # in the first four batches
    _, _, result = run(tmp_path, Samples(bad=bad), observer=heard)
    notes = [note for note in heard.notes if "left out" in note]
    assert [note.partition(" at the image of ")[2] for note in notes] == [
        "photo1.png.",
        "photo2.png.",
        "photo4.png. Further steps are only counted.",
        "",
    ]
    assert notes[-1] == "4 steps were left out, whose values were not finite"
    assert result.skipped == 4
    rows = (tmp_path / "training.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["step", "6"]  # nothing to write after steps 2 and 4


def test_a_run_with_steps_left_out_goes_on_to_equal_bits(tmp_path: Path):
    bad = Samples(bad=(1, 6))
    whole, state, result = run(tmp_path / "whole", bad, "spl-a", ema=0.9)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", bad, "spl-a", ema=0.9, observer=Noted(stop_at=5))
    again, state_again, result_again = run(tmp_path / "stopped", bad, "spl-a", ema=0.9)
    assert same(again, whole)
    assert same(state_again, state)
    assert result.skipped == result_again.skipped == 2


def test_too_many_in_a_row_are_an_error_after_all(tmp_path: Path):
    everything = Samples(bad=tuple(range(100)))
    with pytest.raises(NonFiniteLoss, match=r"20 steps in a row were to be left out: .* at step 20\..*photo38\.png"):
        run(tmp_path, everything, steps=30)


def test_a_comparison_tries_a_failed_loss_again_when_steps_may_be_left_out(tmp_path: Path):
    own = tmp_path / "moody.py"
    own.write_text(
        "import torch\n"
        "from veridical.losses import Loss\n\n\n"
        "class Moody(Loss):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.register_buffer('step', torch.zeros((), dtype=torch.int64))\n\n"
        "    def compare(self, prediction, data):\n"
        "        self.step += self.training\n"
        "        value = (prediction - data).abs().mean((1, 2, 3))\n"
        "        return value / (self.step != 2)\n"
    )
    recipe = (write_photographs(tmp_path / "photos"), f'losses={{"moody" = "{own}:Moody", "l1" = "l1"}}')
    heard = Heard()
    folder = compare(quick_recipe(*recipe), tmp_path / "run", heard)
    assert heard.ends == [("moody", "failed"), ("l1", "done")]
    assert "at step 2" in read_json(folder / "comparison.json")["losses"][0]["error"]
    compare(quick_recipe(*recipe, "training.on_nonfinite=skip"), folder, heard)
    assert heard.ends[2:] == [("moody", "done"), ("l1", "kept")]
    notes = read_json(folder / "comparison.json")["notes"]
    assert "moody, seed 0: 1 training step(s) were left out, as values were not finite" in notes
