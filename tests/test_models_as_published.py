"""EDSR, SRResNet, RRDBNet and NAFNet beside their papers: their parameters, counted, and their authors' weights.

The networks are written here a second time, as functions of a state_dict with the published keys.
"""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veridical.models import EDSR, NAFNet, Restorer, RRDBNet, SRResNet

State = dict[str, Tensor]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=seeded(0), dtype=torch.float64)


def conv(kernel: int, channels_in: int, channels_out: int, bias: bool = True) -> int:
    """How many parameters a convolution has."""
    return kernel**2 * channels_in * channels_out + bias * channels_out


def parameters(build: type[Restorer], **options: object) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(**options).parameters())


def filled(model: Restorer) -> State:
    """Random weights for a model of float64, none of them zero, as a state_dict of ours."""
    state = model.state_dict()
    generator = seeded(1)
    for value in state.values():
        if value.is_floating_point():
            value.normal_(std=(0.5 / value[0].numel()) ** 0.5, generator=generator)
    return {key: value.clone() for key, value in state.items()}


def apply(state: State, name: str, x: Tensor, **options: int) -> Tensor:
    """The convolution of that name, padded by zeros to keep the size."""
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2, **options)


@pytest.mark.parametrize(("width", "blocks", "published_millions"), [(64, 16, 1.5), (256, 32, 43)])
@pytest.mark.parametrize(("scale", "shuffles"), [(1, []), (2, [2]), (3, [3]), (4, [2, 2])])
def test_edsr_has_the_parameters_of_its_layers(width, blocks, published_millions, scale, shuffles):
    expected = conv(3, 3, width) + (2 * blocks + 1) * conv(3, width, width) + conv(3, width, 3)
    expected += sum(conv(3, width, factor**2 * width) for factor in shuffles)
    found = parameters(EDSR, width=width, blocks=blocks, scale=scale)
    assert found == expected
    if scale == 4:
        assert found == {64: 1_517_571, 256: 43_089_923}[width]
        assert found / 1e6 == pytest.approx(published_millions, rel=0.02)  # table 1 of the paper: "1.5M", "43M"


