"""The loop and its checkpoints: exact resume, whole files, and words that help when something breaks."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from tests.processes import run_script
from veridical.core.errors import DataError, NonFiniteLoss, RecipeError
from veridical.training import checkpoint as checkpoints
from veridical.training import devices
from veridical.training.checkpoint import Checkpoint, StorageError
from veridical.training.loop import TrainingResult, train
from veridical.training.nonfinite import Sentinel
from veridical.training.settings import Settings


class TinySamples(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sharp = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(index))
        return 0.5 * sharp, sharp


class StepwiseLoss(nn.Module):
    """l2, and a term that depends on a `step` buffer, as the random losses have it. Both can be made to fail."""

    label = "l2 + jitter"
    learns = False
    batches_to_calibrate = 0
    step: Tensor

    def __init__(self, *, fails_at: int = -1, gradient_fails: bool = False) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.fails_at, self.gradient_fails = fails_at, gradient_fails

    def with_terms(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        jitter = 0.1 * (prediction - target).abs().mean() * torch.sin(self.step.float()) ** 2
        if self.training:
            self.step += 1
        if int(self.step) >= self.fails_at > 0:
            # The root's slope at 0 is infinite, and infinity times 0 is NaN, while the value stays 0.
            root = (prediction - prediction.detach()).pow(2).sum().sqrt()
            jitter = jitter + (root if self.gradient_fails else torch.nan)
        terms = {"l2": (prediction - target).pow(2).mean(), "jitter": jitter}
        return terms["l2"] + terms["jitter"], terms

    def terms(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        return self.with_terms(prediction, target)[1]


def tiny_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Conv2d(4, 3, 3, padding=1),
    )


SETTINGS = Settings(steps=30, batch_size=2, crop=8, lr=1e-2, ema=0.9, device="cpu", log_every=4, checkpoint_every=5)


def run(folder: Path, *, loss: nn.Module | None = None, **changes: object) -> tuple[nn.Module, TrainingResult]:
    model = tiny_model()
    settings = Settings(**{**SETTINGS.__dict__, **changes})
    return model, train(model, loss or StepwiseLoss(), TinySamples(), settings, folder)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "training.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def without_rate(table: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "rate"} for row in table]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, TrainingResult, Path]:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return *run(folder), folder


# -- what a run leaves ----------------------------------------------------------------------------------


def test_writes_rows_events_and_the_last_two_checkpoints(whole: tuple[nn.Module, TrainingResult, Path]):
    _, result, folder = whole
    table = rows(folder)
    assert list(table[0]) == ["step", "total", "term:l2", "term:jitter", "lr", "rate"]
    assert [int(row["step"]) for row in table] == [4, 8, 12, 16, 20, 24, 28, 30]
    for row in table:
        assert float(row["total"]) == pytest.approx(float(row["term:l2"]) + float(row["term:jitter"]), rel=1e-5)
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == [
        "step-00000025",
        "step-00000030",
    ]
    assert len(list(folder.glob("events.out.*"))) == 1
    assert result.steps == 30
    assert result.final_terms["l2"] == pytest.approx(float(table[-1]["term:l2"]))
    assert float(table[-1]["total"]) < 0.5 * float(table[0]["total"])


def test_the_learning_rate_falls_along_a_cosine_to_one_hundredth(
    whole: tuple[nn.Module, TrainingResult, Path],
):
    table = rows(whole[2])
    # 0.01 * (0.01 + 0.99 * (1 + cos(pi * 15 / 29)) / 2) at step 16 of 30, worked out by hand
    assert float(table[3]["lr"]) == pytest.approx(0.01 * (0.01 + 0.99 * 0.472946), rel=1e-4)
    assert float(table[-1]["lr"]) == pytest.approx(1e-4)


def test_the_final_weights_are_the_moving_average(whole: tuple[nn.Module, TrainingResult, Path]):
    model, _, folder = whole
    saved = checkpoints.read(folder / "checkpoints" / "step-00000030")
    average = saved.part("ema")
    assert all(torch.equal(value, average[name]) for name, value in model.named_parameters())
    assert not torch.equal(saved.model["0.weight"], average["0.weight"])


def test_the_moving_average_follows_its_formula(tmp_path: Path):
    run(tmp_path, steps=2, checkpoint_every=1, ema=0.15)
    first, second = (checkpoints.read(path) for path in sorted((tmp_path / "checkpoints").iterdir()))
    start = dict(tiny_model().named_parameters())["0.weight"].detach()
    # decays min(0.15, 2/11) = 0.15, then min(0.15, 3/12) = 0.15
    expected = 0.15 * start + 0.85 * first.model["0.weight"]
    torch.testing.assert_close(first.part("ema")["0.weight"], expected)
    expected = 0.15 * expected + 0.85 * second.model["0.weight"]
    torch.testing.assert_close(second.part("ema")["0.weight"], expected)


def test_lightning_fabric_trains_to_the_weights_of_plain_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[nn.Module, TrainingResult, Path]
):
    assert isinstance(devices.make_fabric(SETTINGS), devices.PlainFabric)
    monkeypatch.setattr(devices, "needs_fabric", lambda settings: True)
    assert not isinstance(devices.make_fabric(SETTINGS), devices.PlainFabric)
    model, _ = run(tmp_path)
    assert same_weights(model, whole[0])


def test_without_lightning_fabric_half_precision_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)  # an import of it now fails
    with pytest.raises(RecipeError, match="needs Lightning Fabric"):
        run(tmp_path / "half", precision="16-mixed")


def test_without_tensorboard_it_says_so_once_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    watcher = Watcher()
    train(tiny_model(), StepwiseLoss(), TinySamples(), SETTINGS, tmp_path, observer=watcher)
    assert [note for note in watcher.notes if "TensorBoard is not installed" in note] == watcher.notes
    assert watcher.start == (30, 0)
    assert watcher.steps == list(range(1, 31))


class Watcher:
    def __init__(self) -> None:
        self.start: tuple[int, int] | None = None
        self.steps: list[int] = []
        self.notes: list[str] = []

    def started(self, total_steps: int, start_step: int) -> None:
        self.start = (total_steps, start_step)

    def step(self, step: int, total: float, terms: dict[str, float], rate: float) -> None:
        assert total == pytest.approx(sum(terms.values()), rel=1e-5)
        assert rate > 0
        self.steps.append(step)

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_bfloat16_trains_too(tmp_path: Path, whole: tuple[nn.Module, TrainingResult, Path]):
    _, result = run(tmp_path, precision="bf16-mixed")
    assert result.final_terms["l2"] == pytest.approx(whole[1].final_terms["l2"], rel=0.2)


_TWO = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from tests.test_training import SETTINGS, PlainL1, TinySamples
from veridical.training.loop import train

for folder in ("once", "again"):  # a sweep trains several times in one process
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 3, 3, padding=1)
    settings = replace(SETTINGS, devices=2, steps=8)
    train(model, PlainL1(), TinySamples(), settings, Path(sys.argv[1]) / folder)
"""


