"""What holds for every degradation of the table, for chains, for tasks, and for what a user can get wrong."""

import re
from fractions import Fraction

import pytest
import torch

from veridical.core.catalog import call, parse_one
from veridical.core.errors import DataError, UnknownName, VeridicalError
from veridical.degradations import DEGRADATIONS, TASKS, BadOption, Chain, degradation, enlarged
from veridical.metrics import METRICS
from veridical.models import MODELS
from veridical.training.settings import Settings

# Each name at its defaults, and the forms that draw their strength.
SPECS = [
    *DEGRADATIONS,
    "gaussian-blur(sigma_px=(0.5, 2))",
    "disc-blur(radius_px=(1, 3))",
    "camera-shake(size=9, intensity=(0, 1))",
    "gaussian-noise(sigma_8bit=(0, 15))",
    "jpeg(quality=(10, 90), subsampling='4:4:4')",
    "bayer-mosaic(pattern=gbrg, noise_sigma_8bit=(1, 5))",
    "box-blur(size=3) + gaussian-noise + jpeg(quality=50)",
    *(task.degradation for task in TASKS.values() if task.degradation),
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photograph(height: int = 36, width: int = 44) -> torch.Tensor:
    """Smooth structure with an edge and some grain, in [0, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 4, width), indexing="ij")
    image = torch.stack((x.sin(), y.cos(), (x * y).sin())) * 0.25 + 0.5 + 0.2 * (x > 2)
    return (image + 0.02 * torch.randn(3, height, width, generator=seeded(0))).clamp(0, 1)


@pytest.mark.parametrize("spec", SPECS)
def test_gives_float32_of_the_size_that_its_scale_promises(spec):
    step = degradation(spec)
    for height, width in ((36, 44), (37, 43)):
        out = step(photograph(height, width).double(), seeded(1))
        assert out.dtype == torch.float32
        assert out.shape == (3, -int(-height // step.scale), -int(-width // step.scale))
        assert out.isfinite().all()


@pytest.mark.parametrize("spec", SPECS)
def test_same_seed_same_result_and_the_image_is_left_alone(spec):
    image = photograph()
    before = image.clone()
    first, second = (degradation(spec)(image, seeded(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(image, before)


@pytest.mark.parametrize("spec", SPECS)
def test_says_truly_whether_it_is_random(spec):
    step = degradation(spec)
    first, second = (step(photograph(), seeded(seed)) for seed in (1, 2))
    assert step.random == (not torch.equal(first, second))


@pytest.mark.parametrize("spec", SPECS)
def test_label_makes_the_same_degradation_again(spec):
    step = degradation(spec)
    again = degradation(step.label)
    assert again.label == step.label
    assert torch.equal(step(photograph(), seeded(3)), again(photograph(), seeded(3)))


@pytest.mark.parametrize("spec", SPECS)
def test_leaves_the_global_random_state_alone(spec):
    before = torch.get_rng_state()
    degradation(spec)(photograph(), seeded(1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_every_entry_says_in_its_first_line_what_it_does(name):
    kind = DEGRADATIONS[name]
    assert kind.name == name
    assert kind.__doc__
    assert re.match(r"\w.{20,}", kind.__doc__)


def test_a_chain_applies_its_steps_in_order_from_one_generator():
    image, together, apart = photograph(), seeded(7), seeded(7)
    chained = degradation("gaussian-noise(sigma_8bit=(5, 20)) + box-blur(size=3) + gaussian-noise")(image, together)
    by_hand = image
    for spec in ("gaussian-noise(sigma_8bit=(5, 20))", "box-blur(size=3)", "gaussian-noise"):
        by_hand = degradation(spec)(by_hand, apart)
    assert torch.equal(chained, by_hand)


def test_a_chain_multiplies_scales():
    assert degradation("bicubic-downscale(scale=2) + bicubic-downscale(scale=3)").scale == 6
    assert degradation("bicubic-downscale + bicubic-upscale").scale == 1
    assert degradation("bicubic-downscale(scale=3) + bicubic-upscale(scale=2)").scale == Fraction(3, 2)
    assert degradation("bicubic-upscale").scale == Fraction(1, 4)


def test_a_chain_that_shrinks_and_enlarges_keeps_odd_sizes_aligned():
    ramp = torch.linspace(0, 1, 41)[None, None].repeat(3, 41, 1)
    out = degradation("bicubic-downscale + bicubic-upscale")(ramp, seeded(0))
    assert out.shape == ramp.shape
    # A ramp survives bicubic resizing unchanged, away from the borders: any shift would show as an offset.
    torch.testing.assert_close(out[:, 16:24, 16:24], ramp[:, 16:24, 16:24], atol=1e-5, rtol=0)


def test_tasks_name_a_degradation_that_exists_or_are_of_pairs():
    scales = {name: degradation(task.degradation).scale for name, task in TASKS.items() if task.degradation}
    assert scales.pop("super-resolve") == 4
    assert set(scales.values()) == {1}
    assert {name for name, task in TASKS.items() if task.pairs} == {"defocus-pairs", "motion-deblur"}


@pytest.mark.parametrize("name", TASKS)
def test_tasks_name_what_exists(name):
    task = TASKS[name]
    assert task.summary
    term = parse_one(task.model, "model", "unet")
    model = call(MODELS[term.name], {**term.options, "channels": task.channels}, term.name)
    assert model.scale in (1, degradation(task.degradation).scale if task.degradation else 1)
    assert set(task.metrics or ()) <= METRICS.keys()
    Settings(**task.training)
    assert TASKS[task.learned].learned == task.learned


def test_enlarged_again_an_image_keeps_its_size_and_nothing_else_changes():
    image = photograph()
    for spec in ("bicubic-downscale(scale=3)", "gaussian-noise + bicubic-downscale(scale=2)"):
        small = degradation(spec)
        again = enlarged(small)
        assert again.scale == 1
        upscale = degradation(f"bicubic-upscale(scale={small.scale})")
        height, width = image.shape[-2:]
        expected = upscale(small(image, seeded(0)))[:, :height, :width]
        assert torch.equal(again(image, seeded(0)), expected)
        assert degradation(again.label).label == again.label
    same = degradation("jpeg")
    assert enlarged(same) is same
    with pytest.raises(BadOption, match="shrinks by 1/2, but only a whole number"):
        enlarged(degradation("bicubic-upscale(scale=2)"))


def test_options_can_come_as_keywords():
    assert degradation("box-blur", size=7, border="zero").label == "box-blur(size=7, border=zero)"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("box-blur(size=0)", "size of box-blur must be a whole number of at least 1; got 0"),
        ("box-blur(size=2.5)", "got 2.5"),
        ("box-blur(border=valid)", "must be one of reflect, replicate, circular, zero; got 'valid'"),
        ("gaussian-blur(sigma_px=-1)", "must be a number of at least 0"),
        ("gaussian-blur(size=4)", "an odd whole number of at least 1; got 4"),
        ("disc-blur(radius_px=nan)", "got 'nan'"),
        ("camera-shake(size=8)", "an odd whole number of at least 3; got 8"),
        ("camera-shake(smoothness=0)", "from 0.02 to 10; got 0"),
        ("camera-shake(smoothness=(0.1, 0.2))", "smoothness of camera-shake must be a number"),
        ("gaussian-noise(sigma_8bit=(15, 0))", "Swap its ends"),
        ("gaussian-noise(sigma_8bit=(1, 2, 3))", "or a range (low, high)"),
        ("gaussian-noise(sigma_8bit=1e999)", "got inf"),
        ("jpeg(quality=0)", "quality of jpeg must be a number from 1 to 100"),
        ("jpeg(subsampling=4:1:1)", "4:2:0, 4:2:2, 4:4:4; got '4:1:1'"),
        ("bicubic-downscale(scale=1.5)", "whole number of at least 1"),
        ("bicubic-upscale(scale=0)", "whole number of at least 1"),
        ("bayer-mosaic(pattern=rgbg)", "rggb, bggr, grbg, gbrg"),
        ("0.5*box-blur", "steps, not a sum"),
    ],
)
def test_an_impossible_option_is_an_error_that_says_what_was_expected(spec, message):
    with pytest.raises(BadOption, match=re.escape(message)) as caught:
        degradation(spec)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, VeridicalError)


def test_options_that_could_belong_to_several_steps_are_an_error():
    with pytest.raises(BadOption, match="could belong to any step"):
        degradation("box-blur + gaussian-blur", size=3)


def test_an_empty_chain_is_an_error():
    with pytest.raises(BadOption, match="at least one step"):
        Chain([])


def test_unknown_names_and_options_suggest_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'camera-shake'"):
        degradation("camera-shock")
    with pytest.raises(UnknownName, match="Did you mean 'sigma_8bit'"):
        degradation("gaussian-noise(sigma=25)")


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_a_wrong_tensor_is_an_error_that_says_so(name):
    step = degradation(name)
    for image in (torch.zeros(3, 9, 9, dtype=torch.uint8), torch.zeros(1, 3, 9, 9), torch.zeros(3, 0, 9)):
        with pytest.raises(DataError, match=r"one floating-point image \(C, H, W\)"):
            step(image, seeded(0))


def test_jpeg_and_mosaic_refuse_channels_that_they_cannot_mean():
    with pytest.raises(DataError, match="grey or RGB image; got 4 channels"):
        degradation("jpeg")(torch.zeros(4, 9, 9))
    with pytest.raises(DataError, match="RGB image; got 1 channels"):
        degradation("bayer-mosaic")(torch.zeros(1, 9, 9))


def test_too_small_an_image_is_an_error_that_names_the_least_size():
    for spec, least in (
        ("box-blur(size=5)", 3),
        ("disc-blur(radius_px=2.6)", 4),
        ("camera-shake(size=9)", 5),
    ):
        step = degradation(spec)
        assert step(torch.ones(3, least, least), seeded(0)).shape == (3, least, least)
        with pytest.raises(DataError, match=f"at least {least}x{least} px"):
            step(torch.ones(3, least - 1, 50), seeded(0))
        assert degradation(spec, border="replicate")(torch.ones(3, 1, 1), seeded(0)).shape == (3, 1, 1)


def test_a_random_degradation_without_a_generator_is_an_error():
    with pytest.raises(ValueError, match="is random: give it a generator"):
        degradation("gaussian-noise")(photograph())
    degradation("box-blur")(photograph())
