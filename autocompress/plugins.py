"""Discovery of compressors, metrics and search spaces: by file name, and by entry point."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from autocompress.errors import SettingsError, one_line

ENTRY_POINT_GROUP = "autocompress.methods"


@cache
def compressors() -> dict[str, type[Any]]:
    """Method name → its class: each room of `autocompress/methods/`, then plug-ins by entry point.

    A room `foo/` exports one class of its own that is a method; what it imports from others is not taken
    for it.
    """
    package = importlib.import_module("autocompress.methods")
    base = importlib.import_module("autocompress.methods.base").Compressor
    methods: dict[str, type[Any]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if not info.ispkg:
            continue
        room = f"{package.__name__}.{info.name}"
        for _, cls in inspect.getmembers(importlib.import_module(room), inspect.isclass):
            own = cls.__module__.startswith(f"{room}.")
            if own and issubclass(cls, base) and not inspect.isabstract(cls):
                methods[info.name] = cls
    for point in entry_points(group=ENTRY_POINT_GROUP):
        methods[point.name] = point.load()
    return methods


def compressor(method: str) -> type[Any]:
    """The compressor class of a method.

    Raises:
        SettingsError: no such method.
    """
    known = compressors()
    if method not in known:
        raise SettingsError(f"methods must be among {', '.join(sorted(known))} but got {method!r}.")
    return known[method]


def method_of(config: object) -> str:
    """The method whose `Config` this is.

    Raises:
        SettingsError: no compressor has this configuration class.
    """
    for name, cls in compressors().items():
        if type(config) is cls.Config:
            return name
    raise SettingsError(f"suggest must return a compressor's Config but returned {type(config).__name__}.")


def pipeline() -> ModuleType:
    """The module that combines search spaces."""
    return importlib.import_module("search_spaces.pipeline")


def load_module(location: str) -> ModuleType:
    """A module by dotted name, or by path where it ends in `.py`.

    Raises:
        SettingsError: it does not exist or cannot be imported.
    """
    try:
        if not location.endswith(".py"):
            return importlib.import_module(location)
        path = Path(location)
        if not path.is_file():
            raise SettingsError(f"module file must exist but {location!r} does not.")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # dataclasses look their module up while it runs; afterwards it must not be found by
        # name, so that what it defines is pickled by value for worker processes.
        hidden = sys.modules.get(spec.name)
        sys.modules[spec.name] = module
        sys.path.insert(0, str(path.parent.resolve()))
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(path.parent.resolve()))
            del sys.modules[spec.name]
            if hidden is not None:
                sys.modules[spec.name] = hidden
        return module
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(
            f"module {location!r} must be importable but: {type(error).__name__}: {one_line(error)}"
        ) from error


def load_attribute(location: str) -> Any:
    """What `module:name` or `path/file.py:name` stands for.

    Raises:
        SettingsError: the module or the name in it does not exist.
    """
    module_name, _, attribute = location.rpartition(":")
    module = load_module(module_name)
    if not hasattr(module, attribute):
        raise SettingsError(f"{module_name!r} must define {attribute!r} but does not.")
    return getattr(module, attribute)


def search_space(location: str) -> ModuleType:
    """The search-space module of a method name, a dotted module or a `.py` file.

    Raises:
        SettingsError: there is none, or it has no `suggest(trial, profile)`.
    """
    name = location
    if "." not in location and importlib.util.find_spec(f"search_spaces.{location}") is not None:
        name = f"search_spaces.{location}"
    module = load_module(name)
    if not callable(getattr(module, "suggest", None)):
        raise SettingsError(f"space {location!r} must define suggest(trial, profile) but does not.")
    return module
