"""Digests of Python values and code: equal in every process, and blind to comments, layout and file names.

A function is what its bytecode, its constants, its defaults, its closure and the globals that it reads are,
and so on through the user's own functions and classes. What belongs to an installed package, to Python or
to autocompress counts by its name alone: an upgrade is no other run. Bytecode compares within one minor
version of Python.
"""

from __future__ import annotations

import copy
import dis
import functools
import hashlib
import math
import random
import sys
import sysconfig
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CodeType,
    EllipsisType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
    NoneType,
    SimpleNamespace,
)
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

# Elements of an array, entries of a list: of longer ones as many are taken, evenly spread.
_MOST_ELEMENTS = 1 << 20
_MOST_ENTRIES = 1 << 12
_PLAIN = (NoneType, EllipsisType, bool, int, float, complex, str, bytes)
# What a module keeps for PyTorch's sake; hooks and the mode it was left in are no part of its settings.
_MODULE_KEEPING = set(vars(nn.Module())) - {"_parameters", "_buffers", "_modules"}
# Their state moves on with every draw, and data have digests of their own.
_BY_TYPE = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator, Dataset, DataLoader)
# A code object's first constant is its docstring; Python 3.13 says so, earlier ones always put it there.
_HAS_DOCSTRING = 0x4000000


def digest(value: object, *, tensors: bool = True) -> str:
    """A digest of a value, or of what a callable computes, 32 hexadecimal digits.

    Args:
        value: anything; objects count by their class and by the state that pickling would store.
        tensors: whether the elements of tensors and arrays count, or their shapes and types alone.
    """
    return _Walk(tensors).of(value).hex()


def state_digest(state: Mapping[str, Tensor]) -> str:
    """A digest of every tensor of a state dict, by name; all elements count."""
    return _hash(*(part for name in sorted(state) for part in (name, array_digest(state[name], None)))).hex()


def array_digest(array: Any, most: int | None = _MOST_ELEMENTS) -> bytes:
    """A digest of a tensor or array: shape, type and elements, evenly spread ones where they are many."""
    if isinstance(array, np.ndarray) and array.dtype.hasobject:
        return _hash("objects", repr(array.shape), _Walk().of(array.ravel().tolist()))
    form = array_form(array)
    if isinstance(array, Tensor):
        if array.device.type == "meta":
            return form
        dense = array.detach() if array.layout == torch.strided else array.detach().to_dense()
        dense = dense.dequantize() if dense.is_quantized else dense
        spread = dense.reshape(-1)[:: _step(dense.numel(), most)].cpu().resolve_conj().resolve_neg()
        return _hash(form, spread.contiguous().view(torch.uint8).numpy().tobytes())
    flat = np.asarray(array).reshape(-1)
    return _hash(form, flat[:: _step(flat.size, most)].tobytes())


def array_form(array: Any) -> bytes:
    """A digest of a tensor's or an array's shape and type alone."""
    return _hash("array", repr(tuple(array.shape)), str(array.dtype).removeprefix("torch."))


def _step(count: int, most: int | None) -> int:
    return 1 if most is None else max(1, math.ceil(count / most))


