"""What `autocompress` offers by name, and how its methods are made."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

import autocompress as ac
from autocompress import plugins
from autocompress.methods.lc import SCHEMES, Sum

METHODS = {
    "Alcn": "alcn",
    "Depth": "depth",
    "Alds": "alds",
    "Autoplastic": "autoplastic",
    "Lc": "lc",
    "Qat": "qat",
}


def test_every_public_name_resolves_and_is_listed_once() -> None:
    assert ac.__all__ == sorted(set(ac.__all__))
    assert set(ac.__all__) == set(ac._HOME)
    assert set(ac.__all__) <= set(dir(ac))
    for name in ac.__all__:
        assert getattr(ac, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'autocompress' has no attribute 'Nothing'"):
        ac.Nothing  # noqa: B018


def test_type_checkers_see_each_name_where_it_is() -> None:
    tree = ast.parse(Path(ac.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert seen == {name: f"autocompress.{module}" for name, module in ac._HOME.items()}


def test_importing_the_package_waits_for_no_large_one() -> None:
    program = (
        "import sys, autocompress; print(*sorted({'torch', 'ray', 'optuna', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""


def test_methods_and_schemes_are_public() -> None:
    known = plugins.compressors()
    assert {name: getattr(ac, name) for name in METHODS} == {name: known[m] for name, m in METHODS.items()}
    assert set(METHODS.values()) == set(known)
    schemes = [cls for cls in SCHEMES.values() if cls is not Sum]  # written `+`
    assert [getattr(ac, cls.__name__) for cls in schemes] == schemes


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_made_with_its_settings_or_its_config(name: str) -> None:
    method = getattr(ac, name)
    values = {option.name: getattr(method.Config(), option.name) for option in fields(method.Config)}
    assert method().config == method.Config() == method(**values).config == method(method.Config()).config


def test_settings_given_by_name_are_the_configs() -> None:
    assert ac.Alcn(initial_ratio=0.25).config == ac.Alcn.Config(initial_ratio=0.25)
    lc = ac.Lc(schemes={"*": ac.Codebook(k=3) + ac.PruneL0(keep=0.1)}, steps=7)
    assert (lc.config.schemes[0].layers, lc.config.steps) == (("*",), 7)
    assert [part.kind for part in lc.config.schemes[0].scheme.parts] == ["codebook", "prune_l0"]


@pytest.mark.parametrize(("make", "message"), [
    (
        lambda: ac.Alcn(inital_ratio=0.5),
        "settings of Alcn must be known but got 'inital_ratio' (did you mean 'initial_ratio'?).",
    ),
    (
        lambda: ac.Lc(scheme={"*": ac.Ternary()}),
        "settings of Lc must be known but got 'scheme' (did you mean 'schemes'?).",
    ),
    (
        lambda: ac.Depth(ac.Alcn.Config()),
        "Depth must be given its own Config but got autocompress.methods.alcn.config.Config.",
    ),
    (lambda: ac.Alds(0.5), "Alds must be given its own Config but got builtins.float."),
    (
        lambda: ac.Alcn(ac.Alcn.Config(), initial_ratio=0.5),
        "Alcn must be given a Config or its fields but got both.",
    ),
    (
        lambda: ac.search("digits", trails=3),
        "settings of search must be known but got 'trails' (did you mean 'trials'?).",
    ),
])  # fmt: skip
def test_what_cannot_be_a_setting_is_refused_in_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ac.UsageError) as refusal:
        make()
    assert str(refusal.value) == message
