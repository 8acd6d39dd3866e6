"""Networks as their authors published them: read without running them, and adopted for our commands."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.shared import shared_data
from tests.test_cli import veridical
from tests.test_models import SMALL
from tests.test_models_stages import mprnet_names
from veridical.comparison import published
from veridical.comparison.published import adopt, read_published
from veridical.comparison.restore import load_model
from veridical.comparison.start import read_start
from veridical.core.errors import DataError, UnknownName, VeridicalError
from veridical.core.files import read_image
from veridical.models import MODELS, DnCNN, HINet

MPRNET = "mprnet(width=8, unet_step=4, full_step=4, cabs=1)"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {"a.weight": torch.rand(2, 3, generator=seeded(0)), "a.bias": torch.rand(2, generator=seeded(1))}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


# ---- reading ----


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: tensors,
        lambda tensors: {"state_dict": tensors, "epoch": 7},
        lambda tensors: {"params": tensors},
        lambda tensors: {"params": {"other": torch.zeros(1)}, "params_ema": tensors},
        lambda tensors: {"model": {"state_dict": tensors}, "optimizer": {"lr": 0.1}},
        lambda tensors: {"state_dict": {f"module.{key}": value for key, value in tensors.items()}},
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_reads_what_torch_save_has_written(tmp_path, tensors, wrap, legacy):
    path = tmp_path / "net.pth"
    torch.save(wrap(tensors), path, _use_new_zipfile_serialization=not legacy)
    assert same(read_published(path), tensors)


def test_reads_safetensors_and_arrays(tmp_path, tensors):
    save_file(tensors, tmp_path / "net.safetensors")
    np.savez(tmp_path / "net.npz", **{key: value.numpy() for key, value in tensors.items()})
    assert same(read_published(tmp_path / "net.safetensors"), tensors)
    assert same(read_published(tmp_path / "net.npz"), tensors)


def test_tensors_that_share_memory_come_apart(tmp_path):
    whole = torch.arange(4.0)
    torch.save({"a": whole[:2], "b": whole[1:], "c": whole}, tmp_path / "net.pt")
    found = read_published(tmp_path / "net.pt")
    found["a"].zero_()
    assert same(found, {"a": torch.zeros(2), "b": torch.tensor([1.0, 2.0, 3.0]), "c": whole})


class _Trap:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("suffix", ["pth", "pt", "ckpt"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, tensors, suffix):
    proof, path = tmp_path / "proof", tmp_path / f"net.{suffix}"
    torch.save({"state_dict": tensors, "extra": _Trap(proof)}, path)
    with pytest.raises(DataError, match=r"nothing of it was run: it asks for \w+\.mkdir, which is code\. .*state_dict"):
        read_published(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # the trap works


def test_a_pickled_module_is_refused_by_name(tmp_path):
    torch.save(nn.Conv2d(1, 1, 3), tmp_path / "net.pt")
    with pytest.raises(DataError, match=r"it asks for torch\.nn\.modules\.conv\.Conv2d, which is code"):
        read_published(tmp_path / "net.pt")


def test_arrays_that_are_pickles_are_refused(tmp_path):
    np.savez(tmp_path / "net.npz", a=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match=r"net\.npz cannot be read as arrays of NumPy: .*allow_pickle"):
        read_published(tmp_path / "net.npz")


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors", "net.npz"])
def test_a_broken_file_is_an_error_that_names_it(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(DataError, match=rf"{name} cannot be read as"):
        read_published(tmp_path / name)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*net\.pth"):
        read_published(tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([torch.zeros(1)], "holds a list; expected tensors by name"),
        ({"epoch": 3, "weights": {"a": torch.zeros(1)}}, "its keys are 'epoch', 'weights'. They may be"),
        ({"state_dict": {"a": torch.zeros(1), "note": "hello"}}, "its keys are 'a', 'note'"),
        ({"params": {}}, "its keys are none"),
    ],
)
def test_what_is_no_state_dict_is_an_error_that_says_what_it_is(tmp_path, held, message):
    torch.save(held, tmp_path / "net.pth")
    with pytest.raises(DataError, match=message):
        read_published(tmp_path / "net.pth")


# ---- adopting ----


@pytest.fixture(scope="module")
def mprnet_file(tmp_path_factory) -> Path:
    """A small MPRNet as its authors' code would save it."""
    state = {
        f"module.{key}": torch.full(shape, 0.2) if shape == (1,) else 0.2 * torch.randn(shape, generator=seeded(place))
        for place, (key, shape) in enumerate(mprnet_names(8, 4, 4, 1).items())
    }
    path = tmp_path_factory.mktemp("published") / "model_deblurring.pth"
    torch.save({"epoch": 1, "state_dict": state, "optimizer": {"state": {}}}, path)
    return path


