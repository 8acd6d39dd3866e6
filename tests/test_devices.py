"""Training on several devices, and in parts: the same samples, the same draws, the same steps; real processes, on CPUs.

A step may differ from that of one process by the order of summation alone. After 3 steps of plain gradient descent,
which move weights by 6e-3 to 6e-2, the largest difference was 1.2e-7; of l1, whose gradients are all of one size, so
that their rounding adds up, 1.3e-6. Twice as much and a little more is allowed.
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import veridical
from tests.photographs import quick_recipe, write_photographs
from tests.processes import end, run_script, start, with_children, write_script
from veridical.comparison.evaluate import build_metrics, evaluate_together
from veridical.comparison.sweep import compare
from veridical.core.errors import RecipeError, VeridicalError
from veridical.features import StochasticNetwork
from veridical.training import checkpoint as checkpoints
from veridical.training import devices
from veridical.training.data import Photograph, evaluation_photographs
from veridical.training.loop import Silent, train
from veridical.training.settings import Settings

ATOL = {"l1": 3e-6}
OTHERS = 3e-7
SLOW = "mdf(task=denoise)"
LOSSES = ("l1", "ssim", SLOW, "spl-a", "l1 + auto(batches=2)*ssim")
SETTINGS = Settings(
    steps=3,
    batch_size=8,
    crop=32,
    lr=0.05,
    optimizer="sgd",
    momentum=0.0,
    clip_gradient=1.0,
    device="cpu",
    log_every=2,
)
LONG = replace(SETTINGS, steps=40, lr=1e-3, optimizer="adam", ema=0.9, batch_size=4, checkpoint_every=10, devices=2)


class Samples(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Noise. bad: an index whose sharp image is so bright that `Touchy` cannot stand it."""

    def __init__(self, bad: int = -1) -> None:
        self.bad = bad

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sharp = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return 0.5 * sharp, sharp + 10 * (index == self.bad)

    def name(self, index: int) -> str:
        return f"photo{index}.png"


class Touchy(veridical.losses.Loss):
    """L2, and not a number beside a bright image."""

    label = "touchy"

    def compare(self, prediction: Tensor, data: Tensor) -> Tensor:
        root = torch.sqrt(5 - data.amax((1, 2, 3)))
        return (prediction - data).square().mean((1, 2, 3)) + 0 * root


class Heard(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(6, 3, 3, padding=1))


def slug(spec: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in spec)


