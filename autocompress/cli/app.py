"""The application that all commands register with."""

from __future__ import annotations

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="A Pareto front of compressed, deployable checkpoints from one command.\n\n"
    "Start with: autocompress search digits",
)
