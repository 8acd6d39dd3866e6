"""An adapter learns to order by strength; the same seed gives the same bytes, stopped in between or not."""

import csv
import json
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

import veridical
from tests.test_video import in_folder, moving, written
from veridical.cli import app
from veridical.core.errors import BadOption, NonFiniteLoss, RecipeError, UnknownName, WeightsMissing
from veridical.features.adapter import Adapter, Base
from veridical.training import learn_adapter as learning
from veridical.training.learn_adapter import Settings, Watcher, base_named, learn_adapter
from veridical.training.learned_file import check_out
from veridical.training.triplets import Triplet, Triplets

SMALL = {"kind": "token-wise", "width": 16, "batch_size": 8, "lr": 1e-2, "epochs": 6, "save_s": 0.0}


class Misleading(Triplets):
    """The weak image is much brighter, which is to be ignored; the strong one has a faint chessboard, which counts."""

    label, crop = "brightness; chessboard", 32

    def __init__(self, seed: int, count: int = 24) -> None:
        self.seed, self.count = seed, count
        self.data = [{"name": "made here", "sha256": str(seed)}]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Triplet]:
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.arange(32)
        board = ((rows[:, None] // 2 + rows[None] // 2) % 2 * 2.0 - 1)[None]
        for _ in range(self.count):
            sharp = torch.rand(3, 1, 1, generator=generator).expand(3, 32, 32) * 0.5 + 0.25
            weak, strong = 0.3 * (torch.rand(2, generator=generator) + 0.5)
            yield Triplet(sharp, sharp + weak, sharp + strong / 6 + 0.1 * board)


@pytest.fixture
def learn(tmp_path, network_file):
    """learn(name, **settings) -> what is learned on AlexNet's first maps, of random weights."""

    def start(name: str = "a", *, watcher: Watcher | None = None, base: Base | None = None, **changes: object):
        return learn_adapter(
            base or base_named("alexnet", "relu1"), Misleading(1), Misleading(2), tmp_path / f"{name}.safetensors",
            Settings(**{**SMALL, **changes}), weights=network_file("alexnet"), task="deblur", watcher=watcher,
        )  # fmt: skip

    return start


class StopsAt(Watcher):
    """Does something after an epoch, once."""

    def __init__(self, epoch: int, action) -> None:
        self.epoch, self.action = epoch, action
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def doing(self, what: str, done: int, *_: object) -> None:
        if what == "epochs" and done == self.epoch:
            self.epoch = -1
            self.action()


class Killed(BaseException):
    pass


def kill() -> None:
    raise Killed


@pytest.mark.parametrize("kind", ["token-wise", "flattened"])
def test_an_order_that_the_features_have_wrong_is_learned(learn, kind):
    found = learn(kind=kind, epochs=40, lr=3e-3)
    assert found.frozen.same < 0.2
    assert found.before.same < 0.5
    assert found.after.same > 0.9
    assert found.after.across > found.before.across
    assert found.after.ratio > 1 > found.before.ratio


def test_the_loss_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(8, 16, 1, 1, generator=generator) for _ in range(3)]
    ours = learning.triplet_loss(*images, margin=1.0)
    theirs = F.triplet_margin_loss(*(each.flatten(1) for each in images), margin=1.0, p=2)
    torch.testing.assert_close(ours, theirs)
    assert torch.isfinite(
        torch.autograd.grad(learning.triplet_loss(*[images[0].requires_grad_()] * 3, 1.0), images[0])[0]
    ).all()


def test_positions_count_as_a_root_mean_square():
    a, b = (torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(k)) for k in range(2))
    expected = ((a - b).square().sum(1).mean((1, 2))).sqrt()
    torch.testing.assert_close(learning.distance(a, b), expected, rtol=1e-4, atol=0)


