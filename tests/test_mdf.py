"""MDF: the folded discriminators equal plain modules, and the released pickles are read as data."""

import pickle
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import veridical
from tests.shared import shared_data
from veridical.cli import app
from veridical.core.errors import BadOption, WeightsMissing
from veridical.degradations import TASKS
from veridical.features import mdf, weights
from veridical.features.learned import learned_notes
from veridical.features.mdf import FORMAT, LAYERS, RELEASED, SHIPPED, MDFNetwork, mdf_notes
from veridical.features.mdf_convert import convert


class Block(nn.Sequential):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.add_module("conv", nn.Conv2d(inputs, width, 3))
        self.add_module("norm", nn.BatchNorm2d(width))
        self.add_module("activation", nn.LeakyReLU(0.2, inplace=True))


class Discriminator(nn.Module):
    """As the paper's section 3 and the keys of the released files describe it, with nothing folded."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = Block(3, width)
        self.body = nn.Sequential()
        for k in (1, 2, 3):
            self.body.add_module(f"block{k}", Block(width, width))
        self.tail = nn.Conv2d(width, 1, 3)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = {"head": self.head(image)}
        maps["body1"] = self.body.block1(maps["head"])
        maps["body2"] = self.body.block2(maps["body1"])
        maps["body3"] = self.body.block3(maps["body2"])
        return maps | {"tail": self.tail(maps["body3"])}


def discriminators(*widths: int) -> nn.ModuleList:
    """Random ones, with BatchNorm statistics that are not those of an untrained network."""
    generator = torch.Generator().manual_seed(3)
    modules = nn.ModuleList(Discriminator(width) for width in widths)
    for key, tensor in modules.state_dict().items():
        if tensor.is_floating_point():
            fan_in = max(1, tensor[0].numel())
            tensor.normal_(generator=generator).mul_((1.5 / fan_in) ** 0.5 if tensor.ndim == 4 else 0.3)
            if key.endswith(("norm.weight", "running_var")):
                tensor.abs_().add_(0.5)
    return modules.eval().requires_grad_(False)


def from_file(path: Path) -> nn.ModuleList:
    state = {key: value for key, value in load_file(path).items() if int(key.partition(".")[0]) < 8}
    modules = nn.ModuleList(Discriminator(len(state[f"{k}.tail.weight"][0])) for k in range(8))
    modules.load_state_dict(state)
    return modules.eval().requires_grad_(False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "three.safetensors"
    save_file(discriminators(8, 8, 12).state_dict(), path)
    return path


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(2, 3, 40, 37, generator=generator)
    return target + 0.1 * torch.randn(target.shape, generator=generator), target


def plain(modules: nn.ModuleList, prediction: torch.Tensor, target: torch.Tensor, layers: tuple[str, ...]):
    """Equation 2, averaged over each map, as in the released code."""
    values = torch.zeros(len(prediction), dtype=prediction.dtype)
    for module in modules:
        ours, theirs = module(prediction), module(target)
        values = values + sum((ours[layer] - theirs[layer]).square().mean((1, 2, 3)) for layer in layers)
    return values.mean()


TAPS = {"released": ("head", "body3", "tail"), "paper": ("head", "body1", "body2", "body3")}


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("range", ["-1..1", "0..1"])
def test_equals_the_unfolded_modules_in_value_and_gradient(file, images, taps, range):
    loss = veridical.loss("mdf", weights=str(file), taps=taps, range=range, discriminators=3)
    modules = discriminators(8, 8, 12)

    def expected(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if range == "-1..1":
            prediction, target = 2 * prediction - 1, 2 * target - 1
        return plain(modules.to(prediction.dtype), prediction, target, TAPS[taps])

    torch.testing.assert_close(loss(*images), expected(*images), rtol=1e-5, atol=0)
    ours, theirs = (image.double().requires_grad_() for image in (images[0], images[0].clone()))
    loss.double()(ours, images[1].double()).backward()
    expected(theirs, images[1].double()).backward()
    # Folded weights are stored in float32.
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5 * theirs.grad.abs().max().item())


@pytest.mark.parametrize("task", ["sisr", "jpeg"])
def test_equals_the_unfolded_modules_with_the_released_weights(task, images):
    path = shared_data(f"weights/mdf_released_{task}.safetensors")
    loss = veridical.loss("mdf", weights=str(path), range="0..1")
    expected = plain(from_file(path), *images, TAPS["released"])
    torch.testing.assert_close(loss(*images), expected, rtol=1e-5, atol=0)


def test_the_released_files_are_found_and_checked_by_their_hash(monkeypatch):
    folder = shared_data("weights")
    monkeypatch.setenv("VERIDICAL_WEIGHTS", str(folder))
    for name in ("mdf-released-sisr", "mdf-released-jpeg"):
        assert weights.verify(name).status == "verified"
    assert len(MDFNetwork("released-sisr").taps) == 3 * 8


def test_what_is_missing_says_where_to_get_it(monkeypatch, tmp_path):
    monkeypatch.delenv("VERIDICAL_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(WeightsMissing, match=r"Ds_JPEG\.pth from the authors' repository .* weights convert-mdf"):
        veridical.loss("mdf(task=released-jpeg)")
    assert "convert-mdf" in weights.verify("mdf-released-sisr").detail
    with pytest.raises(WeightsMissing, match="convert-mdf"):
        mdf_notes("released-sisr")


def test_a_file_declares_its_range_and_an_option_overrules_it(images, tmp_path):
    state = discriminators(8).state_dict()
    values = {}
    for declared in ("-1..1", "0..1", None):
        path = tmp_path / f"{declared}.safetensors"
        save_file(state, path, metadata={"range": declared} if declared else None)
        loss = veridical.loss("mdf", weights=str(path), discriminators=1)
        values[declared] = loss(*images)
        overruled = veridical.loss("mdf", weights=str(path), discriminators=1, range="0..1")
        values[f"{declared} overruled"] = overruled(*images)
    assert torch.equal(values[None], values["-1..1"])
    assert torch.equal(values["-1..1 overruled"], values["0..1"])
    assert not torch.allclose(values["0..1"], values["-1..1"])


def test_a_file_with_folded_weights_gives_the_same(file, images, tmp_path):
    """What `veridical learn mdf` writes: no norm keys, half precision allowed."""
    network = MDFNetwork(weights=file, discriminators=3, range="0..1")
    names = dict(
        zip(LAYERS, ("head.conv", "body.block1.conv", "body.block2.conv", "body.block3.conv", "tail"), strict=True)
    )
    folded = {}
    for key, tensor in network.named_buffers():
        layer, index, part = key.split("_")
        folded[f"{index}.{names[layer]}.{part}"] = tensor.contiguous()
    save_file(folded, tmp_path / "folded.safetensors")
    loss = veridical.loss("mdf", weights=str(tmp_path / "folded.safetensors"), discriminators=3, range="0..1")
    expected = veridical.loss("mdf", weights=str(file), discriminators=3, range="0..1")
    torch.testing.assert_close(loss(*images), expected(*images), rtol=1e-6, atol=0)
    save_file({key: value.half() for key, value in folded.items()}, tmp_path / "half.safetensors")
    half = veridical.loss("mdf", weights=str(tmp_path / "half.safetensors"), discriminators=3, range="0..1")
    assert half(*images).dtype == torch.float32
    torch.testing.assert_close(half(*images), expected(*images), rtol=1e-2, atol=0)


def test_layers_after_the_last_tap_are_not_run(file, images):
    network = MDFNetwork(weights=file, discriminators=3, taps="paper")
    assert network.min_size == 9
    assert MDFNetwork(weights=file, discriminators=3).min_size == 11
    maps = network(images[0], network.draw())
    assert set(maps) == {f"{layer}_{k}" for layer in TAPS["paper"] for k in (0, 1, 2)}
    assert maps["body3_2"].shape == (2, 12, 32, 29)


def test_two_terms_on_the_same_discriminators_share_one_pass(file, images):
    both = veridical.loss(
        f"mdf(weights='{file}', discriminators=3) + mdf(weights='{file}', discriminators=3, taps=paper)"
    )
    assert len(both.networks) == 1
    alone = [veridical.loss("mdf", weights=str(file), discriminators=3, taps=taps) for taps in TAPS]
    torch.testing.assert_close(both(*images), sum(loss(*images) for loss in alone), rtol=1e-5, atol=0)


def test_by_default_it_looks_through_all_discriminators_of_a_file_and_at_most_eight(tmp_path):
    for count, expected in ((2, 2), (9, 8)):
        save_file(discriminators(*(2,) * count).state_dict(), tmp_path / "some.safetensors")
        assert MDFNetwork(weights=tmp_path / "some.safetensors").count == expected
    assert MDFNetwork(weights=tmp_path / "some.safetensors", discriminators=9).count == 9
    with pytest.raises(BadOption, match=r"discriminators of mdf is 10, but .*some\.safetensors holds 9"):
        MDFNetwork(weights=tmp_path / "some.safetensors", discriminators=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("1.tail.bias"), r"'1\.tail\.bias' is missing"),
        (lambda state: state.update({"0.head.conv.weight": torch.zeros(8, 1, 3, 3)}), "expected the shape"),
        (lambda state: state["0.body.block1.norm.running_mean"].fill_(float("nan")), "not finite"),
        (lambda state: state["1.tail.weight"].fill_(float("-inf")), "discriminator 1 has weights that are not finite"),
        (lambda state: state.pop("0.body.block2.norm.weight"), r"'0\.body\.block2\.norm\.weight' is missing"),
        (lambda state: state.update({"0.head.conv.weight": torch.zeros(0, 3, 3, 3)}), "expected the shape"),
        (lambda state: state.update({"0.head.conv.weight": torch.tensor(1.0)}), "expected the shape"),
        (lambda state: state.update({"0.head.conv.bias": torch.tensor(1.0)}), r"has the shape \(\)"),
        (lambda state: [state.pop(key) for key in list(state) if key.startswith("0.")], "holds no discriminators"),
    ],
)
def test_a_wrong_file_is_an_error_that_says_what_is_wrong(change, message, tmp_path):
    state = discriminators(8, 8).state_dict()
    change(state)
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(WeightsMissing, match=message):
        veridical.loss("mdf", weights=str(tmp_path / "wrong.safetensors"), discriminators=2)


@pytest.mark.parametrize(
    "options", [{"taps": "all"}, {"range": "0..255"}, {"discriminators": 0}, {"discriminators": 4}, {"task": "haze"}]
)
def test_an_impossible_option_is_refused(file, options):
    with pytest.raises(BadOption):
        veridical.loss("mdf", weights=str(file), **{"discriminators": 3, **options})


# The files of ours: shipped ones, and what `veridical learn mdf` writes

NOTES = {
    "format": FORMAT,
    "range": "0..1",
    "task": "jpeg",
    "degradation": "jpeg(quality=(7, 10))",
    "seed_images": '[{"name": "astronaut", "sha256": "ab"}]',
    "iterations": "[3000, 20]",
    "scales": "[[12, 16], [24, 32]]",
    "quality": "standard",
    "veridical": "0.1.0",
    "seed": "0",
}


def write_ours(path: Path, *widths: int, **notes: str) -> Path:
    """As `veridical learn mdf` does: folded, in half precision."""
    state = discriminators(*widths or (4, 6)).state_dict()
    folded = {key: value.half() for key, value in state.items() if ".norm." not in key}
    path.parent.mkdir(exist_ok=True)
    save_file(folded, path, metadata=NOTES | notes)
    return path


@pytest.fixture
def shipped(tmp_path, monkeypatch) -> Path:
    """A folder in place of the package's, with the files of two tasks."""
    monkeypatch.setattr(mdf, "SHIPPED", tmp_path / "mdf_weights")
    write_ours(tmp_path / "mdf_weights" / "jpeg.safetensors", 4, 6)
    write_ours(tmp_path / "mdf_weights" / "deblur.safetensors", 5, task="deblur")
    return tmp_path / "mdf_weights"


