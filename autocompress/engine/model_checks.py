"""What is wrong with a model, found before any training: it is called as training and export will call it.

Every way into the package passes here: a search, `compress` and `inspect`.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autocompress.errors import AutocompressError, DivergedError, TaskError
from autocompress.graph.exporting import comparable, located
from autocompress.graph.proof import TOLERANCE, relative_difference
from autocompress.surgery import Edit, apply
from autocompress.task import Inputs, Task
from autocompress.task.checks import check_batches_of_one, check_forward, check_labels, fresh_model
from autocompress.task.copying import copied, held_tensors
from autocompress.task.inputs import call, plain, repeated_rows, rows, runs_over_batch, tensors
from autocompress.task.random_state import random_state_kept
from autocompress.training.loop import Trainer

# Calls of a model that draws random numbers, which it may use in some of them alone; others have two.
_CALLS = 10


def check_suitable(task: Task, model: nn.Module) -> Tensor:
    """Refuse a model that cannot be analysed, copied or deployed, or that the task cannot train.

    Args:
        task: with its training split.
        model: not changed; a copy is tried on the CPU, where it will be analysed and deployed.

    Returns:
        Its outputs on the task's example.

    Raises:
        TaskError: it says why, and what would help.
    """
    check_state(model)
    subject, held = copied(model).to("cpu"), held_tensors(model)
    outputs = check_forward(task, subject)
    _check_made(subject, model.state_dict().keys())
    check_calls(subject, task.example())
    # Hooks of a copy may write to what the original holds.
    _refuse_kept(model, held.values())
    check_batches_of_one(task, subject)
    check_labels(task, subject)
    check_training(task, subject)
    return outputs


def check_made_anew(task: Task, model: nn.Module, edits: Sequence[Edit] = ()) -> None:
    """Refuse a function that makes the same module again, or models that differ by more than their state.

    Args:
        task: whose function makes models.
        model: that it made, prepared; in evaluation mode afterwards.
        edits: that prepared it beside the task's own function.

    Raises:
        TaskError: the new one shares parameters with the model, has other ones, or computes something else
            with the same.
    """
    other = fresh_model(task).eval()
    known = {id(parameter) for parameter in model.parameters()}
    if any(id(parameter) in known for parameter in other.parameters()):
        raise TaskError(
            "model must make a new nn.Module at each call but made one that shares parameters with another: "
            "let it return copy.deepcopy(module)."
        )
    other = apply(other, edits, task.example())
    states = [{name: tensor.shape for name, tensor in made.state_dict().items()} for made in (model, other)]
    if states[0] != states[1]:
        raise TaskError("model must make modules of the same parameters but made two that differ.")
    other.load_state_dict(model.state_dict())
    inputs = task.example()
    with random_state_kept(), comparable():
        difference = relative_difference(call(model.eval(), inputs), call(other, inputs))
    if difference > TOLERANCE:
        held = [name for name, tensor in held_tensors(model).items() if id(tensor) not in known]
        such = f" (such as '{held[0]}')" if held else ""
        raise TaskError(
            "modules that model makes must compute the same with the same parameters and buffers but do not: "
            f"register what else they depend on{such}, or make it alike."
        )


def check_state(model: nn.Module) -> None:
    """Refuse what a model holds that methods cannot take.

    Raises:
        TaskError: it is TorchScript, has no parameters, or has some without numbers, in half precision or
            complex; or its state holds other things than tensors.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise TaskError("the model must be an nn.Module of its own class but is TorchScript.")
    parameters = dict(model.named_parameters())
    if not parameters:
        raise TaskError("the model must have parameters but has none.")
    for name, parameter in parameters.items():
        if parameter.is_meta:
            raise TaskError(
                f"parameters must hold numbers but '{name}' is on the meta device: load some first."
            )
        if parameter.is_complex():
            raise TaskError(
                f"parameters must be real but '{name}' is {parameter.dtype}: hold it as (..., 2) real "
                "numbers and call torch.view_as_complex in forward."
            )
        if parameter.is_floating_point() and parameter.dtype not in (torch.float32, torch.float64):
            # Equality to 1e-4 could not be shown.
            raise TaskError(
                f"parameters must be in single precision but '{name}' is {parameter.dtype}: call "
                "model.float(); Recipe(mixed_precision=True) trains in bfloat16."
            )
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise TaskError(
                f"the model's state_dict must hold tensors alone but '{name}' is a {type(value).__name__}."
            )


def _check_made(model: nn.Module, state: Collection[str]) -> None:
    """Refuse parameters and buffers that a call made: a new model would not have them."""
    made = [name for name in model.state_dict() if name not in state]
    if made:
        raise TaskError(
            "the model must hold all its parameters and buffers before its first call but that made "
            f"'{made[0]}': make it in __init__, or use PyTorch's lazy layers."
        )


