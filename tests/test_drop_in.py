"""The examples of docs/drop-in.md run as they stand there, and do what the page says."""

import sys
from contextlib import chdir
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from tests.pages import blocks, run_page
from veridical.losses import Loss

PAGE = "drop-in"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Any:
    with chdir(tmp_path):
        yield tmp_path


def assert_same_state(loss: Loss, other: Loss) -> None:
    ours, theirs = loss.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert len(ours) > 3
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_a_plain_loop_and_its_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    names = run_page(PAGE, "A plain loop")
    assert_same_state(names["resumed"], names["loss"])
    assert list(names["loss"].parameters()) == []
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert all("discriminator" in line and "'l1'" in line for line in printed)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_lightning_trains_the_model_and_the_discriminator_and_keeps_both() -> None:
    pytest.importorskip("pytorch_lightning", reason="needs Lightning: pip install pytorch-lightning")
    names = run_page(PAGE, "Lightning")
    module, trainer = names["module"], names["trainer"]
    assert_same_state(names["again"].loss, module.loss)
    (group,) = trainer.optimizers[0].param_groups
    assert {id(each) for each in group["params"]} == {id(each) for each in module.model.parameters()}
    gan = module.loss.parts[2]
    assert gan.steps == 2, "one for each step of the training"
    logged = trainer.logged_metrics
    assert {"validation", "loss/l1", *(f"loss/{each}" for each in ("spl-a",))} <= logged.keys()
    assert any(name.endswith("discriminator") for name in logged)


def test_accelerate_trains_and_saves_the_loss_beside_the_model() -> None:
    pytest.importorskip("accelerate", reason="needs Accelerate: pip install accelerate")
    names = run_page(PAGE, "HF Accelerate")
    loss = names["loss"]
    assert loss.parts[2].steps == 2
    saved = {key: value.clone() for key, value in loss.state_dict().items()}
    loss.learn(torch.rand(2, 3, 96, 96), torch.rand(2, 3, 96, 96))
    assert loss.parts[2].steps == 3
    names["accelerator"].load_state("state")
    assert loss.parts[2].steps == 2
    assert all(torch.equal(value, saved[key]) for key, value in loss.state_dict().items())


class _Registry:
    """What a loss sees of BasicSR's registries."""

    def __init__(self) -> None:
        self.known: dict[str, type] = {}

    def register(self) -> Any:
        def put(what: type) -> type:
            self.known[what.__name__] = what
            return what

        return put

    def build(self, options: dict[str, Any]) -> Any:
        """As BasicSR's build_loss: `type` names the class, all else are its options."""
        options = dict(options)
        return self.known[options.pop("type")](**options)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> _Registry:
    """BasicSR's, as far as the example of the page needs it, with that example in it."""
    made = _Registry()
    module = ModuleType("basicsr.utils.registry")
    module.LOSS_REGISTRY = made  # type: ignore[attr-defined]
    for name in ("basicsr", "basicsr.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    run_page(PAGE, "BasicSR")
    exec(compile(Path("veridical_loss.py").read_text(), "veridical_loss.py", "exec"), {"__name__": "veridical_loss"})
    return made


def test_the_section_of_basicsrs_configuration_builds_its_losses(registry: _Registry) -> None:
    before, after = (
        yaml.safe_load(block.code)["train"]
        for block in blocks(PAGE)
        if block.section == "BasicSR" and block.language == "yaml"
    )
    assert before.keys() == after.keys()
    target = torch.rand(2, 3, 32, 32)
    prediction = torch.rand(2, 3, 32, 32, requires_grad=True)
    pixel = registry.build(after["pixel_opt"]).to("cpu")(prediction, target)
    perceptual, style = registry.build(after["perceptual_opt"])(prediction, target)
    torch.testing.assert_close(pixel, (prediction - target).abs().mean())
    assert style is None
    assert perceptual.shape == ()
    (pixel + perceptual).backward()
    assert prediction.grad is not None


def test_what_basicsr_cannot_train_is_refused(registry: _Registry) -> None:
    for spec in ("l1 + 0.01*gan(width=8)", "l1 + auto*spl-a"):
        with pytest.raises(ValueError, match="BasicSR calls a loss and nothing else"):
            registry.build({"type": "VeridicalLoss", "spec": spec})
    loss = registry.build({"type": "VeridicalLoss", "spec": "l1", "loss_weight": 2.0})
    with pytest.raises(ValueError, match="no weight for each pixel"):
        loss(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), weight=torch.rand(1, 1, 8, 8))