class PlainL1(nn.Module):
    label = "l1"
    learns = False
    batches_to_calibrate = 0

    def with_terms(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        value = (prediction - target).abs().mean()
        return value, {"l1": value}


def test_two_processes_train_to_the_weights_of_one(tmp_path: Path):
    torch.manual_seed(0)
    model = nn.Conv2d(3, 3, 3, padding=1)
    train(model, PlainL1(), TinySamples(), replace(SETTINGS, steps=8), tmp_path / "alone")
    run_script(tmp_path, _TWO, str(tmp_path))
    for folder in ("once", "again"):
        saved = checkpoints.read(tmp_path / folder / "checkpoints" / "step-00000008")
        torch.testing.assert_close(saved.part("ema")["weight"], model.weight.detach(), rtol=0, atol=1e-6)
        assert [int(row["step"]) for row in rows(tmp_path / folder)] == [4, 8]


# -- resume ---------------------------------------------------------------------------------------------

_SCRIPT = """
import sys, time
from pathlib import Path
import torch
from tests.test_training import SETTINGS, StepwiseLoss, TinySamples, tiny_model
from veridical.training.loop import Silent, train

class Slow(Silent):
    def step(self, step, total, terms, rate):
        print(step, flush=True)
        time.sleep(0.05)

train(tiny_model(), StepwiseLoss(), TinySamples(), SETTINGS, Path(sys.argv[1]), observer=Slow())
"""


def _start(folder: Path) -> subprocess.Popen[str]:
    """A training in a process of its own, at its 12th step or a little later."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 12:
            break
    return process


def test_goes_on_after_a_kill_to_bit_equal_weights(tmp_path: Path, whole: tuple[nn.Module, TrainingResult, Path]):
    process = _start(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    newest = checkpoints.newest(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.name == "step-00000010"
    with (tmp_path / "training.csv").open("a") as stream:
        stream.write("11,0.1")  # as a kill in the middle of a row would leave it

    model, result = run(tmp_path)
    assert same_weights(model, whole[0])
    assert result.final_terms == whole[1].final_terms
    assert without_rate(rows(tmp_path)) == without_rate(rows(whole[2]))  # also step 12's, a mean over both processes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])  # the latter comes from a cluster
def test_ctrl_c_saves_the_last_finished_step(
    number: signal.Signals, tmp_path: Path, whole: tuple[nn.Module, TrainingResult, Path]
):
    process = _start(tmp_path)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode in (
        1,
        -signal.SIGINT,
    )  # Python re-raises the signal for an uncaught KeyboardInterrupt
    newest = checkpoints.newest(tmp_path / "checkpoints")
    assert newest is not None
    assert 12 <= int(newest.name[-8:]) < 30
    model, _ = run(tmp_path)
    assert same_weights(model, whole[0])


def test_a_finished_run_is_not_trained_again(tmp_path: Path, whole: tuple[nn.Module, TrainingResult, Path]):
    shutil.copytree(whole[2], tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "training.csv").read_text()
    model, result = run(tmp_path, loss=StepwiseLoss(fails_at=1))
    assert same_weights(model, whole[0])
    assert result.final_terms == pytest.approx(whole[1].final_terms)
    assert (tmp_path / "training.csv").read_text() == before


def test_a_run_of_other_settings_is_refused_with_what_differs(
    tmp_path: Path, whole: tuple[nn.Module, TrainingResult, Path]
):
    shutil.copytree(whole[2], tmp_path, dirs_exist_ok=True)
    with pytest.raises(
        RecipeError, match=r"at step 30: training\.lr was 0\.01, now 0\.02; training\.steps was 30, now"
    ):
        run(tmp_path, lr=0.02, steps=40)
    run(tmp_path, log_every=3, workers=0)  # what does not change the result may change
    train(tiny_model(), StepwiseLoss(), TinySamples(), SETTINGS, tmp_path, resume=False)
    with pytest.raises(RecipeError, match="data was not set, now gopro"):
        train(tiny_model(), StepwiseLoss(), TinySamples(), SETTINGS, tmp_path, fingerprint={"data": "gopro"})


def test_a_damaged_checkpoint_is_passed_over_with_a_message(
    tmp_path: Path, whole: tuple[nn.Module, TrainingResult, Path]
):
    shutil.copytree(whole[2], tmp_path, dirs_exist_ok=True)
    damaged = tmp_path / "checkpoints" / "step-00000030" / "state.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    saved, messages = checkpoints.load(tmp_path / "checkpoints")
    assert saved is not None
    assert saved.step == 25
    assert len(messages) == 1
    assert "step-00000030 is damaged" in messages[0]
    model, _ = run(tmp_path)
    assert same_weights(model, whole[0])


def test_where_every_checkpoint_is_damaged_it_starts_anew_and_keeps_the_new_ones(
    tmp_path: Path, whole: tuple[nn.Module, TrainingResult, Path]
):
    """Also those of JSON that no reader survives, and though the damaged ones are of later steps."""
    shutil.copytree(whole[2], tmp_path, dirs_exist_ok=True)
    for path, said in zip(sorted((tmp_path / "checkpoints").iterdir()), ("[" * 100_000, "[1]"), strict=True):
        (path / "state.json").write_text(said)
    watcher = StopsAt(12)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model(), StepwiseLoss(), TinySamples(), SETTINGS, tmp_path, observer=watcher)
    assert [note.rpartition(" ")[2] for note in watcher.notes] == ["before.", "before.", "anew."]
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000005", "step-00000010"]
    model, _ = run(tmp_path)
    assert same_weights(model, whole[0])
    assert without_rate(rows(tmp_path)) == without_rate(rows(whole[2]))


class StopsAt(Watcher):
    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def step(self, step: int, total: float, terms: dict[str, float], rate: float) -> None:
        super().step(step, total, terms, rate)
        if step == self.last:
            raise KeyboardInterrupt


def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[nn.Module, TrainingResult, Path]
):
    shutil.copytree(whole[2], tmp_path, dirs_exist_ok=True)
    read_file = checkpoints.read_file

    def away(path: Path, most: int) -> bytes:
        if "step-00000030" in str(path):
            raise OSError(116, "Stale file handle", str(path))
        return read_file(path, most)

    monkeypatch.setattr(checkpoints, "read_file", away)
    with pytest.raises(StorageError, match=r"step-00000030: Stale file handle\. Mend that .* or delete"):
        run(tmp_path)
    monkeypatch.undo()
    assert checkpoints.read(tmp_path / "checkpoints" / "step-00000030").step == 30


def test_events_that_cannot_be_written_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[nn.Module, TrainingResult, Path]
):
    added = []

    def full(events: object, step: int, values: dict[str, float]) -> None:
        del events, values
        added.append(step)
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("veridical.training.rows._Events.add", full)
    watcher, model = Watcher(), tiny_model()
    train(model, StepwiseLoss(), TinySamples(), SETTINGS, tmp_path, observer=watcher)
    assert added == [4]
    (note,) = watcher.notes
    assert "no more events are written for TensorBoard (No space left on device)" in note
    assert same_weights(model, whole[0])


def test_events_are_read_in_order_though_the_clock_went_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(KeyboardInterrupt):
        train(tiny_model(), StepwiseLoss(), TinySamples(), SETTINGS, tmp_path, observer=StopsAt(24))
    monkeypatch.setattr(time, "time", lambda: 1e9)
    run(tmp_path)
    first, second = sorted(tmp_path.glob("events.out.*"))
    assert second.stat().st_size < first.stat().st_size  # the run went on from step 20
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("total")}
    assert found == {int(row["step"]): pytest.approx(float(row["total"])) for row in rows(tmp_path)}


# -- when something breaks ------------------------------------------------------------------------------


def test_a_term_that_becomes_nan_is_named_and_the_good_checkpoint_kept(tmp_path: Path):
    with pytest.raises(NonFiniteLoss, match=r"the term jitter became NaN.*at step 13.*step-00000010\."):
        run(tmp_path, loss=StepwiseLoss(fails_at=13))
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-00000005",
        "step-00000010",
    ]
    saved, _ = checkpoints.load(tmp_path / "checkpoints")
    assert saved is not None
    assert all(torch.isfinite(value).all() for value in saved.model.values() if value.is_floating_point())


def test_a_gradient_that_becomes_nan_is_named_by_its_term(tmp_path: Path):
    with pytest.raises(NonFiniteLoss, match=r"the gradient of the term jitter.*at step 3\. There is no checkpoint"):
        run(tmp_path, loss=StepwiseLoss(fails_at=3, gradient_fails=True))


def test_a_late_look_still_names_the_first_bad_step():
    """On an accelerator the loop looks rarely; the sentinel must remember."""
    sentinel = Sentinel()
    good, bad = torch.tensor(1.0), torch.tensor(float("inf"))
    sentinel.see(1, good, {"a": good, "b": good}, good, {})
    assert sentinel.look() == (None, False)
    sentinel.see(2, bad, {"a": good, "b": bad}, bad, {})
    sentinel.see(3, bad, {"a": bad, "b": bad}, bad, {})
    fault, _ = sentinel.look()
    assert fault is not None
    assert (fault.step, fault.said()) == (2, "the term b became NaN or infinite")


def test_a_worker_that_is_killed_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[nn.Module, TrainingResult, Path]
):
    """From outside, in the middle of the training, as the kernel does."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.3,))  # else 5 s until noticed

    class Killer(Watcher):
        def step(self, step: int, total: float, terms: dict[str, float], rate: float) -> None:
            super().step(step, total, terms, rate)
            if step == 5:
                os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)

    model, killer = tiny_model(), Killer()
    train(model, StepwiseLoss(), TinySamples(), replace(SETTINGS, workers=2), tmp_path, observer=killer)
    (note,) = (note for note in killer.notes if "was killed" in note)
    assert "Nothing is lost: the batches are made again by new ones." in note
    assert same_weights(model, whole[0])