@pytest.mark.parametrize(("scale", "shuffles"), [(1, 0), (2, 1), (4, 2)])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_srresnet_has_the_parameters_of_its_layers(scale, shuffles, batch_norm):
    norm = 2 * 64 * batch_norm
    expected = conv(9, 3, 64) + 1 + 16 * (2 * (conv(3, 64, 64) + norm) + 1) + conv(3, 64, 64) + norm
    expected += shuffles * (conv(3, 64, 256) + 1) + conv(9, 64, 3)
    assert parameters(SRResNet, scale=scale, batch_norm=batch_norm) == expected
    if scale == 4 and batch_norm:
        assert expected == 1_549_462


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_rrdbnet_has_the_parameters_of_its_layers(scale):
    dense = sum(conv(3, 64 + 32 * i, 32) for i in range(4)) + conv(3, 64 + 4 * 32, 64)
    expected = conv(3, 3 * (4 // scale) ** 2, 64) + 23 * 3 * dense + 4 * conv(3, 64, 64) + conv(3, 64, 3)
    assert parameters(RRDBNet, scale=scale) == expected
    if scale == 4:
        assert expected == 16_697_987


@pytest.mark.parametrize(
    ("width", "encoder", "middle", "decoder", "published"),
    [
        (32, (1, 1, 1, 28), 1, (1, 1, 1, 1), 17_111_907),
        (64, (1, 1, 1, 28), 1, (1, 1, 1, 1), 67_888_835),
        (32, (2, 2, 4, 8), 12, (2, 2, 2, 2), 29_159_715),
        (64, (2, 2, 4, 8), 12, (2, 2, 2, 2), 115_982_915),
    ],
)
def test_nafnet_has_the_parameters_of_its_layers(width, encoder, middle, decoder, published):
    def block(c: int) -> int:
        first = conv(1, c, 2 * c) + (9 + 1) * 2 * c + conv(1, c, c) + conv(1, c, c)
        return first + conv(1, c, 2 * c) + conv(1, c, c) + 2 * 2 * c + 2 * c

    expected = conv(3, 3, width) + conv(3, width, 3) + middle * block(16 * width)
    for level in range(4):
        c = width * 2**level
        expected += encoder[level] * block(c) + conv(2, c, 2 * c)
        expected += decoder[3 - level] * block(c) + conv(1, 2 * c, 4 * c, bias=False)
    options = {"encoder_blocks": encoder, "middle_blocks": middle, "decoder_blocks": decoder}
    assert parameters(NAFNet, width=width, **options) == expected == published


def edsr_of_255(state: State, image: Tensor, blocks: int, shuffles: list[int]) -> Tensor:
    """EDSR with its authors' keys, from 0 ... 255 to 0 ... 255."""
    x = F.conv2d(image, state["sub_mean.weight"], state["sub_mean.bias"])
    first = x = apply(state, "head.0", x)
    for i in range(blocks):
        x = x + 0.1 * apply(state, f"body.{i}.body.2", apply(state, f"body.{i}.body.0", x).relu())
    x = first + apply(state, f"body.{blocks}", x)
    for i, factor in enumerate(shuffles):
        x = F.pixel_shuffle(apply(state, f"tail.0.{2 * i}", x), factor)
    return F.conv2d(apply(state, "tail.1", x), state["add_mean.weight"], state["add_mean.bias"])


@pytest.mark.parametrize(("scale", "shuffles"), [(2, [2]), (3, [3]), (4, [2, 2])])
def test_edsr_loads_its_authors_weights_for_0_to_255_as_they_are(scale, shuffles):
    model = EDSR(scale=scale, width=6, blocks=2, res_scale=0.1).double()
    ours = filled(model)
    theirs = {}
    for key, value in ours.items():
        key = re.sub(r"^head\.", "head.0.", key)
        key = re.sub(r"^blocks\.", "body.", key)
        key = re.sub(r"^after\.", "body.2.", key)
        key = re.sub(r"^enlarge\.", "tail.0.", key)
        theirs[re.sub(r"^out\.", "tail.1.", key)] = value
    mean = 255 * torch.tensor([0.4488, 0.4371, 0.4040], dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)[..., None, None]
    theirs |= {"sub_mean.weight": eye, "sub_mean.bias": -mean, "add_mean.weight": eye, "add_mean.bias": mean}
    model.load_state_dict(EDSR.convert(theirs))
    image = images(2, 3, 9, 7)
    with torch.inference_mode():
        expected = edsr_of_255(theirs, 255 * image, 2, shuffles) / 255
        # The means are kept in float32.
        torch.testing.assert_close(model(image), expected, rtol=0, atol=1e-6)


def test_edsr_loads_basicsrs_names():
    ours = EDSR(width=4, blocks=2).state_dict()
    theirs = {}
    for key, value in ours.items():
        key = re.sub(r"^head\.", "conv_first.", key)
        key = re.sub(r"^blocks\.(\d)\.body\.0\.", r"body.\1.conv1.", key)
        key = re.sub(r"^blocks\.(\d)\.body\.2\.", r"body.\1.conv2.", key)
        key = re.sub(r"^after\.", "conv_after_body.", key)
        key = re.sub(r"^enlarge\.", "upsample.", key)
        theirs[re.sub(r"^out\.", "conv_last.", key)] = value
    assert EDSR.convert(theirs).keys() == ours.keys()


def test_srresnet_does_what_figure_4_of_its_paper_shows():
    model = SRResNet(width=6, blocks=2).double().eval()
    state = filled(model)
    for key, value in state.items():
        if key.endswith("running_var"):
            value.abs_().add_(0.5)
    model.load_state_dict(state)
    prelus = [key.removesuffix(".weight") for key, value in state.items() if value.shape == (1,)]
    assert len(prelus) == 1 + 2 + 2  # at the entry, in each block, behind each shuffle

    def norm(name: str, x: Tensor) -> Tensor:
        shift, spread, weight, bias = (
            state[f"{name}.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - shift) / (spread + 1e-5).sqrt() * weight + bias

    def prelu(name: str, x: Tensor) -> Tensor:
        return x.clamp(min=0) + state[f"{name}.weight"] * x.clamp(max=0)

    image = images(2, 3, 9, 7)
    first = x = prelu("head.1", apply(state, "head.0", image))
    for i in range(2):
        y = prelu(f"blocks.{i}.prelu", norm(f"blocks.{i}.first.1", apply(state, f"blocks.{i}.first.0", x)))
        x = x + norm(f"blocks.{i}.second.1", apply(state, f"blocks.{i}.second.0", y))
    x = first + norm("after.1", apply(state, "after.0", x))
    for i in (0, 3):
        x = prelu(f"enlarge.{i + 2}", F.pixel_shuffle(apply(state, f"enlarge.{i}", x), 2))
    with torch.inference_mode():
        torch.testing.assert_close(model(image), apply(state, "out", x))


def rrdbnet_of_esrgan(state: State, image: Tensor, blocks: int) -> Tensor:
    """RRDBNet with the keys of ESRGAN's released code."""

    def lrelu(name: str, x: Tensor) -> Tensor:
        x = apply(state, name, x)
        return torch.maximum(x, 0.2 * x)

    first = x = apply(state, "conv_first", image)
    for i in range(blocks):
        y = x
        for j in (1, 2, 3):
            name = f"RRDB_trunk.{i}.RDB{j}"
            parts = [y]
            for k in (1, 2, 3, 4):
                parts.append(lrelu(f"{name}.conv{k}", torch.cat(parts, 1)))
            y = y + 0.2 * apply(state, f"{name}.conv5", torch.cat(parts, 1))
        x = x + 0.2 * y
    x = first + apply(state, "trunk_conv", x)
    for name in ("upconv1", "upconv2"):
        x = lrelu(name, x.repeat_interleave(2, -1).repeat_interleave(2, -2))
    return apply(state, "conv_last", lrelu("HRconv", x))


def esrgan_names(state: State) -> State:
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"^trunk\.(\d+)\.rdb(\d)", r"RRDB_trunk.\1.RDB\2", key)
        key = re.sub(r"^conv_body", "trunk_conv", key)
        key = re.sub(r"^conv_up", "upconv", key)
        renamed[re.sub(r"^conv_hr", "HRconv", key)] = value
    return renamed


def test_rrdbnet_loads_its_authors_weights_and_does_what_their_network_does():
    model = RRDBNet(width=6, blocks=2, growth=4).double()
    theirs = esrgan_names(filled(model))
    model.load_state_dict(RRDBNet.convert(theirs))
    image = images(2, 3, 9, 7)
    with torch.inference_mode():
        found = model(image)
    torch.testing.assert_close(found, rrdbnet_of_esrgan(theirs, image, 2), rtol=1e-9, atol=1e-9)


def test_rrdbnet_knows_the_first_names_and_those_of_basicsr():
    ours = RRDBNet(width=4, blocks=2, growth=2).state_dict()
    first, basicsr = {}, {}
    places = {"conv_first": "0", "conv_up1": "3", "conv_up2": "6", "conv_hr": "8", "conv_last": "10"}
    for key, value in ours.items():
        basicsr[re.sub(r"^trunk\.", "body.", key)] = value
        old = re.sub(r"^trunk\.(\d+)\.rdb(\d)\.conv(\d)\.", r"model.1.sub.\1.RDB\2.conv\3.0.", key)
        old = re.sub(r"^conv_body\.", "model.1.sub.2.", old)
        for name, place in places.items():
            old = re.sub(rf"^{name}\.", f"model.{place}.", old)
        first[old] = value
    for theirs in (first, basicsr, {f"module.{key}": value for key, value in basicsr.items()}):
        converted = RRDBNet.convert(theirs)
        assert converted.keys() == ours.keys()
        assert all(converted[key] is ours[key] for key in ours)


@pytest.mark.parametrize(("scale", "folded"), [(2, 2), (1, 4)])
def test_rrdbnet_of_a_smaller_scale_folds_pixels_into_channels(scale, folded):
    model = RRDBNet(scale=scale, width=6, blocks=1, growth=4).double()
    theirs = esrgan_names(filled(model))
    model.load_state_dict(RRDBNet.convert(theirs))
    image = images(1, 3, 8, 12)
    channels = [
        image[:, c : c + 1, i::folded, j::folded] for c in range(3) for i in range(folded) for j in range(folded)
    ]
    with torch.inference_mode():
        expected = rrdbnet_of_esrgan(theirs, torch.cat(channels, 1), 1)
        assert expected.shape[-2:] == (8 * scale, 12 * scale)
        torch.testing.assert_close(model(image), expected, rtol=1e-9, atol=1e-9)


def nafnet_as_released(state: State, image: Tensor, encoder: tuple[int, ...], middle: int) -> Tensor:
    """NAFNet with the authors' keys, one block at each level on the way up; sides fit."""

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return scaled * state[f"{name}.weight"].view(-1, 1, 1) + state[f"{name}.bias"].view(-1, 1, 1)

    def block(name: str, x: Tensor) -> Tensor:
        y = apply(state, f"{name}.conv1", norm(f"{name}.norm1", x))
        y = apply(state, f"{name}.conv2", y, groups=y.shape[1])
        c = x.shape[1]
        y = y[:, :c] * y[:, c:]
        y = y * apply(state, f"{name}.sca.1", y.mean((2, 3), keepdim=True))
        x = x + apply(state, f"{name}.conv3", y) * state[f"{name}.beta"]
        y = apply(state, f"{name}.conv4", norm(f"{name}.norm2", x))
        return x + apply(state, f"{name}.conv5", y[:, :c] * y[:, c:]) * state[f"{name}.gamma"]

    x = apply(state, "intro", image)
    skips = []
    for level, blocks in enumerate(encoder):
        for i in range(blocks):
            x = block(f"encoders.{level}.{i}", x)
        skips.append(x)
        x = F.conv2d(x, state[f"downs.{level}.weight"], state[f"downs.{level}.bias"], stride=2)
    for i in range(middle):
        x = block(f"middle_blks.{i}", x)
    for level in range(len(encoder)):
        x = F.pixel_shuffle(apply(state, f"ups.{level}.0", x), 2) + skips.pop()
        x = block(f"decoders.{level}.0", x)
    return image + apply(state, "ending", x)


def test_nafnet_has_its_authors_keys_and_does_what_their_network_does():
    model = NAFNet(width=4, encoder_blocks=(1, 2), middle_blocks=2, decoder_blocks=(1, 1)).double()
    state = filled(model)
    model.load_state_dict(NAFNet.convert(state))
    image = images(2, 3, 7, 10)
    padded = F.pad(image, (0, 2, 0, 1))  # by zeros
    with torch.inference_mode():
        expected = nafnet_as_released(state, padded, (1, 2), 2)[..., :7, :10]
        torch.testing.assert_close(model(image), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(9, 12), (5, 9), (6, 6), (3, 4)])
def test_local_attention_averages_over_windows_that_stay_inside(height, width):
    side = 6
    mean = NAFNet(width=3, encoder_blocks=(1,), decoder_blocks=(1,), local=side).encoders[0][0].sca[0]
    x = images(2, 3, height, width)
    found = mean.eval()(x).expand(2, 3, height, width)
    tall, wide = min(side, height), min(side, width)
    for row in range(height):
        for column in range(width):
            # The window that begins this far before the pixel, moved inside.
            top = min(max(row - (tall - 1) // 2, 0), height - tall)
            left = min(max(column - (wide - 1) // 2, 0), width - wide)
            expected = x[..., top : top + tall, left : left + wide].mean((-2, -1))
            torch.testing.assert_close(found[..., row, column], expected)
    torch.testing.assert_close(mean.train()(x), x.mean((-2, -1), keepdim=True))


def test_local_attention_changes_nothing_within_one_window_and_something_beyond():
    options = {"width": 4, "encoder_blocks": (1, 1), "decoder_blocks": (1, 1)}
    whole, local = NAFNet(**options).double(), NAFNet(**options, local=16).double()
    state = filled(whole)
    for model in (whole, local):
        model.load_state_dict(state)
        model.eval()
    with torch.inference_mode():
        assert torch.equal(whole(images(1, 3, 16, 13)), local(images(1, 3, 16, 13)))
        image = images(1, 3, 24, 40)
        assert not torch.allclose(whole(image), local(image))
        assert torch.equal(whole.train()(image), local.train()(image))


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (EDSR, {"scale": 5}, "scale of edsr must be one of 1, 2, 3, 4; got 5"),
        (SRResNet, {"scale": True}, "scale of srresnet must be one of 1, 2, 3, 4; got True"),
        (RRDBNet, {"scale": 3}, "scale of rrdbnet must be one of 1, 2, 4; got 3"),
        (NAFNet, {"encoder_blocks": 4}, "encoder_blocks of nafnet must be whole numbers .* got 4"),
        (NAFNet, {"decoder_blocks": (1, 0)}, r"decoder_blocks of nafnet must be whole numbers .* got \(1, 0\)"),
        (NAFNet, {"encoder_blocks": (1, 1)}, "one number for each level; got 2 and 4"),
        (NAFNet, {"local": 100}, "local of nafnet must be a multiple of 16 with 4 levels; got 100"),
    ],
)
def test_impossible_options_are_errors_that_say_so(build: type[nn.Module], options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