def test_the_ranking_is_counted():
    weak, strong = torch.tensor([1.0, 2.0, 5.0, 3.0]), torch.tensor([2.0, 2.0, 4.0, 9.0])
    found = learning.ranking(weak, strong)
    assert found.same == 0.5  # the second is a tie, the third is wrong
    assert found.across == sum(w < s for w in weak.tolist() for s in strong.tolist()) / 16
    assert found.ratio == pytest.approx(torch.tensor([2, 1, 0.8, 3]).median().item())


def test_the_same_seed_gives_the_same_bytes(learn):
    one, two, other = learn("one"), learn("two"), learn("other", seed=1)
    assert one.path.read_bytes() == two.path.read_bytes()
    assert one.path.read_bytes() != other.path.read_bytes()
    assert learn("mapped", memory_gb=0.0).path.read_bytes() == one.path.read_bytes(), "features kept in a file"
    assert [path.name for path in sorted((one.path.parent / "mapped.run").iterdir())] == [
        "training.csv",
        "triplets.png",
    ]


@pytest.mark.parametrize("action", ["killed", "interrupted"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(learn, action):
    whole = learn("whole")
    if action == "killed":
        watcher = StopsAt(4, kill)
        with pytest.raises(Killed):
            learn("stopped", watcher=watcher)
    else:
        watcher = StopsAt(4, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            learn("stopped", watcher=watcher, save_s=1e9)
        assert "stopped after epoch 4, which is saved." in watcher.notes
    run = whole.path.parent / "stopped.run"
    (newest, *_) = sorted((run / "checkpoints").iterdir(), reverse=True)
    assert newest.name == ("step-00000003" if action == "killed" else "step-00000004")
    again = StopsAt(-1, kill)
    assert learn("stopped", watcher=again).path.read_bytes() == whole.path.read_bytes()
    assert any(text.startswith("going on after epoch") for text in again.notes)
    assert not (run / "checkpoints").exists()
    assert numbers(run) == numbers(whole.path.with_suffix(".run"))


def test_the_best_epoch_before_a_stop_is_not_forgotten(learn):
    options = {"epochs": 60, "lr": 0.3, "patience": 4, "plateau": 20}
    whole = learn("whole", **options)
    assert 0 < whole.best_epoch < whole.epochs - 2
    with pytest.raises(Killed):
        learn("stopped", watcher=StopsAt(whole.epochs - 1, kill), **options)
    assert learn("stopped", **options).path.read_bytes() == whole.path.read_bytes()


def numbers(run: Path) -> list[dict[str, str]]:
    rows = csv.DictReader((run / "training.csv").read_text().splitlines())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_a_run_of_other_settings_is_not_gone_on_with(learn):
    with pytest.raises(Killed):
        learn("a", watcher=StopsAt(3, kill))
    with pytest.raises(RecipeError, match=r"lr was 0\.01, now 0\.02"):
        learn("a", lr=0.02)


def test_the_best_epoch_is_kept_and_waiting_has_an_end(learn):
    found = learn(epochs=200, lr=0.05, patience=5, plateau=2)
    rows = numbers(found.path.with_suffix(".run"))
    losses = [float(row["validation_loss"]) for row in rows]
    assert len(rows) == found.epochs < 200
    assert found.best_epoch == int(rows[losses.index(min(losses))]["epoch"])
    assert found.epochs == (found.best_epoch if min(losses) == 0 else found.best_epoch + 5)
    assert float(rows[found.best_epoch - 1]["same"]) == found.after.same


def test_the_learning_rate_falls_on_a_plateau(learn):
    """It learns nothing at so small a rate, so after the first epoch each waits."""
    rows = numbers(learn(epochs=12, lr=1e-12, margin=100.0, plateau=3).path.with_suffix(".run"))
    assert [float(row["lr"]) for row in rows] == pytest.approx([1e-12] * 5 + [1e-13] * 4 + [1e-14] * 3, rel=1e-6, abs=0)


def test_the_file_says_how_it_was_learned(learn):
    found = learn(epochs=2)
    with safe_open(found.path, framework="pt") as opened:
        notes = opened.metadata()
    assert notes["format"] == "veridical adapter 1"
    assert json.loads(notes["settings"])["base"]["tap"] == "relu1"
    learned = json.loads(notes["learned"])
    assert learned["task"] == "deblur"
    assert learned["degradation"] == "brightness; chessboard"
    assert learned["ranking"]["after"]["same"] == found.after.same
    assert (learned["epochs"], learned["seed"], learned["veridical"]) == (2, 0, veridical.__version__)
    assert learned["data"] == Misleading(1).data
    assert str(found.path.parent) not in json.dumps(notes), "no path of this machine"


def test_the_loss_takes_the_file(learn, network_file):
    found = learn(epochs=2)
    loss = veridical.loss("tfmlc", adapter=str(found.path), weights=str(network_file("alexnet")))
    sharp, weak, _ = next(iter(Misleading(5)))
    assert loss(sharp[None], sharp[None]).item() == 0
    assert loss(weak[None], sharp[None]).item() > 0


def test_a_clip_tower_is_adapted(tmp_path, clip_folder):
    base = base_named("clip-vit-b16", "1")
    settings = Settings(**{**SMALL, "kind": "flattened", "epochs": 2})
    found = learn_adapter(base, Misleading(1), Misleading(2), tmp_path / "a.safetensors", settings, weights=clip_folder)
    adapter = Adapter.load(found.path)
    assert (adapter.base.network, adapter.base.tap) == ("vit-b-16", "block1")
    assert adapter.positions == 17
    loss = veridical.loss("tfmlc", adapter=str(found.path), weights=str(clip_folder))
    assert loss(torch.rand(1, 3, 40, 40), torch.rand(1, 3, 40, 40)) > 0


def test_pooled_features_are_kept_pooled(learn):
    assert learn("pooled", pool=2, epochs=1).features_mb == pytest.approx(48 * 3 * 64 * 4 * 4 / 1e6)
    assert learn("whole", epochs=1).features_mb == pytest.approx(48 * 3 * 64 * 49 * 4 / 1e6)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("clip-vit-b16", None), ("vit-b-16", "block3")),
        (("ViT-B-32", "0"), ("vit-b-32", "block0")),
        (("vit-l-14", "block11"), ("vit-l-14", "block11")),
        (("vgg16", None), ("vgg16", "relu3_3")),
        (("squeezenet1-1", "fire3"), ("squeezenet1_1", "fire3")),
    ],
)
def test_features_have_the_names_that_people_write(names, expected):
    base = base_named(*names)
    assert (base.network, base.tap) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("clip-vit-b17", None), "Did you mean 'clip-vit-b-1"),
        (("vgg16", "relu3"), "unknown layer of vgg16 .* Did you mean 'relu"),
        (("clip-vit-b16", "relu3_3"), "whole number"),
    ],
)
def test_features_that_there_are_not_are_refused(names, message):
    with pytest.raises((UnknownName, BadOption), match=message):
        base_named(*names)