def test_a_photograph_that_vanishes_stops_it_with_words(tmp_path: Path):
    class Vanishing(TinySamples):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            if index >= 14:
                raise DataError("cannot read photos/a.png: No such file or directory.")
            return super().__getitem__(index)

    for workers in (0, 1):
        with pytest.raises(DataError) as caught:
            train(tiny_model(), StepwiseLoss(), Vanishing(), replace(SETTINGS, workers=workers), tmp_path)
        said = str(caught.value)
        assert said.startswith("cannot read photos/a.png: No such file or directory. It was there when")
        assert "is needed for step 8. The last good checkpoint is" in said
        assert "step-00000005. Put it back and run the same command again" in said
        assert "Traceback" not in said


def small_checkpoint(step: int, size: int = 10) -> Checkpoint:
    return Checkpoint(step, 1.0, {}, {"w": torch.zeros(size)}, {"random.cpu": torch.zeros(2)})


def test_a_full_disk_is_an_error_and_the_old_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoints.save(tmp_path, small_checkpoint(1))
    write = checkpoints._write

    def full(path: Path, data: bytes) -> None:
        if path.name == "state.safetensors":
            raise OSError(28, os.strerror(28))
        write(path, data)

    monkeypatch.setattr(checkpoints, "_write", full)
    with pytest.raises(StorageError, match=r"step-00000002: No space left on device.*last good.*step-00000001"):
        checkpoints.save(tmp_path, small_checkpoint(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoints.read(tmp_path / "step-00000001").step == 1


def test_a_checkpoint_left_half_written_by_a_kill_is_cleared_away(tmp_path: Path):
    (tmp_path / ".step-00000001-dead").mkdir()
    checkpoints.save(tmp_path, small_checkpoint(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_tensors_that_share_memory_are_saved(tmp_path: Path):
    shared = torch.arange(4.0)
    checkpoints.save(tmp_path, Checkpoint(1, 0.0, {}, {"a": shared, "b": shared}, {"c": shared[:2]}))
    saved = checkpoints.read(tmp_path / "step-00000001")
    assert torch.equal(saved.model["a"], saved.model["b"])
    assert json.loads((tmp_path / "step-00000001" / "state.json").read_text())["step"] == 1


def test_importing_the_loop_is_quick_and_brings_no_extra():
    code = (
        "import sys, veridical.training.loop\n"
        "print([m for m in ('lightning_fabric', 'pydantic', 'cv2', 'tensorboard') if m in sys.modules])\n"
        "import veridical.comparison.sweep\n"
        "print([m for m in ('lightning_fabric', 'scipy.stats', 'jinja2', 'tensorboard') if m in sys.modules])"
    )
    started = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["[]", "[]"]
    assert time.perf_counter() - started < 30
