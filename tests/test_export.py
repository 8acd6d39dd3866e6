"""Models as files for other programs: each gives the image that the model gives, or is not written."""

import copy
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from veridical.cli import app
from veridical.comparison import export
from veridical.comparison.export import export_model
from veridical.comparison.restore import load_model
from veridical.core.errors import DataError, MissingExtra
from veridical.models import MODELS

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# Those that torch exports in a few seconds, at options that keep every kind of layer.
QUICK = {
    "unet": {"width": 4, "levels": 1, "convs": 1},
    "dncnn": {"width": 8, "depth": 3},
    "edsr": {"width": 8, "blocks": 1, "scale": 2},
}
# Tried by hand through export_model with both formats, at the options of SMALL in tests/test_models.py: each is written
# with batch, height and width free, and gives the model's image at odd sizes too; in ONNX down to 1x1. Together the two
# formats take 5 to 55 seconds of a CPU (srresnet, restormer). The kernel of ddnet is a second input, which is refused.
SLOW = {"srresnet", "rrdbnet", "nafnet", "mprnet", "hinet", "restormer", "srn", "dsdeblur", "xydeblur", "ifan"}


def _folder(path: Path, name: str, options: dict[str, object], **about: object) -> Path:
    """The folder of one loss, with a model whose weights are random throughout."""
    torch.manual_seed(0)
    model = MODELS[name](**options)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    path.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path / "model.safetensors")
    described = {"model": {"name": name, "options": options}, "task": "deblur", "loss": "l1", "steps": 3, **about}
    (path / "model.json").write_text(json.dumps(described))
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return _folder(tmp_path / "run" / "l1", "dncnn", {"width": 4, "depth": 2, "channels": 1})


def _expected(folder: Path, image: Tensor) -> np.ndarray:
    with torch.no_grad():
        return load_model(folder)[0](image).numpy()


def test_every_model_is_tried_here_or_known_to_be_slow_or_to_need_a_kernel() -> None:
    assert set(QUICK) | SLOW | {name for name, model in MODELS.items() if model.uses_kernel} == set(MODELS)


@pytest.mark.parametrize("name", QUICK)
def test_onnx_gives_the_same_image_at_sizes_that_nobody_tried_before(name: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path / name, name, QUICK[name])
    exported = export_model(folder, tmp_path / "model.onnx")
    assert exported.dynamic == ("batch", "height", "width")
    assert len(exported.checked) == 2
    assert exported.largest_difference < 1e-5
    session = onnxruntime.InferenceSession((tmp_path / "model.onnx").read_bytes())
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    for shape in ((1, 3, 48, 48), (1, 3, 9, 31), (2, 3, 17, 6)):
        image = torch.rand(shape, generator=torch.Generator().manual_seed(7))
        (found,) = session.run(["restored"], {"image": image.numpy()})
        np.testing.assert_allclose(found, _expected(folder, image), atol=1e-5)


def test_torch_export_gives_the_same_image_and_says_what_it_is(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "unet", "unet", QUICK["unet"])
    export_model(folder, tmp_path / "model.pt2")
    said = {"veridical.json": ""}
    module = torch.export.load(io.BytesIO((tmp_path / "model.pt2").read_bytes()), extra_files=said).module()
    for shape in ((1, 3, 48, 48), (1, 3, 9, 31), (1, 3, 3, 2), (2, 3, 17, 6)):
        image = torch.rand(shape, generator=torch.Generator().manual_seed(7))
        np.testing.assert_allclose(module(image).detach().numpy(), _expected(folder, image), atol=1e-6)
    assert json.loads(said["veridical.json"])["model"] == "unet"


def test_onnx_says_which_model_for_which_task_it_is(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "l1", "dncnn", {"width": 4, "depth": 2}, enlarge=4)
    export_model(folder, tmp_path / "model.onnx", opset=20)
    model = onnx.load(tmp_path / "model.onnx")
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert {key: said[key] for key in ("model", "task", "loss", "channels", "scale", "enlarge")} == {
        "model": "dncnn",
        "task": "deblur",
        "loss": "l1",
        "channels": "3",
        "scale": "1",
        "enlarge": "4",
    }
    assert json.loads(said["options"]) == {"width": 4, "depth": 2}
    assert said["version"].startswith("veridical ")
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [20]


