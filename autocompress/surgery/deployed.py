"""`Deploy`: blocks are brought to the form that they are deployed in, by their own switch.

Re-parameterised blocks (RepVGG, Ding et al., arXiv 2101.03697; MobileOne, arXiv 2206.04040) train several
branches, which one layer computes alike in evaluation. Such blocks have a method that merges them, which goes
by one of three names; timm's `reparameterize_model` calls the same.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from autocompress.errors import CheckpointError, one_line
from autocompress.surgery.edits import Edit
from autocompress.task import Inputs

_RETURNING = "fuse"  # gives what takes the block's place; the others change the block
_SWITCHES = (_RETURNING, "reparameterize", "switch_to_deploy")


@dataclass(frozen=True)
class Deploy(Edit):
    """Call blocks' own switch to the form that they are deployed in.

    Args:
        switch: name of the method.
        blocks: names of the modules.
    """

    kind: ClassVar[str] = "deploy"
    switch: str
    blocks: tuple[str, ...]

    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Switch the blocks, in place; those that were frozen stay so.

        Raises:
            CheckpointError: a block has no such switch, or it fails.
        """
        modules = dict(model.named_modules())
        for name in self.blocks:
            if _switch(modules.get(name)) != self.switch:
                raise CheckpointError(f"block must have a method {self.switch}() but {name!r} has none.")
            try:
                model.set_submodule(name, _deployed(modules[name], self.switch))
            except Exception as error:
                raise CheckpointError(
                    f"{self.switch}() of block {name!r} failed: {one_line(error)}"
                ) from error
        return model


def may_deploy(model: nn.Module) -> bool:
    """Whether a model has modules with a method that is called like a switch."""
    return any(_switch(module) is not None for name, module in model.named_modules() if name)


def deployable(model: nn.Module) -> dict[str, str]:
    """Blocks whose switch merges branches → the switch's name; a block within another one is left to it."""
    blocks: dict[str, str] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{block}.") for block in blocks)
        switch = _switch(module) if name and not inside else None
        if switch is not None and _merges(module, switch):
            blocks[name] = switch
    return blocks


def _switch(module: nn.Module | None) -> str | None:
    """The name of a module's switch, which can be called without arguments; None where it has none."""
    for name in _SWITCHES:
        method = getattr(module, name, None)
        if inspect.ismethod(method) and not inspect.signature(method).parameters:
            return name
    return None


def _deployed(block: nn.Module, switch: str) -> nn.Module:
    """A block after its switch, or what that gives."""
    frozen = not any(parameter.requires_grad for parameter in block.parameters())
    training = block.training
    with torch.no_grad():
        result: Any = getattr(block.eval(), switch)()
    deployed: nn.Module = result if switch == _RETURNING else block
    for parameter in deployed.parameters():
        parameter.requires_grad_(not frozen)
    return deployed.train(training)


def _merges(block: nn.Module, switch: str) -> bool:
    """Whether a switch does more than fold a batch norm, which trains better as it is, and which the file has
    folded anyway."""
    try:
        deployed = _deployed(copy.deepcopy(block), switch)
    except Exception:
        # A method of the user's that is called like a switch, but is none.
        return False
    if not isinstance(deployed, nn.Module):
        return False
    if switch == _RETURNING:
        return _weighing(deployed) < _weighing(block)
    return deployed.state_dict().keys() != block.state_dict().keys()


def _weighing(module: nn.Module) -> int:
    """Modules with a parameter of more than one dimension."""
    return sum(any(p.dim() > 1 for p in part.parameters(recurse=False)) for part in module.modules())
