"""Phase 1 of MDF: the trainer, its file, and that a killed run goes on to equal bits."""

import hashlib
import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import veridical
from veridical.core.errors import BadOption, DataError, RecipeError, UnknownName
from veridical.features.mdf import MDFNetwork, fold
from veridical.features.weights import notes
from veridical.training import learn_mdf as module
from veridical.training.learn_mdf import DEGRADATIONS, QUALITIES, learn_mdf
from veridical.training.singan import Generator, discriminator, gradient_penalty

TINY = replace(QUALITIES["fast"], iterations=10, penalty_every=2, windows=2, window_px=16, variants=2, early=False)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(module, "WIDTH", 4)
    monkeypatch.setattr(module, "LOG_EVERY", 5)


def seed_image(height: int = 60, width: int = 70) -> tuple[str, torch.Tensor]:
    rows, columns = torch.meshgrid(torch.linspace(0, 9, height), torch.linspace(0, 12, width), indexing="ij")
    planes = [0.5 + 0.4 * torch.sin(rows * k) * torch.cos(columns + k) for k in (1, 2, 3)]
    return "waves", torch.stack(planes)


def learn(path, **options):
    options = {"task": "denoise", "quality": TINY, "scales": 2, "device": "cpu", **options}
    return learn_mdf([seed_image()], path, **options)


class Recorder(module.Watcher):
    def __init__(self, stop_at: tuple[int, int] | None = None) -> None:
        self.notes: list[str] = []
        self.begun: list[tuple[int, int]] = []
        self.stop_at = stop_at

    def note(self, text):
        self.notes.append(text)

    def scale(self, scale, *others):
        start = others[-1]
        self.begun.append((scale, start))

    def step(self, iteration, *_):
        if (self.begun[-1][0], iteration) == self.stop_at:
            raise KeyboardInterrupt


def test_what_it_writes_is_a_loss(tmp_path):
    learned = learn(tmp_path / "own.safetensors")
    loss = veridical.loss(f"mdf(weights={learned.path}, discriminators=2)")
    _, image = seed_image()
    noisy = image + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    assert loss(image[None], image[None]) == 0
    assert 0 < float(loss((0.5 * image + 0.5 * noisy)[None], image[None])) < float(loss(noisy[None], image[None]))


