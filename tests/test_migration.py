"""The pages of docs/migration: what they show is what was executed, and ours can be executed still."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from tests.photographs import photograph
from veridical.benchmark import migration, run
from veridical.benchmark.side_by_side import PAGES, Page, Row
from veridical.benchmark.supply import Supply
from veridical.cli import app
from veridical.core.errors import VeridicalError
from veridical.features import weights

FOLDER = Path(__file__).parents[1] / "docs" / "migration"
CALLS = re.compile(r"^\| `([^`]+)` \| `([^`]+)` \| (\S+) \| (\S+) \| (\S+) \| (\S*) ?\|", re.MULTILINE)


def shown(name: str) -> list[tuple[str, ...]]:
    """Theirs, ours, both values, largest difference and what it is held to, of each line of a page's table."""
    found = CALLS.findall((FOLDER / f"{name}.md").read_text(encoding="utf-8"))
    if not found:
        pytest.skip(f"docs/migration/{name}.md is not measured yet: run `veridical bench migration`")
    return found


def pair(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Blurred and sharp, away from 0 and 1: no peer clips or refuses them."""
    sharp = torch.stack([torch.from_numpy(photograph(k, side, side)).movedim(-1, 0) for k in range(count)])
    sharp = sharp / 255 * 0.8 + 0.1
    return F.avg_pool2d(F.pad(sharp, (2, 2, 2, 2), mode="reflect"), 5, 1), sharp


@pytest.fixture
def no_weights(monkeypatch, network_file, regression_file, pristine_file) -> None:
    """Random numbers for every network."""
    files = {"brisque": regression_file, "niqe": pristine_file}
    monkeypatch.setattr(weights, "available", lambda name: files.get(name) or network_file(name))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_the_calls_that_are_executed(name: str) -> None:
    page, text = PAGES[name], (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    left_out = re.findall(r"^- Not measured: `(.+?)`: ", text, re.MULTILINE)
    calls = [(theirs, ours) for theirs, ours, *_ in shown(name)]
    assert f"```python\n{page.imports}\n```" in text
    assert calls == [(row.theirs, row.ours) for row in page.rows if row.theirs not in left_out]
    assert len(left_out) <= len(page.rows) / 4


@pytest.mark.parametrize("name", PAGES)
def test_a_page_keeps_what_it_promises(name: str) -> None:
    """Where the same quantity is measured, the largest difference on real images is within what it is held to."""
    held = [(float(largest), float(limit)) for *_, largest, limit in shown(name) if limit]
    assert len(held) >= 4
    assert all(largest <= limit for largest, limit in held)


OURS = sorted({row.ours for page in PAGES.values() for row in page.rows})


@pytest.mark.usefixtures("no_weights")
def test_our_calls_give_what_the_pages_say() -> None:
    """A loss a number with a gradient, a metric one number for each image, all finite."""
    names: dict = {}
    exec("import veridical", names)
    for text in OURS:
        # A network takes long, and does not need the 176 px of MS-SSIM and NIQE.
        x, y = pair(2, 64 if re.search(r"vgg|lpips|dists|style", text) else 192)
        a_loss = "veridical.loss" in text
        value, gradient = migration.evaluate(text, names, x, y, with_gradient=a_loss)
        assert value.shape == (() if a_loss else (2,)), text
        assert value.isfinite().all(), text
        if gradient is not None:
            assert gradient.isfinite().all(), text
            assert gradient.abs().max() > 0, text


@pytest.mark.parametrize("name", PAGES)
def test_an_installed_peer_gives_what_its_page_says(name: str, no_weights) -> None:
    """Without gradients; what needs VGG16 is left to the command."""
    del no_weights
    page = PAGES[name]
    if name not in ("lpips", "basicsr"):
        with Supply(always_random=True) as supply:
            reason = run.missing_packages(supply).get(page.package)
        if reason:
            pytest.skip(reason)
    x, y = pair(1, 192)
    names: dict = {}
    with Supply(always_random=True) as supply, migration.ready(supply):
        try:
            exec(page.imports, names)
        except ImportError as error:
            pytest.skip(str(error))
        with migration.offline(page, supply):
            for row in page.rows:
                if row.within is None or re.search("vgg|dists|style|Perceptual|pyiqa", row.theirs + row.ours):
                    continue
                theirs, ours = (migration.evaluate(text, names, x, y)[0].mean() for text in (row.theirs, row.ours))
                assert abs(float(theirs - ours)) <= row.within, row


# ---- the command ----


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Three pairs of 32x24 px."""
    for number in range(3):
        for folder, levels in (("blur", 10), ("sharp", 0)):
            (tmp_path / folder).mkdir(exist_ok=True)
            picture = (photograph(number, 24, 32) // 2 + levels).astype("uint8")
            Image.fromarray(picture).save(tmp_path / folder / f"{number}.png")
    return tmp_path / "blur", tmp_path / "sharp"


ROWS = (
    Row("2 * torch.nn.functional.mse_loss(x, y)", "veridical.loss('l2')(x, y)", 1e-1, "twice", loss=True, px=16),
    Row("nonsense(x)", "veridical.loss('l1')(x, y)", px=16),
)


def test_the_command_fills_the_page(folders, tmp_path, monkeypatch) -> None:
    states = (("torch.nn.Conv2d(1, 1, 1)", "veridical.loss('l2')"),)
    page = Page("torch", "import torch\nimport veridical", ROWS, states)
    monkeypatch.setattr(migration, "PAGES", {"one": page, "two": Page("two", "import no_such_peer", ())})
    (tmp_path / "one.md").write_text(f"# One\n\nBefore.\n{migration.BEGIN}\nold\n{migration.END}\nAfter.\n")
    wanted = ["bench", "migration", *map(str, folders), "--take", "2", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, wanted)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "one.md").read_text()
    assert text.startswith("# One\n\nBefore.\n")
    assert text.endswith(f"{migration.END}\nAfter.\n")
    assert "old" not in text
    assert "Images: " in text
    assert ": 0, 1; of each the middle 16 px" in text
    (line,) = [line for line in text.splitlines() if "mse_loss" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert float(cells[2]) == pytest.approx(2 * float(cells[3]), rel=1e-3)
    assert float(cells[4]) == pytest.approx(float(cells[3]), rel=0.05)
    assert cells[5:] == ["1e-01", "2", "twice"]
    assert "| `torch.nn.Conv2d(1, 1, 1)` | 0.0 | 2 |" in text
    assert "- Not measured: `nonsense(x)`: NameError: name 'nonsense' is not defined" in text
    assert "left out: two: ModuleNotFoundError" in result.output


def test_a_page_without_a_place_and_small_images_are_errors(folders, tmp_path, monkeypatch) -> None:
    large = Row("y", "x", px=99)
    monkeypatch.setattr(migration, "PAGES", {"one": Page("torch", "import torch", (large,))})
    result = CliRunner().invoke(app, ["bench", "migration", *map(str, folders), "--out", str(tmp_path)])
    assert result.exit_code != 0
    assert "0 is 32x24 px. Expected images of at least 99 px a side" in result.output.replace("\n", " ")
    with pytest.raises(VeridicalError, match="has no place for the table"):
        migration.write(migration.Measured(PAGES["lpips"], (), (), {}, "", {}), tmp_path, "one")


def test_gradients_that_part_are_said() -> None:
    row = Row("y", "x", loss=True)
    assert migration.weight(migration.Compared(row, (1.0,), (1.0,), (2.0, 2.001), 0.99999)) == "2"
    assert migration.weight(migration.Compared(row, (1.0,), (1.0,), (2.0, 4.0), -1.0)) == "2 to 4, cosine -1.00"
    assert not migration.weight(migration.Compared(row, (1.0,), (1.0,)))
    assert math.isclose(migration.Compared(row, (1.0, 2.0), (1.5, 1.9)).largest, 0.5)