def test_a_fixed_size_is_the_only_one(small: Path, tmp_path: Path) -> None:
    exported = export_model(small, tmp_path / "model.onnx", size=(24, 40))
    assert exported.dynamic == ()
    assert exported.fixed == {"batch": 1, "height": 24, "width": 40}
    session = onnxruntime.InferenceSession((tmp_path / "model.onnx").read_bytes())
    assert session.get_inputs()[0].shape == [1, 1, 24, 40]


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_file_that_gives_another_image_is_not_left_behind(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    whole = export._traced

    def off(model: nn.Module, *rest: Any) -> object:
        other = copy.deepcopy(model)
        with torch.no_grad():
            next(other.parameters()).mul_(1.5)
        return whole(other, *rest)

    monkeypatch.setattr(export, "_traced", off)
    with pytest.raises(DataError, match=r"differ by up to [\d.e-]+ for an input of shape .* nothing was written"):
        export_model(small, tmp_path / f"model{suffix}")
    assert list(tmp_path.glob("*model*")) == []


class _Bound(nn.Module):
    """Takes for granted that there are two images or more, as torch.export does of some convolutions."""

    channels = 1

    def forward(self, image: Tensor) -> Tensor:
        torch._check(image.shape[0] < 2 if torch.compiler.is_exporting() and image.shape[0] < 2 else True)
        return image * 2 if image.shape[0] > 1 else image + image


def test_where_the_number_of_images_cannot_be_left_open_it_is_one(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = load_model(small)[1]
    monkeypatch.setattr(export, "load_model", lambda folder: (_Bound(), about))
    exported = export_model(small, tmp_path / "model.pt2")
    assert exported.dynamic == ("height", "width")
    assert exported.fixed == {"batch": 1}
    assert {shape[0] for shape in exported.checked} == {1}


class _Turned(nn.Module):
    """Convolves what lies in memory in another order, and a part of the channels: for one image both may be the usual
    layout, for two they are not."""

    channels = 4

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, kernel_size=3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        turned = nn.functional.layer_norm(image.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2)
        first, second = self.convolution(turned).chunk(2, dim=1)
        return torch.cat((nn.functional.instance_norm(first), second), dim=1)


def test_any_number_of_images_fits_where_only_their_layout_in_memory_differs(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about, model = load_model(small)[1], _Turned()
    monkeypatch.setattr(export, "load_model", lambda folder: (model, about))
    assert export_model(small, tmp_path / "model.pt2").dynamic == ("batch", "height", "width")
    module = torch.export.load(tmp_path / "model.pt2").module()
    for shape in ((1, 4, 5, 7), (3, 4, 2, 9)):
        image = torch.rand(shape, generator=torch.Generator().manual_seed(7))
        np.testing.assert_allclose(module(image).detach(), model(image).detach(), atol=1e-6)


def test_an_existing_file_is_kept_unless_told(small: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_text("mine")
    with pytest.raises(DataError, match=r"exists already.*--overwrite"):
        export_model(small, tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").read_text() == "mine"
    assert export_model(small, tmp_path / "model.pt2", overwrite=True).bytes > 1000


def test_a_model_that_takes_a_kernel_is_refused(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, about = load_model(small)
    model.uses_kernel = True
    monkeypatch.setattr(export, "load_model", lambda folder: (model, about))
    with pytest.raises(DataError, match="takes the kernel of the blur"):
        export_model(small, tmp_path / "model.pt2")


def test_a_missing_extra_is_named(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtra, match=r'onnxscript.*pip install "veridical\[export\]"'):
        export_model(small, tmp_path / "model.onnx")


def test_the_command_says_what_it_wrote_and_how_it_was_checked(small: Path, tmp_path: Path) -> None:
    def call(*arguments: object) -> object:
        return CliRunner().invoke(app, ["export", "--run", str(small), *map(str, arguments)])

    result = call("--out", tmp_path / "model.pt2")
    assert result.exit_code == 0, result.output
    assert f"exported to {tmp_path / 'model.pt2'}: " in result.output
    assert "free: batch, height, width; fixed: nothing\n" in result.output
    assert "it differs from the model by at most " in result.output
    result = call("--out", tmp_path / "fixed.pt2", "--size", "24x40")
    assert "free: nothing; fixed: batch at 1, height at 24, width at 40\n" in result.output
    for wrong, said in (
        (("--size", "720"), "--size must be HEIGHTxWIDTH"),
        (("--format", "onyx"), "Did you mean 'onnx'?"),
        (("--opset", 20), "opset belongs to ONNX"),
    ):
        result = call("--out", tmp_path / "other.pt2", *wrong)
        assert result.exit_code == 2
        assert said in result.output
    result = call("--out", tmp_path / "model.bin")
    assert "expected a name that ends in .onnx or .pt2" in result.output
