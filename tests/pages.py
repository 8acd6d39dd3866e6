"""The blocks of code of a page of docs, run in their order.

sh: commands of ours, in this process; others are left out. python: run with the names of the blocks before; one whose
first line names a file (`# edges.py`), and a toml of the kind, is written there.

Comments just before a block: `<!-- not run: why -->` leaves it out; `<!-- needs alexnet -->`: where its weights are
not at hand, too; `<!-- fails -->`: it ends with an error;
`<!-- printed -->`: a text block that the command before it prints to the letter.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from markdown_it import MarkdownIt
from typer.testing import CliRunner

from veridical.cli import app
from veridical.features.weights import available

PAGES = Path(__file__).parents[1] / "docs"
FEWER = {"steps": 2, "iterations": 2, "epochs": 1, "triplets": 8, "validation-triplets": 8, "rounds": 1}
"""Numbers of these options in place of the page's."""


class Block(NamedTuple):
    """section: the heading over it. mark: what the comment just before it says."""

    language: str
    code: str
    section: str
    mark: str


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of docs/PAGE.md."""
    return blocks_of(PAGES / f"{page}.md")


def blocks_of(file: Path) -> Iterator[Block]:
    section = before = ""
    tokens = MarkdownIt().parse(file.read_text(encoding="utf-8"))
    for last, token in zip([None, *tokens], tokens, strict=False):
        if last is not None and last.type == "heading_open":
            section = token.content
        if token.type == "fence":
            yield Block(token.info, token.content, section, before)
        before = token.content.strip() if token.type == "html_block" else ""


def run_page(page: str, section: str | None = None) -> dict[str, Any]:
    """Run all blocks of a page, or of one section, in the working folder: the names that its Python has made.

    Errors: AssertionError for a command that ends in another way than the page says, or prints something else.
    """
    names: dict[str, Any] = {"__name__": page}
    said = ""
    for block in blocks(page):
        if section is not None and block.section != section:
            continue
        file = re.match(r"# (\S+\.\w+)\n", block.code)
        if block.mark.startswith("<!-- not run: "):
            continue
        if block.mark == "<!-- needs alexnet -->" and not available("alexnet"):
            continue
        if block.language in ("python", "toml") and file:
            Path(file[1]).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.code, page, "exec"), names)
        elif block.language == "sh":
            said = "".join(run_command(line, fails=block.mark == "<!-- fails -->") for line in lines(block.code))
        elif block.language == "text" and block.mark == "<!-- printed -->":
            assert " ".join(block.code.split()) in " ".join(said.split())
    return names


def lines(code: str) -> list[str]:
    return [line for line in code.replace("\\\n", " ").splitlines() if line.startswith("veridical ")]


def run_command(line: str, *, fails: bool) -> str:
    """Carry out one command: what it printed."""
    result = CliRunner().invoke(app, shlex.split(smaller(line), comments=True)[1:])
    assert (result.exit_code == 2) is fails, f"{line}\n{result.output}"
    assert result.exit_code in (0, 2), f"{line}\n{result.output}\n{result.exception!r}"
    return result.output


def smaller(line: str) -> str:
    """The command with FEWER; with spl-a for lpips where AlexNet's weights are not at hand."""
    line = re.sub(rf"--({'|'.join(FEWER)}) \d+", lambda found: f"--{found[1]} {FEWER[found[1]]}", line)
    if line.startswith(("veridical compare", "veridical train")) and not available("alexnet"):
        line = line.replace("0.8*l2 + 0.2*lpips", "spl-a") + " --metrics psnr,ssim,ms-ssim"
    return line