def test_its_tasks_are_those_of_the_table():
    assert set(mdf.TASKS) == {task.learned for task in TASKS.values()} <= set(TASKS)
    assert not set(mdf.TASKS) & set(RELEASED)


def test_the_task_chooses_the_shipped_file(shipped, images):
    loss = veridical.loss("mdf(task=jpeg)")
    network = loss.distance.features
    assert (network.count, network.range, network.min_size) == (2, "0..1", 11)
    assert all(weight.dtype == torch.float32 for weight in network.draw())
    assert torch.equal(loss(*images), veridical.loss("mdf", weights=str(shipped / "jpeg.safetensors"))(*images))
    assert veridical.loss("mdf").distance.features.count == 1  # deblur
    assert loss.weight_hashes.keys() == {"mdf-jpeg"}
    assert veridical.losses.needs("mdf(task=jpeg) + mdf") == ()
    assert veridical.losses.needs("mdf(task=released-jpeg)") == ("mdf-released-jpeg",)
    assert veridical.losses.needs("mdf(task=released-jpeg, weights=a.safetensors)") == ()


@pytest.mark.usefixtures("shipped")
def test_a_task_whose_file_is_not_there_says_how_to_make_one():
    with pytest.raises(WeightsMissing, match=r"holds no discriminators of mdf for 'denoise': .*veridical learn mdf"):
        veridical.loss("mdf(task=denoise)")


