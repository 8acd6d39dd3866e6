"""What docs/fine-tuning.md shows can be typed: commands, options and specs that there are."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from veridical.cli import app
from veridical.core.catalog import parse
from veridical.degradations import degradation
from veridical.losses import LOSSES
from veridical.metrics import METRICS

PAGE = (Path(__file__).parents[1] / "docs" / "fine-tuning.md").read_text()
LINES = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("veridical ")
]


def test_the_page_shows_both_recipes() -> None:
    assert len(LINES) >= 5
    for words in ("train --loss l1", "compare --init", "learn adapter", "restore", "tfmlc"):
        assert words in " ".join(LINES)


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_page_is_understood(line: str) -> None:
    words = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    # Paths that must exist are checked later, by the command itself.
    given = command.make_context(line, words).params
    losses = given.get("losses") or given.get("loss") or "l1"
    for spec in re.split(r",(?![^(]*\))", losses):
        assert all(term.name in LOSSES for term in parse(spec))
    for name in (given.get("metrics") or "psnr").split(","):
        assert name in METRICS
    for option in ("degradation", "weak", "strong"):
        if given.get(option):
            degradation(given[option])