@pytest.mark.parametrize(
    "changes", [{"epochs": 0}, {"lr": 0}, {"margin": -1.0}, {"batch_size": 1.5}, {"memory_gb": -1}, {"width": 0}]
)
def test_impossible_settings_are_refused(learn, changes):
    with pytest.raises(BadOption):
        learn(**changes)


def test_what_would_be_lost_is_refused_before_anything_is_done(learn, tmp_path, monkeypatch):
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    with pytest.raises(BadOption, match="is there already"):
        learn("there")
    assert (tmp_path / "there.safetensors").read_bytes() == b"mine"
    with pytest.raises(BadOption, match=r"Write .*a\.safetensors"):
        check_out(tmp_path / "a.pth")
    monkeypatch.setattr(Misleading, "crop", 16)
    with pytest.raises(BadOption, match="at least 31 px up to relu5; got 16"):
        learn("small", base=base_named("alexnet", "relu5"))


def test_an_infinite_loss_is_an_error(learn, monkeypatch):
    monkeypatch.setattr(learning, "triplet_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(NonFiniteLoss, match="in epoch 1"):
        learn()


def test_a_pickle_in_place_of_an_adapter_is_not_run(tmp_path):
    class Bad:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "a.safetensors").write_bytes(pickle.dumps(Bad()))
    with pytest.raises(WeightsMissing, match="not a whole safetensors file"):
        Adapter.load(tmp_path / "a.safetensors")
    torch.save({"a": Bad()}, tmp_path / "b.pth")
    with pytest.raises(WeightsMissing):
        Adapter.load(tmp_path / "b.pth")
    assert not (tmp_path / "ran").exists()