@pytest.mark.parametrize(("task", "meant"), [("sisr", "released-sisr"), ("denose", "denoise"), ("jpg", "jpeg")])
def test_a_wrong_task_gives_the_nearest(task, meant):
    for wrong in (veridical.loss, veridical.losses.needs):
        with pytest.raises(BadOption, match=f"Did you mean '{meant}'"):
            wrong(f"mdf(task={task})")


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({"format": "veridical mdf 2"}, r"format 'veridical mdf 2', and this .* reads 'veridical mdf 1'\. Upgrade"),
        ({"format": "veridical adapter 1"}, r"format 'veridical adapter 1'\. Did you mean tfmlc\(adapter="),
        ({"format": "veridical something 1"}, "holds no discriminators of mdf"),
        ({"range": "0..255"}, r"declares the range '0\.\.255'; expected one of -1\.\.1, 0\.\.1"),
    ],
)
def test_a_file_of_another_format_or_range_is_refused(notes, message, tmp_path):
    path = write_ours(tmp_path / "other.safetensors", **notes)
    with pytest.raises(WeightsMissing, match=message):
        veridical.loss("mdf", weights=str(path))


def test_a_file_of_ours_must_declare_its_range_and_a_foreign_one_need_not(tmp_path):
    state = discriminators(4).state_dict()
    save_file(state, tmp_path / "ours.safetensors", metadata={"format": FORMAT})
    with pytest.raises(WeightsMissing, match="declares no range"):
        MDFNetwork(weights=tmp_path / "ours.safetensors")
    save_file(state, tmp_path / "theirs.safetensors", metadata={"format": "pt"})  # what other programs write
    assert MDFNetwork(weights=tmp_path / "theirs.safetensors").range == "-1..1"