def trained(folder: Path, spec: str, settings: Settings) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights; and what was seen: the degraded images of each step in their order, and what was drawn."""
    model, loss = small_model(), veridical.loss(spec)
    seen: list[Tensor] = []
    draws: list[Tensor] = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].clone()))
    for network in loss.modules():
        if isinstance(network, StochasticNetwork):
            network.draw = _heard(network, draws)  # type: ignore[method-assign]
    train(model, loss, Samples(), settings, folder)
    share = settings.batch_size // settings.processes
    batches = torch.cat(seen).unflatten(0, (-1, share))  # (steps, share, C, H, W)
    return dict(model.state_dict()), {"batches": batches, "draws": torch.stack(draws or [torch.zeros(1)])}


def _heard(network: StochasticNetwork, draws: list[Tensor]):
    draw = network.draw

    def heard() -> tuple[Tensor, ...]:
        weights = draw()
        draws.append(weights[0].flatten()[:50].clone())
        return weights

    return heard


class TwoHeads(nn.Module):
    """Two stages, each with a head of its own."""

    stage_weights = (0.5, 1.0)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.first, self.second = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def stages(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self.body(image)
        return self.first(features), self.second(features)

    def forward(self, image: Tensor) -> Tensor:
        return self.stages(image)[-1]


def photographs(count: int = 5) -> list[Photograph]:
    return [
        Photograph(f"p{k}", torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(k))) for k in range(count)
    ]


class Hole(nn.Module):
    """Passes an image through, and has a hole where one is that it was told of."""

    def __init__(self, without: Tensor) -> None:
        super().__init__()
        self.without = without

    def forward(self, image: Tensor) -> Tensor:
        same = torch.equal(image[0], self.without)
        return image.where(torch.zeros_like(image) == 0, 0) * (torch.nan if same else 1)


def evaluated(folder: Path, model: nn.Module, *, twice: bool = False) -> list[dict[str, str | float]]:
    pairs = evaluation_photographs(photographs(), veridical.degradation("box-blur(size=5)"), seed=0)
    if twice:
        pairs.part = lambda number, of: pairs  # type: ignore[method-assign, assignment]
    slugs = {name: name for name in pairs.names}
    metrics = build_metrics(["psnr", "ssim"])
    cpu = torch.device("cpu")
    return evaluate_together(model, pairs, metrics, loss="x", slugs=slugs, images=folder / "images", device=cpu)


def blurred(name: str) -> Tensor:
    pairs = evaluation_photographs(photographs(), veridical.degradation("box-blur(size=5)"), seed=0)
    return next(pair.degraded for pair in pairs if pair.name == name)


def message_of(act) -> str:
    try:
        act()
    except VeridicalError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def in_processes(out: Path, world: int) -> None:
    """What each of the processes does in the tests below; it leaves its findings by rank."""
    rank = os.environ.get("LOCAL_RANK", "0")
    settings = replace(SETTINGS, devices=world)
    found: dict[str, Tensor] = {}
    for spec in LOSSES:
        for parts in (1, 2) if spec != SLOW or world == 2 else ():
            workers = 2 if spec == "l1" and parts == 1 else 0
            changed = replace(settings, accumulate=parts, workers=workers)
            weights, seen = trained(out / f"{slug(spec)}-{parts}", spec, changed)
            for kind, tensors in (("weights", weights), ("seen", seen)):
                found |= {f"{spec}/{parts}/{kind}/{key}": value for key, value in tensors.items()}
    save_file({key: value.contiguous() for key, value in found.items()}, out / f"rank{rank}.safetensors")
    if world != 2:
        return
    messages: dict[str, object] = {}
    touchy = replace(settings, accumulate=2)
    bad = Samples(bad=8 + 5)  # in step 2, of the second process
    messages["stop"] = message_of(lambda: train(small_model(), Touchy(), bad, touchy, out / "stop"))
    messages["skip"], skipped = skipping(out / "skip", touchy)
    save_file(skipped, out / f"skipped{rank}.safetensors")
    messages["hole"] = message_of(lambda: evaluated(out, Hole(blurred("p3"))))
    for stages in ("authors", "last"):  # then a head is without a gradient
        changed = replace(settings, accumulate=2, stages=stages)
        name = f"stages-{stages}"
        messages[name] = message_of(lambda: train(TwoHeads(), veridical.loss("l1"), Samples(), changed, out / name))  # noqa: B023
    messages["twice"] = message_of(lambda: evaluated(out, nn.Identity(), twice=True))
    messages["rows"] = evaluated(out, nn.Identity())
    (out / f"rank{rank}.json").write_text(json.dumps(messages))
    train(small_model(), veridical.loss("spl-a"), Samples(), LONG, out / "long")


def skipping(folder: Path, settings: Settings) -> tuple[list[str], dict[str, Tensor]]:
    model, heard = small_model(), Heard()
    settings = replace(settings, on_nonfinite="skip")
    result = train(model, Touchy(), Samples(bad=8 + 5), settings, folder, observer=heard)
    assert result.skipped == 1
    return heard.notes, dict(model.state_dict())


_SCRIPT = """
import sys
from pathlib import Path
from tests.test_devices import in_processes

