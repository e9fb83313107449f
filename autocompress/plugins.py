"""Discovery: methods and their search spaces, in this package and in installed ones, and users' modules."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from autocompress.errors import SettingsError, one_line

# Entry points of plug-ins: a method's name → its class, and → its search space, a module or a function.
METHODS_GROUP = "autocompress.methods"
SPACES_GROUP = "autocompress.search_spaces"
# `search_spaces` by a name that no folder of a user's has.
_OWN_SPACES = "_autocompress_search_spaces"

Suggest = Callable[[Any, Any], Any]


def _no_move(profile: Any, keep: float) -> Mapping[str, Any] | None:
    return None


def _suits_any(profile: Any) -> str | None:
    return None


@dataclass(frozen=True)
class SearchSpace:
    """What may vary in a trial.

    Args:
        suggest: `suggest(trial, profile)` draws from an Optuna trial and returns a method's `Config`, or a
            tuple of them, which follow each other.
        move: `move(profile, keep)` gives the parameters of a trial that keeps about this share, in (0, 1), of
            what the model costs; the sampler draws those that it leaves open. None where there is no such
            trial, or where all are the sampler's to draw.
        level: of the method whose space it is, which says what it can be combined with; a space of a user's
            own has none and stands alone.
        module: where both are defined; None of a space that was given as a function.
        unsupported: `unsupported(profile)` says why the method whose space it is cannot compress a model.
    """

    suggest: Suggest
    move: Callable[[Any, float], Mapping[str, Any] | None] = _no_move
    level: int | None = None
    module: ModuleType | None = None
    unsupported: Callable[[Any], str | None] = _suits_any

    @property
    def has_moves(self) -> bool:
        """Whether it says how to keep a share of what a model costs."""
        return self.move is not _no_move


@cache
def compressors() -> dict[str, type[Any]]:
    """Method name → its class: each room of `autocompress/methods/`, then plug-ins by entry point.

    A room `foo/` exports one class of its own that is a method; what it imports from others is not taken
    for it.

    Raises:
        SettingsError: a plug-in is not usable.
    """
    package = importlib.import_module("autocompress.methods")
    base = importlib.import_module("autocompress.methods.base").Method
    methods: dict[str, type[Any]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if not info.ispkg:
            continue
        room = f"{package.__name__}.{info.name}"
        for _, cls in inspect.getmembers(importlib.import_module(room), inspect.isclass):
            own = cls.__module__.startswith(f"{room}.")
            if own and issubclass(cls, base) and not inspect.isabstract(cls):
                methods[info.name] = cls
    for point in entry_points(group=METHODS_GROUP):
        cls = _loaded(point, methods)
        if not inspect.isclass(cls) or not issubclass(cls, base) or inspect.isabstract(cls):
            raise SettingsError(f"{_said(point)} must be a method's class but {point.value!r} is {cls!r}.")
        if not is_dataclass(getattr(cls, "Config", None)):
            raise SettingsError(f"{_said(point)} must have a dataclass Config but {point.value!r} has none.")
        methods[point.name] = cls
    return methods


@cache
def search_spaces() -> dict[str, SearchSpace]:
    """Name → search space: those of the package's methods, then plug-ins by entry point.

    Raises:
        SettingsError: a plug-in is not usable.
    """
    methods = compressors()
    package = _own_spaces()
    names = [info.name for info in pkgutil.iter_modules(package.__path__) if info.name in methods]
    spaces = {
        name: _space(importlib.import_module(f"{_OWN_SPACES}.{name}"), name, methods[name]) for name in names
    }
    for point in entry_points(group=SPACES_GROUP):
        spaces[point.name] = _space(_loaded(point, spaces), point.name, methods.get(point.name))
    return spaces


def _loaded(point: EntryPoint, taken: Mapping[str, object]) -> Any:
    """What an entry point stands for, whose name nothing else may have."""
    if point.name in taken:
        raise SettingsError(f"{_said(point)} must have a name of its own but {point.name!r} is taken.")
    try:
        return point.load()
    except Exception as error:
        raise SettingsError(
            f"{_said(point)} must be importable but: {type(error).__name__}: {one_line(error)}"
        ) from error


def _said(point: EntryPoint) -> str:
    package = "a package" if point.dist is None else f"package {point.dist.name!r}"
    return f"entry point {point.name!r} in {point.group!r} of {package}"


def _own_spaces() -> ModuleType:
    """The folder `search_spaces/` beside this package, loaded by its path.

    A folder that is called the same in a user's project would be found first by that name.
    """
    if _OWN_SPACES not in sys.modules:
        folder = Path(__file__).resolve().parents[1] / "search_spaces"
        _executed(_OWN_SPACES, folder / "__init__.py", submodules=folder)
    return sys.modules[_OWN_SPACES]


def _executed(name: str, path: Path, submodules: Path | None = None) -> ModuleType:
    """A module of a file, which stays in `sys.modules`."""
    folders = None if submodules is None else [str(submodules)]
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def pipeline() -> ModuleType:
    """The module that combines search spaces."""
    return importlib.import_module(f"{_own_spaces().__name__}.pipeline")


def compressor(method: str) -> type[Any]:
    """The class of a method.

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
        SettingsError: no method has this configuration class.
    """
    for name, cls in compressors().items():
        if type(config) is cls.Config:
            return name
    raise SettingsError(f"suggest must return a compressor's Config but returned {type(config).__name__}.")


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
        # dataclasses look their module up while it runs; afterwards it must not be found by
        # name, so that what it defines is pickled by value for worker processes.
        hidden = sys.modules.pop(path.stem, None)
        sys.path.insert(0, str(path.parent.resolve()))
        try:
            return _executed(path.stem, path)
        finally:
            sys.path.remove(str(path.parent.resolve()))
            sys.modules.pop(path.stem, None)
            if hidden is not None:
                sys.modules[path.stem] = hidden
    except SettingsError:
        raise
    except (Exception, SystemExit) as error:  # code of the user's own
        raise SettingsError(
            f"module {location!r} must be importable but: {type(error).__name__}: {one_line(error)}"
        ) from error


def module_exists(location: str) -> bool:
    """Whether `load_module` would find a module, which is not run; packages that it lies in are."""
    if location.endswith(".py"):
        return Path(location).is_file()
    try:
        return importlib.util.find_spec(location) is not None
    except (Exception, SystemExit):  # of a package's own code, or no name of a module
        return False


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


def search_space(location: str | Suggest) -> SearchSpace:
    """The search space of a method, of a dotted module, of a `.py` file or of a function.

    Args:
        location: a method's name, a module, or `suggest(trial, profile)` itself, which may have an attribute
            `move`.

    Raises:
        SettingsError: there is none, or it has no `suggest(trial, profile)`.
    """
    if not isinstance(location, str):
        return _space(location, space_name(location))
    if location in search_spaces():
        return search_spaces()[location]
    if location in compressors():
        raise SettingsError(
            f"method {location!r} must have a search space but its package has no entry point {location!r} "
            f"in {SPACES_GROUP!r} (search with a space of your own that returns its Config)."
        )
    return _space(load_module(location), location)


def space_name(location: str | Suggest) -> str:
    """A search space's name: of a file its stem, of a module its dotted name, of a function its own."""
    if isinstance(location, str):
        return Path(location).stem if location.endswith(".py") else location
    function = location.func if isinstance(location, functools.partial) else location
    return str(getattr(function, "__name__", type(function).__name__))


def _space(source: Any, name: str, method: type[Any] | None = None) -> SearchSpace:
    """The search space that a module, or a function alone, defines."""
    module = source if isinstance(source, ModuleType) else None
    suggest = source if module is None else getattr(module, "suggest", None)
    if suggest is None:
        raise SettingsError(f"space {name!r} must define suggest(trial, profile) but does not.")
    try:
        inspect.signature(suggest).bind(None, None)
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"space {name!r} must be called as suggest(trial, profile) but: {one_line(error)}."
        ) from error
    move = getattr(source, "move", _no_move)
    if method is None:
        return SearchSpace(suggest, move, module=module)
    return SearchSpace(suggest, move, method.stage, module, method.unsupported)
