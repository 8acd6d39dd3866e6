"""The command that lists the recipes of the papers' tables."""

from typing import Annotated

import typer

from veridical.cli.common import app, guarded, print_table, say


@app.command("recipes")
@guarded
def list_recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe, to copy and change.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of docs/recipes.md.")] = False,
) -> None:
    """List the recipes that come with veridical, one for each table of the papers, or print one."""
    from veridical.training import recipes

    if markdown:
        say(recipes.markdown(), end="")
        return
    if name is not None:
        say(recipes.recipe_text(name), end="")
        return
    rows = []
    for each in recipes.recipe_names():
        known = recipes.about(each)
        rows.append((each, f"{known.short}, {known.table}", known.compares, str(recipes.trainings(each)), known.data))
    print_table("Recipes", ("name", "paper and table", "what it compares", "trainings", "data"), rows)
    say(
        "Run one: veridical compare NAME --data FOLDER; without a GPU: veridical compare NAME --scale small. "
        "To copy and change it: veridical recipes NAME"
    )
