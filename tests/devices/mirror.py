"""A device of PyTorch's that computes on the CPU and refuses what a GPU would: operands that lie elsewhere.

Importing this registers it for the whole process, so it is done in processes of their own. A tensor on it
holds one on the CPU. It also counts what would wait for a GPU. Two things it cannot do: keep parameters
shared that move to it, and run an LSTM.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.utils.backend_registration as registration
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "mirror"
waits: Counter[str] = Counter()
_COPIES = ("aten::copy_", "aten::_to_copy")
# A GPU takes indices from the CPU.
_INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
_WAITING = (
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2",
    "aten::unique_consecutive", "aten::bincount",
)  # fmt: skip
# Made by PyTorch in two steps, of which the second changes the size that a tensor here has for good.
_FACTORIES = (
    "arange", "arange.start", "arange.start_step", "linspace", "randperm", "eye", "eye.m", "randint",
    "randint.low",
)  # fmt: skip


class Mirrored(Tensor):
    """A tensor on the device; `inner` is the one on the CPU."""

    inner: Tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        # PyTorch's own copies the storage, which there is none of here.
        if id(self) not in memo:
            assert self.is_leaf
            copied = self.detach().clone()
            parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(copied) if parameter else copied
            memo[id(self)].requires_grad_(self.requires_grad)
        return memo[id(self)]

    @staticmethod
    def __new__(cls, inner: Tensor) -> Mirrored:
        made: Any = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=f"{NAME}:0",
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"Mirrored({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def tolist(self) -> Any:
        waits["tolist"] += 1
        return self.inner.tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return _tensor(data, **{"dtype": self.dtype, **options}).to(self.device)


def _would_wait(name: str, args: Any, kwargs: dict[str, Any], tensors: list[Tensor], here: bool) -> bool:
    """Whether a GPU's driver would wait: for what it computes, or for a copy from or to other memory."""
    kinds = {isinstance(tensor, Mirrored) for tensor in tensors}
    if name in _COPIES:
        to_device = here and False in kinds
        blocking = not (kwargs.get("non_blocking") or (name == "aten::copy_" and True in args[2:3]))
        return (to_device and blocking) or (not here and True in kinds)
    return name in _WAITING


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operator on the CPU tensors behind those of the device; raises RuntimeError where they mix."""
    name, target = func._schema.name, kwargs.get("device")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    mirrored = any(isinstance(tensor, Mirrored) for tensor in tensors)
    here = mirrored if target is None else torch.device(target).type == NAME
    if name == "aten::copy_":
        here = isinstance(args[0], Mirrored)
    if _would_wait(name, args, kwargs, tensors, here):
        waits[name] += 1
    if mirrored and name not in _COPIES:
        operands = [args[0], *args[2:3]] if name in _INDEXED else tensors
        for tensor in operands:
            if isinstance(tensor, Tensor) and not isinstance(tensor, Mirrored) and tensor.dim():
                raise RuntimeError(f"{name}: all tensors must be on one device but one is on {tensor.device}")
    if target is not None:
        kwargs = {**kwargs, "device": "cpu", **({"pin_memory": False} if "pin_memory" in kwargs else {})}
    inner_args, inner_kwargs = tree_map_only(Mirrored, lambda tensor: tensor.inner, (args, kwargs))
    outputs = func(*inner_args, **inner_kwargs)
    if not here:
        return args[0] if name == "aten::copy_" else outputs
    wrapped = tree_map_only(Tensor, Mirrored, outputs)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if mirrored else wrapped


def _fallback(func: Any, *args: Any, **kwargs: Any) -> Any:
    return run(func, args, kwargs)


class _Backend(registration._DummyBackendModule):
    """The one generator is the CPU's, so that both devices draw the same."""

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_tensor = torch.tensor


def _made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
    made = data.to(**options) if isinstance(data, Tensor) else _tensor(data, **options)
    return made if device is None else made.to(device)


registration._setup_privateuseone_for_python_backend(NAME, _Backend())
# PyTorch's own does not ask a backend in Python.
torch.tensor = torch.as_tensor = _made
_every = torch.library.Library("_", "IMPL")
_every.fallback(_fallback, "PrivateUse1")
_aten = torch.library.Library("aten", "IMPL")
for _name in _FACTORIES:
    _packet, _, _overload = _name.partition(".")
    _operator = getattr(getattr(torch.ops.aten, _packet), _overload or "default")
    _aten.impl(_name, lambda *args, _op=_operator, **kwargs: run(_op, args, kwargs), "PrivateUse1")
