"""What goes wrong in other people's hands: each has a message, none has a traceback, and finished work is kept."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.photographs import photograph, write_photographs
from tests.test_cli import QUICK, veridical
from veridical.core import files

ENOSPC = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photos")


def _fails(*arguments: object, status: int = 2) -> str:
    """The message of a command that must fail."""
    result = veridical(*arguments)
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    if result.exception is not None:
        assert isinstance(result.exception, SystemExit), result.exception
    return result.output


def _compare(tmp_path: Path, data: Path, *more: object) -> tuple[object, ...]:
    return ("compare", "--data", data, "--losses", "l1", "--out", tmp_path / "run", *QUICK, *more)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    said = _fails(*_compare(tmp_path, tmp_path / "nowhere"))
    assert f"error: there is no folder {tmp_path / 'nowhere'}" in said


def test_an_empty_folder_says_which_files_are_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = _fails(*_compare(tmp_path, tmp_path / "empty"))
    assert "holds no image at any depth" in said
    assert ".png .jpg" in said


def test_no_photographs_at_all_is_explained() -> None:
    assert "Expected --data FOLDER or --pairs BLURRED SHARP" in _fails("compare", "--losses", "l1")


def test_a_9x9_image_is_skipped_with_a_count(data: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(data / "tiny.png")
    result = veridical(*_compare(tmp_path, data, "--evaluate", write_photographs(tmp_path / "test", 1, seed=9)))
    assert result.exit_code == 0, result.output
    assert "note: 1 of 5 training photographs were skipped" in result.output
    assert "tiny.png is 9x9 px, but training crops of 32 px need at least 32x32." in result.output


def test_nothing_but_9x9_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    for name in "abc":
        Image.new("RGB", (9, 9)).save(tmp_path / "tiny" / f"{name}.png")
    said = _fails(*_compare(tmp_path, tmp_path / "tiny"))
    assert re.search(r"none of the 2 image\(s\) can be used for training crops of 32 px", said)


def test_a_9x9_evaluation_image_is_reported_before_training(data: Path, tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "test" / "tiny.png")
    said = _fails(*_compare(tmp_path, data, "--evaluate", tmp_path / "test"))
    assert "the evaluation image 'tiny' is 9x9 px, but the metric ssim needs at least 11x11" in said
    assert not (tmp_path / "run").exists()


def test_rgba_and_16_bit_photographs_work(data: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    alpha = np.full((56, 64, 1), 128, np.uint8)
    Image.fromarray(np.concatenate([photograph(20), alpha], axis=2)).save(data / "see-through.png")
    cv2.imwrite(str(data / "deep.png"), photograph(21).astype(np.uint16) * 257)
    test = write_photographs(tmp_path / "test", 1, seed=9)
    cv2.imwrite(str(test / "deep.tif"), photograph(22).astype(np.uint16) * 257)
    result = veridical(*_compare(tmp_path, data, "--evaluate", test))
    assert result.exit_code == 0, result.output
    assert "skipped" not in result.output
    assert '"train": "6 photographs' in (tmp_path / "run" / "comparison.json").read_text()


def test_a_truncated_jpeg_is_skipped_with_a_count(data: Path, tmp_path: Path) -> None:
    Image.fromarray(photograph(20)).save(data / "whole.jpg")
    whole = (data / "whole.jpg").read_bytes()
    (data / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    result = veridical(*_compare(tmp_path, data, "--evaluate", write_photographs(tmp_path / "test", 1, seed=9)))
    assert result.exit_code == 0, result.output
    assert "note: 1 of 6 training photographs were skipped: cannot read" in result.output
    assert "cut.jpg: the file is damaged or cut short" in result.output


def test_an_unknown_loss_suggests_the_nearest(data: Path, tmp_path: Path) -> None:
    said = _fails(*_compare(tmp_path, data, "--losses", "l1,ms-sim"))
    assert "error: unknown loss 'ms-sim'. Did you mean 'ms-ssim'?" in said
    assert not (tmp_path / "run").exists()


def test_an_unknown_recipe_key_suggests_the_nearest(data: Path, tmp_path: Path) -> None:
    said = _fails(*_compare(tmp_path, data, "--set", "training.stepps=5"))
    assert "error: unknown recipe key 'training.stepps'. Did you mean 'steps'?" in said
    (tmp_path / "recipe.toml").write_text('tusk = "deblur"\n')
    said = _fails("compare", tmp_path / "recipe.toml", "--data", data)
    assert "error: unknown recipe key 'tusk'. Did you mean 'task'?" in said


def test_pairs_of_different_names_list_the_first_of_each_side(tmp_path: Path) -> None:
    blur, sharp = write_photographs(tmp_path / "blur", 3), write_photographs(tmp_path / "sharp", 3)
    (blur / "photo0.png").rename(blur / "other.png")
    said = _fails("compare", "--pairs", blur, sharp, "--losses", "l1", "--out", tmp_path / "run")
    assert "do not match" in said
    assert "Only in the first: other. Only in the second: photo0." in said


def test_a_run_that_is_none_is_explained(tmp_path: Path) -> None:
    assert "Expected a folder written by `veridical compare`" in _fails("report", tmp_path)
    assert "Expected the folder of one loss" in _fails("restore", "--run", tmp_path, tmp_path, "-o", tmp_path / "out")


def test_an_unknown_option_is_an_error_of_the_command() -> None:
    result = veridical("compare", "--lossess", "l1")
    assert result.exit_code == 2
    assert "--losses" in result.output


def test_a_full_disk_says_what_is_safe_and_the_same_command_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills while the second loss saves its model."""
    real = files.atomic_write

    def full(path: Path, content: bytes) -> None:
        if path.match("l2/model.safetensors"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, content)

    command = _compare(tmp_path, data, "--losses", "l1,l2")
    with monkeypatch.context() as patched:
        patched.setattr("veridical.comparison.results.atomic_write", full)
        said = _fails(*command, status=1)
    run = tmp_path / "run"
    assert f"error: no space left on {run / 'l2' / 'model.safetensors'}; finished work is in {run}" in said
    assert "run the same command again to continue" in said
    again = veridical(*command)
    assert again.exit_code == 0, again.output
    assert "l1: was finished already" in again.output


def test_a_disk_that_is_full_while_a_checkpoint_is_written_is_said_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        del path, content
        raise ENOSPC

    monkeypatch.setattr("veridical.training.checkpoint._write", full)
    said = _fails(*_compare(tmp_path, data), status=1)
    assert "error: no space left on" in said
    assert f"finished work is in {tmp_path / 'run'}" in said


def test_a_folder_that_cannot_be_written_is_said_before_training(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    said = _fails("compare", "--data", data, "--losses", "l1", "--out", tmp_path / "file", *QUICK)
    assert "is a file. Name a folder" in said


def test_ctrl_c_says_where_the_work_is_and_the_same_command_continues(data: Path, tmp_path: Path) -> None:
    """A real process, interrupted in its second loss."""
    arguments = [str(each) for each in _compare(tmp_path, data, "--losses", "l1,l2", "--steps", 2000)]
    command = [sys.executable, "-m", "veridical", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    begun = time.monotonic()
    for line in process.stdout:
        if "l1: step" in line or time.monotonic() - begun > 120:
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert f"stopped; finished work is in {tmp_path / 'run'}; run the same command again to continue" in said
    checkpoints = list((tmp_path / "run" / "l1" / "checkpoints").glob("step-*"))
    assert checkpoints, "Ctrl-C must leave a checkpoint"
