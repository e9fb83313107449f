"""The application that all commands register with, and the arguments that several share."""

from __future__ import annotations

from pathlib import Path
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
ImageSize = Annotated[int, typer.Option(help="Side of an image folder's images, in pixels.")]
