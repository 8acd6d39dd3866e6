"""Runs on a storage that several machines reach: nothing finished is lost, and one process owns each."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.heard import Heard
from tests.object_store import bucket, s3_server  # noqa: F401 # fixtures
from tests.photographs import QUICK, quick_recipe, write_photographs
from veridical.cli import app
from veridical.comparison import storage
from veridical.comparison.storage import Mirror, opened, to_read
from veridical.comparison.sweep import compare
from veridical.core.errors import DataError, MissingExtra, RecipeError
from veridical.training import checkpoint as checkpoints
from veridical.training.checkpoint import StorageError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photos")


@pytest.fixture
def url() -> Iterator[str]:
    """A storage in the memory of this process."""
    files = fsspec.filesystem("memory")
    yield "memory://run"
    files.rm("/", recursive=True)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life that come and are missed in a moment."""
    monkeypatch.setattr(storage, "_BEAT_SECONDS", 0.2)


def silent(text: str) -> None:
    del text


# -- the copy --------------------------------------------------------------------------------------------


def test_what_is_pushed_is_pulled_and_what_is_gone_is_removed(url: str, tmp_path: Path) -> None:
    here, there = Mirror(url, tmp_path / "here"), Mirror(url, tmp_path / "there")
    for name in ("l1/checkpoints/step-1/state.json", "l1/result.json", "rows.csv", ".hidden"):
        path = tmp_path / "here" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    here.push()
    there.pull()
    found = sorted(path.relative_to(tmp_path / "there").as_posix() for path in (tmp_path / "there").rglob("*.*"))
    assert found == ["l1/checkpoints/step-1/state.json", "l1/result.json", "rows.csv"]
    (tmp_path / "here" / "l1" / "checkpoints" / "step-1" / "state.json").unlink()
    here.push("l1")
    again = Mirror(url, tmp_path / "again")
    again.pull("l1")
    assert [path.name for path in (tmp_path / "again").rglob("*.*")] == ["result.json"]