def test_an_adopted_network_is_a_finished_model(mprnet_file, tmp_path):
    folder = tmp_path / "deep" / "mprnet"
    adopted = adopt(mprnet_file, MPRNET, folder, task="deblur")
    model, about = load_model(folder)
    expected = MODELS["mprnet"](width=8, unet_step=4, full_step=4, cabs=1)
    expected.load_state_dict(expected.convert(read_published(mprnet_file)))
    image = torch.rand(1, 3, 20, 20, generator=seeded(0))
    with torch.inference_mode():
        assert torch.equal(model(image), expected(image))
        assert not torch.equal(model(image), image)
    assert adopted.parameters == sum(parameter.numel() for parameter in expected.parameters())
    assert about["model"]["options"] == {
        "channels": 3,
        "width": 8,
        "unet_step": 4,
        "full_step": 4,
        "cabs": 1,
        "reduction": 4,
    }
    assert about["task"] == "deblur"
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]


def test_training_can_start_from_an_adopted_network(mprnet_file, tmp_path):
    adopt(mprnet_file, MPRNET, tmp_path / "mprnet")
    start = read_start(str(tmp_path / "mprnet"))
    assert (start.name, start.options["cabs"], start.steps) == ("mprnet", 1, None)
    assert start.loss == "what its authors chose (model_deblurring.pth)"
    assert start.weights["slope"].item() == pytest.approx(0.2)


@pytest.mark.parametrize("name", MODELS)
def test_a_state_dict_of_ours_can_be_adopted(name, tmp_path):
    """So no model's map of published names may change our own."""
    torch.manual_seed(0)
    model = MODELS[name](**SMALL[name])
    torch.save(model.state_dict(), tmp_path / "net.pth")
    options = ", ".join(f"{key}={value!r}" for key, value in SMALL[name].items())
    adopt(tmp_path / "net.pth", f"{name}({options})", tmp_path / "out")
    assert same(load_file(tmp_path / "out" / "model.safetensors"), model.state_dict())


def test_a_file_before_pytorch_counted_batches_can_be_adopted(tmp_path):
    state = {key: value for key, value in DnCNN(width=8, depth=3).state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "net.pth")
    adopt(tmp_path / "net.pth", "dncnn(width=8, depth=3)", tmp_path / "out")
    assert load_model(tmp_path / "out")[0].model[3].num_batches_tracked == 0


def test_a_file_of_other_options_is_told_which_it_fits(tmp_path):
    torch.save(DnCNN(channels=1, depth=4, width=12, batch_norm=False).state_dict(), tmp_path / "net.pth")
    with pytest.raises(DataError) as caught:
        adopt(tmp_path / "net.pth", "dncnn(depth=4, width=12)", tmp_path / "out")
    message = str(caught.value)
    assert "9 missing in it: model.3.weight, " in message
    assert "; 3 unknown to the model: model.2.bias, " in message
    assert "; 3 of another shape: model.0.weight is (12, 1, 3, 3) in the file and (12, 3, 3, 3) in the model" in message
    assert "It fits 'dncnn(depth=4, width=12, batch_norm=False, channels=1)': name that as the model." in message
    assert not (tmp_path / "out").exists()
    adopt(tmp_path / "net.pth", message.split("'")[1], tmp_path / "out")


def test_where_no_options_are_found_they_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "_SEARCH_S", 0.0)
    torch.save(HINet(width=4, depth=3).state_dict(), tmp_path / "net.pth")
    with pytest.raises(
        DataError, match=r"Either it is of another model, .* width=64, depth=5, hin_levels=2, slope=0\.2"
    ):
        adopt(tmp_path / "net.pth", "hinet(width=4)", tmp_path / "out")


