"""SRN, DsDeblur, XYDeblur, DDNet and IFAN beside their authors' code: parameters, structure, and published weights.

The networks are written here a second time, as functions of made-up weights with the authors' keys, layer by layer as
the released code runs them; loading those weights into ours must give the same images.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veridical.models import IFAN, SRN, DDNet, DsDeblur, Restorer, XYDeblur
from veridical.models.ddnet import filter_each_pixel
from veridical.models.ifan import filter_each_place
from veridical.models.srn import ConvLSTMCell

State = dict[str, Tensor]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=seeded(seed), dtype=torch.float64)


def parameters(build: type[Restorer], **options: object) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(**options).parameters())


def conv(kernel: int, channels_in: int, channels_out: int) -> int:
    """How many parameters a convolution has."""
    return kernel**2 * channels_in * channels_out + channels_out


class MadeUp:
    """Random float64 weights, drawn when a layer first asks for its name; the same layers then run with them."""

    def __init__(self, *, tensorflow: bool = False) -> None:
        self.state: State = {}
        self.tensorflow = tensorflow
        self.generator = seeded(7)

    def draw(self, key: str, *shape: int, std: float) -> Tensor:
        if key not in self.state:
            self.state[key] = std * torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        return self.state[key]

    def conv(self, name: str, x: Tensor, out: int, kernel: int = 3, stride: int = 1) -> Tensor:
        """A convolution, padded by kernel // 2 zeros; in TensorFlow "SAME": for stride 2 one zero more at the end."""
        weight = self.weight(name, out, x.shape[1], kernel)
        bias = self.bias(name, out)
        if not self.tensorflow:
            return F.conv2d(x, weight, bias, stride=stride, padding=kernel // 2)
        zeros = [max(kernel - (stride if side % stride == 0 else side % stride), 0) for side in x.shape[-2:]]
        (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in zeros)
        return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride=stride)

    def enlarging(self, name: str, x: Tensor, out: int) -> Tensor:
        """A 4x4 transposed convolution of stride 2: every input value spreads over 4x4, the outermost ring cut off."""
        weight = self.weight(name, x.shape[1], out, 4)
        number, _, height, width = x.shape
        spread = x.new_zeros(number, out, 2 * height + 2, 2 * width + 2)
        for row in range(4):
            for column in range(4):
                part = torch.einsum("nihw,io->nohw", x, weight[:, :, row, column])
                spread[..., row : row + 2 * height : 2, column : column + 2 * width : 2] += part
        return spread[..., 1:-1, 1:-1] + self.bias(name, out)[:, None, None]

    def weight(self, name: str, first: int, second: int, kernel: int) -> Tensor:
        std = (1 / (second * kernel**2)) ** 0.5
        if self.tensorflow:
            drawn = self.draw(f"{name}/weights", kernel, kernel, second, first, std=std)
            return torch.from_numpy(np.transpose(drawn.numpy(), (3, 2, 0, 1)).copy())
        return self.draw(f"{name}.weight", first, second, kernel, kernel, std=std)

    def bias(self, name: str, out: int) -> Tensor:
        return self.draw(f"{name}/biases" if self.tensorflow else f"{name}.bias", out, std=0.1)


def loaded(model: Restorer, published: State) -> Restorer:
    model.double().load_state_dict(model.convert(published))
    return model.eval()


def resized(image: Tensor, height: int, width: int, *, legacy: bool) -> Tensor:
    """Bilinear, by one matrix for each side."""

    def matrix(length: int, to: int) -> Tensor:
        rows = torch.zeros(to, length, dtype=torch.float64)
        for place in range(to):
            at = place * length / to if legacy else max((place + 0.5) * length / to - 0.5, 0.0)
            low = int(at)
            rows[place, low] += 1 - (at - low)
            rows[place, min(low + 1, length - 1)] += at - low
        return rows

    return matrix(image.shape[-2], height) @ image @ matrix(image.shape[-1], width).mT


