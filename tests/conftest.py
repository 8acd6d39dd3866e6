"""What several test files share."""

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy import io

from tests.made_up_models import a_model, pristine_model
from veridical.features.adapter import Adapter, Base
from veridical.features.weights import FILES


@pytest.fixture(scope="module", autouse=True)
def _what_is_imported_is_no_garbage() -> None:
    """Each training collects garbage to measure memory: half a second and more where it looks at all of torch anew."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def network_file(tmp_path_factory):
    """network_file(name) -> a file of random weights in that network's shapes, for tests of behaviour, not of value."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            generator = torch.Generator().manual_seed(0)
            tensors = {}
            for key, shape in FILES[name].shapes.items():
                scale = (2 / max(1, torch.Size(shape[1:]).numel())) ** 0.5 if len(shape) == 4 else 0.05
                centre = 1.0 if key.endswith(("norm.weight", "running_var")) else 0.0
                tensors[key] = centre + scale * torch.randn(shape, generator=generator)
            made[name] = tmp_path_factory.mktemp("networks") / f"random-{name}.safetensors"
            save_file(tensors, made[name])
        return made[name]

    return make


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """A tiny random image tower, as transformers saves it: 5 blocks of width 32, 4 x 4 patches of 8 px."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=8))
    with torch.no_grad():
        for parameter in model.parameters():  # transformers starts with zeros for every bias, and small weights
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter_file(tmp_path_factory, network_file, clip_folder):
    """adapter_file("clip" or "vgg16") -> a file of an adapter as if it had been trained a little."""
    bases = {
        "clip": (Base("vit-b-16", "block3"), clip_folder, {"kind": "flattened"}),
        "vgg16": (Base("vgg16", "relu1_2"), network_file("vgg16"), {"kind": "token-wise"}),
    }
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            base, weights, options = bases[name]
            torch.manual_seed(1)
            adapter = Adapter.fitting(base, base.build(weights=weights), size=32, width=16, **options)
            for layer in adapter.layers:
                if isinstance(layer, torch.nn.BatchNorm1d):
                    layer.running_mean.normal_()
                    layer.running_var.uniform_(0.5, 2)
            made[name] = tmp_path_factory.mktemp("adapters") / f"{name}.safetensors"
            adapter.save(made[name])
        return made[name]

    return make


@pytest.fixture(scope="session")
def regression_file(tmp_path_factory) -> Path:
    """A made-up file of the kind of BRISQUE's: 12 support vectors of 36 numbers, as libsvm writes them."""
    generator = torch.Generator().manual_seed(2)
    vectors = torch.rand(12, 36, generator=generator) * 2 - 1
    vectors[0, 4] = vectors[5, 0] = 0  # libsvm leaves these out
    head = "svm_type epsilon_svr\nkernel_type rbf\ngamma 0.05\nnr_class 2\ntotal_sv 12\nrho -30.5\nprobA 5.7\nSV\n"
    lines = [
        f"{1024 if row % 2 else -1024.5} "
        + "".join(f"{k}:{value:g} " for k, value in enumerate(vector.tolist(), start=1) if value)
        for row, vector in enumerate(vectors)
    ]
    path = tmp_path_factory.mktemp("regressions") / "made-up"
    path.write_text(head + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def textures(tmp_path) -> Path:
    """A folder of four photographs, 400x96 px."""
    from tests.test_video import texture

    folder = tmp_path / "photographs"
    folder.mkdir()
    for seed in range(4):
        Image.fromarray(texture(seed)).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="session")
def pristine_file(tmp_path_factory) -> Path:
    """A model of natural photographs for NIQE, in BasicSR's form."""
    path = tmp_path_factory.mktemp("pristine") / "made-up.npz"
    np.savez(path, **{key: value.numpy() for key, value in pristine_model().items()})
    return path


@pytest.fixture(scope="session")
def forest_file(tmp_path_factory) -> Path:
    """The forests of NRQM, in the form of the authors' model.mat."""
    path = tmp_path_factory.mktemp("forests") / "made-up.mat"
    io.savemat(path, {"model": a_model()})
    return path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Every test leaves torch its threads: another number adds up in another order, and whoever compares bits later
    would find others."""
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before, "this test has changed the number of torch's threads"