def test_a_file_of_another_model_is_an_error_that_shows_both(mprnet_file, tmp_path):
    with pytest.raises(
        DataError, match=r"none of its tensors has a name of unet's\. It has shallow_feat1.*model down\."
    ):
        adopt(mprnet_file, "unet", tmp_path / "out")


def test_bad_names_are_errors_before_the_file_is_read(tmp_path):
    nothing = tmp_path / "net.pth"
    with pytest.raises(UnknownName, match="'mprnet'"):
        adopt(nothing, "mprnett", tmp_path / "out")
    with pytest.raises(UnknownName, match="'width'"):
        adopt(nothing, "mprnet(widht=8)", tmp_path / "out")
    with pytest.raises(VeridicalError, match="width of hinet must be even"):
        adopt(nothing, "hinet(width=3)", tmp_path / "out")
    with pytest.raises(UnknownName, match="'deblur'"):
        adopt(nothing, "mprnet", tmp_path / "out", task="deblurr")


def test_a_model_that_is_there_is_left_alone(mprnet_file, tmp_path):
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(DataError, match=r"model\.json exists already, and is left as it is"):
        adopt(mprnet_file, MPRNET, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"is a file\. Name a folder"):
        adopt(mprnet_file, MPRNET, tmp_path / "file")
    assert (tmp_path / "model.json").read_text() == "{}"
    assert not (tmp_path / "model.safetensors").exists()


# ---- the command ----


def test_the_command_adopts_and_says_what_comes_next(mprnet_file, tmp_path):
    result = veridical("weights", "adopt", mprnet_file, "--model", MPRNET, "--out", tmp_path / "mprnet")
    assert result.exit_code == 0, result.output
    count = sum(p.numel() for p in load_model(tmp_path / "mprnet")[0].parameters())
    assert f"{count:,} parameters" in result.output
    assert f"veridical restore PHOTOGRAPHS --run {tmp_path / 'mprnet'} --out restored" in result.output
    Image.new("RGB", (24, 17), (90, 120, 40)).save(tmp_path / "photo.png")
    result = veridical("restore", tmp_path / "photo.png", "--run", tmp_path / "mprnet", "--out", tmp_path / "restored")
    assert result.exit_code == 0, result.output
    assert read_image(tmp_path / "restored" / "photo.png").pixels.shape == (3, 17, 24)


def test_the_command_fails_with_a_message(tmp_path):
    (tmp_path / "net.pth").write_bytes(pickle.dumps([1, 2]))
    result = veridical("weights", "adopt", tmp_path / "net.pth", "--model", "unet", "--out", tmp_path / "out")
    assert result.exit_code != 0
    assert "error: " in result.output
    assert "Traceback" not in result.output


def test_the_dncnn_of_its_authors_denoises_once_adopted(tmp_path):
    """Noise of sigma 25, clipped and rounded as files are: measured 20.98 dB before and 28.03 dB after."""
    file = shared_data("weights/dncnn_color_25.safetensors")
    photograph = sorted(shared_data("test/cbsd68").iterdir())[0]
    with Image.open(photograph) as picture:
        sharp = np.array(picture.convert("RGB"))[:160, :160] / 255.0
    noise = np.random.default_rng(0).normal(0, 25 / 255, sharp.shape)
    noisy = np.clip(np.round((sharp + noise) * 255), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(tmp_path / "noisy.png")
    spec = "dncnn(depth=20, batch_norm=false)"
    result = veridical("weights", "adopt", file, "--model", spec, "--out", tmp_path / "dncnn", "--task", "denoise")
    assert result.exit_code == 0, result.output
    assert "668,227 parameters" in result.output
    assert f"--init {tmp_path / 'dncnn'} --task denoise" in result.output
    about = json.loads((tmp_path / "dncnn" / "model.json").read_text())
    assert about["model"]["options"] == {"channels": 3, "depth": 20, "width": 64, "batch_norm": False}
    result = veridical("restore", tmp_path / "noisy.png", "--run", tmp_path / "dncnn", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "out" / "noisy.png") as picture:
        restored = np.array(picture)

    def psnr_db(image: np.ndarray) -> float:
        return float(-10 * np.log10(np.mean((image / 255.0 - sharp) ** 2)))

    assert psnr_db(noisy) == pytest.approx(20.98, abs=0.01)
    assert psnr_db(restored) == pytest.approx(28.03, abs=0.05)