def test_the_file_says_what_it_was_made_of(tmp_path):
    learned = learn(tmp_path / "own.safetensors", task="mine", degradation_spec="jpeg(quality=(5, 9))", seed=3)
    found = notes(learned.path, "the file")
    assert found["format"] == "veridical mdf 1"
    assert (found["task"], found["degradation"], found["seed"]) == ("mine", "jpeg(quality=(5, 9))", "3")
    assert found["veridical"] == veridical.__version__
    assert found["range"] == "-1..1"
    assert json.loads(found["iterations"]) == [10, 10]
    assert json.loads(found["scales"]) == [[30, 35], [60, 70]]
    levels = np.round(seed_image()[1].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    expected = hashlib.sha256(np.ascontiguousarray(levels)).hexdigest()
    assert json.loads(found["seed_images"]) == [{"name": "waves", "sha256": expected}]


def test_the_features_are_those_of_the_discriminators_that_were_trained(tmp_path, monkeypatch):
    kept = []
    original = module._Learner._write

    def spy(self, half):
        kept.append(self)
        return original(self, half)

    monkeypatch.setattr(module._Learner, "_write", spy)
    learned = learn(tmp_path / "own.safetensors")
    image = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    network = MDFNetwork(weights=learned.path, discriminators=2)
    maps = network(image, network.draw())
    for k, critic in enumerate(kept[0].critics):
        with torch.no_grad():
            torch.testing.assert_close(maps[f"tail_{k}"], critic.eval()(2 * image - 1), rtol=1e-4, atol=1e-4)


def test_half_precision_is_close(tmp_path):
    whole, half = (learn(tmp_path / f"{half}.safetensors", half=half).path for half in (False, True))
    assert {tensor.dtype for tensor in load_file(half).values()} == {torch.float16}
    assert {tensor.dtype for tensor in load_file(whole).values()} == {torch.float32}
    image, other = torch.rand(2, 1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    a, b = (float(veridical.loss(f"mdf(weights={path}, discriminators=2)")(image, other)) for path in (whole, half))
    assert a == pytest.approx(b, rel=0.01)
    assert a != b


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    first, again, other = (
        learn(tmp_path / f"{k}.safetensors", seed=seed).path.read_bytes() for k, seed in enumerate((0, 0, 1))
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("scale", [0, 1])
def test_a_killed_run_goes_on_to_equal_bits(tmp_path, monkeypatch, scale):
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    whole = learn(tmp_path / "whole.safetensors")
    recorder = Recorder((scale, 10))
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "killed.safetensors", watcher=recorder)
    assert not (tmp_path / "killed.safetensors").exists()
    recorder = Recorder()
    resumed = learn(tmp_path / "killed.safetensors", watcher=recorder)
    assert recorder.begun[0] == (scale, 5)
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert (resumed.run / "training.csv").read_bytes() == (whole.run / "training.csv").read_bytes()
    assert not (tmp_path / "killed.run" / "checkpoints").exists()


def test_ctrl_c_finishes_the_iteration_saves_and_goes_on_to_equal_bits(tmp_path):
    """In the middle of a window of the log, whose means must not tell where it was."""
    whole = learn(tmp_path / "whole.safetensors")
    recorder = Recorder()
    iterate, done = module._Learner._iterate, []

    def interrupted(self, *args):
        done.append(args[:2])
        if args[:2] == (1, 3):
            os.kill(os.getpid(), signal.SIGINT)
        return iterate(self, *args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module._Learner, "_iterate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            learn(tmp_path / "stopped.safetensors", watcher=recorder)
    assert done[-1] == (1, 3)
    assert recorder.notes[-1] == "stopped after iteration 3 of scale 2, which is saved."
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    recorder = Recorder()
    resumed = learn(tmp_path / "stopped.safetensors", watcher=recorder)
    assert recorder.begun == [(1, 3)]
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert (resumed.run / "training.csv").read_bytes() == (whole.run / "training.csv").read_bytes()


def test_an_unfinished_run_of_other_settings_is_not_taken_up(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "own.safetensors", watcher=Recorder((0, 10)))
    with pytest.raises(RecipeError, match="seed was 0, now 1"):
        learn(tmp_path / "own.safetensors", seed=1)


def test_the_log_and_the_picture(tmp_path):
    learned = learn(tmp_path / "own.safetensors")
    lines = (learned.run / "training.csv").read_text().splitlines()
    assert lines[0] == "scale,iteration,gap,reconstruction,penalty,lr"
    assert [line.split(",")[:2] for line in lines[1:]] == [["1", "5"], ["1", "10"], ["2", "5"], ["2", "10"]]
    assert lines[1].endswith(",0.0005")
    assert lines[2].endswith(",5e-05")  # after 80 %
    with Image.open(learned.run / "scales.png") as picture:
        assert picture.size == (2 * 144, 4 * 144)


@pytest.mark.parametrize("iterations", [1, 4, 9])
def test_no_scale_takes_more_iterations_than_were_allowed(tmp_path, iterations):
    learned = learn(tmp_path / "own.safetensors", iterations=iterations, scales=1)
    assert learned.scales[0].iterations == iterations


def test_it_learns_to_mend(tmp_path):
    """The generator ends nearer to the seed image than what it is given; the critic still tells them apart."""
    quality = replace(TINY, iterations=100)
    learned = learn(tmp_path / "own.safetensors", quality=quality, degradation_spec="gaussian-noise(sigma_8bit=50)")
    for scale in learned.scales:
        assert scale.psnr_db > scale.input_psnr_db + 1
        assert scale.gap > 0


def test_several_seed_images_of_different_sizes(tmp_path):
    images = [seed_image(), ("other", seed_image(40, 30)[1][:1])]
    learned = learn_mdf(images, tmp_path / "own.safetensors", task="jpeg", quality=TINY, scales=1, device="cpu")
    alone = learn_mdf(images[:1], tmp_path / "alone.safetensors", task="jpeg", quality=TINY, scales=1, device="cpu")
    assert learned.sha256 != alone.sha256


@pytest.mark.parametrize("task", [*DEGRADATIONS])
def test_every_task_trains(tmp_path, task):
    quality = replace(TINY, iterations=2)
    learned = learn(tmp_path / "own.safetensors", task=task, quality=quality)
    assert all(math.isfinite(scale.gap) for scale in learned.scales)


def test_the_paper_quality_sees_the_whole_image_anew(tmp_path):
    quality = replace(QUALITIES["paper"], iterations=2)
    learned = learn(tmp_path / "own.safetensors", quality=quality)
    assert [scale.iterations for scale in learned.scales] == [2, 2]


def test_a_scale_that_has_converged_is_left(monkeypatch):
    """Its learning rate falls at the first row where neither mean has changed since the window before."""
    learner = learner_of(monkeypatch, 1)
    quality = replace(TINY, iterations=100, early=True)
    learner.plan = replace(learner.plan, quality=quality)
    errors = [0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    window = 80 // (4 * 5)  # rows: a quarter of those before the rate falls at the latest
    learner.rows = [(0, 5 * (k + 1), 1.0, error, 0.0, 0.0) for k, error in enumerate(errors)]
    means = [sum(errors[k : k + window]) / window for k in range(len(errors) - window + 1)]
    steady = next(k for k in range(len(means) - window) if means[k] - means[k + window] <= 0.05 * means[k])
    assert learner._decay_from(0) == 5 * (steady + 2 * window) < 80
    learner.rows = learner.rows[: steady + 2 * window - 1]
    assert learner._decay_from(0) == 80
    learner.plan = replace(learner.plan, quality=replace(quality, early=False))
    learner.rows = [(0, 5 * (k + 1), 1.0, 0.1, 0.0, 0.0) for k in range(16)]
    assert learner._decay_from(0) == 80


def test_the_rule_of_convergence():
    assert module._steady([1.0, 1.2], [1.1, 1.1])
    assert not module._steady([1.0, 1.0], [1.1, 1.1])


def test_a_small_image_is_clamped_and_said(tmp_path):
    recorder = Recorder()
    learned = learn(tmp_path / "own.safetensors", scales=4, watcher=recorder, quality=replace(TINY, iterations=2))
    assert learned.scales[0].size == (25, 29)
    assert learned.scales[-1].size == (60, 70)
    assert "clamped to 25 px" in recorder.notes[0]
    assert "1.34 apart" in recorder.notes[0]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"task": "denoize"}, UnknownName, "denoise"),
        ({"quality": "fsat"}, UnknownName, "fast"),
        ({"scales": 0}, BadOption, "scales"),
        ({"ratio": 1.0}, BadOption, "ratio"),
        ({"iterations": 0}, BadOption, "iterations"),
        ({"inputs": "sead"}, BadOption, "seed"),
        ({"inputs": "seed", "task": "super-resolve"}, BadOption, "nothing to mend"),
        ({"span": 0}, BadOption, "span"),
        ({"max_px": 24}, BadOption, "longest side"),
        ({"max_px": 28}, BadOption, "shorter side"),
        ({"degradation_spec": "bicubic-downscale(scale=2)"}, BadOption, "changes the size"),
        ({"degradation_spec": "jpge"}, UnknownName, "jpeg"),
    ],
)
def test_wrong_options(tmp_path, options, error, match):
    with pytest.raises(error, match=match):
        learn(tmp_path / "own.safetensors", **options)