def _hash(*parts: str | bytes) -> bytes:
    """One digest of several parts, told apart by their lengths."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.digest()


class _Walk:
    """One walk from a value to all that it consists of.

    Args:
        tensors: whether the elements of tensors and arrays count.
    """

    def __init__(self, tensors: bool = True) -> None:
        self.tensors = tensors
        self.done: dict[int, bytes] = {}
        self.path: list[int] = []
        # An id is an object's own only as long as the object lives.
        self.kept: list[object] = []

    def of(self, value: Any) -> bytes:
        """The digest of a value."""
        if type(value) in _PLAIN:
            return _hash(type(value).__name__, repr(value))
        key = id(value)
        if key in self.done:
            return self.done[key]
        if key in self.path:
            # Functions that call each other, and objects that hold themselves.
            return _hash("cycle", str(len(self.path) - self.path.index(key)))
        self.path.append(key)
        try:
            value_digest = self._compound(value)
        finally:
            self.path.pop()
        self.done[key] = value_digest
        self.kept.append(value)
        return value_digest

    def _compound(self, value: Any) -> bytes:
        for types, rule in _RULES:
            if isinstance(value, types):
                return rule(self, value)
        if callable(value) and hasattr(value, "__wrapped__"):
            return _hash("wrapper", type(value).__qualname__, self.of(value.__wrapped__))
        return self._object(value)

    def _sequence(self, value: Iterable[Any]) -> bytes:
        if type(value) not in (tuple, list):
            return self._object(value)
        entries = list(value)
        spread = entries[:: _step(len(entries), _MOST_ENTRIES)]
        return _hash(type(value).__name__, str(len(entries)), *map(self.of, spread))

    def _set(self, value: Iterable[Any]) -> bytes:
        # Their order differs between processes.
        return _hash("set", *sorted(self.of(entry) for entry in value))

    def _mapping(self, value: Mapping[Any, Any]) -> bytes:
        if type(value) not in (dict, OrderedDict, MappingProxyType):
            return self._object(value)
        keys = list(value)[:: _step(len(value), _MOST_ENTRIES)]
        return _hash("dict", str(len(value)), *sorted(_hash(self.of(k), self.of(value[k])) for k in keys))

    def _array(self, value: Any) -> bytes:
        return array_digest(value) if self.tensors else array_form(value)

    def _image(self, value: Image.Image) -> bytes:
        return _hash("image", value.mode, repr(value.size), value.tobytes())

    def _type_alone(self, value: object) -> bytes:
        return _hash("object of", type(value).__module__, type(value).__qualname__)

    def _module(self, value: ModuleType) -> bytes:
        return _hash("module", value.__name__)

    def _method(self, value: MethodType) -> bytes:
        return _hash("method", self.of(value.__func__), self.of(value.__self__))

    def _builtin(self, value: BuiltinFunctionType) -> bytes:
        owner = b"" if isinstance(value.__self__, (ModuleType, NoneType)) else self.of(value.__self__)
        return _hash("builtin", value.__module__ or "", value.__qualname__, owner)

    def _descriptor(self, value: Any) -> bytes:
        parts = [getattr(value, name, None) for name in ("__func__", "func", "fget", "fset", "fdel")]
        return _hash(type(value).__name__, *map(self.of, parts))

    def _layer(self, value: nn.Module) -> bytes:
        """A module by its class, its plain attributes, its tensors and its sub-modules."""
        metric = getattr(sys.modules.get("torchmetrics"), "Metric", None)
        if metric is not None and isinstance(value, metric):
            # What it has gathered so far is no part of what it computes.
            value = copy.deepcopy(value)
            value.reset()  # type: ignore[operator]
        getstate: Any = value.__getstate__
        state = getstate()
        if not isinstance(state, dict):
            return _hash("module", self.of(type(value)), self.of(state))
        settings = {name: entry for name, entry in state.items() if name not in _MODULE_KEEPING}
        return _hash("module", self.of(type(value)), self.of(settings))

    def _object(self, value: Any) -> bytes:
        """An object as pickling sees it; by its type alone where it cannot be pickled."""
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:
            # Locks, handles, compiled extensions, or the object's own code: there is no state to be had.
            return self._type_alone(value)
        if isinstance(reduced, str):
            return _hash("global", type(value).__qualname__, reduced)
        make, arguments, *rest = reduced
        state, entries, items = (*rest, None, None, None)[:3]
        parts = [make, arguments, state, list(entries or ()), list(items or ())]
        return _hash("object", *map(self.of, parts))

    def _function(self, value: FunctionType) -> bytes:
        code = value.__code__
        names = _names(code)
        closure = [self._read(_contents(cell), names) for cell in value.__closure__ or ()]
        if _is_installed(code.co_filename):
            # A wrapper goes by its name and what it wraps.
            return _hash("function", Path(code.co_filename).name, code.co_qualname, *closure)
        parts = [self.of(value.__defaults__), self.of(value.__kwdefaults__), *closure]
        for name in sorted(_globals(code)):
            if name in value.__globals__:
                parts += [name.encode(), self._read(value.__globals__[name], names)]
            elif name in sys.modules:
                parts += [name.encode(), self._read(sys.modules[name], names)]
        return _hash("function", self.of(code), *parts)

    def _read(self, value: Any, names: set[str]) -> bytes:
        """What code reads; of a module of the user's own, or a namespace, what it may take from it by name.

        Arguments of a script lie in one namespace, and most have nothing to do with its loss.
        """
        holds_names = isinstance(value, (Namespace, SimpleNamespace)) or (
            isinstance(value, ModuleType) and not _is_installed_module(value)
        )
        if not holds_names or id(value) in self.path:
            return self.of(value)
        self.path.append(id(value))
        try:
            taken = [
                part
                for name in sorted(names & vars(value).keys())
                for part in (name.encode(), self._read(vars(value)[name], names))
            ]
        finally:
            self.path.pop()
        return _hash("names of", *taken)

    def _code(self, value: CodeType) -> bytes:
        arguments = value.co_argcount + value.co_kwonlyargcount
        counts = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags)
        constants = list(value.co_consts)
        if _has_docstring(value):
            constants[0] = None
        return _hash(
            "code",
            value.co_code,
            value.co_exceptiontable,
            repr(value.co_names),
            repr(value.co_varnames[:arguments]),
            repr(counts),
            self.of(constants),
        )

    def _class(self, value: type) -> bytes:
        if _is_installed_class(value):
            return _hash("class", value.__module__, value.__qualname__)
        parts = [self.of(base) for base in value.__bases__]
        for name, entry in sorted(vars(value).items()):
            if _is_said(name, entry):
                parts += [name.encode(), self.of(entry)]
        return _hash("own class", *parts)


_DESCRIPTORS = (staticmethod, classmethod, property, functools.cached_property)
# The first that suits a value is taken.
_RULES: tuple[tuple[Any, Callable[[_Walk, Any], bytes]], ...] = (
    ((Tensor, np.ndarray, np.generic), _Walk._array),
    (Image.Image, _Walk._image),
    ((tuple, list), _Walk._sequence),
    ((set, frozenset), _Walk._set),
    ((dict, MappingProxyType), _Walk._mapping),
    (CodeType, _Walk._code),
    (FunctionType, _Walk._function),
    (MethodType, _Walk._method),
    (BuiltinFunctionType, _Walk._builtin),
    (_DESCRIPTORS, _Walk._descriptor),
    (type, _Walk._class),
    (ModuleType, _Walk._module),
    (_BY_TYPE, _Walk._type_alone),
    (nn.Module, _Walk._layer),
)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # A variable that has no value yet.
        return None


def _parts(code: CodeType) -> Iterable[CodeType]:
    """A code object and those of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)