# The command


def run(*arguments: object):
    return CliRunner().invoke(app, ["learn", "adapter", *map(str, arguments)])


@pytest.fixture
def few(network_file) -> list[object]:
    numbers = ("--triplets", 6, "--validation-triplets", 4, "--epochs", 2, "--width", 8, "--crop", 32, "--pool", 2)
    return ["--features", "alexnet", "--block", "relu1", "--weights", network_file("alexnet"), *numbers]


def test_the_command_learns_from_photographs(textures, tmp_path, few):
    out = tmp_path / "a.safetensors"
    done = run("--data", textures, "--task", "jpeg", "-o", out, *few)
    assert done.exit_code == 0, done.output
    for said in ("the frozen features of alexnet relu1", "of the same picture", "across pictures", "adapter:"):
        assert said in done.output
    assert Adapter.load(out).pool == 2
    with Image.open(tmp_path / "a.run" / "triplets.png") as sheet:
        assert sheet.size == (3 * 192 + 16, 18 + 4 * 196 + 4)
    again = run("--data", textures, "--task", "jpeg", "-o", out, *few)
    assert again.exit_code == 2
    assert "is there already" in again.output


def test_the_command_learns_from_what_is_named_or_from_the_demos_photographs(textures, tmp_path, few):
    for arguments in ((), ("--demo", "--data", textures)):
        done = run(*arguments, "--task", "jpeg", "-o", tmp_path / "a.safetensors", *few)
        assert done.exit_code == 2
        assert "name what to learn from: --data with photographs or videos, or --demo" in done.output
    done = run("--demo", "--task", "jpeg", "-o", tmp_path / "a.safetensors", *few)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_the_command_learns_from_video(tmp_path, few, kind):
    frames = moving([2 * t for t in range(65)])
    where = ["--frames"] if kind == "frames" else []
    data = tmp_path / "clip" if kind == "frames" else written(tmp_path / "a.mkv", frames, "FFV1")
    if kind == "frames":
        in_folder(data, frames)
    done = run("--data", data, *where, "--task", "deblur", "--linear-light", "-o", tmp_path / "b.safetensors", *few)
    assert done.exit_code == 0, done.output
    with safe_open(tmp_path / "b.safetensors", framework="pt") as opened:
        learned = json.loads(opened.metadata()["learned"])
    assert learned["degradation"] == "means over windows of video in linear light"
    assert learned["data"][0]["windows"].startswith("0-1")


def test_the_command_says_what_is_wrong(textures, tmp_path, few):
    (tmp_path / "text.mp4").write_text("no video")
    for arguments, message in (
        (("--data", tmp_path / "text.mp4"), "cannot be read as a video"),
        (("--data", textures), "say what to order"),
        (("--data", textures, "--task", "deblurr"), "no strengths of its own"),
        (("--data", tmp_path / "nowhere", "--task", "jpeg"), "there is no"),
        (("--data", textures, "--task", "jpeg", "--kind", "token"), "Did you mean 'token-wise'"),
    ):
        done = run(*arguments, "-o", tmp_path / "c.safetensors", *few)
        assert done.exit_code == 2, done.output
        assert message in done.output
        assert "Traceback" not in done.output
    assert not (tmp_path / "c.safetensors").exists()