def test_wrong_images(tmp_path):
    for images, match in (
        ([], "at least one seed image"),
        ([("small", torch.rand(3, 24, 90))], "small .* at least 25 px"),
        ([("deep", torch.rand(4, 64, 64))], "1 or 3 channels"),
    ):
        with pytest.raises(DataError, match=match):
            learn_mdf(images, tmp_path / "own.safetensors", task="jpeg")
    with pytest.raises(BadOption, match=r"\.safetensors"):
        learn(tmp_path / "own.pth")


def test_the_degradations_are_the_papers():
    assert DEGRADATIONS["denoise"] == "gaussian-noise(sigma_8bit=(0, 55))"
    assert DEGRADATIONS["jpeg"] == "jpeg(quality=(7, 10))"
    assert DEGRADATIONS["super-resolve"] is None
    assert DEGRADATIONS.keys() == set(module.format_.TASKS)


def test_the_gradient_penalty_of_a_linear_critic():
    """The score a·x of each pixel has the gradient a everywhere: the penalty is (|a| - 1)²."""
    weight = torch.tensor([1.0, 2.0, 2.0])

    def critic(image):
        return (image * weight[:, None, None]).sum(1, keepdim=True)

    real, fake = torch.rand(2, 2, 3, 5, 4)
    assert float(gradient_penalty(critic, real, fake, torch.rand(2, 1, 1, 1))) == pytest.approx(4.0)


def test_the_networks_shapes_and_initial_weights():
    chance = torch.Generator().manual_seed(0)
    critic, mender = discriminator(32, chance), Generator(32, chance)
    image = torch.rand(2, 3, 20, 17)
    assert critic(image).shape == (2, 1, 10, 7)
    assert mender(image).shape == (2, 3, 10, 7)
    weight = critic.body.block2.conv.weight
    assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(critic.body.block2.norm.weight.detach().mean()) == pytest.approx(1, abs=0.02)
    # what a generator of zeros returns is the image's middle
    for parameter in mender.convolutions.tail.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(mender(image), image[:, :, 5:-5, 5:-5])
    folded = fold({f"0.{key}": value for key, value in critic.state_dict().items()}, "here")
    assert [tuple(weight.shape[:2]) for weight, _ in folded[0]] == [(32, 3), (32, 32), (32, 32), (32, 32), (1, 32)]


def plan_of(name: str, image: torch.Tensor, *, scales: int, ratio: float):
    """A plan for one image, of the tiny quality."""
    return module._plan(
        [(name, image)],
        module.Watcher(),
        task="super-resolve",
        spec=None,
        quality=TINY,
        scales=scales,
        ratio=ratio,
        max_px=99,
        inputs="chained",
        span=None,
        iterations=None,
        seed=0,
    )


