"""What README and the pages of docs show can be typed: commands, options and specs that there are."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import typer

import veridical
from tests.pages import blocks_of, lines
from veridical.cli import app
from veridical.core.catalog import parse
from veridical.degradations import degradation
from veridical.losses import LOSSES
from veridical.metrics import METRICS
from veridical.models import MODELS
from veridical.models.published_counts import CONFIGURATIONS, Configuration

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/index.md",
    "docs/start.md",
    "docs/choosing.md",
    "docs/adapter.md",
    "docs/deconvolution.md",
    "docs/fine-tuning.md",
    "docs/mdf.md",
    "docs/metrics.md",
    "docs/models.md",
    "docs/recipes.md",
    "docs/study.md",
)


def commands(page: str) -> list[str]:
    shell = [block.code for block in blocks_of(ROOT / page) if block.language in ("", "sh")]
    return [line for code in shell for line in lines(code) if "..." not in line]


LINES = [(page, line) for page in PAGES for line in commands(page)]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_commands(page: str) -> None:
    assert len(commands(page)) >= 2


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_command_of_a_page_is_understood(page: str, line: str) -> None:
    assert page in PAGES
    words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    # Paths that must exist are checked later, by the command itself.
    given = command.make_context(line, words).params
    losses = given.get("losses") or given.get("loss") or "l1"
    for spec in re.split(r",(?![^(]*\))", losses):
        assert all(term.name in LOSSES for term in parse(spec))
    for spec in re.split(r",(?![^(]*\))", given.get("metrics") or "psnr"):
        (term,) = parse(spec)
        assert term.name in METRICS
    for option in ("degradation", "weak", "strong"):
        if given.get(option):
            degradation(given[option])


def test_the_page_of_metrics_has_their_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        app(["metrics", "--markdown"])
    table = capsys.readouterr().out
    assert table.count("\n") == len(METRICS) + 2
    assert table in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_the_page_of_models_has_their_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        app(["models", "--markdown"])
    table = capsys.readouterr().out
    assert table.count("\n") >= len(MODELS) + 2
    assert table in (ROOT / "docs" / "models.md").read_text(encoding="utf-8"), (
        "the table of docs/models.md is old: put in what `veridical models --markdown` prints"
    )


@pytest.mark.parametrize("known", [known for known in CONFIGURATIONS if known.published], ids=lambda known: known.spec)
def test_a_model_has_as_many_parameters_as_were_published(known: Configuration) -> None:
    with torch.device("meta"):
        found = sum(parameter.numel() for parameter in veridical.model(known.spec).parameters())
    if known.published.endswith(" M"):
        rounded = known.published.removesuffix(" M")
        assert f"{found / 1e6:.{len(rounded.partition('.')[2])}f}" == rounded
    else:
        assert f"{found:,}" == known.published