def check_calls(model: nn.Module, inputs: Inputs) -> None:
    """Call a copy in evaluation mode several times, and on batches of other sizes.

    Args:
        model: in evaluation mode afterwards.
        inputs: that it runs on, `(B, ...)`.

    Raises:
        TaskError: it cannot be copied; it does not compute the same each time; it keeps tensors or changes
            its inputs when it is called; or it does not run on other batch sizes.
    """
    subject = copied(model.eval())
    with random_state_kept(), comparable():
        given, state = pytree.tree_map_only(Tensor, torch.clone, inputs), _generator_states()
        outputs = call(subject, given)
        draws = _generator_states() != state
        if relative_difference(outputs, outputs) != 0:
            raise TaskError(
                "the model must return finite numbers but returns some that are infinite or NaN (torch.finfo "
                "has the least finite one, to mask with)."
            )
        held = held_tensors(subject).values()
        for seed in range(1, _CALLS if draws else 2):
            _seed_generators(seed)
            if relative_difference(outputs, call(subject, given)) > TOLERANCE:
                changed = not all(map(torch.equal, tensors(given), tensors(inputs)))
                raise TaskError(_why_unsteady(draws, changed))
        _refuse_kept(subject, held)
        for count in (1, 3):
            _check_batch_size(subject, repeated_rows(inputs, count), outputs)


def _why_unsteady(draws: bool, changed: bool) -> str:
    """Why a model returned something else when it was called again.

    Args:
        draws: whether it draws random numbers.
        changed: whether it changed its inputs.
    """
    if changed:
        return (
            "the model must leave its inputs as they are but changes them in place, so that a second call "
            "gives something else: let it work on a copy (x = x.clone())."
        )
    if draws:
        return (
            "the model must compute the same each time in evaluation mode but is random there: let it draw "
            "only in training, as F.dropout(x, p, self.training) does, and return the mean otherwise."
        )
    return (
        "the model must compute the same each time in evaluation mode but its outputs change from call to "
        "call: let them depend on nothing that forward changes."
    )


def _refuse_kept(model: nn.Module, held: Collection[Tensor]) -> None:
    """Refuse tensors that a call left with modules besides parameters and buffers.

    Args:
        model: after the call.
        held: of such tensors, those before it.
    """
    known = {id(tensor) for tensor in held}
    kept = [name for name, tensor in held_tensors(model).items() if id(tensor) not in known]
    if kept:
        raise TaskError(
            f"the model must keep no tensors from call to call but forward stores '{kept[0]}': return it, or "
            "let it be a local variable."
        )


def _check_batch_size(model: nn.Module, inputs: Inputs, usual: Any) -> None:
    """Refuse a model that fails on a batch, or drops a dimension there, as `squeeze()` does of one row.

    Args:
        model: in evaluation mode.
        inputs: the batch.
        usual: outputs of another one.
    """
    try:
        outputs = call(model, inputs)
    except Exception as error:  # of the user's forward
        raise TaskError(
            "the model must take batches of any size in evaluation mode but fails on a batch of "
            f"{rows(inputs)}: {located(error)}."
        ) from error
    dimensions = [[tensor.dim() for tensor in tensors(returned)] for returned in (usual, outputs)]
    if len(dimensions[0]) == len(dimensions[1]) and dimensions[0] != dimensions[1]:
        raise TaskError(
            "the model must return tensors of as many dimensions for batches of any size but returns "
            f"{dimensions[0]} and for a batch of {rows(inputs)} {dimensions[1]}: use squeeze(dim), not "
            "squeeze()."
        )


def check_training(task: Task, model: nn.Module) -> None:
    """Train a copy for one step on the first batch, without a trace.

    Two rows of it do where they can be trained on; else the whole batch decides.

    Raises:
        TaskError: nothing is trained, the step fails, its loss is not finite, or the model cannot be copied
            afterwards.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TaskError("the model must have parameters to train but all are frozen (requires_grad=False).")
    batch = copy.deepcopy(task.first_batch())  # which a step may change
    count = rows(task.inputs_of(batch))
    two_rows = pytree.tree_map_only(Tensor, lambda t: t[:2] if runs_over_batch(t, count) else t, batch)
    try:
        _train_step(task, model, two_rows)
    except TaskError:
        _train_step(task, model, batch)


def _train_step(task: Task, model: nn.Module, batch: Any) -> None:
    recipe = replace(task.recipe, epochs=1, steps_per_epoch=None, compile=False)
    subject, trainer = copied(model), Trainer(replace(task, train=[batch], recipe=recipe), 1)
    differentiable: list[bool] = []
    hook = subject.register_forward_hook(lambda *call: differentiable.append(_has_gradient(call[-1])))
    with random_state_kept():
        try:
            trainer.fit(subject, 1)
        except DivergedError as error:
            raise TaskError(
                "the loss must be finite on the first training batch but is infinite or NaN: look at the "
                "inputs, the targets and the weights."
            ) from error
        except AutocompressError:
            raise
        except Exception as error:  # of the user's forward, loss, step or optimiser
            if differentiable and not differentiable[-1]:
                raise TaskError(
                    "the model must be differentiable in training mode but its outputs have no gradient: "
                    "let forward not detach them, nor run under torch.no_grad or torch.inference_mode."
                ) from error
            raise TaskError(
                "the model must train as the task says but a step on the first batch failed: "
                f"{located(error)}."
            ) from error
        finally:
            hook.remove()
    copied(subject)


def _has_gradient(outputs: Any) -> bool:
    return any(tensor.requires_grad for tensor in tensors(plain(outputs)))


def _generator_states() -> tuple[bytes, str, str]:
    python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002  (as users' code)
    return torch.get_rng_state().numpy().tobytes(), repr(python), repr(numpy)


def _seed_generators(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
