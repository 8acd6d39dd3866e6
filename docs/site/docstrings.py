"""Docstrings of veridical as Markdown: sections such as "Args:" begin a paragraph, and examples are code."""

import re
from typing import Any

import griffe

_SECTION = re.compile(r"^(Shapes?|Range|Args|Returns|Errors|Source|Sources|Formula|Use|Weak|Notes?): +", re.MULTILINE)
_EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\n|\Z).*)*", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites what the pages of the reference show; the docstrings themselves stay."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class, function and attribute that is read."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """A docstring as Markdown.

    >>> as_markdown("What it is.\\nArgs:   eps: small.\\n\\n>>> 1 + 1\\n2")
    'What it is.\\n\\n**Args:** eps: small.\\n\\n```pycon\\n>>> 1 + 1\\n2\\n```'
    """
    parts = re.split(f"({_EXAMPLE.pattern})", text, flags=re.MULTILINE)
    for k, part in enumerate(parts):
        if k % 2:
            parts[k] = f"\n```pycon\n{part}\n```\n"
        else:
            # Lines that hang under a section would be code, so that no line but of a list keeps its indentation.
            part = re.sub(r"^ +(?![-*] )", "", part, flags=re.MULTILINE)
            parts[k] = _SECTION.sub(r"\n**\1:** ", _escaped(part))
    return re.sub(r"\n{3,}", "\n\n", "".join(parts)).strip()


def _escaped(text: str) -> str:
    """Formulas are no markup; what stands between backticks is code and stays."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if k % 2 else re.sub(r"(?<!\\)([*_|<\[])", r"\\\1", piece) for k, piece in enumerate(pieces))
