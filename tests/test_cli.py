"""The command, called as a person calls it."""

import re
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from tests.photographs import photograph, write_photographs
from veridical import __version__
from veridical.cli import app
from veridical.cli.common import split_list
from veridical.comparison.progress import Lines
from veridical.core.errors import VeridicalError
from veridical.degradations import DEGRADATIONS, TASKS
from veridical.losses import LOSSES
from veridical.metrics import METRICS
from veridical.models import MODELS

QUICK = [
    "--steps",
    "3",
    "--batch-size",
    "2",
    "--crop",
    "32",
    "--width",
    "4",
    "--device",
    "cpu",
    "--metrics",
    "psnr,ssim",
]
QUICK += ["--model", "unet(levels=1, convs=1)", "--degradation", "box-blur(size=5)"]


def veridical(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """One finished comparison of two losses, and what the command said."""
    folder = tmp_path_factory.mktemp("cli")
    data = write_photographs(folder / "photos")
    losses = "l1,0.8*l2 + 0.2*charbonnier(eps=1e-3)"
    result = veridical("compare", "--data", data, "--losses", losses, "--out", folder / "run", *QUICK)
    return folder / "run", result


def test_compare_ends_with_the_table_the_verdict_and_the_report(run: tuple[Path, Result]) -> None:
    folder, result = run
    assert result.exit_code == 0, result.output
    assert (folder / "report.html").stat().st_size > 10_000
    assert f"report: {folder / 'report.html'}" in result.output
    table = result.output[result.output.index("mean over") :]
    for word in ("degraded input", "l1", "0.8*l2 + 0.2*charbonnier", "PSNR", "SSIM"):
        assert word in table
    assert re.search(r"^Use (l1|0\.8\*l2)", result.output, re.MULTILINE)


def test_progress_is_plain_lines_when_nobody_watches(run: tuple[Path, Result]) -> None:
    _, result = run
    assert "\x1b" not in result.output
    assert "comparing 2 losses over 3 steps each" in result.output
    assert "[1/2] l1: step 3 of 3, loss 0." in result.output
    terms = r"loss [\d.e-]+ = [\d.e-]+ \(l2\) \+ [\d.e-]+ \(charbonnier\(eps=0\.001\)\), [\d.]+ steps/s"
    second = rf"\[2/2\] .*: step 3 of 3, {terms}"
    assert re.search(second, result.output)


def test_lines_come_about_ten_times_for_each_loss(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.begins(Path("run"), ["l1"], 1000)
    lines.loss_begins("l1")
    lines.started(1000, 0)
    for step in range(1, 1001):
        lines.step(step, 0.1, {"l1": 0.1}, 20.0)
    assert capsys.readouterr().out.count("step ") == 10


def test_a_negative_term_is_taken_away(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.begins(Path("run"), ["l1 + 0.01*sharpness-q"], 1)
    lines.step(1, 0.25, {"l1": 0.5, "sharpness-q": -0.25}, 20.0)
    assert "loss 0.25 = 0.5 (l1) - 0.25 (sharpness-q), 20.00 steps/s" in capsys.readouterr().out


def test_the_same_command_again_only_reports(run: tuple[Path, Result]) -> None:
    folder, _ = run
    result = veridical("compare", folder / "recipe.toml", "--out", folder)
    assert result.exit_code == 0, result.output
    assert result.output.count("was finished already") == 2
    before_the_table = result.output[: result.output.index("mean over")]
    assert "training" not in before_the_table.replace("reading the training photographs", "")


def test_report_is_built_again_from_the_files(run: tuple[Path, Result]) -> None:
    folder, _ = run
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    result = veridical("report", folder)
    assert result.exit_code == 0, result.output
    assert (folder / "report.html").read_bytes() == before
    assert "mean over" in result.output


def test_restore_uses_a_trained_model(run: tuple[Path, Result], tmp_path: Path) -> None:
    folder, _ = run
    photos = write_photographs(tmp_path / "in", 2, height=45, width=70)
    result = veridical("restore", "--run", folder / "l1", photos, "-o", tmp_path / "out", "--tile", 64, "--overlap", 16)
    assert result.exit_code == 0, result.output
    assert f"restored 2 photographs into {tmp_path / 'out'}" in result.output
    with Image.open(tmp_path / "out" / "photo0.png") as image:
        assert image.size == (70, 45)


def test_restore_ends_with_status_1_when_a_file_was_skipped(run: tuple[Path, Result], tmp_path: Path) -> None:
    folder, _ = run
    photos = write_photographs(tmp_path / "in", 1)
    (photos / "broken.png").write_bytes(b"no image")
    result = veridical("restore", "--run", folder / "l1", photos, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "restored 1 photograph into" in result.output
    assert "skipped: cannot read" in result.output
    assert "skipped 1 file that cannot be read" in result.output
    assert (tmp_path / "out" / "photo0.png").exists()


def test_score_prints_every_image_and_the_mean_and_writes_csv(tmp_path: Path) -> None:
    ours, theirs = write_photographs(tmp_path / "a", 2), write_photographs(tmp_path / "b", 2, seed=1)
    result = veridical("score", ours, theirs, "--metrics", "psnr,ssim", "--csv", tmp_path / "scores.csv")
    assert result.exit_code == 0, result.output
    for word in ("photo0", "photo1", "mean", "psnr", "ssim"):
        assert word in result.output
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == "image,metric,value"
    assert len(lines) == 1 + 4


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("losses", list(LOSSES)),
        ("metrics", list(METRICS)),
        ("degradations", [*DEGRADATIONS, *TASKS]),
        ("models", list(MODELS)),
    ],
)
def test_tables_list_every_name(command: str, names: list[str]) -> None:
    result = veridical(command)
    assert result.exit_code == 0, result.output
    for name in names:
        assert re.search(rf"^ *{re.escape(name)} ", result.output, re.MULTILINE), name


@pytest.mark.parametrize(
    ("command", "name", "words"),
    [
        ("losses", "lpips", ["the alexnet weights", "Optimises", "net='alex'"]),
        ("metrics", "psnr", ["channel = 'rgb'", "border = 0"]),
        ("degradations", "box-blur", ["size = 5"]),
        ("models", "unet", ["width = 16", "levels = 4"]),
    ],
)
def test_one_entry_is_shown_with_its_options(command: str, name: str, words: list[str]) -> None:
    result = veridical(command, name)
    assert result.exit_code == 0, result.output
    for word in words:
        assert word in result.output


def test_weights_list_needs_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VERIDICAL_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("VERIDICAL_WEIGHTS", raising=False)
    result = veridical("weights", "list")
    assert result.exit_code == 0, result.output
    for name in ("vgg16", "vgg19", "alexnet", "squeezenet1_1", "missing"):
        assert name in result.output
    fetched = veridical("weights", "fetch", "vgg16")
    assert fetched.exit_code == 2
    assert "could not be fetched: vgg16" in fetched.output
    verified = veridical("weights", "verify", "vgg16")
    assert verified.exit_code == 2
    assert "missing" in verified.output


def test_the_version_is_printed() -> None:
    assert veridical("--version").output.strip() == f"veridical {__version__}"


@pytest.mark.parametrize("command", ["compare", "train", "report", "restore", "score", "losses", "probe", "weights"])
def test_every_command_explains_itself(command: str) -> None:
    result = veridical(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_lists_are_split_at_top_level_commas() -> None:
    assert split_list("a,b(x=1, y=(2, 3)), 0.8*l2 + 0.2*lpips", "losses") == [
        "a",
        "b(x=1, y=(2, 3))",
        "0.8*l2 + 0.2*lpips",
    ]
    with pytest.raises(VeridicalError, match="have an empty entry"):
        split_list("a,,b", "losses")


def test_settings_and_options_win_over_the_recipe(tmp_path: Path) -> None:
    data = write_photographs(tmp_path / "photos")
    (tmp_path / "recipe.toml").write_text(
        f'losses = ["l2"]\nmetrics = ["psnr"]\ndegradation = "box-blur(size=5)"\n[data]\ntrain = "{data}"\n'
        '[model]\nname = "unet(levels=1, convs=1)"\nwidth = 4\n[training]\nsteps = 50\nbatch_size = 2\ncrop = 32\n'
    )
    out = tmp_path / "run"
    result = veridical("compare", tmp_path / "recipe.toml", "--steps", 2, "--set", "training.lr=0.01", "--out", out)
    assert result.exit_code == 0, result.output
    resolved = (out / "recipe.toml").read_text()
    assert "steps = 2\n" in resolved
    assert "lr = 0.01\n" in resolved
    assert 'l2 = "l2"' in resolved


def test_real_pairs_are_two_folders(tmp_path: Path) -> None:
    for side, seed in (("blur", 30), ("sharp", 0)):
        write_photographs(tmp_path / side, 3, seed=seed)
    out = tmp_path / "run"
    quick = QUICK[: QUICK.index("--degradation")]
    pairs = (tmp_path / "blur", tmp_path / "sharp")
    result = veridical("compare", "--pairs", *pairs, "--losses", "l1", "--out", out, *quick)
    assert result.exit_code == 0, result.output
    assert "1 pair is held out" in result.output


def test_photographs_are_made_by_a_seed() -> None:
    assert (photograph(1) == photograph(1)).all()
    assert (photograph(1) != photograph(2)).any()
