"""The one way a model is exported: in eval mode, with a free batch size, attention's parts visible."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError, GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from autocompress.errors import TraceError, one_line
from autocompress.graph.blocks import write_out_blocks
from autocompress.task.inputs import Inputs, arguments, call, dynamic_shapes, plain

# Where no code of a model is: this package and PyTorch.
_TRACERS = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent))


def export(model: nn.Module, example: Inputs, least: int = 1) -> ExportedProgram:
    """The exported program of a model for any batch size.

    It returns what `call` makes of the model's outputs: tensors in plain containers.

    Args:
        model: exported in eval mode.
        example: `(B, ...)` with B ≥ 2.
        least: of the batch sizes that it must take.

    Raises:
        TraceError: PyTorch cannot trace it; why, and where in the model's code.
    """
    sizes = dynamic_shapes(model, example, least)
    # Clones, because a program stores its example inputs with their whole storage.
    args, kwargs = arguments(pytree.tree_map_only(Tensor, torch.clone, example))
    with inference(model):
        try:
            # What a model makes at its first call must not be made of the tracer's tensors.
            call(model, example)
            # With gradients, so that a program tells where a model lets none pass.
            with torch.enable_grad(), _quiet_tracing(), _plain_outputs(model):
                program = torch.export.export(model, args, kwargs, dynamic_shapes=sizes)
        except Exception as error:  # of a user's forward it is any error
            raise untraceable(error) from error
    write_out_blocks(program)
    _refuse_objects(program)
    return program


@contextlib.contextmanager
def _plain_outputs(model: nn.Module) -> Iterator[None]:
    """Let a model return plain containers, which whoever loads the program has."""
    own, forward = model.__dict__.get("forward"), model.forward

    @functools.wraps(forward)
    def plainly(*args: Any, **kwargs: Any) -> Any:
        return plain(forward(*args, **kwargs))

    model.__dict__["forward"] = plainly
    try:
        yield
    finally:
        model.__dict__.pop("forward")
        if own is not None:
            model.__dict__["forward"] = own


def _refuse_objects(program: ExportedProgram) -> None:
    specs = program.graph_signature.input_specs
    objects = [program.constants[str(spec.target)] for spec in specs if spec.kind is InputKind.CUSTOM_OBJ]
    if objects:
        kinds = ", ".join(sorted({type(held).__name__ for held in objects}))
        raise TraceError(
            f"the model must compute with tensors alone but its forward uses an object ({kinds}): make what "
            "it gives once, in __init__."
        )


def untraceable(error: Exception) -> TraceError:
    """What to say of a model that raised an error when it was traced."""
    causes = (error, error.__cause__, error.__context__)
    if any(isinstance(cause, ConstraintViolationError) for cause in causes):
        details = [line.strip(" -") for line in str(error).splitlines() if line.strip().startswith("- ")]
        what = (
            f"its code fixes a size that must stay free ({_first_sentence([*details, one_line(error)][0])}): "
            "use x.shape[0] without int(), conditions on it and loops over rows"
        )
    elif isinstance(error, GuardOnDataDependentSymNode):
        what = f"its control flow depends on data{_place(error)}: write conditions with torch.where"
    else:
        what = located(error)
    return TraceError(f"the model must be traceable by torch.export for any batch size but {what}.")


def located(error: Exception) -> str:
    """The kind of an error, what it says first, and the line of the model's code that it came from."""
    return f"{type(error).__name__}: {_first_sentence(one_line(error))}{_place(error)}"


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".")


def _place(error: Exception) -> str:
    """The innermost line of the model's code that an error came from, as far as there is one."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.endswith(".py") and not frame.filename.startswith(_TRACERS):
            return f" at {frame.filename}:{frame.lineno} in {frame.name}: `{frame.line}`"
    return ""


@contextlib.contextmanager
def _quiet_tracing() -> Iterator[None]:
    """Neither warnings nor the graph so far, which `torch.export` prints where it fails."""
    with quiet_logger("torch.fx.experimental.symbolic_shapes"), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def quiet_logger(name: str) -> Iterator[None]:
    """Nothing of a logger and those below it but errors. Whenever a level changes Python forgets what it knew
    of all loggers, of which PyTorch has a thousand."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """No fused attention kernels of inference, which pass over the layers they stand for."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Single precision as the CPU has it on a GPU too, whose convolutions otherwise round to TF32."""
    backends: Any = torch.backends
    settings = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


@contextlib.contextmanager
def comparable() -> Iterator[None]:
    """What models compute is to be compared: in full single precision, with plain attention and no gradients.

    PyTorch exports nothing meanwhile: it would find settings of two kinds.
    """
    with torch.no_grad(), plain_attention(), full_precision():
        yield


@contextlib.contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, plain attention, and no warnings."""
    was_training = model.training
    model.eval()
    try:
        with plain_attention(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if was_training:
            model.train()
