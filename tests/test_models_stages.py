"""MPRNet, HINet and Restormer: their sizes, their authors' names of things, and what a wrong port would get wrong."""

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from veridical.models import MODELS, HINet, MPRNet, Restormer

Shapes = dict[str, tuple[int, ...]]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=seeded(seed), dtype=torch.float64)


def stirred(model: torch.nn.Module) -> torch.nn.Module:
    """In float64, with random parameters, of which none is 0 or 1 throughout."""
    generator = seeded(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.5 + 0.2 * noise if parameter.ndim < 2 else noise * parameter[0].numel() ** -0.5
    return model.double().eval()


def counted(name: str, **options: object) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in MODELS[name](**options).parameters())


# ---- sizes ----


@pytest.mark.parametrize(
    ("name", "options", "parameters", "published"),
    [
        ("mprnet", {}, 20_127_073, "20.1 M"),  # deblurring, table 7 of the paper
        ("mprnet", {"width": 80}, 15_741_025, "15.7 M"),  # denoising
        ("mprnet", {"width": 40, "unet_step": 20, "full_step": 16}, 3_637_249, "3.64 M"),  # deraining
        ("hinet", {}, 88_668_806, "88.67 M"),
        ("hinet", {"hin_levels": 5}, 88_669_702, "88.67 M"),
        ("hinet", {"width": 32, "hin_levels": 5}, 22_176_518, "22.18 M"),  # HINet 0.5x
        ("restormer", {}, 26_126_644, "26.13 M"),
        ("restormer", {"bias_free": True}, 26_111_668, "26.11 M"),
    ],
)
def test_parameter_counts_are_the_published_ones(name, options, parameters, published):
    found = counted(name, **options)
    digits = len(published.partition(".")[2]) - len(" M")
    assert found == parameters
    assert f"{found / 1e6:.{digits}f} M" == published


# ---- the authors' names, written down from their code ----


