"""The `edgekiln` command. Each subcommand imports what it needs when it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from edgekiln import __version__
from edgekiln.terminal import print_columns, print_json, run

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULT_MODEL = "digits_cnn"
_FILE = click.Path(path_type=Path)


class _InOrder(click.Group):
    """Lists the commands in the order of the data's way rather than of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
build_option = click.option(
    "--build-dir",
    type=_FILE,
    default=Path("build"),
    show_default=True,
    help="Where everything is made.",
)
board_option = click.option(
    "--board", required=True, metavar="BOARD", help="See `edgekiln boards`."
)
optimize_option = click.option(
    "--optimize",
    type=click.Choice(["balanced", "time", "ram", "flash"]),
    default="balanced",
    show_default=True,
    help="What to favour where kernels and layouts differ.",
)
model_argument = click.argument("model", default=_DEFAULT_MODEL)
file_argument = click.argument("model", type=_FILE)


@click.group(
    cls=_InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="edgekiln")
def cli() -> None:
    """Takes a Keras model to a board, and proves what arrived there.

    MODEL is a recipe's name (`edgekiln models`) or a file. Results go to stdout, everything
    else to stderr. Exit codes: 0 done, 1 a check failed, 2 input that cannot be used, 3 a
    tool or board is missing.
    """


@cli.command()
@json_option
def models(as_json: bool) -> None:
    """List the recipes: models with their data and schedule."""
    from edgekiln.train.registry import load_recipe, recipe_names

    recipes = [load_recipe(name) for name in recipe_names()]
    if as_json:
        print_json(
            {
                recipe.name: {"dataset": recipe.dataset, "description": recipe.description}
                for recipe in recipes
            }
        )
    else:
        rows = [(recipe.name, recipe.dataset, recipe.description) for recipe in recipes]
        print_columns(("model", "data", "what it is"), rows)


@cli.command()
@json_option
def doctor(as_json: bool) -> None:
    """Show what is installed, what is missing, and the command that gets it.

    Exits with 3 when something is missing that `make deploy BOARD=mps2-an386` needs.
    """
    from edgekiln import doctor as doctors

    findings = doctors.examine()
    if as_json:
        print_json(doctors.to_json(findings))
    else:
        print_columns(
            ("", "for", "installed", "needed", ""),
            [
                (each.name, each.group, each.version or "-", each.wanted or "any", each.state)
                for each in findings
            ],
        )
    doctors.check(findings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return run(cli, arguments)


if __name__ == "__main__":
    sys.exit(main())
