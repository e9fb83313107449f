"""The application that all commands register with."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="A Pareto front of compressed, deployable checkpoints from one command.\n\n"
    "Start with: autocompress search digits",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(version("autocompress"))
        raise typer.Exit


@app.callback()
def _options_of_all(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Take what belongs to no command."""