def test_windows_know_what_surrounds_them():
    """The generator of identity gives the degraded window itself, wherever it lies: no zeros come in from its sides."""
    learner = object.__new__(module._Learner)
    name, image = seed_image(40, 44)
    learner.plan = plan_of(name, image, scales=1, ratio=2.0)
    learner.device, learner.degrade = torch.device("cpu"), None
    learner.pyramid = [[2 * image - 1]]
    padded = module._mirrored(2 * image - 1)
    for seed in range(20):
        degraded, sharp = learner._batch(0, [[padded]], torch.Generator().manual_seed(seed))
        assert sharp.shape == (2, 3, 16, 16)
        torch.testing.assert_close(F.pad(degraded, (-5,) * 4), sharp)
    assert float((degraded == 0).float().mean()) < 0.01


def learner_of(monkeypatch, scales: int, width_doubles: int = 4):
    """A learner with its pyramid, untrained; generators that change nothing."""
    monkeypatch.setattr(module, "WIDTH_DOUBLES", width_doubles)
    name, image = seed_image()
    plan = plan_of(name, image, scales=scales, ratio=1.5)
    return module._Learner(plan, [(name, image)], Path("own.safetensors"), torch.device("cpu"), module.Watcher())


def test_a_scale_begins_where_the_one_before_ended_if_it_is_as_wide(monkeypatch):
    learner = learner_of(monkeypatch, 3, width_doubles=2)
    for scale in range(3):
        learner._add_scale(scale)
    assert learner.plan.widths == (4, 4, 8)
    first, second, third = (critic.state_dict() for critic in learner.critics)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert third["head.conv.weight"].shape[0] == 8
    assert [generator.training for generator in learner.generators] == [False, False, True]


def test_a_scale_is_given_what_the_one_before_made_enlarged(monkeypatch):
    learner = learner_of(monkeypatch, 2)
    for scale in range(2):
        learner._add_scale(scale)
    for parameter in learner.generators[0].convolutions.tail.parameters():
        parameter.data.zero_()  # a generator of zeros returns its input
    coarse, fine = learner.pyramid[0]
    inputs = learner._inputs(1)
    expected = F.interpolate(coarse[None], fine.shape[1:], mode="bicubic", align_corners=False)[0]
    assert [len(variants) for variants in inputs] == [TINY.variants]
    torch.testing.assert_close(F.pad(inputs[0][0], (-module.BORDER,) * 4), expected)
    assert learner._inputs(0)[0][0].shape[1:] == tuple(side + 2 * module.BORDER for side in coarse.shape[1:])


def test_a_scale_may_be_given_the_seed_image_itself(monkeypatch):
    learner = learner_of(monkeypatch, 2)
    learner.plan = replace(learner.plan, inputs="seed")
    ((image,),) = learner._inputs(1)
    torch.testing.assert_close(F.pad(image, (-module.BORDER,) * 4), learner.pyramid[0][1])


@pytest.mark.parametrize(("task", "span"), [("demosaic", 2), ("jpeg", 1)])
def test_a_generator_can_change_a_pixel_by_its_span(tmp_path, task, span):
    """A mosaic turns white into black, which is 2 away in -1..1."""
    learned = learn(tmp_path / "own.safetensors", task=task, scales=1, quality=replace(TINY, iterations=1))
    assert notes(learned.path, "the file")["span"] == str(span)
    mender = Generator(4, torch.Generator(), span=span)
    torch.nn.init.zeros_(mender.convolutions.tail.weight)
    torch.nn.init.constant_(mender.convolutions.tail.bias, 20)
    image = -torch.ones(1, 3, 12, 12)
    torch.testing.assert_close(mender(image), torch.full((1, 3, 2, 2), span - 1.0))


def test_a_large_photograph_is_shrunk_and_said(tmp_path):
    recorder = Recorder()
    learned = learn(tmp_path / "own.safetensors", max_px=35, scales=1, watcher=recorder)
    assert learned.scales[0].size == (30, 35)
    assert recorder.notes == ["waves is shrunk from 60x70 to 30x35 px"]


def test_the_pyramid_is_lanczos(monkeypatch):
    """Against Pillow's own resizing of an 8-bit image: within the rounding of both."""
    learner = learner_of(monkeypatch, 2)
    _, image = seed_image()
    levels = Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy())
    coarse = learner.pyramid[0][0]
    resized = np.asarray(levels.resize((coarse.shape[2], coarse.shape[1]), Image.Resampling.LANCZOS))
    torch.testing.assert_close(
        (coarse + 1) / 2, torch.from_numpy(resized.copy()).permute(2, 0, 1) / 255, atol=2e-2, rtol=0
    )
    assert torch.equal(learner.pyramid[0][1], 2 * image - 1)
