"""Options of a search as a TOML file: read beside the command line, and written with comments by `init`."""

from __future__ import annotations

import difflib
import json
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from autocompress.cli.app import app
from autocompress.cli.options import TaskName
from autocompress.engine.settings import Settings, parse_duration, parse_list, parse_shares
from autocompress.errors import SettingsError
from autocompress.remote import refuse_address

_LISTS = ("space", "constraint", "methods", "objectives", "exclude", "at_least")
_REPEATED = ("space", "constraint", "exclude", "at_least")
_NO_SETTINGS = ("config", "help", "help_all")
_WIDTH = 100


def given_options(context: typer.Context, config: str | None) -> dict[str, Any]:
    """The command line's options, and where one was not given the configuration file's.

    Args:
        context: of the command.
        config: path of the file; None where there is none.

    Raises:
        SettingsError: the file is none of TOML, or has a key that is no option.
    """
    values = {k: v for k, v in context.params.items() if k not in _NO_SETTINGS}
    for name, value in _stored(config, values).items():
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            values[name] = value
    return values


def settings_of(options: Mapping[str, Any]) -> Settings:
    """The settings that options of `autocompress search` stand for.

    Raises:
        SettingsError: a value is out of range, or there is no task.
    """
    values = dict(options)
    if values["task"] is None:
        raise SettingsError("TASK must be given, on the command line or as task in the configuration file.")
    methods = values.pop("methods")
    for name in ("timeout", "trial_timeout"):
        if values[name] is not None:
            values[name] = parse_duration(name, str(values[name]))
    values["objectives"] = parse_list(values["objectives"])
    values["spaces"] = tuple(values.pop("space") or ())
    values["distill"] = values.pop("distillation")
    values["exclude"] = patterns_of(values["exclude"])
    values["at_least"] = parse_shares(patterns_of(values["at_least"]))
    given = values.pop("constraint")
    values["constraints"] = None if not given else tuple(c for c in given if c != "none")
    return Settings(**values, methods=None if methods is None else parse_list(methods))


def patterns_of(given: list[str] | None) -> tuple[str, ...]:
    """Patterns of a repeated option, each of which may be several, separated by commas."""
    return tuple(pattern for item in given or () for pattern in parse_list(item))


def _stored(config: str | None, known: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a configuration file, as the command line would have given them."""
    if config is None:
        return {}
    if not Path(config).is_file():
        raise SettingsError(f"config must be an existing file but '{config}' is not.")
    try:
        stored = tomllib.loads(Path(config).read_text())
    except ValueError as error:
        raise SettingsError(f"config '{config}' must be TOML but: {error}") from error
    options: dict[str, Any] = {}
    for key, value in stored.items():
        name = key.replace("-", "_")
        if name not in known:
            keys = [option.replace("_", "-") for option in known]
            nearest = difflib.get_close_matches(key.replace("_", "-"), keys, 1, cutoff=0)[0]
            raise SettingsError(
                f"config '{config}' must hold options of search but has {key!r}; the nearest is {nearest!r}."
            )
        options[name] = _from_file(name, value)
    return options


def _from_file(name: str, value: Any) -> Any:
    """An option's value as the command line would have given it; lists may be strings, and shares a table."""
    if name not in _LISTS:
        return value
    if name == "at_least" and isinstance(value, dict):
        return [f"{pattern}={share}" for pattern, share in value.items()]
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise SettingsError(f"{name} must be a string or a list of strings but got {value!r}.")
    return items if name in _REPEATED else ",".join(items)


@app.command(
    epilog="""\b
Examples:
  autocompress init digits
  autocompress init my_package.task:make --out mine.toml
  autocompress search --config run.toml --trials 40
"""
)
def init(
    context: typer.Context,
    task: TaskName,
    out: str = typer.Option("run.toml", help="The file to write."),
) -> None:
    """Write a commented configuration file for a search of TASK: every option, with its default."""
    from autocompress.data import check_name

    refuse_address("out", out)
    path = Path(out)
    if path.exists():
        raise SettingsError(f"out must be a new file but '{out}' exists; give --out another name.")
    check_name(task)
    assert context.parent is not None
    group: Any = context.parent.command
    path.write_text("\n".join(_commented(task, group.commands["search"].params)) + "\n")
    print(f"{out} written; start with: autocompress search --config {out}")


def _commented(task: str, parameters: list[Any]) -> Iterator[str]:
    """The lines of a configuration file: the task, and each option as a comment under its help."""
    yield "# Options of `autocompress search --config FILE`; those of the command line win."
    yield f"task = {json.dumps(task, ensure_ascii=False)}"
    for parameter in parameters:
        if parameter.param_type_name != "option" or parameter.name in _NO_SETTINGS:
            continue
        yield ""
        yield from textwrap.wrap(
            parameter.help or "", _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
        )
        yield f"# {parameter.name} = {_example(parameter)}"


def _example(parameter: Any) -> str:
    """An option's default as TOML; of one that has none, a value of its type."""
    if parameter.name in _LISTS:
        return json.dumps(list(parse_list(parameter.default or "")))
    if parameter.default is None:
        return "1" if parameter.metavar in ("N", "X") else '""'
    return json.dumps(parameter.default)
