"""`autocompress explain`: the concept pages, which lie beside the code that they are about."""

from __future__ import annotations

import difflib
import re
import sys
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Annotated

import typer

from autocompress.cli.app import app
from autocompress.cli.show import console
from autocompress.errors import SettingsError

# Rooms with a page, as people read them; those of the methods follow.
_PAGES = ("engine", "task", "measure", "report", "graph", "checkpoint", "methods")


@app.command(
    epilog="""\b
Examples:
  autocompress explain
  autocompress explain early-stopping
  autocompress explain alcn
"""
)
def explain(
    term: Annotated[
        str | None, typer.Argument(metavar="TERM", help="A subject; without it, all are listed.")
    ] = None,
) -> None:
    """Explain a subject: how a search works, what a number means, a method."""
    subjects = _subjects()
    if term is None:
        print("\n".join(_listed(subjects)))
        return
    wanted = _key(term)
    keys = {_key(name): text for page in subjects.values() for name, text in page.items()}
    if wanted not in keys:
        near = difflib.get_close_matches(wanted, keys, 3, cutoff=0.4)
        near += [key for key in keys if wanted in key and key not in near]
        hint = f"the nearest are {', '.join(near)}" if near else "without a TERM all are listed"
        raise SettingsError(f"TERM must be a subject of the pages but got {term!r}; {hint}.")
    if sys.stdout.isatty():
        from rich.markdown import Markdown

        console().print(Markdown(keys[wanted]))
    else:
        print(keys[wanted])


def _subjects() -> dict[str, dict[str, str]]:
    """Page → subject → its text: the sections of each page, and methods as a whole."""
    package = files("autocompress")
    pages: dict[str, dict[str, str]] = {}
    for room in _PAGES:
        title, *sections = re.split(r"^## ", (package / room / "README.md").read_text(), flags=re.MULTILINE)
        pages[_title(title)] = {text.partition("\n")[0]: f"## {text}" for text in sections}
    pages["Methods"] = {room.name: (room / "README.md").read_text() for room in _methods(package)}
    return pages


def _methods(package: Traversable) -> list[Traversable]:
    rooms = sorted((package / "methods").iterdir(), key=lambda room: room.name)
    return [room for room in rooms if room.is_dir() and (room / "README.md").is_file()]


def _title(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")


def _listed(subjects: dict[str, dict[str, str]]) -> list[str]:
    lines = []
    for page, names in subjects.items():
        lines += [f"{page}:", *(f"  {_key(name)}" for name in names)]
    return lines


def _key(name: str) -> str:
    """What people type for a heading."""
    return re.sub(r"[\s_`]+", "-", name.strip().lower())
