"""The application that all commands register with, and the arguments that several share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="A Pareto front of compressed, deployable checkpoints from one command.\n\n"
    "Start with: autocompress search digits",
)


def whole(text: object) -> int:
    """A whole number, or an error that names what was given."""
    try:
        return int(str(text))
    except ValueError:
        raise typer.BadParameter(f"must be a whole number but got {text!r}.") from None


def number(text: object) -> float:
    """A number, or an error that names what was given."""
    try:
        return float(str(text))
    except ValueError:
        raise typer.BadParameter(f"must be a number but got {text!r}.") from None


def Whole(help: str | None = None) -> Any:
    """An option that takes a whole number."""
    return typer.Option(help=help, parser=whole, metavar="N")


def Number(help: str | None = None) -> Any:
    """An option that takes a number."""
    return typer.Option(help=help, parser=number, metavar="X")


Run = Annotated[Path, typer.Argument(help="Folder that a search wrote.", metavar="RUN")]
TaskName = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        help="digits, mnist, fashion_mnist, cifar10, npz:FILE, imagefolder:DIR, "
        "package.module:function or path/file.py:function.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="mlp, lenet300, small_cnn, resnet20, resnet56, a torchvision model or module:function."
    ),
]
Weights = Annotated[str | None, typer.Option(help="Trained weights of the model (a state dict).")]
DataRoot = Annotated[str | None, typer.Option(help="Folder of data sets. [default: $AUTOCOMPRESS_DATA]")]
ImageSize = Annotated[int, Whole(help="Side of an image folder's images, in pixels.")]
