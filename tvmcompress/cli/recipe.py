"""tvmcompress recipe list | show"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tvmcompress.cli import options, screen

if TYPE_CHECKING:
    from tvmcompress.recipe import Recipe


@click.group(epilog="Example:\n\n\b\n  tvmcompress recipe show int8")
def command() -> None:
    """What can be done to a model."""


@command.command("list", epilog="Example:\n\n\b\n  tvmcompress recipe list")
@options.json_option
def list_(json_path: str | None) -> None:
    """All recipes that come with the project."""
    from tvmcompress.recipe import Recipe

    rows = [_json(Recipe.load(name)) for name in Recipe.list()]
    screen.result(rows, lambda: "\n".join(f"{row['name']:20} {row['description']}" for row in rows), json_path)


@command.command("show", epilog="Example:\n\n\b\n  tvmcompress recipe show int8")
@click.argument("recipe")
@options.json_option
def show(recipe: str, json_path: str | None) -> None:
    """A recipe's passes with all their options, as TOML to start your own from. RECIPE is a name or a TOML file."""
    from tvmcompress.recipe import Recipe

    found = Recipe.load(recipe)
    screen.result(_json(found), lambda: found.to_toml().rstrip(), json_path)


def _json(recipe: Recipe) -> dict:
    return {"name": recipe.name, "description": recipe.description, "passes": [repr(step) for step in recipe.passes]}
