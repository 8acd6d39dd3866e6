"""The command `veridical`: parses and calls. Nothing imports it, and it is the only one that calls the report.

A module for each group of commands; importing it puts them on the application, in the order in which help lists them.
"""

from veridical.cli import tables, recipes, weights, compare, images, deconvolution, learn, study, bench  # noqa: F401, I001
from veridical.cli.common import app

__all__ = ["app", "main"]


def main() -> None:
    """The entry point of the command."""
    app()
