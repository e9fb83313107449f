"""Plug-ins: an installed package that brings a method and its search space, and what is wrong with some."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import autocompress as ac
from autocompress import plugins
from autocompress.engine.identity import identity
from autocompress.engine.prepare import prepare
from autocompress.engine.settings import Settings

METHOD = """
from dataclasses import dataclass

import autocompress as ac


@dataclass(frozen=True)
class Config(ac.Alcn.Config):
    pass


class Halving(ac.Alcn):
    Config = Config
"""
SPACE = """
from halving.method import Halving


def suggest(trial, profile):
    return Halving.Config(initial_ratio=trial.suggest_float("halving.ratio", 0.4, 0.6))


def move(profile, keep):
    return {"halving.ratio": 0.45}
"""
ENTRY_POINTS = {
    plugins.METHODS_GROUP: {"halving": "halving.method:Halving"},
    plugins.SPACES_GROUP: {"halving": "halving.space"},
}
Install = Callable[..., Path]


def installed(
    site: Path, points: dict[str, dict[str, str]], method: str = METHOD, space: str = SPACE
) -> Path:
    """A site folder as `pip install --target` leaves it: a package of two files, and its metadata."""
    package, info = site / "halving", site / "halving_method-1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "method.py").write_text(method)
    (package / "space.py").write_text(SPACE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: halving-method\nVersion: 1.0\n")
    lines = [
        f"[{group}]\n{name} = {value}" for group, named in points.items() for name, value in named.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return site


def forget() -> None:
    plugins.compressors.cache_clear()
    plugins.search_spaces.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Makes a plug-in importable, and forgets it in the end."""

    def make(points: dict[str, dict[str, str]], method: str = METHOD) -> Path:
        site = installed(tmp_path / "site", points, method)
        monkeypatch.syspath_prepend(str(site))
        forget()
        return site

    yield make
    forget()
    for name in [name for name in sys.modules if name.partition(".")[0] == "halving"]:
        del sys.modules[name]


def test_a_plug_in_brings_its_method_and_its_space(install: Install, residual_task: ac.Task) -> None:
    install(ENTRY_POINTS)
    method = plugins.compressor("halving")
    assert method(initial_ratio=0.4).config == method.Config(initial_ratio=0.4)
    assert plugins.method_of(method.Config()) == "halving"
    prepared = prepare(residual_task, Settings())
    assert {"halving", "alcn"} <= prepared.spaces.keys()
    reference = ac.Parent(0, 1.0, 0.9, prepared.profile)
    halving = {"halving": prepared.spaces["halving"]}
    guided = plugins.pipeline().guided(ac.Family((reference,), {0: reference}, left=4), halving)
    assert (guided.params["method"], guided.params["halving.ratio"]) == ("halving", 0.45)
    # It is a package that is installed, and no code of the user's own.
    assert not [name for name in identity(prepared)["digests"] if name.startswith("spaces.")]


def test_a_space_may_be_a_function_of_the_package(install: Install) -> None:
    install({**ENTRY_POINTS, plugins.SPACES_GROUP: {"halving": "halving.space:suggest"}})
    space = plugins.search_space("halving")
    assert (space.suggest.__module__, space.level, space.module) == ("halving.space", 1, None)


def test_a_method_without_a_space_is_searched_by_a_space_of_ones_own_alone(
    install: Install, residual_task: ac.Task
) -> None:
    install({plugins.METHODS_GROUP: ENTRY_POINTS[plugins.METHODS_GROUP]})
    assert "halving" not in prepare(residual_task, Settings()).spaces
    with pytest.raises(
        ac.UsageError, match=r"^method 'halving' must have a search space but its package has"
    ):
        prepare(residual_task, Settings(methods=("halving",)))


@pytest.mark.parametrize(("points", "method", "message"), [
    (
        {plugins.METHODS_GROUP: {"halving": "halving.method:Config"}},
        METHOD,
        "must be a method's class but 'halving.method:Config' is <class 'halving.method.Config'>.",
    ),
    (
        {plugins.METHODS_GROUP: {"halving": "halving.method:Halving"}},
        "Halving = 3",
        "must be a method's class but 'halving.method:Halving' is 3.",
    ),
    (
        {plugins.METHODS_GROUP: {"halving": "halving.method:Method"}},
        "from autocompress.methods.base import Method",
        "must be a method's class but 'halving.method:Method' is "
        "<class 'autocompress.methods.base.Method'>.",
    ),
    (
        {plugins.METHODS_GROUP: {"halving": "halving.method:Halving"}},
        "import autocompress as ac\nclass Halving(ac.Alcn):\n    Config = None",
        "must have a dataclass Config but 'halving.method:Halving' has none.",
    ),
    (
        {plugins.METHODS_GROUP: {"halving": "halving.method:Halving"}},
        "import no_such_package",
        "must be importable but: ModuleNotFoundError: No module named 'no_such_package'",
    ),
    (
        {plugins.METHODS_GROUP: {"alcn": "halving.method:Halving"}},
        METHOD,
        "must have a name of its own but 'alcn' is taken.",
    ),
])  # fmt: skip
def test_what_is_no_method_is_named_with_its_package(
    points: dict[str, dict[str, str]], method: str, message: str, install: Install
) -> None:
    install(points, method=method)
    name = next(iter(points[plugins.METHODS_GROUP]))
    with pytest.raises(ac.UsageError) as refusal:
        plugins.compressors()
    start = f"entry point {name!r} in 'autocompress.methods' of package 'halving-method' "
    assert str(refusal.value) == start + message


def test_what_is_no_space_is_named_with_its_package(install: Install) -> None:
    install({**ENTRY_POINTS, plugins.SPACES_GROUP: {"depth": "halving.space"}})
    with pytest.raises(ac.UsageError, match=r"^entry point 'depth' in 'autocompress.search_spaces' .*taken"):
        plugins.search_spaces()


def test_a_class_that_a_method_imports_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = tmp_path / "zeroing"
    room.mkdir()
    (room / "session.py").write_text(
        "from autocompress.methods.alcn import Alcn\nclass Zeroing(Alcn): pass\n"
    )
    text = "from autocompress.methods.{} import {}\n"
    (room / "__init__.py").write_text(text.format("alcn", "Alcn") + text.format("zeroing.session", "Zeroing"))
    package = sys.modules["autocompress.methods"]
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    forget()
    try:
        assert plugins.compressor("zeroing").__name__ == "Zeroing"
        assert plugins.compressor("alcn") is ac.Alcn
    finally:
        forget()
        for name in [name for name in sys.modules if name.startswith("autocompress.methods.zeroing")]:
            del sys.modules[name]