def mprnet_names(width: int, unet: int, full: int, cabs: int) -> Shapes:
    """Of swz30/MPRNet, with its slope once per use."""
    one, two, three, wide = width, width + unet, width + 2 * unet, width + full

    def cab(key: str, n: int) -> Shapes:
        return {
            f"{key}.CA.conv_du.0.weight": (n // 4, n, 1, 1),
            f"{key}.CA.conv_du.2.weight": (n, n // 4, 1, 1),
            f"{key}.body.0.weight": (n, n, 3, 3),
            f"{key}.body.1.weight": (1,),
            f"{key}.body.2.weight": (n, n, 3, 3),
        }

    found: Shapes = {}
    for stage in (1, 2, 3):
        found[f"shallow_feat{stage}.0.weight"] = (one, 3, 3, 3)
        found |= cab(f"shallow_feat{stage}.1", one)
    for stage in (1, 2):
        encoder, decoder = f"stage{stage}_encoder", f"stage{stage}_decoder"
        for level, n in ((1, one), (2, two), (3, three)):
            for block in (0, 1):
                found |= cab(f"{encoder}.encoder_level{level}.{block}", n)
                found |= cab(f"{decoder}.decoder_level{level}.{block}", n)
            if stage == 2:
                found[f"{encoder}.csff_enc{level}.weight"] = (n, n, 1, 1)
                found[f"{encoder}.csff_dec{level}.weight"] = (n, n, 1, 1)
        found[f"{encoder}.down12.down.1.weight"] = (two, one, 1, 1)
        found[f"{encoder}.down23.down.1.weight"] = (three, two, 1, 1)
        found |= cab(f"{decoder}.skip_attn1", one) | cab(f"{decoder}.skip_attn2", two)
        found[f"{decoder}.up21.up.1.weight"] = (one, two, 1, 1)
        found[f"{decoder}.up32.up.1.weight"] = (two, three, 1, 1)
    for group in (1, 2, 3):
        for block in range(cabs):
            found |= cab(f"stage3_orsnet.orb{group}.body.{block}", wide)
        found[f"stage3_orsnet.orb{group}.body.{cabs}.weight"] = (wide, wide, 3, 3)
        for side in ("enc", "dec"):
            found[f"stage3_orsnet.conv_{side}{group}.weight"] = (wide, one, 1, 1)
    for side in ("enc", "dec"):
        found[f"stage3_orsnet.up_{side}1.up.1.weight"] = (one, two, 1, 1)
        found[f"stage3_orsnet.up_{side}2.0.up.1.weight"] = (two, three, 1, 1)
        found[f"stage3_orsnet.up_{side}2.1.up.1.weight"] = (one, two, 1, 1)
    for sam in ("sam12", "sam23"):
        found |= {
            f"{sam}.conv1.weight": (one, one, 1, 1),
            f"{sam}.conv2.weight": (3, one, 1, 1),
            f"{sam}.conv3.weight": (one, 3, 1, 1),
        }
    return found | {
        "concat12.weight": (one, 2 * one, 3, 3),
        "concat23.weight": (wide, 2 * one, 3, 3),
        "tail.weight": (3, wide, 3, 3),
    }


def hinet_names(width: int, depth: int, hin_levels: int) -> Shapes:
    """Of megvii-model/HINet."""
    found: Shapes = {}

    def conv(key: str, *shape: int, bias: bool = True) -> None:
        found[f"{key}.weight"] = shape
        if bias:
            found[f"{key}.bias"] = (shape[0],)

    def block(key: str, i: int, o: int) -> None:
        conv(f"{key}.identity", o, i, 1, 1)
        conv(f"{key}.conv_1", o, i, 3, 3)
        conv(f"{key}.conv_2", o, o, 3, 3)

    widths = [width * 2**level for level in range(depth)]
    for stage in (1, 2):
        conv(f"conv_0{stage}", width, 3, 3, 3)
        for level, n in enumerate(widths):
            key = f"down_path_{stage}.{level}"
            block(key, widths[max(level - 1, 0)], n)
            if level >= depth - hin_levels:
                found |= {f"{key}.norm.weight": (n // 2,), f"{key}.norm.bias": (n // 2,)}
            if level < depth - 1:
                conv(f"{key}.downsample", n, n, 4, 4, bias=False)
                if stage == 2:
                    conv(f"{key}.csff_enc", n, n, 3, 3)
                    conv(f"{key}.csff_dec", n, n, 3, 3)
        for place, n in enumerate(reversed(widths[:-1])):
            found |= {
                f"up_path_{stage}.{place}.up.weight": (2 * n, n, 2, 2),
                f"up_path_{stage}.{place}.up.bias": (n,),
            }
            block(f"up_path_{stage}.{place}.conv_block", 2 * n, n)
            conv(f"skip_conv_{stage}.{place}", n, n, 3, 3)
    conv("sam12.conv1", width, width, 3, 3)
    conv("sam12.conv2", 3, width, 3, 3)
    conv("sam12.conv3", width, 3, 3, 3)
    conv("cat12", width, 2 * width, 1, 1)
    conv("last", 3, width, 3, 3)
    return found


def restormer_names(dim: int, blocks: tuple[int, ...], refinement: int, *, bias_free: bool) -> Shapes:
    """Of swz30/Restormer."""
    found: Shapes = {"patch_embed.proj.weight": (dim, 3, 3, 3), "output.weight": (3, 2 * dim, 3, 3)}
    levels = (
        ("encoder_level1", dim, blocks[0], 1),
        ("encoder_level2", 2 * dim, blocks[1], 2),
        ("encoder_level3", 4 * dim, blocks[2], 4),
        ("latent", 8 * dim, blocks[3], 8),
        ("decoder_level3", 4 * dim, blocks[2], 4),
        ("decoder_level2", 2 * dim, blocks[1], 2),
        ("decoder_level1", 2 * dim, blocks[0], 1),
        ("refinement", 2 * dim, refinement, 1),
    )
    for level, n, count, heads in levels:
        hidden = int(2.66 * n)
        for place in range(count):
            key = f"{level}.{place}"
            for norm in ("norm1", "norm2"):
                found[f"{key}.{norm}.body.weight"] = (n,)
                found |= {} if bias_free else {f"{key}.{norm}.body.bias": (n,)}
            found |= {
                f"{key}.attn.temperature": (heads, 1, 1),
                f"{key}.attn.qkv.weight": (3 * n, n, 1, 1),
                f"{key}.attn.qkv_dwconv.weight": (3 * n, 1, 3, 3),
                f"{key}.attn.project_out.weight": (n, n, 1, 1),
                f"{key}.ffn.project_in.weight": (2 * hidden, n, 1, 1),
                f"{key}.ffn.dwconv.weight": (2 * hidden, 1, 3, 3),
                f"{key}.ffn.project_out.weight": (n, hidden, 1, 1),
            }
    for down, n in (("down1_2", dim), ("down2_3", 2 * dim), ("down3_4", 4 * dim)):
        found[f"{down}.body.0.weight"] = (n // 2, n, 3, 3)
    for up, n in (("up4_3", 8 * dim), ("up3_2", 4 * dim), ("up2_1", 2 * dim)):
        found[f"{up}.body.0.weight"] = (2 * n, n, 3, 3)
    return found | {
        "reduce_chan_level3.weight": (4 * dim, 8 * dim, 1, 1),
        "reduce_chan_level2.weight": (2 * dim, 4 * dim, 1, 1),
    }


PUBLISHED = [
    ("mprnet", {}, mprnet_names(96, 48, 32, 8)),
    ("mprnet", {"width": 12, "unet_step": 4, "full_step": 8, "cabs": 1}, mprnet_names(12, 4, 8, 1)),
    ("mprnet", {"width": 12, "unet_step": 4, "full_step": 8, "cabs": 3}, mprnet_names(12, 4, 8, 3)),
    ("hinet", {}, hinet_names(64, 5, 2)),
    ("hinet", {"width": 4, "hin_levels": 5}, hinet_names(4, 5, 5)),
    ("restormer", {}, restormer_names(48, (4, 6, 6, 8), 4, bias_free=False)),
    ("restormer", {"bias_free": True}, restormer_names(48, (4, 6, 6, 8), 4, bias_free=True)),
]


@pytest.mark.parametrize(("name", "options", "names"), PUBLISHED)
def test_the_authors_names_are_all_of_ours(name, options, names):
    with torch.device("meta"):
        model = MODELS[name](**options)
        published = {f"module.{key}": torch.empty(shape) for key, shape in names.items()}
    ours = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in model.convert(published).items()} == ours


def test_the_authors_weights_land_where_they_belong():
    model = MPRNet(width=8, unet_step=4, full_step=4, cabs=2)
    published = {
        key: torch.full(shape, 0.3) if shape == (1,) else torch.rand(shape, generator=seeded(place))
        for place, (key, shape) in enumerate(mprnet_names(8, 4, 4, 2).items())
    }
    model.load_state_dict(model.convert(published))
    group = model.stage3_orsnet.orb2.body
    assert model.slope.item() == pytest.approx(0.3)
    assert torch.equal(group[1].conv1.weight, published["stage3_orsnet.orb2.body.1.body.0.weight"])
    assert torch.equal(group[1].conv2.weight, published["stage3_orsnet.orb2.body.1.body.2.weight"])
    assert torch.equal(group[2].weight, published["stage3_orsnet.orb2.body.2.weight"])


@pytest.mark.parametrize(("name", "options"), [(name, options) for name, options, _ in PUBLISHED if "width" in options])
def test_our_own_names_stay_as_they_are(name, options):
    """So that a state_dict of ours can be adopted too; and no two entries share memory, which safetensors refuses."""
    state = MODELS[name](**options).state_dict()
    assert list(MODELS[name].convert(state)) == list(state)
    save(state)


# ---- stages ----

SMALL: dict[str, dict[str, object]] = {
    "mprnet": {"width": 8, "unet_step": 4, "full_step": 4, "cabs": 1},
    "hinet": {"width": 4, "depth": 3},
    "restormer": {"width": 8, "blocks": (1, 1, 1, 1), "refinement": 1},
}


@pytest.mark.parametrize(("name", "count"), [("mprnet", 3), ("hinet", 2), ("restormer", 1)])
def test_untrained_every_stage_is_the_input(name, count):
    image = torch.rand(2, 3, 17, 30, generator=seeded(0))
    stages = MODELS[name](**SMALL[name]).stages(image)
    assert len(stages) == count
    assert all(torch.equal(stage, image) for stage in stages)


@pytest.mark.parametrize(
    ("name", "makers"), [("mprnet", ["sam12.conv2", "sam23.conv2", "tail"]), ("hinet", ["sam12.conv2", "last"])]
)
def test_stages_come_from_the_first_to_the_last(name, makers):
    """The convolution that makes the image of one stage changes that one and at most later ones."""
    image = images(1, 3, 16, 24)
    model = stirred(MODELS[name](**SMALL[name]))
    before = model.stages(image)
    for place, maker in enumerate(makers):
        changed = copy.deepcopy(model)
        changed.get_submodule(maker).weight.data *= 1.5
        same = [torch.equal(a, b) for a, b in zip(before, changed.stages(image), strict=True)]
        assert same[: place + 1] == [True] * place + [False]


# ---- what a wrong port would get wrong ----


def test_mprnet_stage_1_encodes_quarters_and_decodes_halves():
    model = stirred(MPRNet(**SMALL["mprnet"]))
    encoded: list[list[Tensor]] = []
    model.stage1_encoder.register_forward_hook(lambda module, given, found: encoded.append(found))
    image = images(1, 3, 32, 48).requires_grad_()
    stages = model.stages(image)

    def seen(value: Tensor) -> list[bool]:
        """Whether it looks at the quarters: upper left, upper right, lower left, lower right."""
        (gradient,) = torch.autograd.grad(value.sin().sum(), image, retain_graph=True)
        return [bool(part.any()) for half in gradient.chunk(2, dim=2) for part in half.chunk(2, dim=3)]

    for level, features in enumerate(encoded[0]):
        assert features.shape == (4, 8 + 4 * level, 16 >> level, 24 >> level)
        each = [seen(quarter) for quarter in features]
        assert sorted(each) == sorted([place == own for place in range(4)] for own in range(4))
    first, second, third = stages
    assert seen(first[..., :16, :]) == [True, True, False, False]
    assert seen(first[..., 16:, :]) == [False, False, True, True]
    assert seen(second[..., :16, :20]) == seen(third[..., :16, :20]) == [True] * 4


def test_mprnet_resizes_as_bilinear_interpolation_before_its_convolutions():
    model = stirred(MPRNet(**SMALL["mprnet"]))
    x = images(2, 12, 6, 10)
    up, down = model.stage1_decoder.up21, model.stage1_encoder.down23
    larger = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    smaller = F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
    torch.testing.assert_close(up(x), F.conv2d(larger, up.up["1"].weight))
    torch.testing.assert_close(down(x), F.conv2d(smaller, down.down[1].weight))


def test_mprnet_channel_attention_is_of_the_convolved_features():
    block = stirred(MPRNet(**SMALL["mprnet"])).shallow_feat1[1]
    x, slope = images(2, 8, 6, 5) - 0.5, torch.tensor([0.1], dtype=torch.float64)
    y = F.conv2d(x, block.conv1.weight, padding=1)
    y = F.conv2d(y.clamp(min=0) + 0.1 * y.clamp(max=0), block.conv2.weight, padding=1)
    squeeze, widen = block.CA["conv_du"][0].weight[..., 0, 0], block.CA["conv_du"][2].weight[..., 0, 0]
    gate = torch.sigmoid((y.mean((2, 3)) @ squeeze.T).clamp(min=0) @ widen.T)
    torch.testing.assert_close(block(x, slope), x + y * gate[..., None, None])


def test_hinet_normalises_the_first_half_of_the_channels():
    model = stirred(HINet(width=8, depth=3, hin_levels=2, slope=0.2))
    assert [block.norm is not None for block in model.down_path_1] == [False, True, True]
    block = model.down_path_1[1]
    x = images(2, 8, 12, 10)
    y = F.conv2d(x, block.conv_1.weight, block.conv_1.bias, padding=1)
    first = F.instance_norm(y[:, :8], weight=block.norm.weight, bias=block.norm.bias, eps=1e-5)
    by_hand = (y[:, :8] - y[:, :8].mean((2, 3), keepdim=True)) / (
        y[:, :8].var((2, 3), keepdim=True, unbiased=False) + 1e-5
    ).sqrt() * block.norm.weight.view(-1, 1, 1) + block.norm.bias.view(-1, 1, 1)
    torch.testing.assert_close(first, by_hand)
    y = F.leaky_relu(torch.cat((first, y[:, 8:]), dim=1), 0.2)
    y = F.leaky_relu(F.conv2d(y, block.conv_2.weight, block.conv_2.bias, padding=1), 0.2)
    full = y + F.conv2d(x, block.identity.weight, block.identity.bias)
    halved, features = block(x)
    torch.testing.assert_close(features, full)
    torch.testing.assert_close(halved, F.conv2d(full, block.downsample.weight, stride=2, padding=1))


def test_hinet_second_stage_sees_the_features_of_the_first_level_by_level():
    model = stirred(HINet(width=4, depth=3))
    given: list[tuple[Tensor, ...]] = []
    for block in model.down_path_2:
        block.register_forward_pre_hook(lambda module, inputs: given.append(inputs))
    encoded: list[Tensor] = []
    for block in model.down_path_1:
        block.register_forward_hook(lambda module, inputs, found: encoded.append(found[1]))
    decoded: list[Tensor] = []
    for block in model.up_path_1:
        block.register_forward_hook(lambda module, inputs, found: decoded.insert(0, found))
    model(images(1, 3, 16, 16))
    for level in (0, 1):
        assert torch.equal(given[level][1], encoded[level])
        assert torch.equal(given[level][2], decoded[level])


def test_restormer_attends_between_channels():
    model = stirred(Restormer(width=8, blocks=(1, 1, 1, 1), heads=(2, 2, 4, 8)))
    layer = model.encoder_level1[0].attn
    x = images(2, 8, 5, 7) - 0.5
    joint = F.conv2d(F.conv2d(x, layer.qkv.weight), layer.qkv_dwconv.weight, padding=1, groups=24).flatten(
        2
    )  # (2, 24, 35): 8 channels of queries, of keys, of values
    heads = []
    for head in range(2):
        query, key, value = (joint[:, 8 * part + 4 * head : 8 * part + 4 * head + 4] for part in range(3))
        dots = torch.einsum("ncp,ndp->ncd", query, key)
        lengths = torch.einsum("nc,nd->ncd", query.square().sum(-1).sqrt(), key.square().sum(-1).sqrt())
        scores = (dots / lengths * layer.temperature[head]).exp()
        heads.append(torch.einsum("ncd,ndp->ncp", scores / scores.sum(-1, keepdim=True), value))
    expected = F.conv2d(torch.cat(heads, dim=1).view(2, 8, 5, 7), layer.project_out.weight)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("bias_free", [False, True])
def test_restormer_normalises_over_the_channels_of_each_pixel(bias_free):
    model = stirred(Restormer(**SMALL["restormer"], bias_free=bias_free))
    norm = model.encoder_level1[0].norm1["body"]
    x = images(2, 8, 4, 3) * 3 + 1
    mean = 0.0 if bias_free else x.mean(1, keepdim=True)
    expected = (x - mean) / (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt() * norm.weight.view(-1, 1, 1)
    if not bias_free:
        expected = expected + norm.bias.view(-1, 1, 1)
    torch.testing.assert_close(norm(x), expected)


def test_restormer_gates_with_the_first_half():
    layer = stirred(Restormer(**SMALL["restormer"])).encoder_level1[0].ffn
    x = images(1, 8, 4, 3) - 0.5
    y = F.conv2d(F.conv2d(x, layer.project_in.weight), layer.dwconv.weight, padding=1, groups=42)
    assert y.shape[1] == 42  # 2 * int(8 * 2.66)
    gate = 0.5 * y[:, :21] * (1 + torch.erf(y[:, :21] / 2**0.5))
    torch.testing.assert_close(layer(x), F.conv2d(gate * y[:, 21:], layer.project_out.weight))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hinet", {"width": 5}, "width of hinet must be even"),
        ("hinet", {"depth": 3, "hin_levels": 4}, "hin_levels of hinet must be at most its depth, 3; got 4"),
        ("mprnet", {"width": 3}, "width of mprnet must be at least its reduction, 4; got 3"),
        ("restormer", {"blocks": (1, 1, 1)}, r"blocks of restormer must be four whole numbers .* got \(1, 1, 1\)"),
        ("restormer", {"heads": 2}, "heads of restormer must be four whole numbers .* got 2"),
        ("restormer", {"width": 12, "heads": (1, 5, 4, 8)}, r"\[12, 24, 48, 96\], a multiple of its heads"),
        ("restormer", {"expansion": 0.01}, "expansion of restormer leaves no channels of 48; got 0.01"),
    ],
)
def test_options_that_do_not_go_together_are_errors_that_say_so(name, options, message):
    with pytest.raises(ValueError, match=message):
        MODELS[name](**options)