def srn_as_released(made: MadeUp, image: Tensor, width: int, *, lstm: bool, legacy: bool) -> list[Tensor]:
    def block(x: Tensor, name: str) -> Tensor:
        inner = made.conv(f"{name}/conv1", x, x.shape[1], 5).relu()
        return made.conv(f"{name}/conv2", inner, x.shape[1], 5) + x

    number, channels, height, broad = image.shape
    prediction = image
    state = torch.zeros(number, 8 * width, height // 4, broad // 4, dtype=torch.float64)
    found = []
    for shrink in (4, 2, 1):
        size = (height // shrink, broad // shrink)
        seen = [resized(image, *size, legacy=legacy), resized(prediction, *size, legacy=legacy)]
        x = torch.cat(seen, dim=1)
        skips = []
        for level in (1, 2, 3):
            x = made.conv(f"g_net/enc{level}_1", x, width * 2 ** (level - 1), 5, 1 if level == 1 else 2).relu()
            for place in (2, 3, 4):
                x = block(x, f"g_net/enc{level}_{place}")
            skips.append(x)
        if lstm:
            state = resized(state, size[0] // 4, size[1] // 4, legacy=legacy)
            cell, hidden = state.chunk(2, 1)
            gates = made.conv("g_net/convLSTM/LSTM_conv", torch.cat((x, hidden), 1), 16 * width)
            i, j, f, o = gates.chunk(4, 1)
            cell = cell * (f + 1).sigmoid() + i.sigmoid() * j.tanh()
            x = cell.tanh() * o.sigmoid()
            state = torch.cat((cell, x), 1)
        for level in (3, 2, 1):
            if level < 3:
                x = made.enlarging(f"g_net/dec{level}_4", x, width * 2 ** (level - 1)).relu() + skips[level - 1]
            for place in (3, 2, 1):
                x = block(x, f"g_net/dec{level}_{place}")
        prediction = made.conv("g_net/dec1_0", x, channels, 5)
        found.append(prediction)
    return found


def dsdeblur_as_released(made: MadeUp, image: Tensor, width: int, *, legacy: bool) -> list[Tensor]:
    def dense(x: Tensor, name: str) -> Tensor:
        made_so_far: list[Tensor] = []
        for unit in range(4):
            fed = x + sum(made_so_far)
            inner = made.conv(f"{name}/d{unit + 1}/conv1", fed, x.shape[1]).relu()
            made_so_far.append(made.conv(f"{name}/d{unit + 1}/conv2", inner, x.shape[1]))
        return x + sum(made_so_far)

    height, broad = image.shape[-2:]
    prediction = image
    found = []
    for place, shrink in enumerate((4, 2, 1)):
        size = (height // shrink, broad // shrink)
        small = resized(image, *size, legacy=legacy)
        x = torch.cat((small, resized(prediction, *size, legacy=legacy)), dim=1)
        skips = []
        for level in (1, 2, 3):
            out = width * 2 ** (level - 1)
            x = made.conv(f"g_net/enc{level}_1_{place}", x, out, 3, 1 if level == 1 else 2).relu()
            x = dense(dense(x, f"g_net/enc{level}_2"), f"g_net/enc{level}_2")
            skips.append(x)
        for level in (3, 2, 1):
            if level < 3:
                out = width * 2 ** (level - 1)
                x = made.enlarging(f"g_net/dec{level}_3_{place}", x, out).relu() + skips[level - 1]
            x = dense(dense(x, f"g_net/dec{level}_2"), f"g_net/dec{level}_2")
        prediction = made.conv(f"g_net/dec1_0_{place}", x, image.shape[1]) + small
        found.append(prediction)
    return found


def xydeblur_as_released(made: MadeUp, image: Tensor, width: int) -> Tensor:
    def block(x: Tensor, name: str) -> Tensor:
        inner = made.conv(f"{name}.main.0.main.0", x, x.shape[1]).relu()
        return made.conv(f"{name}.main.1.main.0", inner, x.shape[1]) + x

    def encoded(x: Tensor, level: int) -> Tensor:
        out = width * 2 ** (level - 1)
        x = made.conv(f"Encoder{level}.layers.0.main.0", x, out, 3, 1 if level == 1 else 2).relu()
        for place in range(1, 7):
            x = block(x, f"Encoder{level}.layers.{place}")
        return x

    def decoded(first: Tensor, second: Tensor, x: Tensor) -> Tensor:
        for place, skip in ((1, second), (2, first), (3, None)):
            for step in range(6):
                x = block(x, f"Decoder1_{place}.layers.{step}")
            if skip is not None:
                x = made.enlarging(f"Decoder1_{place}.layers.6.main.0", x, skip.shape[1]).relu()
                x = made.conv(f"Convs1_{place}.main.0", torch.cat((x, skip), 1), skip.shape[1], 1).relu()
        return made.conv("Decoder1_4.main.0", x, image.shape[1])

    first = encoded(image, 1)
    second = encoded(first, 2)
    third = encoded(second, 3)
    straight = decoded(first, second, third)
    turned = decoded(*(each.transpose(2, 3).flip(2) for each in (first, second, third)))
    return straight + turned.transpose(2, 3).flip(3) + image


def ifan_as_released(made: MadeUp, image: Tensor, width: int, iterations: int, *, released: bool) -> Tensor:
    def layer(name: str, x: Tensor, out: int, kernel: int = 3, stride: int = 1) -> Tensor:
        return F.leaky_relu(made.conv(f"{name}.0", x, out, kernel, stride), 0.1)

    def residual(name: str, x: Tensor, steps: int) -> Tensor:
        entered = x
        for step in range(steps):
            inner = F.leaky_relu(made.conv(f"{name}.stem.{step}.0", x, x.shape[1]), 0.1)
            x = F.leaky_relu(x + made.conv(f"{name}.stem.{step}.2", inner, x.shape[1]), 0.1)
        return x + entered if steps > 1 else x

    def chain(name: str, x: Tensor, deep: int) -> Tensor:
        x = layer(f"{name}.0", x, deep)
        return residual(f"{name}.2", residual(f"{name}.1", x, 2), 2)

    widths = (width, 2 * width, 4 * width, 4 * width)
    deep = widths[-1]

    def encoded(prefix: str) -> list[Tensor]:
        x, levels = image, []
        for level, out in enumerate(widths, 1):
            for place in (1, 2, 3):
                x = layer(f"Network.{prefix}{level}_{place}", x, out, 3, 2 if level > 1 and place == 1 else 1)
            levels.append(x)
        return levels

    features = encoded("conv")
    seen = encoded("kconv")[-1]
    disparity = made.conv("Network.DME.3", chain("Network.DME", seen, deep), 1)
    seen = torch.cat((seen, layer("Network.conv_DME", disparity, deep)), 1)
    seen = layer("Network.conv4_4.3", chain("Network.conv4_4", seen, deep), deep)
    predicted = made.conv("Network.F.3", chain("Network.F", seen, deep), iterations * deep * 7, 1)
    x = features[3]
    for i in range(iterations):
        start = i * deep * 6
        upright, level = (predicted[:, start + at : start + at + 3 * deep] for at in (0, 3 * deep))
        level = upright if released else level
        height, broad = x.shape[-2:]
        # Filter value number 3 * channel + tap, at the place that is computed.
        rows = torch.zeros_like(x)
        for tap in range(3):
            above = x[:, :, (torch.arange(height) + tap - 1).clamp(0, height - 1)]
            rows += above * upright[:, tap::3]
        x = torch.zeros_like(rows)
        for tap in range(3):
            beside = rows[..., (torch.arange(broad) + tap - 1).clamp(0, broad - 1)]
            x += beside * level[:, tap::3]
        biases = iterations * deep * 6 + i * deep
        x = F.leaky_relu(x + predicted[:, biases : biases + deep], 0.1)
    x = layer("Network.conv_res.2", residual("Network.conv_res.1", layer("Network.conv_res.0", x, deep), 3), deep)
    for level in (3, 2, 1):
        skip = features[level - 1]
        x = F.leaky_relu(made.enlarging(f"Network.upconv{level}_u.0", x, skip.shape[1]), 0.1) + skip
        x = residual(f"Network.upconv{level}_2", residual(f"Network.upconv{level}_1", x, 1), 1)
    return layer("Network.out_res", x, image.shape[1]) + image


def wiener(
    image: np.ndarray, kernel: np.ndarray, *, epsilon: float, border: int, blur_first: bool = False
) -> np.ndarray:
    """(H, W): the image inverted in frequency, continued by replication over a border in which it fades to its mean."""
    mean = image.mean()
    padded = np.pad(image - mean, border, mode="edge")
    ramp = np.arange(border) / border
    for axis, length in enumerate(image.shape):
        fade = np.concatenate((ramp, np.ones(length), ramp[::-1]))
        padded = padded * (fade[:, None] if axis == 0 else fade)
    spread = np.zeros_like(padded)
    for (row, column), value in np.ndenumerate(kernel):
        spread[row - kernel.shape[0] // 2, column - kernel.shape[1] // 2] = value
    blur = np.fft.fft2(spread)
    frequencies = np.fft.fft2(padded) * np.conj(blur) / (np.abs(blur) ** 2 + epsilon)
    inverted = np.fft.ifft2(frequencies * blur if blur_first else frequencies).real
    return inverted[border:-border, border:-border] + mean


def ddnet_as_released(made: MadeUp, image: Tensor, kernel: Tensor, width: int, blocks: int, border: int) -> Tensor:
    def layer(name: str, x: Tensor, out: int, kernel_size: int = 3) -> Tensor:
        return F.leaky_relu(made.conv(f"Generator.{name}", x, out, kernel_size), 0.2)

    def to_channels(x: Tensor) -> Tensor:
        # Channel number 4 * channel + 2 * column + row.
        parts = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return torch.stack(parts, dim=2).flatten(1, 2)

    def to_pixels(x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[0], x.shape[1] // 4, 2 * x.shape[2], 2 * x.shape[3])
        for place in range(4):
            out[:, :, place % 2 :: 2, place // 2 :: 2] = x[:, place::4]
        return out

    def invert(x: Tensor, *, blur_first: bool = False) -> Tensor:
        options = {"epsilon": 0.01, "border": border, "blur_first": blur_first}
        planes = [[wiener(plane, kernel.numpy(), **options) for plane in each] for each in x.numpy()]
        return torch.from_numpy(np.array(planes))

    height, broad = image.shape[-2:]
    image = F.pad(image, (4, 4 + -broad % 4, 4, 4 + -height % 4), mode="replicate")
    inverted = invert(image)
    x = layer("in_cv.1", to_channels(torch.cat((image, inverted), 1)), width)
    x = entered = layer("in_cv.4", to_channels(x), width)
    for place in range(blocks):
        seen = x
        for step in (1, 2, 3):
            seen = torch.cat((layer(f"res_blocks.{place}.cv{step}.0", seen, width), seen), 1)
        x = x + made.conv(f"Generator.res_blocks.{place}.fuse.0", seen, width, 1)
    x = layer("fuse_cv.0", x + entered, width)
    for place in (0, 3):
        x = F.leaky_relu(to_pixels(made.conv(f"Generator.upsample.{place}", x, 4 * width)), 0.2)
    filters = made.conv("Generator.convout_df.2", layer("convout_df.0", x, width), 25, 1)
    found = made.conv("Generator.convout_im.2", layer("convout_im.0", x, width), image.shape[1], 1)
    complete = F.pad(found - invert(found, blur_first=True) + inverted, (2, 2, 2, 2))
    out = torch.zeros_like(image)
    for tap in range(25):
        row, column = divmod(tap, 5)
        part = complete[..., row : row + image.shape[-2], column : column + image.shape[-1]]
        out += part * filters[:, tap, None]
    return out[..., 4 : 4 + height, 4 : 4 + broad]


def test_parameter_counts_are_those_of_the_released_networks():
    assert parameters(SRN) == 6_881_251
    assert parameters(SRN, lstm=True) == 6_881_251 + conv(3, 2 * 128, 4 * 128) == 8_061_411
    assert parameters(SRN, channels=1) == parameters(SRN, by_channel=True) == 6_876_449
    assert parameters(SRN, scales=1) == 6_881_251
    assert parameters(DsDeblur, channels=1) == parameters(DsDeblur, by_channel=True) == 3_871_715
    assert parameters(DsDeblur) == 3_876_905
    assert parameters(XYDeblur) == 4_918_627
    ends = (conv(3, 8, 64), conv(3, 256, 64), conv(3, 64, 64), 2 * conv(3, 64, 256), 2 * conv(3, 64, 64))
    block = conv(3, 64, 64) + conv(3, 128, 64) + conv(3, 192, 64) + conv(1, 256, 64)
    assert parameters(DDNet, channels=1) == sum(ends) + 10 * block + conv(1, 64, 1) + conv(1, 64, 25) == 2_938_330
    assert parameters(DDNet) == 2_947_676
    assert parameters(IFAN) == 10_476_996


@pytest.mark.parametrize("lstm", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_srn_with_its_authors_variables_gives_what_their_code_gives(lstm, legacy):
    made = MadeUp(tensorflow=True)
    image = images(2, 3, 32, 48)
    expected = srn_as_released(made, image, 4, lstm=lstm, legacy=legacy)
    made.state |= {"g_net/enc1_1/weights/Adam": torch.zeros(5, 5, 6, 4), "beta1_power": torch.zeros(())}
    model = loaded(SRN(width=4, lstm=lstm, legacy_resize=legacy), made.state)
    with torch.no_grad():
        torch.testing.assert_close(model.stages(image), tuple(expected))


@pytest.mark.parametrize("legacy", [False, True])
def test_dsdeblur_with_its_authors_variables_gives_what_their_code_gives(legacy):
    made = MadeUp(tensorflow=True)
    image = images(2, 1, 32, 48)
    expected = dsdeblur_as_released(made, image, 4, legacy=legacy)
    published = {f"{key}:0": value for key, value in made.state.items()}
    model = loaded(DsDeblur(channels=1, width=4, legacy_resize=legacy), published)
    with torch.no_grad():
        torch.testing.assert_close(model.stages(image), tuple(expected))


def test_xydeblur_with_its_authors_weights_gives_what_their_code_gives():
    made = MadeUp()
    image = images(2, 3, 16, 24)
    expected = xydeblur_as_released(made, image, 4)
    model = loaded(XYDeblur(width=4), made.state)
    with torch.no_grad():
        torch.testing.assert_close(model(image), expected)


@pytest.mark.parametrize("released", [False, True])
def test_ifan_with_its_authors_weights_gives_what_their_code_gives(released):
    made = MadeUp()
    image = images(2, 3, 24, 32)
    expected = ifan_as_released(made, image, 4, 5, released=released)
    published = {f"module.{key}": value for key, value in made.state.items()}
    published["module.reblurNet.RBF.0.0.weight"] = torch.zeros(128, 15232, 3, 3)
    model = loaded(IFAN(width=4, iterations=5, released=released), published)
    with torch.no_grad():
        torch.testing.assert_close(model(image), expected)


@pytest.mark.parametrize("size", [(24, 32), (21, 18)])
def test_ddnet_with_its_authors_weights_gives_what_their_code_gives(size):
    made = MadeUp()
    image = images(2, 1, *size)
    kernel = images(4, 7, seed=3)
    expected = ddnet_as_released(made, image, kernel / kernel.sum(), 8, 2, 12)
    model = loaded(DDNet(channels=1, width=8, blocks=2, border=12), made.state)
    with torch.no_grad():
        torch.testing.assert_close(model(image, kernel / kernel.sum()), expected)


def test_all_scales_of_srn_share_all_weights_and_those_of_dsdeblur_some():
    tensors = {
        scales: [len(list(build(width=4, scales=scales).parameters())) for build in (SRN, DsDeblur)]
        for scales in (1, 2, 3)
    }
    # SRN: 42 convolutions. DsDeblur: 48 in its blocks for all scales, and 6 for each scale; a weight and a bias each.
    assert tensors == {scales: [2 * 42, 2 * (48 + 6 * scales)] for scales in (1, 2, 3)}


@pytest.mark.parametrize("build", [SRN, DsDeblur])
def test_no_gradient_passes_from_a_scale_to_the_coarser_one(build):
    model = build(width=4).double()
    image = images(1, 3, 16, 32).requires_grad_()
    stages = model.stages(image)
    before = model.enlarged(stages[1]).detach()
    alone, _ = model.at_scale(2, torch.cat((image, before), dim=1), image, None)
    torch.testing.assert_close(alone, stages[-1])
    (found,) = torch.autograd.grad(stages[-1].square().sum(), image)
    (expected,) = torch.autograd.grad(alone.square().sum(), image)
    torch.testing.assert_close(found, expected)


def test_the_gradient_passes_from_scale_to_scale_through_the_lstm():
    model = SRN(width=4, lstm=True).double()
    nn.init.normal_(model.lstm.gates.weight, std=0.3, generator=seeded(0))
    image = images(1, 3, 16, 32)
    states: list[Tensor] = []
    model.lstm.register_forward_hook(lambda module, inputs, outputs: states.append(outputs[1]))
    result = model.stages(image)[-1]
    (gradient,) = torch.autograd.grad(result.square().sum(), states[0])
    assert gradient.abs().max() > 0


@pytest.mark.parametrize(("build", "options"), [(SRN, {"blocks": 1, "lstm": True}), (DsDeblur, {})])
def test_three_scales_take_any_size_and_compile(build, options):
    torch.manual_seed(0)
    model = build(width=4, **options).eval()
    for height, width in ((1, 1), (3, 17), (32, 16), (31, 50)):
        with torch.inference_mode():
            stages = model.stages(torch.rand(2, 3, height, width, generator=seeded(0)))
        sizes = [(-(-height // shrink), -(-width // shrink)) for shrink in (4, 2, 1)]
        assert [stage.shape for stage in stages] == [(2, 3, *size) for size in sizes]
    image = torch.rand(1, 3, 18, 21, generator=seeded(0))
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.inference_mode():
        torch.testing.assert_close(compiled(image), model(image))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(("build", "options"), [(SRN, {"blocks": 1, "lstm": True}), (DsDeblur, {})])
def test_no_pixel_looks_farther_than_the_radius_through_three_scales(build, options, legacy):
    torch.manual_seed(0)
    model = build(channels=1, width=2, legacy_resize=legacy, **options).double().eval()
    for parameter in model.parameters():
        if (
            parameter.ndim > 1 and not parameter.any()
        ):  # so that DsDeblur, which starts by changing nothing, looks about
            nn.init.xavier_uniform_(parameter)
    radius = model.radius_px
    strip = images(1, 1, 1, 2 * radius)
    with torch.inference_mode():
        before = model(strip)
        for edge in (radius // 2, radius // 2 + 5, radius // 2 + 15):
            changed = strip.clone()
            changed[..., :edge] = 30 * images(1, 1, 1, edge, seed=1)
            seen = (model(changed) != before).flatten().nonzero()
            # The last column that changed is edge - 1.
            assert radius // 3 < int(seen.max()) - (edge - 1) <= radius
            changed = strip.clone()
            changed[..., -edge:] = 30 * images(1, 1, 1, edge, seed=1)
            seen = (model(changed) != before).flatten().nonzero()
            assert radius // 3 < 2 * radius - edge - int(seen.min()) <= radius


@pytest.mark.parametrize("build", [SRN, DsDeblur])
def test_by_channel_is_the_network_of_one_channel_on_each(build):
    torch.manual_seed(0)
    together = build(width=4, scales=2, by_channel=True).double()
    one = build(width=4, scales=2, channels=1).double()
    one.load_state_dict(together.state_dict())
    image = images(2, 3, 16, 20)
    with torch.inference_mode():
        each = [one.stages(image[:, channel : channel + 1]) for channel in range(3)]
        expected = tuple(torch.cat(parts, dim=1) for parts in zip(*each, strict=True))
        torch.testing.assert_close(together.stages(image), expected)


def test_the_convolutional_lstm_with_1x1_kernels_is_an_lstm_at_each_pixel():
    cell = ConvLSTMCell(3, kernel_size=1).double()
    expected = nn.LSTMCell(3, 3, dtype=torch.float64)
    weight, bias = cell.gates.weight.detach()[..., 0, 0], cell.gates.bias.detach()
    # PyTorch's order of gates: input, forget, new input, output; ours adds 1 to the forget gate.
    order = torch.cat([torch.arange(gate * 3, gate * 3 + 3) for gate in (0, 2, 1, 3)])
    expected.load_state_dict(
        {
            "weight_ih": weight[order, :3],
            "weight_hh": weight[order, 3:],
            "bias_ih": bias[order],
            "bias_hh": torch.tensor([0.0, 1, 0, 0]).repeat_interleave(3).double(),
        }
    )
    x = images(2, 3, 4, 5)
    first, state = cell(x, None)
    second, _ = cell(x * 2, state)
    pixels = x.permute(0, 2, 3, 1).reshape(-1, 3)
    hidden, memory = expected(pixels)
    again, _ = expected(pixels * 2, (hidden, memory))
    torch.testing.assert_close(first.permute(0, 2, 3, 1).reshape(-1, 3), hidden)
    torch.testing.assert_close(second.permute(0, 2, 3, 1).reshape(-1, 3), again)


def test_what_xydeblur_adds_in_four_orientations_cancels_where_its_encoder_turns_with_the_image():
    """With g = the decoder after the encoder and R a quarter turn, it adds a(x) = g(x) + R^-1 g(Rx) to x. So the sum
    over k of (-1)^k R^-k a(R^k x) over four turns is 0, if the encoder of a turned image gives turned features."""
    torch.manual_seed(0)
    model = XYDeblur(width=4, blocks=1).double()
    image = images(1, 3, 16, 16)

    def alternating() -> Tensor:
        total = torch.zeros_like(image)
        with torch.no_grad():
            for turns in range(4):
                turned = torch.rot90(image, turns, (-2, -1))
                total += (-1) ** turns * torch.rot90(model(turned) - turned, -turns, (-2, -1))
        return total

    assert alternating().abs().max() > 1e-3
    for module in model.encoder.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.data
            if module.stride == (2, 2):  # the four pixels of a block alike
                weight[:] = weight.mean(dim=(-2, -1), keepdim=True)
                weight[..., 0, :] = weight[..., :, 0] = 0
            else:
                weight[:] = sum(torch.rot90(weight.clone(), turns, (-2, -1)) for turns in range(4)) / 4
    torch.testing.assert_close(alternating(), torch.zeros_like(image))


@pytest.mark.parametrize("blur_first", [False, True])
@pytest.mark.parametrize("shape", [(5, 5), (4, 7)])
def test_ddnet_inverts_a_blur_as_the_formula_says(blur_first, shape):
    model = DDNet(channels=1, width=8, blocks=1, border=9, epsilon=0.02)
    image, kernel = images(1, 1, 15, 22), images(*shape, seed=1)
    found = model.invert(image, kernel / kernel.sum(), blur_first=blur_first)[0, 0].numpy()
    expected = wiener(
        image[0, 0].numpy(), (kernel / kernel.sum()).numpy(), epsilon=0.02, border=9, blur_first=blur_first
    )
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_ddnet_undoes_the_blur_of_its_kernel_and_not_of_the_mirrored_one():
    model = DDNet(channels=1, width=8, blocks=1)
    sharp = F.interpolate(images(1, 1, 12, 12), size=(72, 72), mode="bicubic")
    kernel = torch.zeros(9, 9, dtype=torch.float64)
    kernel[0, 0], kernel[2, 4], kernel[7, 8] = 0.5, 0.3, 0.2
    # Convolution: correlation with the mirrored kernel.
    blurred = F.conv2d(sharp, kernel.flip(0, 1)[None, None])

    def error(restored: Tensor) -> float:
        return (restored - sharp[..., 4:-4, 4:-4])[..., 8:-8, 8:-8].square().mean().item()

    assert error(model.invert(blurred, kernel)) < 0.1 * error(blurred)
    assert error(model.invert(blurred, kernel.flip(0, 1))) > error(blurred)


def test_ddnet_takes_a_box_where_no_kernel_is_given_and_one_kernel_for_each_image():
    torch.manual_seed(0)
    model = DDNet(width=8, blocks=1, kernel_size=3, border=8).double().eval()
    image = images(2, 3, 20, 18)
    kernels = images(2, 4, 5, seed=1)
    kernels /= kernels.sum(dim=(1, 2), keepdim=True)
    with torch.inference_mode():
        torch.testing.assert_close(model(image), model(image, torch.full((3, 3), 1 / 9)), rtol=1e-6, atol=1e-6)
        apart = torch.cat([model(each[None], kernel) for each, kernel in zip(image, kernels, strict=True)])
        torch.testing.assert_close(model(image, kernels), apart)
        assert (apart - model(image)).abs().max() > 1e-3
        torch.testing.assert_close(model.stages(image, kernels), (apart,))


def test_ddnet_says_which_kernels_it_takes():
    model = DDNet(width=8, blocks=1, border=8)
    image = torch.zeros(2, 3, 8, 8)
    for shape in ((3,), (3, 5, 5), (1, 2, 5, 5)):
        with pytest.raises(ValueError, match=r"\(h, w\), or \(N, h, w\) with one for each of the 2 images; got \("):
            model(image, torch.zeros(shape))
    with pytest.raises(ValueError, match=r"larger than the image with its border: \(40, 5\), image \(8, 8\)"):
        model(image, torch.zeros(40, 5))
    with pytest.raises(ValueError, match="filter_size of ddnet must be odd, so that a filter has a centre; got 4"):
        DDNet(filter_size=4)
    with pytest.raises(ValueError, match="epsilon of ddnet must be above 0; got 0"):
        DDNet(epsilon=0.0)


def test_each_pixel_is_filtered_by_its_own_filter():
    image, filters = images(2, 3, 4, 5), images(2, 9, 4, 5, seed=1)
    expected = torch.zeros_like(image)
    for n, c, row, column in np.ndindex(*image.shape):
        for tap in range(9):
            y, x = row + tap // 3 - 1, column + tap % 3 - 1
            if 0 <= y < 4 and 0 <= x < 5:
                expected[n, c, row, column] += image[n, c, y, x] * filters[n, tap, row, column]
    torch.testing.assert_close(filter_each_pixel(image, filters), expected)


@pytest.mark.parametrize("dim", [-2, -1])
def test_each_place_is_filtered_along_one_direction_by_its_own_filter(dim):
    features, filters = images(2, 3, 4, 5), images(2, 3, 3, 4, 5, seed=1)
    expected = torch.zeros_like(features)
    for n, c, row, column in np.ndindex(*features.shape):
        for tap in range(3):
            y = min(max(row + tap - 1, 0), 3) if dim == -2 else row
            x = min(max(column + tap - 1, 0), 4) if dim == -1 else column
            expected[n, c, row, column] += features[n, c, y, x] * filters[n, c, tap, row, column]
    torch.testing.assert_close(filter_each_place(features, filters, dim), expected)


def test_weights_start_as_their_authors_let_them():
    torch.manual_seed(0)
    for build in (SRN, DsDeblur, IFAN):
        model = build(width=8)
        for name, parameter in model.named_parameters():
            starts_at_zero = build is DsDeblur and (".conv2." in name or ".out." in name)
            if parameter.ndim == 1 or starts_at_zero:
                assert not parameter.any(), name
                continue
            taps = parameter[0, 0].numel()
            limit = (6 / (taps * (parameter.shape[0] + parameter.shape[1]))) ** 0.5
            limit *= 1.5 if name.startswith("predict.") else 1
            assert 0.9 * limit < parameter.abs().max() <= limit, name
    gates = SRN(width=8, lstm=True).lstm.gates.weight
    assert gates.abs().max() <= 2e-3
    assert gates.std().item() == pytest.approx(0.88e-3, rel=0.05)  # a normal of 1e-3 cut at two deviations
