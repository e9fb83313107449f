"""Parameters and multiply-accumulates of a model, per layer and per channel group."""

from __future__ import annotations

import copy
from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from autocompress.graph.exporting import plain_attention
from autocompress.graph.structure import Analysis
from autocompress.task import GroupProfile, ModelProfile


def layer_macs(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Multiply-accumulates of one input through each module; "" is the whole model.

    Counted by PyTorch's own `FlopCounterMode` on meta tensors, attention's fast path off.
    """
    with plain_attention():
        try:
            counter = _count(copy.deepcopy(model).to("meta"), example[:1].to("meta"))
        except (RuntimeError, NotImplementedError):
            # Models that hold tensors besides parameters and buffers cannot move to the meta device.
            counter = _count(model, example[:1])
    root = type(model).__name__
    counts: dict[str, int] = defaultdict(int)
    for name, operators in counter.get_flop_counts().items():
        if name == "Global":
            counts[""] = sum(operators.values()) // 2
        elif name.startswith(f"{root}."):
            counts[name[len(root) + 1 :]] = sum(operators.values()) // 2
    return counts


def _count(model: nn.Module, example: Tensor) -> FlopCounterMode:
    was_training = model.training
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(example)
    model.train(was_training)
    return counter


def count_params(model: nn.Module) -> int:
    """Number of parameters, shared ones once; buffers are not counted."""
    return sum(p.numel() for p in model.parameters())


def profile(model: nn.Module, example: Tensor, analysis: Analysis) -> ModelProfile:
    """What a search space may know of the model."""
    macs = layer_macs(model, example)
    shapes = {n: p.shape for n, p in model.named_parameters(remove_duplicate=False)}
    groups = []
    for group in analysis.groups:
        group_params = group_macs = 0.0
        for member in group.members:
            shape = shapes.get(member.tensor)
            if shape is None:
                continue
            share = float((member.unit_of >= 0).mean())
            group_params += share * shape.numel()
            if len(shape) > 1:
                group_macs += share * macs.get(member.layer, 0)
        groups.append(GroupProfile(group.name, group.width, round(group_params), round(group_macs)))
    return ModelProfile(count_params(model), macs.get("", 0), tuple(groups))