in_processes(Path(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folders that two and four processes have filled."""
    folders = {}
    for world in (2, 4):
        folders[world] = tmp_path_factory.mktemp(f"world{world}")
        run_script(folders[world], _SCRIPT, str(folders[world]), str(world))
    return folders


@pytest.fixture(scope="module")
def alone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("alone")


@pytest.fixture(scope="module")
def alone(alone_folder: Path) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """One process, whole batches."""
    return {spec: trained(alone_folder / slug(spec), spec, SETTINGS) for spec in LOSSES}


def of(found: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}


# -- the same steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 4])
def test_processes_see_the_samples_of_one_in_its_order(world: int, worlds, alone):
    """Bit by bit, with workers (l1, whole shares) and without, in parts and not."""
    ranks = [load_file(worlds[world] / f"rank{rank}.safetensors") for rank in range(world)]
    for spec in ("l1", "ssim", "spl-a"):
        for parts in (1, 2):
            shares = [found[f"{spec}/{parts}/seen/batches"] for found in ranks]
            assert torch.equal(torch.cat(shares, dim=1), alone[spec][1]["batches"])


@pytest.mark.parametrize("spec", LOSSES)
def test_a_step_is_the_same_however_its_batch_is_shared(spec: str, worlds, alone, tmp_path: Path):
    expected = alone[spec][0]
    start = small_model().state_dict()
    atol, parts = ATOL.get(spec, OTHERS), (4,) if spec == SLOW else (2, 4, 8)
    assert max((expected[key] - start[key]).abs().max() for key in expected) > 1000 * atol
    others = {f"in {n} parts": trained(tmp_path / str(n), spec, replace(SETTINGS, accumulate=n))[0] for n in parts}
    for world, folder in worlds.items():
        for rank in range(world if spec != SLOW or world == 2 else 0):
            found = load_file(folder / f"rank{rank}.safetensors")
            others |= {f"{world} x {p}, {rank}": of(found, f"{spec}/{p}/weights/") for p in (1, 2)}
    largest = {
        name: max((weights[key] - expected[key]).abs().max().item() for key in expected)
        for name, weights in others.items()
    }
    assert max(largest.values()) <= atol, largest


def test_a_random_loss_draws_once_for_all_parts_and_processes(worlds, alone):
    once = alone["spl-a"][1]["draws"]
    assert len(once) == SETTINGS.steps
    assert not torch.equal(once[0], once[1])
    for world, folder in worlds.items():
        for rank in range(world):
            found = load_file(folder / f"rank{rank}.safetensors")
            assert torch.equal(found["spl-a/1/seen/draws"], once)
            assert torch.equal(found["spl-a/2/seen/draws"], once.repeat_interleave(2, dim=0))


def test_a_discriminator_learns_once_a_step_from_all_parts(tmp_path: Path):
    """At weight 0 the restorer is the same, so what it learns must be."""
    states = []
    for parts in (1, 4):
        loss = veridical.loss("l1 + 0*gan(width=2)")
        train(small_model(), loss, Samples(), replace(SETTINGS, accumulate=parts), tmp_path / str(parts))
        states.append(loss.state_dict())
    assert int(states[1]["losses.1._extra_state"]) == SETTINGS.steps
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-6)


# -- one for all ----------------------------------------------------------------------------------------


def test_what_is_not_finite_in_one_process_stops_all_with_one_message(worlds):
    first, second = (json.loads((worlds[2] / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["stop"] == second["stop"]
    assert "NonFiniteLoss: the term touchy became NaN or infinite at step 2." in first["stop"]
    assert "It began at the image of photo13.png (in process 1 of 2)." in first["stop"]


def test_a_step_is_left_out_by_all_processes(worlds, tmp_path: Path):
    first, second = (json.loads((worlds[2] / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert "left out: the term touchy became NaN or infinite at step 2." in first["skip"][0]
    assert first["skip"][-1] == "1 step was left out, whose values were not finite"
    assert second["skip"] == []  # the first process speaks
    _, expected = skipping(tmp_path, SETTINGS)
    for rank in (0, 1):
        found = load_file(worlds[2] / f"skipped{rank}.safetensors")
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=OTHERS)


def test_images_are_evaluated_once_each_and_all_processes_know_all_values(worlds, tmp_path: Path):
    expected = evaluated(tmp_path, nn.Identity())
    assert [row["image"] for row in expected[::2]] == [f"p{k}" for k in range(5)]
    for rank in (0, 1):
        assert json.loads((worlds[2] / f"rank{rank}.json").read_text())["rows"] == expected
    names = sorted(path.name for path in (worlds[2] / "images").iterdir())
    assert names == [f"p{k}.png" for k in range(5)]


def test_models_of_several_stages_train_whether_all_of_them_count_or_not(worlds, tmp_path: Path):
    messages = json.loads((worlds[2] / "rank0.json").read_text())
    for stages in ("authors", "last"):
        assert messages[f"stages-{stages}"] == "no error"
        model = TwoHeads()
        train(model, veridical.loss("l1"), Samples(), replace(SETTINGS, stages=stages), tmp_path / stages)
        saved = checkpoints.newest(worlds[2] / f"stages-{stages}" / "checkpoints")
        assert saved is not None
        for key, value in checkpoints.read(saved).model.items():
            torch.testing.assert_close(value, model.state_dict()[key], rtol=0, atol=ATOL["l1"])


def test_rows_are_means_over_the_processes_and_the_parts(worlds, alone, alone_folder: Path):
    assert alone  # has filled the folder
    expected, *others = (
        pl.read_csv(folder / "training.csv").drop("rate")
        for folder in (alone_folder / "ssim", worlds[2] / "ssim-1", worlds[4] / "ssim-2")
    )
    for rows in others:
        for name in rows.columns:
            assert rows[name].to_list() == pytest.approx(expected[name].to_list(), rel=1e-5)


def test_an_error_at_one_image_is_that_of_all_processes(worlds):
    first, second = (json.loads((worlds[2] / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["hole"] == second["hole"]
    assert first["hole"].startswith("NonFiniteLoss: the model restored 'p3' to pixels that are not finite")
    assert first["twice"] == second["twice"]
    assert "5 of 5 images were not evaluated exactly once by the 2 processes" in first["twice"]


# -- stopped, killed, and gone on -----------------------------------------------------------------------

_LONG = """
import os, sys, time
from pathlib import Path
import veridical
from tests.test_devices import LONG, Samples, small_model
from veridical.training.loop import Silent, train

class Slow(Silent):
    def step(self, step, total, terms, rate):
        print(step, flush=True)
        time.sleep(0.05)

out = Path(sys.argv[1])
(out / ("pid" + os.environ.get("LOCAL_RANK", "0"))).write_text(str(os.getpid()))
train(small_model(), veridical.loss("spl-a"), Samples(), LONG, out / "long", observer=Slow())
"""


def begun(folder: Path, until: int):
    """Two processes in the middle of LONG."""
    process = start([sys.executable, str(write_script(folder, _LONG)), str(folder)])
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == until:
            return process
    raise AssertionError(end(process)[1])


def test_goes_on_to_equal_bits_after_a_process_was_killed_and_after_sigterm(worlds, tmp_path: Path):
    process = begun(tmp_path, 12)
    os.kill(int((tmp_path / "pid1").read_text()), signal.SIGKILL)
    _, err = end(process, timeout=300)  # nobody waits for it forever
    assert process.returncode not in (0, None)
    assert "process 1 of 2 was ended by SIGKILL, as the kernel does when memory runs out" in err
    assert "step-00000010. Run the same command again to go on." in err

    process = begun(tmp_path, 15)
    process.send_signal(signal.SIGTERM)  # to the first alone
    _, err = end(process, timeout=300)
    assert process.returncode in (1, -signal.SIGINT), err
    newest = checkpoints.newest(tmp_path / "long" / "checkpoints")
    assert newest is not None
    assert 15 <= int(newest.name[-8:]) < 40

    process = begun(tmp_path, int(newest.name[-8:]) + 1)
    with_children(process, signal.SIGINT)  # as a terminal does
    _, err = end(process, timeout=300)
    assert process.returncode in (1, -signal.SIGINT), err

    run_script(tmp_path, _LONG, str(tmp_path))
    ours, theirs = (checkpoints.read(f / "long" / "checkpoints" / "step-00000040") for f in (tmp_path, worlds[2]))
    assert all(torch.equal(ours.model[key], theirs.model[key]) for key in theirs.model)
    assert all(torch.equal(ours.state[key], theirs.state[key]) for key in theirs.state)


# -- a comparison ---------------------------------------------------------------------------------------


def test_torchrun_compares_in_two_processes(tmp_path: Path):
    train_on = write_photographs(tmp_path / "train", 3)
    evaluate_on = write_photographs(tmp_path / "evaluate", 3, seed=7)
    overrides = ('losses=["l1", "spl-a"]', f"data.evaluate={evaluate_on}", "training.devices=2")
    (tmp_path / "recipe.toml").write_text(quick_recipe(train_on, *overrides).to_toml())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = start(
        [*launcher, "-m", "veridical", "compare", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run")]
    )
    out, err = end(process)
    assert process.returncode == 0, err
    assert out.count("report: ") == 1
    rows = pl.read_parquet(tmp_path / "run" / "rows.parquet")
    assert rows.height == 3 * 3 * 2  # (input and two losses) x images x metrics
    assert len(list((tmp_path / "run" / "images" / "l1").iterdir())) == 3
    # one process, the same models, evaluated anew for the sake of another metric
    metrics = 'metrics=["psnr", "ssim", "gmsd"]'
    again = compare(quick_recipe(train_on, *overrides[:2], metrics), tmp_path / "run")
    found = pl.read_parquet(again / "rows.parquet").filter(pl.col("metric") != "gmsd")
    assert found.equals(rows)


def test_other_processes_than_the_settings_say_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RecipeError, match=r"3 processes were started together.*Set training\.devices"):
        devices.join(SETTINGS)
    with pytest.raises(
        RecipeError, match=r"training\.devices = 2 and training\.nodes = 1 do not fit.*world size \(3\)"
    ):
        devices.join(replace(SETTINGS, devices=2))


def test_several_nodes_need_a_launcher():
    with pytest.raises(RecipeError, match=r"training\.nodes is 2, but this process was started alone.*torchrun"):
        devices.make_fabric(replace(SETTINGS, nodes=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 3}, r"batch_size must be a multiple of training\.accumulate \(3\), but got 8"),
        (
            {"devices": 2, "nodes": 2, "accumulate": 4},
            r"multiple of training\.devices \(2\) \* training\.nodes \(2\) \* training\.accumulate \(4\), but got 8",
        ),
        ({"on_nonfinite": "skp"}, r"one of stop, skip, but got 'skp'\. Did you mean 'skip'\?"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, int], message: str):
    with pytest.raises(RecipeError, match=message):
        replace(SETTINGS, **changes)