def test_a_file_of_ours_that_was_cut_off_is_an_error(tmp_path):
    whole = write_ours(tmp_path / "whole.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for size in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        for reading in (lambda: veridical.loss("mdf", weights=str(cut)), lambda: mdf_notes(cut)):
            with pytest.raises(WeightsMissing, match="not a whole safetensors file"):
                reading()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("plain", [True, False])
def test_a_pickle_under_any_name_is_refused_and_nothing_runs(tmp_path, suffix, plain):
    mark, path = tmp_path / "ran", tmp_path / f"mdf{suffix}"
    attack = {"0.head.conv.weight": Attack(__import__("os").system, f"touch {mark}")}
    if plain:
        path.write_bytes(pickle.dumps(attack, protocol=2))
    else:
        torch.save(attack, path)
    with pytest.raises(WeightsMissing, match=r"mdf\.\w+ is not a whole"):
        veridical.loss("mdf", weights=str(path))
    assert not mark.exists()
    path = path.rename(tmp_path / "mdf.bin")
    pickle.loads(path.read_bytes()) if plain else torch.load(path, weights_only=False)
    assert mark.exists()  # the attack was a real one


def test_a_file_says_what_it_was_made_from(shipped):
    for source in ("jpeg", shipped / "jpeg.safetensors"):
        assert mdf_notes(source) == NOTES | {
            "seed_images": [{"name": "astronaut", "sha256": "ab"}],
            "iterations": [3000, 20],
            "scales": [[12, 16], [24, 32]],
            "seed": 0,
        }
    write_ours(shipped / "jpeg.safetensors", scales="[" * 100_000)
    assert mdf_notes("jpeg")["scales"] == "[" * 100_000  # unreadable, and no reason to fall over


def test_what_is_shipped_is_listed_and_verified(shipped):
    listed = {row.name: row.status for row in mdf.shipped()}
    assert listed == {f"mdf-{task}": "shipped" if task in ("jpeg", "deblur") else "missing" for task in mdf.TASKS}
    sha256 = MDFNetwork("jpeg").sha256
    assert (mdf.verify("jpeg").status, mdf.verify("jpeg").detail) == ("shipped", f"sha256 of the contents {sha256}")
    (shipped / "jpeg.safetensors").write_bytes(b"nothing")
    assert mdf.verify("jpeg").status == "broken"
    assert mdf.verify("defocus").status == "missing"
    runner = CliRunner(env={"COLUMNS": "200"})
    assert "mdf-deblur" in runner.invoke(app, ["weights", "list"]).output
    assert runner.invoke(app, ["weights", "verify", "mdf-deblur"]).exit_code == 0
    result = runner.invoke(app, ["weights", "verify", "mdf-jpeg"])
    assert result.exit_code == 2
    assert "broken" in result.output


def test_show_says_of_a_learned_file_what_it_is(shipped, adapter_file, tmp_path, monkeypatch):
    monkeypatch.delenv("VERIDICAL_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runner = CliRunner(env={"COLUMNS": "200"})
    for source in ("jpeg", str(shipped / "jpeg.safetensors")):
        said = runner.invoke(app, ["learn", "show", source]).output
        for expected in ("jpeg(quality=(7, 10))", "name astronaut, sha256 ab", "12x16, 24x32", "3000, 20", "4, 6"):
            assert expected in said
        assert MDFNetwork("jpeg").sha256 in said
    assert list(learned_notes("jpeg"))[:4] == ["file", "format", "task", "degradation"]
    said = runner.invoke(app, ["learn", "show", str(adapter_file("vgg16"))]).output
    for expected in ("veridical adapter 1", "network vgg16", "relu1_2", "token-wise"):
        assert expected in said
    save_file(discriminators(3).state_dict(), tmp_path / "theirs.safetensors")
    assert "the authors' own" in runner.invoke(app, ["learn", "show", str(tmp_path / "theirs.safetensors")]).output
    for wrong, message in (
        (write_ours(tmp_path / "new.safetensors", format="veridical mdf 2"), "Upgrade"),
        (write_ours(tmp_path / "new2.safetensors", format="veridical adapter 2"), "no adapter that this version reads"),
        ("released-jpeg", "convert-mdf"),
        ("jpg", "Did you mean 'jpeg'?"),
        (tmp_path / "absent", "neither a file nor a task"),
    ):
        result = runner.invoke(app, ["learn", "show", str(wrong)])
        assert result.exit_code == 2
        assert message in result.output


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*")), ids=lambda path: path.name)
def test_every_file_that_ships_is_that_of_its_task(path):
    assert path.stem in mdf.TASKS
    assert path.suffix == ".safetensors"
    notes = mdf_notes(path.stem)
    assert notes["format"] == FORMAT
    assert notes["task"] == path.stem
    assert len(notes["scales"]) == MDFNetwork(path.stem).count == 8
    assert path.stat().st_size < 1.5e6
    assert notes["degradation"] == "none" or veridical.degradation(notes["degradation"])


# Converting


@pytest.fixture
def foreign(monkeypatch):
    """The classes under the names that the released pickles use, as long as the test writes its file."""
    package, module = types.ModuleType("SinGAN"), types.ModuleType("SinGAN.models")
    for own, name in ((Block, "ConvBlock"), (Discriminator, "WDiscriminator")):
        theirs = type(name, (own,), {"__module__": "SinGAN.models"})
        setattr(module, name, theirs)
    monkeypatch.setitem(sys.modules, "SinGAN", package)
    monkeypatch.setitem(sys.modules, "SinGAN.models", module)

    def write(path: Path, modules: nn.ModuleList, *, zipped: bool) -> Path:
        for own in modules:
            own.__class__ = module.WDiscriminator
            own.is_cuda = False
            for block in (own.head, *own.body):
                block.__class__ = module.ConvBlock
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the legacy format cannot find the source of such a class
            torch.save(list(modules), path, _use_new_zipfile_serialization=zipped)
        for name in ("SinGAN", "SinGAN.models"):
            monkeypatch.delitem(sys.modules, name)
        return path

    return write


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_released_pickle_becomes_the_state_dict_without_its_classes(foreign, tmp_path, zipped):
    modules = discriminators(8, 8, 12)
    expected = {key: value.clone() for key, value in modules.state_dict().items()}
    path = foreign(tmp_path / "Ds_TASK.pth", modules, zipped=zipped)
    with pytest.raises((ImportError, pickle.UnpicklingError)):
        torch.load(path, weights_only=False)  # it does need them otherwise
    out, what = convert(path)
    assert out == tmp_path / "Ds_TASK.safetensors"
    assert "3 discriminators" in what
    found = load_file(out)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert MDFNetwork(weights=out, discriminators=3).range == "-1..1"
    assert not any(name.startswith("SinGAN") for name in sys.modules)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_the_released_discriminators_are_known_by_their_contents(foreign, tmp_path, monkeypatch, zipped):
    modules = from_file(shared_data("weights/mdf_released_sisr.safetensors"))
    monkeypatch.delenv("VERIDICAL_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = foreign(tmp_path / "Ds_Denoising.pth", modules, zipped=zipped)
    out, what = convert(path)
    assert "the file of mdf-released-sisr" in what
    assert weights.available("mdf-released-sisr") == out
    assert weights.verify("mdf-released-sisr").status == "verified"
    assert len(MDFNetwork("released-sisr").taps) == 24


class Attack:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["list", "attribute"])
def test_a_pickle_that_calls_something_is_refused_and_nothing_runs(tmp_path, zipped, where):
    mark = tmp_path / "ran"
    attack = Attack(__import__("os").system, f"touch {mark}")
    contents = [attack] if where == "list" else [nn.Linear(1, 1)]
    if where == "attribute":
        contents[0].weight.evil = contents[0].evil = attack
    torch.save(contents, tmp_path / "Ds.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsMissing, match="which is not data"):
        convert(tmp_path / "Ds.pth")
    assert not mark.exists()
    torch.load(tmp_path / "Ds.pth", weights_only=False)
    assert mark.exists()  # the attack was a real one


@pytest.mark.parametrize(
    "contents", [{"a": torch.zeros(1)}, [torch.zeros(1)], [], nn.Linear(1, 1), [nn.Linear(1, 1)]], ids=repr
)
def test_a_pickle_of_something_else_is_an_error(tmp_path, contents):
    torch.save(contents, tmp_path / "Ds.pth")
    with pytest.raises(WeightsMissing, match=r"not a list of modules|holds no discriminators"):
        convert(tmp_path / "Ds.pth")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_that_was_cut_off_is_an_error_and_leaves_no_file(foreign, tmp_path, zipped):
    path = foreign(tmp_path / "Ds.pth", discriminators(8), zipped=zipped)
    whole = path.read_bytes()
    for size in (0, 1, 20, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:size])
        with pytest.raises(WeightsMissing, match="was not converted"):
            convert(path)
    assert [p.name for p in tmp_path.iterdir()] == ["Ds.pth"]


def test_a_file_that_is_no_pickle_is_an_error(tmp_path):
    (tmp_path / "Ds.pth").write_text("hello")
    with pytest.raises(WeightsMissing, match="was not converted"):
        convert(tmp_path / "Ds.pth")
    with pytest.raises(WeightsMissing, match="cannot be read"):
        convert(tmp_path / "absent.pth")


def test_the_command_converts(foreign, tmp_path):
    path = foreign(tmp_path / "Ds.pth", discriminators(8, 8), zipped=True)
    options = ["--out", str(tmp_path / "mine.safetensors"), "--range", "0..1"]
    result = CliRunner().invoke(app, ["weights", "convert-mdf", str(path), *options])
    assert result.exit_code == 0
    assert "Ds.pth is 2 discriminators" in result.output
    assert MDFNetwork(weights=tmp_path / "mine.safetensors", discriminators=2).range == "0..1"