def _globals(code: CodeType) -> set[str]:
    """Names of globals that code reads, and of modules that it imports when it runs."""
    reading = ("LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME")
    return {
        step.argval for part in _parts(code) for step in dis.get_instructions(part) if step.opname in reading
    }


def _names(code: CodeType) -> set[str]:
    return {name for part in _parts(code) for name in part.co_names}


def _has_docstring(code: CodeType) -> bool:
    if sys.version_info >= (3, 13):
        return bool(code.co_flags & _HAS_DOCSTRING)
    is_definition = not code.co_name.startswith("<")
    return is_definition and bool(code.co_consts) and isinstance(code.co_consts[0], str)


def _is_said(name: str, entry: object) -> bool:
    """Whether a class's own text says this, or its methods; Python keeps books under such names too."""
    if name == "_abc_impl":
        return False
    is_special = name.startswith("__") and name.endswith("__")
    return not is_special or isinstance(entry, (FunctionType, *_DESCRIPTORS))


@cache
def _installed_folders() -> tuple[Path, ...]:
    package = Path(__file__).resolve().parents[1]
    standard = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    return (package, package.parent / "search_spaces", *(Path(path).resolve() for path in standard))


@cache
def _is_installed(file: str) -> bool:
    """Whether a file belongs to Python, to an installed package or to autocompress."""
    if file.startswith("<"):
        return file.startswith("<frozen")
    path = Path(file)
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    return any(path.resolve().is_relative_to(folder) for folder in _installed_folders())


def _is_installed_module(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if file is None:
        return module.__name__.partition(".")[0] in sys.stdlib_module_names
    return _is_installed(file)


def _is_installed_class(cls: type) -> bool:
    module = sys.modules.get(cls.__module__)
    if module is None or not _is_installed_module(module):
        return False
    # A file that was loaded by its path may be called like an installed module.
    files = [f.__code__.co_filename for f in vars(cls).values() if isinstance(f, FunctionType)]
    return all(file.startswith("<") or _is_installed(file) for file in files)
