"""A process that has only the user's classes and this package: rebuilds checkpoints, and goes on with them.

Reads a request a line from standard input, `{"user": …, "folder": …, "second": …}`, and answers in a line.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import nn

import autocompress as ac
from autocompress.checkpoint import load_program
from tests.methods.users import USERS, User, configured, probe


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def outputs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(probe())
    return result


def train_one_step(model: nn.Module, user: User) -> dict[str, Any]:
    """Which parameters a step of Adam without decay, which moves all that have a gradient, leaves alone."""
    task = user.task()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    statistics = {name: b.clone() for name, b in model.named_buffers() if name.endswith("running_mean")}
    model.train()
    inputs, targets = next(iter(task.train))
    with torch.no_grad():
        torch.manual_seed(0)
        differ = relative(model(inputs), model(inputs)) > 1e-3
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    task.loss(model(inputs), targets).backward()
    optimizer.step()
    parameters = dict(model.named_parameters())
    grown = {name for name, p in parameters.items() if p.grad is not None and bool(p.grad.any())}
    return {
        "without_gradient": sorted(n for n, p in parameters.items() if p.requires_grad and n not in grown),
        "not_moved": sorted(n for n in grown if torch.equal(parameters[n], before[n])),
        "moved_frozen": sorted(
            n for n, p in parameters.items() if not p.requires_grad and not torch.equal(p, before[n])
        ),
        "still_statistics": sorted(
            n for n, b in model.named_buffers() if n in statistics and torch.equal(b, statistics[n])
        ),
        "random": differ,
    }


def answer(request: dict[str, str]) -> dict[str, Any]:
    user, folder = USERS[request["user"]], Path(request["folder"])
    model = ac.rebuild(user.model(), folder)
    result: dict[str, Any] = {
        "difference": relative(outputs(model.eval()), torch.load(f"{folder}.outputs.pt")),
        "frozen": sorted(name for name, p in model.named_parameters() if not p.requires_grad),
        "thawed": sorted(
            name
            for name, p in model.named_parameters()
            if name.startswith(f"{user.frozen}.") and p.requires_grad
        ),
    }
    result |= train_one_step(model, user)
    if request["second"]:
        result["second"] = compress_again(model, user, request["second"], folder)
    return result


def compress_again(model: nn.Module, user: User, second: str, folder: Path) -> dict[str, Any]:
    """By a second method; what comes out is rebuilt from both checkpoints, and exported."""
    task = user.task()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    before = sum(p.numel() for p in model.parameters())
    done = ac.compress(model, task, configured(second, model, task.example()))
    again = folder.parent / f"{folder.name}.{second}"
    done.save(again)
    expected = outputs(done.model)
    rebuilt = ac.rebuild(ac.rebuild(user.model(), folder), again)
    program = load_program(again / "model.pt2")
    return {
        "difference": done.difference,
        "rebuilt": relative(outputs(rebuilt.eval()), expected),
        "exported": relative(outputs(program), expected),
        "smaller": sum(p.numel() for p in done.model.parameters()) < before,
        "edits": len(done.edits),
        "thawed": sorted(n for n, p in done.model.named_parameters() if n in frozen and p.requires_grad),
    }


def main() -> None:
    for line in sys.stdin:
        try:
            result = answer(json.loads(line))
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
