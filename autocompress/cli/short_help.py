"""Help that fits a screen: a command with many options shows those of every day, and all on request."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

_WIDTH = 100


def show_all(context: typer.Context, wanted: bool) -> None:
    """Print the help with every option, and end; the callback of `--help-all`.

    Args:
        context: of the command.
        wanted: whether it was asked for.
    """
    if not wanted:
        return
    for parameter in context.command.params:
        parameter.hidden = False  # type: ignore[attr-defined]
    typer.echo(context.get_help())
    raise typer.Exit


def everyday(*names: str) -> type[TyperCommand]:
    """A kind of command whose `--help` shows these options alone.

    Args:
        names: of their parameters.
    """

    class ShortHelp(TyperCommand):
        """Hides all options but some."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            settings = {**(options.pop("context_settings", None) or {}), "max_content_width": _WIDTH}
            super().__init__(*arguments, context_settings=settings, **options)
            for parameter in self.params:
                if parameter.param_type_name == "option":
                    parameter.hidden = parameter.name not in names  # type: ignore[attr-defined]

    return ShortHelp