def test_what_a_machine_never_had_is_not_removed_by_it(url: str, tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/run/l1/model.safetensors", b"of another machine")
    (tmp_path / "l1").mkdir()
    (tmp_path / "l1" / "result.json").write_text("{}")
    mirror = Mirror(url, tmp_path)
    mirror.push("l1")
    assert fsspec.filesystem("memory").find("/run") == ["/run/l1/model.safetensors", "/run/l1/result.json"]


def test_the_file_that_says_that_others_are_whole_comes_last(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model.safetensors", "state.json", "state.safetensors"):
        (tmp_path / name).write_text("x")
    mirror, order = Mirror(url, tmp_path), []
    monkeypatch.setattr(mirror._fs, "put_file", lambda here, there: order.append(Path(there).name))
    mirror.push()
    assert order == ["model.safetensors", "state.safetensors", "state.json"]


def test_only_what_has_changed_is_copied(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("a")
    mirror, copied = Mirror(url, tmp_path), []
    mirror.push()
    monkeypatch.setattr(mirror._fs, "put_file", lambda here, there: copied.append(Path(there).name))
    (tmp_path / "b.csv").write_text("b")
    mirror.push()
    assert copied == ["b.csv"]


def test_a_name_that_leads_out_of_the_run_is_refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(url, tmp_path / "run")
    monkeypatch.setattr(mirror._fs, "find", lambda where: ["/run/../../outside.txt"])
    with pytest.raises(DataError, match="leads out of the run"):
        mirror.pull()
    assert not (tmp_path / "outside.txt").exists()


def test_a_storage_that_is_unknown_or_needs_a_package_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="nonsense://x names no storage that fsspec knows"):
        Mirror("nonsense://x", tmp_path)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtra, match=r"veridical\[remote\]"):
        Mirror("s3://bucket/run", tmp_path)


def test_a_storage_that_fails_is_named_and_the_work_kept(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.csv").write_text("a")
    mirror = Mirror(url, tmp_path)

    def full(*paths: str) -> None:
        raise PermissionError(f"403 Forbidden: {paths[1]}")

    monkeypatch.setattr(mirror._fs, "put_file", full)
    with pytest.raises(StorageError, match=r"cannot write memory://run/a\.csv: PermissionError: 403.*" + str(tmp_path)):
        mirror.push()


# -- one owner -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hurried")
def test_a_second_process_is_refused_with_the_owner_named(url: str) -> None:
    notes: list[str] = []
    with (
        opened(url, silent),
        pytest.raises(RecipeError, match=rf"another process works on {url}: .*process {os.getpid()}"),
        opened(url, notes.append),
    ):
        pass
    assert notes[0].startswith(f"{url} has an owner")
    with opened(url, notes.append):  # the first has ended and left no sign
        pass
    assert len(notes) == 1


@pytest.mark.usefixtures("hurried")
def test_the_run_of_a_dead_owner_is_taken_over_whatever_the_clock_says(url: str) -> None:
    sign = {"id": "x", "owner": "another machine, since 2099-01-01", "beat": 7}
    fsspec.filesystem("memory").pipe_file("/run/.owner.json", json.dumps(sign).encode())
    notes: list[str] = []
    with opened(url, notes.append):
        assert json.loads(fsspec.filesystem("memory").cat_file("/run/.owner.json"))["id"] != "x"
    assert notes[0].startswith(f"{url} has an owner, another machine, since 2099-01-01; waiting")
    assert notes[1] == f"there was none: taking over {url}"


@pytest.mark.usefixtures("hurried")
def test_an_owner_that_was_thought_dead_writes_no_more(url: str, tmp_path: Path) -> None:
    mirror = Mirror(url, tmp_path)
    (tmp_path / "a.csv").write_text("a")
    with mirror.owned(silent):
        sign = {"id": "x", "owner": "another machine", "beat": 0}
        fsspec.filesystem("memory").pipe_file("/run/.owner.json", json.dumps(sign).encode())
        deadline = time.monotonic() + 10
        while mirror._lost is None and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(StorageError, match="taken over by another machine"):
            mirror.push()
    assert json.loads(fsspec.filesystem("memory").cat_file("/run/.owner.json"))["id"] == "x"


# -- whole runs, by a server that speaks S3 --------------------------------------------------------------


def test_a_run_on_s3_is_that_of_a_folder_and_goes_on(bucket: str, data: Path, tmp_path: Path) -> None:  # noqa: F811
    run = f"{bucket}/runs/x"
    recipe = quick_recipe(data, 'losses=["l1", "spl-a"]', "training.checkpoint_every=1")
    assert compare(recipe, run) == run
    compare(recipe, tmp_path / "here")
    with to_read(run) as (folder, _):
        assert pl.read_parquet(folder / "rows.parquet").equals(pl.read_parquet(tmp_path / "here" / "rows.parquet"))
        assert {path.name for path in (folder / "images" / "l1").iterdir()} == {"photo3.png"}
        assert not (folder / "l1" / "checkpoints").exists()
    held = fsspec.core.url_to_fs(run)[0].find(run)
    assert not any("/.owner" in name or "/." in name for name in held)
    assert sum("spl-a/checkpoints/" in name for name in held) == 2 * 3  # the last two, of three files each
    heard = Heard()
    compare(quick_recipe(data, 'losses=["l1", "spl-a", "l2"]', "training.checkpoint_every=1"), run, heard)
    assert heard.ends == [("l1", "kept"), ("spl-a", "kept"), ("l2", "done")]


def test_the_command_reports_from_s3_and_leaves_the_page_there(bucket: str, data: Path) -> None:  # noqa: F811
    run = f"{bucket}/run"
    settings = [part for each in QUICK for part in ("--set", each)]
    done = CliRunner().invoke(
        app, ["compare", "--data", str(data), "--losses", "l1,l2", *settings, "--out", run], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert f"report: {run}/report.html" in done.output
    again = CliRunner().invoke(app, ["report", run], catch_exceptions=False)
    assert again.exit_code == 0, again.output
    assert "| l1" in CliRunner().invoke(app, ["report", run, "--markdown"], catch_exceptions=False).output
    assert fsspec.core.url_to_fs(run)[0].cat_file(f"{run}/report.html").startswith(b"<!doctype html>")
    wrong = CliRunner().invoke(app, ["report", f"{bucket}/none"])
    assert wrong.exit_code == 2
    assert f"there is nothing at {bucket}/none" in wrong.output


def test_a_model_on_s3_restores_and_is_a_start(bucket: str, data: Path, tmp_path: Path) -> None:  # noqa: F811
    run = f"{bucket}/run"
    compare(quick_recipe(data, 'losses=["l1"]'), run)
    done = CliRunner().invoke(app, ["restore", str(data), "--run", f"{run}/l1", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "out").iterdir())) == 4
    settings = [part for each in QUICK[2:] if not each.startswith("model") for part in ("--set", each)]
    options = ["--data", str(data), "--loss", "l2", "--init", f"{run}/l1", *settings, "--out", str(tmp_path / "tuned")]
    done = CliRunner().invoke(app, ["train", *options, "--degradation", "box-blur(size=5)", "--metrics", "psnr"])
    assert done.exit_code == 0, done.output
    assert f"{run}/l1" in (tmp_path / "tuned" / "recipe.toml").read_text()


_SCRIPT = """
import os, signal, sys
from pathlib import Path
from tests.photographs import quick_recipe
from veridical.comparison.sweep import compare
from veridical.comparison.observer import Observer

class Dies(Observer):
    def step(self, step, total, terms, rate):
        if step == 8:
            os.kill(os.getpid(), signal.SIGKILL)

settings = ['losses=["spl-a"]', "training.steps=12", "training.checkpoint_every=3", "training.ema=0.9"]
compare(quick_recipe(Path(sys.argv[1]), *settings), sys.argv[2], Dies())
"""


def test_another_machine_goes_on_from_the_last_checkpoint_to_the_same_bits(
    bucket: str,  # noqa: F811
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A real process, killed; a second one that has nothing of the first but what is on the storage."""
    run = f"{bucket}/run"
    killed = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(data), run], cwd=Path(__file__).parents[1], check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    monkeypatch.setattr(storage, "_BEAT_SECONDS", 0.2)
    settings = ['losses=["spl-a"]', "training.steps=12", "training.checkpoint_every=3", "training.ema=0.9"]
    heard = Heard()
    compare(quick_recipe(data, *settings), run, heard)
    assert heard.starts == [6]
    assert any("taking over" in note for note in heard.notes)
    compare(quick_recipe(data, *settings), tmp_path / "here")
    with to_read(run) as (folder, _):
        ours, theirs = (load_file(each / "spl-a" / "model.safetensors") for each in (folder, tmp_path / "here"))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_half_a_checkpoint_on_the_storage_is_passed_over(
    bucket: str,  # noqa: F811
    data: Path,
) -> None:
    """As when the machine was lost while it copied: the file that makes it whole is not there yet."""
    run = f"{bucket}/run"
    settings = ['losses=["l1"]', "training.steps=6", "training.checkpoint_every=2"]
    compare(quick_recipe(data, *settings), run)
    files, root = fsspec.core.url_to_fs(run, use_listings_cache=False)
    for name in ("result.json", "model.safetensors", "checkpoints/step-00000006/state.json"):
        files.rm_file(f"{root}/l1/{name}")
    heard = Heard()
    compare(quick_recipe(data, *settings), run, heard)
    assert heard.starts == [4]
    assert any("step-00000006 is damaged" in note for note in heard.notes)


def test_a_search_and_several_devices_here_need_a_folder(data: Path) -> None:
    from veridical.comparison.tune import tune

    with pytest.raises(RecipeError, match="--on ray"):
        compare(quick_recipe(data, 'losses=["l1"]', "training.devices=2"), "memory://run")
    with pytest.raises(RecipeError, match="a folder of this machine"):
        tune(quick_recipe(data, 'losses=["l1 + 0.1*l2"]'), "memory://run")


def test_checkpoints_are_found_by_their_step_alone(tmp_path: Path) -> None:
    """A copy from a storage has the times of the copy."""
    for step in (1, 2):
        path = checkpoints.save(tmp_path, checkpoints.Checkpoint(step, 0.0, {}, {}, {}))
        os.utime(path, (10 - step, 10 - step))
    newest = checkpoints.newest(tmp_path)
    assert newest is not None
    assert newest.name == "step-00000002"
